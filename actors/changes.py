"""What readers of a calendar see of one event: the slots and appointments that it changed. Pure.

It is written into the journal beside the event, in the transaction of the event, and announced once that is committed:
whoever follows a calendar is told the same from either, one change for each sequence number.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotChange:
    """A slot as it is after an event."""

    id: str
    start: datetime
    end: datetime
    location_id: str
    service_id: str | None
    status: str
    """``held`` also when the hold is past its time: that it has ended is an event of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppointmentChange:
    """An appointment that an event changed: enough to know whom it concerns. What it is now, its row tells."""

    id: str
    patient_id: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """All that an event changed."""

    slots: tuple[SlotChange, ...] = ()
    """By start, then id."""
    appointments: tuple[AppointmentChange, ...] = ()
    """By id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A committed event's effect, and where in its calendar it stands."""

    doctor_id: str
    sequence: int
    at: datetime
    effect: Effect
