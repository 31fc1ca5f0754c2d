"""A calendar actor over the journal in memory, with a clock that stands still until it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from actors.calendar_actor import ActorLimits, CalendarActor
from actors.messages import Batch, Command, NotDecided, RefusedFor, Reply
from actors.policy import Policy
from tests.clinic import publish
from tests.fakes.announcer import MemoryAnnouncer
from tests.fakes.memory_journal import MemoryDatabase, MemoryJournal
from tests.given import NOW

PATIENCE_S = 30.0
"""How long a test waits for what must happen. Nothing that must not happen is waited for."""


@dataclass
class Clock:
    """The time, as tests set it."""

    now: datetime = NOW

    def __call__(self) -> datetime:
        return self.now

    def pass_(self, **duration: float) -> None:
        """``pass_(minutes=5)``."""
        self.now += timedelta(**duration)


QUICK = ActorLimits(commit_timeout_s=30, retry_delay_s=0.001, retry_delay_max_s=0.002)
"""Nobody is told pending unless a test wants it, and retries take no time."""


@dataclass
class House:
    """One calendar actor and all it works with."""

    limits: ActorLimits = QUICK
    policy: Policy = field(default_factory=Policy)
    database: MemoryDatabase = field(default_factory=MemoryDatabase)
    clock: Clock = field(default_factory=Clock)
    actor_class: type[CalendarActor] = CalendarActor
    journal_class: type[MemoryJournal] = MemoryJournal
    bugs: int = 0
    calls: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.journal = self.journal_class(self.database)
        self.announcer = MemoryAnnouncer()
        self.actor = self.actor_class(
            journal=self.journal,
            policy=self.policy,
            limits=self.limits,
            clock=self.clock,
            announcer=self.announcer,
            on_bug=self._count_bug,
        )

    def _count_bug(self) -> None:
        self.bugs += 1

    async def once(self, *commands: Command, generation: int = 0) -> list[Reply]:
        """The replies to one batch."""
        if not self.calls:
            await self._call()  # Of who calls for the first time nothing is known yet, and nothing obeyed.
        return await self._call(*commands, generation=generation)

    async def _call(self, *commands: Command, generation: int = 0) -> list[Reply]:
        self.calls += 1
        return await self.actor.decide_batch(
            Batch(
                generation=generation,
                sender="api",
                number=self.calls,
                sent_at=self.clock(),
                commands=commands,
            )
        )

    async def send(self, *commands: Command, generation: int = 0) -> list[Reply]:
        """The replies to a batch; what was not decided because its calendar was not active is sent again."""
        replies: dict[int, Reply] = {}
        async with asyncio.timeout(PATIENCE_S):
            while left := [number for number in range(len(commands)) if number not in replies]:
                got = await self.once(*(commands[number] for number in left), generation=generation)
                again = NotDecided(why=RefusedFor.NOT_ACTIVE)
                replies |= {number: reply for number, reply in zip(left, got, strict=True) if reply != again}
                await asyncio.sleep(0)
        return [replies[number] for number in range(len(commands))]

    async def one(self, command: Command) -> Reply:
        """The reply to one command."""
        (reply,) = await self.send(command)
        return reply

    def sending(self, *commands: Command) -> asyncio.Task[list[Reply]]:
        """A batch on its way."""
        return asyncio.create_task(self.send(*commands))

    async def opened(self, *doctors: str, slots: int = 4) -> House:
        """Doctors with slots, their calendars active."""
        for doctor in doctors:
            self.database.add_doctor(doctor)
        await self.send(*(publish(doctor, slots) for doctor in doctors))
        return self

    def rival(self) -> House:
        """Another actor over the same database, which has not heard of this one."""
        return replace(self, bugs=0)

    def kinds(self, doctor: str) -> list[str]:
        """What happened in a calendar; that it was numbered without a gap is proven on the way."""
        table = self.database.tables.event
        events = [
            (number, row) for (owner, number), row in sorted(table.items(), key=lambda item: item[0]) if owner == doctor
        ]
        assert [number for number, _ in events] == list(range(1, len(events) + 1)), "a gap in the journal"
        assert self.database.tables.calendar[doctor].sequence == len(events)
        return [type(row.event).__name__ for _, row in events]

    def visits(self) -> dict[str, str]:
        """The status of every visit that is committed."""
        return {row["id"]: row["status"] for row in self.database.tables.appointment.values()}


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what must become true."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)


async def settle() -> None:
    """Let everything run that can run without waiting for anything."""
    for _ in range(50):
        await asyncio.sleep(0)
