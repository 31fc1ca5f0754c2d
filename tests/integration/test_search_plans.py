"""How PostgreSQL goes about the queries of searches in a clinic of ten thousand doctors and sixty days: by index."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from persistence.change_log import ChangeLog
from persistence.database import open_database
from persistence.lookups import CHANGED, Lookups
from persistence.repositories import slots as repository
from persistence.repositories.directory import Directory, DoctorSearch
from persistence.repositories.slots import Slots, SlotSearch, SlotStatus, Window
from persistence.sealed import Vault
from persistence.unit_of_work import UnitOfWork

DOCTORS = 10_000
DAYS = 60
SLOTS_A_DAY = 2
LOCATIONS = 50
SPECIALTIES = 25
FIRST_FEW = 500
# Ids that can be told from their numbers: the doctor 7 is 00000000-0000-7000-8000-000000000007.
FILL = """
CREATE FUNCTION pg_temp.numbered(kind int, number bigint) RETURNS uuid IMMUTABLE LANGUAGE sql
    AS $$ SELECT (lpad(to_hex(kind), 8, '0') || '-0000-7000-8000-' || lpad(to_hex(number), 12, '0'))::uuid $$;
INSERT INTO app_user (id, login_index, password_hash, role, data_key)
    SELECT pg_temp.numbered(1, n), int8send(n), '!', 'doctor', int8send(n) FROM generate_series(0, {doctors} - 1) AS n;
INSERT INTO doctor (id, user_id, sealed, search, specialties, location_ids, service_ids)
    SELECT pg_temp.numbered(0, n), pg_temp.numbered(1, n), '', ARRAY[int8send(n)],
        ARRAY['specialty ' || n % {specialties}], ARRAY[pg_temp.numbered(2, n % {locations})],
        CASE WHEN n % 1000 = 0 THEN ARRAY[pg_temp.numbered(3, 0)] ELSE ARRAY[pg_temp.numbered(3, 1 + n % 3)] END
    FROM generate_series(0, {doctors} - 1) AS n;
INSERT INTO calendar (doctor_id, epoch, sequence, changed_in)
    SELECT pg_temp.numbered(0, n), 1, 2, pg_current_xact_id() FROM generate_series(0, {doctors} - 1) AS n;
INSERT INTO slot (id, doctor_id, location_id, starts_at, ends_at, status)
    SELECT pg_temp.numbered(4, day * 1000000 + place * 100000 + n), pg_temp.numbered(0, n),
        pg_temp.numbered(2, n % {locations}), start, start + interval '30 minutes',
        CASE (n + day) % 3 WHEN 0 THEN 'booked' ELSE 'free' END
    FROM generate_series(1, {days}) AS day, generate_series(0, {slots_a_day} - 1) AS place,
        generate_series(0, {doctors} - 1) AS n,
        LATERAL (SELECT date_trunc('day', now()) + day * interval '1 day' + (8 + place) * interval '1 hour')
            AS at (start);
INSERT INTO hold (id, doctor_id, slot_id, user_id, expires_at)
    SELECT pg_temp.numbered(5, n), pg_temp.numbered(0, n), pg_temp.numbered(4, n), pg_temp.numbered(1, n),
        now() + interval '5 minutes' FROM generate_series(0, {doctors} - 1) AS n;
INSERT INTO event (doctor_id, sequence, epoch, at, kind, payload, command_id, effect)
    SELECT pg_temp.numbered(0, n), number, 1, now(), 'SlotsPublished', '{{}}', pg_temp.numbered(6, n),
        jsonb_build_object('slots', jsonb_build_array(jsonb_build_array(pg_temp.numbered(4, 1000000 + n), 'free')),
            'appointments', '[]'::jsonb)
    FROM generate_series(0, {doctors} - 1) AS n, generate_series(1, 2) AS number;
"""

Ask = Callable[[UnitOfWork], Awaitable[object]]


def numbered(kind: int, number: int) -> str:
    return f"{kind:08x}-0000-7000-8000-{number:012x}"


@dataclass(slots=True)
class Clinic:
    """A clinic of that size, and what was asked of its database."""

    database: AsyncEngine
    lookups: Lookups
    asked: list[tuple[str, Any]] = field(default_factory=list)

    def begin(self) -> UnitOfWork:
        """A transaction."""
        return UnitOfWork(self.database, Vault(bytes(32)))


@pytest.fixture(scope="module")
def large_database_url(new_database: Callable[[], AbstractContextManager[str]]) -> Iterator[str]:
    with new_database() as url:
        with psycopg.connect(url, autocommit=True) as connection:
            indexes = connection.execute(
                "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'slot' AND indexname LIKE 'ix_%'"
            ).fetchall()
            for name, _ in indexes:
                connection.execute(f"DROP INDEX {name}".encode())  # Made faster at the end than row by row.
            fill = FILL.format(
                doctors=DOCTORS, days=DAYS, slots_a_day=SLOTS_A_DAY, locations=LOCATIONS, specialties=SPECIALTIES
            )
            connection.execute(fill.encode())
            for _, definition in indexes:
                connection.execute(definition.encode())
            connection.execute("VACUUM ANALYZE")
        yield url


@pytest.fixture
async def clinic(large_database_url: str) -> AsyncIterator[Clinic]:
    clinic = Clinic(open_database(large_database_url, pool_max=2), Lookups(large_database_url))

    @event.listens_for(clinic.database.sync_engine, "before_cursor_execute")
    def note(_: object, __: object, statement: str, parameters: Any, *___: object) -> None:
        clinic.asked.append((statement, parameters))

    yield clinic
    await clinic.lookups.close()
    await clinic.database.dispose()


def search(**conditions: Any) -> Ask:
    async def ask(work: UnitOfWork) -> object:
        now = datetime.now(UTC)
        window = Window(start=now, end=now + timedelta(days=15), location_ids=())
        wanted = replace(SlotSearch(windows=(window,), now=now, limit=51), **conditions)
        slots = Slots(work.connection)
        found = await slots.search(wanted)
        assert len(found) == wanted.limit
        return await slots.search(replace(wanted, after=(found[-1].start, found[-1].id)))

    return ask


async def next_free(work: UnitOfWork) -> object:
    now = datetime.now(UTC)
    doctor_ids = [numbered(0, number) for number in range(0, 5000, 100)]
    until = now + timedelta(days=62)
    found = await Slots(work.connection).next_free(doctor_ids, now=now, until=until, location_id=None)
    there = await Slots(work.connection).next_free(doctor_ids, now=now, until=until, location_id=numbered(2, 0))
    return found and there


def doctors(**conditions: Any) -> Ask:
    async def ask(work: UnitOfWork) -> object:
        directory = Directory(work.connection, work.vault)
        await directory.doctors(DoctorSearch(**conditions), after=None, limit=51)
        await directory.doctors(DoctorSearch(**conditions), after=numbered(0, 5000), limit=51)
        return True

    return ask


async def calendar(work: UnitOfWork) -> object:
    return await Slots(work.connection).calendar(numbered(0, 7), datetime.now(UTC))


def of_change_log(ask: Callable[[ChangeLog], Awaitable[object]]) -> Callable[[Clinic], Awaitable[object]]:
    return lambda clinic: ask(ChangeLog(clinic.begin, clinic.lookups))


QUERIES: dict[str, Ask] = {
    "slots of everybody": search(),
    "slots of a doctor": search(doctor_id=numbered(0, 7), limit=10),
    "slots of a doctor, all": search(doctor_id=numbered(0, 7), statuses=frozenset(SlotStatus), limit=10),
    "slots at a location": search(location_id=numbered(2, 7)),
    "slots of a specialty": search(specialty="specialty 3"),
    "first free of a specialty at a location": search(specialty="specialty 3", location_id=numbered(2, 3), limit=1),
    "slots for a service of few": search(service_id=numbered(3, 0)),
    "slots for a service of many": search(service_id=numbered(3, 1)),
    "slots of a doctor for a service": search(doctor_id=numbered(0, 0), service_id=numbered(3, 0), limit=10),
    "first free slots of doctors": next_free,
    "doctors": doctors(),
    "doctors of a specialty": doctors(specialty="specialty 3"),
    "doctors at a location": doctors(location_id=numbered(2, 7)),
    "doctors by name": doctors(beginnings=("ann",)),
    "how far a calendar is": calendar,
}
FOLLOWING: dict[str, Callable[[Clinic], Awaitable[object]]] = {
    "a calendar": of_change_log(
        lambda log: log.snapshot(
            numbered(0, 7), datetime.now(UTC), datetime.now(UTC) + timedelta(days=15), datetime.now(UTC)
        )
    ),
    "what came after": of_change_log(lambda log: log.after(numbered(0, 7), 0)),
    "whether that can be told": of_change_log(lambda log: log.reaches(numbered(0, 7), 1)),
}


@pytest.mark.parametrize("few_doctors_max", [repository.FEW_DOCTORS_MAX, 1_000_000])
async def test_searches_go_by_index(clinic: Clinic, few_doctors_max: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many doctors are asked one by one."""
    monkeypatch.setattr(repository, "FEW_DOCTORS_MAX", few_doctors_max)
    monkeypatch.setattr(Directory, "_doctor", lambda _, row: row.id)  # Their names have not been sealed.
    for name, ask in QUERIES.items():
        async with clinic.begin() as work:
            assert await ask(work), name
        await explain(clinic, name)


async def test_those_who_follow_calendars_go_by_index(clinic: Clinic) -> None:
    for name, ask in FOLLOWING.items():
        assert await ask(clinic), name
        await explain(clinic, name)
    log = ChangeLog(clinic.begin, clinic.lookups)
    mark = (await log.reached()).mark
    clinic.asked[:] = [(CHANGED.replace("%s", "%(mark)s"), {"mark": mark})]
    await explain(clinic, "which calendars have changed since")


async def test_a_sequential_scan_is_found(clinic: Clinic) -> None:
    async with clinic.begin() as work:
        await work.connection.exec_driver_sql("SELECT * FROM slot WHERE status = %(status)s", {"status": "held"})
    with pytest.raises(AssertionError, match="Seq Scan on slot"):
        await explain(clinic, "a bad one")


async def explain(clinic: Clinic, name: str) -> None:
    """Fail if anything that was asked scans a table; the first few rows of one, where many of them match, are none."""
    asked = [(each, values) for each, values in clinic.asked if each.strip().startswith(("SELECT", "WITH"))]
    assert asked, f"{name} asked nothing"
    async with clinic.database.connect() as connection:
        for statement, values in asked:
            explained = await connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", values)
            plan = explained.scalar_one()
            for node in nodes(plan[0]["Plan"]):
                if node["Node Type"] == "Seq Scan":
                    read = node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
                    assert read < FIRST_FEW, (
                        f"{name}: Seq Scan on {node['Relation Name']}\n{statement}\n{json.dumps(plan, indent=1)}"
                    )
    clinic.asked.clear()


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All nodes of a plan."""
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)
