"""What a message is about, read when it is to be sent: only then is it known whether it is still true and wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

import structlog

from notifier.languages import language_of
from notifier.plan import REMINDER, TOPICS, UNASKED, Recipient, quiet_until
from notifier.preferences import Channel, Preferences
from persistence.repositories.appointments import AppointmentRow, Appointments
from persistence.repositories.directory import Directory, Location
from persistence.repositories.notifications import Notification, Notifications
from persistence.repositories.patients import Patient
from persistence.repositories.push_subscriptions import PushSubscription, PushSubscriptions
from persistence.repositories.templates import Template, Templates
from persistence.repositories.users import User
from persistence.sealed import place
from persistence.unit_of_work import UnitOfWork

log = structlog.get_logger()

A_DAY: Final = timedelta(days=1)
TO_THE_VERIFIED: Final = frozenset({"password_reset", "new_device"})
"""What is said of an account only to whom it is known to belong to."""
UNCONFIRMED_A_DAY_MAX: Final = 5
"""Messages about visits on one day to an address that may be somebody else's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VisitContent:
    """A visit, as a message tells of it."""

    appointment: AppointmentRow
    location: Location
    doctor: str | None = field(repr=False)
    """The name, unless the doctor has been erased."""
    patient: Patient | None = field(repr=False)
    """For whom it is, where that is somebody else than who is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """A message that is to be sent, with all that it says."""

    notification: Notification
    user: User
    visit: VisitContent | None
    details: Mapping[str, Any] = field(repr=False)
    """Of a message about an account: a code and when it expires, or what else there is to tell."""
    subscriptions: tuple[PushSubscription, ...] = ()
    """Of the user's browsers, if it is to be pushed."""
    template: Template | None = None
    """What an administrator has written for it."""
    confirmed: bool
    """Whether the address is known to be the user's. If not, whoever reads there learns no name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotSent:
    """A message that is not to be sent, and why."""

    notification: Notification
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NotNow:
    """A message that has to wait: its recipient is not to be disturbed."""

    notification: Notification
    until: datetime


async def read_contents(
    leased: Sequence[Notification], work: UnitOfWork, *, now: datetime, a_day_max: int
) -> list[Content | NotNow | NotSent]:
    """What each of these messages says now; at most ``a_day_max`` about visits to one user on one day (0: any number).

    What the clinic has done with a visit is told however many there were.

    Raises:
        DatabaseUnavailable
    """
    notifications = Notifications(work.connection)
    user_ids = {each.user_id for each in leased}
    users = await work.users.get_many(user_ids)
    visits = await _visits(leased, work)
    chosen = await notifications.chosen(user_ids)
    sent = await notifications.sent_since(user_ids, now - A_DAY) if a_day_max else {}
    sealed = await notifications.sealed({each.outbox_id for each in leased if each.appointment_id is None})
    pushed = {each.user_id for each in leased if each.channel == Channel.PUSH}
    subscriptions = await PushSubscriptions(work.connection, work.vault).of(pushed) if pushed else {}
    templates = await Templates(work.connection).current()
    found: list[Content | NotNow | NotSent] = []
    for each in leased:
        user, visit = users.get(each.user_id), visits.get(each.appointment_id or "")
        preferences = preferences_of(each.user_id, chosen.get(each.user_id))
        outcome = _why_not(each, user, visit, preferences, now)
        if outcome is None and user is not None and visit is not None:
            recipient = Recipient(user_id=user.id, timezone=user.timezone, preferences=preferences)
            until = quiet_until(each.kind, visit.appointment.start, each.expires_at, recipient, now)
            if until is not None:
                found.append(NotNow(notification=each, until=until))
                continue
        if outcome is None and user is not None and a_day_max and each.appointment_id and each.kind not in UNASKED:
            midnight = now.astimezone(ZoneInfo(user.timezone)).replace(hour=0, minute=0, second=0, microsecond=0)
            today = [channel for channel, at in sent.setdefault(user.id, []) if at >= midnight]
            unconfirmed = not _is_confirmed(each, user) and today.count(each.channel) >= UNCONFIRMED_A_DAY_MAX
            if unconfirmed or len(today) >= a_day_max:
                outcome = "capped"
            else:
                sent[user.id].append((each.channel, now))
        if outcome is not None or user is None:
            found.append(NotSent(notification=each, outcome=outcome or "unreachable"))
            continue
        details: Mapping[str, Any] = {}
        if each.outbox_id in sealed:
            details = work.users.data_key(user).unseal_json(
                sealed[each.outbox_id], place("outbox", each.outbox_id, "sealed")
            )
            if "expires_at" in details and datetime.fromisoformat(details["expires_at"]) <= now:
                found.append(NotSent(notification=each, outcome="late"))
                continue
        if visit is not None and visit.patient is not None and visit.patient.id == user.patient_id:
            visit = VisitContent(
                appointment=visit.appointment, location=visit.location, doctor=visit.doctor, patient=None
            )
        found.append(
            Content(
                notification=each,
                user=user,
                visit=visit,
                details=details,
                subscriptions=tuple(subscriptions.get(user.id, ())),
                template=templates.get((each.kind, language_of(user.locale))),
                confirmed=_is_confirmed(each, user),
            )
        )
    return found


def preferences_of(user_id: str, chosen: Mapping[str, Any] | None) -> Preferences:
    """What a user has chosen. Of what cannot be read, what holds for everybody: nobody hears nothing for it."""
    try:
        return Preferences.from_plain(chosen)
    except (ValueError, TypeError, LookupError, AttributeError) as failure:
        log.error("preferences_unreadable", user_id=user_id, reason=type(failure).__name__)
        return Preferences()


def _why_not(
    notification: Notification,
    user: User | None,
    visit: VisitContent | None,
    preferences: Preferences,
    now: datetime,
) -> str | None:
    """What becomes of a message that is not to be sent; ``None``: it is to be sent."""
    if notification.expires_at <= now:
        return "late"
    if user is None or user.disabled_at is not None:
        return "unreachable"
    if notification.appointment_id is not None:
        if visit is None or visit.appointment.version != notification.version:
            return "void"
        if not preferences.wants(TOPICS[notification.kind], Channel(notification.channel)):
            return "unwanted"
        if notification.kind == REMINDER and notification.ahead not in preferences.reminders:
            return "unwanted"
    return None if _has_address(notification, user) else "unreachable"


def _has_address(notification: Notification, user: User) -> bool:
    """Whether there is somewhere to send it: an SMS about a visit goes to a number that is known to be the user's."""
    match notification.channel:
        case Channel.EMAIL:
            return bool(user.email) and (user.email_verified or notification.kind not in TO_THE_VERIFIED)
        case Channel.SMS:
            return bool(user.phone) and (user.phone_verified or notification.appointment_id is None)
        case _:
            return True  # Subscriptions are looked up by whoever pushes.


def _is_confirmed(notification: Notification, user: User) -> bool:
    return notification.channel != Channel.EMAIL or user.email_verified


async def _visits(leased: Sequence[Notification], work: UnitOfWork) -> dict[str, VisitContent]:
    rows = await Appointments(work.connection).get_many(
        {each.appointment_id for each in leased if each.appointment_id is not None}
    )
    if not rows:
        return {}
    directory = Directory(work.connection, work.vault)
    names = await directory.names({row.doctor_id for row in rows})
    locations = await directory.locations_of({row.location_id for row in rows})
    patients = await work.patients.get_many({row.patient_id for row in rows})
    return {
        row.id: VisitContent(
            appointment=row,
            location=locations[row.location_id],
            doctor=names.get(row.doctor_id),
            patient=patients.get(row.patient_id),
        )
        for row in rows
    }
