"""That size costs nothing: `python -m loadtests.scale`, or `make scale`. Takes some five minutes.

Two databases side by side: one of 10 doctors and one of 10,000, each with 16 slots a day for 60 days (9.6 million rows,
loaded by COPY). The same server is started on each in turn. Compared are its start, the first booking of a calendar
(which brings it into memory), bookings of calendars that are in memory, and searches whose answers nobody knows yet.
Then the memory that a calendar takes while it is active: with no slot, a third or all of them booked. Exit code 1: a
limit of those below was passed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import statistics
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import httpx
import psycopg
from rich.console import Console
from rich.table import Table

from cluster.settings import Settings
from loadtests.fixture import (
    SPECIALTIES,
    Account,
    Clinic,
    add_accounts,
    add_clinic,
    booking_request,
    copy_slots,
    slot_starts,
)
from loadtests.generator import drive, generator_name
from loadtests.servers import Servers, WebServer, run, running_servers
from persistence.database import libpq_url
from persistence.identifiers import new_id
from persistence.journal import PostgresJournal

FEW_DOCTORS = 10
MANY_DOCTORS = 10_000
DAYS = 60
SLOTS_A_DAY = 16
SLOT_MINUTES = 30
PATIENTS = 997
"""Prime: a patient's visits are spread over all doctors."""
TIME_MAX_S = 15 * 60
STARTS = 3
SEARCHES = 200
CONNECTIONS = 16
BOOKED_DOCTORS = 10
BOOKINGS_OF_EACH = 900
BOOKING_S = 5
MEASURED_CALENDARS = 20
MEMORY_KB_MAX = 512
MONTH_P99_MS_MAX = 50.0
FIRST_FREE_P99_MS_MAX = 150.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A database with its fixture."""

    settings: Settings
    clinic: Clinic
    accounts: Sequence[Account]
    slot_ids: Sequence[Sequence[str]]
    """By start, then by doctor."""
    bytes: int


@dataclass(slots=True, kw_only=True)
class Figures:
    """What was measured on one database."""

    doctors: int
    slots: int
    gigabytes: float
    load_s: float
    start_s: float = 0.0
    first_booking_ms: float = 0.0
    bookings_a_second: float = 0.0
    booking_p50_ms: float = 0.0
    booking_p99_ms: float = 0.0
    month_p50_ms: float = 0.0
    month_p99_ms: float = 0.0
    specialty_p50_ms: float = 0.0
    specialty_p99_ms: float = 0.0
    first_free_p50_ms: float = 0.0
    first_free_p99_ms: float = 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--doctors", type=int, default=MANY_DOCTORS, help="doctors of the large clinic [%(default)s]")
    options = parser.parse_args(arguments)
    if not 100 * FEW_DOCTORS <= options.doctors <= 100_000:
        parser.error(f"--doctors is from {100 * FEW_DOCTORS} to 100000")
    return run(scale(options.doctors))


async def scale(many_doctors: int) -> int:
    """The whole measurement; returns the exit code."""
    async with asyncio.timeout(TIME_MAX_S), running_servers("scale") as servers:
        figures = []
        for name, doctors in (("few", FEW_DOCTORS), ("many", many_doctors)):
            began = time.monotonic()
            print(f"loading {doctors * DAYS * SLOTS_A_DAY:,} slots of {doctors:,} doctors", flush=True)
            loaded = await _load(servers, name, doctors)
            each = Figures(
                doctors=doctors,
                slots=doctors * DAYS * SLOTS_A_DAY,
                gigabytes=loaded.bytes / 1e9,
                load_s=time.monotonic() - began,
            )
            await _measure(servers, loaded, each)
            figures.append(each)
        memory = await _measure_memory(loaded)
    _print(figures, memory)
    slow = any(
        each.month_p99_ms > MONTH_P99_MS_MAX or each.first_free_p99_ms > FIRST_FREE_P99_MS_MAX for each in figures
    )
    return 0 if not slow and max(memory.values()) <= MEMORY_KB_MAX and memory["inactive"] < 1 else 1


async def _load(servers: Servers, name: str, doctors: int) -> Loaded:
    settings = servers.settings(await servers.create_database(name))
    clinic = await add_clinic(settings, doctors)
    accounts = await add_accounts(settings, PATIENTS)
    starts = slot_starts(DAYS, SLOTS_A_DAY, SLOT_MINUTES)
    slot_ids = await copy_slots(settings, clinic, starts, SLOT_MINUTES, drop_indexes=doctors > FEW_DOCTORS)
    await servers.checkpoint()
    async with await psycopg.AsyncConnection.connect(libpq_url(str(settings.database_url))) as connection:
        row = await (await connection.execute("SELECT pg_database_size(current_database())")).fetchone()
    assert row is not None
    return Loaded(settings=settings, clinic=clinic, accounts=accounts, slot_ids=slot_ids, bytes=row[0])


async def _measure(servers: Servers, loaded: Loaded, figures: Figures) -> None:
    starts = []
    for _ in range(STARTS - 1):
        async with servers.zapis(loaded.settings) as server:
            starts.append(server.ready_after_s)
    async with servers.zapis(loaded.settings) as server:
        starts.append(server.ready_after_s)
        figures.start_s = statistics.median(starts)
        # The same doctors everywhere in the list; a choice that every run repeats.
        order = list(range(len(loaded.clinic.doctor_ids)))
        random.Random(1).shuffle(order)
        await _measure_searches(server, loaded, order, figures)
        await _measure_bookings(server, loaded, order, figures)


async def _measure_searches(server: WebServer, loaded: Loaded, order: Sequence[int], figures: Figures) -> None:
    doctor_ids = [loaded.clinic.doctor_ids[number] for number in order]
    async with httpx.AsyncClient(base_url=server.url, timeout=30.0) as client:
        tomorrow = datetime.now(UTC).date() + timedelta(days=1)

        def days(number: int) -> dict[str, str]:
            """A month that nobody has asked for yet: it begins on another day when all doctors have had their turn."""
            first = tomorrow + timedelta(days=number // len(doctor_ids))
            return {"from": first.isoformat(), "to": (first + timedelta(days=30)).isoformat()}

        async def month(number: int) -> None:
            parameters = {"doctor_id": doctor_ids[number % len(doctor_ids)], "limit": "200"}
            await _search(client, parameters | days(number), at_least=200)

        async def of_specialty(number: int) -> None:
            # Another limit each time: another question.
            limit = 50 + number // len(SPECIALTIES)
            parameters = {"specialty": SPECIALTIES[number % len(SPECIALTIES)], "limit": str(limit)}
            await _search(client, parameters, at_least=limit)

        async def first_free(number: int) -> None:
            limit = 1 + number // len(SPECIALTIES)
            parameters = {"specialty": SPECIALTIES[number % len(SPECIALTIES)], "limit": str(limit)}
            await _search(client, parameters | {"location_id": loaded.clinic.location_id}, at_least=limit)

        figures.month_p50_ms, figures.month_p99_ms = await _latency(month)
        figures.specialty_p50_ms, figures.specialty_p99_ms = await _latency(of_specialty)
        figures.first_free_p50_ms, figures.first_free_p99_ms = await _latency(first_free)


async def _search(client: httpx.AsyncClient, parameters: dict[str, str], *, at_least: int) -> None:
    answer = await client.get("/v1/slots", params=parameters)
    answer.raise_for_status()
    assert len(answer.json()["items"]) >= at_least, "the page should be full"


async def _measure_bookings(server: WebServer, loaded: Loaded, order: Sequence[int], figures: Figures) -> None:
    """First one visit with each of some doctors, one after the other; then as many as can be, with the same doctors."""
    chosen = order[:BOOKED_DOCTORS]
    accounts = loaded.accounts
    slot_ids = [loaded.slot_ids[start][doctor] for start in range(1 + BOOKINGS_OF_EACH) for doctor in chosen]
    took = []
    async with httpx.AsyncClient(base_url=server.url, timeout=30.0) as client:
        for account, slot_id in zip(accounts, slot_ids[: len(chosen)], strict=False):
            headers = {"Authorization": f"Bearer {account.token}", "Idempotency-Key": new_id()}
            began = time.perf_counter()
            answer = await client.post("/v1/appointments", json={"slot_id": slot_id}, headers=headers)
            took.append(1000 * (time.perf_counter() - began))
            assert answer.status_code == 201, answer.text
    figures.first_booking_ms = statistics.median(took)
    requests = [
        booking_request(server.url, "/v1/appointments", accounts[number % len(accounts)], slot_id)
        for number, slot_id in enumerate(slot_ids[len(chosen) :])
    ]
    # The first request of a token costs its verification: those are not counted.
    warm_up = await drive(server.url, requests, connections=CONNECTIONS, seconds=2)
    requests = requests[warm_up.created + CONNECTIONS :]
    seconds = max(1, min(BOOKING_S, int(len(requests) / warm_up.rate / 2)))
    outcome = await drive(server.url, requests, connections=CONNECTIONS, seconds=seconds)
    wrong = outcome.refused + outcome.unavailable + outcome.others
    assert wrong == outcome.failed == 0, f"{wrong} answers were not 201, {outcome.failed} failed"
    figures.bookings_a_second = outcome.rate
    figures.booking_p50_ms, figures.booking_p99_ms = outcome.p50_ms, outcome.p99_ms


async def _latency(call: Callable[[int], Awaitable[None]]) -> tuple[float, float]:
    """Median and 99th percentile of calls one after the other, in milliseconds."""
    took = []
    for number in range(SEARCHES):
        began = time.perf_counter()
        await call(number)
        took.append(1000 * (time.perf_counter() - began))
    took.sort()
    return statistics.median(took), took[int(len(took) * 0.99) - 1]


async def _measure_memory(loaded: Loaded) -> dict[str, float]:
    """KB that a calendar takes: active with no slot, a third or all of them booked, and inactive."""
    first = len(loaded.clinic.doctor_ids) // 2
    free, third, full = (
        range(first + number * MEASURED_CALENDARS, first + (number + 1) * MEASURED_CALENDARS) for number in range(3)
    )
    await _book_slots(loaded, third, every=3)
    await _book_slots(loaded, full, every=1)
    journal = PostgresJournal(
        database_url=str(loaded.settings.database_url), live_appointments_max=0, holds_max=loaded.settings.holds_max
    )
    memory = {}
    try:
        for name, numbers in (("free", free), ("a third booked", third), ("fully booked", full)):
            first_id, *others = (loaded.clinic.doctor_ids[number] for number in numbers)
            await journal.load(first_id, datetime.now(UTC))  # What is made once is no part of it.
            gc.collect()
            tracemalloc.start()
            before, _ = tracemalloc.get_traced_memory()
            calendars = [await journal.load(doctor_id, datetime.now(UTC)) for doctor_id in others]
            gc.collect()
            memory[name] = (tracemalloc.get_traced_memory()[0] - before) / 1024 / len(calendars)
            assert all(len(calendar.slots) == DAYS * SLOTS_A_DAY for calendar in calendars)
            del calendars
            gc.collect()
            left = (tracemalloc.get_traced_memory()[0] - before) / 1024 / len(others)
            memory["inactive"] = max(memory.get("inactive", 0.0), left)
            tracemalloc.stop()
    finally:
        await journal.close()
    return memory


async def _book_slots(loaded: Loaded, numbers: Sequence[int], *, every: int) -> None:
    """A visit, each of another patient, in every n-th slot of these doctors."""
    command = """
        INSERT INTO appointment (id, doctor_id, patient_id, booked_by, slot_id, location_id, starts_at, ends_at, status,
            live, version, created_at, updated_at)
        SELECT gen_random_uuid(), doctor_id, gen_random_uuid(), gen_random_uuid(), id, location_id, starts_at, ends_at,
            'booked', true, 1, now(), now()
        FROM (SELECT *, row_number() OVER (PARTITION BY doctor_id ORDER BY starts_at) AS number FROM slot
            WHERE doctor_id = ANY(%s::uuid[])) AS numbered
        WHERE number %% %s = 0
    """
    doctor_ids = [loaded.clinic.doctor_ids[number] for number in numbers]
    async with await psycopg.AsyncConnection.connect(libpq_url(str(loaded.settings.database_url))) as connection:
        await connection.execute(command, (doctor_ids, every))


def _print(figures: Sequence[Figures], memory: dict[str, float]) -> None:
    few, many = figures
    table = Table(title=f"{os.cpu_count()} cores, load by {generator_name()}")
    for name in ("", *(f"{each.doctors:,} doctors" for each in figures), "times"):
        table.add_column(name, justify="left" if not name else "right")
    for label, name, form in (
        ("slots", "slots", ",.0f"),
        ("database, GB", "gigabytes", ",.2f"),
        ("loading, s", "load_s", ",.0f"),
        ("start to ready, s", "start_s", ".2f"),
        ("first booking of a calendar, ms", "first_booking_ms", ".1f"),
        (f"bookings a second, {CONNECTIONS} connections", "bookings_a_second", ",.0f"),
        ("booking, p50 ms", "booking_p50_ms", ".1f"),
        ("booking, p99 ms", "booking_p99_ms", ".1f"),
        ("a doctor's month, p50 ms", "month_p50_ms", ".1f"),
        (f"a doctor's month, p99 ms (at most {MONTH_P99_MS_MAX:.0f})", "month_p99_ms", ".1f"),
        ("50 slots of a specialty, p50 ms", "specialty_p50_ms", ".1f"),
        ("50 slots of a specialty, p99 ms", "specialty_p99_ms", ".1f"),
        ("first free of a specialty at a location, p50 ms", "first_free_p50_ms", ".1f"),
        (f"the same, p99 ms (at most {FIRST_FREE_P99_MS_MAX:.0f})", "first_free_p99_ms", ".1f"),
    ):
        values = [float(getattr(each, name)) for each in (few, many)]
        table.add_row(label, *(format(value, form) for value in values), f"{values[1] / values[0]:.2f}")
    console = Console(width=120)
    console.print(table)
    slots = DAYS * SLOTS_A_DAY
    console.print(
        f"Memory of a calendar of {slots} slots, KB: "
        + ", ".join(f"{name} {kilobytes:.0f}" for name, kilobytes in memory.items())
        + f". It may take {MEMORY_KB_MAX}, however much of it is booked, and inactive nothing."
    )


if __name__ == "__main__":
    raise SystemExit(main())
