"""Calendar actors in a storm: several over one database that fails in every way it may, and clients that repeat.

Every reply is checked against what was committed while its command was under way: a yes has to be there, a no has to
have been true at some moment between the question and the answer. In the end the journal is gapless and replays to the
tables, and every actor has come to rest with nothing left over.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import pytest

from actors.calendar import Calendar, evolve
from actors.journal import Conflict, JournalUnavailable, OutcomeUnknown, StoredAnswer, appointment_row
from actors.journal import slot_state_row as row_of
from actors.messages import (
    BlockSlot,
    BookAppointment,
    CalendarClosed,
    CancelAppointment,
    Command,
    Done,
    ExpireHolds,
    HoldSlot,
    NotDecided,
    Pending,
    Rejected,
    ReleaseHold,
    RemoveClosure,
    Reply,
    RescheduleAppointment,
    UnblockSlot,
)
from actors.policy import Policy
from tests.clinic import (
    CUDDY,
    HOUSE,
    WILSON,
    book,
    by_staff,
    cancel,
    close,
    finish,
    hold,
    move_out,
    publish,
    reschedule,
    reserve,
    slot_id,
)
from tests.fakes.actor_house import QUICK, House, until
from tests.fakes.memory_journal import MemoryDatabase, MemoryJournal, Tables
from tests.given import as_json, uid

DOCTORS = (HOUSE, WILSON, CUDDY)
SLOTS = 6
POLICY = Policy(live_appointments_max=3, holds_max=2)


class History(MemoryDatabase):
    """A database that remembers everything it ever was."""

    def __init__(self) -> None:
        self.versions: list[Tables] = []
        super().__init__(live_appointments_max=3, holds_max=2)

    @property
    def tables(self) -> Tables:
        return self.versions[-1]

    @tables.setter
    def tables(self, tables: Tables) -> None:
        self.versions.append(tables)


class StormyJournal(MemoryJournal):
    """Takes its time, and fails as it likes."""

    dice = random.Random(0)
    calm = False
    late: set[asyncio.Task[None]]

    def __init__(self, database: MemoryDatabase) -> None:
        super().__init__(database)
        self.late = set()

    async def _meet(self, call: str, effect: Any) -> Any:
        await self._jitter()
        if not self.calm and self.dice.random() < 0.1:
            raise JournalUnavailable("storm")
        if call == "append" and not self.calm:
            return await self._stormy_append(effect)
        result = effect()
        await self._jitter()
        return result

    async def _stormy_append(self, effect: Any) -> dict[str, StoredAnswer]:
        match self.dice.choices(("well", "conflict", "lost", "lost after", "lost before it ends"), (12, 1, 1, 1, 1))[0]:
            case "conflict":
                raise Conflict("storm")
            case "lost":
                raise OutcomeUnknown("storm")
            case "lost after":
                effect()
                raise OutcomeUnknown("storm")
            case "lost before it ends":
                # The server goes on with it, until it commits or finds that it has been fenced.
                task = asyncio.create_task(self._end_later(effect))
                self.late.add(task)
                task.add_done_callback(self.late.discard)
                raise OutcomeUnknown("storm")
            case _:
                result: dict[str, StoredAnswer] = effect()
                await self._jitter()
                return result

    async def _end_later(self, effect: Any) -> None:
        await self._jitter()
        try:
            effect()
        except Exception as failure:  # noqa: BLE001  (nobody is there to be told)
            assert type(failure).__module__ == "actors.journal", failure  # noqa: PT017

    async def _jitter(self) -> None:
        for _ in range(self.dice.choice((1, 1, 2, 5, 20))):
            await asyncio.sleep(0)


@dataclass
class Asked:
    """A command, when it was first asked and what the answer was."""

    command: Command
    since: int
    at: datetime
    reply: Reply | None = None
    until: int = 0


@dataclass
class Storm:
    """Everything that goes on."""

    seed: int
    database: History = field(default_factory=History)
    asked: list[Asked] = field(default_factory=list)
    moves: int = 0

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        StormyJournal.dice = self.dice
        StormyJournal.calm = True
        limits = replace(QUICK, commit_timeout_s=0.05, redecide_max=5, retry_delay_s=0.0001, retry_delay_max_s=0.0002)
        first = House(limits=limits, policy=POLICY, database=self.database, journal_class=StormyJournal)
        self.houses = [first, first.rival()]
        self.numbers = iter(range(10**6))

    async def run(self, clients: int, commands: int) -> None:
        for doctor in DOCTORS:
            self.database.add_doctor(doctor)
        await self.houses[0].send(*(publish(doctor, SLOTS) for doctor in DOCTORS))
        StormyJournal.calm = False
        await asyncio.gather(*(self.client(number, commands) for number in range(clients)))
        StormyJournal.calm = True
        for house in self.houses:
            await until(lambda house=house: house.actor.status()["backlog"] == 0)  # type: ignore[misc]
            assert not house.actor._waiting
            assert all(each.uncommitted == 0 for each in house.actor._active.values())
            assert house.bugs == 0, "a flush loop died"
        for house in self.houses:
            assert isinstance(house.journal, StormyJournal)
            while house.journal.late:
                await asyncio.sleep(0)

    async def client(self, number: int, commands: int) -> None:
        who = f"patient {number % 4}"
        for _ in range(commands):
            if self.dice.random() < 0.05:
                self.houses[0].clock.pass_(minutes=self.dice.choice((1, 4)))
            if self.dice.random() < 0.1:
                await self.move(who)
            else:
                await self.ask(self.some_command(who))

    def some_command(self, who: str) -> Command:
        doctor, slot = self.dice.choice(DOCTORS), self.dice.randrange(SLOTS)
        visit, owner = self.some_visit(who, doctor)
        name = f"{next(self.numbers)} of {who}"
        kinds = {"book": 6, "hold": 2, "release": 1, "cancel": 3, "move": 2, "expire": 0.3, "close": 0.3, "reopen": 0.6}
        kinds |= {"block": 0.3, "unblock": 0.6, "publish": 0.2}
        kind = self.dice.choices(list(kinds), list(kinds.values()))[0]
        match kind:
            case "book":
                return book(doctor, slot, patient=who, visit=name)
            case "hold":
                return replace(hold(doctor, slot, by=who), hold_id=uid(name))
            case "release":
                held = [row for row in self.database.tables.hold.values() if row["user_id"] == uid(who)]
                chosen = self.dice.choice(held) if held else {"doctor_id": doctor, "id": uid("no such hold")}
                release = hold(chosen["doctor_id"], 0, by=who)
                return ReleaseHold(
                    command_id=release.command_id,
                    doctor_id=chosen["doctor_id"],
                    requester=release.requester,
                    fingerprint="f",
                    hold_id=chosen["id"],
                )
            case "cancel":
                return cancel(owner, visit, by=who)
            case "move":
                return reschedule(owner, visit, slot, by=who, respond_async=self.dice.random() < 0.2)
            case "expire":
                return by_staff(ExpireHolds, doctor=doctor)
            case "close":
                return close(doctor, slot, slot, name=name)
            case "reopen":
                closures = [
                    row["id"]
                    for row in self.database.tables.closure.values()
                    if row["doctor_id"] == doctor and row["removed_at"] is None
                ]
                return by_staff(RemoveClosure, doctor=doctor, closure_id=min(closures, default=uid("no such closure")))
            case "block":
                return by_staff(BlockSlot, doctor=doctor, slot_id=slot_id(doctor, slot))
            case "unblock":
                return by_staff(UnblockSlot, doctor=doctor, slot_id=slot_id(doctor, slot))
            case _:
                return publish(doctor, SLOTS)

    def some_visit(self, who: str, doctor: str) -> tuple[str, str]:
        """A live visit of the patient's and whose calendar has it, if there is any."""
        rows = [row for row in self.database.tables.appointment.values() if row["live"]]
        mine = sorted((row["id"], row["doctor_id"]) for row in rows if row["patient_id"] == uid(who))
        return self.dice.choice(mine) if mine else (uid("no such visit"), doctor)

    async def ask(self, command: Command) -> Reply | None:
        """What a client does: send to either actor, again under the same id, sometimes twice at once, until told."""
        asked = Asked(command, len(self.database.versions) - 1, self.houses[0].clock())
        self.asked.append(asked)
        for _ in range(self.dice.randint(3, 60)):
            house = self.dice.choice(self.houses) if self.dice.random() < 0.1 else self.houses[0]
            batch = [command, command] if self.dice.random() < 0.1 else [command]
            replies = await house.once(*batch)
            if len(batch) == 2 and isinstance(replies[0], Done):
                assert as_json(replies[1]) == as_json(replies[0])
            if isinstance(replies[0], Done | Rejected):
                asked.reply, asked.until = replies[0], len(self.database.versions) - 1
                self.check_reply(asked)
                return asked.reply
            assert isinstance(replies[0], Pending | NotDecided)
            await asyncio.sleep(0.0002 if self.dice.random() < 0.2 else 0)
        return None

    async def move(self, who: str) -> None:
        """To another doctor, as its driver would; sometimes the driver is lost on the way."""
        visit, source = self.some_visit(who, HOUSE)
        target = self.dice.choice([doctor for doctor in DOCTORS if doctor != source])
        name = f"move {next(self.numbers)}"
        key = uid(f"key of {name}")
        slot = self.dice.randrange(SLOTS)
        reserved = await self.ask(reserve(source, target, slot, visit, name=name, by=who, command_id=key))
        if not isinstance(reserved, Done) or self.dice.random() < 0.1:
            return
        out = move_out(source, target, slot, visit, name=name, by=who, command_id=key)
        await self.ask(out)
        if self.dice.random() < 0.1:
            return
        row = self.database.tables.move[uid(name)]
        if row["state"] == "aborted":
            await self.ask(finish(target, name=name))
        elif row["state"] == "moved":
            # As the driver reads it.
            loaded = await MemoryJournal(self.database).load(target, self.houses[0].clock())
            if (reservation := loaded.reservations.get(uid(name))) is not None:
                await self.ask(finish(target, name=name, appointment=reservation.moved))

    # What is checked

    def check_reply(self, asked: Asked) -> None:
        command, reply = asked.command, asked.reply
        now = self.database.tables
        versions = self.database.versions[asked.since : asked.until + 1]
        if isinstance(reply, Done):
            if isinstance(command, BookAppointment | RescheduleAppointment | CancelAppointment | HoldSlot):
                stored = now.command[command.command_id]
                assert stored.answer == {"done": as_json(reply)["answer"]}, "told something else than is stored"
            if isinstance(command, BookAppointment):
                assert command.appointment_id in now.appointment, "acknowledged and not there"
            return
        assert isinstance(reply, Rejected)
        assert command.command_id not in now.command or now.command[command.command_id].answer.get("rejected"), (
            "refused though it was accepted"
        )
        assert any(self.true_then(command, reply.code, tables, asked.at) for tables in versions) or self.true_between(
            command, versions[0], versions[-1]
        ), (command, reply)

    @staticmethod
    def true_between(command: Command, before: Tables, after: Tables) -> bool:
        """Whether it may have been right between two events of one transaction, which no state of the tables shows."""
        about = {getattr(command, name, "") for name in ("slot_id", "appointment_id", "patient_id", "hold_id")} - {""}
        who = command.requester.user_id  # Here everybody is the patient, too.
        about |= {who, *(row["id"] for row in after.appointment.values() if row["patient_id"] == who)}
        since = [row for key, row in after.event.items() if key not in before.event]
        closed = any(isinstance(row.event, CalendarClosed) and row.doctor_id == command.doctor_id for row in since)
        return closed or any(each in repr(row.event) for row in since for each in about if each is not None)

    def true_then(self, command: Command, code: str, tables: Tables, at: datetime) -> bool:
        """Whether a refusal was right in that state of the database."""
        live = [row for row in tables.appointment.values() if row["live"]]
        match code:
            case "slot_taken":
                slot = getattr(command, "slot_id", None)
                if slot is None:
                    return True  # A move no longer reserved.
                held = [row for row in tables.hold.values() if row["expires_at"] > at]
                return any(row["slot_id"] == slot for row in (*live, *held)) or any(
                    row["target_slot_id"] == slot and row["state"] in ("reserved", "moved", "aborted")
                    for row in tables.move.values()
                )
            case "patient_overlap":
                patient, own = self.patient_of(command, tables)
                start, end = self.time_of(command, tables)
                return any(
                    row["patient_id"] == patient
                    and row["id"] != own
                    and row["starts_at"] < end
                    and start < row["ends_at"]
                    for row in live
                )
            case "limit_reached":
                if isinstance(command, HoldSlot):
                    mine = [r for r in tables.hold.values() if r["user_id"] == command.requester.user_id]
                    return len(mine) >= POLICY.holds_max
                if isinstance(command, BookAppointment):
                    mine = [row for row in live if row["patient_id"] == command.patient_id]
                    return len(mine) >= POLICY.live_appointments_max
                moved = tables.appointment.get(getattr(command, "appointment_id", ""), {"moves": 0})
                return bool(moved["moves"] >= POLICY.moves_max)
            case "not_live":
                visit = tables.appointment.get(getattr(command, "appointment_id", ""))
                if visit is None or not visit["live"] or visit["doctor_id"] != command.doctor_id:
                    return True
                return visit["open_move_id"] is not None  # On its way in, and not here yet.
            case "not_found" if isinstance(command, RemoveClosure):
                closure = tables.closure.get(command.closure_id)
                return closure is None or closure["removed_at"] is not None
            case "not_found":
                hold = tables.hold.get(getattr(command, "hold_id", ""))
                return hold is None or hold["expires_at"] <= self.houses[0].clock()
            case "slot_unavailable":
                return bool(tables.slot[getattr(command, "slot_id", "")]["status"] == "blocked")
            case _:
                return False

    @staticmethod
    def patient_of(command: Command, tables: Tables) -> tuple[str, str]:
        own = getattr(command, "appointment_id", "")
        if isinstance(command, BookAppointment):
            return command.patient_id, own
        row = tables.appointment.get(own)
        return ("" if row is None else row["patient_id"]), own

    @staticmethod
    def time_of(command: Command, tables: Tables) -> tuple[Any, Any]:
        wanted = getattr(command, "slot_id", None) or command.slot.id  # type: ignore[attr-defined]
        slot = tables.slot[wanted]
        return slot["starts_at"], slot["ends_at"]

    def check_end(self) -> None:
        tables = self.database.tables
        for doctor in DOCTORS:
            assert self.houses[0].kinds(doctor)
            replayed = Calendar(doctor)
            events = sorted(((number, row) for (owner, number), row in tables.event.items() if owner == doctor), key=_n)
            epochs = [row.epoch for _, row in events]
            assert epochs == sorted(epochs), "an older owner wrote after a newer one"
            for _, row in events:
                evolve(replayed, row.event, row.at)
            for slot in replayed.slots.values():
                stored = tables.slot[slot.id]
                assert {name: stored[name] for name in row_of(slot)} == row_of(slot)
            assert {hold_id for hold_id, row in tables.hold.items() if row["doctor_id"] == doctor} == set(
                replayed.holds
            )
            mine = {
                visit_id: row
                for visit_id, row in tables.appointment.items()
                if row["doctor_id"] == doctor and row["open_move_id"] is None
            }
            assert set(mine) == set(replayed.appointments)
            for visit_id, visit in mine.items():
                expected = appointment_row(replayed.appointment_plain(visit_id))
                assert {name: visit[name] for name in expected} == expected
        live = [row for row in tables.appointment.values() if row["live"]]
        for one in live:
            for other in live:
                if one is not other and one["starts_at"] < other["ends_at"] and other["starts_at"] < one["ends_at"]:
                    assert one["doctor_id"] != other["doctor_id"]
                    assert one["patient_id"] != other["patient_id"]
        for asked in self.asked:
            if isinstance(asked.reply, Done) and isinstance(asked.command, BookAppointment):
                assert asked.command.appointment_id in tables.appointment, "acknowledged and lost"
        assert any(isinstance(asked.reply, Done) for asked in self.asked)
        assert any(isinstance(asked.reply, Rejected) for asked in self.asked)


def _n(numbered: tuple[int, Any]) -> int:
    return numbered[0]


@pytest.mark.parametrize("seed", range(12))
async def test_actors_weather_any_storm(seed: int) -> None:
    storm = Storm(seed)
    async with asyncio.timeout(60):
        await storm.run(clients=10, commands=12)
    storm.check_end()
