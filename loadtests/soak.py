"""Whether it stays as it is when it runs for long: `python -m loadtests.soak --minutes 30`, or `make soak`.

Patients search, book, look at the visit and cancel it, over and over, at half the rate of bookings that the server can
take, which is measured first. Then many read at once, so that whatever is opened on demand and kept, up to a bound, is
open. Meanwhile the memory and the open files of the API process and the calendar actors are looked at. Printed is
what they were every few minutes. Exit code 1: the last minute's memory (the median) is more than 5 % above that of the
minute after the first five, or there are more files, or an answer was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count, cycle
from urllib.parse import urlsplit

import orjson
import psutil
from rich.console import Console
from rich.table import Table

from cluster.data_directory import LOOPBACK
from loadtests.connection import Connection, NoAnswer
from loadtests.fixture import Account, add_accounts, add_clinic, booking_request, copy_slots, slot_starts
from loadtests.generator import drive
from loadtests.servers import WebServer, processes_of, run, running_servers
from persistence.identifiers import new_id

DOCTORS = 20
ACCOUNTS = 500
WORKERS = 32
BEST_S = 6
BEST_CONNECTIONS = 64
BEST_RATE_MAX = 6000
READS_S = 3
SETTLING_S = 300.0
SAMPLE_S = 5.0
WINDOW_S = 60.0
GROWTH_MAX = 1.05
SHARE = 0.5
"""Of the best rate."""
WATCHED = ("api", "actors")
RIGHT = ("GET 200", "POST 200", "POST 201")
TABLE_ROWS = 10


@dataclass(frozen=True, slots=True)
class Sample:
    """What the processes had at a moment."""

    at_s: float
    memory_mb: dict[str, float]
    files: dict[str, Counter[str]]
    """How many of each sort."""


@dataclass(slots=True)
class Watch:
    """Looks at processes from time to time."""

    processes: dict[str, list[psutil.Process]]
    began: float = field(default_factory=time.monotonic)
    samples: list[Sample] = field(default_factory=list)
    ended: bool = False
    """Whether a process has ended, or another has taken its place."""

    async def run(self) -> None:
        """Until it is cancelled, or one of them ends."""
        while not self.ended:
            try:
                self.samples.append(self._sample())
            except psutil.NoSuchProcess:
                self.ended = True
            await asyncio.sleep(SAMPLE_S)

    def _sample(self) -> Sample:
        memory = {}
        files = {}
        for name in WATCHED:
            memory[name] = sum(process.memory_full_info().uss for process in self.processes[name]) / 1e6
            files[name] = sum((open_files(process) for process in self.processes[name]), Counter[str]())
        return Sample(time.monotonic() - self.began, memory, files)

    def window(self, first_s: float, last_s: float) -> list[Sample]:
        """The samples from one moment to another."""
        return [sample for sample in self.samples if first_s <= sample.at_s <= last_s]


def open_files(process: psutil.Process) -> Counter[str]:
    """How many descriptors a process has, by what they are: connections by the port that they lead to."""
    named = {
        connection.fd: f"connection to port {connection.raddr.port}"
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_ESTABLISHED
    }
    named |= {file.fd: file.path for file in process.open_files()}
    others = process.num_fds() - len(named)
    return Counter([*named.values(), *["other"] * others])


def memory_mb(samples: Sequence[Sample], name: str) -> float:
    """The median of a group's memory."""
    return statistics.median(sample.memory_mb[name] for sample in samples)


def files(samples: Sequence[Sample], name: str) -> float:
    """The median of a group's open files."""
    return statistics.median(sample.files[name].total() for sample in samples)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30, help="[%(default)s]")
    options = parser.parse_args(arguments)
    if not 7 <= options.minutes <= 24 * 60:
        parser.error("--minutes is from 7 (the first five are for settling) to 1440")
    return run(soak(60 * options.minutes))


async def soak(seconds: float) -> int:
    """The whole measurement; returns the exit code."""
    async with running_servers("soak") as servers:
        settings = servers.settings(await servers.create_database("soak"))
        accounts = await add_accounts(settings, ACCOUNTS)
        clinic = await add_clinic(settings, DOCTORS)
        slots = 2 * BEST_S * BEST_RATE_MAX // DOCTORS
        by_start = await copy_slots(settings, clinic, slot_starts(slots // 48, 48, 10), 10)
        slot_ids = [slot_id for same_start in by_start for slot_id in same_start]
        async with servers.zapis(settings) as server:
            half = len(slot_ids) // 2
            best = await _best_rate(server, accounts, slot_ids[:half])
            await _read_at_once(server, accounts, clinic.doctor_ids)
            print(
                f"best: {best:.0f} bookings/s; {SHARE * best:.0f} requests/s for {seconds / 60:g} minutes", flush=True
            )
            watch = Watch(processes_of(servers, server))
            clients = Clients(server, accounts, clinic.doctor_ids, slot_ids[half:], SHARE * best)
            watching = asyncio.create_task(watch.run())
            try:
                await clients.run(seconds)
            finally:
                watching.cancel()
        return _verdict(watch, clients, seconds)


async def _best_rate(server: WebServer, accounts: Sequence[Account], slot_ids: Sequence[str]) -> float:
    requests = [
        booking_request(server.url, "/v1/appointments", accounts[number % len(accounts)], slot_id)
        for number, slot_id in enumerate(slot_ids)
    ]
    third = len(requests) // 3
    await drive(server.url, requests[:third], connections=BEST_CONNECTIONS, seconds=BEST_S // 3)
    return (await drive(server.url, requests[third:], connections=BEST_CONNECTIONS, seconds=BEST_S // 2)).rate


async def _read_at_once(server: WebServer, accounts: Sequence[Account], doctor_ids: Sequence[str]) -> None:
    """Has the server open what it opens when many ask at once, and keeps: its connections to PostgreSQL and Redis."""
    ways = [f"/v1/slots?doctor_id={doctor_id}&limit={limit}" for limit in range(1, 200) for doctor_id in doctor_ids]
    ways += ["/v1/appointments?limit=1"] * len(ways)
    requests = [
        f"GET {way} HTTP/1.1\r\nHost: {LOOPBACK}\r\nAuthorization: Bearer {account.token}\r\n\r\n".encode()
        for way, account in zip(ways * (READS_S * BEST_RATE_MAX // len(ways) + 1), cycle(accounts))
    ]
    await drive(server.url, requests, connections=BEST_CONNECTIONS, seconds=READS_S)


class Clients:
    """Patients, each with slots of its own, who go on at a pace."""

    def __init__(
        self,
        server: WebServer,
        accounts: Sequence[Account],
        doctor_ids: Sequence[str],
        slot_ids: Sequence[str],
        rate: float,
    ) -> None:
        self._port = urlsplit(server.url).port or 0
        self._accounts = accounts
        self._doctor_ids = doctor_ids
        self._slot_ids = slot_ids
        self._rate = rate
        self.answers: Counter[str] = Counter()

    async def run(self, seconds: float) -> None:
        """Until the seconds have passed."""
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for number in range(WORKERS):
                group.create_task(self._work(number, until))

    async def _work(self, number: int, until: float) -> None:
        accounts, slot_ids = self._accounts[number::WORKERS], self._slot_ids[number::WORKERS]
        pace = _Pace(WORKERS / self._rate, number / WORKERS)
        connection = Connection(self._port)

        async def ask(method: str, path: str, body: bytes = b"") -> bytes:
            await pace.wait()
            try:
                status, content = await connection.send(method, path, account.token, body, new_id() if body else None)
            except NoAnswer:
                status, content = 0, b"{}"
            self.answers[f"{method} {status or 'no answer'}"] += 1
            return content

        try:
            for turn in count():
                account, slot_id = accounts[turn % len(accounts)], slot_ids[turn % len(slot_ids)]
                await ask("GET", f"/v1/slots?doctor_id={self._doctor_ids[turn % len(self._doctor_ids)]}&limit=20")
                visit = orjson.loads(await ask("POST", "/v1/appointments", b'{"slot_id":"%s"}' % slot_id.encode()))
                await ask("GET", f"/v1/appointments/{visit.get('id')}")
                await ask("POST", f"/v1/appointments/{visit.get('id')}/cancel", b"{}")
                if time.monotonic() >= until:
                    return
        finally:
            connection.close()


class _Pace:
    """One thing after another at a steady pace; what is late is not made up for."""

    def __init__(self, pause_s: float, phase: float) -> None:
        self._pause_s = pause_s
        self._next_at = time.monotonic() + pause_s * phase

    async def wait(self) -> None:
        """Until it is time for the next one."""
        now = time.monotonic()
        await asyncio.sleep(max(0.0, self._next_at - now))
        self._next_at = max(self._next_at, now) + self._pause_s


def _verdict(watch: Watch, clients: Clients, seconds: float) -> int:
    table = Table(title=f"{seconds / 60:g} minutes")
    for name in ("minute", *(f"{group} {what}" for group in WATCHED for what in ("MB", "files"))):
        table.add_column(name, justify="right")
    step = max(1, round(seconds / 60 / TABLE_ROWS))
    for minute in range(0, round(seconds / 60), step):
        if samples := watch.window(60 * minute, 60 * minute + WINDOW_S):
            cells = [f"{of(samples, group):.0f}" for group in WATCHED for of in (memory_mb, files)]
            table.add_row(str(minute), *cells)
    console = Console(width=100)
    console.print(table)
    console.print("answers: " + ", ".join(f"{number} × {name}" for name, number in sorted(clients.answers.items())))
    if watch.ended:
        console.print("a process ended: there is nothing to compare")
        return 1
    settled, last = watch.window(SETTLING_S, SETTLING_S + WINDOW_S), watch.window(seconds - WINDOW_S, seconds)
    faults = [
        f"{group}: memory grew by {grown:.1%}"
        for group in WATCHED
        if (grown := _grown(settled, last, group)) > GROWTH_MAX - 1
    ]
    faults += [
        f"{group}: more files: {dict(last[-1].files[group] - settled[0].files[group])}"
        for group in WATCHED
        if files(last, group) > files(settled, group)
    ]
    wrong = {name: number for name, number in clients.answers.items() if name not in RIGHT}
    faults += [f"wrong answers: {wrong}"] if wrong else []
    for group in WATCHED:
        console.print(f"{group}: memory {_grown(settled, last, group):+.1%} since the sixth minute")
    for fault in faults:
        console.print(fault)
    return 1 if faults else 0


def _grown(settled: Sequence[Sample], last: Sequence[Sample], group: str) -> float:
    return memory_mb(last, group) / memory_mb(settled, group) - 1


if __name__ == "__main__":
    raise SystemExit(main())
