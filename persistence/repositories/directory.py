"""The directory: locations, services, doctors and the templates of their schedules.

A doctor's name is sealed under the data key of the doctor's user. It is found by the beginnings of its words, each of
which has an index of its own: only the doctors of one page are ever opened.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, time
from typing import Any

from sqlalchemy import Row, Select, any_, bindparam, delete, func, insert, select, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import Uuid

from actors.availability import Weekday, WeeklyRule
from persistence.repositories.patients import name_words
from persistence.sealed import Vault, place, user_owner
from persistence.tables import app_user, calendar, doctor, location, schedule_template, service

BEGINNING_MIN = 2
BEGINNING_MAX = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """A place where doctors see patients; its days and clocks are those of ``timezone``."""

    id: str
    name: str
    address: str
    timezone: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """An amount in the smallest unit of its currency."""

    amount_minor: int
    currency: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What a visit can be for."""

    id: str
    name: str
    minutes: int
    price: Price | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Doctor:
    """A doctor as the directory shows them."""

    id: str
    user_id: str
    name: str = field(repr=False)
    specialties: tuple[str, ...]
    location_ids: tuple[str, ...]
    service_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorSearch:
    """Which doctors are asked for: those that meet every condition given."""

    specialty: str | None = None
    location_id: str | None = None
    beginnings: tuple[str, ...] = field(default=(), repr=False)
    """Of words of the name, as ``search_beginnings`` makes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleTemplate:
    """A doctor's weekly rules at one location, from ``valid_from`` to ``valid_to``, both included."""

    id: str
    doctor_id: str
    name: str
    location_id: str
    valid_from: date
    valid_to: date | None
    rules: tuple[WeeklyRule, ...]


class Directory:
    """Reads and writes the directory."""

    def __init__(self, connection: AsyncConnection, vault: Vault) -> None:
        self._connection = connection
        self._vault = vault

    # Locations

    async def locations(self, *, after: str | None = None, limit: int | None = None) -> list[Location]:
        """Locations in the order in which they were made."""
        query = select(location).order_by(location.c.id).limit(limit)
        rows = await self._connection.execute(query if after is None else query.where(location.c.id > after))
        return [_location(row) for row in rows]

    async def location(self, location_id: str, *, lock: bool = False) -> Location | None:
        """The location of that id; ``lock`` keeps others from changing it."""
        query = select(location).where(location.c.id == location_id)
        row = (await self._connection.execute(query.with_for_update() if lock else query)).first()
        return None if row is None else _location(row)

    async def locations_of(self, location_ids: Collection[str]) -> dict[str, Location]:
        """Locations by their ids."""
        rows = await self._connection.execute(select(location).where(location.c.id.in_(location_ids)))
        return {row.id: _location(row) for row in rows}

    async def add_location(self, new: Location) -> None:
        """Keep a new location."""
        await self._connection.execute(insert(location).values(id=new.id, **_location_values(new)))

    async def change_location(self, changed: Location) -> None:
        """Write everything of a location that can change."""
        await self._connection.execute(
            update(location).where(location.c.id == changed.id).values(**_location_values(changed))
        )

    async def count_locations(self) -> int:
        """How many locations there are."""
        return await self._connection.scalar(select(func.count()).select_from(location)) or 0

    async def missing_locations(self, location_ids: Iterable[str]) -> set[str]:
        """Those of the ids that are no location's."""
        return await self._missing(location.c.id, location_ids)

    # Services

    async def services(self, *, after: str | None = None, limit: int | None = None) -> list[Service]:
        """Services in the order in which they were made."""
        query = select(service).order_by(service.c.id).limit(limit)
        rows = await self._connection.execute(query if after is None else query.where(service.c.id > after))
        return [_service(row) for row in rows]

    async def service(self, service_id: str, *, lock: bool = False) -> Service | None:
        """The service of that id; ``lock`` keeps others from changing it."""
        query = select(service).where(service.c.id == service_id)
        row = (await self._connection.execute(query.with_for_update() if lock else query)).first()
        return None if row is None else _service(row)

    async def add_service(self, new: Service) -> None:
        """Keep a new service."""
        await self._connection.execute(insert(service).values(id=new.id, **_service_values(new)))

    async def change_service(self, changed: Service) -> None:
        """Write everything of a service that can change."""
        await self._connection.execute(
            update(service).where(service.c.id == changed.id).values(**_service_values(changed))
        )

    async def count_services(self) -> int:
        """How many services there are."""
        return await self._connection.scalar(select(func.count()).select_from(service)) or 0

    async def missing_services(self, service_ids: Iterable[str]) -> set[str]:
        """Those of the ids that are no service's."""
        return await self._missing(service.c.id, service_ids)

    # Doctors

    async def doctors(self, search: DoctorSearch, *, after: str | None, limit: int) -> list[Doctor]:
        """Doctors in the order in which they were made; those who were erased or withdrawn are left out."""
        query = _DOCTORS.order_by(doctor.c.id).limit(limit)
        if search.specialty is not None:
            query = query.where(doctor.c.specialties.contains([search.specialty]))
        if search.location_id is not None:
            query = query.where(doctor.c.location_ids.contains([search.location_id]))
        if search.beginnings:
            query = query.where(doctor.c.search.contains(self._indexes(search.beginnings)))
        if after is not None:
            query = query.where(doctor.c.id > after)
        return [self._doctor(row) for row in await self._connection.execute(query)]

    async def doctor(self, doctor_id: str, *, lock: bool = False) -> Doctor | None:
        """The doctor of that id, unless erased or withdrawn; ``lock`` keeps others from changing the entry."""
        query = _DOCTORS.where(doctor.c.id == doctor_id)
        row = (await self._connection.execute(query.with_for_update(of=doctor) if lock else query)).first()
        return None if row is None else self._doctor(row)

    async def names(self, doctor_ids: Collection[str]) -> dict[str, str]:
        """The names of those of these doctors who have not been erased or withdrawn."""
        if not doctor_ids:
            return {}
        rows = await self._connection.execute(_DOCTORS.where(doctor.c.id.in_(doctor_ids)))
        return {row.id: self._doctor(row).name for row in rows}

    async def add_doctor(self, new: Doctor, *, wrapped_key: bytes) -> None:
        """Keep a new doctor with an empty calendar; ``wrapped_key`` is the data key of the doctor's user."""
        await self._connection.execute(
            insert(doctor).values(id=new.id, user_id=new.user_id, **self._doctor_values(new, wrapped_key))
        )
        await self._connection.execute(insert(calendar).values(doctor_id=new.id))

    async def change_doctor(self, changed: Doctor, *, wrapped_key: bytes) -> None:
        """Write everything of a doctor that can change."""
        await self._connection.execute(
            update(doctor).where(doctor.c.id == changed.id).values(**self._doctor_values(changed, wrapped_key))
        )

    async def add_services_of_doctor(self, known: Doctor, service_ids: Iterable[str]) -> None:
        """Have the doctor offer these services too."""
        if new := sorted(set(service_ids) - set(known.service_ids)):
            offered = [*known.service_ids, *new]
            await self._connection.execute(update(doctor).where(doctor.c.id == known.id).values(service_ids=offered))

    async def specialties(self) -> list[str]:
        """Every specialty that some doctor has, sorted."""
        each = func.unnest(doctor.c.specialties).label("specialty")
        rows = await self._connection.scalars(select(each).where(doctor.c.withdrawn_at.is_(None)).distinct())
        return sorted(rows)

    # Templates

    async def templates(self, doctor_id: str, *, after: str | None = None, limit: int) -> list[ScheduleTemplate]:
        """The doctor's templates in the order in which they were made."""
        query = select(schedule_template).where(schedule_template.c.doctor_id == doctor_id)
        if after is not None:
            query = query.where(schedule_template.c.id > after)
        rows = await self._connection.execute(query.order_by(schedule_template.c.id).limit(limit))
        return [_template(row) for row in rows]

    async def count_templates(self, doctor_id: str) -> int:
        """How many templates the doctor has."""
        query = select(func.count()).where(schedule_template.c.doctor_id == doctor_id)
        return await self._connection.scalar(query) or 0

    async def add_template(self, new: ScheduleTemplate) -> None:
        """Keep a new template."""
        await self._connection.execute(
            insert(schedule_template).values(
                id=new.id,
                doctor_id=new.doctor_id,
                name=new.name,
                location_id=new.location_id,
                valid_from=new.valid_from,
                valid_to=new.valid_to,
                rules=[rule_plain(rule) for rule in new.rules],
            )
        )

    async def remove_template(self, template_id: str, *, doctor_id: str) -> bool:
        """Forget a template of the doctor's; whether there was one."""
        removed = await self._connection.execute(
            delete(schedule_template).where(
                schedule_template.c.id == template_id, schedule_template.c.doctor_id == doctor_id
            )
        )
        return removed.rowcount == 1

    async def _missing(self, column: Any, ids: Iterable[str]) -> set[str]:
        wanted = set(ids)
        if not wanted:
            return set()
        given = bindparam("wanted", sorted(wanted), type_=ARRAY(Uuid(as_uuid=False)))
        return wanted - set(await self._connection.scalars(select(column).where(column == any_(given))))

    def _doctor(self, row: Row[*tuple[Any, ...]]) -> Doctor:
        key = self._vault.data_key(user_owner(row.user_id), row.data_key)
        return Doctor(
            id=row.id,
            user_id=row.user_id,
            name=key.unseal_json(row.sealed, place("doctor", row.id, "sealed"))["name"],
            specialties=tuple(row.specialties),
            location_ids=tuple(row.location_ids),
            service_ids=tuple(row.service_ids),
        )

    def _doctor_values(self, known: Doctor, wrapped_key: bytes) -> dict[str, Any]:
        key = self._vault.data_key(user_owner(known.user_id), wrapped_key)
        return {
            "sealed": key.seal_json({"name": known.name}, place("doctor", known.id, "sealed")),
            "search": self._indexes(name_beginnings(known.name)),
            "specialties": list(known.specialties),
            "location_ids": list(known.location_ids),
            "service_ids": list(known.service_ids),
        }

    def _indexes(self, beginnings: Iterable[str]) -> list[bytes]:
        return [self._vault.index("doctor-name", beginning) for beginning in beginnings]


def name_beginnings(name: str) -> tuple[str, ...]:
    """What a doctor of that name is found by: each word, up to ``BEGINNING_MAX`` characters of it, cut ever shorter."""
    cut = (
        word[:length]
        for word in name_words(name)
        for length in range(min(BEGINNING_MIN, len(word)), min(BEGINNING_MAX, len(word)) + 1)
    )
    return tuple(dict.fromkeys(cut))


def search_beginnings(text: str) -> tuple[str, ...]:
    """What somebody who types ``text`` looks for: every word of it begins some word of the name.

    A single character is too little to look for beside longer words; by itself it finds those whose name it is.
    """
    words = [word[:BEGINNING_MAX] for word in name_words(text)]
    return tuple(word for word in words if len(word) >= BEGINNING_MIN) or tuple(words)


def rule_plain(rule: WeeklyRule) -> dict[str, Any]:
    """A rule as it is stored and shown."""
    return {
        "weekday": rule.weekday.value,
        "start": rule.start.isoformat("minutes"),
        "slot_minutes": rule.slot_minutes,
        "slots": rule.slots,
        "break_minutes": rule.break_minutes,
        "service_id": rule.service_id,
    }


_DOCTORS: Select[*tuple[Any, ...]] = (
    select(
        doctor.c.id,
        doctor.c.user_id,
        doctor.c.sealed,
        doctor.c.specialties,
        doctor.c.location_ids,
        doctor.c.service_ids,
        app_user.c.data_key,
    )
    .join(app_user, app_user.c.id == doctor.c.user_id)
    .where(doctor.c.withdrawn_at.is_(None), app_user.c.data_key.is_not(None))
)


def _location(row: Row[*tuple[Any, ...]]) -> Location:
    return Location(id=row.id, name=row.name, address=row.address, timezone=row.timezone)


def _service(row: Row[*tuple[Any, ...]]) -> Service:
    price = None
    if row.price_amount_minor is not None:
        price = Price(amount_minor=row.price_amount_minor, currency=row.price_currency)
    return Service(id=row.id, name=row.name, minutes=row.minutes, price=price)


def _location_values(known: Location) -> dict[str, Any]:
    return {"name": known.name, "address": known.address, "timezone": known.timezone}


def _service_values(known: Service) -> dict[str, Any]:
    return {
        "name": known.name,
        "minutes": known.minutes,
        "price_amount_minor": None if known.price is None else known.price.amount_minor,
        "price_currency": None if known.price is None else known.price.currency,
    }


def _template(row: Row[*tuple[Any, ...]]) -> ScheduleTemplate:
    return ScheduleTemplate(
        id=row.id,
        doctor_id=row.doctor_id,
        name=row.name,
        location_id=row.location_id,
        valid_from=row.valid_from,
        valid_to=row.valid_to,
        rules=tuple(_rule(plain) for plain in row.rules),
    )


def _rule(plain: Mapping[str, Any]) -> WeeklyRule:
    return WeeklyRule(
        weekday=Weekday(plain["weekday"]),
        start=time.fromisoformat(plain["start"]),
        slot_minutes=plain["slot_minutes"],
        slots=plain["slots"],
        break_minutes=plain["break_minutes"],
        service_id=plain["service_id"],
    )
