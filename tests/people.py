"""Users who are simply there, with a token each: hundreds of them, without hashing hundreds of passwords."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date
from functools import partial

from actors.messages import Role
from api.accounts.service import create_user
from api.accounts.tokens import AccessTokens
from cluster.settings import Settings
from persistence.database import open_database
from persistence.identifiers import new_id
from persistence.repositories.directory import Directory, Doctor
from persistence.sealed import Vault
from persistence.unit_of_work import UnitOfWork

NO_PASSWORD = "!"
"""A hash that no password has."""
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """A user who is signed in."""

    user_id: str
    patient_id: str = ""
    """Of themselves; staff have none."""
    doctor_id: str = ""
    name: str
    headers: dict[str, str]
    """Those of whoever has signed in."""


class People:
    """Makes them, in the database that ``unit_of_work`` opens; ``tokens`` signs with its keys."""

    def __init__(self, unit_of_work: Callable[[], UnitOfWork], tokens: AccessTokens) -> None:
        self._unit_of_work = unit_of_work
        self._tokens = tokens

    async def patient(self, name: str = "Anna Petrova", birth_date: date = date(1990, 4, 12)) -> Person:
        """A patient."""
        return (await self.patients(1, name, birth_date))[0]

    async def patients(
        self, count: int, name: str = "Anna Petrova", birth_date: date = date(1990, 4, 12), *, with_mail: bool = False
    ) -> list[Person]:
        """So many patients, perhaps with e-mail addresses that are known to be theirs."""
        logins = [_login("patient") for _ in range(count)]
        async with self._unit_of_work() as work:
            users = [
                await create_user(
                    work,
                    login=login,
                    password_hash=NO_PASSWORD,
                    name=name,
                    email=f"{login}@mail.example" if with_mail else "",
                    phone="" if with_mail else "+4930901820",
                    birth_date=birth_date,
                    verified=with_mail,
                )
                for login in logins
            ]
        return [await self._person(user.id, name, patient_id=user.patient_id or "") for user in users]

    async def admin(self) -> Person:
        """An administrator."""
        async with self._unit_of_work() as work:
            user = await create_user(
                work, login=_login("admin"), password_hash=NO_PASSWORD, name="Chief", role=Role.ADMIN
            )
        return await self._person(user.id, "Chief")

    async def doctor(self, *location_ids: str, name: str = "Gregory House") -> Person:
        """A doctor, whose calendar is empty."""
        doctor_id, user_id = new_id(), new_id()
        async with self._unit_of_work() as work:
            user = await create_user(
                work,
                user_id=user_id,
                doctor_id=doctor_id,
                login=_login("doctor"),
                password_hash=NO_PASSWORD,
                name=name,
                role=Role.DOCTOR,
            )
            entry = Doctor(
                id=doctor_id,
                user_id=user_id,
                name=name,
                specialties=("cardiology",),
                location_ids=location_ids,
                service_ids=(),
            )
            await Directory(work.connection, work.vault).add_doctor(entry, wrapped_key=user.wrapped_key)
        return await self._person(user_id, name, doctor_id=doctor_id)

    async def _person(self, user_id: str, name: str, *, patient_id: str = "", doctor_id: str = "") -> Person:
        token = await self._tokens.sign(user_id=user_id, session_id=new_id(), session_generation=0)
        return Person(
            user_id=user_id,
            patient_id=patient_id,
            doctor_id=doctor_id,
            name=name,
            headers={"Authorization": f"Bearer {token}"},
        )


@asynccontextmanager
async def open_people(settings: Settings) -> AsyncIterator[People]:
    """People for a server in another process, over the same settings."""
    assert settings.database_url is not None
    database = open_database(settings.database_url, pool_max=2)
    try:
        unit_of_work = partial(UnitOfWork, database, Vault(settings.master_key_bytes()))
        tokens = AccessTokens(
            issuer=settings.token_issuer,
            audience=settings.token_audience,
            ttl_s=settings.access_token_ttl_s,
            unit_of_work=unit_of_work,
        )
        await tokens.open()
        yield People(unit_of_work, tokens)
    finally:
        await database.dispose()


def _login(kind: str) -> str:
    return f"{kind}{next(_numbers)}"
