"""From what was caused, and from what people choose, to rows for the notifiers: ``notifier.plan`` over the tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

import structlog

from notifier.contents import preferences_of
from notifier.plan import ACCOUNT, NEWS_FOR, REMINDER, Planned, PlannedVisit, Recipient, plan_reminders, plan_visit
from notifier.preferences import Channel, Offset, Preferences, Topic
from persistence.repositories.notifications import Cause, NewNotification, Notifications, RecipientRow, VisitRow
from persistence.unit_of_work import UnitOfWork

log = structlog.get_logger()


async def plan_causes(work: UnitOfWork, *, channels: frozenset[Channel], limit: int, now: datetime) -> int:
    """Plan the oldest causes that nobody has planned or is planning; returns how many.

    Raises:
        DatabaseUnavailable
    """
    notifications = Notifications(work.connection)
    causes = await notifications.take_causes(limit=limit, now=now)
    if not causes:
        return 0
    visits = await notifications.visits({each.appointment_id for each in causes if each.appointment_id})
    recipients = await notifications.recipients({visit.patient_id for visit in visits.values()})
    new: list[NewNotification] = []
    for cause in causes:
        visit = visits.get(cause.appointment_id or "")
        told = [_recipient(each) for each in recipients.get(visit.patient_id, [])] if visit is not None else []
        try:
            new += [each for each in _planned(cause, visit, told) if each.channel in channels]
        except (ValueError, TypeError, LookupError, OverflowError) as failure:
            # Whatever it was, the causes behind it have to be planned.
            log.error("cause_not_planned", cause_id=cause.id, kind=cause.kind, exc_info=failure)
    await notifications.void_before({visit.id: visit.version for visit in visits.values()}, now=now)
    await notifications.add(new)
    await notifications.mark_planned([each.id for each in causes], now=now)
    return len(causes)


async def plan_reminders_anew(
    user_id: str,
    preferences: Preferences,
    timezone: str,
    work: UnitOfWork,
    *,
    channels: frozenset[Channel],
    now: datetime,
) -> None:
    """Have the reminders that are to come be as a user wants them now.

    One whose moment has come and that was not sent yet, as in quiet hours, is sent still, if it is wanted.
    """
    notifications = Notifications(work.connection)
    recipient = Recipient(user_id=user_id, timezone=timezone, preferences=preferences)
    visits = {visit.id: visit for visit in await notifications.coming_visits(user_id, now=now)}
    causes = await notifications.causes_of(visits.values())
    new = {
        (visit.id, visit.version, each.offset, each.channel): _message(causes[visit.id], visit, each)
        for visit in visits.values()
        if visit.id in causes
        for each in plan_reminders(now, _planned_visit(visit), recipient)
        if each.channel in channels
    }
    void = []
    for each in await notifications.open_messages(user_id, kind=REMINDER):
        channel, visit = Channel(each.channel), visits.get(each.appointment_id or "")
        anew = new.get((each.appointment_id or "", each.version or 0, each.ahead, channel))
        if anew is not None and (anew.due_at, anew.expires_at) == (each.due_at, each.expires_at):
            continue
        wanted = each.ahead in preferences.reminders and preferences.wants(Topic.REMINDER, channel)
        if not wanted or visit is None or Offset.parse(each.ahead).before(visit.start, visit.timezone) > now:
            void.append(each.id)
    await notifications.void(void, now=now)
    await notifications.add(list(new.values()))


def _planned(cause: Cause, visit: VisitRow | None, recipients: Sequence[Recipient]) -> Iterator[NewNotification]:
    """The messages that a cause leads to, on every channel that there could be."""
    if visit is not None and cause.version is not None:
        for each in plan_visit(cause.kind, cause.version, cause.caused_at, _planned_visit(visit), recipients):
            yield _message(cause.id, visit, each)
    elif cause.user_id is not None:
        yield NewNotification(
            outbox_id=cause.id,
            kind=cause.kind,
            ahead="",
            channel=ACCOUNT[cause.kind],
            user_id=cause.user_id,
            appointment_id=None,
            version=None,
            due_at=cause.caused_at,
            expires_at=cause.caused_at + NEWS_FOR,
        )


def _message(cause_id: str, visit: VisitRow, planned: Planned) -> NewNotification:
    return NewNotification(
        outbox_id=cause_id,
        kind=planned.kind,
        ahead=planned.offset,
        channel=planned.channel,
        user_id=planned.user_id,
        appointment_id=visit.id,
        version=visit.version,
        due_at=planned.due_at,
        expires_at=planned.expires_at,
    )


def _planned_visit(visit: VisitRow) -> PlannedVisit:
    return PlannedVisit(
        version=visit.version,
        start=visit.start,
        live=visit.live,
        displaced=visit.displaced,
        timezone=visit.timezone,
    )


def _recipient(row: RecipientRow) -> Recipient:
    return Recipient(user_id=row.user_id, timezone=row.timezone, preferences=preferences_of(row.user_id, row.chosen))
