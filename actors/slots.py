"""A slot of a calendar, and a hold on one. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from actors.messages import NewSlot, Window


@dataclass(slots=True, kw_only=True, eq=False)
class Hold:
    """A slot kept for one user until ``expires_at``; past it, it reads as absent."""

    id: str
    slot_id: str
    user_id: str
    expires_at: datetime


@dataclass(slots=True, kw_only=True, eq=False)
class Slot:
    """``length`` from ``start`` on at a location, and who has it.

    A slot reads as (the first that is true): ``cancelled``, ``blocked`` (by hand or by a closure), ``booked``,
    ``held`` (by a hold that has not ended, or reserved for a move), ``free``.
    """

    id: str
    start: datetime
    length: timedelta
    location_id: str
    service_id: str | None
    blocked: bool = False
    cancelled: bool = False
    closures: int = 0
    """How many closures cover it."""
    appointment_id: str | None = None
    hold: Hold | None = None
    move_id: str | None = None
    """Reserved for an appointment that is to come from another calendar."""

    @property
    def end(self) -> datetime:
        """The first instant after it. Kept as a length: a calendar has a thousand slots, and one length or two."""
        return self.start + self.length

    @property
    def closed(self) -> bool:
        """Whether nobody can take it, whoever has it now."""
        return self.cancelled or self.blocked or self.closures > 0

    @property
    def status(self) -> str:
        """What it reads as, were its hold not past its time."""
        if self.cancelled:
            return "cancelled"
        if self.blocked or self.closures:
            return "blocked"
        if self.appointment_id is not None:
            return "booked"
        if self.move_id is not None or self.hold is not None:
            return "held"
        return "free"


def covers(windows: Iterable[Window], slot: Slot | NewSlot) -> bool:
    """Whether any of the windows overlaps the slot."""
    return any(
        window.start < slot.end
        and slot.start < window.end
        and (window.location_id is None or window.location_id == slot.location_id)
        for window in windows
    )


def start_of(slot: Slot | NewSlot) -> datetime:
    """When it begins: what slots are sorted by."""
    return slot.start
