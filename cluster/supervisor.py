"""Does on time what no request does: ends overdue holds, drives on moves left behind, forgets old answers.

Every API process runs one; an advisory lock in PostgreSQL lets one of them look at a time. Nothing depends on it for
being right: an overdue hold reads as free without it, and a move left behind stays as its row says. Two that act on the
same hold or move at once do no harm either: calendars decide.

A round looks what is due and has it begun. It waits for none of it and keeps no connection meanwhile: a calendar that
does not answer delays no other. What fails in a way that nobody foresaw, in a round or in what it began, is logged
with its traceback, and the next round comes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import structlog
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from actors import tasks
from actors.client import CalendarClient
from actors.messages import ExpireHolds, Requester, Role
from cluster.moves import MoveDriver
from persistence.identifiers import new_id

log = structlog.get_logger()

LEADER_LOCK = 0x7A61_7069_7374
ROUND_S = 1.0
STOP_TIMEOUT_S = 2.0
CALENDARS_MAX = 200
"""Calendars that are told at once to end their overdue holds."""
MOVES_MAX = 16
"""Moves driven on at once."""
ROWS_MAX = 200
"""Rows of a kind that are forgotten in one round."""
SEND_DEADLINE = timedelta(seconds=5)
MOVE_LEFT_BEHIND = timedelta(seconds=15)
ANSWERS_KEPT = timedelta(days=7)
MESSAGES_KEPT = timedelta(days=90)
"""Those that have ended: so long one can see what was said."""


class Supervisor:
    """A background task; ``start`` and ``stop`` it on the loop it belongs to."""

    def __init__(self, *, database: AsyncEngine, calendars: CalendarClient, moves: MoveDriver) -> None:
        self._database = database
        self._calendars = calendars
        self._moves = moves
        self._rounds: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._expiring = _UnderWay("expiring holds of", self._expire_holds, most=CALENDARS_MAX)
        self._moving = _UnderWay("driving on move", self._drive_on, most=MOVES_MAX)
        self._pending = _UnderWay("driving on pending move", self._drive_on, most=MOVES_MAX)

    def start(self) -> None:
        """Begin to make rounds."""
        self._rounds = tasks.begin(self._make_rounds(), name="supervisor")

    async def stop(self) -> None:
        """Make no more rounds; what does not end by itself in ``STOP_TIMEOUT_S`` is cut off."""
        self._stopping.set()
        if self._rounds is not None:
            await _end({self._rounds})
        await _end(self._expiring.tasks | self._moving.tasks | self._pending.tasks)

    async def _make_rounds(self) -> None:
        while not self._stopping.is_set():
            this_one = tasks.begin(self._round(), name="supervisor round")
            try:
                await asyncio.wait({this_one})
            finally:
                this_one.cancel()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ROUND_S):
                    await self._stopping.wait()

    async def _round(self) -> None:
        try:
            now = datetime.now(UTC)
            doctor_ids, move_ids = await self._due(now)
            self._expiring.begin(doctor_ids)
            self._moving.begin(move_ids)
            self._pending.begin(self._moves.pending())
            await self._forget(now)
        except (SQLAlchemyError, OSError) as failure:
            log.warning("supervisor_round_failed", reason=type(failure).__name__)

    async def _due(self, now: datetime) -> tuple[list[str], list[str]]:
        """Doctors with overdue holds, and moves left behind; none where somebody else looks at the moment."""
        async with self._database.connect() as connection:
            if not await _lead(connection):
                return [], []
            overdue = await connection.scalars(_OVERDUE, {"before": now, "most": CALENDARS_MAX})
            left_behind = await connection.scalars(_LEFT_BEHIND, {"since": MOVE_LEFT_BEHIND, "most": MOVES_MAX})
            return list(overdue), list(left_behind)

    async def _forget(self, now: datetime) -> None:
        async with self._database.begin() as connection:
            if await _lead(connection):
                for statement in _FORGET:
                    await connection.execute(statement, {"before": now - ANSWERS_KEPT, "most": ROWS_MAX})
                for statement in _FORGET_MESSAGES:
                    await connection.execute(statement, {"before": now - MESSAGES_KEPT, "most": ROWS_MAX})

    async def _expire_holds(self, doctor_id: str) -> None:
        command_id = new_id()
        await self._calendars.send(
            ExpireHolds(
                command_id=command_id,
                doctor_id=doctor_id,
                requester=Requester(user_id=command_id, role=Role.ADMIN),
                fingerprint="",
                deadline=datetime.now(UTC) + SEND_DEADLINE,
            )
        )

    async def _drive_on(self, move_id: str) -> None:
        try:
            await self._moves.drive_on(move_id)
        except (SQLAlchemyError, OSError) as failure:
            log.warning("supervisor_move_failed", move_id=move_id, reason=type(failure).__name__)


async def _lead(connection: AsyncConnection) -> bool:
    """Whether this process looks in this transaction: nobody else does."""
    return bool(
        (await connection.execute(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": LEADER_LOCK})).scalar()
    )


class _UnderWay:
    """Work that goes on beside the rounds: a task for each id, at most so many; what fails in one is logged."""

    def __init__(self, name: str, work: Callable[[str], Coroutine[Any, Any, None]], *, most: int) -> None:
        self._name = name
        self._work = work
        self._most = most
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def tasks(self) -> set[asyncio.Task[None]]:
        """Those that have not ended."""
        return set(self._tasks.values())

    def begin(self, ids: Iterable[str]) -> None:
        """Begin with those that are not under way yet, while there is room; the others come in another round."""
        for each in ids:
            if each not in self._tasks and len(self._tasks) < self._most:
                self._tasks[each] = task = tasks.begin(self._work(each), name=f"{self._name} {each}")
                task.add_done_callback(partial(self._ended, each))

    def _ended(self, each: str, _: asyncio.Task[None]) -> None:
        del self._tasks[each]


async def _end(under_way: set[asyncio.Task[None]]) -> None:
    """Wait a while for tasks to end; cut off those that do not."""
    if under_way:
        _, left = await asyncio.wait(under_way, timeout=STOP_TIMEOUT_S)
        await tasks.end(*left, timeout_s=STOP_TIMEOUT_S)


# What is due is drawn by lot: calendars that do not answer keep no others out for good.
_OVERDUE = text(
    "SELECT doctor_id::text FROM (SELECT DISTINCT doctor_id FROM hold WHERE expires_at <= :before) AS overdue"
    " ORDER BY random() LIMIT :most"
)
_LEFT_BEHIND = text(
    "SELECT id::text FROM move WHERE state IN ('reserved', 'moved', 'aborted') AND updated_at < now() - :since"
    " ORDER BY random() LIMIT :most"
)
# A row that somebody has locked is left for another round: whoever deletes rows of several users never waits for one.
_FORGET = (
    text("DELETE FROM command WHERE command_id IN (SELECT command_id FROM command WHERE at < :before LIMIT :most)"),
    text(
        "DELETE FROM refresh_token WHERE token_hash IN"
        " (SELECT token_hash FROM refresh_token WHERE expires_at < :before LIMIT :most FOR UPDATE SKIP LOCKED)"
    ),
    text(
        "DELETE FROM verification_code WHERE id IN"
        " (SELECT id FROM verification_code WHERE expires_at < :before LIMIT :most FOR UPDATE SKIP LOCKED)"
    ),
    # What was to be told of an account has been by then. That it was caused stays.
    text(
        "UPDATE outbox SET sealed = NULL WHERE id IN"
        " (SELECT id FROM outbox WHERE sealed IS NOT NULL AND due_at < :before LIMIT :most FOR UPDATE SKIP LOCKED)"
    ),
)
_FORGET_MESSAGES = (
    text(
        "DELETE FROM notification WHERE id IN (SELECT id FROM notification"
        " WHERE ended_at < :before ORDER BY ended_at LIMIT :most FOR UPDATE SKIP LOCKED)"
    ),
    # Of a channel on which nobody sends any more.
    text(
        "DELETE FROM notification WHERE id IN (SELECT id FROM notification WHERE ended_at IS NULL"
        " AND channel IN ('email', 'sms', 'push') AND next_at < :before LIMIT :most FOR UPDATE SKIP LOCKED)"
    ),
)
