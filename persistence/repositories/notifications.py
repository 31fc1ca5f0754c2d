"""Messages to people: their causes in the outbox, leases on those that are due, and what became of each."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import delete, func, literal, select, text, true, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from persistence.identifiers import new_id
from persistence.sealed import DataKey, place
from persistence.tables import (
    app_user,
    appointment,
    location,
    notification,
    notification_preference,
    outbox,
    user_patient,
)

VOID: Final = "void"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """A row of the outbox: something that people have to be told."""

    id: str
    kind: str
    appointment_id: str | None
    version: int | None
    user_id: str | None
    caused_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class VisitRow:
    """What has to be known of a visit to plan messages about it."""

    id: str
    version: int
    start: datetime
    live: bool
    displaced: bool
    patient_id: str
    timezone: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipientRow:
    """A user who may book for a patient."""

    user_id: str
    timezone: str
    chosen: Mapping[str, Any] | None
    """Their preferences, if they have chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewNotification:
    """A message to be sent."""

    outbox_id: str
    kind: str
    ahead: str
    channel: str
    user_id: str
    appointment_id: str | None
    version: int | None
    due_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """A message, and how far it has come."""

    id: str
    outbox_id: str
    kind: str
    ahead: str
    channel: str
    user_id: str
    appointment_id: str | None
    version: int | None
    due_at: datetime
    expires_at: datetime
    next_at: datetime
    attempts: int
    ended_at: datetime | None
    outcome: str | None
    failure: str | None
    leased_until: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What became of a message."""

    id: str
    outcome: str
    at: datetime
    failure: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Postponed:
    """A message to be tried again; only by whom has the lease of that attempt."""

    id: str
    attempts: int
    next_at: datetime
    failure: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """What is due on a channel, and what nobody has planned yet. At most ``DUE_MAX`` of each: more are not counted."""

    due: int
    oldest_at: datetime | None
    """Since when the one that waits longest could have been tried."""
    unplanned: int


DUE_MAX: Final = 100_000
TOGETHER_MAX: Final = 1_000
"""Messages in one statement, which may have 65,535 parameters."""


class Notifications:
    """Reads and writes them in one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    # Causing

    async def cause(self, kind: str, user_id: str, details: Mapping[str, Any], *, key: DataKey, now: datetime) -> None:
        """Have a user be told something about the account; ``details`` are sealed."""
        cause_id = new_id()
        await self._connection.execute(
            insert(outbox).values(
                id=cause_id,
                kind=kind,
                user_id=user_id,
                sealed=key.seal_json(details, place("outbox", cause_id, "sealed")),
                due_at=now,
            )
        )

    # Planning

    async def take_causes(self, *, limit: int, now: datetime) -> list[Cause]:
        """What nobody has planned yet, the oldest first; others leave it alone until this transaction ends.

        It has happened by ``now``, whatever the clock said of whoever wrote it.
        """
        rows = await self._connection.execute(
            select(outbox)
            .where(outbox.c.planned_at.is_(None))
            .order_by(outbox.c.due_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        return [
            Cause(
                id=row.id,
                kind=row.kind,
                appointment_id=row.appointment_id,
                version=row.version,
                user_id=row.user_id,
                caused_at=min(row.due_at, now),
            )
            for row in rows
        ]

    async def visits(self, appointment_ids: Collection[str]) -> dict[str, VisitRow]:
        """Visits by their ids."""
        rows = await self._connection.execute(_VISITS.where(appointment.c.id.in_(appointment_ids)))
        return {row.id: _visit(row) for row in rows}

    async def coming_visits(self, user_id: str, *, now: datetime) -> list[VisitRow]:
        """The live visits to come of those whom a user may book for."""
        mine = select(user_patient.c.patient_id).where(user_patient.c.user_id == user_id)
        rows = await self._connection.execute(
            _VISITS.where(appointment.c.patient_id.in_(mine), appointment.c.live, appointment.c.starts_at > now)
        )
        return [_visit(row) for row in rows]

    async def causes_of(self, visits: Collection[VisitRow]) -> dict[str, str]:
        """By appointment, the row of the outbox that its present version was caused with."""
        rows = await self._connection.execute(
            select(outbox.c.appointment_id, outbox.c.id).where(
                tuple_(outbox.c.appointment_id, outbox.c.version).in_([(each.id, each.version) for each in visits])
            )
        )
        return {row.appointment_id: row.id for row in rows}

    async def recipients(self, patient_ids: Collection[str]) -> dict[str, list[RecipientRow]]:
        """By patient, the users who may book for them and have not been disabled or erased."""
        rows = await self._connection.execute(
            select(
                user_patient.c.patient_id,
                app_user.c.id,
                app_user.c.timezone,
                notification_preference.c.chosen,
            )
            .join(app_user, app_user.c.id == user_patient.c.user_id)
            .outerjoin(notification_preference, notification_preference.c.user_id == app_user.c.id)
            .where(user_patient.c.patient_id.in_(patient_ids), app_user.c.disabled_at.is_(None))
        )
        found: dict[str, list[RecipientRow]] = {}
        for row in rows:
            recipient = RecipientRow(user_id=row.id, timezone=row.timezone, chosen=row.chosen)
            found.setdefault(row.patient_id, []).append(recipient)
        return found

    async def add(self, new: Sequence[NewNotification]) -> None:
        """Keep messages; those that there are already stay as they are, but what was void is to be sent again."""
        for first in range(0, len(new), TOGETHER_MAX):
            await self._add(new[first : first + TOGETHER_MAX])

    async def _add(self, new: Sequence[NewNotification]) -> None:
        statement = insert(notification).values(
            [{"id": new_id(), "next_at": each.due_at} | asdict(each) for each in new]
        )
        # Only preferences make the same message twice: a reminder was switched off, which made it void, and on again.
        await self._connection.execute(
            statement.on_conflict_do_update(
                index_elements=["outbox_id", "kind", "ahead", "channel", "user_id"],
                set_={
                    "ended_at": None,
                    "outcome": None,
                    "due_at": statement.excluded.due_at,
                    "next_at": statement.excluded.due_at,
                    "expires_at": statement.excluded.expires_at,
                },
                where=notification.c.outcome == VOID,
            )
        )

    async def void_before(self, versions: Mapping[str, int], *, now: datetime) -> None:
        """End what is still to be said of earlier versions of these appointments."""
        if versions:
            await self._connection.execute(
                _VOID_BEFORE, {"ids": list(versions), "versions": list(versions.values()), "now": now}
            )

    async def open_messages(self, user_id: str, *, kind: str) -> list[Notification]:
        """A user's messages of a kind that have not ended."""
        rows = await self._connection.execute(
            select(notification).where(
                notification.c.user_id == user_id, notification.c.kind == kind, notification.c.ended_at.is_(None)
            )
        )
        return [_notification(row) for row in rows]

    async def void(self, notification_ids: Collection[str], *, now: datetime) -> None:
        """End these messages, but for those that have ended."""
        await self._connection.execute(
            update(notification)
            .where(notification.c.id.in_(notification_ids), notification.c.ended_at.is_(None))
            .values(ended_at=now, outcome=VOID)
        )

    async def mark_planned(self, cause_ids: Collection[str], *, now: datetime) -> None:
        """These causes have been planned."""
        await self._connection.execute(update(outbox).where(outbox.c.id.in_(cause_ids)).values(planned_at=now))

    # Sending

    async def lease(self, channel: str, *, now: datetime, until: datetime, limit: int) -> list[Notification]:
        """Messages that are due, the longest waiting first; nobody else gets them before ``until``."""
        rows = await self._connection.execute(LEASE, {"channel": channel, "now": now, "until": until, "limit": limit})
        return sorted(map(_notification, rows), key=lambda each: (each.due_at, each.id))

    async def next_at(self, channel: str, *, now: datetime) -> datetime | None:
        """When the next message of the channel can be tried, of those that nobody has leased."""
        return await self._connection.scalar(
            select(notification.c.next_at)
            .where(
                notification.c.channel == channel,
                notification.c.ended_at.is_(None),
                func.coalesce(notification.c.leased_until <= now, true()),
            )
            .order_by(notification.c.next_at)
            .limit(1)
        )

    async def end(self, ended: Sequence[Ended]) -> None:
        """Write down what became of messages; what has ended stays as it is, unless it was void and has been sent."""
        await self._connection.execute(
            _END,
            {
                "ids": [each.id for each in ended],
                "outcomes": [each.outcome for each in ended],
                "ats": [each.at for each in ended],
                "failures": [each.failure for each in ended],
            },
        )

    async def postpone(self, postponed: Sequence[Postponed]) -> None:
        """Let messages be tried again later; whose lease has ended meanwhile is left to who has it now."""
        await self._connection.execute(
            _POSTPONE,
            {
                "ids": [each.id for each in postponed],
                "attempts": [each.attempts for each in postponed],
                "next_ats": [each.next_at for each in postponed],
                "failures": [each.failure for each in postponed],
            },
        )

    async def sent_since(self, user_ids: Collection[str], since: datetime) -> dict[str, list[tuple[str, datetime]]]:
        """By which channel and when messages about visits were sent to each of these users since an instant."""
        rows = await self._connection.execute(
            select(notification.c.user_id, notification.c.channel, notification.c.ended_at).where(
                notification.c.user_id.in_(user_ids),
                notification.c.appointment_id.is_not(None),
                notification.c.outcome == "sent",
                notification.c.ended_at > since,
            )
        )
        found: dict[str, list[tuple[str, datetime]]] = {}
        for row in rows:
            found.setdefault(row.user_id, []).append((row.channel, row.ended_at))
        return found

    async def sealed(self, cause_ids: Collection[str]) -> dict[str, bytes]:
        """By cause, what is sealed beside it."""
        rows = await self._connection.execute(
            select(outbox.c.id, outbox.c.sealed).where(outbox.c.id.in_(cause_ids), outbox.c.sealed.is_not(None))
        )
        return {row.id: bytes(row.sealed) for row in rows}

    async def backlog(self, channel: str, *, now: datetime) -> Backlog:
        """What is due on a channel."""
        row = (await self._connection.execute(_BACKLOG, {"channel": channel, "now": now, "most": DUE_MAX})).one()
        return Backlog(due=row.due, oldest_at=row.oldest_at, unplanned=row.unplanned)

    # Preferences

    async def chosen(self, user_ids: Collection[str]) -> dict[str, Mapping[str, Any]]:
        """The preferences of those of these users who have chosen."""
        rows = await self._connection.execute(
            select(notification_preference).where(notification_preference.c.user_id.in_(user_ids))
        )
        return {row.user_id: row.chosen for row in rows}

    async def choose(self, user_id: str, chosen: Mapping[str, Any], *, now: datetime) -> None:
        """Keep a user's preferences."""
        statement = insert(notification_preference).values(user_id=user_id, chosen=chosen, updated_at=now)
        await self._connection.execute(
            statement.on_conflict_do_update(
                index_elements=["user_id"], set_={"chosen": statement.excluded.chosen, "updated_at": now}
            )
        )

    async def forget_preferences(self, user_id: str) -> None:
        """Those of a user who is erased."""
        await self._connection.execute(
            delete(notification_preference).where(notification_preference.c.user_id == user_id)
        )

    # Looking

    async def page(
        self,
        *,
        user_id: str | None = None,
        channel: str | None = None,
        outcome: str | None = None,
        open_only: bool = False,
        before: str | None,
        limit: int,
    ) -> list[Notification]:
        """Messages that meet all that is given, the newest first."""
        query = select(notification).order_by(notification.c.id.desc()).limit(limit)
        for column, value in (
            (notification.c.user_id, user_id),
            (notification.c.channel, channel),
            (notification.c.outcome, outcome),
        ):
            if value is not None:
                query = query.where(column == value)
        if open_only:
            query = query.where(notification.c.ended_at.is_(None))
        if before is not None:
            query = query.where(notification.c.id < before)
        return [_notification(row) for row in await self._connection.execute(query)]

    async def named(self, notification_ids: Collection[str]) -> list[Notification]:
        """Those of these ids that there are."""
        rows = await self._connection.execute(select(notification).where(notification.c.id.in_(notification_ids)))
        return [_notification(row) for row in rows]

    async def resend(self, notification_id: str, *, now: datetime) -> bool:
        """Have a message that ended unsent tried again at once; whether there is such a one."""
        changed = await self._connection.scalar(
            update(notification)
            .where(
                notification.c.id == notification_id,
                notification.c.outcome.in_(("dead", "unreachable", "capped", "unwanted")),
            )
            .values(ended_at=None, outcome=None, next_at=now, leased_until=None, attempts=0)
            .returning(literal(True))
        )
        return bool(changed)


_VISITS = select(
    appointment.c.id,
    appointment.c.version,
    appointment.c.starts_at,
    appointment.c.live,
    appointment.c.displaced,
    appointment.c.patient_id,
    location.c.timezone,
).join(location, location.c.id == appointment.c.location_id)

_VOID_BEFORE = text(
    "UPDATE notification AS n SET ended_at = :now, outcome = 'void'"
    " FROM unnest(CAST(:ids AS uuid[]), CAST(:versions AS integer[])) AS reached(id, version)"
    " WHERE n.appointment_id = reached.id AND n.version < reached.version AND n.ended_at IS NULL"
)
LEASE: Final = text(
    """
    UPDATE notification AS n SET leased_until = :until, attempts = n.attempts + 1
    FROM (
        SELECT id FROM notification
        WHERE channel = :channel AND ended_at IS NULL AND next_at <= :now
            AND coalesce(leased_until <= :now, true)
        ORDER BY next_at LIMIT :limit FOR UPDATE SKIP LOCKED
    ) AS taken
    WHERE n.id = taken.id
    RETURNING n.*
    """
).columns(*notification.c)
_END = text(
    """
    UPDATE notification AS n SET ended_at = d.at, outcome = d.outcome, failure = coalesce(d.failure, n.failure)
    FROM unnest(CAST(:ids AS uuid[]), CAST(:outcomes AS text[]), CAST(:ats AS timestamptz[]),
        CAST(:failures AS text[])) AS d(id, outcome, at, failure)
    WHERE n.id = d.id AND (n.ended_at IS NULL OR (n.outcome = 'void' AND d.outcome = 'sent'))
    """
)
_POSTPONE = text(
    """
    UPDATE notification AS n SET next_at = d.next_at, leased_until = NULL, failure = coalesce(d.failure, n.failure)
    FROM unnest(CAST(:ids AS uuid[]), CAST(:attempts AS integer[]), CAST(:next_ats AS timestamptz[]),
        CAST(:failures AS text[])) AS d(id, attempts, next_at, failure)
    WHERE n.id = d.id AND n.attempts = d.attempts AND n.ended_at IS NULL
    """
)
_BACKLOG = text(
    """
    SELECT count(*) AS due, min(next_at) AS oldest_at,
        (SELECT count(*) FROM (SELECT FROM outbox WHERE planned_at IS NULL LIMIT :most) AS unplanned) AS unplanned
    FROM (
        SELECT next_at FROM notification
        WHERE channel = :channel AND ended_at IS NULL AND next_at <= :now
            AND coalesce(leased_until <= :now, true)
        ORDER BY next_at LIMIT :most
    ) AS waiting
    """
)


def _visit(row: Any) -> VisitRow:
    return VisitRow(
        id=row.id,
        version=row.version,
        start=row.starts_at,
        live=row.live,
        displaced=row.displaced,
        patient_id=row.patient_id,
        timezone=row.timezone,
    )


def _notification(row: Any) -> Notification:
    return Notification(**{name: getattr(row, name) for name in Notification.__slots__})
