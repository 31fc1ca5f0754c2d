"""Commands, events and replies of a calendar, and their wire form.

Commands are imperative, events are past tense. All are frozen values of plain data: ids and opaque sealed text as
``str``, instants as aware datetimes in UTC. What a person wrote (the reason of a visit) is never in an event: it is
sealed before it gets here and travels beside the events (``BookAppointment.reason``) into the appointment's row.

The wire form of a message is the pair of its type's name and its fields as JSON data; ``from_wire`` is its inverse.
A batch carries ``WIRE_VERSION``, so that two releases that cannot talk to each other find out.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeAlias, Union, get_args, get_origin, get_type_hints

WIRE_VERSION = 2


class Role(StrEnum):
    """What a user is to the clinic."""

    PATIENT = "patient"
    DOCTOR = "doctor"
    ADMIN = "admin"


class AppointmentStatus(StrEnum):
    """Where a visit stands; the first three are live."""

    BOOKED = "booked"
    RESCHEDULED = "rescheduled"
    ARRIVED = "arrived"
    FULFILLED = "fulfilled"
    NOSHOW = "noshow"
    CANCELLED = "cancelled"

    @property
    def live(self) -> bool:
        """Whether an appointment of this status occupies its slot."""
        return self in _LIVE


_LIVE = frozenset({AppointmentStatus.BOOKED, AppointmentStatus.RESCHEDULED, AppointmentStatus.ARRIVED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Requester:
    """Who asks. What they may see and for whom they may book was checked where the request came in."""

    user_id: str
    role: Role

    @property
    def staff(self) -> bool:
        """Whether they may override cut-offs and limits."""
        return self.role is not Role.PATIENT


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSlot:
    """A slot to open, or opened: ``[start, end)`` at a location, for a service or for any."""

    id: str
    start: datetime
    end: datetime
    location_id: str
    service_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A part of a closure: ``[start, end)``, at one location or at all."""

    start: datetime
    end: datetime
    location_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AppointmentState:
    """All that is known of an appointment but its sealed reason; what moves to another calendar with it."""

    id: str
    patient_id: str
    booked_by: str
    slot_id: str
    location_id: str
    service_id: str | None
    start: datetime
    end: datetime
    status: AppointmentStatus
    version: int
    moves: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Touched:
    """An appointment whose ``version`` an event about its slot raised."""

    appointment_id: str
    version: int


# Commands


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What every command says of itself."""

    command_id: str
    """From the Idempotency-Key, scoped to the user, else new: a command has one effect under one id."""
    doctor_id: str
    requester: Requester
    fingerprint: str
    """Of the request: the same id with another fingerprint is refused."""
    deadline: datetime | None = None
    """After this nobody waits for the answer any more."""
    respond_async: bool = False
    """Answer as pending once decided, without waiting for the commit."""
    override: str | None = None
    """Sealed reason with which staff pass a cut-off or a limit; audited."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldSlot(Command):
    """Keep a slot for the requester for a short time."""

    hold_id: str
    slot_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseHold(Command):
    """End a hold of the requester's before its time."""

    hold_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BookAppointment(Command):
    """Book a visit of a patient in a free slot, or in one that the requester holds."""

    appointment_id: str
    slot_id: str
    patient_id: str
    hold_id: str | None = None
    reason: str | None = None
    """Sealed; stored with the appointment, never in an event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RescheduleAppointment(Command):
    """Move a visit to another slot of the same calendar."""

    appointment_id: str
    slot_id: str
    hold_id: str | None = None
    if_version: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelAppointment(Command):
    """Cancel a visit; its slot is free again."""

    appointment_id: str
    reason: str | None = None
    if_version: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordArrival(Command):
    """Note that the patient is there."""

    appointment_id: str
    if_version: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FulfilAppointment(Command):
    """Note that the visit took place."""

    appointment_id: str
    if_version: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordNoShow(Command):
    """Note that the patient did not come."""

    appointment_id: str
    if_version: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishSlots(Command):
    """Open slots; those that are already there are kept, those that collide are skipped and named."""

    slots: tuple[NewSlot, ...]
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseCalendar(Command):
    """An absence: block every slot in the windows; visits in them stay live but are displaced."""

    closure_id: str
    windows: tuple[Window, ...]
    reason: str | None = None
    """Sealed; stored with the closure, never in an event."""
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveClosure(Command):
    """Open again what a closure blocked."""

    closure_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSlot(Command):
    """Block one slot by hand."""

    slot_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnblockSlot(Command):
    """Undo ``BlockSlot``."""

    slot_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelSlot(Command):
    """Withdraw one slot for good."""

    slot_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReserveForMove(Command):
    """Step (a) of a move to another doctor, at the target: keep the slot until the move's outcome is known."""

    move_id: str
    slot_id: str
    appointment_id: str
    source_doctor_id: str
    hold_id: str | None = None
    if_version: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveOut(Command):
    """Step (b), at the source: the commit point of the move."""

    move_id: str
    appointment_id: str
    target_doctor_id: str
    slot: NewSlot
    if_version: int | None = None
    told_pending: bool = False
    """Whether who asked for the move was told so before: then they are to find a refusal under its id, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AbortMove(Command):
    """Instead of step (b), at the source: the move is given up while it is only reserved."""

    move_id: str
    target_doctor_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishMove(Command):
    """Step (c), at the target: take the appointment in, or release the slot (``appointment`` is none)."""

    move_id: str
    appointment: AppointmentState | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpireHolds(Command):
    """Say in the journal that holds past their time have ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Commands that travel together, and what their actor has to know of the way they came.

    Nothing in it needs clocks that agree: what has been overtaken is known by its number, and how long a command may
    still take by ``sent_at``, which is of the same clock as the deadlines.
    """

    generation: int
    """Of the placement that the sender knows."""
    sender: str
    number: int
    """Of the sender's calls, rising. It has one call at a time to an actor: a lower one was given up."""
    sent_at: datetime
    commands: tuple[Command, ...]


# Events


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotsPublished:
    """Slots were opened."""

    slots: tuple[NewSlot, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotHeld:
    """A slot was kept for a user until an instant."""

    hold_id: str
    slot_id: str
    user_id: str
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldReleased:
    """A hold was ended by its holder."""

    hold_id: str
    slot_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldExpired:
    """A hold was found to be past its time."""

    hold_id: str
    slot_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AppointmentBooked:
    """A visit was booked; a hold on its slot was used up by it."""

    appointment_id: str
    patient_id: str
    booked_by: str
    slot_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AppointmentRescheduled:
    """A visit was moved within the calendar; its old slot is free unless it was closed."""

    appointment_id: str
    from_slot_id: str
    slot_id: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AppointmentCancelled:
    """A visit was cancelled, by a patient or by staff."""

    appointment_id: str
    by: Role
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PatientArrived:
    """The patient is there."""

    appointment_id: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AppointmentFulfilled:
    """The visit took place."""

    appointment_id: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PatientMissed:
    """The patient did not come."""

    appointment_id: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CalendarClosed:
    """An absence was entered; ``displaced`` names the live visits that lost their slot by it."""

    closure_id: str
    windows: tuple[Window, ...]
    created_by: str
    displaced: tuple[Touched, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosureRemoved:
    """An absence was taken back; ``restored`` names the live visits that have their slot again."""

    closure_id: str
    restored: tuple[Touched, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotBlocked:
    """One slot was blocked by hand."""

    slot_id: str
    displaced: tuple[Touched, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotUnblocked:
    """A block by hand was taken back."""

    slot_id: str
    restored: tuple[Touched, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotCancelled:
    """One slot was withdrawn for good."""

    slot_id: str
    displaced: tuple[Touched, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveReserved:
    """A slot is kept for a visit that is to come from another calendar."""

    move_id: str
    slot_id: str
    appointment_id: str
    source_doctor_id: str
    request: Mapping[str, Any]
    """What is needed to drive the move on, should its driver be gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppointmentMovedOut:
    """A visit went to another doctor's calendar; ``appointment`` is what it is from now on."""

    move_id: str
    target_doctor_id: str
    from_slot_id: str
    appointment: AppointmentState


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveRefused:
    """The source refused the move: the reservation at the target is to be released."""

    move_id: str
    target_doctor_id: str
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AppointmentMovedIn:
    """A visit came from another calendar into the slot reserved for it."""

    move_id: str
    appointment: AppointmentState
    displaced: bool = False
    """The slot was closed meanwhile: the visit's version is raised once more for that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservationReleased:
    """A move was refused at its source: the slot reserved for it is free again."""

    move_id: str
    slot_id: str


Event: TypeAlias = (
    SlotsPublished
    | SlotHeld
    | HoldReleased
    | HoldExpired
    | AppointmentBooked
    | AppointmentRescheduled
    | AppointmentCancelled
    | PatientArrived
    | AppointmentFulfilled
    | PatientMissed
    | CalendarClosed
    | ClosureRemoved
    | SlotBlocked
    | SlotUnblocked
    | SlotCancelled
    | MoveReserved
    | AppointmentMovedOut
    | MoveRefused
    | AppointmentMovedIn
    | ReservationReleased
)


# Replies


class RefusedFor(StrEnum):
    """Why a command was not decided; its sender may send it again."""

    NOT_ACTIVE = "not_active"
    """The calendar is being activated, or its decisions are being made again."""
    MISPLACED = "misplaced"
    """The actor knows a newer placement than the sender."""
    OVERLOADED = "overloaded"
    """The actor's backlog is full."""
    UNAVAILABLE = "unavailable"
    """The answer could not be checked or was not committed in time."""
    EXPIRED = "expired"
    """The command came after its deadline, or in a call that was not to be obeyed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """Committed. ``answer`` is what the caller gets, now and at every repeat."""

    answer: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """Refused, on committed state."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """Decided in memory, not committed: promises nothing."""

    command_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NotDecided:
    """No answer: nothing of the command stands yet that could be told. Sending it again under its id is safe."""

    why: RefusedFor


Reply: TypeAlias = Done | Rejected | Pending | NotDecided


# Wire form

_Decoder: TypeAlias = Callable[[Any], Any]


def wire_name(message: object) -> str:
    """The name under which a message travels and is kept in the journal."""
    return type(message).__name__


def from_wire(name: str, data: Mapping[str, Any]) -> Any:
    """The message that was sent as ``name`` with ``data``.

    Fields that are missing take their default; unknown ones are ignored, so that a newer sender may add some.

    Raises:
        KeyError: no message has that name.
        TypeError, ValueError: the data is not of its form.
    """
    return _decode(_MESSAGES[name], data)


def _decode(cls: type[Any], data: Mapping[str, Any]) -> Any:
    values: dict[str, Any] = {}
    for field, decoder in _decoders(cls):
        if field in data:
            value = data[field]
            values[field] = value if decoder is None or value is None else decoder(value)
    return cls(**values)


def _decoders(cls: type[Any]) -> tuple[tuple[str, _Decoder | None], ...]:
    return _DECODERS[cls]


def _decoder_for(annotation: Any) -> _Decoder | None:
    """How to read JSON data as ``annotation``; ``None`` where it is that already."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        (inner,) = [part for part in get_args(annotation) if part is not type(None)]
        return _decoder_for(inner)
    if origin is tuple:
        element = _decoder_for(get_args(annotation)[0])
        return tuple if element is None else lambda values: tuple(map(element, values))
    if annotation is datetime:
        return datetime.fromisoformat
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return annotation
    if is_dataclass(annotation) and isinstance(annotation, type):
        return lambda data: _decode(annotation, data)
    return None


def _decoders_of(cls: type[Any]) -> tuple[tuple[str, _Decoder | None], ...]:
    hints = get_type_hints(cls)
    return tuple((field.name, _decoder_for(hints[field.name])) for field in fields(cls))


COMMANDS: tuple[type[Command], ...] = (
    HoldSlot,
    ReleaseHold,
    BookAppointment,
    RescheduleAppointment,
    CancelAppointment,
    RecordArrival,
    FulfilAppointment,
    RecordNoShow,
    PublishSlots,
    CloseCalendar,
    RemoveClosure,
    BlockSlot,
    UnblockSlot,
    CancelSlot,
    ReserveForMove,
    MoveOut,
    AbortMove,
    FinishMove,
    ExpireHolds,
)
EVENTS: tuple[type[Any], ...] = get_args(Event)
REPLIES: tuple[type[Any], ...] = get_args(Reply)

_MESSAGES: dict[str, type[Any]] = {cls.__name__: cls for cls in (*COMMANDS, *EVENTS, *REPLIES)}
_DECODERS: dict[type[Any], tuple[tuple[str, _Decoder | None], ...]] = {
    cls: _decoders_of(cls) for cls in (*_MESSAGES.values(), Requester, NewSlot, Window, AppointmentState, Touched)
}
