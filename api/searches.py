"""Searches answered from memory: in this process, else from Redis, else from the database, and never a second late.

An answer about one doctor's slots is right while the calendar has the number that it was read at, as the change stream
knows: that number is compared with the journal twice a second, and an answer that was not compared for ``AGE_MAX_S`` is
read anew. An answer about many doctors is right for ``AGE_MAX_S``. Both end earlier where time itself changes them: a
slot begins, a hold ends.

What was done through this process shows at once: of that doctor always, of many unless so much is done that reading
each time would cost more than it is worth.

Reads go to the replica where there is one and it has come as far as the primary had when the stream last asked; else to
the primary. While the database is away, what is known is told with the instant it was true for.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from time import monotonic
from time import time as wall_clock
from typing import Annotated, Any, Final

import orjson
from fastapi import Depends, Request
from starlette.responses import Response

from api.dependencies import content_tag, tagged
from api.feed.stream import ChangeStream
from api.routing import encoded
from persistence.database import has_reached
from persistence.search_store import Answer, SearchStore
from persistence.unit_of_work import DatabaseUnavailable, UnitOfWork

AGE_MAX_S: Final = 0.8
"""An answer is at most a second late; this leaves some of it for the way."""
READ_TIMEOUT_S: Final = 5.0
REPLICA_TIMEOUT_S: Final = 0.3
"""A replica that takes longer is no help: the primary is asked, and that one is left alone for ``REPLICA_AWAY_S``."""
REPLICA_AWAY_S: Final = 2.0
PATIENCE_S: Final = 2.0
"""Who can be told something older waits no longer than that for something new."""
STALE_MAX_S: Final = 900.0
"""What is older is not told even while the database is away."""
READ_AGAIN_A_SECOND: Final = 20
"""How often answers about many doctors are read before their time, because something was done here."""
DONE_MAX: Final = 10_000
KNOWN_BYTES_MAX: Final = 64 << 20
OVERHEAD_BYTES: Final = 1024
"""What an answer takes beside its body, about."""
FOREVER: Final = 253_402_300_799.0
"""The end of the year 9999."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search has found."""

    content: Any
    """Plain data, as it is answered."""
    sequence: int = 0
    """Of the calendar that it is about, read before the content."""
    until: float = FOREVER
    """See ``Answer``."""


Read = Callable[[UnitOfWork], Awaitable[Found]]


@dataclass(slots=True)
class _Known:
    answer: Answer
    read_at: float
    """By the monotonic clock, before it was read: it is not older than that."""
    right_at: float
    """When it was last known to be right: then, or when its number was compared with the journal's."""


@dataclass(slots=True)
class _Reading:
    began_at: float
    task: asyncio.Task[Answer]


class Searches:
    """Answers searches. One for each process and event loop."""

    def __init__(
        self,
        *,
        stream: ChangeStream,
        store: SearchStore,
        begin: Callable[[], UnitOfWork],
        begin_on_replica: Callable[[], UnitOfWork] | None,
    ) -> None:
        self._stream = stream
        self._store = store
        self._begin = begin
        self._begin_on_replica = begin_on_replica
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._known_bytes = 0
        self._reading: dict[str, _Reading] = {}
        self._done_at: dict[str, float] = {}
        """When something was last done here in a calendar; forgotten once the journal was asked after it."""
        self._last_done_at = float("-inf")
        self._read_again_from = float("-inf")
        self._replica_away_until = float("-inf")

    def note(self, doctor_id: str) -> None:
        """Something was done in that calendar: its answers of before are not told any more."""
        self._last_done_at = self._done_at[doctor_id] = monotonic()
        if len(self._done_at) > DONE_MAX:
            asked_at = self._last_done_at if self._stream.confirmed is None else self._stream.confirmed.at
            self._done_at = {each: at for each, at in self._done_at.items() if at >= asked_at}

    def known(self, key: str, doctor_id: str | None) -> Answer | None:
        """What can be told without reading anything; see ``answer``."""
        known = self._known.get(key)
        return None if known is None else self._right(known, doctor_id)

    async def answer(self, key: str, read: Read, *, doctor_id: str | None = None) -> Answer:
        """What ``read`` finds, or has found a moment ago; ``key`` says all that it depends on but the database.

        ``doctor_id`` names the one calendar that it is about, if it is about nothing else.

        Raises:
            DatabaseUnavailable: and nothing is known, or what is known is wrong.
        """
        if (answer := self.known(key, doctor_id)) is not None:
            return answer
        known = self._stale(key)
        away_at = self._stream.away_at
        if known is not None and away_at is not None and away_at > self._last_done_at:
            return known.answer
        now = monotonic()
        reading = self._reading.get(key)
        if reading is None or now - reading.began_at > AGE_MAX_S or self._done_since(reading.began_at, doctor_id):
            if doctor_id is None:
                self._take_turn(now)
            reading = self._reading[key] = _Reading(now, asyncio.create_task(self._find_soon(key, read, doctor_id)))
            reading.task.add_done_callback(partial(self._has_read, key, reading))
        # Who can be told something older does not wait for long for a database that is away. One that is slow is waited
        # for: what is known may be wrong by now.
        if known is not None:
            await asyncio.wait({reading.task}, timeout=PATIENCE_S)
            if not reading.task.done() and self._is_away and (stale := self._stale(key)) is not None:
                return stale.answer
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                # Shielded: one caller that goes away must not take the answer from the others.
                return await asyncio.shield(reading.task)
        except (DatabaseUnavailable, TimeoutError) as failure:
            stale = self._stale(key)
            slow = isinstance(failure, TimeoutError)
            if stale is None or ((slow or self._is_wrong(stale, doctor_id)) and not self._is_away):
                raise DatabaseUnavailable("nothing is known that could be told") from None
            return stale.answer

    @property
    def _is_away(self) -> bool:
        """Whether the journal cannot be asked, either: then nobody can know better."""
        confirmed = self._stream.confirmed
        return self._stream.away_at is not None or confirmed is None or confirmed.at < monotonic() - AGE_MAX_S

    def _stale(self, key: str) -> _Known | None:
        """What was right not too long ago."""
        known = self._known.get(key)
        return known if known is not None and monotonic() - known.right_at < STALE_MAX_S else None

    def _is_wrong(self, known: _Known, doctor_id: str | None) -> bool:
        """Whether it is known that something has changed since."""
        overtaken = doctor_id is not None and self._stream.reached(doctor_id) > known.answer.sequence
        return overtaken or self._done_since(known.right_at, doctor_id)

    def _has_read(self, key: str, reading: _Reading, task: asyncio.Task[Answer]) -> None:
        if self._reading.get(key) is reading:
            del self._reading[key]
        if not task.cancelled():
            task.exception()  # Whoever waited was told; perhaps all of them have gone.

    def _right(self, known: _Known, doctor_id: str | None) -> Answer | None:
        """The answer, if it is right now."""
        answer = known.answer
        if wall_clock() >= answer.until:
            return None
        now = monotonic()
        if doctor_id is not None:
            if self._stream.reached(doctor_id) > answer.sequence:
                return None
            confirmed = self._stream.confirmed
            if confirmed is not None and confirmed.at > known.right_at:
                known.right_at = confirmed.at
                if answer.as_of < confirmed.instant:
                    answer = known.answer = replace(answer, as_of=confirmed.instant)
        right = known.right_at >= now - AGE_MAX_S and not self._is_overtaken(known.right_at, doctor_id, now)
        return answer if right else None

    def _done_since(self, instant: float, doctor_id: str | None) -> bool:
        """Whether something was done here since, in that calendar or in any."""
        if doctor_id is not None:
            return instant < self._done_at.get(doctor_id, instant)
        return instant < self._last_done_at

    def _is_overtaken(self, instant: float, doctor_id: str | None, now: float) -> bool:
        """Whether something was done here since, and it is worth reading again."""
        return self._done_since(instant, doctor_id) and (doctor_id is not None or self._read_again_from <= now)

    def _take_turn(self, now: float) -> None:
        """Count a reading of an answer about many doctors. Up to a second's worth may have been saved up."""
        self._read_again_from = max(self._read_again_from, now - 1.0) + 1.0 / READ_AGAIN_A_SECOND

    async def _find_soon(self, key: str, read: Read, doctor_id: str | None) -> Answer:
        async with asyncio.timeout(READ_TIMEOUT_S):
            return await self._find(key, read, doctor_id)

    async def _find(self, key: str, read: Read, doctor_id: str | None) -> Answer:
        if doctor_id is not None and (shared := await self._store.get(key)) is not None:
            # It was read by others, who knows when: only its number tells whether it is right.
            known = _Known(shared, float("-inf"), float("-inf"))
            if self._right(known, doctor_id) is not None:
                known.read_at = known.right_at
                self._keep(key, known)
                return known.answer
        known = await self._read_on_replica(read, doctor_id) or await self._read_on_primary(read)
        self._keep(key, known)
        if doctor_id is not None:
            await self._store.put(key, known.answer)
        return known.answer

    async def _read_on_primary(self, read: Read) -> _Known:
        read_at, instant = monotonic(), datetime.now(UTC)
        async with self._begin() as work:
            return _Known(_answer(await read(work), instant), read_at, read_at)

    async def _read_on_replica(self, read: Read, doctor_id: str | None) -> _Known | None:
        """What is found there, if it has all that was known of when the journal was last asked."""
        confirmed, now = self._stream.confirmed, monotonic()
        if self._begin_on_replica is None or confirmed is None or now < self._replica_away_until:
            return None
        if confirmed.at < now - AGE_MAX_S or self._done_since(confirmed.at, doctor_id):
            return None
        try:
            async with asyncio.timeout(REPLICA_TIMEOUT_S), self._begin_on_replica() as work:
                if not await has_reached(work.connection, confirmed.position):
                    return None
                found = await read(work)
        except (DatabaseUnavailable, TimeoutError):
            self._replica_away_until = monotonic() + REPLICA_AWAY_S
            return None
        if confirmed.at < monotonic() - AGE_MAX_S:
            return None
        if doctor_id is not None and found.sequence < self._stream.reached(doctor_id):
            return None
        return _Known(_answer(found, confirmed.instant), confirmed.at, confirmed.at)

    def _keep(self, key: str, known: _Known) -> None:
        before = self._known.get(key)
        if before is not None:
            if before.read_at > known.read_at:
                return  # A later read was quicker.
            del self._known[key]
            self._known_bytes -= _size(key, before)
        self._known[key] = known
        self._known_bytes += _size(key, known)
        while self._known_bytes > KNOWN_BYTES_MAX:
            forgotten, oldest = self._known.popitem(last=False)
            self._known_bytes -= _size(forgotten, oldest)


def respond(request: Request, answer: Answer) -> Response:
    """The response that tells it, or 304 where the client has just that."""
    return tagged(request, answer.body, at=answer.as_of, tag=answer.tag)


def key_of(*parts: object) -> str:
    """A key of parts that say what is asked for."""
    return orjson.dumps(parts, default=str).decode()


def earliest(*instants: datetime | None) -> float:
    """The first of these, as ``Found.until`` has it."""
    return min((instant.timestamp() for instant in instants if instant is not None), default=FOREVER)


def _answer(found: Found, as_of: datetime) -> Answer:
    body = encoded(found.content)
    return Answer(body=body, tag=content_tag(body), as_of=as_of, until=found.until, sequence=found.sequence)


def _size(key: str, known: _Known) -> int:
    return len(key) + len(known.answer.body) + OVERHEAD_BYTES


async def searches_of(request: Request) -> Searches:
    """The one of this process."""
    searches: Searches = request.app.state.searches
    return searches


TheSearches = Annotated[Searches, Depends(searches_of)]
