"""The slots as everybody reads them: searched page by page, each page at a cost that does not grow with the clinic.

Slots are written by the journal alone. A slot that is held reads as free once its hold is past its time, whether or not
its calendar has noticed; a slot that has begun is not offered as free any more.

How a page is found, so that ten doctors and ten thousand cost the same:

- Without a condition on what doctors do, the slots are walked in the order of their start until the page is full: those
  of the doctor, those at the location, or all.
- With one, and few doctors meeting it, each doctor is asked for the first slot; only the doctors with the earliest of
  these can have a part in the page, and only they are asked for more.
- With many such doctors their slots are probably near: the first ``WALK_MAX`` slots are walked, and only where these
  do not fill the page the doctors are asked one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, any_, bindparam, case, func, or_, select, true, tuple_
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.selectable import FromClause
from sqlalchemy.types import DateTime, Uuid

from persistence.tables import calendar, doctor, hold, slot

FEW_DOCTORS_MAX = 100
WALK_MAX = 2_000


class SlotStatus(StrEnum):
    """What a slot reads as."""

    FREE = "free"
    HELD = "held"
    BOOKED = "booked"
    BLOCKED = "blocked"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The instants ``[start, end)`` of the days asked for, as the clocks of these locations have them."""

    start: datetime
    end: datetime
    location_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotSearch:
    """What slots are asked for, as of ``now``, from behind the position ``after``."""

    windows: tuple[Window, ...]
    now: datetime
    limit: int
    statuses: frozenset[SlotStatus] = frozenset({SlotStatus.FREE})
    after: tuple[datetime, str] | None = None
    doctor_id: str | None = None
    location_id: str | None = None
    specialty: str | None = None
    service_id: str | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """All of it but ``now`` and which locations there are, of which there may be thousands."""
        windows = [(window.start, window.end) for window in self.windows]
        found_by = (self.doctor_id, self.location_id, self.specialty, self.service_id)
        return (*found_by, windows, sorted(self.statuses), self.after, self.limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalendarState:
    """How far a calendar has come, and when time itself will change it next."""

    sequence: int
    next_hold_ends_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotRow:
    """A slot as it reads."""

    id: str
    doctor_id: str
    location_id: str
    service_id: str | None
    start: datetime
    end: datetime
    status: SlotStatus


class Slots:
    """Searches slots and looks them up."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def search(self, search: SlotSearch) -> list[SlotRow]:
        """At most ``limit`` slots, sorted by start, then id."""
        if not search.windows or not search.statuses:
            return []
        doctors = _doctors(search)
        if doctors is None:
            return await self._rows(_walk(search))
        few = (await self._connection.execute(doctors.limit(FEW_DOCTORS_MAX + 1))).scalars().all()
        if len(few) > FEW_DOCTORS_MAX:
            walked = await self._rows(_walk_some(search, doctors))
            return walked if len(walked) == search.limit else await self._rows(_ask_each(search, doctors))
        return await self._rows(_ask_each(search, _these(few))) if few else []

    async def calendar(self, doctor_id: str, now: datetime) -> CalendarState | None:
        """How far that doctor's calendar has come; ``None``: there is no such calendar."""
        row = (await self._connection.execute(_CALENDAR, {"doctor_id": doctor_id, "now": now})).one_or_none()
        return None if row is None else CalendarState(sequence=row[0], next_hold_ends_at=row[1])

    async def next_free(
        self, doctor_ids: Sequence[str], *, now: datetime, until: datetime, location_id: str | None
    ) -> dict[str, SlotRow]:
        """The first free slot of each of these doctors that begins before ``until``, at that location or at any."""
        window = Window(start=now, end=until, location_ids=())
        search = SlotSearch(windows=(window,), now=now, limit=len(doctor_ids), location_id=location_id)
        wanted = _these(doctor_ids).cte("wanted")
        first = _next_slots(search, wanted.c.id, 1).lateral("first")
        rows = await self._rows(select(*_columns(first, now)).select_from(wanted.join(first, true())))
        return {row.doctor_id: row for row in rows}

    async def locations_between(self, doctor_id: str, start: datetime, end: datetime) -> set[str]:
        """Where the doctor has slots that begin in ``[start, end)``."""
        rows = await self._connection.execute(
            select(slot.c.location_id)
            .where(slot.c.doctor_id == doctor_id, slot.c.starts_at >= start, slot.c.starts_at < end)
            .distinct()
        )
        return set(rows.scalars())

    async def _rows(self, query: Select[Any]) -> list[SlotRow]:
        rows = await self._connection.execute(query)
        return [
            SlotRow(
                id=row.id,
                doctor_id=row.doctor_id,
                location_id=row.location_id,
                service_id=row.service_id,
                start=row.starts_at,
                end=row.ends_at,
                status=SlotStatus(row.status),
            )
            for row in rows
        ]


_UUIDS = ARRAY(Uuid(as_uuid=False))
_CALENDAR = select(
    calendar.c.sequence,
    select(func.min(hold.c.expires_at))
    .where(hold.c.doctor_id == calendar.c.doctor_id, hold.c.expires_at > bindparam("now"))
    .scalar_subquery(),
).where(calendar.c.doctor_id == bindparam("doctor_id"))


def _doctors(search: SlotSearch) -> Select[str] | None:
    """Whose slots are wanted, by what doctors do; ``None`` is anybody's."""
    if search.specialty is None and search.service_id is None:
        return None
    wanted = select(doctor.c.id).where(doctor.c.withdrawn_at.is_(None))
    if search.doctor_id is not None:
        wanted = wanted.where(doctor.c.id == search.doctor_id)
    if search.specialty is not None:
        wanted = wanted.where(doctor.c.specialties.contains([search.specialty]))
    if search.service_id is not None:
        wanted = wanted.where(doctor.c.service_ids.contains([search.service_id]))
    return wanted


def _these(doctor_ids: Sequence[str]) -> Select[str]:
    ids = func.unnest(bindparam("doctor_ids", list(doctor_ids), type_=_UUIDS), type_=Uuid(as_uuid=False))
    return select(ids.label("id"))


def _walk(search: SlotSearch) -> Select[Any]:
    """The slots in their order, by the index on start, or on doctor or location and start."""
    query = select(*_columns(slot, search.now)).where(_matches(slot, search), _in_range(slot, search))
    return query.order_by(slot.c.starts_at, slot.c.id).limit(search.limit)


def _walk_some(search: SlotSearch, doctors: Select[str]) -> Select[Any]:
    """Those of the first ``WALK_MAX`` slots, of whatever doctor and status, that match."""
    near = select(slot).where(_in_range(slot, search))
    first = near.order_by(slot.c.starts_at, slot.c.id).limit(WALK_MAX).subquery("first")
    query = select(*_columns(first, search.now)).where(first.c.doctor_id.in_(doctors), _matches(first, search))
    return query.order_by(first.c.starts_at, first.c.id).limit(search.limit)


def _ask_each(search: SlotSearch, doctors: Select[str]) -> Select[Any]:
    """The earliest of what each doctor has, by the index on doctor and start."""
    wanted = doctors.cte("wanted").prefix_with("MATERIALIZED", dialect="postgresql")
    first = _next_slots(search, wanted.c.id, 1).lateral("first")
    early = (
        select(wanted.c.id)
        .select_from(wanted.join(first, true()))
        .order_by(first.c.starts_at, first.c.id)
        .limit(search.limit)
        .cte("early")
    )
    own = _next_slots(search, early.c.id, search.limit).lateral("own")
    query = select(*_columns(own, search.now)).select_from(early.join(own, true()))
    return query.order_by(own.c.starts_at, own.c.id).limit(search.limit)


def _next_slots(search: SlotSearch, doctor_id: ColumnElement[str], limit: int) -> Select[Any]:
    query = select(slot).where(slot.c.doctor_id == doctor_id, _matches(slot, search), _in_range(slot, search))
    return query.order_by(slot.c.starts_at, slot.c.id).limit(limit)


def _in_range(slots: FromClause, search: SlotSearch) -> ColumnElement[bool]:
    """What an index can find: a range of starts, of one doctor, at one location or of all."""
    start = min(window.start for window in search.windows)
    conditions = [slots.c.starts_at < max(window.end for window in search.windows)]
    if search.doctor_id is not None:
        conditions.append(slots.c.doctor_id == search.doctor_id)
    if search.location_id is not None:
        conditions.append(slots.c.location_id == search.location_id)
    if search.statuses == {SlotStatus.FREE}:
        start = max(start, search.now)
    if search.after is not None:
        start = max(start, search.after[0])
        behind = tuple_(*search.after, types=(DateTime(timezone=True), Uuid(as_uuid=False)))
        conditions.append(tuple_(slots.c.starts_at, slots.c.id) > behind)
    return and_(slots.c.starts_at >= start, *conditions)


def _matches(slots: FromClause, search: SlotSearch) -> ColumnElement[bool]:
    """What every slot in the range is looked at for."""
    conditions = [_reads_as(slots, search.statuses, search.now)]
    if search.service_id is not None:
        conditions.append(or_(slots.c.service_id.is_(None), slots.c.service_id == search.service_id))
    if len(search.windows) > 1:
        conditions.append(_in_own_window(slots, search.windows))
    return and_(*conditions)


def _in_own_window(slots: FromClause, windows: Sequence[Window]) -> ColumnElement[bool]:
    """The days differ between zones only at both ends; in between nobody has to look where a slot is."""
    start, end = max(window.start for window in windows), min(window.end for window in windows)
    return or_(
        and_(slots.c.starts_at >= start, slots.c.starts_at < end),
        *(
            and_(
                slots.c.starts_at >= window.start,
                slots.c.starts_at < window.end,
                slots.c.location_id == any_(bindparam(None, list(window.location_ids), type_=_UUIDS)),
            )
            for window in windows
        ),
    )


def _reads_as(slots: FromClause, statuses: frozenset[SlotStatus], now: datetime) -> ColumnElement[bool]:
    expired = and_(slots.c.status == SlotStatus.HELD, slots.c.held_until <= now)
    ways: list[ColumnElement[bool]] = []
    if SlotStatus.FREE in statuses:
        ways.append(and_(slots.c.starts_at > now, or_(slots.c.status == SlotStatus.FREE, expired)))
    if SlotStatus.HELD in statuses:
        # A slot reserved for a move has no end of its own.
        held = or_(slots.c.held_until.is_(None), slots.c.held_until > now)
        ways.append(and_(slots.c.status == SlotStatus.HELD, held))
    if plain := sorted(statuses - {SlotStatus.FREE, SlotStatus.HELD}):
        ways.append(slots.c.status.in_(plain))
    return or_(*ways)


def _columns(slots: FromClause, now: datetime) -> tuple[ColumnElement[Any], ...]:
    expired = and_(slots.c.status == SlotStatus.HELD, slots.c.held_until <= now)
    names = ("id", "doctor_id", "location_id", "service_id", "starts_at", "ends_at")
    status = case((expired, SlotStatus.FREE), else_=slots.c.status).label("status")
    return (*(slots.c[name] for name in names), status)
