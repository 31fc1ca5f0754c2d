"""The changes of all calendars, as one process follows them: each once, in order, with no gap.

What is announced (``persistence.announcements``) is quick and may be lost; the journal has everything. So every change
is compared with the number its calendar has reached: the next one is passed on, an older one is known already, and
before a later one those in between are read from the journal. A lost announcement with nothing behind it is found by
asking the journal twice a second which calendars have changed (``POLL_S``), so nobody is ever behind by much more than
a second, whatever becomes of Redis.

States of a calendar: *level*, all that is known of has been passed on; *behind*, its changes are being read, what is
announced meanwhile only says how far there is to go. Of a calendar that nobody follows the number is kept, no more.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Protocol

import structlog
from redis.exceptions import RedisError

from actors import tasks
from actors.changes import AppointmentChange, Change
from persistence.announcements import UnreadableAnnouncement
from persistence.lookups import Reached
from persistence.unit_of_work import DatabaseUnavailable

POLL_S: Final = 0.5
POLL_TIMEOUT_S: Final = 2.0
RETRY_S: Final = 0.5
RECENT_MAX: Final = 128
"""Changes of a followed calendar that are kept for those who come back a moment later."""

log = structlog.get_logger()


class Announced(Protocol):
    """A change that was announced: see ``persistence.announcements.Announcement``."""

    doctor_id: str
    sequence: int

    def change(self) -> Change:
        """All of it."""
        ...


Listen = Callable[[], AsyncIterator[Sequence[Announced] | None]]


class Log(Protocol):
    """What is asked of the journal: see ``persistence.change_log.ChangeLog``."""

    async def after(self, doctor_id: str, sequence: int) -> list[Change]:
        """The changes that follow that number, or the first of them."""
        ...

    async def reached(self, mark: str | None = None) -> Reached:
        """How far calendars have come."""
        ...


class Follower(Protocol):
    """Who follows a calendar."""

    def tell(self, change: Change) -> None:
        """The calendar's next change. Does not wait."""
        ...

    def lose(self) -> None:
        """The changes that come next cannot be told: begin anew."""
        ...


class Concerned(Protocol):
    """Whom appointments of certain patients concern."""

    def note(self, change: AppointmentChange) -> None:
        """One of them has changed. Does not wait."""
        ...

    def lose(self) -> None:
        """Some may have changed that cannot be told: look at all of them."""
        ...


@dataclass(slots=True, eq=False)
class Line:
    """A calendar that someone follows."""

    sequence: int
    """Of the last change passed on."""
    followers: set[Follower] = field(default_factory=set)
    recent: deque[Change] = field(default_factory=lambda: deque(maxlen=RECENT_MAX))

    def since(self, sequence: int) -> list[Change] | None:
        """The changes after a number, if they are still here."""
        if sequence >= self.sequence:
            return []
        if not self.recent or self.recent[0].sequence > sequence + 1:
            return None
        return [change for change in self.recent if change.sequence > sequence]


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmed:
    """The journal has been asked which calendars had changed."""

    at: float
    """When, by the monotonic clock: what had been committed before is known of."""
    instant: datetime
    position: str
    """See ``persistence.lookups.Reached``."""


class ChangeStream:
    """Follows all calendars. ``start`` it once, ``stop`` it at the end; it belongs to one event loop."""

    def __init__(self, *, listen: Listen, log: Log) -> None:
        """``listen`` gives announcements, ``log`` reads the journal."""
        self._listen = listen
        self._log = log
        self._sequences: dict[str, int] = {}
        self._lines: dict[str, Line] = {}
        self._concerned: dict[str, set[Concerned]] = {}
        self._healing: dict[str, asyncio.Task[None]] = {}
        self._ahead: dict[str, int] = {}
        """How far calendars that are behind have come."""
        self._missed: dict[str, int] = {}
        """How far calendars had come when the journal was asked last, where that was not heard of yet."""
        self._confirmed: Confirmed | None = None
        self._away_at: float | None = None
        self._listening = False
        self._asking = asyncio.Event()
        self._ready = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to follow."""
        for name, coroutine in (("changes", self._hear_all()), ("changes poll", self._poll())):
            self._tasks.append(tasks.begin(coroutine, name=name))

    async def stop(self) -> None:
        """Nothing is told any more when this returns."""
        await tasks.end(*self._tasks, *self._healing.values())

    @property
    def listening(self) -> bool:
        """Whether announcements are heard."""
        return self._listening

    @property
    def ready(self) -> bool:
        """Whether it is known how far the calendars have come."""
        return self._ready.is_set()

    @property
    def confirmed(self) -> Confirmed | None:
        """When ``reached`` was last compared with the journal."""
        return self._confirmed

    @property
    def away_at(self) -> float | None:
        """When the journal could not be asked, by the monotonic clock, if it was tried last then."""
        return self._away_at

    def reached(self, doctor_id: str) -> int:
        """How far the calendar is known to have come, whether or not all of it has been passed on."""
        return max(self._sequences.get(doctor_id, 0), self._ahead.get(doctor_id, 0), self._missed.get(doctor_id, 0))

    # Following

    def line(self, doctor_id: str) -> Line:
        """The calendar's line; from now on its changes are passed on. To be given back with ``leave``."""
        line = self._lines.get(doctor_id)
        if line is None:
            line = self._lines[doctor_id] = Line(sequence=self._sequences.get(doctor_id, 0))
        return line

    def follow(self, doctor_id: str, follower: Follower) -> None:
        """Tell the follower every change from the line's number on."""
        self.line(doctor_id).followers.add(follower)

    def leave(self, doctor_id: str, follower: Follower) -> None:
        """Tell it nothing more."""
        line = self._lines.get(doctor_id)
        if line is not None:
            line.followers.discard(follower)
            if not line.followers:
                del self._lines[doctor_id]

    def concern(self, patient_id: str, concerned: Concerned) -> None:
        """Note changes of the patient's appointments there."""
        self._concerned.setdefault(patient_id, set()).add(concerned)

    def unconcern(self, patient_id: str, concerned: Concerned) -> None:
        """And no more."""
        if (there := self._concerned.get(patient_id)) is not None:
            there.discard(concerned)
            if not there:
                del self._concerned[patient_id]

    # Hearing

    async def _hear_all(self) -> None:
        while True:
            try:
                async for announced in self._listen():
                    self._listening = True
                    if announced is None:
                        self._asking.set()  # What was announced while nobody listened is found now.
                        continue
                    for each in announced:
                        self.hear(each)
            except (RedisError, OSError, TimeoutError, UnreadableAnnouncement) as failure:
                if self._listening:
                    log.warning("announcements_lost", reason=type(failure).__name__)
            self._listening = False
            await asyncio.sleep(RETRY_S)

    def hear(self, announced: Announced) -> None:
        """Take in an announcement: pass it on if it is its calendar's next, else see what is missing."""
        doctor_id, sequence = announced.doctor_id, announced.sequence
        known = self._sequences.get(doctor_id, 0)
        if sequence <= known:
            return
        if sequence == known + 1 and doctor_id not in self._healing and self._wanted(doctor_id):
            self._pass_on(announced.change())
        else:
            self._is_at(doctor_id, sequence)

    def _wanted(self, doctor_id: str) -> bool:
        """Whether its changes may concern anybody here."""
        return doctor_id in self._lines or bool(self._concerned)

    def _pass_on(self, change: Change) -> None:
        self._sequences[change.doctor_id] = change.sequence
        line = self._lines.get(change.doctor_id)
        if line is not None:
            line.sequence = change.sequence
            line.recent.append(change)
            for follower in tuple(line.followers):
                follower.tell(change)
        if self._concerned:
            for appointment in change.effect.appointments:
                for concerned in tuple(self._concerned.get(appointment.patient_id, ())):
                    concerned.note(appointment)

    def _is_at(self, doctor_id: str, sequence: int) -> None:
        """The calendar has come so far, and not all of it was heard."""
        if not self._wanted(doctor_id):
            self._sequences[doctor_id] = max(sequence, self._sequences.get(doctor_id, 0))
            return
        self._ahead[doctor_id] = max(sequence, self._ahead.get(doctor_id, 0))
        if doctor_id not in self._healing:
            self._healing[doctor_id] = tasks.begin(self._heal(doctor_id), name="heal")

    async def _heal(self, doctor_id: str) -> None:
        """Pass on what was not heard, out of the journal."""
        try:
            while (known := self._sequences.get(doctor_id, 0)) < self._ahead.get(doctor_id, 0):
                try:
                    changes = await self._log.after(doctor_id, known)
                except DatabaseUnavailable:
                    await asyncio.sleep(RETRY_S)
                    continue
                if not changes and self._sequences.get(doctor_id, 0) == known:
                    self._give_up(doctor_id)
                for change in changes:
                    # While nobody wanted them, the number may have gone on by itself.
                    if change.sequence == self._sequences.get(doctor_id, 0) + 1:
                        self._pass_on(change)
        finally:
            del self._healing[doctor_id]
            self._ahead.pop(doctor_id, None)

    def _give_up(self, doctor_id: str) -> None:
        """The journal does not say what is missing: its oldest events do not say what they changed."""
        self._sequences[doctor_id] = self._ahead[doctor_id]
        line = self._lines.get(doctor_id)
        if line is not None:
            line.sequence = self._ahead[doctor_id]
            line.recent.clear()
            for follower in tuple(line.followers):
                follower.lose()
        for there in tuple(self._concerned.values()):
            for concerned in tuple(there):
                concerned.lose()

    # Asking

    async def _poll(self) -> None:
        mark: str | None = None
        while True:
            self._asking.clear()
            asked_at, instant = time.monotonic(), datetime.now(UTC)
            try:
                async with asyncio.timeout(POLL_TIMEOUT_S):
                    reached = await self._log.reached(mark)
            except (DatabaseUnavailable, TimeoutError):
                self._away_at = asked_at
                await asyncio.sleep(RETRY_S)
                continue
            self._away_at = None
            if mark is None:
                self._sequences = dict(reached.sequences) | self._sequences
            mark = reached.mark
            self._missed = self._compare(reached, self._missed)
            self._confirmed = Confirmed(at=asked_at, instant=instant, position=reached.position)
            self._ready.set()
            try:
                async with asyncio.timeout(max(0.0, asked_at + POLL_S - time.monotonic())):
                    await self._asking.wait()
            except TimeoutError:
                pass

    def _compare(self, reached: Reached, before: dict[str, int]) -> dict[str, int]:
        """See to calendars that were behind already when it was asked before: their announcements are not on the way.

        Returns those that are behind now; whoever does not listen need not wait for announcements.
        """
        behind = {}
        for doctor_id, sequence in (before | reached.sequences).items():
            known = self._sequences.get(doctor_id, 0)
            if known >= sequence:
                continue
            missing = before.get(doctor_id, sequence if not self._listening else 0)
            if known < missing:
                self._is_at(doctor_id, missing)
            behind[doctor_id] = sequence
        return behind
