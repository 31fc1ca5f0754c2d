"""What administrators and doctors set up, and what they are told."""

from __future__ import annotations

import re
from datetime import date, datetime
from typing import Annotated, Final

from pydantic import (
    AfterValidator,
    Field,
    PlainValidator,
    TypeAdapter,
    WithJsonSchema,
)

from actors.availability import MINUTES_MAX, RULES_PER_TEMPLATE_MAX, SLOTS_PER_RULE_MAX, Weekday
from actors.messages import Role
from api.accounts.schemas import Password, UserAnswer
from api.directory.schemas import Specialty
from api.fields import (
    Answer,
    Body,
    Change,
    Day,
    Email,
    Flag,
    Id,
    Instant,
    Line,
    Login,
    PersonName,
    Phone,
    Text,
    Timezone,
    WallTime,
    Whole,
    said,
)
from api.scheduling.schemas import Appointment

PRICE_MAX: Final = 10**12
SPECIALTIES_MAX: Final = 20
LOCATIONS_MAX: Final = 50
SERVICES_MAX: Final = 200


# Locations and services


def _currency(value: str) -> str:
    if re.fullmatch(r"[A-Z]{3}", value) is None:
        raise ValueError("This should be a currency's code of three capital letters, as EUR.")
    return value


Currency = Annotated[
    str,
    AfterValidator(_currency),
    WithJsonSchema({"type": "string", "pattern": "^[A-Z]{3}$", "examples": ["EUR"], "description": "ISO 4217"}),
]
Minutes = Annotated[Whole, Field(ge=1, le=MINUTES_MAX, examples=[30])]


class NewLocation(Body):
    """A place where doctors see patients."""

    name: Line
    address: Line
    timezone: Timezone


class LocationChange(Change):
    """What is to be different of a location. Slots that are open keep their instants whatever becomes of its zone."""

    name: Line | None = None
    address: Line | None = None
    timezone: Timezone | None = None


class Price(Body):
    """What a service costs, in the smallest unit of its currency."""

    amount_minor: Annotated[Whole, Field(ge=0, le=PRICE_MAX, examples=[4500])]
    currency: Currency


class NewService(Body):
    """What a visit can be for."""

    name: Line
    minutes: Minutes
    price: Price | None = None


class ServiceChange(Change):
    """What is to be different of a service. A price of null: it has none any more."""

    nullable = frozenset({"price"})

    name: Line | None = None
    minutes: Minutes | None = None
    price: Price | None = None


# Doctors


def _once(values: list[str]) -> list[str]:
    if len(set(values)) != len(values):
        raise ValueError("This should name each only once.")
    return values


Specialties = Annotated[list[Specialty], Field(min_length=1, max_length=SPECIALTIES_MAX), AfterValidator(_once)]
LocationIds = Annotated[list[Id], Field(min_length=1, max_length=LOCATIONS_MAX), AfterValidator(_once)]
ServiceIds = Annotated[list[Id], Field(max_length=SERVICES_MAX), AfterValidator(_once)]


class NewDoctor(Body):
    """A doctor, with the account that they sign in with; the administrator vouches for the addresses."""

    login: Login
    password: Password
    name: PersonName
    email: Email
    phone: Phone
    specialties: Specialties
    location_ids: LocationIds
    service_ids: ServiceIds = Field(default_factory=list)


class DoctorChange(Change):
    """What is to be different of a doctor. Slots that are open already stay."""

    name: PersonName | None = None
    specialties: Specialties | None = None
    location_ids: LocationIds | None = None
    service_ids: ServiceIds | None = None


# Templates


class Rule(Body):
    """Slots of one weekday, one after the other: "Tuesdays from nine, ten of half an hour"."""

    weekday: Weekday
    start: WallTime
    slot_minutes: Minutes
    slots: Annotated[Whole, Field(ge=1, le=SLOTS_PER_RULE_MAX, examples=[10])]
    break_minutes: Annotated[Whole, Field(ge=0, le=MINUTES_MAX)] = 0
    service_id: Annotated[Id | None, Field(description="What the slots are for; null: anything.")] = None


class NewTemplate(Body):
    """Weekly rules at one location, for a time. They open nothing until they are published."""

    name: Line
    location_id: Id
    valid_from: Day
    valid_to: Annotated[Day | None, Field(description="Included; null: no end.")] = None
    rules: Annotated[list[Rule], Field(min_length=1, max_length=RULES_PER_TEMPLATE_MAX)]


class RuleAnswer(Answer):
    """Slots of one weekday."""

    weekday: Weekday
    start: Annotated[str, Field(examples=["09:00"])]
    slot_minutes: int
    slots: int
    break_minutes: int
    service_id: Id | None


class TemplateAnswer(Answer):
    """Weekly rules of a doctor at one location."""

    id: Id
    doctor_id: Id
    name: str
    location_id: Id
    valid_from: date
    valid_to: date | None
    rules: list[RuleAnswer]


class TemplatePage(Answer):
    """Templates in the order in which they were made."""

    items: list[TemplateAnswer]
    next_cursor: str | None


# Publishing


class Publication(Body):
    """The days, in the zone of each template's location, for which slots are to be opened."""

    first_day: Annotated[Day, Field(alias="from")]
    last_day: Annotated[Day, Field(alias="to", description="Included.")]
    dry_run: Annotated[Flag, Field(description="Only tell what would be opened.")] = False


class SkippedSlot(Answer):
    """A slot that a template asks for and that was not opened."""

    start: datetime
    why: Annotated[str, Field(examples=["overlap"], description="dst_gap, overlap, past, closed or cancelled.")]


class PublicationAnswer(Answer):
    """What became of the slots that the templates ask for."""

    opened: Annotated[int, Field(description="How many were opened.")]
    kept: Annotated[int, Field(description="How many were there already.")]
    skipped: list[SkippedSlot]


# Closures

_DAY: Final[TypeAdapter[date]] = TypeAdapter(Day)
_INSTANT: Final[TypeAdapter[datetime]] = TypeAdapter(Instant)


def _day_or_instant(value: object) -> date | datetime:
    if not isinstance(value, str):
        raise ValueError("This should be a date, as 2026-11-24, or an instant, as 2026-11-24T09:00:00Z.")
    return (_DAY if len(value) <= len("2026-11-24") else _INSTANT).validate_python(value)


DayOrInstant = Annotated[
    date | datetime,
    PlainValidator(_day_or_instant),
    WithJsonSchema(
        {
            "anyOf": [{"type": "string", "format": "date"}, {"type": "string", "format": "date-time"}],
            "examples": ["2026-11-24", "2026-11-24T09:00:00Z"],
        }
    ),
]


class NewClosure(Body):
    """An absence: of whole days, both included, as they are at each location; or from an instant to before another."""

    start: Annotated[DayOrInstant, Field(alias="from")]
    end: Annotated[DayOrInstant, Field(alias="to")]
    reason: Annotated[Text, Field(min_length=1, examples=["Conference"]), AfterValidator(said)]
    dry_run: Annotated[Flag, Field(description="Only tell what would be blocked and displaced.")] = False


class ClosureMade(Answer):
    """What an absence does."""

    id: Annotated[Id | None, Field(description="Null when it was only tried.")]
    blocked: Annotated[int, Field(description="How many slots it blocks that were not blocked before.")]
    displaced: Annotated[list[Appointment], Field(description="Live visits that it leaves without their slot.")]


class ClosureWindow(Answer):
    """A part of an absence: ``[start, end)`` at one location, or at all."""

    location_id: Id | None
    start: datetime
    end: datetime


class ClosureAnswer(Answer):
    """An absence of a doctor."""

    id: Id
    doctor_id: Id
    windows: list[ClosureWindow]
    reason: str | None
    created_by: Id
    created_at: datetime


class ClosurePage(Answer):
    """Absences, the one that ends first first."""

    items: list[ClosureAnswer]
    next_cursor: str | None


# Users and the audit trail


class AccountAnswer(UserAnswer):
    """An account, for administrators."""

    disabled: bool


class AccountPage(Answer):
    """Accounts in the order in which they were made."""

    items: list[AccountAnswer]
    next_cursor: str | None


class AccountChange(Change):
    """What is to be different of an account."""

    disabled: Annotated[Flag | None, Field(description="Whether the user is kept out.")] = None
    role: Annotated[Role | None, Field(description="A doctor is made by POST /v1/admin/doctors.")] = None


class AuditAnswer(Answer):
    """Who did what to what, when, and by which override."""

    id: Id
    at: datetime
    user_id: Id
    role: str
    action: Annotated[str, Field(examples=["book_appointment"])]
    subject: Annotated[str, Field(examples=["appointment"])]
    subject_id: Id | None
    override_reason: str | None


class AuditPage(Answer):
    """The audit trail, the last entry first."""

    items: list[AuditAnswer]
    next_cursor: str | None
