"""What is killed while many book: what was acknowledged is there, nothing is there twice, all get their answer."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest

from cluster.data_directory import read_runtime
from cluster.embedded import EmbeddedPostgres, EmbeddedRay, EmbeddedServer, EmbeddedValkey
from cluster.processes import left_over
from cluster.settings import Settings
from tests.e2e.clinic import JSON, LONG, Clinic, Server, open_clinic
from tests.people import Person
from tests.serving import Up

CLIENTS = 16
BOOKINGS = 20_000 if LONG else 2_000
KILLS = 20 if LONG else 3
AWAY_S = 20.0 if LONG else 4.0
"""How long PostgreSQL stays away; longer than it takes to say that it does."""
DEADLINE_S = 600 if LONG else 100
RETRY_S = 0.1
CALENDAR_ACTOR = "ray::RayCalendarActor"

pytestmark = pytest.mark.timeout(900 if LONG else 180)


@dataclass(slots=True)
class Run:
    """Many clients who book, each of whom asks again under the same key until the answer is definite."""

    clinic: Clinic
    wanted: list[tuple[Person, str]]
    """Who wants which slot. Of those who want the same one, one gets it."""
    answers: dict[int, httpx.Response] = field(default_factory=dict)
    """Of each booking, the definite one."""
    others: Counter[str] = field(default_factory=Counter)
    """Answers that were not definite."""
    followed: dict[int, str] = field(default_factory=dict)
    """Where those bookings can be followed that were answered with 202."""
    seen: set[str] = field(default_factory=set)
    """What the answers were; for a test to clear."""

    async def book_all(self) -> None:
        numbers = iter(range(len(self.wanted)))
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(self._client(numbers))

    async def done(self, count: int) -> None:
        """Return once so many have their answer."""
        async with asyncio.timeout(DEADLINE_S):
            while len(self.answers) < count:
                await asyncio.sleep(0.01)

    async def book(self, number: int) -> httpx.Response | None:
        """One attempt; None without an answer."""
        who, slot = self.wanted[number]
        with suppress(httpx.TransportError):
            return await self.clinic.post(who, "/v1/appointments", {"slot_id": slot}, key=f"visit-{number}")
        return None

    async def _client(self, numbers: Iterator[int]) -> None:
        for number in numbers:
            self.answers[number] = await self._definite(number)

    async def _definite(self, number: int) -> httpx.Response:
        """Ask, and ask again, until there is a definite answer."""
        while True:
            answer = await self.book(number)
            said = "none" if answer is None else str(answer.status_code)
            self.seen.add(said)
            if answer is not None and answer.status_code in (201, 409):
                return answer
            self.others[said] += 1
            assert said in ("none", "202", "503"), answer and answer.text
            if answer is not None and answer.status_code == 202:
                self.followed[number] = answer.headers["location"]
            if answer is not None and answer.status_code == 503:
                assert answer.json()["code"] == "unavailable"
                assert int(answer.headers["retry-after"]) >= 1
            await asyncio.sleep(RETRY_S)

    async def check(self, doctors: list[Person]) -> None:
        """Every acknowledged visit is there, as it was acknowledged, and there is no other."""
        acknowledged: dict[str, JSON] = {}
        for number, answer in self.answers.items():
            who, slot = self.wanted[number]
            if answer.status_code == 201:
                visit = answer.json()
                assert (visit["slot_id"], visit["patient_id"]) == (slot, who.patient_id)
                assert visit["id"] not in acknowledged
                acknowledged[visit["id"]] = visit
            else:
                assert answer.json()["code"] == "slot_taken", answer.text
        assert len(self.answers) == len(self.wanted)
        assert {visit["slot_id"] for visit in acknowledged.values()} == {slot for _, slot in self.wanted}
        assert await self.clinic.visits(doctors) == acknowledged
        for number, address in self.followed.items():
            await self._check_followed(number, address)
        for number in range(0, len(self.wanted), max(1, len(self.wanted) // 100)):
            async with asyncio.timeout(DEADLINE_S):
                again = await self._definite(number)
            first = self.answers[number]
            assert again.status_code == first.status_code
            if first.status_code == 201:
                assert again.content == first.content
        await self.clinic.check_journal()

    async def _check_followed(self, number: int, address: str) -> None:
        """What was pending is what it became, where it became anything."""
        definite = self.answers[number]
        answer = await self.clinic.http.get(address, headers=self.wanted[number][0].headers)
        if answer.status_code == 404:
            assert definite.status_code == 409, "a booking is not lost"
            return
        outcome = answer.json()
        if definite.status_code == 201:
            assert (outcome["status"], outcome["appointment"]) == ("done", definite.json())
        else:
            assert (outcome["status"], outcome["problem"]["code"]) == ("rejected", definite.json()["code"])


@asynccontextmanager
async def _running(clinic: Clinic, bookings: int, *, rivals: int = 0) -> AsyncIterator[tuple[Run, list[Person]]]:
    """Bookings under way, with so many more of slots that somebody else wants too; and their doctors.

    The patients go round the doctors, so none has to be in two places.
    """
    count = 20
    each = bookings // count
    rounds = -(-each // 250)
    offers = [await clinic.doctor_with_slots(each // rounds) for _ in range(count * rounds)]
    doctors = [doctor for doctor, _ in offers]
    patients = await clinic.people.patients(len(offers))
    wanted = [
        (patients[(number + time) % len(offers)], slots[time])
        for time in range(each // rounds)
        for number, (_, slots) in enumerate(offers)
    ]
    others = await clinic.people.patients(rivals)
    for number, other in enumerate(others):
        wanted.insert(number * 2, (other, wanted[number * 2][1]))
    run = Run(clinic, wanted)
    booking = asyncio.create_task(run.book_all())
    try:
        yield run, doctors
        await booking
        await run.check(doctors)
    finally:
        booking.cancel()


async def test_calendar_actors_are_killed(server: Server, ray_cluster: EmbeddedRay) -> None:
    async with open_clinic(server) as clinic, _running(clinic, BOOKINGS, rivals=100) as (run, doctors):
        killed: set[int] = set()
        for number in range(KILLS):
            await run.done((number + 1) * len(run.wanted) // (KILLS + 1))
            victims = await _calendar_actors(ray_cluster, server.settings.calendar_actors)
            assert killed.isdisjoint(victims)
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
            killed |= set(victims)
    assert len(killed) == KILLS * server.settings.calendar_actors
    assert len(doctors) >= 20
    with psycopg.connect(server.database_url) as connection:
        (least,) = connection.execute(
            "SELECT min(epoch) FROM calendar WHERE doctor_id = ANY (%s)", ([doctor.doctor_id for doctor in doctors],)
        ).fetchone() or (0,)
    assert least > KILLS, "every calendar was claimed again after every kill"


async def test_postgres_goes_away(server: Server, postgres: EmbeddedPostgres) -> None:
    async with open_clinic(server) as clinic, _running(clinic, BOOKINGS // 5, rivals=50) as (run, _):
        await run.done(100)
        await _readiness(clinic, 200)
        try:
            _postmaster(postgres).send_signal(signal.SIGQUIT)  # An immediate shutdown: as a crash.
            await postgres.died()
            answer = await _readiness(clinic, 503)
            assert (answer["postgres"], answer["ray"], answer["redis"]) == (False, True, True)
            run.seen.clear()  # What was committed just before has been told by now.
            await asyncio.sleep(AWAY_S)
            await _reads_without_postgres(clinic, run)
            assert run.seen <= {"202", "503"}, "nothing is told as done or refused, and nobody's connection is cut"
            assert "202" in run.seen, "what is decided is told as pending"
        finally:
            await postgres.restart()
        await _readiness(clinic, 200)


async def test_valkey_goes_away(server: Server, valkey: EmbeddedValkey) -> None:
    async with open_clinic(server) as clinic, _running(clinic, BOOKINGS // 5) as (run, _):
        await run.done(50)
        try:
            valkey.kill()
            await valkey.died()
            booked = len(run.answers)
            answer = await _readiness(clinic, 200, redis=False)
            assert (answer["postgres"], answer["ray"]) == (True, True)
            await run.done(min(booked + 100, len(run.wanted)))
        finally:
            await valkey.restart()
        await _readiness(clinic, 200, redis=True)
    assert not run.others


async def test_ray_is_killed_under_up() -> None:
    with tempfile.TemporaryDirectory(prefix="zapis-ray-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        up = Up(Path(directory) / "data", ZAPIS_RATE_LIMIT="0", ZAPIS_LIVE_APPOINTMENTS_MAX="0")
        try:
            up.wait_ready()
            runtime = read_runtime(up.data_dir)
            assert runtime is not None
            settings = Settings(**runtime.settings)  # type: ignore[arg-type]  # Text, as in an environment.
            server = Server(serving=up, settings=settings)
            async with open_clinic(server) as clinic, _running(clinic, BOOKINGS // 5) as (run, _):
                await run.done(100)
                heads = [each for each in up.processes("ray") if each.name() in ("gcs_server", "raylet")]
                assert len(heads) == 2
                for head in heads:
                    head.kill()

                async def somebody_has_to_ask_again() -> bool:  # Some calendars go on: all may be booked by then.
                    again = await run.book(0)
                    return again is None or again.status_code == 503

                async def both_are_back() -> bool:
                    back = {event["server"] for event in up.events("server_restarted")}
                    return back >= {"ray", "api"} and await asyncio.to_thread(up.ready)

                await _eventually(somebody_has_to_ask_again)
                await _eventually(both_are_back)
            assert up.ready()
            assert up.events("server_restarted")
            assert up.terminate() == 0
            assert up.processes() == []
        finally:
            up.kill()


async def _calendar_actors(ray: EmbeddedRay, count: int) -> list[int]:
    """The processes of this cluster's calendar actors, once there are so many and all have started."""
    found: list[int] = []

    async def all_there() -> bool:
        nonlocal found
        found = [process.pid for process in left_over(ray.data.path, ray.name) if _is_calendar_actor(process)]
        return len(found) == count

    await _eventually(all_there)
    return found


def _is_calendar_actor(process: psutil.Process) -> bool:
    try:
        return process.cmdline()[:1] != [] and process.cmdline()[0].startswith(CALENDAR_ACTOR)
    except psutil.NoSuchProcess:
        return False


def _postmaster(postgres: EmbeddedServer) -> psutil.Process:
    processes = left_over(postgres.data.path, postgres.name)
    pids = {process.pid for process in processes}
    (postmaster,) = [process for process in processes if process.ppid() not in pids]
    return postmaster


async def _readiness(clinic: Clinic, status: int, **expected: bool) -> dict[str, Any]:
    """What ``/readyz`` says, once it answers with that status and says that."""
    told: dict[str, Any] = {}

    async def is_so() -> bool:
        nonlocal told
        answer = await clinic.http.get("/readyz")
        told = answer.json()
        assert answer.status_code == 200 or int(answer.headers["retry-after"]) >= 1
        return answer.status_code == status and told.items() >= expected.items()

    await _eventually(is_so)
    return told


async def _reads_without_postgres(clinic: Clinic, run: Run) -> None:
    """Whatever is read is there or unavailable, and a sign-in cannot be decided."""
    who, _ = run.wanted[0]
    for path in ("/v1/slots", "/v1/doctors", "/v1/locations", "/v1/appointments", "/v1/me", "/v1/holds"):
        answer = await clinic.http.get(path, headers=who.headers)
        assert answer.status_code in (200, 503), (path, answer.text)
    form = {"grant_type": "password", "username": "anna", "password": "Correct-Horse-9"}
    answer = await clinic.http.post("/v1/auth/token", data=form)
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert (await clinic.http.get("/healthz")).status_code == 200


async def _eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not await condition():
            await asyncio.sleep(0.05)
