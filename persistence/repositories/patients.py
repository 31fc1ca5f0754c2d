"""Patients, who is a person visited, not one who signs in; and which users may book for them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime

from sqlalchemy import Row, Select, exists, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from persistence.identifiers import lock_key
from persistence.sealed import DataKey, Vault, patient_owner, place
from persistence.tables import appointment, patient, user_patient

SELF = "self"
"""The relation of a user to the patient that is this user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """A patient, opened."""

    id: str
    name: str = field(repr=False)
    birth_date: date = field(repr=False)
    phone: str | None = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnPatient:
    """A patient that a user may book for, and what they are to each other."""

    patient: Patient
    relation: str


class Patients:
    """Reads and writes patients; what is personal is sealed on the way in and opened on the way out."""

    def __init__(self, connection: AsyncConnection, vault: Vault) -> None:
        self._connection = connection
        self._vault = vault

    async def add(self, new: Patient, *, now: datetime) -> bytes:
        """Keep a new patient; gives its wrapped data key."""
        wrapped_key = self._vault.new_data_key(patient_owner(new.id))
        await self._connection.execute(
            insert(patient).values(
                id=new.id, data_key=wrapped_key, created_at=now, **self._personal(new, self._key(new.id, wrapped_key))
            )
        )
        return wrapped_key

    async def link(self, user_id: str, patient_id: str, relation: str) -> None:
        """Let a user book for a patient."""
        await self._connection.execute(
            insert(user_patient).values(user_id=user_id, patient_id=patient_id, relation=relation)
        )

    async def change(self, changed: Patient) -> None:
        """Write name, birth date and phone of a patient; one who was erased stays so."""
        wrapped_key = await self._connection.scalar(
            select(patient.c.data_key).where(patient.c.id == changed.id).with_for_update()
        )
        if wrapped_key is not None:
            await self._connection.execute(
                update(patient)
                .where(patient.c.id == changed.id)
                .values(**self._personal(changed, self._key(changed.id, wrapped_key)))
            )

    async def get(self, patient_id: str) -> Patient | None:
        """The patient of that id, unless it was erased."""
        return (await self.get_many([patient_id])).get(patient_id)

    async def get_many(self, patient_ids: Iterable[str]) -> dict[str, Patient]:
        """Patients by their ids; those who were erased or never were are left out."""
        rows = await self._connection.execute(
            select(patient).where(patient.c.id.in_(sorted(set(patient_ids))), patient.c.data_key.is_not(None))
        )
        return {row.id: self._opened(row) for row in rows}

    async def wrapped_keys(self, patient_ids: Iterable[str]) -> dict[str, bytes | None]:
        """The wrapped data keys of patients by their ids; ``None`` for one who was erased."""
        rows = await self._connection.execute(
            select(patient.c.id, patient.c.data_key).where(patient.c.id.in_(sorted(set(patient_ids))))
        )
        return {row.id: row.data_key for row in rows}

    async def of_user(self, user_id: str) -> list[OwnPatient]:
        """Those whom a user may book for, in the order in which they were added; erased ones are left out."""
        rows = await self._connection.execute(
            select(patient, user_patient.c.relation)
            .join(user_patient, user_patient.c.patient_id == patient.c.id)
            .where(user_patient.c.user_id == user_id, patient.c.data_key.is_not(None))
            .order_by(patient.c.created_at, patient.c.id)
        )
        return [OwnPatient(patient=self._opened(row), relation=row.relation) for row in rows]

    async def only_of(self, user_id: str) -> list[str]:
        """Those whom nobody but this user may book for."""
        other = user_patient.alias()
        rows = await self._connection.scalars(
            select(user_patient.c.patient_id).where(
                user_patient.c.user_id == user_id,
                ~exists().where(other.c.patient_id == user_patient.c.patient_id, other.c.user_id != user_id),
            )
        )
        return list(rows)

    async def search(self, words: SearchWords, *, after: str | None, limit: int) -> list[Patient]:
        """Patients that all the words are known of, by id."""
        statement: Select[tuple[object, ...]] = select(patient).where(
            patient.c.search.contains(self._indexes(words)), patient.c.data_key.is_not(None)
        )
        if after is not None:
            statement = statement.where(patient.c.id > after)
        rows = await self._connection.execute(statement.order_by(patient.c.id).limit(limit))
        return [self._opened(row) for row in rows]

    async def lock(self, patient_ids: Iterable[str]) -> None:
        """Keep every calendar from writing a visit of these patients until this transaction ends.

        The locks are those that the journal takes, in its order.
        """
        for key in sorted(lock_key(patient_id) for patient_id in patient_ids):
            await self._connection.execute(select(func.pg_advisory_xact_lock(key)))

    async def live_appointments(self, patient_ids: Sequence[str], *, now: datetime) -> int:
        """How many visits these patients still have before them."""
        count = await self._connection.scalar(
            select(func.count()).where(
                appointment.c.patient_id.in_(patient_ids), appointment.c.live, appointment.c.ends_at > now
            )
        )
        return count or 0

    async def erase(self, patient_ids: Sequence[str]) -> None:
        """Destroy the data keys of patients and everything that could tell who they were."""
        await self._connection.execute(
            update(patient).where(patient.c.id.in_(patient_ids)).values(data_key=None, sealed=None, search=[])
        )

    def _key(self, patient_id: str, wrapped_key: bytes) -> DataKey:
        return self._vault.data_key(patient_owner(patient_id), wrapped_key)

    def _opened(self, row: Row[tuple[object, ...]]) -> Patient:
        personal = self._key(row.id, row.data_key).unseal_json(row.sealed, place("patient", row.id, "sealed"))
        return Patient(
            id=row.id,
            name=personal["name"],
            birth_date=date.fromisoformat(personal["birth_date"]),
            phone=personal["phone"],
        )

    def _personal(self, known: Patient, key: DataKey) -> Mapping[str, object]:
        sealed = key.seal_json(
            {"name": known.name, "birth_date": known.birth_date.isoformat(), "phone": known.phone},
            place("patient", known.id, "sealed"),
        )
        words = SearchWords(
            names=name_words(known.name), birth_dates=(known.birth_date,), phones=(known.phone,) if known.phone else ()
        )
        return {"sealed": sealed, "search": self._indexes(words)}

    def _indexes(self, words: SearchWords) -> list[bytes]:
        return [
            *(self._vault.index("patient-name", word) for word in words.names),
            *(self._vault.index("patient-birth-date", day.isoformat()) for day in words.birth_dates),
            *(self._vault.index("patient-phone", number) for number in words.phones),
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchWords:
    """What patients are found by: whole words of the name, birth dates, phone numbers in E.164."""

    names: tuple[str, ...] = field(default=(), repr=False)
    birth_dates: tuple[date, ...] = field(default=(), repr=False)
    phones: tuple[str, ...] = field(default=(), repr=False)

    def __bool__(self) -> bool:
        return bool(self.names or self.birth_dates or self.phones)


def name_words(name: str) -> tuple[str, ...]:
    """The words of a name as they are compared: without case, accents and punctuation, each once."""
    decomposed = unicodedata.normalize("NFKD", name.casefold())
    plain = "".join(
        " " if not character.isalnum() else character
        for character in decomposed
        if not unicodedata.combining(character)
    )
    return tuple(dict.fromkeys(unicodedata.normalize("NFKC", plain).split()))
