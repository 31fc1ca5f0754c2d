"""A calendar for those who follow it: first what it looks like, or what they have missed, then every change.

What a change looks like is put into words once for all who see the same days of it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Final

from actors.changes import Change, SlotChange
from api.directory.location_directory import LocationDirectory
from api.directory.schemas import slot_plain
from api.feed.stream import ChangeStream
from api.feed.windows import Bounds, FeedWindow
from api.routing import encoded
from persistence.change_log import ChangeLog

WAITING_MAX: Final = 256
"""Changes that wait for one reader; past it the reader is too slow."""
SNAPSHOT_AGE_MAX_S: Final = 1.0
SNAPSHOTS_MAX: Final = 64
WORDS_MAX: Final = 4096
"""Messages that are kept for the next who needs the same one."""
WORDS_LENGTH_MAX: Final = 8 * 1024
"""Longer ones are not: few changes touch that many slots."""


Said = tuple[int, str]
"""A message, and the number that it leads to."""


class NoSuchDoctor(Exception):
    """There is no calendar of that id."""


class TooSlow(Exception):
    """The reader did not keep up."""


class Lost(Exception):
    """What comes next cannot be told any more: begin anew."""


class CalendarReader:
    """One who follows a calendar. Use it once, and ``close`` it."""

    def __init__(
        self, calendars: Calendars, doctor_id: str, window: FeedWindow, *, on_too_slow: Callable[[], None]
    ) -> None:
        """``on_too_slow`` is called once, when more waits than may."""
        self._on_too_slow = on_too_slow
        self._calendars = calendars
        self._doctor_id = doctor_id
        self._window = window
        self._waiting: deque[Change] = deque()
        self._wake = asyncio.Event()
        self._too_slow = False
        self._lost = False
        self.sequence = 0
        """Of what was given last."""
        calendars.stream.follow(doctor_id, self)

    def close(self) -> None:
        """Follow no more."""
        self._calendars.stream.leave(self._doctor_id, self)

    # See ``Follower``.

    def tell(self, change: Change) -> None:
        """The next change."""
        if self._lost or self._too_slow:
            return
        if len(self._waiting) >= WAITING_MAX:
            self._too_slow = True
            self._on_too_slow()
        else:
            self._waiting.append(change)
        self._wake.set()

    def lose(self) -> None:
        """Nothing more."""
        self._lost = True
        self._wake.set()

    def wake(self) -> None:
        """Have ``next`` give what there is, if only nothing, at once."""
        self._wake.set()

    async def first(self, since: int | None) -> AsyncIterator[Said]:
        """What the reader does not know yet: the changes after ``since`` if the journal reaches there, or a snapshot.

        Raises:
            NoSuchDoctor, Lost
            DatabaseUnavailable
        """
        if since is not None and await self._calendars.reaches(self._doctor_id, since):
            self.sequence = since
        else:
            self.sequence, message = await self._calendars.snapshot(self._doctor_id, self._window)
            yield self.sequence, message
        # What has come before this reader followed, and is not in what it was given, is in the journal alone.
        while (line := self._calendars.stream.line(self._doctor_id)).sequence > self.sequence:
            if self._waiting and self._waiting[0].sequence <= self.sequence + 1:
                break
            missing = line.since(self.sequence)
            if missing is None:
                missing = await self._calendars.missing(self._doctor_id, self.sequence)
            if not missing:
                raise Lost
            for change in missing:
                if change.sequence > self.sequence:
                    self.sequence = change.sequence
                    yield change.sequence, await self._calendars.message(change, self._window)

    async def next(self) -> list[Said]:
        """What has changed since; empty after ``wake``.

        Raises:
            TooSlow, Lost
        """
        await self._wake.wait()
        self._wake.clear()
        if self._too_slow:
            raise TooSlow
        messages: list[Said] = []
        while self._waiting:
            change = self._waiting.popleft()
            if change.sequence > self.sequence:
                assert change.sequence == self.sequence + 1, "the stream has no gaps"
                self.sequence = change.sequence
                messages.append((change.sequence, await self._calendars.message(change, self._window)))
        if self._lost and not messages:
            raise Lost
        return messages


class Calendars:
    """Snapshots and changes of calendars, in words."""

    def __init__(self, stream: ChangeStream, log: ChangeLog, locations: LocationDirectory) -> None:
        self.stream = stream
        self._log = log
        self._locations = locations
        self._words: OrderedDict[tuple[str, int, tuple[Bounds, ...]], str] = OrderedDict()
        self._snapshots: OrderedDict[tuple[str, tuple[Bounds, ...]], tuple[float, int, str]] = OrderedDict()
        self._reading: dict[tuple[str, tuple[Bounds, ...]], asyncio.Lock] = {}

    async def snapshot(self, doctor_id: str, window: FeedWindow) -> tuple[int, str]:
        """The calendar as it is now, or was a moment ago, and the number it is true for.

        Raises:
            NoSuchDoctor
            DatabaseUnavailable
        """
        zones = sorted((await self._locations.locations()).value.by_timezone)
        key = (doctor_id, window.key(zones))
        lock = self._reading.setdefault(key, asyncio.Lock())
        clock = asyncio.get_running_loop().time
        asked_at = clock()
        try:
            async with lock:  # A thousand who come at once look at one, however long it takes to read.
                known = self._snapshots.get(key)
                if known is None or known[0] < asked_at - SNAPSHOT_AGE_MAX_S:
                    read_at = clock()
                    known = (read_at, *await self._read_snapshot(doctor_id, window, zones))
                    self._keep(key, known)
        finally:
            if not lock.locked():
                self._reading.pop(key, None)
        return known[1], known[2]

    def _keep(self, key: tuple[str, tuple[Bounds, ...]], snapshot: tuple[float, int, str]) -> None:
        """For those who come at the same time; what is older is of no use."""
        self._snapshots[key] = snapshot
        self._snapshots.move_to_end(key)
        oldest = snapshot[0] - SNAPSHOT_AGE_MAX_S
        while len(self._snapshots) > SNAPSHOTS_MAX or next(iter(self._snapshots.values()))[0] < oldest:
            self._snapshots.popitem(last=False)

    async def _read_snapshot(self, doctor_id: str, window: FeedWindow, zones: Iterable[str]) -> tuple[int, str]:
        now = datetime.now(UTC)
        bounds = window.key(zones) or ((now, now),)
        start, end = min(bound[0] for bound in bounds), max(bound[1] for bound in bounds)
        found = await self._log.snapshot(doctor_id, start, end, now)
        if found is None:
            raise NoSuchDoctor
        slots = await self._shown(doctor_id, found.slots, window)
        return found.sequence, encoded({"type": "snapshot", "sequence": found.sequence, "slots": slots}).decode()

    async def reaches(self, doctor_id: str, sequence: int) -> bool:
        """Whether the calendar has had that number, and the journal tells all that came after.

        Raises:
            NoSuchDoctor
            DatabaseUnavailable
        """
        reaches = await self._log.reaches(doctor_id, sequence)
        if reaches is None:
            raise NoSuchDoctor
        return reaches

    async def missing(self, doctor_id: str, sequence: int) -> list[Change]:
        """The changes after a number, or the first of them.

        Raises:
            DatabaseUnavailable
        """
        return await self._log.after(doctor_id, sequence)

    async def message(self, change: Change, window: FeedWindow) -> str:
        """A change in words."""
        zones = sorted({await self._locations.timezone_of(slot.location_id) for slot in change.effect.slots})
        key = (change.doctor_id, change.sequence, window.key(zones))
        words = self._words.get(key)
        if words is None:
            slots = await self._shown(change.doctor_id, change.effect.slots, window)
            words = encoded({"type": "change", "sequence": change.sequence, "at": change.at, "slots": slots}).decode()
            if len(words) <= WORDS_LENGTH_MAX:
                self._words[key] = words
                if len(self._words) > WORDS_MAX:
                    self._words.popitem(last=False)
        return words

    async def _shown(self, doctor_id: str, slots: Iterable[SlotChange], window: FeedWindow) -> list[dict[str, Any]]:
        shown = []
        for slot in slots:
            timezone = await self._locations.timezone_of(slot.location_id)
            if window.shows(slot.start, timezone):
                shown.append(slot_plain(slot, doctor_id, timezone))
        return shown
