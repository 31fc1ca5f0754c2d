"""Which notifications an event causes: one rule for the journal, which writes them, and for ``verify``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from actors.messages import (
    AppointmentBooked,
    AppointmentCancelled,
    AppointmentMovedIn,
    AppointmentMovedOut,
    AppointmentRescheduled,
    CalendarClosed,
    ClosureRemoved,
    Event,
    Role,
    SlotBlocked,
    SlotCancelled,
    SlotUnblocked,
)

REFUSED: Final = "refused"
"""The kind for whoever was told that a command is pending, which was refused then."""


def intents(event: Event) -> Iterator[tuple[str, str, int]]:
    """Kind, appointment id and appointment version of each notification to send because of an event."""
    match event:
        case AppointmentBooked():
            yield "booked", event.appointment_id, 1
        case AppointmentRescheduled():
            yield "moved", event.appointment_id, event.version
        case AppointmentMovedOut():
            yield "moved", event.appointment.id, event.appointment.version
        case AppointmentCancelled():
            kind = "cancelled_by_patient" if event.by is Role.PATIENT else "cancelled_by_clinic"
            yield kind, event.appointment_id, event.version
        case AppointmentMovedIn(displaced=True):
            yield "displaced", event.appointment.id, event.appointment.version
        case CalendarClosed() | SlotBlocked() | SlotCancelled():
            for touched in event.displaced:
                yield "displaced", touched.appointment_id, touched.version
        case ClosureRemoved() | SlotUnblocked():
            for touched in event.restored:
                yield "restored", touched.appointment_id, touched.version
        case _:
            pass
