"""The servers of a run: processes that can die at any step, the way to them, and the journal's connections.

``Servers`` stands where Ray and PostgreSQL stand. The actors in it, their batches and the transactions are the real
ones; only messages, processes and clocks are played.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime, timedelta
from typing import Any

from actors.calendar_actor import CalendarActor
from actors.client import ActorLost, CalendarActorRef, Placement, decode_batch, encode_replies
from actors.journal import Append, Claim, Conflict, EventRow, JournalUnavailable, OutcomeUnknown, StoredAnswer
from actors.policy import Policy
from tests.fakes.memory_journal import MemoryDatabase, MemoryJournal
from tests.given import NOW, uid
from tests.simulation.plan import CallFault, ClockStep, Crash, Fault, JournalFault, Outage, Placed, Plan, SplitBrain
from tests.simulation.virtual_time import OWNER

POLICY = Policy(live_appointments_max=3, holds_max=2, moves_max=3, hold_ttl=timedelta(seconds=2))
Note = Callable[..., None]
"""Who, what happened (with places for values), and the values: put into words only when somebody reads them."""
LATE_S = 5.0
"""Later than any sender waits for one call."""


class Servers:
    """Processes by name, one database, and the faults of a plan."""

    def __init__(
        self,
        plan: Plan,
        database: MemoryDatabase,
        actor_class: type[CalendarActor],
        journal_class: type[MemoryJournal],
        note: Note,
    ) -> None:
        self.plan = plan
        self.database = database
        self.note = note
        self.placement = _placement(plan.actors, generation=0)
        self.processes: list[Process] = []
        """All that were ever started."""
        self.bugs: list[str] = []
        self.dice = random.Random(plan.seed)
        self._actor_class = actor_class
        kinds = (UnsteadyJournal,) if journal_class is MemoryJournal else (journal_class, UnsteadyJournal)
        self._journal_class: type[Any] = type("Journal", kinds, {})
        self._restarting: dict[str, float] = {}
        self._skews: dict[str, float] = {}
        self._calls = 0
        self._ids = 0
        self._journal_calls: Counter[str] = Counter()
        self._call_faults = {fault.number: fault.kind for fault in plan.faults if isinstance(fault, CallFault)}
        self._journal_faults = {
            (fault.call, fault.number): fault.kind for fault in plan.faults if isinstance(fault, JournalFault)
        }
        self._crashes = {fault.process: fault.step for fault in plan.faults if isinstance(fault, Crash)}
        self._away_until = 0.0
        self._outside = contextvars.copy_context()
        self._tasks: set[asyncio.Task[None]] = set()

    # Time

    def wall(self) -> datetime:
        """What a clock that goes right says."""
        return NOW + timedelta(seconds=asyncio.get_running_loop().time())

    def clock_of(self, name: str) -> datetime:
        """What the clock says where the actor of that name runs."""
        return self.wall() + timedelta(seconds=self._skews.get(name, 0.0))

    def new_id(self, what: str) -> str:
        """An id that nothing else has, the same in each run of the plan."""
        self._ids += 1
        return uid(f"{what} {self._ids}")

    async def travel(self) -> None:
        """As long as a message takes."""
        await asyncio.sleep(self.plan.delay_s * self.dice.choice((0, 0.1, 0.5, 1, 1, 3)) * self.dice.random())

    def begin(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start what belongs to no process."""
        task = asyncio.get_running_loop().create_task(coroutine, context=self._outside.copy())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # Processes

    @property
    def living(self) -> list[Process]:
        """The processes that run."""
        return [process for process in self.processes if not process.stopped]

    def start(self, name: str) -> Process:
        """A new process of that name, whoever has it already."""
        number = len(self.processes)
        process = Process(self, name, number, self._crashes.get(number))
        journal = self._journal_class(self.database)
        journal.attach(self, process)
        process.actor = self._actor_class(
            journal=journal,
            policy=POLICY,
            limits=self.plan.limits,
            clock=lambda: self.clock_of(name),
            announcer=CheckedAnnouncer(self, process),
            on_bug=lambda: self.bugs.append(f"the flush loop of {process} died"),
        )
        self.processes.append(process)
        self.note(process, "starts")
        return process

    def find(self, server: int, name: str) -> Process:
        """The process of a name as an API server sees it, started if there is none.

        Raises:
            ActorLost: it is being restarted.
        """
        living = [process for process in self.living if process.name == name]
        if living:
            return living[server % len(living)]
        if self._restarting.get(name, 0.0) > asyncio.get_running_loop().time():
            raise ActorLost("restarting")
        return self.start(name)

    def died(self, process: Process) -> None:
        """It is started again by name, after a while."""
        self.note(process, f"dies at its step {process.steps}")
        self._restarting[process.name] = asyncio.get_running_loop().time() + self.dice.choice((0.0, 0.1, 1.0))

    # The way to a calendar actor

    async def deliver(self, server: int, name: str, batch: bytes, reply: asyncio.Future[bytes]) -> None:
        """Carry a batch to the actor and its replies back, unless something befalls them."""
        fault = self._call_faults.get(self._calls)
        self._calls += 1
        if fault is not None:
            self.note("network", f"batch {self._calls - 1} to {name}: {fault}")
        await self.travel()
        if fault == "lost":
            return
        if fault == "late":
            await asyncio.sleep(LATE_S)
        try:
            process = self.find(server, name)
        except ActorLost as lost:
            _fail(reply, lost)
            return
        if fault != "reply lost":
            process.callers.append(reply)
        running = [process.begin(batch) for _ in range(2 if fault == "twice" else 1)]
        replies = (await asyncio.gather(*running))[0]
        await self.travel()
        if fault == "error after success":
            _fail(reply, ActorLost("after success"))
        elif fault != "reply lost" and not reply.done():
            reply.set_result(replies)

    # The database

    async def transact(self, call: str, process: Process, effect: Callable[[], Any], answer: Any) -> None:
        """What the database does with a call: it goes on when the caller has died, or not."""
        loop = asyncio.get_running_loop()
        number = self._journal_calls[call]
        self._journal_calls[call] += 1
        fault = self._journal_faults.get((call, number))
        if fault is not None:
            self.note("database", f"{call} {number} of {process}: {fault}")
        await self.travel()
        if fault == "slow":
            await asyncio.sleep(self.dice.choice((0.1, 1.0, 3.0)))
        if fault == "unavailable" or loop.time() < self._away_until:
            _fail(answer, JournalUnavailable("away"))
            return
        if fault == "conflict":
            _fail(answer, Conflict("deadlock"))
            return
        if fault == "lost":
            _fail(answer, OutcomeUnknown("lost"))
            return
        if fault == "ends late":
            _fail(answer, OutcomeUnknown("lost"))
            await asyncio.sleep(self.dice.choice((0.01, 0.1, 1.0)) * self.dice.random())
        if process.stopped and self.dice.random() < 0.5:
            self.note("database", f"{call} {number} of {process}, which is dead, is rolled back")
            return
        try:
            result = effect()
        except Exception as failure:  # noqa: BLE001  (whatever it is: it travels to whoever asked)
            await self.travel()
            _fail(answer, failure)
            return
        await self.travel()
        if fault == "committed and lost":
            _fail(answer, OutcomeUnknown("lost"))
        elif not answer.done():
            answer.set_result(result)

    # Faults that happen at a time

    async def befall(self, fault: Fault) -> None:
        """Let one fault happen and pass."""
        match fault:
            case SplitBrain(at_s=at_s, lasts_s=lasts_s, which=which):
                await asyncio.sleep(at_s)
                if self.living:
                    first = self.living[which % len(self.living)]
                    self.start(first.name)
                    await asyncio.sleep(lasts_s)
                    if not first.stopped:
                        first.stop()
            case Outage(at_s=at_s, lasts_s=lasts_s):
                await asyncio.sleep(at_s)
                self.note("database", f"is away for {lasts_s} s")
                self._away_until = asyncio.get_running_loop().time() + lasts_s
                await asyncio.sleep(lasts_s)
            case Placed(at_s=at_s, actors=actors):
                await asyncio.sleep(at_s)
                self.placement = _placement(actors, generation=self.placement.generation + 1)
                self.database.place(self.placement.generation)
                self.note("database", f"calendars are placed anew, generation {self.placement.generation}")
            case ClockStep(at_s=at_s, lasts_s=lasts_s, which=which, by_s=by_s):
                await asyncio.sleep(at_s)
                if self.living:
                    name = self.living[which % len(self.living)].name
                    self.note(name, f"its clock steps by {by_s} s")
                    self._skews[name] = by_s
                    await asyncio.sleep(lasts_s)
                    self.note(name, "its clock goes right again")
                    self._skews.pop(name, None)
            case Crash() | CallFault() | JournalFault():
                pass

    def be_calm(self) -> None:
        """No fault befalls anything from now on."""
        self._call_faults.clear()
        self._journal_faults.clear()
        self._crashes.clear()
        for process in self.living:
            process.dies_at = None


class Process:
    """The process of one calendar actor. Once it has stopped, nothing of it runs on."""

    actor: CalendarActor

    def __init__(self, servers: Servers, name: str, number: int, dies_at: int | None) -> None:
        self.name = name
        self.stopped = False
        self.steps = 0
        self.dies_at = dies_at
        self.callers: list[asyncio.Future[bytes]] = []
        """Those who wait for replies."""
        self._servers = servers
        self._number = number
        self._context = servers._outside.copy()
        self._context.run(OWNER.set, self)

    def __str__(self) -> str:
        return f"{self.name}#{self._number}"

    def step(self) -> None:
        """See ``Owner``."""
        self.steps += 1
        if self.steps == self.dies_at:
            self.stop()

    def stop(self) -> None:
        """Die. Most callers are told; some find out when they have waited for too long."""
        self.stopped = True
        self._servers.died(self)
        for reply in self.callers:
            if self._servers.dice.random() < 0.8:
                _fail(reply, ActorLost("died"))

    def begin(self, batch: bytes) -> asyncio.Task[bytes]:
        """Have the actor decide a batch, as ``RayCalendarActor`` does."""
        return asyncio.get_running_loop().create_task(self._decide(batch), context=self._context)

    async def _decide(self, batch: bytes) -> bytes:
        return encode_replies(await self.actor.decide_batch(decode_batch(batch)))

    def unrest(self) -> str | None:
        """What is left to do, or ``None`` if it has come to rest."""
        actor = self.actor
        if actor.status()["backlog"] or actor._waiting:
            return f"a backlog of {actor.status()['backlog']}"
        if any(activation.uncommitted for activation in actor._active.values()):
            return "entries that were never settled"
        if actor._flushing is not None and actor._flushing.done():
            return "no flush loop"
        return None


class UnsteadyJournal(MemoryJournal):
    """A journal over a connection on which everything takes time and may fail."""

    def attach(self, servers: Servers, process: Process) -> None:
        """It belongs to that process."""
        self._servers = servers
        self._process = process

    async def _meet(self, call: str, effect: Callable[[], Any]) -> Any:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._servers.begin(self._servers.transact(call, self._process, effect, answer))
        return await answer

    def _claim(self, doctor_id: str, generation: int) -> Claim:
        claim = super()._claim(doctor_id, generation)
        self._servers.note(self._process, "claims {} at epoch {}", doctor_id, claim.epoch)
        return claim

    def _append(self, append: Append) -> dict[str, StoredAnswer]:
        try:
            stored = super()._append(append)
        except Exception as failure:
            self._servers.note(self._process, "append refused: {}", repr(failure))
            raise
        for row in append.events:
            said = (row.doctor_id, row.sequence, row.epoch, row.event)
            self._servers.note(self._process, "commits {} {} (epoch {}): {}", *said)
        return stored


class CheckedAnnouncer:
    """``Announcer`` that believes nothing: what it is to tell has to be in the journal, as it is told."""

    def __init__(self, servers: Servers, process: Process) -> None:
        self._servers = servers
        self._process = process

    def announce(self, events: Sequence[EventRow]) -> None:
        """See ``Announcer.announce``."""
        for row in events:
            if self._servers.database.tables.event.get((row.doctor_id, row.sequence)) != row:
                self._servers.bugs.append(f"{self._process} announces what is not committed: {row}")

    async def close(self) -> None:
        """See ``Announcer.close``."""


class SimulatedActors:
    """``CalendarActors`` for one API server."""

    def __init__(self, servers: Servers, server: int) -> None:
        self._servers = servers
        self._server = server

    async def get(self, name: str) -> CalendarActorRef:
        """See ``CalendarActors``."""
        return _Ref(self._servers, self._server, name)

    def forget(self, name: str) -> None:
        """See ``CalendarActors``."""

    async def running(self) -> dict[str, CalendarActorRef]:
        """See ``CalendarActors``."""
        names = {process.name for process in self._servers.living}
        return {name: _Ref(self._servers, self._server, name) for name in sorted(names)}


class _Ref:
    """``CalendarActorRef`` by name: whichever process has it when a batch arrives."""

    def __init__(self, servers: Servers, server: int, name: str) -> None:
        self._servers = servers
        self._server = server
        self._name = name

    async def decide_batch(self, batch: bytes) -> bytes:
        reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._servers.begin(self._servers.deliver(self._server, self._name, batch, reply))
        return await reply

    async def command_status(self, command_id: str, user_id: str) -> bool:
        await self._servers.travel()
        found = self._servers.find(self._server, self._name).actor.command_status(command_id, user_id)
        return found is not None


def _placement(actors: int, *, generation: int) -> Placement:
    return Placement(generation=generation, dedicated=actors == 0, actors=max(1, actors))


def _fail(future: asyncio.Future[Any], failure: Exception) -> None:
    if not future.done():
        future.set_exception(failure)
        future.exception()  # Whoever waited may be gone.
