"""How often someone may do something: counted in this process, shared with the others through Redis.

A decision never waits for Redis. Each process counts for itself and, twice a second, adds what it counted to the totals
in Redis and learns what the others counted. A count that is small against its limit is not sent at all, so a thousand
quiet users cost nothing. Hence the trust: with n processes a limit can be passed by what n processes admit in half a
second, plus a sixteenth of the limit for each; without Redis each process holds the limit by itself.

A window slides: the count is what the current fixed window holds plus the share of the last one that still overlaps.
One more is allowed where it fits under the limit whole, so that a burst over the border of two windows gains nothing.
Who never lets up gets one less than the limit in the long run, and waits for two windows at most: of a limit of one,
until the window after the next begins.
Counts are bounded: past ``WHO_MAX`` the longest untouched is forgotten.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from actors import tasks
from api.errors import Problem

WHO_MAX: Final = 100_000
SYNC_INTERVAL_S: Final = 0.5
SYNC_BATCH_MAX: Final = 500
UNSENT_SHARE: Final = 16

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """At most ``count`` at once, and on average in ``window_s``, for each who; ``count`` 0: no such limit."""

    name: str
    count: int
    window_s: int


@dataclass(slots=True)
class _Count:
    window: int
    mine: int = 0
    sent: int = 0
    total: int = 0
    before: int = 0

    @property
    def now(self) -> int:
        return self.total + self.mine - self.sent


class Limits:
    """Counts by limit and by who; ``start`` has them shared until ``stop``."""

    def __init__(self, redis: Redis | None, *, clock: Callable[[], float] = time.time) -> None:
        self._redis = redis
        self._clock = clock
        self._counts: OrderedDict[tuple[Limit, str], _Count] = OrderedDict()
        self._unsent: dict[tuple[Limit, str], _Count] = {}
        self._sharing = True
        self._running: asyncio.Task[None] | None = None

    def take(self, limit: Limit, who: str) -> float:
        """Count one more; 0 where that is allowed, else the seconds to wait, and nothing is counted."""
        if not limit.count:
            return 0
        wait_s = self.wait_s(limit, who)
        if not wait_s:
            self.add(limit, who)
        return wait_s

    def admit(self, limit: Limit, who: str) -> None:
        """Count one more.

        Raises:
            Problem: ``rate_limited``, there were as many as are allowed.
        """
        wait_s = self.take(limit, who)
        if wait_s:
            raise Problem("rate_limited", retry_after_s=wait_s)

    def wait_s(self, limit: Limit, who: str) -> float:
        """How long until one more is allowed; 0: it is now."""
        if not limit.count:
            return 0
        now = self._clock()
        count = self._count(limit, who, now)
        passed = now / limit.window_s % 1
        room = limit.count - 1 - count.now  # What may overlap of the last window beside one more.
        if count.before * (1 - passed) <= room:
            return 0
        if room >= 0:  # What overlaps of the last window shrinks as this one goes on.
            return max((1 - room / count.before - passed) * limit.window_s, 1)
        return (2 - passed - (limit.count - 1) / count.now) * limit.window_s

    def add(self, limit: Limit, who: str) -> None:
        """Count one more, allowed or not."""
        if not limit.count:
            return
        count = self._count(limit, who, self._clock())
        count.mine += 1
        if count.mine - count.sent >= max(1, limit.count // UNSENT_SHARE) and self._redis is not None:
            self._unsent[limit, who] = count

    def start(self) -> None:
        """Share the counts from now on."""
        self._running = tasks.begin(self._run(), name="limits")

    async def stop(self) -> None:
        """Share them no more."""
        if self._running is not None:
            await tasks.end(self._running)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(SYNC_INTERVAL_S)
            await self.share()

    async def share(self) -> None:
        """Add what was counted here to the totals in Redis, and learn them; without Redis, keep counting."""
        if self._redis is None:
            return
        while self._unsent:
            batch = [self._unsent.popitem() for _ in range(min(SYNC_BATCH_MAX, len(self._unsent)))]
            pipeline = self._redis.pipeline(transaction=False)
            sending: list[int] = []
            for (limit, who), count in batch:
                name = f"zapis:limit:{limit.name}:{who}:{count.window}"
                sending.append(count.mine - count.sent)
                pipeline.incrby(name, sending[-1])
                pipeline.expire(name, 2 * limit.window_s)
            try:
                answers = await pipeline.execute()
            except (RedisError, OSError) as error:
                if self._sharing:
                    log.warning("limits_not_shared", error=type(error).__name__)
                self._sharing = False
                self._unsent.update(batch)
                return
            self._sharing = True
            for ((_, _), count), sent, total in zip(batch, sending, answers[::2], strict=True):
                count.sent += sent
                count.total = int(total)

    def _count(self, limit: Limit, who: str, now: float) -> _Count:
        window = int(now // limit.window_s)
        key = (limit, who)
        count = self._counts.get(key)
        if count is None:
            count = self._counts[key] = _Count(window)
            if len(self._counts) > WHO_MAX:
                forgotten, _ = self._counts.popitem(last=False)
                self._unsent.pop(forgotten, None)
        else:
            self._counts.move_to_end(key)
            if count.window != window:
                before = count.now if window == count.window + 1 else 0
                self._unsent.pop(key, None)
                count = self._counts[key] = _Count(window, before=before)
        return count
