"""The rejections: what a calendar may answer instead of doing what it was asked.

A rejection is an expected answer, not a failure. It is raised by ``decide``, travels back as a reply, and the API maps
its ``code`` to a status in one table. Every rejection survives pickling and has a plain form (``as_plain``), because it
crosses processes and is stored for commands that were answered as pending.
"""

from __future__ import annotations

from typing import Any, ClassVar


class Rejection(Exception):
    """A refused command: ``code`` is for programs, ``detail`` for people."""

    code: ClassVar[str] = "rejected"
    default_detail: ClassVar[str] = "The command was refused."

    def __init__(self, detail: str | None = None) -> None:
        self.detail = detail if detail is not None else self.default_detail
        super().__init__(self.detail)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.detail,)

    def as_plain(self) -> dict[str, str]:
        """The rejection as plain data, for the wire and for the command table."""
        return {"code": self.code, "detail": self.detail}


class SlotTaken(Rejection):
    """The slot is held or booked by someone else."""

    code = "slot_taken"
    default_detail = "The slot is held or booked by someone else."


class SlotUnavailable(Rejection):
    """The slot is blocked, cancelled, in the past or beyond the horizon."""

    code = "slot_unavailable"
    default_detail = "The slot is blocked, cancelled or in the past."


class PatientOverlap(Rejection):
    """The patient has another live appointment at that time."""

    code = "patient_overlap"
    default_detail = "The patient has another live appointment at that time."


class TooLate(Rejection):
    """Past the cut-off to book, move or cancel."""

    code = "too_late"
    default_detail = "It is past the cut-off for this."


class TooEarly(Rejection):
    """A visit that has not begun cannot be fulfilled or missed."""

    code = "too_early"
    default_detail = "The visit has not begun."


class LimitReached(Rejection):
    """Too many live appointments, holds or moves."""

    code = "limit_reached"
    default_detail = "Too many live appointments, holds or moves."


class HoldExpiredRejection(Rejection):
    """The hold named is gone."""

    code = "hold_expired"
    default_detail = "The hold named is gone."


class NotLive(Rejection):
    """The appointment is cancelled, fulfilled or a no-show."""

    code = "not_live"
    default_detail = "The appointment is cancelled, fulfilled or a no-show."


class AlreadyArrived(Rejection):
    """The patient has arrived: the visit can be fulfilled or cancelled, not moved or missed."""

    code = "already_arrived"
    default_detail = "The patient has already arrived."


class VersionConflict(Rejection):
    """The appointment has changed since the version named in ``If-Match``."""

    code = "version_conflict"
    default_detail = "The appointment has changed since the version you named."


class NotFound(Rejection):
    """No such thing in this calendar."""

    code = "not_found"
    default_detail = "There is no such thing, or you may not see it."


class IdempotencyKeyReused(Rejection):
    """The key was used before with another request."""

    code = "idempotency_key_reused"
    default_detail = "This Idempotency-Key was used with another request."


REJECTIONS: dict[str, type[Rejection]] = {
    rejection.code: rejection
    for rejection in (
        SlotTaken,
        SlotUnavailable,
        PatientOverlap,
        TooLate,
        TooEarly,
        LimitReached,
        HoldExpiredRejection,
        NotLive,
        AlreadyArrived,
        VersionConflict,
        NotFound,
        IdempotencyKeyReused,
    )
}


def from_plain(plain: dict[str, str]) -> Rejection:
    """The rejection that ``as_plain`` described.

    Raises:
        KeyError: the code is none of ours.
    """
    return REJECTIONS[plain["code"]](plain["detail"])
