"""What has to be known of a user at every request, remembered for two seconds.

Misses that wait at the same time are read in one query: while one is under way the next ones gather. While the database
is away a user who was known a short while ago is still known, so that commands can be taken and answered as pending.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import structlog

from actors import tasks
from persistence.lookups import Access
from persistence.unit_of_work import DatabaseUnavailable

TTL_S: Final = 2.0
STALE_MAX_S: Final = 900.0
READ_TIMEOUT_S: Final = 3.0
AWAY_S: Final = 1.0
"""After a failed read the database counts as away for so long: nobody waits for it who can be answered without it."""
BATCH_MAX: Final = 500
REMEMBERED_MAX: Final = 50_000

log = structlog.get_logger()


class PrincipalCache:
    """``get`` gives what is known of a user; at most ``TTL_S`` old unless the database is away."""

    def __init__(
        self, read: Callable[[list[str]], Awaitable[Iterable[Access]]], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._read = read
        self._clock = clock
        self._known: OrderedDict[str, tuple[float, Access | None]] = OrderedDict()
        self._waiting: dict[str, asyncio.Future[Access | None]] = {}
        self._being_read: dict[str, asyncio.Future[Access | None]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._away_until = float("-inf")

    async def get(self, user_id: str) -> Access | None:
        """What is known of a user; ``None``: there is none, or it was erased.

        Raises:
            DatabaseUnavailable: it cannot be read, and was not known a short while ago.
        """
        now = self._clock()
        known = self._known.get(user_id)
        if known is not None:
            age_s = now - known[0]
            if age_s < TTL_S or (now < self._away_until and age_s < STALE_MAX_S):
                return known[1]
        waiting = self._being_read.get(user_id) or self._waiting.get(user_id)
        if waiting is None:
            waiting = self._waiting[user_id] = asyncio.get_running_loop().create_future()
            waiting.add_done_callback(_observe)
            if self._reader is None:
                self._reader = tasks.begin(self._read_waiting(), name="principals")
        try:
            return await asyncio.shield(waiting)
        except DatabaseUnavailable:
            if known is not None and self._clock() - known[0] < STALE_MAX_S:
                return known[1]
            raise

    def forget(self, user_id: str) -> None:
        """Read the user anew next time: it was changed here. What is being read now may be from before the change."""
        self._known.pop(user_id, None)
        self._being_read.pop(user_id, None)

    async def close(self) -> None:
        """Stop reading."""
        if self._reader is not None:
            await tasks.end(self._reader)

    async def _read_waiting(self) -> None:
        batch: dict[str, asyncio.Future[Access | None]] = {}
        try:
            while self._waiting:
                batch = {user_id: self._waiting.pop(user_id) for user_id in list(self._waiting)[:BATCH_MAX]}
                self._being_read = dict(batch)
                began_at = self._clock()
                try:
                    async with asyncio.timeout(READ_TIMEOUT_S):
                        found = {access.user_id: access for access in await self._read(list(batch))}
                except (DatabaseUnavailable, TimeoutError):
                    self._away_until = self._clock() + AWAY_S
                    self._settle(batch, lambda _: DatabaseUnavailable("principals cannot be read"))
                    continue
                for user_id in self._being_read:
                    self._remember(user_id, began_at, found.get(user_id))
                self._settle(batch, found.get)
        finally:
            self._reader = None
            for left in (batch, self._waiting):
                self._settle(left, lambda _: DatabaseUnavailable("principals are not read any more"))
            self._being_read, self._waiting = {}, {}

    def _settle(
        self,
        batch: dict[str, asyncio.Future[Access | None]],
        answer: Callable[[str], Access | DatabaseUnavailable | None],
    ) -> None:
        for user_id, waiting in batch.items():
            if waiting.done():
                continue
            match answer(user_id):
                case DatabaseUnavailable() as failure:
                    waiting.set_exception(failure)
                case access:
                    waiting.set_result(access)

    def _remember(self, user_id: str, at: float, access: Access | None) -> None:
        self._known[user_id] = (at, access)
        self._known.move_to_end(user_id)
        if len(self._known) > REMEMBERED_MAX:
            self._known.popitem(last=False)


def _observe(waiting: asyncio.Future[Access | None]) -> None:
    if not waiting.cancelled():
        waiting.exception()  # Whoever waited may be gone; asyncio should not complain that nobody looked.
