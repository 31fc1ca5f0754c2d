from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta

import psycopg
import pytest

from actors.messages import Role
from api.accounts.service import create_user
from cluster.embedded import EmbeddedPostgres
from persistence.database import open_database
from persistence.identifiers import new_id
from persistence.lookups import Lookups
from persistence.repositories.patients import Patient
from persistence.sealed import Vault
from persistence.unit_of_work import DatabaseUnavailable, UnitOfWork

NOW = datetime.now(UTC)


@pytest.fixture
async def lookups(database_url: str) -> AsyncIterator[Lookups]:
    lookups = Lookups(database_url)
    yield lookups
    await lookups.close()


async def add_slots(database_url: str, count: int) -> dict[str, str]:
    """So many slots of as many doctors; gives their doctors."""
    owners = {new_id(): new_id() for _ in range(count)}
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        for slot_id, doctor_id in owners.items():
            await connection.execute(
                "INSERT INTO slot (id, doctor_id, location_id, starts_at, ends_at, status)"
                " VALUES (%s, %s, %s, %s, %s, 'free')",
                (slot_id, doctor_id, new_id(), NOW, NOW + timedelta(hours=1)),
            )
    return owners


async def test_whose_slots_they_are(database_url: str, lookups: Lookups) -> None:
    owners = await add_slots(database_url, 5)
    some = dict(list(owners.items())[:3])
    assert await lookups.slot_owners([*some, new_id()]) == some
    assert await lookups.slot_owners([]) == {}


async def test_what_users_may(database_url: str, lookups: Lookups) -> None:
    vault = Vault(bytes(32))
    database = open_database(database_url, pool_max=1)
    child = Patient(id=new_id(), name="Mia", birth_date=date(2020, 1, 1), phone=None)
    async with UnitOfWork(database, vault) as work:
        mother = await create_user(work, login="mother", password_hash="!", name="Anna", birth_date=date(1990, 4, 12))
        child_key = await work.patients.add(child, now=NOW)
        await work.patients.link(mother.id, child.id, "child")
        doctor = await create_user(
            work, login="doctor", password_hash="!", name="Boris", role=Role.DOCTOR, doctor_id=new_id()
        )
        gone = await create_user(work, login="gone", password_hash="!", name="Clara")
        await work.users.erase(gone.id, now=NOW)
    async with UnitOfWork(database, vault) as work:
        await work.users.set_disabled(doctor.id, NOW)
        await work.users.end_sessions(doctor.id)
    await database.dispose()

    found = {access.user_id: access for access in await lookups.access([mother.id, doctor.id, gone.id, new_id()])}

    assert found.keys() == {mother.id, doctor.id}
    mothers, doctors = found[mother.id], found[doctor.id]
    assert (mothers.role, mothers.patient_id, mothers.doctor_id) == (Role.PATIENT, mother.patient_id, None)
    assert (mothers.disabled, mothers.session_generation) == (False, 0)
    assert mothers.wrapped_key == mother.wrapped_key
    assert mothers.patient_keys.keys() == {mother.patient_id, child.id}
    assert mothers.patient_keys[child.id] == child_key
    assert (doctors.role, doctors.doctor_id, doctors.patient_keys) == (Role.DOCTOR, doctor.doctor_id, {})
    assert (doctors.disabled, doctors.session_generation) == (True, 1)


async def test_a_lost_connection_is_made_anew(postgres: EmbeddedPostgres, database_url: str, lookups: Lookups) -> None:
    owners = await add_slots(database_url, 1)
    assert await lookups.slot_owners(owners) == owners
    async with await psycopg.AsyncConnection.connect(postgres.superuser_url, autocommit=True) as connection:
        ended = await connection.execute(
            "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity"
            " WHERE application_name = 'zapis-lookups' AND datname = %s",
            (database_url.rpartition("/")[2],),
        )
        assert await ended.fetchone() == (1,)
    assert await lookups.slot_owners(owners) == owners


async def test_a_caller_that_goes_away_leaves_no_half_answer(database_url: str, lookups: Lookups) -> None:
    owners = await add_slots(database_url, 1)
    asking = [asyncio.create_task(lookups.slot_owners(owners)) for _ in range(5)]
    await asyncio.sleep(0)
    for task in asking[:3]:
        task.cancel()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert answers[3:] == [owners, owners]
    assert await lookups.slot_owners(owners) == owners


async def test_a_database_that_is_away_is_said_to_be(database_url: str) -> None:
    lookups = Lookups(f"{database_url.rpartition('/')[0]}/nowhere")
    with pytest.raises(DatabaseUnavailable):
        await lookups.slot_owners([new_id()])
    with pytest.raises(DatabaseUnavailable):
        await lookups.access([new_id()])
