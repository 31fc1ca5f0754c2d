"""Does on time what no request does: ends overdue holds, drives on moves left behind, forgets old answers.

Every API process runs one; an advisory lock in PostgreSQL lets one of them act at a time. Nothing depends on it for
being right: an overdue hold reads as free without it, and a move left behind stays as its row says.
"""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta

import structlog
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from actors.client import CalendarClient
from actors.messages import ExpireHolds, Requester, Role
from cluster.moves import MoveDriver
from persistence.identifiers import new_id

log = structlog.get_logger()

LEADER_LOCK = 0x7A61_7069_7374
ROUND_S = 1.0
STOP_TIMEOUT_S = 2.0
BATCH_MAX = 200
"""Calendars woken, moves driven on and rows deleted of a kind in one round."""
MOVE_LEFT_BEHIND = timedelta(seconds=15)
ANSWERS_KEPT = timedelta(days=7)


class Supervisor:
    """A background task; ``start`` and ``stop`` it on the loop it belongs to."""

    def __init__(self, *, database: AsyncEngine, calendars: CalendarClient, moves: MoveDriver) -> None:
        self._database = database
        self._calendars = calendars
        self._moves = moves
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    def start(self) -> None:
        """Begin to make rounds."""
        self._task = asyncio.create_task(self._make_rounds(), name="supervisor")
        self._task.add_done_callback(_report_death)

    async def stop(self) -> None:
        """Make no more rounds; one that does not end by itself in ``STOP_TIMEOUT_S`` is cut off."""
        self._stopping.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=STOP_TIMEOUT_S)
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=STOP_TIMEOUT_S)

    async def _make_rounds(self) -> None:
        while not self._stopping.is_set():
            try:
                async with self._database.connect() as connection:
                    if await self._lead(connection):
                        await self._round(connection)
            except (SQLAlchemyError, OSError) as failure:
                log.warning("supervisor_round_failed", reason=type(failure).__name__)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), ROUND_S)

    @staticmethod
    async def _lead(connection: AsyncConnection) -> bool:
        """Whether this process acts in this transaction: nobody else does."""
        return bool(
            (await connection.execute(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": LEADER_LOCK})).scalar()
        )

    async def _round(self, connection: AsyncConnection) -> None:
        now = datetime.now(UTC)
        overdue = await connection.execute(
            text("SELECT DISTINCT doctor_id FROM hold WHERE expires_at <= :now LIMIT :most"),
            {"now": now, "most": BATCH_MAX},
        )
        doctor_ids = list(overdue.scalars())
        left_behind = await connection.execute(
            text(
                "SELECT id FROM move WHERE state IN ('reserved', 'moved', 'aborted') AND updated_at < :before"
                " ORDER BY updated_at LIMIT :most"
            ),
            {"before": now - MOVE_LEFT_BEHIND, "most": BATCH_MAX},
        )
        move_ids = list(left_behind.scalars())
        for forget in _FORGET:
            await connection.execute(forget, {"before": now - ANSWERS_KEPT, "most": BATCH_MAX})
        await connection.commit()
        for doctor_id in doctor_ids:
            await self._expire_holds(str(doctor_id), now)
        for move_id in move_ids:
            await self._moves.drive_on(str(move_id))

    async def _expire_holds(self, doctor_id: str, now: datetime) -> None:
        command_id = new_id()
        await self._calendars.send(
            ExpireHolds(
                command_id=command_id,
                doctor_id=doctor_id,
                requester=Requester(user_id=command_id, role=Role.ADMIN),
                fingerprint="",
                deadline=now + timedelta(seconds=5),
            )
        )


_FORGET = (
    text("DELETE FROM command WHERE command_id IN (SELECT command_id FROM command WHERE at < :before LIMIT :most)"),
    text(
        "DELETE FROM refresh_token WHERE token_hash IN"
        " (SELECT token_hash FROM refresh_token WHERE expires_at < :before LIMIT :most)"
    ),
    text(
        "DELETE FROM verification_code WHERE id IN"
        " (SELECT id FROM verification_code WHERE expires_at < :before LIMIT :most)"
    ),
)


def _report_death(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("supervisor_died", exc_info=task.exception())
