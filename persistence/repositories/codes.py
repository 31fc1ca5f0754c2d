"""Codes that prove that an address is someone's, or that they may set a new password.

The table holds an HMAC of the code; the code itself is in the outbox alone, sealed under the data key of the user it is
for, until the notifier sends it. A code works once, for a short time, for so many attempts; a new one voids the old.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from persistence.identifiers import new_id
from persistence.repositories.notifications import Notifications
from persistence.sealed import DataKey, Vault
from persistence.tables import verification_code


class Purpose(StrEnum):
    """What a code is good for."""

    EMAIL = "email"
    PHONE = "phone"
    PASSWORD = "password"


MESSAGES = {
    Purpose.EMAIL: "email_verification",
    Purpose.PHONE: "phone_verification",
    Purpose.PASSWORD: "password_reset",
}
"""The kind of outbox row that carries a code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """Codes made lately for one user and purpose."""

    count: int
    last_at: datetime | None


class Codes:
    """Makes, checks and voids codes."""

    def __init__(self, connection: AsyncConnection, vault: Vault) -> None:
        self._connection = connection
        self._vault = vault

    async def issued(self, user_id: str, purpose: Purpose, *, since: datetime) -> Issued:
        """How many codes were made since an instant, and when the last one was: what throttling needs."""
        row = (
            await self._connection.execute(
                select(func.count(), func.max(verification_code.c.created_at)).where(
                    verification_code.c.user_id == user_id,
                    verification_code.c.purpose == purpose.value,
                    verification_code.c.created_at > since,
                )
            )
        ).one()
        return Issued(count=row[0], last_at=row[1])

    async def issue(
        self,
        user_id: str,
        purpose: Purpose,
        code: str,
        *,
        short: bool,
        key: DataKey,
        now: datetime,
        ttl: timedelta,
        kept: timedelta,
    ) -> None:
        """Keep a new code and put the message that carries it into the outbox; codes older than ``kept`` are dropped.

        ``short`` codes are redeemed by ``redeem_short``, the others by ``redeem``.
        """
        mine = (verification_code.c.user_id == user_id, verification_code.c.purpose == purpose.value)
        await self._connection.execute(
            delete(verification_code).where(*mine, verification_code.c.created_at < now - kept)
        )
        await self.void(user_id, purpose, now=now)
        await self._connection.execute(
            insert(verification_code).values(
                id=new_id(),
                user_id=user_id,
                purpose=purpose.value,
                code_index=self._index(purpose, code, user_id if short else ""),
                created_at=now,
                expires_at=now + ttl,
            )
        )
        await Notifications(self._connection).cause(
            MESSAGES[purpose], user_id, {"code": code, "expires_at": (now + ttl).isoformat()}, key=key, now=now
        )

    async def redeem(self, purpose: Purpose, code: str, *, now: datetime) -> str | None:
        """The id of the user whose code this is; it is used up. ``None``: no such code, or one that is no longer good.

        For codes too long to be guessed.
        """
        owner: str | None = await self._connection.scalar(
            update(verification_code)
            .where(
                verification_code.c.purpose == purpose.value,
                verification_code.c.code_index == self._index(purpose, code),
                verification_code.c.used_at.is_(None),
                verification_code.c.expires_at > now,
            )
            .values(used_at=now)
            .returning(verification_code.c.user_id)
        )
        return owner

    async def holder(self, purpose: Purpose, code: str, *, now: datetime) -> str | None:
        """The id of the user whose good code this is; it stays good."""
        owner: str | None = await self._connection.scalar(
            select(verification_code.c.user_id).where(
                verification_code.c.purpose == purpose.value,
                verification_code.c.code_index == self._index(purpose, code),
                verification_code.c.used_at.is_(None),
                verification_code.c.expires_at > now,
            )
        )
        return owner

    async def redeem_short(
        self, user_id: str, purpose: Purpose, code: str, *, now: datetime, attempts_max: int
    ) -> bool:
        """Whether this is the user's open code; it is used up then, and else the attempt counts against it.

        The open code is locked first: attempts made at the same time are counted one by one.
        """
        open_code = (
            await self._connection.execute(
                select(verification_code.c.id, verification_code.c.code_index, verification_code.c.attempts)
                .where(
                    verification_code.c.user_id == user_id,
                    verification_code.c.purpose == purpose.value,
                    verification_code.c.used_at.is_(None),
                    verification_code.c.expires_at > now,
                )
                .order_by(verification_code.c.created_at.desc())
                .limit(1)
                .with_for_update()
            )
        ).first()
        if open_code is None or open_code.attempts >= attempts_max:
            return False
        right = hmac.compare_digest(bytes(open_code.code_index), self._index(purpose, code, user_id))
        change: dict[str, object] = {"used_at": now} if right else {"attempts": open_code.attempts + 1}
        await self._connection.execute(
            update(verification_code).where(verification_code.c.id == open_code.id).values(**change)
        )
        return right

    async def void(self, user_id: str, purpose: Purpose, *, now: datetime) -> None:
        """Make every open code of a purpose useless."""
        await self._connection.execute(
            update(verification_code)
            .where(
                verification_code.c.user_id == user_id,
                verification_code.c.purpose == purpose.value,
                verification_code.c.used_at.is_(None),
            )
            .values(used_at=now)
        )

    async def remove_all(self, user_id: str) -> None:
        """Forget every code of a user, who is erased."""
        await self._connection.execute(delete(verification_code).where(verification_code.c.user_id == user_id))

    def _index(self, purpose: Purpose, code: str, user_id: str = "") -> bytes:
        return self._vault.index(f"code:{purpose.value}", f"{user_id}:{code}")
