"""Reading for many at once: while one query is under way, the next ones gather what they ask for.

No timer, no delay: who comes alone is served at once, and where hundreds come, hundreds share a query.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Generic, TypeVar

from actors import tasks
from persistence.unit_of_work import DatabaseUnavailable

Value = TypeVar("Value")

BATCH_MAX: Final = 500
"""How many are asked for in one query."""
WAITING_MAX: Final = 5_000
"""How many may be waited for beside those."""
READ_TIMEOUT_S: Final = 3.0
"""A query that takes longer counts as failed."""


class Gathering(Generic[Value]):
    """Asks ``read`` for what it is asked for, one query at a time; what was found is told to ``remember``, too."""

    def __init__(
        self,
        read: Callable[[list[str]], Awaitable[Mapping[str, Value]]],
        remember: Callable[[str, Value | None, float], None],
        *,
        name: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``remember`` gets the key, what was found under it if anything was, and when the query began."""
        self._read = read
        self._remember = remember
        self._name = name
        self._clock = clock
        self._waiting: dict[str, list[asyncio.Future[Value | None]]] = {}
        self._being_read: dict[str, list[asyncio.Future[Value | None]]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._closed = False

    async def ask(self, key: str) -> Value | None:
        """What there is under a key; ``None``: nothing. The query may have begun before it was asked for.

        Raises:
            DatabaseUnavailable: it cannot be read, ``WAITING_MAX`` others are waited for already, or what reads has
                died of a bug, which is in the log.
        """
        # One of its own for everybody who waits: who goes away takes nothing from the others.
        waiting: asyncio.Future[Value | None] = asyncio.get_running_loop().create_future()
        self._gather(key).append(waiting)
        return await waiting

    def forget(self, key: str) -> None:
        """What is being read now may be from before a change: who asks from now on is to have it read anew."""
        self._being_read.pop(key, None)

    async def close(self) -> None:
        """Stop reading, for good."""
        self._closed = True
        if self._reader is not None:
            await tasks.end(self._reader)
            self._end()  # One that had no turn yet did not do so.

    def _gather(self, key: str) -> list[asyncio.Future[Value | None]]:
        waiting = self._being_read.get(key)
        if waiting is None:
            waiting = self._waiting.get(key)
        if waiting is None:
            if self._closed or len(self._waiting) >= WAITING_MAX:
                raise DatabaseUnavailable("no more is read, or not so much")
            waiting = self._waiting[key] = []
            if self._reader is None:
                self._reader = tasks.begin(self._read_all(), name=self._name)
        return waiting

    async def _read_all(self) -> None:
        batch: dict[str, list[asyncio.Future[Value | None]]] = {}
        try:
            while self._waiting:
                batch = {key: self._waiting.pop(key) for key in list(self._waiting)[:BATCH_MAX]}
                self._being_read = dict(batch)
                began_at = self._clock()
                try:
                    async with asyncio.timeout(READ_TIMEOUT_S):
                        found = await self._read(list(batch))
                except (DatabaseUnavailable, TimeoutError):
                    _fail(batch, "it cannot be read")
                else:
                    for key in self._being_read:
                        self._remember(key, found.get(key), began_at)
                    for key, waiting in batch.items():
                        for each in waiting:
                            if not each.done():
                                each.set_result(found.get(key))
                self._being_read = {}
        finally:
            _fail(batch, "nobody reads any more")
            self._end()

    def _end(self) -> None:
        self._reader = None
        left = self._waiting
        self._being_read, self._waiting = {}, {}
        _fail(left, "nobody reads any more")


def _fail(waiting: Mapping[str, list[asyncio.Future[Value | None]]], why: str) -> None:
    for each in (each for several in waiting.values() for each in several):
        if not each.done():
            each.set_exception(DatabaseUnavailable(why))
