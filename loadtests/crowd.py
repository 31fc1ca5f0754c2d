"""Whether ten thousand people can look at calendars at once: `python -m loadtests.crowd`, or `make crowd`.

So many feeds are open on one API process. First all of them watch one doctor, who is booked now and then: how long it
takes until the last one knows. Then they are spread over many doctors, who are booked at a steady rate: how long it
takes from the decision about a visit until it is on a screen. Every reader checks that no sequence number is missing,
doubled or out of order. Exit code 1: one was, or a limit of those below was passed.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import cycle
from urllib.parse import urlsplit

import psutil
from rich.console import Console
from rich.table import Table

from cluster.data_directory import LOOPBACK
from loadtests.connection import Connection
from loadtests.feeds import FeedReader, feed_request
from loadtests.fixture import Account, add_accounts, add_clinic, copy_slots, slot_starts
from loadtests.servers import WebServer, run, running_servers
from persistence.identifiers import new_id

ACCOUNTS = 2000
DOCTORS = 200
OPENING = 200
"""Connections being made at once."""
OPENING_TIMEOUT_S = 60.0
LOOKS = 10
"""How often the doctor whom all watch is booked."""
BOOKERS = 16
SLOTS_A_DAY = 48
DAYS = 14
SETTLING_S = 3.0
MEMORY_KB_MAX = 60.0
LAST_S_MAX = 1.0
SCREEN_P99_MS_MAX = 250.0
_SEQUENCE = re.compile(rb'"sequence":(\d+)')
_AT = re.compile(rb'"at":"([^"]+)"')


@dataclass(slots=True)
class Seen:
    """What all readers have seen."""

    messages: int = 0
    faults: list[str] = field(default_factory=list)
    delays_s: list[float] = field(default_factory=list)
    """From a decision to a screen."""
    keep_delays: bool = False
    """Whether these are wanted."""
    last_at: float = 0.0


class Reader(FeedReader):
    """Looks at the number of each change, and when it came."""

    __slots__ = ("_seen", "_sequence", "opened")

    def __init__(self, seen: Seen, request: bytes, opened: asyncio.Future[None]) -> None:
        super().__init__(request)
        self._seen = seen
        self._sequence = -1
        self.opened = opened

    def hear(self, message: bytes) -> None:
        now = time.time()
        found = _SEQUENCE.search(message)
        assert found is not None
        sequence = int(found[1])
        if message.startswith(b'{"type":"snapshot"'):
            self._sequence = sequence
            if not self.opened.done():
                self.opened.set_result(None)
            return
        if message.startswith(b'{"type":"ping"'):
            if sequence != self._sequence:
                self._fault(f"a ping at {sequence} after {self._sequence}")
            return
        if sequence != self._sequence + 1:
            self._fault(f"{sequence} follows {self._sequence}")
        self._sequence = sequence
        self._seen.messages += 1
        self._seen.last_at = now
        if self._seen.keep_delays and (at := _AT.search(message)) is not None:
            self._seen.delays_s.append(now - datetime.fromisoformat(at[1].decode()).timestamp())

    def ended(self, why: str) -> None:
        if why != "lost":
            self._fault(why)
        if not self.opened.done():
            self.opened.set_exception(ConnectionError(why))

    def _fault(self, what: str) -> None:
        if len(self._seen.faults) < 10:
            self._seen.faults.append(what)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.crowd", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--readers", type=int, default=10_000, help="feeds [%(default)s]")
    parser.add_argument("--rate", type=int, default=200, help="bookings a second, spread over doctors [%(default)s]")
    parser.add_argument("--seconds", type=int, default=20, help="of these [%(default)s]")
    options = parser.parse_args(arguments)
    if not (1 <= options.readers <= 18_000 and 1 <= options.rate <= 2000 and 1 <= options.seconds <= 600):
        parser.error("--readers is from 1 to 18000, --rate from 1 to 2000, --seconds from 1 to 600")
    return run(crowd(options))


async def crowd(options: argparse.Namespace) -> int:
    """The whole measurement; returns the exit code."""
    async with running_servers("crowd") as servers:
        settings = servers.settings(await servers.create_database("crowd"))
        accounts = await add_accounts(settings, ACCOUNTS)
        clinic = await add_clinic(settings, DOCTORS)
        by_start = await copy_slots(settings, clinic, slot_starts(DAYS, SLOTS_A_DAY, 15), 15)
        slots: dict[str, list[str]] = {doctor_id: [] for doctor_id in clinic.doctor_ids}
        for same_start in by_start:
            for doctor_id, slot_id in zip(clinic.doctor_ids, same_start, strict=True):
                slots[doctor_id].append(slot_id)
        async with servers.zapis(settings) as server:
            measured = Crowd(server, accounts, slots)
            await measured.book(slots[clinic.doctor_ids[0]].pop())  # Warm.
            process = psutil.Process(server.pid)
            await asyncio.sleep(SETTLING_S)
            idle_kb = process.memory_full_info().uss / 1000
            began = time.monotonic()
            readers = await measured.open(options.readers, cycle([clinic.doctor_ids[0]]))
            opening_s = time.monotonic() - began
            await asyncio.sleep(SETTLING_S)
            each_kb = (process.memory_full_info().uss / 1000 - idle_kb) / options.readers
            last_s = [await measured.look(slots[clinic.doctor_ids[0]].pop(), options.readers) for _ in range(LOOKS)]
            for reader in readers:
                reader.close()
            await asyncio.sleep(SETTLING_S)
            readers = await measured.open(options.readers, cycle(clinic.doctor_ids))
            await asyncio.sleep(SETTLING_S)
            cpu = process.cpu_times()
            delays_s, booked = await measured.go_on(options.rate, options.seconds)
            used = process.cpu_times()
            api_cpu = (used.user + used.system - cpu.user - cpu.system) / options.seconds
            missing = booked * options.readers // DOCTORS - len(delays_s)
            for reader in readers:
                reader.close()
    p99_ms = 1000 * statistics.quantiles(delays_s, n=100)[98] if len(delays_s) > 1 else float("inf")
    table = Table(title=f"{options.readers:,} feeds on one API process")
    table.add_column("what")
    table.add_column("figure", justify="right")
    table.add_row("opened in", f"{opening_s:.1f} s")
    table.add_row("memory of each", f"{each_kb:.1f} KB")
    table.add_row(
        "from asking for a visit until the last knows (median, worst)",
        f"{statistics.median(last_s):.2f}, {max(last_s):.2f} s",
    )
    table.add_row(f"{booked} bookings in {options.seconds} s, messages", f"{len(delays_s):,}")
    table.add_row("decision to screen, p50", f"{1000 * statistics.median(delays_s or [0]):.0f} ms")
    table.add_row("decision to screen, p99", f"{p99_ms:.0f} ms")
    table.add_row("the API process was busy", f"{api_cpu:.0%}")
    Console(width=100).print(table)
    faults = [*measured.seen.faults]
    faults += [f"{each_kb:.1f} KB each"] if each_kb > MEMORY_KB_MAX else []
    faults += [f"the last one knew after {max(last_s):.2f} s"] if max(last_s) > LAST_S_MAX else []
    faults += [f"99 of 100 screens took up to {p99_ms:.0f} ms"] if p99_ms > SCREEN_P99_MS_MAX else []
    faults += [f"{missing} messages are missing"] if missing else []
    for fault in faults:
        print(fault)
    return 1 if faults else 0


class Crowd:
    """Readers of one server, and those who book meanwhile."""

    def __init__(self, server: WebServer, accounts: Sequence[Account], slots: dict[str, list[str]]) -> None:
        self._port = urlsplit(server.url).port or 0
        self._accounts = accounts
        self._bookers = cycle(accounts)
        self._slots = slots
        self.seen = Seen()

    async def open(self, count: int, doctor_ids: Iterator[str]) -> list[Reader]:
        """So many feeds, open: each has its snapshot."""
        loop = asyncio.get_running_loop()
        turn = asyncio.Semaphore(OPENING)

        async def one(account: Account, doctor_id: str) -> Reader:
            request = feed_request(doctor_id, account)
            async with turn:
                opened = loop.create_future()
                _, reader = await loop.create_connection(
                    lambda: Reader(self.seen, request, opened), LOOPBACK, self._port
                )
                async with asyncio.timeout(OPENING_TIMEOUT_S):
                    await opened
                return reader

        who = cycle(self._accounts)
        async with asyncio.TaskGroup() as group:
            opening = [group.create_task(one(next(who), next(doctor_ids))) for _ in range(count)]
        return [task.result() for task in opening]

    async def look(self, slot_id: str, readers: int) -> float:
        """Book one visit; how long it takes from asking for it until every reader knows."""
        before = self.seen.messages
        asked_at = time.time()
        await self.book(slot_id)
        give_up_at = time.monotonic() + OPENING_TIMEOUT_S
        while self.seen.messages < before + readers:
            if time.monotonic() > give_up_at:
                return float("inf")
            await asyncio.sleep(0.01)
        return self.seen.last_at - asked_at

    async def book(self, slot_id: str, connection: Connection | None = None) -> None:
        """Book a slot."""
        account = next(self._bookers)
        connection = connection or Connection(self._port)
        body = b'{"slot_id":"%s"}' % slot_id.encode()
        status, content = await connection.send("POST", "/v1/appointments", account.token, body, new_id())
        assert status in (201, 409), content  # 409: the patient is elsewhere at that time.

    async def go_on(self, rate: int, seconds: int) -> tuple[list[float], int]:
        """Book at a steady rate, every doctor in turn; the delays, and how many visits were booked."""
        self.seen.keep_delays = True
        doctors = cycle(self._slots)
        began = time.monotonic()
        booked = 0
        number = 0

        async def booker() -> None:
            nonlocal booked, number
            connection = Connection(self._port)
            try:
                while number < rate * seconds:
                    number += 1
                    await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
                    slot_id = self._slots[next(doctors)].pop()
                    account = next(self._bookers)
                    body = b'{"slot_id":"%s"}' % slot_id.encode()
                    status, _ = await connection.send("POST", "/v1/appointments", account.token, body, new_id())
                    booked += status == 201
            finally:
                connection.close()

        async with asyncio.TaskGroup() as group:
            for _ in range(BOOKERS):
                group.create_task(booker())
        await asyncio.sleep(SETTLING_S)
        self.seen.keep_delays = False
        return self.seen.delays_s, booked


if __name__ == "__main__":
    raise SystemExit(main())
