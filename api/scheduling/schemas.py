"""What is asked and answered about holds, appointments and commands."""

from __future__ import annotations

from datetime import date, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from api.fields import Answer, Body, Id, Text, said

Reason = Annotated[Text, Field(examples=["Headaches since Monday"])]
OverrideReason = Annotated[
    Text,
    Field(
        min_length=1,
        examples=["Came from afar"],
        description="Staff only: pass a cut-off or a limit; audited.",
    ),
    AfterValidator(said),
]


class HoldRequest(Body):
    """Which slot to keep."""

    slot_id: Id


class Hold(Answer):
    """A slot kept for its holder until ``expires_at``."""

    id: Id
    slot_id: Id
    expires_at: datetime


class Holds(Answer):
    """One's own holds."""

    items: list[Hold]
    next_cursor: str | None


class BookingRequest(Body):
    """Which slot to book, for whom and why."""

    slot_id: Id
    hold_id: Id | None = None
    patient_id: Annotated[Id | None, Field(description="One of one's own, for staff anyone's; default: oneself.")] = (
        None
    )
    reason: Reason | None = None
    override_reason: OverrideReason | None = None


class RescheduleRequest(Body):
    """To which slot to move a visit."""

    slot_id: Id
    hold_id: Id | None = None
    override_reason: OverrideReason | None = None


class CancelRequest(Body):
    """Why a visit is cancelled."""

    reason: Reason | None = None
    override_reason: OverrideReason | None = None


class Status(StrEnum):
    """Where a visit stands."""

    BOOKED = "booked"
    RESCHEDULED = "rescheduled"
    ARRIVED = "arrived"
    FULFILLED = "fulfilled"
    NOSHOW = "noshow"
    CANCELLED = "cancelled"


class AppointmentPatient(Answer):
    """Whom staff will see."""

    id: Id
    name: str
    birth_date: date
    phone: str | None


class Appointment(Answer):
    """A booked visit."""

    id: Id
    doctor_id: Id
    patient_id: Id
    booked_by: Annotated[Id, Field(description="The user who booked it.")]
    slot_id: Id
    location_id: Id
    service_id: Id | None
    timezone: Annotated[str, Field(examples=["Europe/Berlin"])]
    start: datetime
    end: datetime
    status: Status
    displaced: Annotated[bool, Field(description="It is live, but its slot was closed.")]
    version: int
    reason: str | None
    move_until: Annotated[datetime, Field(description="Until then it may be moved.")]
    cancel_until: Annotated[datetime, Field(description="Until then it may be cancelled.")]
    created_at: datetime
    updated_at: datetime
    patient: Annotated[AppointmentPatient | None, Field(description="For staff only.")] = None


class Appointments(Answer):
    """A page of appointments, by start, then id."""

    items: list[Appointment]
    next_cursor: str | None


class PendingCommand(Answer):
    """Decided, not committed: promises nothing. ``Location`` says where to ask."""

    command_id: Id
    status: Literal["pending"] = "pending"


class CommandState(Answer):
    """What has become of a command."""

    command_id: Id
    status: Literal["pending", "done", "rejected"]
    appointment: Appointment | None = None
    problem: Annotated[dict[str, Any] | None, Field(description="Why it was rejected.")] = None
