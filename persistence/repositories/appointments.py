"""Appointments, holds and answers to commands as everybody reads them; the journal alone writes them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Date, DateTime, Row, Uuid, cast, func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from persistence.tables import appointment, command, hold, location, move

DAY_MARGIN = timedelta(days=1)
"""No zone is further from UTC than this: bounds in UTC that an index can use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppointmentRow:
    """An appointment as committed; ``sealed_reason`` opens with the patient's data key."""

    id: str
    doctor_id: str
    patient_id: str
    booked_by: str
    slot_id: str
    location_id: str
    service_id: str | None
    start: datetime
    end: datetime
    status: str
    live: bool
    displaced: bool
    version: int
    created_at: datetime
    updated_at: datetime
    sealed_reason: bytes | None = field(repr=False)
    open_move_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AppointmentSearch:
    """Which appointments are asked for; days are those of each one's location, both included."""

    limit: int
    latest: bool = False
    """Whether, where there are more, it is the last ones that are wanted, not the first."""
    after: tuple[datetime, str] | None = None
    patient_ids: Sequence[str] | None = None
    doctor_id: str | None = None
    location_id: str | None = None
    statuses: Sequence[str] = ()
    first_day: date | None = None
    last_day: date | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldRow:
    """A hold that has not ended."""

    id: str
    doctor_id: str
    slot_id: str
    user_id: str
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRow:
    """What is stored under a command id."""

    user_id: str
    fingerprint: str
    answer: dict[str, Any]


class Appointments:
    """Reads what the journal wrote."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def get(self, appointment_id: str) -> AppointmentRow | None:
        """The appointment of that id, if there is one."""
        row = (await self._connection.execute(_APPOINTMENTS.where(appointment.c.id == appointment_id))).one_or_none()
        return None if row is None else _appointment(row)

    async def get_many(self, appointment_ids: Collection[str]) -> list[AppointmentRow]:
        """Those of these ids that there are, sorted by start, then id."""
        if not appointment_ids:
            return []
        rows = await self._connection.execute(
            _APPOINTMENTS.where(appointment.c.id.in_(appointment_ids)).order_by(
                appointment.c.starts_at, appointment.c.id
            )
        )
        return [_appointment(row) for row in rows]

    async def search(self, search: AppointmentSearch) -> list[AppointmentRow]:
        """At most ``limit`` of them, sorted by start, then id."""
        order = (appointment.c.starts_at, appointment.c.id)
        rows = await self._connection.execute(
            _APPOINTMENTS.where(*_conditions(search))
            .order_by(*(column.desc() if search.latest else column for column in order))
            .limit(search.limit)
        )
        found = [_appointment(row) for row in rows]
        return found[::-1] if search.latest else found

    async def holds_of(self, user_id: str, now: datetime) -> list[HoldRow]:
        """The user's holds that have not ended, the first to end first."""
        rows = await self._connection.execute(
            select(hold)
            .where(hold.c.user_id == user_id, hold.c.expires_at > now)
            .order_by(hold.c.expires_at, hold.c.id)
        )
        return [HoldRow(**row._mapping) for row in rows]

    async def hold(self, hold_id: str) -> HoldRow | None:
        """The hold of that id, whether or not it is past its time."""
        row = (await self._connection.execute(select(hold).where(hold.c.id == hold_id))).one_or_none()
        return None if row is None else HoldRow(**row._mapping)

    async def answer(self, command_id: str) -> AnswerRow | None:
        """What is stored under a command id."""
        row = (
            await self._connection.execute(
                select(command.c.user_id, command.c.fingerprint, command.c.answer).where(
                    command.c.command_id == command_id
                )
            )
        ).one_or_none()
        return None if row is None else AnswerRow(**row._mapping)

    async def open_move_of(self, command_id: str, user_id: str) -> bool:
        """Whether a move to another doctor that the user asked for under this id is still on its way."""
        row = await self._connection.execute(
            select(move.c.id).where(
                move.c.state.in_(("reserved", "moved", "aborted")),
                move.c.request["command_id"].astext == command_id,
                move.c.request["user_id"].astext == user_id,
            )
        )
        return row.first() is not None


_APPOINTMENTS = select(
    appointment.c.id,
    appointment.c.doctor_id,
    appointment.c.patient_id,
    appointment.c.booked_by,
    appointment.c.slot_id,
    appointment.c.location_id,
    appointment.c.service_id,
    appointment.c.starts_at.label("start"),
    appointment.c.ends_at.label("end"),
    appointment.c.status,
    appointment.c.live,
    appointment.c.displaced,
    appointment.c.version,
    appointment.c.created_at,
    appointment.c.updated_at,
    appointment.c.reason.label("sealed_reason"),
    appointment.c.open_move_id,
)


def _appointment(row: Row[*tuple[Any, ...]]) -> AppointmentRow:
    return AppointmentRow(**row._mapping)


def _conditions(search: AppointmentSearch) -> list[ColumnElement[bool]]:
    columns = appointment.c
    conditions: list[ColumnElement[bool]] = []
    if search.patient_ids is not None:
        conditions.append(columns.patient_id.in_(search.patient_ids))
    if search.doctor_id is not None:
        conditions.append(columns.doctor_id == search.doctor_id)
    if search.location_id is not None:
        conditions.append(columns.location_id == search.location_id)
    if search.statuses:
        conditions.append(columns.status.in_(search.statuses))
    if search.after is not None:
        position = tuple_(*search.after, types=(DateTime(timezone=True), Uuid(as_uuid=False)))
        conditions.append(tuple_(columns.starts_at, columns.id) > position)
    zone = select(location.c.timezone).where(location.c.id == columns.location_id).scalar_subquery()
    local_day = cast(func.timezone(zone, columns.starts_at), Date)
    if search.first_day is not None:
        conditions += [columns.starts_at >= search.first_day - DAY_MARGIN, local_day >= search.first_day]
    if search.last_day is not None:
        conditions += [columns.starts_at < search.last_day + 2 * DAY_MARGIN, local_day <= search.last_day]
    return conditions
