"""How fast we book: `python -m loadtests.bench`, or `make bench`.

This server and a hand-written one (``loadtests.peers.for_update``) take turns on the same PostgreSQL, which the bench
starts for itself, with Valkey and Ray. Every request books a slot of its own, under an Idempotency-Key, with the access
token of one of many patients. Printed are the medians of the rounds with their spread, the CPU that a booking costs and
where, and, as the ceiling, a FastAPI endpoint of the same authentication and validation that books nothing. Exit code
1: an answer was not 201, or a booking that was answered is not in the database.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import chain
from math import ceil

import psycopg
from rich.console import Console
from rich.table import Table

from cluster.settings import Settings
from loadtests.fixture import Account, add_accounts, add_clinic, booking_request, copy_slots, slot_starts
from loadtests.generator import Outcome, drive, generator_name
from loadtests.servers import CpuClock, Servers, WebServer, processes_of, run, running_servers
from persistence.database import libpq_url

OURS = "zapis"
PEER = "FOR UPDATE"
PIPELINED = "FOR UPDATE, pipelined"
CEILING = "ceiling (books nothing)"
BOOK = "/v1/appointments"
BOOK_PIPELINED = "/v1/pipelined/appointments"
NOTHING = "/v1/nothing"
CONTENDERS = 4
DOCTORS = 100
"""Of each contender."""
PATIENTS = 2003
"""Prime: a patient's visits are spread over all doctors."""
SLOT_MINUTES = 10
SLOTS_A_DAY = 90
RATE_MAX = 7000
"""No round needs more requests a second than this."""
PEER_POOL = 16
PAUSE_S = 1.0
WARM_UP_S = 6


@dataclass(slots=True, kw_only=True)
class Contender:
    """A server in the comparison, and what its rounds brought."""

    name: str
    server: WebServer
    path: str = BOOK
    slot_ids: Sequence[str]
    """Of doctors of its own, by start: neighbours belong to different doctors."""
    accounts: Sequence[Account]
    """At each start other ones than any other contender's."""
    used: int = 0
    """How many of the slots have been booked, or may have been."""
    outcomes: list[Outcome] = field(default_factory=list)
    cpu_ms: list[dict[str, float]] = field(default_factory=list)
    """Milliseconds of CPU for each answer, by what used them."""

    def requests(self, count: int) -> list[bytes]:
        """At most so many requests for slots that nobody has asked for."""
        return [
            booking_request(self.server.url, self.path, self.accounts[number % len(self.accounts)], slot_id)
            for number, slot_id in enumerate(self.slot_ids[self.used : self.used + count], self.used)
        ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--connections", type=int, default=64, help="requests under way at once [%(default)s]")
    parser.add_argument("--seconds", type=int, default=8, help="length of a round [%(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each server [%(default)s]")
    parser.add_argument("--actors", type=int, default=1, help="calendar actors [%(default)s]")
    parser.add_argument("--peer-pool", type=int, default=PEER_POOL, help="the peer's connections [%(default)s]")
    options = parser.parse_args(arguments)
    if not (1 <= options.connections <= 1024 and 1 <= options.seconds <= 60 and 1 <= options.rounds <= 20):
        parser.error("--connections is from 1 to 1024, --seconds from 1 to 60, --rounds from 1 to 20")
    return run(bench(options))


async def bench(options: argparse.Namespace) -> int:
    """The whole measurement; returns the exit code."""
    async with running_servers("bench") as servers, AsyncExitStack() as stack:
        settings = servers.settings(await servers.create_database("bench"), calendar_actors=options.actors)
        slot_ids, accounts = await _prepare(settings, options)
        await servers.checkpoint()
        ours = await stack.enter_async_context(servers.zapis(settings))
        pool = settings.model_copy(update={"database_pool_max": options.peer_pool})
        peer = await stack.enter_async_context(servers.peer("loadtests.peers.for_update:create_app", pool))
        contenders = [
            Contender(
                name=name, server=server, path=path, slot_ids=slot_ids[number], accounts=_turned(accounts, number)
            )
            for number, (name, server, path) in enumerate(
                [
                    (OURS, ours, BOOK),
                    (PEER, peer, BOOK),
                    (PIPELINED, peer, BOOK_PIPELINED),
                    (CEILING, peer, NOTHING),
                ]
            )
        ]
        faults = []
        for contender in contenders:
            # Every token is verified once, every calendar activated: the rounds measure what goes on and on.
            fault = await _round(servers, settings, contender, options.connections, WARM_UP_S)
            if fault:
                print(f"{contender.name} cannot be measured: {fault}")
                return 1
            contender.outcomes.clear()
            contender.cpu_ms.clear()
        for number in range(options.rounds):
            for contender in contenders:
                fault = await _round(servers, settings, contender, options.connections, options.seconds)
                faults += [f"round {number + 1}, {contender.name}: {fault}"] if fault else []
        _print(contenders, options)
        for fault in faults:
            print(fault)
        return 1 if faults else 0


async def _prepare(settings: Settings, options: argparse.Namespace) -> tuple[list[list[str]], list[Account]]:
    """The slots of each contender, enough for all rounds, and patients."""
    count = (options.rounds * options.seconds + WARM_UP_S) * RATE_MAX
    days = ceil(count / DOCTORS / SLOTS_A_DAY)
    starts = slot_starts(days, SLOTS_A_DAY, SLOT_MINUTES)
    accounts = await add_accounts(settings, PATIENTS)
    slots = []
    for number in range(CONTENDERS):
        clinic = await add_clinic(settings, DOCTORS, first=number * DOCTORS)
        slots.append(list(chain.from_iterable(await copy_slots(settings, clinic, starts, SLOT_MINUTES))))
    return slots, accounts


def _turned(accounts: Sequence[Account], number: int) -> list[Account]:
    """The accounts, beginning elsewhere for each contender: nobody is at two of them at the same time."""
    first = number * len(accounts) // CONTENDERS
    return [*accounts[first:], *accounts[:first]]


async def _round(
    servers: Servers,
    settings: Settings,
    contender: Contender,
    connections: int,
    seconds: int,
) -> str | None:
    """Let the contender answer for so long; returns what was wrong."""
    await asyncio.sleep(PAUSE_S)
    prepared = contender.requests(seconds * RATE_MAX)
    before = await _booked(settings)
    clock = CpuClock(processes_of(servers, contender.server))
    began = os.times()
    outcome = await drive(contender.server.url, prepared, connections=connections, seconds=seconds)
    used, ended = clock.used(), os.times()
    used["generator"] = ended.children_user + ended.children_system - began.children_user - began.children_system
    contender.outcomes.append(outcome)
    contender.cpu_ms.append({name: 1000 * cpu_s / max(1, outcome.created) for name, cpu_s in used.items()})
    if outcome.others or outcome.failed:
        return f"{outcome.others} answers were not 201, {outcome.failed} requests had none"
    if contender.path != NOTHING:
        contender.used += outcome.created + connections
        if (booked := await _booked(settings) - before) < outcome.created:
            return f"{outcome.created} answers 201, but {booked} new appointments"
    return None


async def _booked(settings: Settings) -> int:
    async with await psycopg.AsyncConnection.connect(libpq_url(str(settings.database_url))) as connection:
        row = await (await connection.execute("SELECT count(*) FROM appointment")).fetchone()
    return int(row[0]) if row is not None else 0


def _print(contenders: Sequence[Contender], options: argparse.Namespace) -> None:
    table = Table(
        title=f"{options.connections} connections, {options.rounds} rounds of {options.seconds} s, "
        f"{os.cpu_count()} cores, load by {generator_name()}"
    )
    groups = ("api", "actors", "postgres", "ray", "generator")
    for name in ("", "a second", "least–most", "p50 ms", "p99 ms", "ratio", *(f"{group} µs" for group in groups)):
        table.add_column(name, justify="left" if not name else "right")
    peer = next(contender for contender in contenders if contender.name == PEER)
    for contender in contenders:
        rates = [outcome.rate for outcome in contender.outcomes]
        table.add_row(
            contender.name,
            f"{statistics.median(rates):,.0f}",
            f"{min(rates):,.0f}–{max(rates):,.0f}",
            f"{statistics.median(outcome.p50_ms for outcome in contender.outcomes):.1f}",
            f"{statistics.median(outcome.p99_ms for outcome in contender.outcomes):.1f}",
            f"{statistics.median(rates) / statistics.median(outcome.rate for outcome in peer.outcomes):.2f}",
            *(f"{1000 * statistics.median(cpu[group] for cpu in contender.cpu_ms):.0f}" for group in groups),
        )
    console = Console(width=140)
    console.print(table)
    console.print("Answers 201 a second: median, least and most of the rounds. µs: CPU for each answer, by process.")


if __name__ == "__main__":
    raise SystemExit(main())
