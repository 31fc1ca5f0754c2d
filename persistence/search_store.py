"""Answers to searches of one doctor's slots, shared between API processes through Redis.

What is found there promises nothing: whoever reads it compares the sequence number with the calendar's. A write never
replaces the answer of a later number. Without Redis everybody reads for themselves.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import orjson
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

log = structlog.get_logger()

FORM: Final = 1
"""Of what is stored; another release's form has other keys."""
KEPT_MS: Final = 60_000
AWAY_S: Final = 1.0
"""After a failure Redis is left alone for so long: nobody waits for it again and again."""

# The number of the stored answer stands first in it: "[17,…".
_PUT: Final = """
local known = redis.call('GETRANGE', KEYS[1], 0, 24)
local sequence = string.match(known, '^%[(%d+)')
if sequence and tonumber(sequence) > tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The body of an answer to a search, and for how long it is right."""

    body: bytes
    tag: str
    as_of: datetime
    """The instant that it is true for."""
    until: float
    """In seconds since 1970: from then on it is not right any more, whatever happens."""
    sequence: int
    """Of the calendar that it is about, or 0: it is about many."""


class SearchStore:
    """Stores answers in Redis. Neither ``get`` nor ``put`` fails."""

    def __init__(self, redis: Redis, *, namespace: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._redis = redis
        self._prefix = f"zapis:{namespace}:search:{FORM}:"
        self._put = redis.register_script(_PUT)
        self._clock = clock
        self._away_until = float("-inf")

    async def get(self, key: str) -> Answer | None:
        """The answer stored under the key, by whichever process."""
        if self._clock() < self._away_until:
            return None
        try:
            stored = await self._redis.get(self._name(key))
        except (RedisError, OSError) as failure:
            self._failed(failure)
            return None
        return _decoded(stored) if isinstance(stored, bytes) else None

    async def put(self, key: str, answer: Answer) -> None:
        """Store it, unless what is there is of a later number."""
        if self._clock() < self._away_until:
            return
        try:
            await self._put(keys=[self._name(key)], args=[answer.sequence, _encoded(answer), KEPT_MS])
        except (RedisError, OSError) as failure:
            self._failed(failure)

    def _name(self, key: str) -> str:
        return self._prefix + hashlib.sha256(key.encode()).hexdigest()

    def _failed(self, failure: Exception) -> None:
        self._away_until = self._clock() + AWAY_S
        log.warning("search_store_away", reason=type(failure).__name__)


def _encoded(answer: Answer) -> bytes:
    return orjson.dumps([answer.sequence, answer.tag, answer.as_of, answer.until]) + b"\n" + answer.body


def _decoded(stored: bytes) -> Answer | None:
    head, _, body = stored.partition(b"\n")
    try:
        sequence, tag, as_of, until = orjson.loads(head)
        instant = datetime.fromisoformat(as_of)
    except (ValueError, TypeError):
        return None  # Whatever that was: it is replaced by the next write.
    sound = type(sequence) is int and type(tag) is str and type(until) in (int, float) and instant.tzinfo is not None
    return Answer(body=body, tag=tag, as_of=instant, until=until, sequence=sequence) if sound else None
