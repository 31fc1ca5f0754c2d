"""Texts of messages that administrators have written, with every version that there was."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, insert, select, text
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.ext.asyncio import AsyncConnection

from persistence.identifiers import new_id
from persistence.tables import notification_template


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """What is said of one kind in one language; see ``notifier.rendering``."""

    subject: str
    text: str
    short: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateVersion:
    """One that was written."""

    kind: str
    language: str
    version: int
    template: Template
    created_by: str
    created_at: datetime


class Templates:
    """Reads and adds them; nothing here changes or removes one."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def current(self) -> dict[tuple[str, str], Template]:
        """The last version of each, by kind and language."""
        return {(each.kind, each.language): each.template for each in await self.last_versions()}

    async def last_versions(self) -> list[TemplateVersion]:
        """The last version of each that was written."""
        table = notification_template
        rows = await self._connection.execute(
            select(table)
            .ext(distinct_on(table.c.kind, table.c.language))
            .order_by(table.c.kind, table.c.language, table.c.version.desc())
        )
        return [
            TemplateVersion(
                kind=row.kind,
                language=row.language,
                version=row.version,
                template=Template(subject=row.subject, text=row.text, short=row.short),
                created_by=row.created_by,
                created_at=row.created_at,
            )
            for row in rows
        ]

    async def add(self, kind: str, language: str, template: Template, *, created_by: str, now: datetime) -> int:
        """Write another version; its number. Whoever writes at the same time waits."""
        table = notification_template
        await self._connection.execute(text("LOCK TABLE notification_template IN SHARE ROW EXCLUSIVE MODE"))
        last = await self._connection.scalar(
            select(func.max(table.c.version)).where(table.c.kind == kind, table.c.language == language)
        )
        version = (last or 0) + 1
        await self._connection.execute(
            insert(table).values(
                id=new_id(),
                kind=kind,
                language=language,
                version=version,
                subject=template.subject,
                text=template.text,
                short=template.short,
                created_by=created_by,
                created_at=now,
            )
        )
        return version
