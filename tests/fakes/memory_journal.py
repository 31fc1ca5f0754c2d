"""The journal in memory: what ``PostgresJournal`` promises, with a database that tests can look into and hold up.

``tests/contract`` holds both to the same suite, so that whatever is proven on this one is proven.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from itertools import combinations
from typing import Any

import orjson

from actors.calendar import Calendar, Reservation
from actors.decisions import Busy, Facts
from actors.journal import (
    Append,
    Claim,
    Conflict,
    EventRow,
    JournalUnavailable,
    NewerPlacement,
    NoSuchCalendar,
    OutcomeUnknown,
    StaleEpoch,
    StoredAnswer,
)
from actors.messages import AppointmentState, AppointmentStatus, Window
from actors.slots import Hold, Slot

LOADED_BACK = timedelta(days=1)
OPEN = ("reserved", "moved", "aborted")

Row = dict[str, Any]


@dataclass(frozen=True)
class CalendarState:
    """A row of ``calendar``."""

    epoch: int = 0
    sequence: int = 0
    last_event_at: datetime | None = None


@dataclass
class Tables:
    """What is committed, by primary key. Rows are replaced, never changed."""

    calendar: dict[str, CalendarState] = field(default_factory=dict)
    event: dict[tuple[str, int], EventRow] = field(default_factory=dict)
    command: dict[str, StoredAnswer] = field(default_factory=dict)
    slot: dict[str, Row] = field(default_factory=dict)
    hold: dict[str, Row] = field(default_factory=dict)
    appointment: dict[str, Row] = field(default_factory=dict)
    closure: dict[str, Row] = field(default_factory=dict)
    move: dict[str, Row] = field(default_factory=dict)
    generation: int = 0

    def copy(self) -> Tables:
        """The same rows in tables of their own."""
        tables: dict[str, Any] = {each.name: copy(getattr(self, each.name)) for each in fields(self)}
        return Tables(**tables)


class MemoryDatabase:
    """One database, for as many journals as are opened on it."""

    def __init__(self, *, live_appointments_max: int = 10, holds_max: int = 3) -> None:
        self.tables = Tables()
        self.erased: set[str] = set()
        """Patients whose data key has been destroyed."""
        self.live_appointments_max = live_appointments_max
        self.holds_max = holds_max

    def add_doctor(self, doctor_id: str) -> None:
        """A doctor with an empty calendar."""
        self.tables.calendar[doctor_id] = CalendarState()

    def place(self, generation: int) -> None:
        """The placement is at this generation from now on."""
        self.tables.generation = generation

    def open(self) -> MemoryJournal:
        """A journal on this database."""
        return MemoryJournal(self)


Step = Callable[[Callable[[], Any]], Any]


class Gate:
    """Holds whoever comes: ``entered`` says that somebody did, ``open`` lets them on."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self._open = asyncio.Event()

    async def pass_through(self) -> None:
        """Wait until the gate is open."""
        self.entered.set()
        await self._open.wait()

    def open(self) -> None:
        """Let everybody on, now and later."""
        self._open.set()


@dataclass(kw_only=True)
class Fault:
    """What befalls one call: it waits at a gate before or after it took effect, fails before it or lies about it."""

    gate: Gate | None = None
    before: Exception | None = None
    after: Exception | None = None
    gate_after: Gate | None = None


class MemoryJournal:
    """``actors.journal.Journal`` on a ``MemoryDatabase``."""

    def __init__(self, database: MemoryDatabase) -> None:
        self.database = database
        self.appends: list[Append] = []
        """Every append that was tried, in order."""
        self.claims: list[str] = []
        self.loads: list[str] = []
        self.closed = False
        self._faults: dict[str, deque[Fault]] = {}
        self._always: dict[str, Fault] = {}

    # What tests do to it

    def next(self, call: str, *faults: Fault) -> None:
        """The next calls of that name meet these faults, one each."""
        self._faults.setdefault(call, deque()).extend(faults)

    def always(self, call: str, fault: Fault | None) -> None:
        """Every call of that name meets this fault, until there is none."""
        if fault is None:
            self._always.pop(call, None)
        else:
            self._always[call] = fault

    def away(self, *calls: str) -> None:
        """The database cannot be reached."""
        for call in calls or ("append", "claim", "load", "look_up", "facts"):
            self.always(call, Fault(before=JournalUnavailable("away")))

    def back(self) -> None:
        """It can be reached again."""
        self._always.clear()

    async def _meet(self, call: str, effect: Callable[[], Any]) -> Any:
        await asyncio.sleep(0)  # A real one always waits.
        waiting = self._faults.get(call)
        fault = waiting.popleft() if waiting else self._always.get(call, Fault())
        if fault.gate is not None:
            await fault.gate.pass_through()
        if fault.before is not None:
            raise fault.before
        result = effect()
        if fault.gate_after is not None:
            await fault.gate_after.pass_through()
        if fault.after is not None:
            raise fault.after
        return result

    # The journal

    async def claim(self, doctor_id: str, generation: int) -> Claim:
        """See ``Journal.claim``."""
        self.claims.append(doctor_id)
        claimed: Claim = await self._meet("claim", lambda: self._claim(doctor_id, generation))
        return claimed

    async def load(self, doctor_id: str, now: datetime) -> Calendar:
        """See ``Journal.load``."""
        self.loads.append(doctor_id)
        loaded: Calendar = await self._meet("load", lambda: _load(self.database.tables, doctor_id, now - LOADED_BACK))
        return loaded

    async def append(self, append: Append) -> dict[str, StoredAnswer]:
        """See ``Journal.append``."""
        self.appends.append(append)
        stored: dict[str, StoredAnswer] = await self._meet("append", lambda: self._append(append))
        return stored

    async def look_up(self, command_ids: Iterable[str]) -> dict[str, StoredAnswer]:
        """See ``Journal.look_up``."""
        wanted = list(command_ids)
        found: dict[str, StoredAnswer] = await self._meet("look_up", lambda: self._find(wanted))
        return found

    async def facts(self, patient_ids: Iterable[str], user_ids: Iterable[str], move_ids: Iterable[str]) -> Facts:
        """See ``Journal.facts``."""
        wanted = (set(patient_ids), set(user_ids), set(move_ids))
        found: Facts = await self._meet(
            "facts",
            lambda: replace(_facts(self.database.tables, *wanted), erased=frozenset(self.database.erased & wanted[0])),
        )
        return found

    async def close(self) -> None:
        """See ``Journal.close``."""
        self.closed = True

    # Its effects: nothing waits from here on

    def _claim(self, doctor_id: str, generation: int) -> Claim:
        tables = self.database.tables
        if doctor_id not in tables.calendar:
            raise NoSuchCalendar(doctor_id)
        if tables.generation > generation:
            raise NewerPlacement(tables.generation)
        before = tables.calendar[doctor_id]
        tables.calendar[doctor_id] = replace(before, epoch=before.epoch + 1)
        return Claim(epoch=before.epoch + 1)

    def _find(self, command_ids: Sequence[str]) -> dict[str, StoredAnswer]:
        command = self.database.tables.command
        return {command_id: command[command_id] for command_id in command_ids if command_id in command}

    def _append(self, append: Append) -> dict[str, StoredAnswer]:
        tables = self.database.tables.copy()
        self._fence(tables, append)
        _write(tables, append)
        self._check(tables, append)
        self.database.tables = tables
        return self._find(append.look_up)

    def _fence(self, tables: Tables, append: Append) -> None:
        stale = []
        for row in append.calendars:
            state = tables.calendar.get(row.doctor_id)
            moves = row.reached > row.expected
            if state is None or state.epoch != row.epoch or (moves and state.sequence != row.expected):
                stale.append(row.doctor_id)
            elif moves:
                tables.calendar[row.doctor_id] = replace(state, sequence=row.reached, last_event_at=row.last_event_at)
        if stale:
            raise StaleEpoch(stale)

    def _check(self, tables: Tables, append: Append) -> None:
        """Overlaps of any doctor or patient, as the constraints see them; limits where they are asked about."""
        if append.patients & self.database.erased:
            raise Conflict("patient erased")
        live = [row for row in tables.appointment.values() if row["live"]]
        for one, other in combinations(live, 2):
            meet = one["starts_at"] < other["ends_at"] and other["starts_at"] < one["ends_at"]
            if meet and (one["doctor_id"] == other["doctor_id"] or one["patient_id"] == other["patient_id"]):
                raise Conflict("overlap")
        now = max((row.at for row in append.events), default=None)
        if now is None:
            return
        for patient_id in append.limited_patients if self.database.live_appointments_max else ():
            to_come = sum(row["patient_id"] == patient_id and row["ends_at"] > now for row in live)
            if to_come > self.database.live_appointments_max + append.overridden_patients.count(patient_id):
                raise Conflict("too many live appointments")
        for user_id in append.holders if self.database.holds_max else ():
            holds = sum(row["user_id"] == user_id and row["expires_at"] > now for row in tables.hold.values())
            if holds > self.database.holds_max:
                raise Conflict("too many holds")


def lost(*, committed: bool) -> Fault:
    """The connection is lost around the commit."""
    unknown = OutcomeUnknown("lost")
    return Fault(after=unknown) if committed else Fault(before=unknown)


def _insert(table: dict[Any, Any], key: Any, row: Any) -> None:
    if key in table:
        raise Conflict("duplicate key")
    table[key] = row


def _write(tables: Tables, append: Append) -> None:
    for event in append.events:
        _insert(tables.event, (event.doctor_id, event.sequence), event)
    for command in append.commands:
        answer = orjson.loads(orjson.dumps(command.answer))
        stored = StoredAnswer(fingerprint=command.fingerprint, user_id=command.user_id, answer=answer)
        _insert(tables.command, command.command_id, stored)
    for row in append.new_slots:
        _insert(tables.slot, row["id"], row)
    for row in append.slots:
        known = tables.slot.get(row["id"])
        if known is not None and known["doctor_id"] == row["doctor_id"]:
            tables.slot[row["id"]] = known | row
    for hold_id in append.holds_gone:
        tables.hold.pop(hold_id, None)
    for row in append.holds:
        _insert(tables.hold, row["id"], row)
    if len({row["id"] for row in append.appointments}) < len(append.appointments):
        raise Conflict("one row twice")
    for row in append.appointments:
        kept = {name: value for name, value in row.items() if value is not None or name == "open_move_id"}
        tables.appointment[row["id"]] = row | tables.appointment.get(row["id"], {}) | kept
    for row in append.closures:
        _insert(tables.closure, row["id"], row | {"removed_at": None})
    for row in append.closures_removed:
        if row["id"] in tables.closure:
            tables.closure[row["id"]] = tables.closure[row["id"]] | {"removed_at": row["removed_at"]}
    for row in sorted(append.moves, key=lambda row: row["state"] == "reserved"):
        known = tables.move.get(row["id"])
        if row["state"] != "reserved" if known is None else known["state"] not in row["before"]:
            raise Conflict("move in another state")
        tables.move[row["id"]] = (known or {}) | row


def _load(tables: Tables, doctor_id: str, since: datetime) -> Calendar:
    if doctor_id not in tables.calendar:
        raise NoSuchCalendar(doctor_id)
    state = tables.calendar[doctor_id]
    calendar = Calendar(doctor_id, sequence=state.sequence, last_event_at=state.last_event_at)
    appointments = [row for row in tables.appointment.values() if row["doctor_id"] == doctor_id]
    holds = [row for row in tables.hold.values() if row["doctor_id"] == doctor_id]
    moves = [row for row in tables.move.values() if row["target_doctor_id"] == doctor_id and row["state"] in OPEN]
    wanted = {row["slot_id"] for row in appointments if row["live"]} | {row["slot_id"] for row in holds}
    wanted |= {row["target_slot_id"] for row in moves}
    slots = [
        row
        for row in tables.slot.values()
        if row["doctor_id"] == doctor_id and (row["starts_at"] >= since or row["id"] in wanted)
    ]
    closures = [row for row in tables.closure.values() if row["doctor_id"] == doctor_id and row["removed_at"] is None]
    for row in closures:
        if row["ends_at"] >= since:
            windows = tuple(Window(location_id=where, start=start, end=end) for where, start, end in row["windows"])
            calendar.put_closure(row["id"], windows, row["created_by"])
        else:
            calendar.closures_over.add(row["id"])
    for row in slots:
        calendar.put_slot(
            Slot(
                id=row["id"],
                start=row["starts_at"],
                length=row["ends_at"] - row["starts_at"],
                location_id=row["location_id"],
                service_id=row["service_id"],
                blocked=row["blocked"],
                cancelled=row["status"] == "cancelled",
            ),
            closed=None if row["blocked"] or row["status"] == "cancelled" else row["status"] == "blocked",
        )
    for row in holds:
        calendar.put_hold(
            Hold(id=row["id"], slot_id=row["slot_id"], user_id=row["user_id"], expires_at=row["expires_at"])
        )
    coming = {}
    for row in appointments:
        if row["open_move_id"] is not None:
            coming[row["open_move_id"]] = _appointment(row)
        elif row["live"]:
            calendar.put_appointment(_appointment(row))
    for row in moves:
        calendar.put_reservation(
            Reservation(
                move_id=row["id"],
                slot_id=row["target_slot_id"],
                appointment_id=row["appointment_id"],
                moved=coming.get(row["id"]) if row["state"] == "moved" else None,
                aborted=row["state"] == "aborted",
            )
        )
    calendar.forget_changes()
    return calendar


def _appointment(row: Row) -> AppointmentState:
    renamed = {"start": row["starts_at"], "end": row["ends_at"], "status": AppointmentStatus(row["status"])}
    return AppointmentState(**{each.name: (row | renamed)[each.name] for each in fields(AppointmentState)})


def _facts(tables: Tables, patient_ids: set[str], user_ids: set[str], move_ids: set[str]) -> Facts:
    busy: dict[str, list[Busy]] = {}
    for row in tables.appointment.values():
        if row["live"] and row["patient_id"] in patient_ids:
            visit = Busy(
                appointment_id=row["id"], doctor_id=row["doctor_id"], start=row["starts_at"], end=row["ends_at"]
            )
            busy.setdefault(row["patient_id"], []).append(visit)
    holds: dict[str, list[tuple[str, datetime]]] = {}
    for row in tables.hold.values():
        if row["user_id"] in user_ids:
            holds.setdefault(row["user_id"], []).append((row["doctor_id"], row["expires_at"]))
    return Facts(
        busy=busy,
        holds=holds,
        moves={move_id: tables.move[move_id]["state"] for move_id in move_ids if move_id in tables.move},
    )
