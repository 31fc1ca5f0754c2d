"""The audit trail of everything that is not a calendar; calendars write theirs with their events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sqlalchemy import DateTime, Uuid, insert, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from persistence.identifiers import new_id
from persistence.tables import app_user, audit


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One thing that someone did. ``sealed_override`` opens with the data key of who did it."""

    id: str
    at: datetime
    user_id: str
    role: str
    action: str
    subject: str
    subject_id: str | None
    sealed_override: bytes | None = field(repr=False)
    wrapped_key: bytes | None = field(repr=False)


class Audit:
    """Appends entries and reads them; nothing here changes or removes one."""

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

    async def page(self, *, before: tuple[datetime, str] | None, limit: int) -> list[AuditEntry]:
        """Entries, the last one first."""
        query = select(audit, app_user.c.data_key).outerjoin(app_user, app_user.c.id == audit.c.user_id)
        if before is not None:
            position = tuple_(*before, types=(DateTime(timezone=True), Uuid(as_uuid=False)))
            query = query.where(tuple_(audit.c.at, audit.c.id) < position)
        rows = await self._connection.execute(query.order_by(audit.c.at.desc(), audit.c.id.desc()).limit(limit))
        return [
            AuditEntry(
                id=row.id,
                at=row.at,
                user_id=row.user_id,
                role=row.role,
                action=row.action,
                subject=row.subject,
                subject_id=row.subject_id,
                sealed_override=row.override,
                wrapped_key=row.data_key,
            )
            for row in rows
        ]
