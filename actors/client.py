"""The way to a calendar: lanes, placement and retries. The one place that names or calls calendar actors.

A command goes into the *lane* of the calendar actor that owns its doctor. One call is in flight on a lane; what arrives
meanwhile waits and travels together in the next one. Ray promises at most one execution and may report an error after
a success, so the client sends again under the same ``command_id`` until an answer stands or the deadline has passed.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import itertools
import os
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, Protocol

import orjson
import ray
import structlog
from ray.actor import ActorHandle
from ray.exceptions import RayError

from actors import detached
from actors.calendar_actor import ActorLimits, CalendarActor
from actors.journal import Announcer, Journal
from actors.messages import (
    WIRE_VERSION,
    Batch,
    Command,
    Done,
    NotDecided,
    Pending,
    RefusedFor,
    Reply,
    from_wire,
    wire_name,
)
from actors.policy import Policy

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """How calendars are spread over calendar actors; ``generation`` only rises."""

    generation: int
    dedicated: bool
    actors: int

    def shared_names(self) -> list[str]:
        """The names of the calendar actors that share all calendars."""
        return [f"calendars:{number}" for number in range(self.actors)]

    def actor_name(self, doctor_id: str) -> str:
        """The name of the calendar actor that owns a doctor's calendar."""
        if self.dedicated:
            return f"calendar:{doctor_id}"
        digest = hashlib.blake2b(doctor_id.encode(), digest_size=8).digest()
        return f"calendars:{int.from_bytes(digest, 'big') % self.actors}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientLimits:
    """The bounds of one client."""

    lane_depth_max: int = 2000
    """Commands waiting on one lane; past it they are refused at once."""
    lane_batch_max: int = 128
    """Commands in one call."""
    call_timeout_s: float = 4.0
    """A call that takes longer is given up and its commands are sent again."""
    resend_delay_s: float = 0.004
    """First pause before a command is sent again; doubles up to the next."""
    resend_delay_max_s: float = 0.25
    lanes_max: int = 2000
    """Calendar actors that are spoken to; past it the lane that was unused for longest is forgotten."""


class CalendarActorRef(Protocol):
    """A calendar actor, wherever it runs. Every method may raise ``ActorLost``: then nothing is known."""

    async def decide_batch(self, batch: bytes) -> bytes:
        """Replies to a batch, both in wire form."""
        ...

    async def command_status(self, command_id: str, user_id: str) -> bool:
        """Whether the actor has decided such a command of the user's and not committed it yet."""
        ...


class ActorLost(Exception):
    """The actor died, cannot be reached or did not answer in time."""


class CalendarActors(Protocol):
    """Finds or starts calendar actors by name."""

    async def get(self, name: str) -> CalendarActorRef:
        """The actor of that name, started if there is none.

        Raises:
            ActorLost: it cannot be had now.
        """
        ...

    def forget(self, name: str) -> None:
        """Look the actor up anew the next time."""
        ...

    async def running(self) -> dict[str, CalendarActorRef]:
        """The actors that exist now, by name.

        Raises:
            ActorLost: nobody can say now.
        """
        ...


class CalendarClient:
    """Sends commands to the calendars' actors. One for each process and event loop."""

    def __init__(
        self,
        *,
        actors: CalendarActors,
        read_placement: Callable[[], Awaitable[Placement]],
        limits: ClientLimits,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._clock = clock
        self._actors = actors
        self._read_placement = read_placement
        self._limits = limits
        self._placement: Placement | None = None
        self._placement_read: asyncio.Task[Placement] | None = None
        self._lanes: dict[str, _Lane] = {}
        self._calls = _Calls(clock)
        self._on_done: list[Callable[[str], None]] = []

    def on_done(self, tell: Callable[[str], None]) -> None:
        """Have ``tell`` called with the doctor's id whenever a command of this client was done, before its reply."""
        self._on_done.append(tell)

    async def send(self, command: Command) -> Reply:
        """The command's reply; it was sent again, under the same id, as often as was needed.

        A command without a ``deadline`` is a programming error. When the deadline passes, the reply is
        ``NotDecided``: then the outcome is unknown to the caller, and repeating the command is safe.
        """
        assert command.deadline is not None, "a command needs a deadline"
        delay_s = self._limits.resend_delay_s
        while True:
            left_s = (command.deadline - self._clock()).total_seconds()
            if left_s <= 0:
                return NotDecided(why=RefusedFor.UNAVAILABLE)
            reply = await self._send_once(command, left_s)
            if isinstance(reply, Done):
                for tell in self._on_done:
                    tell(command.doctor_id)
            if not isinstance(reply, NotDecided):
                return reply
            match reply.why:
                case RefusedFor.OVERLOADED | RefusedFor.UNAVAILABLE:
                    return reply
                case RefusedFor.MISPLACED:
                    self._placement = None
                case RefusedFor.NOT_ACTIVE | RefusedFor.EXPIRED:
                    pass  # What has expired by another clock has time left by this one.
            left_s = (command.deadline - self._clock()).total_seconds()
            if left_s <= delay_s:
                return NotDecided(why=RefusedFor.UNAVAILABLE)
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, self._limits.resend_delay_max_s)

    async def find_pending(self, command_id: str, user_id: str) -> Pending | None:
        """Whether some actor has decided the command and not committed it yet.

        Raises:
            ActorLost: some actor could not be asked.
        """
        try:
            async with asyncio.timeout(self._limits.call_timeout_s):
                actors = (await self._actors.running()).values()
                pending = await asyncio.gather(*(actor.command_status(command_id, user_id) for actor in actors))
        except TimeoutError as failure:
            raise ActorLost("some calendar actor does not answer") from failure
        return Pending(command_id=command_id) if any(pending) else None

    async def start_actors(self) -> None:
        """Have the shared calendar actors begin to start, so that the first command need not wait for it.

        Raises:
            ActorLost: Ray cannot start them now.
            PlacementUnknown
        """
        placement = self._placement or await self._fetch_placement()
        if not placement.dedicated:
            for name in placement.shared_names():
                await self._actors.get(name)

    async def close(self) -> None:
        """Refuse what waits and let the lanes go."""
        for lane in self._lanes.values():
            lane.close()
        self._lanes.clear()

    async def _send_once(self, command: Command, left_s: float) -> Reply:
        placement = self._placement
        if placement is None:
            until = asyncio.get_running_loop().time() + left_s
            try:
                async with asyncio.timeout_at(until):
                    placement = await self._fetch_placement()
            except TimeoutError:
                return NotDecided(why=RefusedFor.UNAVAILABLE)
            except PlacementUnknown:
                return NotDecided(why=RefusedFor.NOT_ACTIVE)
            left_s = until - asyncio.get_running_loop().time()
        name = placement.actor_name(command.doctor_id)
        lane = self._lanes.get(name)
        if lane is None:
            if len(self._lanes) >= self._limits.lanes_max and not self._forget_idle_lane():
                return NotDecided(why=RefusedFor.OVERLOADED)
            lane = self._lanes[name] = _Lane(name=name, actors=self._actors, limits=self._limits, calls=self._calls)
        return await lane.put(placement.generation, command, left_s)

    async def _fetch_placement(self) -> Placement:
        """Read the placement, once for all who ask meanwhile."""
        if self._placement_read is None:
            self._placement_read = asyncio.ensure_future(self._read_placement())
        reading = self._placement_read
        try:
            self._placement = await asyncio.shield(reading)
        finally:
            if self._placement_read is reading and reading.done():
                self._placement_read = None
        return self._placement

    def _forget_idle_lane(self) -> bool:
        idle = [(lane.used_at, name) for name, lane in self._lanes.items() if lane.idle]
        if not idle:
            return False
        _, name = min(idle)
        self._lanes.pop(name).close()
        self._actors.forget(name)
        return True


class _Calls:
    """Numbers the calls of one client, so that an actor knows one that comes when it has been given up.

    Its sender may have been told no since: then it must not be obeyed.
    """

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._sender = uuid.uuid4().hex
        self._numbers = itertools.count(1)

    def next(self, generation: int, commands: Sequence[Command]) -> Batch:
        """The next call's batch."""
        return Batch(
            generation=generation,
            sender=self._sender,
            number=next(self._numbers),
            sent_at=self._clock(),
            commands=tuple(commands),
        )


class PlacementUnknown(Exception):
    """The placement cannot be read now."""


class _Lane:
    """The queue to one calendar actor, with one call in flight."""

    def __init__(self, *, name: str, actors: CalendarActors, limits: ClientLimits, calls: _Calls) -> None:
        self._name = name
        self._actors = actors
        self._limits = limits
        self._calls = calls
        self._queue: deque[tuple[int, Command, asyncio.Future[Reply]]] = deque()
        self._sender: asyncio.Task[None] | None = None
        self.used_at = 0.0

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is in flight."""
        return self._sender is None and not self._queue

    async def put(self, generation: int, command: Command, left_s: float) -> Reply:
        """The reply to one sending of the command; ``NotDecided`` when it has not come in so long."""
        if len(self._queue) >= self._limits.lane_depth_max:
            return NotDecided(why=RefusedFor.OVERLOADED)
        loop = asyncio.get_running_loop()
        self.used_at = loop.time()
        future: asyncio.Future[Reply] = loop.create_future()
        self._queue.append((generation, command, future))
        if self._sender is None:
            self._start()
        giving_up = loop.call_later(left_s, _give_up, future)  # asyncio.timeout costs more: one for each command.
        try:
            return await future
        finally:
            giving_up.cancel()

    def close(self) -> None:
        """Refuse what waits."""
        if self._sender is not None:
            self._sender.cancel()
            self._sender = None
        while self._queue:
            future = self._queue.popleft()[2]
            if not future.done():
                future.set_result(NotDecided(why=RefusedFor.UNAVAILABLE))

    def _start(self) -> None:
        self._sender = asyncio.create_task(self._send_all(), name=f"lane {self._name}")
        self._sender.add_done_callback(self._sender_ended)

    def _sender_ended(self, sender: asyncio.Task[None]) -> None:
        if not sender.cancelled() and sender.exception() is not None:
            # A bug cost one batch its answers. Whatever came behind it still waits.
            log.error("lane_died", lane=self._name, exc_info=sender.exception())
            if self._queue and self._sender is None:
                self._start()

    async def _send_all(self) -> None:
        try:
            while self._queue:
                await self._send_some()
        finally:
            # Here, not in a callback: whoever puts next has to see it. A lane that was closed may have a new one.
            if self._sender is asyncio.current_task():
                self._sender = None

    async def _send_some(self) -> None:
        generation = self._queue[0][0]
        sent: list[tuple[Command, asyncio.Future[Reply]]] = []
        while self._queue and self._queue[0][0] == generation and len(sent) < self._limits.lane_batch_max:
            _, command, future = self._queue.popleft()
            if not future.done():
                sent.append((command, future))
        if not sent:
            return
        try:
            replies = await self._call(generation, [command for command, _ in sent])
            for (_, future), reply in zip(sent, replies, strict=True):
                if not future.done():
                    future.set_result(reply)
        finally:
            for _, future in sent:
                if not future.done():
                    future.set_result(NotDecided(why=RefusedFor.UNAVAILABLE))

    async def _call(self, generation: int, commands: Sequence[Command]) -> Sequence[Reply]:
        batch = encode_batch(self._calls.next(generation, commands))
        try:
            async with asyncio.timeout(self._limits.call_timeout_s):
                actor = await self._actors.get(self._name)
                return decode_replies(await actor.decide_batch(batch))
        except (ActorLost, TimeoutError) as failure:
            log.warning("calendar_actor_lost", lane=self._name, reason=type(failure).__name__, commands=len(commands))
            self._actors.forget(self._name)
            return [NotDecided(why=RefusedFor.NOT_ACTIVE)] * len(commands)


def _give_up(waiting: asyncio.Future[Reply]) -> None:
    if not waiting.done():
        waiting.set_result(NotDecided(why=RefusedFor.UNAVAILABLE))


def encode_batch(batch: Batch) -> bytes:
    """A batch in wire form."""
    commands = [[wire_name(command), command] for command in batch.commands]
    return orjson.dumps([WIRE_VERSION, batch.generation, batch.sender, batch.number, batch.sent_at, commands])


def decode_batch(data: bytes) -> Batch:
    """The batch that has this wire form.

    Raises:
        ValueError: it was made by a release that speaks another version.
    """
    version, *content = orjson.loads(data)
    if version != WIRE_VERSION:
        raise ValueError(f"batch of wire version {version}, this release speaks {WIRE_VERSION}")
    generation, sender, number, sent_at, commands = content
    return Batch(
        generation=generation,
        sender=sender,
        number=number,
        sent_at=datetime.fromisoformat(sent_at),
        commands=tuple(from_wire(name, command) for name, command in commands),
    )


def encode_replies(replies: Sequence[Reply]) -> bytes:
    """Replies in wire form."""
    return orjson.dumps([[wire_name(reply), reply] for reply in replies])


def decode_replies(replies: bytes) -> list[Reply]:
    """The replies, their answers as plain JSON data."""
    return [from_wire(name, data) for name, data in orjson.loads(replies)]


# Ray

CALENDAR_ACTORS: Final = ("calendars:", "calendar:")
"""How their names begin: see ``Placement``."""
_ALL: Final = "all"
JournalFactory = Callable[[], Journal]
AnnouncerFactory = Callable[[], Announcer]
DRAIN_GRACE_S = 2.0
EXIT_AFTER_BUG = 70
"""Exit code of an actor process that cannot commit any more (sysexits.h, EX_SOFTWARE): Ray starts it again."""


class RayCalendarActor:
    """``CalendarActor`` behind Ray's door: bytes in, bytes out. Cheap to construct; connects when first used."""

    def __init__(
        self,
        make_journal: JournalFactory,
        make_announcer: AnnouncerFactory,
        policy: Policy,
        limits: ActorLimits,
        set_up_logs: Callable[[], None],
    ) -> None:
        set_up_logs()
        self._actor = CalendarActor(
            journal=make_journal(),
            announcer=make_announcer(),
            policy=policy,
            limits=limits,
            clock=lambda: datetime.now(UTC),
            on_bug=lambda: os._exit(EXIT_AFTER_BUG),
        )
        self._frozen = False

    async def decide_batch(self, batch: bytes) -> bytes:
        """See ``CalendarActorRef``."""
        if not self._frozen:
            self._frozen = True
            freeze_heap()
        return encode_replies(await self._actor.decide_batch(decode_batch(batch)))

    async def command_status(self, command_id: str, user_id: str) -> bool:
        """See ``CalendarActorRef``."""
        return self._actor.command_status(command_id, user_id) is not None

    async def status(self) -> dict[str, Any]:
        """Figures for operators."""
        return self._actor.status()

    async def drain(self, timeout_s: float) -> bool:
        """Commit what is decided and take in nothing more."""
        return await self._actor.drain(timeout_s)


class RayCalendarActors:
    """Calendar actors as named, detached Ray actors of one namespace. ``ray.init`` has been called."""

    def __init__(
        self,
        *,
        namespace: str,
        make_journal: JournalFactory,
        make_announcer: AnnouncerFactory,
        policy: Policy,
        limits: ActorLimits,
        set_up_logs: Callable[[], None],
        cpus: float = 0.05,
    ) -> None:
        """``set_up_logs`` is called in each actor's process; like the factories, it travels there."""
        self._namespace = namespace
        self._arguments = (make_journal, make_announcer, policy, limits, set_up_logs)
        self._cpus = cpus
        self._refs: dict[str, _RayRef] = {}
        self._look_ups = detached.LookUps()

    async def get(self, name: str) -> CalendarActorRef:
        """See ``CalendarActors``."""
        ref = self._refs.get(name)
        if ref is None:
            try:
                handle = await self._look_ups.find(name, partial(self._get_or_start, name))
            except (RayError, ValueError, ConnectionError) as failure:
                raise ActorLost(str(failure)) from failure
            ref = self._refs[name] = _RayRef(handle)
        return ref

    def forget(self, name: str) -> None:
        """See ``CalendarActors``."""
        self._refs.pop(name, None)

    async def running(self) -> dict[str, CalendarActorRef]:
        """See ``CalendarActors``."""
        try:
            handles = await self._look_ups.find(_ALL, self._running)
        except (RayError, ConnectionError) as failure:
            raise ActorLost(str(failure)) from failure
        return {name: _RayRef(handle) for name, handle in handles.items()}

    async def drain(self, timeout_s: float) -> None:
        """Have every calendar actor commit what it has decided, then end it."""
        handles = await self._look_ups.find(_ALL, self._running)
        results: list[object] = await asyncio.gather(
            *(_drain(handle, timeout_s) for handle in handles.values()), return_exceptions=True
        )
        for (name, handle), result in zip(handles.items(), results, strict=True):
            if result is not True:
                log.warning("calendar_actor_not_drained", actor=name, result=type(result).__name__)
            ray.kill(handle)
        self._refs.clear()

    def close(self) -> None:
        """Look nobody up any more. The actors stay."""
        self._look_ups.close()

    def _get_or_start(self, name: str) -> ActorHandle[Any]:
        return detached.get_or_start(
            RayCalendarActor,
            name,
            *self._arguments,
            namespace=self._namespace,
            cpus=self._cpus,
            max_concurrency=256,
        )

    def _running(self) -> dict[str, ActorHandle[Any]]:
        return detached.running(self._namespace, CALENDAR_ACTORS)


class _RayRef:
    """A Ray handle as a ``CalendarActorRef``."""

    def __init__(self, handle: ActorHandle[Any]) -> None:
        self._handle = handle

    async def decide_batch(self, batch: bytes) -> bytes:
        try:
            replies: bytes = await self._handle.decide_batch.remote(batch)
        except RayError as failure:
            raise ActorLost(type(failure).__name__) from failure
        return replies

    async def command_status(self, command_id: str, user_id: str) -> bool:
        try:
            pending: bool = await self._handle.command_status.remote(command_id, user_id)
        except RayError as failure:
            raise ActorLost(type(failure).__name__) from failure
        return pending


async def _drain(handle: ActorHandle[Any], timeout_s: float) -> bool:
    """Whether the actor has committed all of it; a frozen one is not waited for."""
    async with asyncio.timeout(timeout_s + DRAIN_GRACE_S):
        drained: bool = await handle.drain.remote(timeout_s)
        return drained


def freeze_heap() -> None:
    """Keep the garbage collector off what start-up left behind: a full collection over Ray's heap takes 90 ms."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
