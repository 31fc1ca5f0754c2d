"""The journal as those who follow calendars read it: where a calendar stands, what it looks like, what came after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import text

from actors.changes import AppointmentChange, Change, Effect, SlotChange
from persistence.lookups import Lookups, Reached
from persistence.unit_of_work import UnitOfWork

CHANGES_MAX: Final = 500
"""Read in one go."""
REPLAY_MAX: Final = 10_000
"""Who is further behind begins anew: looking at the calendar is less than hearing all of that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A calendar at a sequence number: the slots that begin in a range."""

    sequence: int
    slots: tuple[SlotChange, ...]
    """By start, then id. A hold past its time reads as free."""


_SNAPSHOT = text(
    "SELECT c.sequence, s.id::text, s.starts_at, s.ends_at, s.location_id::text, s.service_id::text,"
    " CASE WHEN s.status = 'held' AND s.held_until <= :now THEN 'free' ELSE s.status END"
    " FROM calendar AS c LEFT JOIN slot AS s"
    " ON s.doctor_id = c.doctor_id AND s.starts_at >= :start AND s.starts_at < :end"
    " WHERE c.doctor_id = :doctor_id ORDER BY s.starts_at, s.id"
)
_AFTER = text(
    "SELECT sequence, at, effect FROM event WHERE doctor_id = :doctor_id AND sequence > :sequence"
    " ORDER BY sequence LIMIT :most"
)
_SEQUENCE = text("SELECT sequence FROM calendar WHERE doctor_id = :doctor_id")
_UNTOLD = text("SELECT 1 FROM event WHERE doctor_id = :doctor_id AND sequence > :sequence AND effect IS NULL LIMIT 1")
_SLOTS = text(
    "SELECT id::text, starts_at, ends_at, location_id::text, service_id::text FROM slot"
    " WHERE id = ANY(CAST(:ids AS uuid[]))"
)
_REACHED = text("SELECT doctor_id::text, sequence FROM calendar WHERE sequence > 0")
_MARK = text("SELECT pg_snapshot_xmin(pg_current_snapshot())::text, pg_current_wal_flush_lsn()::text")


class ChangeLog:
    """Reads in transactions of its own, on the primary: nothing here is older than what was announced.

    Raises:
        DatabaseUnavailable: from every call.
    """

    def __init__(self, begin: Callable[[], UnitOfWork], lookups: Lookups) -> None:
        self._begin = begin
        self._lookups = lookups

    async def snapshot(self, doctor_id: str, start: datetime, end: datetime, now: datetime) -> Snapshot | None:
        """The calendar's slots that begin in ``[start, end)``, and the number they are true for; ``None``: no such."""
        values = {"doctor_id": doctor_id, "start": start, "end": end, "now": now}
        async with self._begin() as work:
            rows = (await work.connection.execute(_SNAPSHOT, values)).all()
        if not rows:
            return None
        return Snapshot(
            sequence=rows[0][0],
            slots=tuple(
                SlotChange(
                    id=slot_id,
                    start=starts_at,
                    end=ends_at,
                    location_id=location_id,
                    service_id=service_id,
                    status=status,
                )
                for _, slot_id, starts_at, ends_at, location_id, service_id, status in rows
                if slot_id is not None
            ),
        )

    async def reaches(self, doctor_id: str, sequence: int) -> bool | None:
        """Whether all that came after that number can be told; ``None``: no such calendar.

        Not where the calendar never had it, where it is too far behind, or where events are so old that they do not say
        what they changed.
        """
        async with self._begin() as work:
            reached = (await work.connection.execute(_SEQUENCE, {"doctor_id": doctor_id})).scalar_one_or_none()
            if reached is None:
                return None
            if not reached - REPLAY_MAX <= sequence <= reached:
                return False
            untold = await work.connection.execute(_UNTOLD, {"doctor_id": doctor_id, "sequence": sequence})
            return untold.first() is None

    async def after(self, doctor_id: str, sequence: int) -> list[Change]:
        """The changes that follow, without a gap, at most ``CHANGES_MAX``; none where an event does not say its own."""
        values = {"doctor_id": doctor_id, "sequence": sequence, "most": CHANGES_MAX}
        async with self._begin() as work:
            rows = (await work.connection.execute(_AFTER, values)).all()
            if any(effect is None for _, _, effect in rows):
                return []
            ids = {slot_id for _, _, effect in rows for slot_id, _ in effect["slots"]}
            found = (await work.connection.execute(_SLOTS, {"ids": list(ids)})).all() if ids else []
        known = {row[0]: row for row in found}
        return [
            Change(doctor_id=doctor_id, sequence=number, at=at, effect=_effect(effect, known))
            for number, at, effect in rows
        ]

    async def reached(self, mark: str | None = None) -> Reached:
        """The calendars that changed since the mark was given, or all: more, perhaps, but never fewer.

        The mark is the oldest transaction that was under way: whatever had not been committed yet is of it or later.
        """
        if mark is not None:
            return await self._lookups.reached(mark)
        async with self._begin() as work:
            next_mark, position = (await work.connection.execute(_MARK)).one()
            rows = await work.connection.execute(_REACHED)
            return Reached(sequences={row[0]: row[1] for row in rows}, mark=next_mark, position=position)


def _effect(plain: Mapping[str, Any], known: Mapping[str, Any]) -> Effect:
    return Effect(
        slots=tuple(
            SlotChange(
                id=slot_id,
                start=known[slot_id][1],
                end=known[slot_id][2],
                location_id=known[slot_id][3],
                service_id=known[slot_id][4],
                status=status,
            )
            for slot_id, status in plain["slots"]
        ),
        appointments=tuple(
            AppointmentChange(id=appointment_id, patient_id=patient_id, version=version)
            for appointment_id, patient_id, version in plain["appointments"]
        ),
    )
