"""The audit trail of everything that is not a calendar; calendars write theirs with their events."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from persistence.identifiers import new_id
from persistence.tables import audit


class Audit:
    """Appends entries; nothing here changes or removes one."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def record(
        self,
        *,
        user_id: str,
        role: str,
        action: str,
        subject: str,
        subject_ids: Sequence[str | None] = (None,),
        override: bytes | None = None,
    ) -> None:
        """Note that a user in a role did ``action`` to each of ``subject_ids``, things of kind ``subject``."""
        at = datetime.now(UTC)
        rows = [
            {
                "id": new_id(),
                "at": at,
                "user_id": user_id,
                "role": role,
                "action": action,
                "subject": subject,
                "subject_id": subject_id,
                "override": override,
            }
            for subject_id in subject_ids
        ]
        if rows:
            await self._connection.execute(insert(audit), rows)
