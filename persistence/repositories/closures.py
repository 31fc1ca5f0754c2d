"""Closures as everybody reads them; the journal alone writes them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import DateTime, Row, Select, Uuid, any_, bindparam, select, tuple_
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection

from actors.messages import Window
from persistence.tables import app_user, appointment, closure


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosureRow:
    """An absence that has not been taken back. ``sealed_reason`` opens with the data key of who entered it."""

    id: str
    doctor_id: str
    windows: tuple[Window, ...]
    ends_at: datetime
    created_by: str
    created_at: datetime
    sealed_reason: bytes | None = field(repr=False)
    wrapped_key: bytes | None = field(repr=False)


class Closures:
    """Reads closures, and what is sealed of the visits that one displaces."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def page(self, doctor_id: str, *, after: tuple[datetime, str] | None, limit: int) -> list[ClosureRow]:
        """The doctor's closures, the one that ends first first."""
        query = _CLOSURES.where(closure.c.doctor_id == doctor_id).order_by(closure.c.ends_at, closure.c.id)
        if after is not None:
            position = tuple_(*after, types=(DateTime(timezone=True), Uuid(as_uuid=False)))
            query = query.where(tuple_(closure.c.ends_at, closure.c.id) > position)
        return [_closure(row) for row in await self._connection.execute(query.limit(limit))]

    async def exists(self, closure_id: str, *, doctor_id: str) -> bool:
        """Whether the doctor has such a closure."""
        query = _CLOSURES.where(closure.c.id == closure_id, closure.c.doctor_id == doctor_id)
        return (await self._connection.execute(query)).first() is not None

    async def sealed_reasons(self, appointment_ids: Iterable[str]) -> dict[str, bytes | None]:
        """The sealed reasons of these visits."""
        wanted = bindparam("wanted", list(appointment_ids), type_=ARRAY(Uuid(as_uuid=False)))
        rows = await self._connection.execute(
            select(appointment.c.id, appointment.c.reason).where(appointment.c.id == any_(wanted))
        )
        return {row.id: row.reason for row in rows}


_CLOSURES: Select[*tuple[Any, ...]] = (
    select(closure, app_user.c.data_key)
    .outerjoin(app_user, app_user.c.id == closure.c.created_by)
    .where(closure.c.removed_at.is_(None))
)


def _closure(row: Row[*tuple[Any, ...]]) -> ClosureRow:
    return ClosureRow(
        id=row.id,
        doctor_id=row.doctor_id,
        windows=tuple(
            Window(start=datetime.fromisoformat(start), end=datetime.fromisoformat(end), location_id=location_id)
            for location_id, start, end in row.windows
        ),
        ends_at=row.ends_at,
        created_by=row.created_by,
        created_at=row.created_at,
        sealed_reason=row.reason,
        wrapped_key=row.data_key,
    )
