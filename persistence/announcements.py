"""Announcements of what was committed, by Redis: from the calendar actors to every API process.

They are quick and promise nothing: Redis may be away, and an actor may die between its commit and the announcement. Who
must not miss anything compares sequence numbers and asks ``persistence.change_log``.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from typing import Any, Final

import orjson
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from actors import tasks
from actors.changes import AppointmentChange, Change, Effect, SlotChange
from actors.journal import EventRow

log = structlog.get_logger()

WAITING_MAX: Final = 10_000
"""Announcements that wait for Redis; past it the oldest are dropped, and found in the journal."""
TOGETHER_MAX: Final = 500
"""Changes in one message."""
TIMEOUT_S: Final = 1.0
RETRY_DELAY_S: Final = 0.5
SILENCE_MAX_S: Final = 2.0
"""A subscription that has not said anything for so long is asked whether it is still there."""


def channel_of(namespace: str) -> str:
    """Where the changes of a deployment are announced."""
    return f"zapis:{namespace}:changes"


class UnreadableAnnouncement(Exception):
    """Something was announced that is no announcement of ours."""


class Announcement:
    """A change that was announced. Every process hears all of them and most concern nobody there."""

    __slots__ = ("_appointments", "_at", "_slots", "doctor_id", "sequence")

    def __init__(
        self, doctor_id: str, sequence: int, at: str, slots: list[list[Any]], appointments: list[list[Any]]
    ) -> None:
        self.doctor_id = doctor_id
        self.sequence = sequence
        self._at = at
        self._slots = slots
        self._appointments = appointments

    def change(self) -> Change:
        """All of it."""
        return Change(
            doctor_id=self.doctor_id,
            sequence=self.sequence,
            at=datetime.fromisoformat(self._at),
            effect=Effect(
                slots=tuple(map(_slot, self._slots)), appointments=tuple(map(_appointment, self._appointments))
            ),
        )


class RedisAnnouncer:
    """``actors.journal.Announcer`` over Redis. Connects when first used; belongs to one event loop."""

    def __init__(self, *, redis_url: str, channel: str) -> None:
        self._redis_url = redis_url
        self._channel = channel
        self._waiting: deque[Change] = deque(maxlen=WAITING_MAX)
        self._wake = asyncio.Event()
        self._publishing: asyncio.Task[None] | None = None

    def announce(self, events: Sequence[EventRow]) -> None:
        """See ``Announcer.announce``."""
        self._waiting.extend(
            Change(doctor_id=row.doctor_id, sequence=row.sequence, at=row.at, effect=row.effect) for row in events
        )
        self._wake.set()
        if self._publishing is None:
            self._publishing = tasks.begin(self._publish(), name="announce")

    async def close(self) -> None:
        """See ``Announcer.close``."""
        if self._publishing is not None:
            await tasks.end(self._publishing)

    async def _publish(self) -> None:
        async with Redis.from_url(
            self._redis_url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, protocol=3
        ) as redis:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._waiting:
                    together = [self._waiting.popleft() for _ in range(min(TOGETHER_MAX, len(self._waiting)))]
                    try:
                        await redis.publish(self._channel, encode_changes(together))
                    except (RedisError, OSError) as failure:
                        # Those who listen have noticed the gap, or will: nothing is said twice.
                        log.warning("announcement_failed", reason=type(failure).__name__, changes=len(together))
                        await asyncio.sleep(RETRY_DELAY_S)


async def listen(redis_url: str, channel: str) -> AsyncGenerator[list[Announcement] | None]:
    """What is announced from now on, for as long as it goes on; ``None`` first, once anything said would be heard.

    Raises:
        RedisError, OSError, TimeoutError: Redis is away, or has gone silent.
        UnreadableAnnouncement
    """
    async for data in hear(redis_url, channel):
        yield None if data is None else decode_announcements(data)


async def hear(redis_url: str, channel: str) -> AsyncGenerator[bytes | None]:
    """The same, without a look at what is said: for who only wants to know that something was.

    Raises:
        RedisError, OSError, TimeoutError: Redis is away, or has gone silent.
    """
    redis = Redis.from_url(
        redis_url, socket_timeout=SILENCE_MAX_S, socket_connect_timeout=TIMEOUT_S, protocol=3, retry=None
    )
    async with redis, redis.pubsub(ignore_subscribe_messages=False) as subscription:
        await subscription.subscribe(channel)
        asked = False
        while True:
            message = await subscription.get_message(timeout=SILENCE_MAX_S)
            match message:
                case None if asked:
                    raise TimeoutError("Redis has gone silent")
                case None:
                    asked = True
                    await subscription.ping()
                case {"type": "subscribe"}:
                    yield None
                case {"type": "message", "data": bytes(data)}:
                    asked = False
                    yield data
                case _:
                    asked = False


def encode_changes(changes: Sequence[Change]) -> bytes:
    """Changes in wire form. It holds ids only."""
    return orjson.dumps(
        [
            [
                change.doctor_id,
                change.sequence,
                change.at,
                [
                    [slot.id, slot.start, slot.end, slot.location_id, slot.service_id, slot.status]
                    for slot in change.effect.slots
                ],
                [[each.id, each.patient_id, each.version] for each in change.effect.appointments],
            ]
            for change in changes
        ]
    )


def decode_announcements(data: bytes) -> list[Announcement]:
    """The inverse of ``encode_changes``, but for what is decoded once somebody wants to know.

    Raises:
        UnreadableAnnouncement: it is of another release.
    """
    try:
        return [Announcement(*plain) for plain in orjson.loads(data)]
    except (ValueError, TypeError) as error:
        raise UnreadableAnnouncement(type(error).__name__) from error


def _slot(plain: list[Any]) -> SlotChange:
    slot_id, start, end, location_id, service_id, status = plain
    return SlotChange(
        id=slot_id,
        start=datetime.fromisoformat(start),
        end=datetime.fromisoformat(end),
        location_id=location_id,
        service_id=service_id,
        status=status,
    )


def _appointment(plain: list[Any]) -> AppointmentChange:
    appointment_id, patient_id, version = plain
    return AppointmentChange(id=appointment_id, patient_id=patient_id, version=version)
