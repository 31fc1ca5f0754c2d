"""Words for tests in which several calendars meet, or real tables: every id is a UUID, made from a name."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from actors.messages import (
    AppointmentMovedOut,
    AppointmentState,
    BookAppointment,
    CancelAppointment,
    CloseCalendar,
    FinishMove,
    HoldSlot,
    MoveOut,
    NewSlot,
    PublishSlots,
    ReleaseHold,
    RescheduleAppointment,
    ReserveForMove,
    Role,
    Window,
)
from tests.given import OPENS, SLOT, AnyCommand, ask, staff, uid

HOUSE, WILSON, CUDDY = uid("house"), uid("wilson"), uid("cuddy")
LOCATION = uid("the clinic")
SEALED = "c2VhbGVk"
"""Some sealed text, as commands carry it: base64."""


def slot(doctor: str, number: float, *, opens: datetime = OPENS) -> NewSlot:
    """A doctor's slot of that number: half an hour, the first at nine."""
    start = opens + number * SLOT
    return NewSlot(id=slot_id(doctor, number), start=start, end=start + SLOT, location_id=LOCATION)


def slot_id(doctor: str, number: float) -> str:
    """The id of a doctor's slot."""
    return uid(f"slot {number} of {doctor}")


def publish(doctor: str, count: int, *, first: int = 0, opens: datetime = OPENS) -> PublishSlots:
    """Open so many slots."""
    slots = tuple(slot(doctor, number, opens=opens) for number in range(first, first + count))
    return by_staff(PublishSlots, doctor=doctor, slots=slots)


def book(
    doctor: str, number: float, *, patient: str = "anna", visit: str | None = None, **more: Any
) -> BookAppointment:
    """Book a patient, who asks for itself; the visit is called as the slot unless it has a name of its own."""
    return ask(
        BookAppointment,
        doctor=doctor,
        appointment_id=uid(visit) if visit else visit_id(doctor, number),
        slot_id=slot_id(doctor, number),
        patient_id=uid(patient),
        **{"by": uid(patient)} | more,
    )


def visit_id(doctor: str, number: float) -> str:
    """The id of the visit that ``book`` books in a slot."""
    return uid(f"visit in slot {number} of {doctor}")


def hold(doctor: str, number: float, *, by: str = "anna", **more: Any) -> HoldSlot:
    """Hold a slot."""
    return ask(
        HoldSlot,
        doctor=doctor,
        by=uid(by),
        hold_id=uid(f"hold of {by} on {number} of {doctor}"),
        slot_id=slot_id(doctor, number),
        **more,
    )


def release(doctor: str, number: float, *, by: str = "anna") -> ReleaseHold:
    """Release what ``hold`` held."""
    return ask(ReleaseHold, doctor=doctor, by=uid(by), hold_id=uid(f"hold of {by} on {number} of {doctor}"))


def cancel(doctor: str, visit: str, *, by: str = "anna", **more: Any) -> CancelAppointment:
    """Cancel a visit."""
    return ask(CancelAppointment, doctor=doctor, by=uid(by), appointment_id=visit, **more)


def reschedule(doctor: str, visit: str, number: float, *, by: str = "anna", **more: Any) -> RescheduleAppointment:
    """Move a visit within its calendar."""
    return ask(
        RescheduleAppointment,
        doctor=doctor,
        by=uid(by),
        appointment_id=visit,
        slot_id=slot_id(doctor, number),
        **more,
    )


def close(doctor: str, first: float, last: float, *, name: str = "closure", **more: Any) -> CloseCalendar:
    """Close from one slot to another, both included."""
    window = Window(start=OPENS + first * SLOT, end=OPENS + (last + 1) * SLOT)
    return by_staff(CloseCalendar, doctor=doctor, closure_id=uid(name), windows=(window,), **more)


def by_staff(kind: type[AnyCommand], **fields: Any) -> AnyCommand:
    """A command of an administrator's."""
    return staff(kind, **{"by": uid("chief")} | fields)


def reserve(
    source: str, target: str, number: float, visit: str, *, name: str = "move", by: str = "anna", **more: Any
) -> ReserveForMove:
    """Step (a) of a move."""
    return ask(
        ReserveForMove,
        doctor=target,
        by=uid(by),
        move_id=uid(name),
        slot_id=slot_id(target, number),
        appointment_id=visit,
        source_doctor_id=source,
        **more,
    )


def move_out(
    source: str, target: str, number: float, visit: str, *, name: str = "move", by: str = "anna", **more: Any
) -> MoveOut:
    """Step (b) of a move."""
    return ask(
        MoveOut,
        doctor=source,
        by=uid(by),
        move_id=uid(name),
        appointment_id=visit,
        target_doctor_id=target,
        slot=slot(target, number),
        **more,
    )


def finish(target: str, *, name: str = "move", appointment: AppointmentState | None = None) -> FinishMove:
    """Step (c) of a move, as the supervisor asks for it."""
    driver = uid(f"driver of {name}")
    return ask(FinishMove, doctor=target, by=driver, role=Role.ADMIN, move_id=uid(name), appointment=appointment)


def moved(event: object) -> AppointmentState:
    """The appointment that left with an event."""
    assert isinstance(event, AppointmentMovedOut)
    return event.appointment


def in_(**duration: float) -> timedelta:
    """``in_(minutes=5)``."""
    return timedelta(**duration)
