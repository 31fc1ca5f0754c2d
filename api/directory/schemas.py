"""The directory as clients see it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final

from fastapi import Query
from pydantic import Field

from actors.changes import SlotChange
from api.fields import Answer, Id, Line
from persistence.repositories.directory import Doctor, Location, Service
from persistence.repositories.slots import SlotRow, SlotStatus

NEXT_FREE_DAYS: Final = 62

Specialty = Annotated[
    Line, Field(max_length=100, examples=["cardiology"], description="What a doctor is trained in, as written there.")
]


class PriceAnswer(Answer):
    """What a service costs."""

    amount_minor: int = Field(description="In the smallest unit of the currency.", examples=[4500])
    currency: str = Field(description="ISO 4217", examples=["EUR"])


class LocationAnswer(Answer):
    """A place where doctors see patients."""

    id: Id
    name: str = Field(examples=["Clinic at the park"])
    address: str = Field(examples=["Parkstrasse 1, 10115 Berlin"])
    timezone: str = Field(examples=["Europe/Berlin"], description="The IANA name of the zone of its days and clocks.")


class ServiceAnswer(Answer):
    """What a visit can be for."""

    id: Id
    name: str = Field(examples=["First consultation"])
    minutes: int = Field(examples=[30])
    price: PriceAnswer | None


class DoctorAnswer(Answer):
    """A doctor who can be visited."""

    id: Id
    name: str = Field(examples=["Dr Anna Petrova"])
    specialties: list[str] = Field(examples=[["cardiology"]])
    location_ids: list[Id]
    service_ids: list[Id]


class SlotAnswer(Answer):
    """An interval ``[start, end)`` that a doctor offers."""

    id: Id
    doctor_id: Id
    location_id: Id
    service_id: Annotated[Id | None, Field(description="What it is for; null: anything that the doctor does.")]
    timezone: Annotated[str, Field(examples=["Europe/Berlin"], description="Of the location.")]
    start: datetime
    end: datetime
    status: SlotStatus


class ListedDoctorAnswer(DoctorAnswer):
    """A doctor in a list."""

    next_free: SlotAnswer | None = Field(
        None, description=f"With `with=next_free`: the first free slot of the next {NEXT_FREE_DAYS} days, if any."
    )


class DoctorPage(Answer):
    """Doctors in the order in which they were made."""

    items: list[ListedDoctorAnswer]
    next_cursor: str | None


class LocationPage(Answer):
    """Locations in the order in which they were made."""

    items: list[LocationAnswer]
    next_cursor: str | None


class ServicePage(Answer):
    """Services in the order in which they were made."""

    items: list[ServiceAnswer]
    next_cursor: str | None


class SpecialtyPage(Answer):
    """Specialties that some doctor has, sorted."""

    items: list[str] = Field(examples=[["cardiology", "dermatology"]])
    next_cursor: str | None


NameQuery = Annotated[
    Line | None,
    Query(max_length=100, description="Beginnings of words of the name; every word given has to begin one."),
]


def location_plain(location: Location) -> dict[str, Any]:
    """A location in JSON."""
    return {"id": location.id, "name": location.name, "address": location.address, "timezone": location.timezone}


def service_plain(service: Service) -> dict[str, Any]:
    """A service in JSON."""
    price = None
    if service.price is not None:
        price = {"amount_minor": service.price.amount_minor, "currency": service.price.currency}
    return {"id": service.id, "name": service.name, "minutes": service.minutes, "price": price}


def doctor_plain(doctor: Doctor) -> dict[str, Any]:
    """A doctor in JSON."""
    return {
        "id": doctor.id,
        "name": doctor.name,
        "specialties": doctor.specialties,
        "location_ids": doctor.location_ids,
        "service_ids": doctor.service_ids,
    }


def slot_plain(slot: SlotRow | SlotChange, doctor_id: str, timezone: str) -> dict[str, Any]:
    """A slot of that doctor's in JSON; ``timezone`` is that of its location."""
    return {
        "id": slot.id,
        "doctor_id": doctor_id,
        "location_id": slot.location_id,
        "service_id": slot.service_id,
        "timezone": timezone,
        "start": slot.start,
        "end": slot.end,
        "status": slot.status,
    }
