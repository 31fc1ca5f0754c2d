"""Refresh tokens: each works once, and those that descend from one login are a family that is revoked together."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from persistence.tables import refresh_token


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One login and what descends from it."""

    user_id: str
    family_id: str


class RefreshTokens:
    """Keeps hashes of refresh tokens; the tokens themselves are with their holders only."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def add(self, session: Session, *, token_hash: bytes, issued_at: datetime, expires_at: datetime) -> None:
        """Keep the newest token of a session."""
        await self._connection.execute(
            insert(refresh_token).values(
                token_hash=token_hash,
                family_id=session.family_id,
                user_id=session.user_id,
                issued_at=issued_at,
                expires_at=expires_at,
            )
        )

    async def use(self, token_hash: bytes, *, now: datetime) -> Session | None:
        """The session of a good token, which is used up by this; of two at the same time exactly one gets it."""
        row = (
            await self._connection.execute(
                update(refresh_token)
                .where(
                    refresh_token.c.token_hash == token_hash,
                    refresh_token.c.used_at.is_(None),
                    refresh_token.c.revoked_at.is_(None),
                    refresh_token.c.expires_at > now,
                )
                .values(used_at=now)
                .returning(refresh_token.c.user_id, refresh_token.c.family_id)
            )
        ).first()
        return None if row is None else Session(user_id=row.user_id, family_id=row.family_id)

    async def find(self, token_hash: bytes) -> Session | None:
        """The session that a token belongs to, good or not."""
        row = (
            await self._connection.execute(
                select(refresh_token.c.user_id, refresh_token.c.family_id).where(
                    refresh_token.c.token_hash == token_hash
                )
            )
        ).first()
        return None if row is None else Session(user_id=row.user_id, family_id=row.family_id)

    async def revoke_family(self, family_id: str, *, now: datetime) -> None:
        """End one session."""
        await self._connection.execute(
            update(refresh_token)
            .where(refresh_token.c.family_id == family_id, refresh_token.c.revoked_at.is_(None))
            .values(revoked_at=now)
        )

    async def revoke_all(self, user_id: str, *, now: datetime, but_family: str | None = None) -> None:
        """End every session of a user, or every other one."""
        statement = update(refresh_token).where(
            refresh_token.c.user_id == user_id, refresh_token.c.revoked_at.is_(None)
        )
        if but_family is not None:
            statement = statement.where(refresh_token.c.family_id != but_family)
        await self._connection.execute(statement.values(revoked_at=now))

    async def tidy(self, user_id: str, *, now: datetime, sessions_max: int) -> None:
        """Forget a user's expired tokens, and whole sessions past the ``sessions_max`` newest; 0: none of these."""
        await self._connection.execute(
            delete(refresh_token).where(refresh_token.c.user_id == user_id, refresh_token.c.expires_at <= now)
        )
        if not sessions_max:
            return
        newest = (
            select(refresh_token.c.family_id)
            .where(refresh_token.c.user_id == user_id)
            .group_by(refresh_token.c.family_id)
            .order_by(refresh_token.c.family_id.desc())  # UUIDv7: the latest login comes last
            .limit(sessions_max)
        )
        await self._connection.execute(
            delete(refresh_token).where(
                refresh_token.c.user_id == user_id, refresh_token.c.family_id.not_in(newest.scalar_subquery())
            )
        )
