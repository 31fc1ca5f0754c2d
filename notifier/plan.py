"""Who hears of a visit, when and how: pure rules, from a cause in the outbox to rows for the notifiers. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final

from notifier.preferences import Channel, Offset, Preferences, Topic

REMINDER: Final = "reminder"
TOPICS: Final = {
    "booked": Topic.BOOKED,
    "moved": Topic.MOVED,
    "cancelled_by_patient": Topic.CANCELLED,
    "cancelled_by_clinic": Topic.CANCELLED,
    "displaced": Topic.DISPLACED,
    "restored": Topic.DISPLACED,
    REMINDER: Topic.REMINDER,
}
"""What a message about a visit is about, by its kind."""
UNASKED: Final = frozenset({"cancelled_by_clinic", "displaced", "restored"})
"""What the clinic has done, and may wait for the end of the quiet hours; what one does oneself is confirmed at once."""
NOTICE: Final = timedelta(hours=3)
"""So long before a visit people know what the clinic has done with it, be it in their quiet hours."""
WITH_REMINDERS: Final = frozenset({"booked", "moved", "restored"})
ACCOUNT: Final = {
    "email_verification": Channel.EMAIL,
    "phone_verification": Channel.SMS,
    "password_reset": Channel.EMAIL,
    "new_device": Channel.EMAIL,
    "refused": Channel.EMAIL,
    "template_test": Channel.EMAIL,
}
"""The messages about accounts, and how they are sent: nobody can switch them off."""
NEWS_FOR: Final = timedelta(days=1)
"""That a visit does not take place matters so long at least."""
CONFIRMED_FOR: Final = timedelta(days=3)
"""Who has not been told by then knows, or is told by the reminder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedVisit:
    """A visit as it stands when it is planned."""

    version: int
    start: datetime
    live: bool
    displaced: bool
    """It cannot take place as it stands."""
    timezone: str
    """Of its location."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipient:
    """A user who may book for the patient."""

    user_id: str
    timezone: str
    preferences: Preferences


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A message to be sent."""

    kind: str
    offset: str
    """Of a reminder, how long before the visit; else empty."""
    channel: Channel
    user_id: str
    due_at: datetime
    expires_at: datetime
    """From then on it does not matter any more."""


def plan_visit(
    kind: str, version: int, caused_at: datetime, visit: PlannedVisit, recipients: Sequence[Recipient]
) -> Iterator[Planned]:
    """The messages about a change of a visit that made it ``version``: none once another change has come after it."""
    if visit.version != version:
        return
    if TOPICS[kind] is Topic.CANCELLED:
        expires_at = max(visit.start, caused_at + NEWS_FOR)
    else:
        expires_at = min(visit.start, caused_at + CONFIRMED_FOR)
    for recipient in recipients:
        due_at = caused_at
        if kind in UNASKED:
            latest = latest_at(kind, visit.start, expires_at)
            due_at = _not_in_quiet_hours(recipient, due_at, not_before=caused_at, not_after=latest)
        yield from _by_channel(recipient, kind, "", due_at, expires_at)
        if kind in WITH_REMINDERS:
            yield from plan_reminders(caused_at, visit, recipient)


def plan_reminders(now: datetime, visit: PlannedVisit, recipient: Recipient) -> Iterator[Planned]:
    """The reminders of a visit that are still to come. Once the next one is due, one before it is too late."""
    if not visit.live or visit.displaced:
        return
    found = []
    for offset in recipient.preferences.reminders:
        at = Offset.parse(offset).before(visit.start, visit.timezone)
        if at > now:
            found.append((_not_in_quiet_hours(recipient, at, not_before=now, not_after=visit.start), at, offset))
    # Of those that quiet hours have put off to the same moment, the last one tells.
    due = {due_at: offset for due_at, _, offset in sorted(found)}
    for due_at, expires_at in pairwise([*due, visit.start]):
        yield from _by_channel(recipient, REMINDER, due[due_at], due_at, expires_at)


def latest_at(kind: str, start: datetime, expires_at: datetime) -> datetime:
    """Until when a message about a visit may wait for the end of quiet hours."""
    return min(expires_at, start - NOTICE) if kind in UNASKED else expires_at


def quiet_until(
    kind: str, start: datetime, expires_at: datetime, recipient: Recipient, now: datetime
) -> datetime | None:
    """When a message that is due may be sent, if not now: it came late, into the quiet hours."""
    if kind not in UNASKED and kind != REMINDER:
        return None
    latest = latest_at(kind, start, expires_at)
    until = _not_in_quiet_hours(recipient, now, not_before=now, not_after=latest)
    return until if until > now else None


def _by_channel(
    recipient: Recipient, kind: str, offset: str, due_at: datetime, expires_at: datetime
) -> Iterator[Planned]:
    for channel in Channel:
        if due_at < expires_at and recipient.preferences.wants(TOPICS[kind], channel):
            yield Planned(
                kind=kind,
                offset=offset,
                channel=channel,
                user_id=recipient.user_id,
                due_at=due_at,
                expires_at=expires_at,
            )


def _not_in_quiet_hours(
    recipient: Recipient, instant: datetime, *, not_before: datetime, not_after: datetime
) -> datetime:
    """After the quiet hours; before them, if after them is too late; in them, if before them is over."""
    if recipient.preferences.quiet is None:
        return instant
    around = recipient.preferences.quiet.around(instant, recipient.timezone)
    if around is None:
        return instant
    begin, end = around
    if end < not_after:
        return end
    return begin if begin > not_before else instant
