"""What a measurement finds in its database: doctors with slots, and patients with access tokens.

Doctors and slots are copied into their tables; accounts, patients and tokens are made by the project's own functions.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial

import psycopg
from psycopg import sql

from actors.messages import Role
from api.accounts.service import create_user
from api.accounts.tokens import AccessTokens
from cluster.settings import Settings
from persistence.database import libpq_url, open_database
from persistence.identifiers import new_id
from persistence.repositories.directory import Directory, Doctor, Location
from persistence.sealed import Vault
from persistence.unit_of_work import UnitOfWork

NO_PASSWORD = "!"
"""Nobody signs in with a password here."""
SPECIALTIES = ("cardiology", "dermatology", "family medicine", "neurology", "paediatrics")
TRANSACTION_MAX = 500
"""Accounts made in one transaction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clinic:
    """The doctors of a fixture and where they work."""

    location_id: str
    doctor_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A patient who can call."""

    user_id: str
    patient_id: str
    token: str


async def add_clinic(settings: Settings, doctors: int, *, first: int = 0) -> Clinic:
    """A location and so many doctors, numbered from ``first`` on, with empty calendars; specialties in turn."""
    location = Location(id=new_id(), name="Central clinic", address="1 Main Street", timezone="UTC")
    database = open_database(str(settings.database_url), pool_max=1)
    vault = Vault(settings.master_key_bytes())
    ids = []
    try:
        async with UnitOfWork(database, vault) as work:
            await Directory(work.connection, vault).add_location(location)
        for start in range(first, first + doctors, TRANSACTION_MAX):
            async with UnitOfWork(database, vault) as work:
                directory = Directory(work.connection, vault)
                for number in range(start, min(start + TRANSACTION_MAX, first + doctors)):
                    doctor = Doctor(
                        id=new_id(),
                        user_id=new_id(),
                        name=f"Doctor {number}",
                        specialties=(SPECIALTIES[number % len(SPECIALTIES)],),
                        location_ids=(location.id,),
                        service_ids=(),
                    )
                    user = await create_user(
                        work,
                        user_id=doctor.user_id,
                        doctor_id=doctor.id,
                        role=Role.DOCTOR,
                        login=f"doctor{number}",
                        password_hash=NO_PASSWORD,
                        name=doctor.name,
                    )
                    await directory.add_doctor(doctor, wrapped_key=user.wrapped_key)
                    ids.append(doctor.id)
    finally:
        await database.dispose()
    return Clinic(location_id=location.id, doctor_ids=tuple(ids))


async def add_accounts(settings: Settings, count: int) -> list[Account]:
    """So many patients, each with an account and an access token."""
    database = open_database(str(settings.database_url), pool_max=2)
    vault = Vault(settings.master_key_bytes())
    tokens = AccessTokens(
        issuer=settings.token_issuer,
        audience=settings.token_audience,
        ttl_s=settings.access_token_ttl_s,
        unit_of_work=partial(UnitOfWork, database, vault),
    )
    accounts = []
    try:
        await tokens.open()
        for first in range(0, count, TRANSACTION_MAX):
            async with UnitOfWork(database, vault) as work:
                for number in range(first, min(first + TRANSACTION_MAX, count)):
                    user = await create_user(
                        work,
                        login=f"patient{number}",
                        password_hash=NO_PASSWORD,
                        name=f"Patient {number}",
                        email=f"patient{number}@mail.example",
                        birth_date=date(1990, 4, 12),
                        verified=True,
                    )
                    assert user.patient_id is not None
                    token = await tokens.sign(user_id=user.id, session_id=new_id(), session_generation=0)
                    accounts.append(Account(user_id=user.id, patient_id=user.patient_id, token=token))
    finally:
        await database.dispose()
    return accounts


def slot_starts(days: int, a_day: int, minutes: int, *, after_days: int = 0) -> list[datetime]:
    """The starts of the slots of a calendar: so many a day from 08:00 on, from tomorrow or so many days later on."""
    first = datetime.now(UTC).replace(hour=8, minute=0, second=0, microsecond=0) + timedelta(days=1 + after_days)
    return [first + timedelta(days=day, minutes=number * minutes) for day in range(days) for number in range(a_day)]


async def copy_slots(
    settings: Settings, clinic: Clinic, starts: Sequence[datetime], minutes: int, *, drop_indexes: bool = False
) -> list[list[str]]:
    """Free slots for every doctor at each of the starts; returns their ids, by start, then by doctor.

    ``drop_indexes`` drops the indexes of the table meanwhile: worth it for millions of rows.
    """
    length = timedelta(minutes=minutes)
    ids: list[list[str]] = [[] for _ in starts]
    async with await psycopg.AsyncConnection.connect(libpq_url(str(settings.database_url))) as connection:
        indexes = []
        if drop_indexes:
            cursor = await connection.execute(
                "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'slot' AND indexname <> 'pk_slot'"
            )
            indexes = await cursor.fetchall()
            for name, _ in indexes:
                await connection.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(name)))
        command = "COPY slot (id, doctor_id, location_id, starts_at, ends_at, status) FROM STDIN"
        async with connection.cursor().copy(command) as copy:
            for lines in _slot_lines(clinic, starts, length, ids):
                await copy.write(lines)
        await connection.execute("SET maintenance_work_mem = '256MB'")
        for _, definition in indexes:
            await connection.execute(definition)
        await connection.commit()
        await connection.set_autocommit(True)
        await connection.execute("VACUUM (ANALYZE) slot")
    return ids


def _slot_lines(clinic: Clinic, starts: Sequence[datetime], length: timedelta, ids: list[list[str]]) -> Iterator[str]:
    """The slots doctor by doctor, as a clinic publishes them, in COPY's text form; ``ids`` is filled."""
    intervals = [
        f"{clinic.location_id}\t{start.isoformat()}\t{(start + length).isoformat()}\tfree\n" for start in starts
    ]
    for doctor_id in clinic.doctor_ids:
        lines = []
        # Ids as new_id makes them, a calendar's at once: there are millions.
        noise = os.urandom(8 * len(intervals)).hex()
        time = f"{new_id()[:14]}7"
        for number, interval in enumerate(intervals):
            part = noise[16 * number : 16 * number + 16]
            slot_id = f"{time}{number & 0xFFF:03x}-8{part[:3]}-{part[3:15]}"
            ids[number].append(slot_id)
            lines.append(f"{slot_id}\t{doctor_id}\t{interval}")
        yield "".join(lines)


def booking_request(url: str, path: str, account: Account, slot_id: str) -> bytes:
    """A whole HTTP request that books the slot, under an Idempotency-Key of its own."""
    body = f'{{"slot_id":"{slot_id}"}}'
    return (
        f"POST {path} HTTP/1.1\r\n"
        f"Host: {url.removeprefix('http://')}\r\n"
        f"Authorization: Bearer {account.token}\r\n"
        "Content-Type: application/json\r\n"
        f"Idempotency-Key: {new_id()}\r\n"
        f"Content-Length: {len(body)}\r\n"
        f"\r\n{body}"
    ).encode()
