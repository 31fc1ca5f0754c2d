"""How fast we book: `python -m loadtests.bench`, or `make bench`; the whole comparison is `make bench-full`.

This server and two hand-written ones (``loadtests.peers``) take turns on one PostgreSQL, which the bench starts for
itself, with Valkey and Ray; then this server with an actor for each doctor, alone. The ceiling is a FastAPI endpoint of
the same authentication and validation that books nothing. Every request has an Idempotency-Key of its own and the
access token of one of many patients. The loads:

- *distinct*: every request is for a slot of its own, of twenty doctors;
- *hot*: the same, all of one doctor, another one in every round;
- *few*: twenty clients want each slot, one after the other; all but one are refused.

Printed are the medians of the rounds with their spread and the CPU that an answer costs, by process. Exit code 1: an
answer was neither 201 nor a refusal that had to be, or a booking that was answered is not in the database.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import chain, product
from math import ceil
from pathlib import Path

import httpx
import psycopg

from cluster.settings import Settings
from loadtests.bench_report import Cell, Key, print_report, write_report
from loadtests.fixture import Account, add_accounts, add_clinic, booking_request, copy_slots, slot_starts
from loadtests.generator import drive
from loadtests.servers import CpuClock, Servers, WebServer, processes_of, run, running_servers
from persistence.database import libpq_url
from persistence.identifiers import new_id

BOOK = "/v1/appointments"
NOTHING = "/v1/nothing"
SHARED = "zapis"
DEDICATED = "zapis, dedicated"
FOR_UPDATE = "A: FOR UPDATE"
ONE_STATEMENT = "B: one statement"
CEILING = "ceiling"
CONTENDERS = (SHARED, DEDICATED, FOR_UPDATE, ONE_STATEMENT, CEILING)
PEERS = {FOR_UPDATE: "for_update", ONE_STATEMENT: "one_statement", CEILING: "for_update"}
"""Their modules."""
PATIENTS = 2003
"""For each load and number of connections: nobody has hundreds of visits to come. Prime: spread over all doctors."""
SLOT_MINUTES = 10
SLOTS_A_DAY = 90
RATE_MAX = 14_000
"""No round needs more requests a second than this."""
PEER_POOL = 16
PAUSE_S = 0.7
WARM_UP_S = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Which slots a round is for."""

    name: str
    doctors: int
    wanted_by: int = 1
    """How many ask for each slot."""
    new_doctors: bool = False
    """Whether every round has doctors of its own."""


LOADS = {
    load.name: load
    for load in (
        Load(name="distinct", doctors=20),
        Load(name="hot", doctors=1, new_doctors=True),
        Load(name="few", doctors=4, wanted_by=20),
    )
}


WARM_UP = Load(name="warm-up", doctors=LOADS["distinct"].doctors)


@dataclass(slots=True, kw_only=True)
class Contender:
    """A server in the comparison."""

    name: str
    server: WebServer
    settings: Settings
    accounts: Sequence[Account]
    slots: dict[str, Iterator[list[str]]]
    """Those of each round, by load; neighbours belong to different doctors."""

    @property
    def path(self) -> str:
        """Where it is asked."""
        return NOTHING if self.name == CEILING else BOOK

    def requests(self, load: Load, slot_ids: Sequence[str]) -> list[bytes]:
        """The requests of a round."""
        wanted = chain.from_iterable([slot_id] * load.wanted_by for slot_id in slot_ids)
        return [
            booking_request(self.server.url, self.path, self.accounts[number % len(self.accounts)], slot_id)
            for number, slot_id in enumerate(wanted)
        ]


@dataclass(slots=True)
class Stock:
    """Makes slots in a database, none at the time of another, so that no patient is in two places."""

    settings: Settings
    accounts: Sequence[Account]
    doctors: int = 0
    days: int = 0

    async def slots(self, load: Load, rounds: Sequence[int], *, opened: bool) -> list[list[str]]:
        """Enough for rounds of so many seconds each, of doctors of their own; ids of none unless they are opened."""
        counts = [ceil(seconds * RATE_MAX / load.wanted_by) + load.doctors for seconds in rounds]
        if not opened:
            return [[new_id() for _ in range(count)] for count in counts]
        if load.new_doctors:
            return [(await self._open(load.doctors, count))[:count] for count in counts]
        slots = iter(await self._open(load.doctors, sum(counts)))
        return [[next(slots) for _ in range(count)] for count in counts]

    async def _open(self, doctors: int, count: int) -> list[str]:
        clinic = await add_clinic(self.settings, doctors, first=self.doctors)
        days = ceil(count / doctors / SLOTS_A_DAY)
        starts = slot_starts(days, SLOTS_A_DAY, SLOT_MINUTES, after_days=self.days)
        self.doctors += doctors
        self.days += days
        return list(chain.from_iterable(await copy_slots(self.settings, clinic, starts, SLOT_MINUTES)))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=["distinct"], help="[distinct]")
    parser.add_argument("--connections", nargs="+", type=int, default=[64], help="requests under way at once [64]")
    parser.add_argument("--servers", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), help="[all]")
    parser.add_argument("--seconds", type=int, default=5, help="length of a round [%(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each server [%(default)s]")
    parser.add_argument("--actors", type=int, default=1, help="shared calendar actors [%(default)s]")
    parser.add_argument("--peer-pool", type=int, default=PEER_POOL, help="the peers' connections [%(default)s]")
    parser.add_argument("--report", type=Path, help="a directory for bench.md and bench.svg")
    options = parser.parse_args(arguments)
    if not (all(1 <= each <= 1024 for each in options.connections) and 1 <= options.seconds <= 60):
        parser.error("--connections are from 1 to 1024, --seconds from 1 to 60")
    if not 1 <= options.rounds <= 20:
        parser.error("--rounds is from 1 to 20")
    return run(bench(options))


async def bench(options: argparse.Namespace) -> int:
    """The whole measurement; returns the exit code."""
    cells: dict[Key, Cell] = {}
    faults: list[str] = []
    # An actor for each doctor costs something even when nobody asks it: nobody else is measured beside that.
    passes = ([name for name in options.servers if name != DEDICATED], [DEDICATED] * (DEDICATED in options.servers))
    async with running_servers("bench") as servers:
        for names in filter(None, passes):
            async with _running_contenders(servers, options, names) as contenders:
                for load, connections in product(options.loads, options.connections):
                    print(f"{load}, {connections} connections: {', '.join(names)}", flush=True)
                    for contender in contenders * options.rounds:
                        cell = cells.setdefault((load, connections, contender.name), Cell())
                        fault = await _round(servers, contender, LOADS[load], connections, options.seconds, cell)
                        faults += [f"{load}, {connections} connections: {fault}"] if fault else []
    order = product(options.loads, options.connections, options.servers)
    cells = {key: cells[key] for key in order if cells[key].outcomes}
    print_report(cells, FOR_UPDATE)
    if options.report is not None:
        write_report(options.report, cells, FOR_UPDATE, f"{options.rounds} rounds of {options.seconds} s")
    for fault in faults:
        print(fault)
    return 1 if faults else 0


@asynccontextmanager
async def _running_contenders(
    servers: Servers, options: argparse.Namespace, names: Sequence[str]
) -> AsyncIterator[list[Contender]]:
    """The servers, warm: every token has been verified once by each."""
    plan = [(WARM_UP, [WARM_UP_S])]
    plan += [(LOADS[load], [options.seconds] * (len(options.connections) * options.rounds)) for load in options.loads]
    contenders = []
    async with AsyncExitStack() as stack:
        stocks: dict[str, Stock] = {}
        for name in names:
            # The placement of calendars is one for all servers on a database.
            placement = "dedicated" if name == DEDICATED else "shared"
            if placement not in stocks:
                settings = servers.settings(
                    await servers.create_database(placement),
                    calendar_placement=placement,
                    calendar_actors=options.actors,
                )
                cells = len(options.loads) * len(options.connections) | 1  # Odd: prime to the number of doctors, too.
                stocks[placement] = Stock(settings, await add_accounts(settings, PATIENTS * cells))
            stock = stocks[placement]
            slots = {load.name: iter(await stock.slots(load, rounds, opened=name != CEILING)) for load, rounds in plan}
            if name in PEERS:
                pool = stock.settings.model_copy(update={"database_pool_max": options.peer_pool})
                running = servers.peer(f"loadtests.peers.{PEERS[name]}:create_app", pool)
            else:
                running = servers.zapis(stock.settings)
            server = await stack.enter_async_context(running)
            contenders.append(
                Contender(name=name, server=server, settings=stock.settings, accounts=stock.accounts, slots=slots)
            )
        await servers.checkpoint()
        for contender in contenders:
            if fault := await _round(servers, contender, WARM_UP, options.connections[0], WARM_UP_S, Cell()):
                raise RuntimeError(f"cannot be measured: {fault}")
        yield contenders


async def _round(
    servers: Servers, contender: Contender, load: Load, connections: int, seconds: int, cell: Cell
) -> str | None:
    """Let the contender answer for so long; returns what was wrong."""
    slot_ids = next(contender.slots[load.name])
    await _touch(contender, slot_ids[-load.doctors :])
    prepared = contender.requests(load, slot_ids[: -load.doctors])
    await asyncio.sleep(PAUSE_S)
    before = await _booked(contender.settings)
    clock = CpuClock(processes_of(servers, contender.server))
    began = os.times()
    try:
        outcome = await drive(contender.server.url, prepared, connections=connections, seconds=seconds)
    except RuntimeError as failure:
        return f"{contender.name}: {failure}"
    used, ended = clock.used(), os.times()
    used["generator"] = ended.children_user + ended.children_system - began.children_user - began.children_system
    cell.add(outcome, used)
    # Of those who want a slot, all but one are refused; at the end some have not been answered.
    refused = outcome.refused - (load.wanted_by - 1) * (outcome.created + connections)
    refused = max(0, refused) if contender.name != CEILING else 0
    if (wrong := outcome.others + outcome.unavailable) or outcome.failed or refused:
        return f"{contender.name}: {wrong} wrong answers, {refused} refusals, {outcome.failed} had none"
    if contender.name != CEILING and (booked := await _booked(contender.settings) - before) < outcome.created:
        return f"{contender.name}: {outcome.created} answers 201, but {booked} new appointments"
    return None


async def _touch(contender: Contender, slot_ids: Sequence[str]) -> None:
    """Have the calendars of these slots in memory: that they come there is measured elsewhere (``scale``)."""
    async with httpx.AsyncClient(timeout=30.0) as client:
        for number, slot_id in enumerate(slot_ids):
            account = contender.accounts[-1 - number]
            headers = {"Authorization": f"Bearer {account.token}"}
            url = contender.server.url + contender.path
            answer = await client.post(url, json={"slot_id": slot_id}, headers=headers)
            assert answer.status_code == 201, f"{contender.name}: {answer.status_code} {answer.text}"


async def _booked(settings: Settings) -> int:
    async with await psycopg.AsyncConnection.connect(libpq_url(str(settings.database_url))) as connection:
        row = await (await connection.execute("SELECT count(*) FROM appointment")).fetchone()
    return int(row[0]) if row is not None else 0


if __name__ == "__main__":
    raise SystemExit(main())
