"""Links to calendar files: of each only the hash of its secret is kept."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from persistence.identifiers import lock_key
from persistence.tables import calendar_link


@dataclass(frozen=True, slots=True, kw_only=True)
class CalendarLink:
    """A link of a user's."""

    id: str
    user_id: str
    created_at: datetime


class CalendarLinks:
    """Keeps links, and finds whose one is."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, link: CalendarLink, *, secret_hash: bytes, most: int) -> bool:
        """Keep a new link, unless the user has as many as may be."""
        await self._connection.execute(select(func.pg_advisory_xact_lock(lock_key(link.user_id))))
        count = select(func.count()).where(calendar_link.c.user_id == link.user_id)
        if (await self._connection.execute(count)).scalar_one() >= most:
            return False
        await self._connection.execute(
            insert(calendar_link).values(
                id=link.id, user_id=link.user_id, secret_hash=secret_hash, created_at=link.created_at
            )
        )
        return True

    async def of(self, user_id: str, *, after: str | None, limit: int) -> list[CalendarLink]:
        """The user's links in the order in which they were made."""
        query = select(calendar_link.c.id, calendar_link.c.created_at).where(calendar_link.c.user_id == user_id)
        if after is not None:
            query = query.where(calendar_link.c.id > after)
        rows = await self._connection.execute(query.order_by(calendar_link.c.id).limit(limit))
        return [CalendarLink(id=row.id, user_id=user_id, created_at=row.created_at) for row in rows]

    async def user_of(self, secret_hash: bytes) -> str | None:
        """Whose link has a secret with that hash."""
        query = select(calendar_link.c.user_id).where(calendar_link.c.secret_hash == secret_hash)
        return (await self._connection.execute(query)).scalar_one_or_none()

    async def remove(self, link_id: str, *, user_id: str) -> bool:
        """Forget a link; whether the user had it."""
        removed = await self._connection.execute(
            delete(calendar_link).where(calendar_link.c.id == link_id, calendar_link.c.user_id == user_id)
        )
        return removed.rowcount > 0
