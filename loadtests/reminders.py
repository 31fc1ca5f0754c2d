"""How many reminders a minute, and whether none is lost: `python -m loadtests.reminders`, or `make reminders`.

So many reminders are due at once, of visits in a clinic of its own, and are sent to a mail server that throws them
away (``loadtests.sink``). First with one, two and four notifier actors: how many a second, and what that costs in each
process. Then, with two, while what they need is killed: the actors themselves, Redis, PostgreSQL; meanwhile some visits
are changed, of which nothing may be said any more. Last, how long it takes to lease messages when the table has
``--rows``. Exit code 1: a message was lost, one was sent that was not true any more, more came twice than were under
way at a kill, or leasing takes longer in a large table.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psutil
import psycopg
from psycopg.types.json import Jsonb
from rich.console import Console
from rich.table import Table

from cluster.data_directory import free_port
from cluster.embedded import EmbeddedServer
from cluster.processes import Child, Program, left_over
from cluster.settings import Settings
from loadtests.fixture import add_accounts, add_clinic
from loadtests.servers import REPOSITORY, CpuClock, Servers, environment, run, running_servers
from loadtests.sink import count
from notifier.notifier import NotifierLimits
from notifier.preferences import Preferences
from persistence.database import libpq_url

ACCOUNTS = 2000
DOCTORS = 200
ACTORS = (1, 2, 4)
FAULT_ACTORS = 2
AWAY_S = 3.0
SETTLING_S = 2.0
PATIENCE_S = 600.0
CHANGED = 1000
LEASE_LIMIT = 100
LEASES = 30
LEASE_RATIO_MAX = 2.0
ROWS_A_STATEMENT = 500_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A clinic with reminders, and the sink."""

    servers: Servers
    settings: Settings
    sink_port: int

    @property
    def url(self) -> str:
        """The database."""
        return libpq_url(str(self.settings.database_url))

    async def ask(self, statement: str, *arguments: object) -> list[tuple[Any, ...]]:
        """Rows of a query, or none."""
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
            cursor = await connection.execute(statement.encode(), arguments or None)
            return list(await cursor.fetchall()) if cursor.description else []

    async def make_due(self, messages: int) -> None:
        """So many reminders that are due now, in the place of those before."""
        await self.ask("TRUNCATE notification")
        await self.ask(
            "INSERT INTO notification (id, outbox_id, kind, ahead, channel, user_id, appointment_id, version, due_at,"
            " expires_at, next_at) SELECT uuidv7(), id, 'reminder', 'P1D', 'email', booked_by, id, version,"
            " now(), starts_at, now() FROM appointment ORDER BY starts_at, id LIMIT %s",
            messages,
        )
        await self.ask("VACUUM (ANALYZE) notification")

    async def left(self) -> int:
        """How many have not ended."""
        with suppress(psycopg.OperationalError):
            ((number,),) = await self.ask("SELECT count(*) FROM notification WHERE ended_at IS NULL")
            return int(number)
        return -1

    async def outcomes(self) -> dict[str, int]:
        """How many ended how."""
        return dict(await self.ask("SELECT coalesce(outcome, 'open'), count(*) FROM notification GROUP BY 1"))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.reminders", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=100_000, help="due in the same minute [%(default)s]")
    parser.add_argument("--fault-messages", type=int, default=20_000, help="due while things are killed [%(default)s]")
    parser.add_argument("--rows", type=int, default=5_000_000, help="in the table when leasing is timed [%(default)s]")
    options = parser.parse_args(arguments)
    if not (1000 <= options.messages <= 100_000 and 2000 <= options.fault_messages <= 100_000):
        parser.error("--messages is from 1000 to 100000, --fault-messages from 2000 to 100000")
    if not 200_000 <= options.rows <= 20_000_000:
        parser.error("--rows is from 200000 to 20000000")
    return run(reminders(options))


async def reminders(options: argparse.Namespace) -> int:
    """The whole measurement; returns the exit code."""
    console = Console(width=110)
    faults: list[str] = []
    async with running_servers("reminders") as servers, _sink(servers) as port:
        settings = servers.settings(
            await servers.create_database("reminders"),
            smtp_url=f"smtp://127.0.0.1:{port}",
            notifications_a_day_max=0,
        )
        bench = Bench(servers=servers, settings=settings, sink_port=port)
        await _fill(bench, max(options.messages, options.fault_messages))
        table = Table(title=f"{options.messages:,} reminders due in the same minute")
        for name in ("actors", "a second", "seconds", "cpu: actors", "postgres", "sink"):
            table.add_column(name, justify="right")
        for actors in ACTORS:
            row, found = await _throughput(bench, actors, options.messages)
            table.add_row(str(actors), *row)
            faults += found
        console.print(table)
        console.print("CPU in seconds for 1,000 messages.")
        faults += await _kill(bench, options.fault_messages, console)
        faults += await _lease(bench, options.rows, console)
    for fault in faults:
        console.print(fault)
    return 1 if faults else 0


@asynccontextmanager
async def _sink(servers: Servers) -> AsyncIterator[int]:
    port = free_port()
    child = Child(
        Program(
            name="sink",
            owner=servers.data.path,
            directory=REPOSITORY,
            command=[sys.executable, "-m", "loadtests.sink", "--port", str(port)],
            log=servers.data.log("sink"),
        )
    )
    try:
        while True:
            with suppress(OSError):
                await count(port)
                break
            await asyncio.sleep(0.05)
        yield port
    finally:
        await child.stop(5.0)


async def _fill(bench: Bench, visits: int) -> None:
    """So many visits to come: neither a doctor nor a patient has two at the same time."""
    accounts = await add_accounts(bench.settings, ACCOUNTS)
    clinic = await add_clinic(bench.settings, DOCTORS)
    start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) + timedelta(days=2)
    async with await psycopg.AsyncConnection.connect(bench.url) as connection:
        command = (
            "COPY appointment (id, doctor_id, patient_id, booked_by, slot_id, location_id, starts_at, ends_at, status,"
            " live, version, created_at, updated_at) FROM STDIN"
        )
        made = datetime.now(UTC)
        async with connection.cursor().copy(command) as copy:
            for number in range(visits):
                account = accounts[number % ACCOUNTS]
                begins = start + timedelta(minutes=15 * (number // DOCTORS))
                visit_id = f"00000000-0000-7000-8000-{number:012x}"
                await copy.write_row(
                    (
                        visit_id,
                        clinic.doctor_ids[number % DOCTORS],
                        account.patient_id,
                        account.user_id,
                        visit_id,
                        clinic.location_id,
                        begins,
                        begins + timedelta(minutes=15),
                        "booked",
                        True,
                        1,
                        made,
                        made,
                    )
                )
        await connection.execute(
            "INSERT INTO notification_preference (user_id, chosen, updated_at) SELECT id, %s, now() FROM app_user",
            [Jsonb(Preferences(quiet=None).plain())],
        )
        await connection.commit()
    await bench.ask("VACUUM (ANALYZE) appointment")


@asynccontextmanager
async def _notifying(bench: Bench, actors: int) -> AsyncIterator[None]:
    """So many notifiers, seen to by an API process, for as long as the block lasts."""
    settings = bench.settings.model_copy(update={"notifiers": actors})
    async with bench.servers.zapis(settings):
        while len(_notifier_processes(bench.servers)) < actors:
            await asyncio.sleep(0.1)
        await asyncio.sleep(SETTLING_S)
        yield
    drain = Child(
        Program(
            name="drain",
            owner=bench.servers.data.path,
            directory=REPOSITORY,
            command=[sys.executable, "-m", "cluster.cli", "drain"],
            environment=bench.servers.ray.client_environment | environment(settings),
            log=bench.servers.data.log("drain"),
        )
    )
    try:
        assert await drain.wait() == 0, "the notifiers did not end"
    finally:
        await drain.stop(5.0)


async def _throughput(bench: Bench, actors: int, messages: int) -> tuple[list[str], list[str]]:
    await bench.ask("TRUNCATE notification")
    async with _notifying(bench, actors):
        groups = {
            "actors": _notifier_processes(bench.servers),
            "postgres": left_over(bench.servers.data.path, bench.servers.postgres.name),
            "sink": left_over(bench.servers.data.path, "sink"),
        }
        before, _ = await count(bench.sink_port)
        clock = CpuClock(groups)
        await bench.make_due(messages)
        began = time.monotonic()
        while (left := await bench.left()) and time.monotonic() < began + PATIENCE_S:
            await asyncio.sleep(0.2)
        took_s = time.monotonic() - began
        used = clock.used()
        taken, _ = await count(bench.sink_port)
    outcomes = await bench.outcomes()
    faults = [f"{actors} actors: {left} messages are left"] if left else []
    if outcomes.get("sent", 0) != messages or taken - before != messages:
        faults.append(f"{actors} actors: {outcomes}, {taken - before} mails")
    cpu = [f"{1000 * used[name] / messages:.2f}" for name in groups]
    return [f"{messages / took_s:,.0f}", f"{took_s:.0f}", *cpu], faults


async def _kill(bench: Bench, messages: int, console: Console) -> list[str]:
    """Kill what they need while they send; nothing is lost, and nothing is said that is not true any more."""
    servers = bench.servers
    before, repeated_before = await count(bench.sink_port)
    await bench.make_due(messages)
    kills = 0
    async with _notifying(bench, FAULT_ACTORS):

        async def until_left(share: float) -> None:
            give_up_at = time.monotonic() + PATIENCE_S
            while not 0 <= await bench.left() <= share * messages and time.monotonic() < give_up_at:
                await asyncio.sleep(0.05)

        await until_left(0.9)
        ((changed_at,),) = await bench.ask(
            "WITH changed AS (UPDATE appointment SET version = version + 1 WHERE id IN (SELECT appointment_id"
            " FROM notification WHERE ended_at IS NULL ORDER BY id DESC LIMIT %s) RETURNING id)"
            " SELECT clock_timestamp() FROM changed LIMIT 1",
            CHANGED,
        )
        await until_left(0.8)
        for process in _notifier_processes(servers):
            kills += 1
            with suppress(psutil.NoSuchProcess):
                process.kill()
        await until_left(0.6)
        await _without(servers, servers.valkey)
        await until_left(0.4)
        await _without(servers, servers.postgres)
        healed_at = time.monotonic()
        await until_left(0.0)
        drained_s = time.monotonic() - healed_at
    left = await bench.left()
    outcomes = await bench.outcomes()
    taken, repeated = await count(bench.sink_port)
    ((late,),) = await bench.ask(
        "SELECT count(*) FROM notification AS n JOIN appointment AS a ON a.id = n.appointment_id"
        " WHERE n.outcome = 'sent' AND a.version > n.version AND n.ended_at > %s",
        changed_at,
    )
    again = repeated - repeated_before
    under_way = NotifierLimits().sending_max * FAULT_ACTORS
    console.print(
        f"{messages:,} reminders while actors, Redis and PostgreSQL are killed: {outcomes}, {taken - before:,} mails,"
        f" {again} of them again; {late} of {CHANGED} changed visits were under way; {drained_s:.0f} s from the last"
        " start to the end"
    )
    faults = [f"{left} messages are left"] if left else []
    if outcomes.get("sent", 0) + outcomes.get("void", 0) != messages:
        faults.append(f"not all were sent or void: {outcomes}")
    if taken - before - again != outcomes.get("sent", 0):
        faults.append(f"{outcomes.get('sent', 0)} count as sent, {taken - before - again} were")
    if late > under_way:
        faults.append(f"{late} were sent after their visit was changed, {under_way} could be under way")
    if again > 2 * under_way:  # At the kill of the actors, and where PostgreSQL could not be told.
        faults.append(f"{again} were sent again, {2 * under_way} could be under way")
    return faults


async def _without(servers: Servers, server: EmbeddedServer) -> None:
    for process in await asyncio.to_thread(left_over, servers.data.path, server.name):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    await server.died()
    await asyncio.sleep(AWAY_S)
    await server.restart()


async def _lease(bench: Bench, rows: int, console: Console) -> list[str]:
    """How long it takes to lease messages in a small and in a large table."""
    small = 100_000
    medians = []
    for size in (small, rows):
        await bench.ask("TRUNCATE notification")
        for first in range(0, size, ROWS_A_STATEMENT):
            # Most have ended, as after years; of the others most are due some day.
            await bench.ask(
                "INSERT INTO notification (id, outbox_id, kind, ahead, channel, user_id, appointment_id, version,"
                " due_at, expires_at, next_at, ended_at, outcome) SELECT uuidv7(), gen_random_uuid(),"
                " 'reminder', 'P1D', 'email', gen_random_uuid(), gen_random_uuid(), 1, at, at + interval '1 day', at,"
                " CASE WHEN number %% 10 < 9 THEN at END, CASE WHEN number %% 10 < 9 THEN 'sent' END"
                " FROM (SELECT number, now() + (number - %s) * interval '1 second' AS at"
                " FROM generate_series(%s::bigint, %s::bigint) AS number) AS made",
                size // 2,
                first,
                min(first + ROWS_A_STATEMENT, size) - 1,
            )
        await bench.ask("VACUUM (ANALYZE) notification")
        medians.append(await _time_leases(bench, console, plan=size == rows))
    console.print(f"leasing {LEASE_LIMIT}: {medians[0]:.1f} ms of {small:,} rows, {medians[1]:.1f} ms of {rows:,}")
    if medians[1] > LEASE_RATIO_MAX * medians[0]:
        return [f"leasing takes {medians[1] / medians[0]:.1f} times as long in a large table"]
    return []


async def _time_leases(bench: Bench, console: Console, *, plan: bool) -> float:
    from persistence.repositories.notifications import LEASE

    statement = str(LEASE).replace(":channel", "'email'").replace(":now", "now()")
    statement = statement.replace(":until", "now() + interval '1 hour'").replace(":limit", str(LEASE_LIMIT))
    took = []
    async with await psycopg.AsyncConnection.connect(bench.url, autocommit=True) as connection:
        if plan:
            cursor = await connection.execute(b"EXPLAIN (COSTS OFF) " + statement.encode())
            console.print("\n".join(row[0] for row in await cursor.fetchall()))
        for _ in range(LEASES):
            began = time.perf_counter()
            await connection.execute(statement.encode())
            took.append(1000 * (time.perf_counter() - began))
    return statistics.median(took)


def _notifier_processes(servers: Servers) -> list[psutil.Process]:
    found = []
    for process in left_over(servers.data.path, servers.ray.name):
        with suppress(psutil.NoSuchProcess, IndexError):
            if process.cmdline()[0].startswith("ray::RayNotifier"):
                found.append(process)
    return found


if __name__ == "__main__":
    raise SystemExit(main())
