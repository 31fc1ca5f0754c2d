"""Whether ten thousand readers see what stands in PostgreSQL after each outage: `python -m loadtests.outages`.

`make outages` does the same. So many feeds of many doctors are open on one API process, visits are booked and cancelled
at a steady rate, and one after another Redis, the API process, the calendar actors and PostgreSQL are killed and kept
away. Readers who are cut off come back with what they have. Every reader checks that no change is missing, doubled or
out of order, and in the end compares its calendar with the slots in PostgreSQL. Exit code 1: one of that was not so, or
readers were not level again in time.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import orjson
import psutil
import psycopg
from rich.console import Console
from rich.table import Table

from actors import tasks
from cluster.data_directory import LOOPBACK, free_port
from cluster.embedded import EmbeddedServer
from cluster.processes import left_over
from cluster.settings import Settings
from loadtests.connection import Connection, NoAnswer
from loadtests.feeds import FeedReader, feed_request
from loadtests.fixture import Account, Clinic, add_accounts, add_clinic, copy_slots, slot_starts
from loadtests.servers import Servers, WebServer, run, running_servers
from persistence.database import libpq_url
from persistence.identifiers import new_id

ACCOUNTS = 2000
DOCTORS = 200
SLOTS_A_DAY = 48
DAYS = 7
WORKERS = 16
OPENING = 200
"""Connections being made at once in the beginning; those who come back choose their moment themselves."""
OPENING_TIMEOUT_S = 60.0
COME_BACK_S = (0.5, 8.0)
"""The shortest and the longest pause before a reader comes back; it doubles until they are in, and is jittered."""
CALM_S = 5.0
"""Bookings go on so long before each outage."""
BACK_S_MAX = 60.0
"""So long after an outage visits are booked and every reader is there and has seen them."""
STRIKE_S = 0.2
UNCERTAIN = ("202", "no answer")
STATUSES = {"free": 0, "held": 1, "booked": 2, "pending": 3, "blocked": 4}


@dataclass(slots=True)
class Followers:
    """What all readers share, and what they have found."""

    port: int
    places: Mapping[str, int]
    """Where a slot stands among its doctor's."""
    opened: int = 0
    cut_off: Counter[str] = field(default_factory=Counter)
    """How often, by why."""
    faults: list[str] = field(default_factory=list)

    def fault(self, what: str) -> None:
        """Something is as it must not be; the first few are told."""
        if len(self.faults) < 10:
            self.faults.append(what)


class Follower:
    """Someone who follows a calendar, and comes back with what they have however often they are cut off."""

    def __init__(self, followers: Followers, account: Account, doctor_id: str, slots: int) -> None:
        self._followers = followers
        self._account = account
        self._dice = random.Random(f"{account.token[-16:]} {doctor_id}")
        self.told = asyncio.Event()
        self._connection: _Connection | None = None
        self.doctor_id = doctor_id
        self.sequence: int | None = None
        self.statuses = bytearray(slots)
        """Of the doctor's slots, as they were told."""

    @property
    def connected(self) -> bool:
        """Whether they are there."""
        return self._connection is not None and self._connection.is_open

    async def run(self, turn: asyncio.Semaphore) -> None:
        """Follow until cancelled; ``turn`` is for the first time."""
        try:
            async with turn:
                ended = await self._open()
                async with asyncio.timeout(OPENING_TIMEOUT_S):
                    await self.told.wait()
            while True:
                why = await ended
                pause_s = COME_BACK_S[0]
                while True:
                    self._followers.cut_off[why] += 1
                    await asyncio.sleep(pause_s * self._dice.uniform(0.5, 1.5))
                    pause_s = min(2 * pause_s, COME_BACK_S[1])
                    try:
                        ended = await self._open()
                        break
                    except OSError:
                        why = "refused"
        finally:
            if self._connection is not None:
                self._connection.close()

    async def _open(self) -> asyncio.Future[str]:
        """A new connection; the future is why it ended."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[str] = loop.create_future()
        query = "" if self.sequence is None else f"?since={self.sequence}"
        request = feed_request(self.doctor_id, self._account, query)
        _, self._connection = await loop.create_connection(
            lambda: _Connection(self, request, ended), LOOPBACK, self._followers.port
        )
        self._followers.opened += 1
        return ended

    def hear(self, text: bytes) -> None:
        """A message of the feed."""
        message = orjson.loads(text)
        sequence = message["sequence"]
        match message["type"]:
            case "snapshot":
                if self.sequence is not None:
                    self._followers.fault(f"asked for what came after {self.sequence}, got a snapshot at {sequence}")
                self.told.set()
            case "change":
                if sequence != (self.sequence or 0) + 1:
                    self._followers.fault(f"{sequence} follows {self.sequence}")
            case _:
                if sequence != self.sequence:
                    self._followers.fault(f"a ping at {sequence} after {self.sequence}")
                return
        self.sequence = sequence
        for slot in message["slots"]:
            self.statuses[self._followers.places[slot["id"]]] = STATUSES[slot["status"]]


class _Connection(FeedReader):
    __slots__ = ("_ended", "_follower")

    def __init__(self, follower: Follower, request: bytes, ended: asyncio.Future[str]) -> None:
        super().__init__(request)
        self._follower = follower
        self._ended = ended

    def hear(self, message: bytes) -> None:
        self._follower.hear(message)

    def ended(self, why: str) -> None:
        if not self._ended.done():
            self._ended.set_result(why)


class Bookers:
    """Patients who book, and cancel every second visit, at a steady rate whatever becomes of it."""

    def __init__(self, port: int, accounts: Sequence[Account], slots: Mapping[str, Sequence[str]]) -> None:
        self._port = port
        self._accounts = cycle(accounts)
        # Nobody's two visits begin at the same time, but for a few.
        dice = random.Random(WORKERS)
        self._slots = {doctor_id: deque(dice.sample(slot_ids, len(slot_ids))) for doctor_id, slot_ids in slots.items()}
        self._doctors = cycle(slots)
        self.answers: Counter[str] = Counter()

    def one_more(self) -> Callable[[], bool]:
        """Tells whether another visit has been booked since."""
        before = self.answers["201"]
        return lambda: self.answers["201"] > before

    async def run(self, rate: int) -> None:
        """Until cancelled."""
        began = time.monotonic()
        number = 0

        async def worker() -> None:
            nonlocal number
            connection = Connection(self._port)
            try:
                while True:
                    number += 3
                    # What is late is late: after an outage nobody makes up for it.
                    number = max(number, round((time.monotonic() - began - 1) * rate))
                    await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
                    await self._work(connection)
            finally:
                connection.close()

        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(worker())

    async def _work(self, connection: Connection) -> None:
        """Two visits are booked and one is cancelled."""
        account = next(self._accounts)
        for cancelled in (False, True):
            free = self._slots[next(self._doctors)]
            slot_id = free.popleft()
            body = b'{"slot_id":"%s"}' % slot_id.encode()
            answer, visit = await self._ask(connection, "/v1/appointments", account, body)
            if answer == "201" and cancelled:
                answer, _ = await self._ask(connection, f"/v1/appointments/{visit['id']}/cancel", account, b"{}")
            if answer not in ("201", *UNCERTAIN):
                free.append(slot_id)

    async def _ask(
        self, connection: Connection, path: str, account: Account, body: bytes
    ) -> tuple[str, dict[str, object]]:
        try:
            status, content = await connection.send("POST", path, account.token, body, new_id())
        except NoAnswer:
            self.answers["no answer"] += 1
            await asyncio.sleep(STRIKE_S)
            return "no answer", {}
        self.answers[str(status)] += 1
        return str(status), orjson.loads(content)


class Scene:
    """The server under test, and what can be taken away from it."""

    def __init__(self, servers: Servers, settings: Settings, port: int) -> None:
        self._servers = servers
        self._settings = settings
        self._port = port
        self._stack = AsyncExitStack()
        self.server: WebServer

    async def serve(self) -> None:
        """Start the API process; returns when it is ready."""
        self.server = await self._stack.enter_async_context(self._servers.zapis(self._settings, port=self._port))

    async def aclose(self) -> None:
        """End the API process."""
        await self._stack.aclose()

    async def without_redis(self, seconds: float) -> None:
        """Redis is killed."""
        await self._without(self._servers.valkey, seconds)

    async def without_api(self, seconds: float) -> None:
        """The API process is killed, and with it every connection."""
        psutil.Process(self.server.pid).kill()
        await self.aclose()
        await asyncio.sleep(seconds)
        await self.serve()

    async def without_actors(self, seconds: float) -> None:
        """Every calendar actor is killed, and whatever takes its place."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for process in await asyncio.to_thread(left_over, self._servers.data.path, self._servers.ray.name):
                with suppress(psutil.NoSuchProcess, IndexError):
                    if process.cmdline()[0].startswith("ray::RayCalendarActor"):
                        process.kill()
            await asyncio.sleep(STRIKE_S)

    async def without_postgres(self, seconds: float) -> None:
        """PostgreSQL is killed, all its processes at once."""
        await self._without(self._servers.postgres, seconds)

    async def _without(self, server: EmbeddedServer, seconds: float) -> None:
        for process in await asyncio.to_thread(left_over, self._servers.data.path, server.name):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        await server.died()
        await asyncio.sleep(seconds)
        await server.restart()


OUTAGES: Mapping[str, Callable[[Scene, float], Awaitable[None]]] = {
    "Redis": Scene.without_redis,
    "the API process": Scene.without_api,
    "the calendar actors": Scene.without_actors,
    "PostgreSQL": Scene.without_postgres,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.outages", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--readers", type=int, default=10_000, help="feeds [%(default)s]")
    parser.add_argument("--rate", type=int, default=200, help="commands a second, spread over doctors [%(default)s]")
    parser.add_argument("--seconds", type=int, default=20, help="how long each is away [%(default)s]")
    options = parser.parse_args(arguments)
    if not (1 <= options.readers <= 18_000 and 3 <= options.rate <= 400 and 1 <= options.seconds <= 60):
        parser.error("--readers is from 1 to 18000, --rate from 3 to 400, --seconds from 1 to 60")
    return run(outages(options))


async def outages(options: argparse.Namespace) -> int:
    """The whole measurement; returns the exit code."""
    async with running_servers("outages") as servers:
        settings = servers.settings(await servers.create_database("outages"))
        url = libpq_url(str(settings.database_url))
        accounts = await add_accounts(settings, ACCOUNTS)
        clinic = await add_clinic(settings, DOCTORS)
        slots = await _slots(settings, clinic)
        places = {slot_id: place for slot_ids in slots.values() for place, slot_id in enumerate(slot_ids)}
        followers = Followers(port=free_port(), places=places)
        everybody = [
            Follower(followers, account, doctor_id, DAYS * SLOTS_A_DAY)
            for account, doctor_id, _ in zip(cycle(accounts), cycle(slots), range(options.readers), strict=False)
        ]
        bookers = Bookers(followers.port, accounts, slots)
        table = Table(title=f"{options.readers:,} readers, {options.seconds} s without")
        for name in ("without", "201", "202", "others", "cut off", "booked after", "level after"):
            table.add_column(name, justify="left" if name == "without" else "right")
        scene = Scene(servers, settings, followers.port)
        try:
            await scene.serve()
            async with _following(everybody):
                async with _beside(bookers.run(options.rate)):
                    for name, take_away in OUTAGES.items():
                        await asyncio.sleep(CALM_S)
                        answers, cut_off = bookers.answers.copy(), followers.cut_off.copy()
                        await take_away(scene, options.seconds)
                        booked_s = await _seconds_until(bookers.one_more())
                        level_s = booked_s + await _seconds_until(await _level(everybody, url))
                        if level_s > BACK_S_MAX:
                            followers.fault(f"{name}: after {BACK_S_MAX:.0f} s not all is as before")
                        answers, cut_off = bookers.answers - answers, followers.cut_off - cut_off
                        others = answers.total() - answers["201"] - answers["202"]
                        cells = (answers["201"], answers["202"], others, cut_off.total() - cut_off["refused"])
                        table.add_row(name, *map(str, cells), f"{booked_s:.1f} s", f"{level_s:.1f} s")
                await _compare(everybody, followers, url)
        finally:
            await scene.aclose()
    Console(width=100).print(table)
    print("answers: " + ", ".join(f"{count} × {answer}" for answer, count in sorted(bookers.answers.items())))
    print("cut off: " + (", ".join(f"{count} × {why}" for why, count in sorted(followers.cut_off.items())) or "nobody"))
    for fault in followers.faults:
        print(fault)
    return 1 if followers.faults else 0


async def _slots(settings: Settings, clinic: Clinic) -> dict[str, list[str]]:
    """The slots of each doctor."""
    slots: dict[str, list[str]] = {doctor_id: [] for doctor_id in clinic.doctor_ids}
    for same_start in await copy_slots(settings, clinic, slot_starts(DAYS, SLOTS_A_DAY, 15), 15):
        for doctor_id, slot_id in zip(clinic.doctor_ids, same_start, strict=True):
            slots[doctor_id].append(slot_id)
    return slots


@asynccontextmanager
async def _following(everybody: Sequence[Follower]) -> AsyncIterator[None]:
    """All of them follow, for as long as the block lasts; it begins when each has had a snapshot."""
    turn = asyncio.Semaphore(OPENING)
    following = [asyncio.create_task(each.run(turn), name="follower") for each in everybody]
    try:
        for each, task in zip(everybody, following, strict=True):
            hearing = asyncio.create_task(each.told.wait())
            await asyncio.wait((hearing, task), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
        yield
        for task in following:
            if task.done():
                task.result()
    finally:
        await tasks.end(*following)


@asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """It goes on for as long as the block lasts."""
    task = asyncio.create_task(work)
    try:
        yield
        if task.done():
            task.result()
    finally:
        await tasks.end(task)


async def _level(everybody: Sequence[Follower], url: str) -> Callable[[], bool]:
    """Tells whether all are there and have come as far as PostgreSQL is now."""
    reached, _ = await _standing(url, slots=False)
    return lambda: all(each.connected and (each.sequence or 0) >= reached[each.doctor_id] for each in everybody)


async def _seconds_until(so: Callable[[], bool]) -> float:
    """How long it takes until it is so; infinite where it is too long."""
    began = time.monotonic()
    while time.monotonic() < began + BACK_S_MAX:
        if so():
            return time.monotonic() - began
        await asyncio.sleep(0.05)
    return float("inf")


async def _compare(everybody: Sequence[Follower], followers: Followers, url: str) -> None:
    """When nothing happens any more, all see what stands in PostgreSQL."""
    give_up_at = time.monotonic() + BACK_S_MAX
    before: object = None
    while time.monotonic() < give_up_at:
        reached, statuses = await _standing(url)
        if reached == before and all(each.sequence == reached[each.doctor_id] for each in everybody):
            break
        before = reached
        await asyncio.sleep(1)
    expected = {doctor_id: bytearray(DAYS * SLOTS_A_DAY) for doctor_id in reached}
    for slot_id, doctor_id, status in statuses:
        expected[doctor_id][followers.places[slot_id]] = STATUSES[status]
    for each in everybody:
        if each.sequence != reached[each.doctor_id]:
            followers.fault(f"a reader has come to {each.sequence}, the journal to {reached[each.doctor_id]}")
        elif each.statuses != expected[each.doctor_id]:
            followers.fault(f"a reader sees other slots than PostgreSQL has at {each.sequence}")


_REACHED = "SELECT id::text, coalesce(sequence, 0) FROM doctor LEFT JOIN calendar ON doctor_id = doctor.id"


async def _standing(url: str, *, slots: bool = True) -> tuple[dict[str, int], list[tuple[str, str, str]]]:
    """The last sequence of each calendar, and the slots with their doctors and states."""
    async with await psycopg.AsyncConnection.connect(url) as connection:
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reached = await (await connection.execute(_REACHED)).fetchall()
        if not slots:
            return dict(reached), []
        found = await connection.execute("SELECT id::text, doctor_id::text, status FROM slot")
        return dict(reached), await found.fetchall()


if __name__ == "__main__":
    raise SystemExit(main())
