"""Whether too much load takes anything from those who are served: `python -m loadtests.overload`, or `make overload`.

First the number of connections with the best throughput is looked for, then so many, twice and ten times as many take
turns in asking for slots; compared is what all their rounds brought together. Those who are turned away ask again at
once. From two seconds after they have come, some people who ask now and then, and come back when they are told to, see
how long it takes to be served, and to be turned away.
Exit code 1: the throughput fell by more than a tenth, a booking took over a second (99th percentile), a refusal over
100 ms, or an answer was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import uniform
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

from loadtests.connection import Connection, NoAnswer
from loadtests.fixture import Account, add_accounts, add_clinic, booking_request, copy_slots, slot_starts
from loadtests.generator import drive
from loadtests.servers import CpuClock, Servers, WebServer, processes_of, run, running_servers
from persistence.identifiers import new_id

BOOK = "/v1/appointments"
LADDER = (16, 32, 64, 128, 256, 512)
TIMES = (1, 2, 10)
SAME = 0.97
"""The best is where fewer connections bring less than this share of it."""
SEARCH_ROUNDS = 2
ROUNDS = 6
"""A machine that is shared with others is a tenth faster in one round than in the next: of two, the mean would tell
nothing of a tenth. In a slow round of a slow machine every process takes longer for the same."""
RATE_MAX = 6000
DOCTORS = 20
SLOTS_A_DAY = 90
PATIENTS = 40_001
"""So many that none has dozens of visits, which are looked at for each."""
PROBES = 64
BEGIN_S = 2.0
"""In so long all of these people have come."""
PROBE_PAUSE_S = 0.2
ARRIVING_S = 2.0
"""Thousands who connect in the same instant are let in one after another, and whom the kernel has no room for tries
again after a second: what comes later is looked at."""
WARM_UP_S = 20
"""To have calendars with hundreds of thousands of slots in memory."""
THROUGHPUT_MIN = 0.9
ACCEPTED_P99_MAX_MS = 1000.0
REFUSED_P99_MAX_MS = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What so many connections brought."""

    connections: int
    seconds: float
    booked: int
    """For the load and for the few people beside it."""
    refused: int
    """Answers 503 to the load."""
    booked_ms: list[float]
    """How long those who were asked for now and then took: the booked,"""
    refused_ms: list[float]
    """those turned away with 503."""
    wrong: int
    """How many got another answer, or none."""
    cpu_s: dict[str, float]
    """CPU time, by what the processes do."""

    @property
    def rate(self) -> float:
        """Bookings a second."""
        return self.booked / self.seconds


def together(steps: Sequence[Step]) -> Step:
    """All rounds of the same."""
    return Step(
        connections=steps[0].connections,
        seconds=sum(step.seconds for step in steps),
        booked=sum(step.booked for step in steps),
        refused=sum(step.refused for step in steps),
        booked_ms=[each for step in steps for each in step.booked_ms],
        refused_ms=[each for step in steps for each in step.refused_ms],
        wrong=sum(step.wrong for step in steps),
        cpu_s={name: sum(step.cpu_s[name] for step in steps) for name in steps[0].cpu_s},
    )


class Bench:
    """One server, and slots that nobody has asked for."""

    def __init__(
        self, servers: Servers, server: WebServer, accounts: Sequence[Account], slot_ids: Iterator[str]
    ) -> None:
        self._servers = servers
        self._server = server
        self._accounts = accounts
        self._slot_ids = slot_ids
        self._asked = 0

    async def rounds(self, levels: Sequence[int], seconds: int, count: int) -> list[list[Step]]:
        """So many connections, each in turn, there and back again; of each, what its rounds brought.

        A calendar in which hundreds of thousands are booked takes more of PostgreSQL than an empty one: on the way back
        the first come last.
        """
        steps: dict[int, list[Step]] = {connections: [] for connections in levels}
        for number in range(count):
            for connections in reversed(levels) if number % 2 else levels:
                steps[connections].append(await self.step(connections, seconds))
        return list(steps.values())

    async def step(self, connections: int, seconds: int) -> Step:
        """So many connections for so long, and the probes beside them."""
        requests = [self._request() for _ in range(seconds * RATE_MAX)]
        booked_ms: list[float] = []
        refused_ms: list[float] = []
        begun = asyncio.Event()
        stopping = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            probes = [
                group.create_task(self._probe(begun, number * BEGIN_S / PROBES, booked_ms, refused_ms, stopping))
                for number in range(PROBES)
            ]
            clocks = group.create_task(self._clock(begun))
            try:
                outcome = await drive(self._server.url, requests, connections=connections, seconds=seconds, begun=begun)
                cpu_s = clocks.result().used()
            finally:
                begun.set()
                stopping.set()
        return Step(
            connections=connections,
            seconds=outcome.seconds,
            booked=outcome.created + len(booked_ms),
            refused=outcome.unavailable,
            booked_ms=booked_ms,
            refused_ms=refused_ms,
            wrong=sum(probe.result() for probe in probes) + outcome.others + outcome.refused + outcome.failed,
            cpu_s=cpu_s,
        )

    async def _clock(self, begun: asyncio.Event) -> CpuClock:
        """The CPU time from then on."""
        await begun.wait()
        return CpuClock(processes_of(self._servers, self._server))

    def _request(self) -> bytes:
        account, slot_id = self._next()
        return booking_request(self._server.url, BOOK, account, slot_id)

    def _next(self) -> tuple[Account, str]:
        self._asked += 1
        return self._accounts[self._asked % len(self._accounts)], next(self._slot_ids)

    async def _probe(
        self,
        begun: asyncio.Event,
        begin_after_s: float,
        booked_ms: list[float],
        refused_ms: list[float],
        stopping: asyncio.Event,
    ) -> int:
        """Ask now and then, and wait for each answer; how many were wrong."""
        await begun.wait()
        await asyncio.sleep(ARRIVING_S + begin_after_s)
        wrong = 0
        connection = Connection(urlsplit(self._server.url).port or 0)
        try:
            while not stopping.is_set():
                account, slot_id = self._next()
                body = b'{"slot_id":"%s"}' % slot_id.encode()
                began = time.perf_counter()
                try:
                    status, _ = await connection.send("POST", BOOK, account.token, body, new_id())
                except NoAnswer:
                    status = 0
                took_ms = 1000 * (time.perf_counter() - began)
                if status == 201:
                    booked_ms.append(took_ms)
                elif status == 503:
                    refused_ms.append(took_ms)
                else:
                    wrong += 1
                # Two who were told the same do not come back in the same instant. And nobody idles into the next step:
                # machines run faster after a rest.
                with suppress(TimeoutError):
                    async with asyncio.timeout((connection.retry_after_s or PROBE_PAUSE_S) * uniform(1.0, 1.5)):
                        await stopping.wait()
        finally:
            connection.close()
        return wrong


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.overload", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=6, help="length of a step in the search [%(default)s]")
    parser.add_argument("--long", type=int, default=30, help="length of a step that is compared [%(default)s]")
    options = parser.parse_args(arguments)
    if not (6 <= options.seconds <= 30 and 6 <= options.long <= 60):
        parser.error("--seconds is from 6 to 30, --long from 6 to 60")
    return run(overload(options.seconds, options.long))


async def overload(seconds: int, long_s: int) -> int:
    """The whole measurement; returns the exit code."""
    async with running_servers("overload") as servers:
        settings = servers.settings(await servers.create_database("overload"))
        accounts = await add_accounts(settings, PATIENTS)
        clinic = await add_clinic(settings, DOCTORS)
        total_s = SEARCH_ROUNDS * len(LADDER) * seconds + ROUNDS * len(TIMES) * long_s + WARM_UP_S
        wanted = total_s * (RATE_MAX + round(PROBES / PROBE_PAUSE_S)) + PROBES
        starts = slot_starts(1 + wanted // DOCTORS // SLOTS_A_DAY, SLOTS_A_DAY, 10)
        slot_ids = [slot_id for same_start in await copy_slots(settings, clinic, starts, 10) for slot_id in same_start]
        await servers.checkpoint()
        gc.collect()
        gc.freeze()  # To look through all these for garbage takes a third of a second, in which no probe is heard.
        async with servers.zapis(settings) as server:
            bench = Bench(servers, server, accounts, iter(slot_ids))
            await bench.step(64, WARM_UP_S)
            ladder = [together(rounds) for rounds in await bench.rounds(LADDER, seconds, SEARCH_ROUNDS)]
            top = max(step.rate for step in ladder)
            best = next(step.connections for step in ladder if step.rate >= SAME * top)
            levels = await bench.rounds([times * best for times in TIMES], long_s, ROUNDS)
    return _report(ladder, levels)


def _report(ladder: Sequence[Step], rounds: Sequence[Sequence[Step]]) -> int:
    best, *over = levels = [together(steps) for steps in rounds]
    console = Console(width=140)
    search = _table(f"the search; {SEARCH_ROUNDS} rounds each", ladder, max(step.rate for step in ladder))
    console.print(search)
    for steps in rounds:
        console.print(_table(f"{steps[0].connections:,} connections, round by round", steps, best.rate))
    console.print(_table(f"all {ROUNDS} rounds each", levels, best.rate))
    faults = []
    for step in over:
        if step.rate < THROUGHPUT_MIN * best.rate or not step.booked:
            faults.append(f"{step.connections} connections: {step.rate / (best.rate or 1):.0%} of the best")
        if not step.booked_ms or _p99(step.booked_ms) > ACCEPTED_P99_MAX_MS:
            took = f"took {_p99(step.booked_ms):.0f} ms" if step.booked_ms else "was never made"
            faults.append(f"{step.connections} connections: a booking {took}")
        if step.refused_ms and _p99(step.refused_ms) > REFUSED_P99_MAX_MS:
            faults.append(f"{step.connections} connections: a refusal took {_p99(step.refused_ms):.0f} ms")
        if step.wrong:
            faults.append(f"{step.connections} connections: {step.wrong} wrong answers")
    for fault in faults:
        console.print(fault)
    return 1 if faults else 0


def _table(title: str, steps: Sequence[Step], best_rate: float) -> Table:
    table = Table(title=f"{title}; on the right, the CPU in ms for a booking")
    measured = ("connections", "booked/s", "of the best", "503/s", "others", "booked p99 ms", "503 p99 ms")
    for name in (*measured, *steps[0].cpu_s):
        table.add_column(name, justify="right")
    for step in steps:
        table.add_row(
            f"{step.connections:,}",
            f"{step.rate:,.0f}",
            f"{step.rate / (best_rate or 1):.2f}",
            f"{step.refused / step.seconds:,.0f}",
            f"{step.wrong}",
            f"{_p99(step.booked_ms):.0f}",
            f"{_p99(step.refused_ms):.0f}" if step.refused_ms else "",
            *(f"{1000 * seconds / max(1, step.booked):.3f}" for seconds in step.cpu_s.values()),
        )
    return table


def _p99(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[98] if len(values) > 1 else sum(values)


if __name__ == "__main__":
    raise SystemExit(main())
