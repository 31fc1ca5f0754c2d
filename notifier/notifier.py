"""One notifier: plans what was caused, and sends what is due on one channel. ``notifier`` says what holds."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import structlog
from redis.exceptions import RedisError

from actors import tasks
from notifier.clock import Clock
from notifier.contents import Content, NotNow, NotSent, read_contents
from notifier.planning import plan_causes
from notifier.preferences import Channel
from notifier.rendering import TemplateRefused, render
from notifier.senders import Failed, Message, NoAddress, Refused, Sender
from persistence.repositories.notifications import (
    Ended,
    Notification,
    Notifications,
    Postponed,
)
from persistence.sealed import Unreadable
from persistence.unit_of_work import DatabaseUnavailable, UnitOfWork

CAUSES_TOGETHER: Final = 200
LEASE_TOGETHER: Final = 100
GATHER_S: Final = 0.03
"""After a signal: what comes with it is planned together."""
RETRY_S: Final = 0.5
"""After the database or Redis has failed."""
BUG: Final = "bug"
UNREADABLE: Final = (Unreadable, ValueError, TypeError, LookupError)
"""What cannot be opened, or was written by a release that knows more than this one."""

log = structlog.get_logger()

Begin = Callable[[], UnitOfWork]
Signals = Callable[[], AsyncIterator[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifierLimits:
    """Bounds of one notifier."""

    poll_s: float = 1.0
    """It looks so often, whether or not a signal has come."""
    sending_max: int = 32
    """Messages under way at once."""
    send_timeout_s: float = 10.0
    lease_s: float = 30.0
    tried_for: timedelta = timedelta(days=4)
    """So long, if it matters so long, is tried what fails in passing (RFC 5321, 4.5.4.1: four or five days)."""
    bugs_max: int = 12
    """What fails by a fault of our own is tried so often."""
    pause_s: float = 2.0
    """Before the second attempt; it doubles, up to ``pause_max_s``, and is jittered."""
    pause_max_s: float = 900.0
    away_after: int = 3
    """So many attempts in a row were answered by nobody: the provider is away."""
    away_pause_max_s: float = 3.0
    """While it is, one message is tried so often at least."""
    away_row_pause_max_s: float = 20.0
    """And each of those that were tried meanwhile waits no longer than that."""
    a_day_max: int = 30
    """Messages about visits to one user on one day; 0: any number."""


class Notifier:
    """Plans and sends; ``start`` and ``stop`` it on the loop it belongs to."""

    def __init__(
        self,
        *,
        channel: Channel,
        channels: frozenset[Channel],
        begin: Begin,
        sender: Sender,
        signals: Signals | None,
        clock: Clock,
        unsubscribe_url: Callable[[str, str, Channel], str] | None = None,
        limits: NotifierLimits | None = None,
    ) -> None:
        """``channels`` are those that somebody sends on; ``unsubscribe_url`` makes a link of user, kind and channel."""
        self._channel = channel
        self._channels = channels
        self._begin = begin
        self._sender = sender
        self._signals = signals
        self._clock = clock
        self._unsubscribe_url = unsubscribe_url
        self._limits = limits or NotifierLimits()
        self._dice = random.Random()
        self._wake_planner = asyncio.Event()
        self._wake_sender = asyncio.Event()
        self._wake_marker = asyncio.Event()
        self._sending: dict[asyncio.Task[None], Content] = {}
        self._to_mark: deque[Ended | Postponed] = deque()
        self._unanswered = 0
        """Attempts in a row."""
        self._marking = asyncio.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()
        self._lag_s: deque[float] = deque(maxlen=1000)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def running(self) -> bool:
        """Whether it was started and nothing of it has died."""
        return bool(self._tasks) and not any(task.done() for task in self._tasks)

    def start(self) -> None:
        """Begin."""
        work = [("plan", self._plan_all()), ("send", self._send_all()), ("mark", self._mark_all())]
        if self._signals is not None:
            work.append(("hear", self._hear_all(self._signals)))
        self._tasks = [tasks.begin(each, name=f"notifier {self._channel} {name}") for name, each in work]

    async def stop(self) -> None:
        """Begin nothing more; what is being sent is seen through, or it would be sent again by who leases it next."""
        await tasks.end(*self._tasks)
        self._tasks = []
        if self._sending:
            await asyncio.wait(self._sending, timeout=self._limits.send_timeout_s)
        await tasks.end(*self._sending)
        try:
            await self._mark_some()
        except DatabaseUnavailable:
            log.warning("notifications_not_marked", count=len(self._to_mark))
        await self._sender.close()

    def wake(self) -> None:
        """Look at once."""
        self._wake_planner.set()

    async def status(self) -> dict[str, Any]:
        """Figures for operators: what is due and since when, what was done here, by kind, and how late.

        Raises:
            DatabaseUnavailable
        """
        async with self._begin() as work:
            now = await self._clock.read(work)
            backlog = await Notifications(work.connection).backlog(self._channel, now=now)
        lag = sorted(self._lag_s)
        return {
            "channel": self._channel.value,
            "due": backlog.due,
            "unplanned": backlog.unplanned,
            "oldest_due_s": (now - backlog.oldest_at).total_seconds() if backlog.oldest_at else 0.0,
            "sending": len(self._sending),
            "counts": [[kind, outcome, count] for (kind, outcome), count in sorted(self._counts.items())],
            "lag_p50_s": lag[len(lag) // 2] if lag else 0.0,
            "lag_max_s": lag[-1] if lag else 0.0,
        }

    # Planning

    async def _plan_all(self) -> None:
        while True:
            self._wake_planner.clear()
            try:
                planned = await self._plan_some()
            except DatabaseUnavailable:
                await asyncio.sleep(RETRY_S)
                continue
            if planned:
                self._wake_sender.set()
            if planned < CAUSES_TOGETHER:
                await self._wait(self._wake_planner, self._limits.poll_s)
                await asyncio.sleep(GATHER_S)

    async def _plan_some(self) -> int:
        """Plan the oldest causes, in one transaction; returns how many."""
        async with self._begin() as work:
            now = await self._clock.read(work)
            return await plan_causes(work, channels=self._channels, limit=CAUSES_TOGETHER, now=now)

    # Sending

    async def _send_all(self) -> None:
        while True:
            self._wake_sender.clear()
            room = self._room()
            if room <= 0:
                await asyncio.wait(self._sending, return_when=asyncio.FIRST_COMPLETED)
                continue
            try:
                await self._mark_some()  # Or a lease that ended meanwhile would have it sent again.
                leased = await self._lease_some(room)
            except DatabaseUnavailable:
                await self._until_database_is_back()
                continue
            if self._away:
                await asyncio.sleep(self._away_pause_s() * self._dice.uniform(0.5, 1.0))
            elif len(leased) < room:
                await self._wait(self._wake_sender, await self._until_next())

    async def _until_database_is_back(self) -> None:
        """And until every notifier has had the time to mark what it sent before: its leases may have ended."""
        while True:
            await asyncio.sleep(RETRY_S)
            try:
                async with self._begin() as work:
                    await self._clock.read(work)
            except DatabaseUnavailable:
                continue
            await asyncio.sleep(2 * RETRY_S)
            return

    @property
    def _away(self) -> bool:
        """Whether the provider does not answer."""
        return self._unanswered >= self._limits.away_after

    def _away_pause_s(self) -> float:
        doubled = min(self._unanswered - self._limits.away_after, 10)
        return min(RETRY_S * 2.0**doubled, self._limits.away_pause_max_s)

    def _room(self) -> int:
        """How many messages to lease: many at a time, but one while nobody answers."""
        if self._away:
            return 0 if self._sending else 1
        room = self._limits.sending_max - len(self._sending)
        return min(room, LEASE_TOGETHER) if room >= self._limits.sending_max // 2 or not self._sending else 0

    async def _lease_some(self, limit: int) -> list[Notification]:
        give_up_at = asyncio.get_running_loop().time() + self._limits.lease_s
        async with self._begin() as work:
            now = await self._clock.read(work)
            until = now + timedelta(seconds=self._limits.lease_s)
            leased = await Notifications(work.connection).lease(self._channel, now=now, until=until, limit=limit)
        if leased:
            try:
                contents = await self._read(leased, now)
            except UNREADABLE:  # Of one of them: it must not keep the others back.
                contents = []
                for each in leased:
                    try:
                        contents += await self._read([each], now)
                    except UNREADABLE as failure:
                        log.error("notification_unreadable", notification_id=each.id, exc_info=failure)
                        self._bug(each, "unreadable")
            for content in contents:
                if isinstance(content, NotSent):
                    self._ended(content.notification, content.outcome)
                elif isinstance(content, NotNow):
                    waiting = content.notification
                    self._mark(Postponed(id=waiting.id, attempts=waiting.attempts, next_at=content.until, failure=None))
                else:
                    self._begin_sending(content, give_up_at)
        return leased

    async def _read(self, leased: Sequence[Notification], now: datetime) -> list[Content | NotNow | NotSent]:
        async with self._begin() as work:
            return await read_contents(leased, work, now=now, a_day_max=self._limits.a_day_max)

    def _begin_sending(self, content: Content, give_up_at: float) -> None:
        task = asyncio.create_task(self._send(content, give_up_at), name=f"send {content.notification.id}")
        self._sending[task] = content
        task.add_done_callback(self._has_sent)

    async def _send(self, content: Content, give_up_at: float) -> None:
        unsubscribe_url = None
        if self._unsubscribe_url is not None and content.visit is not None:
            unsubscribe_url = self._unsubscribe_url(content.user.id, content.notification.kind, self._channel)
        words = render(content, unsubscribe_url=unsubscribe_url)
        if asyncio.get_running_loop().time() + self._limits.send_timeout_s > give_up_at:
            raise Failed("lease too short")
        try:
            async with asyncio.timeout(self._limits.send_timeout_s):
                await self._sender.send(Message(content=content, words=words, unsubscribe_url=unsubscribe_url))
        except TimeoutError:
            raise Failed("timeout", away=self._channel is not Channel.PUSH) from None  # There are many push services.

    def _has_sent(self, task: asyncio.Task[None]) -> None:
        """An attempt is over, in whatever way: it says nothing about any other."""
        content = self._sending.pop(task)
        notification = content.notification
        if task.cancelled():
            return
        failure = task.exception()
        self._unanswered = self._unanswered + 1 if isinstance(failure, Failed) and failure.away else 0
        if failure is None:
            self._lag_s.append((self._clock() - notification.due_at).total_seconds())
            self._ended(notification, "sent")
            return
        match failure:
            case Refused():
                self._ended(notification, "dead", str(failure))
            case NoAddress():
                self._ended(notification, "unreachable", str(failure))
            case TemplateRefused():
                log.error("notification_not_rendered", kind=notification.kind, reason=str(failure))
                self._bug(notification, "template")
            case Failed():
                pause_max_s = self._limits.away_row_pause_max_s if failure.away else self._limits.pause_max_s
                self._again(notification, str(failure), pause_max_s, failure.retry_after_s)
            case _:
                log.error("notification_failed", notification_id=notification.id, exc_info=failure)
                self._bug(notification, BUG)

    def _bug(self, notification: Notification, failure: str) -> None:
        """Have it tried later, unless that was tried too often: the next release may do better."""
        if notification.attempts >= self._limits.bugs_max:
            self._ended(notification, "dead", failure)
        else:
            self._again(notification, failure, self._limits.pause_max_s)

    def _again(
        self, notification: Notification, failure: str, pause_max_s: float, retry_after_s: float | None = None
    ) -> None:
        """Have it tried later, unless it would not matter by then."""
        doubled = min(notification.attempts - 1, 20)
        pause_s = min(self._limits.pause_s * 2.0**doubled, pause_max_s) * self._dice.uniform(0.5, 1.0)
        pause_s = min(max(pause_s, retry_after_s or 0.0), self._limits.pause_max_s)
        next_at = self._clock() + timedelta(seconds=pause_s)
        if next_at >= min(notification.expires_at, notification.due_at + self._limits.tried_for):
            self._ended(notification, "dead", failure)
            return
        self._counts[notification.kind, "failed"] += 1
        self._mark(Postponed(id=notification.id, attempts=notification.attempts, next_at=next_at, failure=failure))

    def _ended(self, notification: Notification, outcome: str, failure: str | None = None) -> None:
        self._counts[notification.kind, outcome] += 1
        self._mark(Ended(id=notification.id, outcome=outcome, at=self._clock(), failure=failure))

    async def _until_next(self) -> float:
        """Until the next message is due, or until it is time to look anyway."""
        try:
            async with self._begin() as work:
                now = await self._clock.read(work)
                next_at = await Notifications(work.connection).next_at(self._channel, now=now)
        except DatabaseUnavailable:
            return RETRY_S
        wait_s = self._limits.poll_s if next_at is None else (next_at - now).total_seconds()
        return min(max(wait_s, GATHER_S), self._limits.poll_s)

    # Marking

    def _mark(self, what: Ended | Postponed) -> None:
        self._to_mark.append(what)
        self._wake_marker.set()

    async def _mark_all(self) -> None:
        while True:
            await self._wake_marker.wait()
            self._wake_marker.clear()
            while self._to_mark:
                try:
                    await self._mark_some()
                except DatabaseUnavailable:
                    await asyncio.sleep(RETRY_S)

    async def _mark_some(self) -> None:
        async with self._marking:
            some = tuple(self._to_mark)
            if not some:
                return
            async with self._begin() as work:
                notifications = Notifications(work.connection)
                await notifications.end([each for each in some if isinstance(each, Ended)])
                await notifications.postpone([each for each in some if isinstance(each, Postponed)])
            for _ in some:
                self._to_mark.popleft()

    # Waking

    async def _hear_all(self, signals: Signals) -> None:
        while True:
            try:
                async for _ in signals():
                    self.wake()
            except (RedisError, OSError, TimeoutError):
                pass  # It looks by itself, too.
            await asyncio.sleep(RETRY_S)

    @staticmethod
    async def _wait(event: asyncio.Event, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            pass
