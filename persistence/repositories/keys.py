"""The keys that sign access tokens: made once, shared by all API processes, retired by rotation."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from persistence.sealed import Vault, place
from persistence.tables import signing_key

KEYS_LOCK = 0x7A61_7069_736B
"""The advisory lock under which keys are made: several processes may start at once, one makes the key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """A key pair by its id; one without ``retired_at`` signs, the others only verify."""

    kid: str
    public_pem: str
    private_pem: str = field(repr=False)
    created_at: datetime
    retired_at: datetime | None


class SigningKeys:
    """Reads and writes signing keys; private keys are sealed under the master key."""

    def __init__(self, connection: AsyncConnection, vault: Vault) -> None:
        self._connection = connection
        self._system = vault.system

    async def lock(self) -> None:
        """Keep every other process from making or retiring keys until this transaction ends."""
        await self._connection.execute(select(func.pg_advisory_xact_lock(KEYS_LOCK)))

    async def all(self) -> list[SigningKey]:
        """Every key that is still kept, the newest first."""
        rows = await self._connection.execute(
            select(signing_key).order_by(signing_key.c.created_at.desc(), signing_key.c.kid)
        )
        return [
            SigningKey(
                kid=row.kid,
                public_pem=row.public_pem,
                private_pem=self._system.unseal(
                    row.private_sealed, place("signing_key", row.kid, "private_sealed")
                ).decode(),
                created_at=row.created_at,
                retired_at=row.retired_at,
            )
            for row in rows
        ]

    async def add(self, *, kid: str, public_pem: str, private_pem: str, created_at: datetime) -> None:
        """Keep a new key, that signs from now on."""
        await self._connection.execute(
            insert(signing_key).values(
                kid=kid,
                public_pem=public_pem,
                private_sealed=self._system.seal(private_pem.encode(), place("signing_key", kid, "private_sealed")),
                created_at=created_at,
            )
        )

    async def retire(self, *, but: str, at: datetime) -> None:
        """Let every key but one sign no more."""
        await self._connection.execute(
            update(signing_key)
            .where(signing_key.c.kid != but, signing_key.c.retired_at.is_(None))
            .values(retired_at=at)
        )

    async def remove(self, *, retired_before: datetime) -> None:
        """Forget keys whose last token has long expired."""
        await self._connection.execute(delete(signing_key).where(signing_key.c.retired_at < retired_before))
