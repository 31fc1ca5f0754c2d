"""Who may do what until when: the clinic's rules, as data and pure checks.

Staff pass a cut-off or a limit by giving an override reason; nobody books, moves into or holds the past. A value of
``None`` (for an interval) or ``0`` (for a count) means: no such rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from actors.errors import LimitReached, SlotUnavailable, TooLate


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The rules of one clinic. Intervals are exact time, not calendar days."""

    book_cutoff: timedelta = timedelta(0)
    move_cutoff: timedelta = timedelta(0)
    cancel_cutoff: timedelta = timedelta(0)
    horizon: timedelta | None = timedelta(days=180)
    hold_ttl: timedelta = timedelta(minutes=5)
    live_appointments_max: int = 10
    """Live appointments of one patient that have not ended, over all doctors."""
    holds_max: int = 3
    """Holds of one user that have not ended, over all doctors."""
    moves_max: int = 5
    """Moves of one appointment."""
    cross_doctor_moves: bool = True

    def check_offer(self, start: datetime, now: datetime, *, override: bool) -> None:
        """Refuse a slot that is past, too near or too far to be taken.

        Raises:
            SlotUnavailable: it has begun, or lies beyond the horizon.
            TooLate: it begins sooner than the booking cut-off allows.
        """
        if start <= now:
            raise SlotUnavailable("The slot is in the past.")
        if override:
            return
        if start - now < self.book_cutoff:
            raise TooLate("The slot begins too soon to be taken.")
        if self.horizon is not None and start - now > self.horizon:
            raise SlotUnavailable("The slot lies beyond the days that can be booked yet.")

    def check_move(self, start: datetime, moves: int, now: datetime, *, override: bool) -> None:
        """Refuse to move a visit that begins too soon or was moved too often.

        Raises:
            TooLate, LimitReached
        """
        if override:
            return
        if now > self.move_until(start):
            raise TooLate("The visit begins too soon to be moved.")
        if self.moves_max and moves >= self.moves_max:
            raise LimitReached("The visit has been moved as often as is allowed.")

    def check_cancel(self, start: datetime, now: datetime, *, override: bool) -> None:
        """Refuse to cancel a visit that begins too soon.

        Raises:
            TooLate
        """
        if not override and now > self.cancel_until(start):
            raise TooLate("The visit begins too soon to be cancelled.")

    def check_live_appointments(self, count: int, *, override: bool) -> None:
        """Refuse one more live appointment beside ``count`` others of the patient.

        Raises:
            LimitReached
        """
        if self.live_appointments_max and not override and count >= self.live_appointments_max:
            raise LimitReached("The patient has as many live appointments as are allowed.")

    def check_holds(self, count: int) -> None:
        """Refuse one more hold beside ``count`` others of the user.

        Raises:
            LimitReached
        """
        if self.holds_max and count >= self.holds_max:
            raise LimitReached("You hold as many slots as are allowed.")

    def move_until(self, start: datetime) -> datetime:
        """The last instant at which a visit that begins at ``start`` may be moved."""
        return start - self.move_cutoff

    def cancel_until(self, start: datetime) -> datetime:
        """The last instant at which a visit that begins at ``start`` may be cancelled."""
        return start - self.cancel_cutoff
