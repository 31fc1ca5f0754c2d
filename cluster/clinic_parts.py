"""What a clinic file asks for, once it is read and found right. In it names stand for ids."""

from dataclasses import dataclass
from datetime import date, datetime

from actors.availability import Template


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    name: str
    address: str
    timezone: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    amount_minor: int
    currency: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    name: str
    minutes: int
    price: Price | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Doctor:
    """``schedules`` are templates whose ``id`` is the schedule's own name, whose ``location_id`` that of the location,
    and whose rules have the name of a service for ``service_id``."""

    login: str
    name: str
    email: str
    phone: str
    specialties: tuple[str, ...]
    locations: tuple[str, ...]
    services: tuple[str, ...]
    schedules: tuple[Template, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    name: str
    birth_date: date


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    login: str
    name: str
    birth_date: date
    email: str
    phone: str
    children: tuple[Child, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """A visit to book for a patient, or for the patient's child of that name, in the doctor's slot that begins then."""

    patient: str
    child: str | None
    doctor: str
    start: datetime
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Clinic:
    """What a file asks for when it is loaded on ``today``: slots are to be published from then to ``publish_to``."""

    today: date
    publish_to: date
    locations: tuple[Location, ...]
    services: tuple[Service, ...]
    doctors: tuple[Doctor, ...]
    patients: tuple[Patient, ...]
    visits: tuple[Visit, ...]
