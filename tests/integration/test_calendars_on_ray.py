"""Calendars on real Ray and PostgreSQL: races, repeats, killed actors, two owners, placements, moves left behind."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import psycopg
import pytest
import pytest_asyncio
import ray

from actors.client import CalendarClient, ClientLimits, Placement, RayCalendarActors
from actors.messages import (
    BookAppointment,
    Command,
    Done,
    NewSlot,
    NotDecided,
    PublishSlots,
    Rejected,
    Reply,
    ReserveForMove,
)
from cluster.bootstrap import Services, calendar_actors, close_services, open_services
from cluster.settings import Settings
from persistence.repositories.placement import Placements
from persistence.verify import verify
from tests.clinic import book, by_staff, cancel, hold, move_out, publish, reschedule, reserve, slot, slot_id
from tests.clinic import visit_id as visit_of
from tests.fakes.actor_house import until
from tests.given import as_json, uid

OPENS = datetime.now(UTC).replace(hour=9, minute=0, second=0, microsecond=0) + timedelta(days=2)
DEADLINE = timedelta(seconds=30)
DRAIN_S = 5.0

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Clinic:
    """Services over the real servers, and what tests ask of them."""

    services: Services

    @property
    def database_url(self) -> str:
        url = self.services.settings.database_url
        assert url is not None
        return url

    async def open(self, *names: str, slots: int) -> list[str]:
        """Doctors of these names, with slots from the day after tomorrow on."""
        doctors = [uid(name) for name in names]
        await self.write("INSERT INTO calendar (doctor_id) SELECT unnest(%s::uuid[])", doctors)
        replies = await self.send_all(publish(doctor, slots, opens=OPENS) for doctor in doctors)
        assert all(isinstance(reply, Done) for reply in replies), replies
        return doctors

    async def send(self, command: Command, client: CalendarClient | None = None) -> Reply:
        """The reply to a command, which may take its time."""
        dated = replace(command, deadline=datetime.now(UTC) + DEADLINE)
        return await (client or self.services.calendars).send(dated)

    async def send_all(self, commands: Any) -> list[Reply]:
        """The replies to commands sent at once."""
        return await asyncio.gather(*(self.send(command) for command in commands))

    async def rows(self, query: str, *values: Any) -> list[Any]:
        """What a query finds."""
        return await asyncio.to_thread(self._rows, query, values)

    async def write(self, statement: str, *values: Any) -> None:
        """Change the database behind everybody's back."""
        await asyncio.to_thread(self._write, statement, values)

    def _rows(self, query: str, values: tuple[Any, ...]) -> list[Any]:
        with psycopg.connect(self.database_url) as connection:
            return connection.execute(query.encode(), values).fetchall()

    def _write(self, statement: str, values: tuple[Any, ...]) -> None:
        with psycopg.connect(self.database_url) as connection:
            connection.execute(statement.encode(), values)

    async def visits(self, *doctors: str) -> dict[str, str]:
        """The slot of every live visit of these doctors."""
        query = "SELECT id::text, slot_id::text FROM appointment WHERE live AND doctor_id = ANY(%s::uuid[])"
        return dict(await self.rows(query, list(doctors)))

    async def check(self) -> None:
        """The journal is gapless and says the same as the tables."""
        report = await verify(self.database_url)
        assert report.differences == []

    async def move_state(self, name: str) -> str | None:
        """How far a move got."""
        found = await self.rows("SELECT state FROM move WHERE id = %s", uid(name))
        return found[0][0] if found else None

    def processes(self, namespace: str | None = None) -> dict[str, int]:
        """The process of each calendar actor that runs now, by its name."""
        namespace = namespace or self.services.settings.ray_namespace
        found = {}
        for entry in ray.util.list_named_actors(all_namespaces=True):
            if entry["namespace"] == namespace and entry["name"].startswith("calendar"):
                handle: Any = ray.get_actor(entry["name"], namespace=namespace)
                found[entry["name"]] = ray.get(handle.__ray_call__.remote(_process_of), timeout=20)
        return found

    def kill(self) -> int:
        """``kill -9`` for every calendar actor; how many there were."""
        processes = self.processes().values()
        for process in processes:
            os.kill(process, signal.SIGKILL)
        return len(processes)


def _process_of(_: object) -> int:
    return os.getpid()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clinic(
    new_database: Callable[[], AbstractContextManager[str]], settings_over: Callable[[str], Settings]
) -> AsyncIterator[Clinic]:
    """One clinic for all tests here: each has doctors and patients of its own in it."""
    with new_database() as database_url:
        settings = settings_over(database_url).model_copy(update={"calendar_actors": 2, "hold_ttl_s": 1})
        services = await open_services(settings)
        try:
            yield Clinic(services)
        finally:
            await services.supervisor.stop()
            await services.calendar_actors.drain(DRAIN_S)
            await close_services(services)


def codes(replies: Sequence[Reply]) -> Counter[str]:
    """How often what was replied."""
    return Counter(
        reply.code if isinstance(reply, Rejected) else reply.why if isinstance(reply, NotDecided) else "done"
        for reply in replies
    )


# Races


async def test_500_clients_race_for_20_slots_of_one_doctor(clinic: Clinic) -> None:
    dice = random.Random(20)
    (doctor,) = await clinic.open("wanted", slots=20)
    wanted = [dice.randrange(20) for _ in range(480)] + list(range(20))
    dice.shuffle(wanted)

    replies = await clinic.send_all(
        book(doctor, slot, patient=f"racer {number}", visit=f"race {number}") for number, slot in enumerate(wanted)
    )

    assert codes(replies) == {"done": 20, "slot_taken": 480}
    visits = await clinic.visits(doctor)
    assert sorted(visits.values()) == sorted(slot_id(doctor, number) for number in range(20))
    assert set(visits) == {reply.answer["appointment"]["id"] for reply in replies if isinstance(reply, Done)}
    await clinic.check()


async def test_500_clients_race_for_one_patient_over_overlapping_slots_of_several_doctors(clinic: Clinic) -> None:
    doctors = await clinic.open(*(f"overlapping {number}" for number in range(6)), slots=0)
    for number, doctor in enumerate(doctors):
        # Half an hour each, five minutes apart: any two of them overlap.
        opened = slot_at(doctor, 0, later=timedelta(minutes=5 * number))
        assert isinstance(await clinic.send(by_staff(PublishSlots, doctor=doctor, slots=(opened,))), Done)
    commands = [
        book(doctors[number % 6], 0, patient="torn", visit=f"torn {number}", by=uid(f"user {number}"))
        for number in range(500)
    ]

    replies = await clinic.send_all(commands)

    (winner,) = [command for command, reply in zip(commands, replies, strict=True) if isinstance(reply, Done)]
    for command, reply in zip(commands, replies, strict=True):
        if command is not winner:
            assert isinstance(reply, Rejected), reply
            expected = "slot_taken" if command.doctor_id == winner.doctor_id else "patient_overlap"
            assert reply.code == expected
    assert await clinic.visits(*doctors) == {winner.appointment_id: winner.slot_id}
    await clinic.check()


async def test_a_command_sent_20_times_by_two_processes_worth_of_clients_has_one_effect(clinic: Clinic) -> None:
    (doctor,) = await clinic.open("repeated", slots=2)
    command = book(doctor, 0, patient="insistent")
    with_another = another_client(clinic)

    replies = await asyncio.gather(*(clinic.send(command, (None, with_another)[number % 2]) for number in range(20)))
    again = await clinic.send(command)

    assert all(isinstance(reply, Done) and reply == replies[0] for reply in [*replies, again])
    assert await clinic.visits(doctor) == {command.appointment_id: command.slot_id}
    other = replace(command, fingerprint="another")
    assert codes([await clinic.send(other)]) == {"idempotency_key_reused": 1}
    await with_another.close()
    await clinic.check()


def another_client(clinic: Clinic, *, actors: RayCalendarActors | None = None) -> CalendarClient:
    """What a second API process would send with."""
    services = clinic.services

    async def read_placement() -> Placement:
        async with services.unit_of_work() as work:
            placement = await Placements(work.connection).read()
            assert placement is not None
            return placement

    return CalendarClient(
        actors=actors or calendar_actors(services.settings, services.policy),
        read_placement=read_placement,
        limits=ClientLimits(),
    )


# Killed


async def test_whatever_was_acknowledged_survives_the_death_of_every_actor(clinic: Clinic) -> None:
    doctors = await clinic.open("killed 1", "killed 2", "killed 3", "killed 4", slots=150)
    commands = [
        book(doctors[number % 4], number // 4, patient=f"survivor {number}", visit=f"survivor {number}")
        for number in range(600)
    ]
    replies: dict[str, Reply] = {}
    waiting = iter(commands)

    async def client() -> None:
        for command in waiting:
            replies[command.command_id] = await clinic.send(command)

    clients = [asyncio.create_task(client()) for _ in range(32)]
    for killed_after in (100, 350):
        await until(partial(lambda enough: len(replies) >= enough, killed_after))
        assert await asyncio.to_thread(clinic.kill) == 2
    await asyncio.gather(*clients)

    assert codes(list(replies.values())) == {"done": 600}
    assert await clinic.visits(*doctors) == {command.appointment_id: command.slot_id for command in commands}
    repeats = await clinic.send_all(commands[::10])
    assert repeats == [replies[command.command_id] for command in commands[::10]]
    await clinic.check()


# Moves to another doctor, and what the supervisor does


def timely(command: ReserveForMove) -> ReserveForMove:
    """A command that may take its time."""
    return replace(command, deadline=datetime.now(UTC) + DEADLINE)


def slot_at(doctor: str, number: int, *, later: timedelta = timedelta(0)) -> NewSlot:
    """A doctor's slot as it is opened here."""
    return slot(doctor, number, opens=OPENS + later)


async def test_a_visit_moves_to_another_doctor_and_a_hold_ends_on_time(clinic: Clinic) -> None:
    source, target = await clinic.open("left", "joined", slots=4)
    visit = visit_of(source, 0)
    assert isinstance(await clinic.send(book(source, 0, patient="mover")), Done)
    assert isinstance(await clinic.send(hold(target, 3, by="holder")), Done)
    command = timely(reserve(source, target, 2, visit, name="a move", by="mover"))

    reply = await clinic.services.moves.move(command)

    assert isinstance(reply, Done)
    moved = reply.answer["appointment"]
    assert (moved["id"], moved["doctor_id"], moved["slot_id"]) == (visit, target, slot_id(target, 2))
    assert moved["version"] == 2
    assert await clinic.move_state("a move") == "done"
    assert await clinic.visits(source, target) == {visit: slot_id(target, 2)}
    again = await asyncio.gather(*(clinic.services.moves.move(command) for _ in range(5)))
    assert again == [reply] * 5
    assert await clinic.services.moves.drive_on(uid("a move")) is None
    assert await clinic.services.moves.drive_on(uid("unheard of")) is None
    next_one = await clinic.send(book(source, 0, patient="next mover", visit="next mover"))
    assert isinstance(next_one, Done), "its old slot is free"
    assert isinstance(await clinic.send(reschedule(target, visit, 1, by="mover")), Done), "it goes on where it is"

    async with asyncio.timeout(15):
        while not await clinic.rows("SELECT FROM event WHERE kind = 'HoldExpired' AND doctor_id = %s", target):
            await asyncio.sleep(0.1)
    await clinic.check()


async def test_a_refused_move_frees_the_slot_it_kept(clinic: Clinic) -> None:
    source, target = await clinic.open("busy", "refusing", slots=4)
    visit = visit_of(source, 0)
    await clinic.send_all([book(source, 0, patient="busy"), book(source, 2, patient="busy", visit="busy then")])
    command = timely(reserve(source, target, 2, visit, name="refused move", by="busy"))

    reply = await clinic.services.moves.move(command)

    assert codes([reply]) == {"patient_overlap": 1}
    assert await clinic.move_state("refused move") == "released"
    assert (await clinic.visits(source))[visit] == slot_id(source, 0)
    await clinic.send(cancel(source, uid("busy then"), by="busy"))
    assert isinstance(await clinic.services.moves.move(command), Done), "a refusal is not remembered"
    await clinic.check()


async def test_a_key_that_was_used_before_leaves_no_slot_kept_for_nothing(clinic: Clinic) -> None:
    """The visit was moved within the calendar under that key, then went elsewhere: the repeat would move it back."""
    source, target = await clinic.open("there", "elsewhere", slots=4)
    visit = visit_of(source, 0)
    await clinic.send(book(source, 0, patient="keyed"))
    first = await clinic.send(reschedule(source, visit, 1, by="keyed", command_id=uid("key")))
    away = timely(reserve(source, target, 2, visit, name="away", by="keyed"))
    assert isinstance(await clinic.services.moves.move(away), Done)

    back = timely(reserve(target, source, 1, visit, name="back", by="keyed", command_id=uid("key")))
    reply = await clinic.services.moves.move(back)

    assert as_json(reply) == as_json(first), "the same key gives the first success again"
    assert await clinic.visits(source, target) == {visit: slot_id(target, 2)}
    assert await clinic.move_state("back") == "released"
    assert isinstance(await clinic.send(book(source, 1, patient="next keyed", visit="next keyed")), Done)
    await clinic.check()


async def test_the_supervisor_drives_on_what_was_left_behind_at_any_step(clinic: Clinic) -> None:
    steps = ("reserved", "moved", "aborted")
    sources = await clinic.open(*(f"source {step}" for step in steps), slots=4)
    targets = await clinic.open(*(f"target {step}" for step in steps), slots=4)
    for step, source, target in zip(steps, sources, targets, strict=True):
        visit = visit_of(source, 0)
        if step != "aborted":
            await clinic.send(book(source, 0, patient=step))
        key = uid(f"key {step}")
        await clinic.send(reserve(source, target, 2, visit, name=step, by=step, command_id=key))
        if step != "reserved":
            out = move_out(source, target, 2, visit, name=step, by=step, command_id=key)
            await clinic.send(replace(out, slot=slot_at(target, 2)))
        assert await clinic.move_state(step) == step
    # Everybody who knew of them is gone, and it was a while ago.
    await asyncio.to_thread(clinic.kill)
    await clinic.write("UPDATE move SET updated_at = updated_at - interval '1 minute'")

    async with asyncio.timeout(30):
        while await clinic.rows("SELECT FROM move WHERE state NOT IN ('done', 'released')"):
            await asyncio.sleep(0.1)

    assert [await clinic.move_state(step) for step in steps] == ["done", "done", "released"]
    visits = [await clinic.visits(target) for target in targets]
    assert visits == [
        {visit_of(sources[0], 0): slot_id(targets[0], 2)},
        {visit_of(sources[1], 0): slot_id(targets[1], 2)},
        {},
    ]
    taken = await clinic.send_all(
        book(target, 2, patient=f"after {target}", visit=f"after {target}") for target in targets
    )
    assert [list(codes([reply])) for reply in taken] == [["slot_taken"], ["slot_taken"], ["done"]]
    await clinic.check()


# Two owners


async def test_two_owners_of_one_calendar_give_no_wrong_answer(clinic: Clinic) -> None:
    """Each namespace has actors of its own, as a partitioned cluster would: only the epoch tells them apart."""
    (doctor,) = await clinic.open("owned twice", slots=30)
    settings = clinic.services.settings
    elsewhere = settings.model_copy(update={"ray_namespace": f"{settings.ray_namespace}-other"})
    actors = calendar_actors(elsewhere, clinic.services.policy)
    other = another_client(clinic, actors=actors)
    replies: list[tuple[BookAppointment, Reply]] = []

    async def customer(name: str, client: CalendarClient | None) -> None:
        for number in range(30):
            command = book(doctor, number, patient=f"{name} {number}", visit=f"{name} {number}")
            replies.append((command, await clinic.send(command, client)))

    await asyncio.gather(customer("here", None), customer("there", other))
    await actors.drain(DRAIN_S)
    await other.close()

    told = {command.appointment_id: command.slot_id for command, reply in replies if isinstance(reply, Done)}
    visits = await clinic.visits(doctor)
    assert told.items() <= visits.items(), "acknowledged and not there"
    assert len(set(visits.values())) == len(visits)
    for command, reply in replies:
        if isinstance(reply, Rejected):
            assert reply.code == "slot_taken"
            assert command.slot_id in visits.values(), "refused for a visit that is not there"
    assert len(told) > 10, "they kept each other from everything"
    await clinic.check()


# Placement. These change it for everybody: they come last.


async def place(clinic: Clinic, *, dedicated: bool, actors: int) -> Placement:
    """Place all calendars anew, behind the clients' backs."""
    async with clinic.services.unit_of_work() as work:
        return await Placements(work.connection).put(dedicated=dedicated, actors=actors)


async def test_a_client_that_knows_an_older_placement_is_sent_where_the_calendar_is_now(clinic: Clinic) -> None:
    (doctor,) = await clinic.open("placed anew", slots=3)
    placed = await place(clinic, dedicated=True, actors=1)
    newer = another_client(clinic)
    assert isinstance(await clinic.send(book(doctor, 0, patient="early"), newer), Done)

    # The old actor holds the calendar under an epoch that is over; told so, it claims, and learns why it may not.
    reply = await clinic.send(book(doctor, 1, patient="late"))

    assert isinstance(reply, Done)
    assert clinic.services.calendars._placement == placed
    assert placed.actor_name(doctor) in await asyncio.to_thread(clinic.processes)
    await newer.close()
    await clinic.check()


async def test_calendars_are_placed_anew_while_they_are_used(clinic: Clinic) -> None:
    doctors = await clinic.open("moving 1", "moving 2", slots=400)
    replies: list[tuple[BookAppointment, Reply]] = []
    stop = asyncio.Event()

    async def customer(doctor: str) -> None:
        for number in range(400):
            if stop.is_set():
                return
            command = book(doctor, number, patient=f"{doctor} {number}", visit=f"{doctor} {number}")
            replies.append((command, await clinic.send(command)))

    async def owners(generation: int) -> set[str]:
        owning = set()
        for name, ref in (await clinic.services.calendar_actors.running()).items():
            handle: Any = ref._handle  # type: ignore[attr-defined]
            status = await handle.status.remote()
            if status["generation"] == generation and status["active_calendars"]:
                owning.add(name)
        return owning

    customers = [asyncio.create_task(customer(doctor)) for doctor in doctors]
    for dedicated in (False, True, False):
        before = len(replies)
        placed = await place(clinic, dedicated=dedicated, actors=1)
        clinic.services.calendars._placement = None  # As if an actor had said so: nobody else claims here.
        async with asyncio.timeout(20):
            while not {placed.actor_name(doctor) for doctor in doctors} <= await owners(placed.generation):
                await asyncio.sleep(0.05)
        await until(partial(lambda enough: len(replies) > enough, before + 10))
    stop.set()
    await asyncio.gather(*customers)

    assert set(codes([reply for _, reply in replies])) == {"done"}
    assert await clinic.visits(*doctors) == {command.appointment_id: command.slot_id for command, _ in replies}
    await clinic.check()
