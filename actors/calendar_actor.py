"""The calendar actor: owns calendars and does for each of them *decide → append → reply*.

A plain class on one event loop, given its journal, policy, limits and clock; ``client`` makes a Ray actor of it in one
place. The text of the package (``actors``) says what holds and what each failure does.

Between reading a calendar's state and changing it there is no ``await``: a batch is decided in one go, and the state it
leads to is in place before anybody else runs. What was decided waits as an ``Entry`` until the flush loop, the only
one that appends, has committed it.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog

from actors import tasks
from actors.calendar import Calendar, evolve
from actors.decisions import Decision, Facts, answer, decide
from actors.entries import Activation, Entry, append_of, stored_reply
from actors.errors import NotFound, Rejection
from actors.journal import (
    Announcer,
    Conflict,
    Journal,
    JournalUnavailable,
    NewerPlacement,
    NoSuchCalendar,
    OutcomeUnknown,
    StaleEpoch,
    StoredAnswer,
)
from actors.messages import (
    Batch,
    Command,
    Done,
    FinishMove,
    MoveOut,
    NotDecided,
    Pending,
    RefusedFor,
    Rejected,
    Reply,
    Requester,
    Role,
)
from actors.policy import Policy
from actors.senders import Senders
from actors.tally import Tally, facts_wanted

log = structlog.get_logger()

_FIRST = 0
"""The order of what is decided before everything else."""
_TOGETHER_MAX = 2
"""After so many refused transactions a calendar's commands are committed apart from the others'."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorLimits:
    """The bounds of one calendar actor."""

    commit_timeout_s: float = 2.0
    """How long a caller waits for its commit before it is told ``Pending``."""
    journal_backlog_max: int = 5000
    """Decided commands that wait for their commit; past it, commands are refused."""
    append_commands_max: int = 1000
    """Commands in one transaction; a calendar's are never parted, however many they are."""
    redecide_max: int = 8
    """How often a command is decided again because the database saw a conflict."""
    active_calendars_max: int = 2000
    """Calendars in memory at once."""
    calendar_idle_s: float = 300.0
    """A calendar unused for so long is let go."""
    retry_delay_s: float = 0.05
    """First pause before the journal is tried again."""
    retry_delay_max_s: float = 1.0


class CalendarActor:
    """Owns the calendars whose commands it is sent, each under an epoch of its own."""

    def __init__(
        self,
        *,
        journal: Journal,
        policy: Policy,
        limits: ActorLimits,
        clock: Callable[[], datetime],
        announcer: Announcer,
        on_bug: Callable[[], None] = lambda: None,
    ) -> None:
        """``on_bug`` is called when the flush loop has died: nothing can be committed any more."""
        self._journal = journal
        self._announcer = announcer
        self._on_bug = on_bug
        self._policy = policy
        self._limits = limits
        self._clock = clock
        self._generation = 0
        self._active: dict[str, Activation] = {}
        self._activating: dict[str, asyncio.Task[None]] = {}
        self._refusing: dict[str, tuple[Reply, datetime]] = {}
        """Calendars that could not be activated: what to say, and since when. For a moment it is not tried again."""
        self._waiting: deque[Entry] = deque()
        self._by_command: dict[str, Entry] = {}
        """Everything decided and not settled."""
        self._orders = 0
        self._senders = Senders()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._stalled = False
        """Whether the journal keeps callers waiting past the commit timeout."""
        self._draining = False
        self._flushing: asyncio.Task[None] | None = None
        self._passivating: asyncio.Task[None] | None = None
        self._commits = 0
        self._committed_entries = 0

    async def decide_batch(self, batch: Batch) -> list[Reply]:
        """A reply to each command, in order, once all that were decided are committed or overdue."""
        if self._draining:
            return [NotDecided(why=RefusedFor.NOT_ACTIVE)] * len(batch.commands)
        if batch.generation < self._generation:
            return [NotDecided(why=RefusedFor.MISPLACED)] * len(batch.commands)
        self._generation = batch.generation
        if (behind := self._senders.behind(batch, self._clock())) is None:
            return [NotDecided(why=RefusedFor.EXPIRED)] * len(batch.commands)
        self._start_loops()
        answers = [(said := self._take_in(each, behind), _answered_at_once(each, said)) for each in batch.commands]
        waits = set()
        for each, (said, at_once) in zip(batch.commands, answers, strict=True):
            if isinstance(said, Entry):
                # Whatever comes of it while the others are waited for: it is pending for its caller, or has been.
                said.told_pending |= at_once or _was_told_pending(each)
                if not at_once:
                    waits.add(said.reply)
        if waits:
            await asyncio.wait(waits, timeout=0 if self._stalled else self._limits.commit_timeout_s)
        return [self._reply_now(said, at_once) if isinstance(said, Entry) else said for said, at_once in answers]

    def command_status(self, command_id: str, user_id: str) -> Reply | None:
        """``Pending`` for a command of the user's that was decided and is not committed, else ``None``."""
        entry = self._by_command.get(command_id)
        if entry is None or entry.command.requester.user_id != user_id:
            return None
        if isinstance(entry.outcome, Rejected) and not entry.told_pending:
            return None
        return Pending(command_id=command_id)

    def status(self) -> dict[str, Any]:
        """Figures for operators; nothing of any person."""
        return {
            "active_calendars": len(self._active),
            "backlog": len(self._by_command),
            "commits": self._commits,
            "committed_commands": self._committed_entries,
            "stalled": self._stalled,
            "generation": self._generation,
        }

    async def drain(self, timeout_s: float) -> bool:
        """Take in nothing more and commit what is decided; whether all of it was committed in time."""
        self._draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            pass
        for task in (self._flushing, self._passivating, *self._activating.values()):
            if task is not None:
                task.cancel()
        await self._journal.close()
        await self._announcer.close()
        return not self._by_command

    # Taking in: decide, or say why not. Nothing here waits.

    def _take_in(self, command: Command, behind: timedelta) -> Entry | Reply:
        """``behind`` is by how much the sender's clock, and so the deadline, is behind this one."""
        gives_up_at = None if command.deadline is None else command.deadline + behind
        if gives_up_at is not None and gives_up_at < self._clock():
            return NotDecided(why=RefusedFor.EXPIRED)
        same = self._by_command.get(command.command_id)
        if same is not None:
            joins = same.command.fingerprint == command.fingerprint and type(same.command) is type(command)
            return same if joins else NotDecided(why=RefusedFor.NOT_ACTIVE)
        activation = self._active.get(command.doctor_id)
        if activation is None:
            return self._activate_for(command.doctor_id)
        if len(self._by_command) >= self._limits.journal_backlog_max:
            return NotDecided(why=RefusedFor.OVERLOADED)
        self._orders += 1
        entry = Entry(
            command=command,
            reply=asyncio.get_running_loop().create_future(),
            order=self._orders,
            gives_up_at=gives_up_at,
        )
        self._decide(entry, activation, Facts())
        self._enqueue(entry, activation)
        return entry

    def _decide(self, entry: Entry, activation: Activation, facts: Facts) -> None:
        calendar = activation.calendar
        now = self._clock()
        if calendar.last_event_at is not None and calendar.last_event_at > now:
            now = calendar.last_event_at
        entry.at = now
        try:
            decision = decide(calendar, entry.command, now, self._policy, facts)
        except Rejection as rejection:
            # Its traceback leads to this frame, and this frame to it: only a garbage collection would free them.
            decision = Decision(rejection=rejection.with_traceback(None))
        numbered = []
        effects = []
        for event in decision.events:
            effects.append(evolve(calendar, event, now))
            numbered.append((calendar.sequence, event))
        entry.events = tuple(numbered)
        entry.effects = tuple(effects)
        if decision.rejection is not None:
            entry.outcome = Rejected(**decision.rejection.as_plain())
        else:
            entry.outcome = Done(answer=answer(calendar, decision))

    def _enqueue(self, entry: Entry, activation: Activation) -> None:
        activation.used_at = self._clock()
        activation.uncommitted += 1
        self._by_command[entry.command.command_id] = entry
        self._waiting.append(entry)
        self._idle.clear()
        self._wake.set()

    def _reply_now(self, entry: Entry, at_once: bool) -> Reply:
        """The settled reply, or what can be said while the commit is overdue or not waited for (``at_once``)."""
        if entry.reply.done():
            return entry.reply.result()
        if at_once:
            return Pending(command_id=entry.command.command_id)
        self._stalled = True
        if isinstance(entry.outcome, Rejected) or not entry.events:
            entry.abandoned = True
            return NotDecided(why=RefusedFor.UNAVAILABLE)
        entry.told_pending = True
        return Pending(command_id=entry.command.command_id)

    # Activation and passivation

    def _activate_for(self, doctor_id: str) -> Reply:
        refusal = self._refusing.get(doctor_id)
        if refusal is not None:
            reply, since = refusal
            # A clock that has stepped back since says nothing of how long that is.
            if 0 <= (self._clock() - since).total_seconds() < self._limits.retry_delay_s:
                return reply
            del self._refusing[doctor_id]
        if doctor_id not in self._activating:
            if len(self._active) + len(self._activating) >= self._limits.active_calendars_max and not self._make_room():
                return NotDecided(why=RefusedFor.OVERLOADED)
            self._activating[doctor_id] = tasks.begin(self._activate(doctor_id), name="activate")
        return NotDecided(why=RefusedFor.NOT_ACTIVE)

    async def _activate(self, doctor_id: str) -> None:
        """One attempt to claim and load a calendar; what went wrong is told to those who ask meanwhile."""
        try:
            claim = await self._journal.claim(doctor_id, self._generation)
            calendar = await self._journal.load(doctor_id, self._clock())
        except NewerPlacement as newer:
            self._generation = max(self._generation, newer.generation)
        except NoSuchCalendar:
            self._refuse(doctor_id, Rejected(code=NotFound.code, detail=NotFound.default_detail))
        except JournalUnavailable:
            self._refuse(doctor_id, NotDecided(why=RefusedFor.NOT_ACTIVE))
        else:
            activation = Activation(
                calendar=calendar, epoch=claim.epoch, committed=calendar.sequence, used_at=self._clock()
            )
            self._active[doctor_id] = activation
            self._finish_known_moves(activation)
        finally:
            del self._activating[doctor_id]

    def _refuse(self, doctor_id: str, reply: Reply) -> None:
        if len(self._refusing) >= self._limits.active_calendars_max:
            self._refusing.clear()
        self._refusing[doctor_id] = (reply, self._clock())

    def _finish_known_moves(self, activation: Activation) -> None:
        """Before anything else is decided: take in what has been moved here, release what was refused."""
        for reservation in list(activation.calendar.reservations.values()):
            if reservation.moved is None and not reservation.aborted:
                continue
            command = FinishMove(
                command_id=reservation.move_id,
                doctor_id=activation.calendar.doctor_id,
                requester=Requester(user_id=reservation.move_id, role=Role.ADMIN),
                fingerprint="",
                move_id=reservation.move_id,
                appointment=reservation.moved,
            )
            if command.command_id in self._by_command:
                continue
            entry = Entry(command=command, reply=asyncio.get_running_loop().create_future(), order=_FIRST)
            self._decide(entry, activation, Facts())
            self._enqueue(entry, activation)

    def _make_room(self) -> bool:
        idle = [
            (activation.used_at, doctor_id)
            for doctor_id, activation in self._active.items()
            if not activation.uncommitted
        ]
        if not idle:
            return False
        del self._active[min(idle)[1]]
        return True

    async def _passivate_idle(self) -> None:
        while True:
            await asyncio.sleep(self._limits.calendar_idle_s / 4)
            before = self._clock() - timedelta(seconds=self._limits.calendar_idle_s)
            for doctor_id, activation in list(self._active.items()):
                if not activation.uncommitted and activation.used_at < before:
                    del self._active[doctor_id]

    def _start_loops(self) -> None:
        if self._flushing is None:
            self._flushing = tasks.begin(self._flush(), name="flush")
            self._flushing.add_done_callback(self._flush_ended)
            self._passivating = tasks.begin(self._passivate_idle(), name="passivate")

    def _flush_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self._on_bug()

    # Committing: the flush loop, the only place that appends

    async def _flush(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                await self._commit(self._next_entries())
            self._idle.set()

    def _next_entries(self) -> list[Entry]:
        """The entries of the next transaction: all, of as many calendars as it may have, or of one in repeated trouble.

        Never some of a calendar's: the rows collected with them show its state after the last of them.
        """
        if self._waiting[0].attempts > _TOGETHER_MAX:
            doctor_id = self._waiting[0].command.doctor_id
            alone = [entry for entry in self._waiting if entry.command.doctor_id == doctor_id]
            self._waiting = deque(entry for entry in self._waiting if entry.command.doctor_id != doctor_id)
            return alone
        if len(self._waiting) <= self._limits.append_commands_max:
            entries = list(self._waiting)
            self._waiting.clear()
            return entries
        counts = Counter(entry.command.doctor_id for entry in self._waiting)
        taken: set[str] = set()
        size = 0
        for entry in self._waiting:
            doctor_id = entry.command.doctor_id
            if doctor_id in taken:
                continue
            # What is decided again was decided on each other: it stays together.
            if not taken or entry.attempts or size + counts[doctor_id] <= self._limits.append_commands_max:
                taken.add(doctor_id)
                size += counts[doctor_id]
        entries = [entry for entry in self._waiting if entry.command.doctor_id in taken]
        self._waiting = deque(entry for entry in self._waiting if entry.command.doctor_id not in taken)
        return entries

    async def _commit(self, entries: list[Entry]) -> None:
        """Settle the entries, or put those that must be decided again back in the queue."""
        append = append_of(entries, self._active)
        delay_s = self._limits.retry_delay_s
        while True:
            try:
                stored = await self._journal.append(append)
            except JournalUnavailable as failure:
                self._stalled = True
                log.warning("journal_unavailable", reason=str(failure), backlog=len(self._by_command))
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, self._limits.retry_delay_max_s)
            except StaleEpoch as stale:
                self._stalled = False
                self._drop(stale.doctor_ids, entries)
                await self._recover(entries, claim=False)
                return
            except Conflict as conflict:
                log.info("journal_conflict", reason=str(conflict), commands=len(entries))
                await self._recover(entries, claim=False)
                return
            except OutcomeUnknown as failure:
                self._stalled = True
                log.warning("commit_outcome_unknown", reason=str(failure), commands=len(entries))
                await self._recover(entries, claim=True)
                return
            else:
                break
        self._stalled = False
        self._commits += 1
        self._committed_entries += len(entries)
        if append.events:
            self._announcer.announce(append.events)
        for row in append.calendars:
            self._active[row.doctor_id].committed = row.reached
        for entry in entries:
            found = stored.get(entry.command.command_id) if entry.looks_up else None
            self._settle(entry, entry.outcome if found is None else stored_reply(found, entry.command))

    def _settle(self, entry: Entry, reply: Reply) -> None:
        del self._by_command[entry.command.command_id]
        activation = self._active.get(entry.command.doctor_id)
        if activation is not None:
            activation.uncommitted -= 1
        if not entry.reply.done():
            entry.reply.set_result(reply)

    def _drop(self, doctor_ids: Iterable[str], entries: list[Entry]) -> None:
        """Let go of calendars that someone else has claimed; their commands are to be sent again."""
        stale = set(doctor_ids)
        for entry in [*entries, *self._waiting]:
            if entry.command.doctor_id in stale:
                self._settle(entry, NotDecided(why=RefusedFor.NOT_ACTIVE))
        entries[:] = [entry for entry in entries if entry.command.doctor_id not in stale]
        self._waiting = deque(entry for entry in self._waiting if entry.command.doctor_id not in stale)
        for doctor_id in stale:
            self._active.pop(doctor_id, None)
        log.warning("calendars_lost", calendars=len(stale))

    async def _recover(self, entries: list[Entry], *, claim: bool) -> None:
        """Load the calendars of a batch that was not (or may not have been) committed, and decide it again.

        Until the fresh state is there the old one goes on being decided on: nothing of it was ever told as done.
        """
        doctor_ids = {entry.command.doctor_id for entry in entries}
        if not doctor_ids:
            return
        delay_s = self._limits.retry_delay_s
        while True:
            try:
                fresh: dict[str, tuple[Calendar, int]] = {}
                for doctor_id in sorted(doctor_ids):
                    epoch = self._active[doctor_id].epoch
                    if claim:
                        epoch = (await self._journal.claim(doctor_id, self._generation)).epoch
                    fresh[doctor_id] = (await self._journal.load(doctor_id, self._clock()), epoch)
                stored = await self._journal.look_up(entry.command.command_id for entry in entries)
                asked_by = self._orders
                facts = await self._journal.facts(*facts_wanted([*entries, *self._waiting], self._active))
            except JournalUnavailable as failure:
                self._stalled = True
                log.warning("journal_unavailable", reason=str(failure), backlog=len(self._by_command))
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, self._limits.retry_delay_max_s)
            except NewerPlacement as newer:
                self._generation = max(self._generation, newer.generation)
                self._stalled = False
                self._drop(doctor_ids, entries)
                return
            else:
                break
        self._decide_again(entries, doctor_ids, fresh, stored, facts, asked_by)

    def _decide_again(
        self,
        entries: list[Entry],
        doctor_ids: set[str],
        fresh: dict[str, tuple[Calendar, int]],
        stored: dict[str, StoredAnswer],
        facts: Facts,
        asked_by: int,
    ) -> None:
        """Put fresh state in place and decide, in order, all that had been decided on the old. Nothing waits here.

        ``asked_by`` is the order of the last command that had come when the facts were asked for. To a later one they
        may be old: it is decided without them, and the database says so if it was wrong.
        """
        for doctor_id, (calendar, epoch) in fresh.items():
            activation = self._active[doctor_id]
            activation.calendar = calendar
            activation.epoch = epoch
            activation.committed = calendar.sequence
        others = [entry for entry in self._waiting if entry.command.doctor_id not in doctor_ids]
        again = entries + [entry for entry in self._waiting if entry.command.doctor_id in doctor_ids]
        again.sort(key=lambda entry: entry.order)
        self._waiting = deque()
        for doctor_id in doctor_ids:
            self._finish_known_moves(self._active[doctor_id])
        for entry in again:
            entry.attempts += 1
        # What is not committed together may not be decided on each other: one could be undone without the other.
        together = all(entry.attempts <= _TOGETHER_MAX for entry in again)
        tallies: dict[str, tuple[Tally, Tally]] = {}
        now = self._clock()
        for entry in again:
            found = stored.get(entry.command.command_id)
            gives_up_at = entry.gives_up_at
            if found is not None:
                self._settle(entry, stored_reply(found, entry.command))
            elif (entry.abandoned or (gives_up_at is not None and gives_up_at < now)) and not entry.told_pending:
                # Nobody waits for it, unless a repeat has joined it meanwhile: that one is to be sent again.
                self._settle(entry, NotDecided(why=RefusedFor.NOT_ACTIVE))
            elif entry.attempts > self._limits.redecide_max:
                self._settle(entry, NotDecided(why=RefusedFor.UNAVAILABLE))
            else:
                activation = self._active[entry.command.doctor_id]
                group = "" if together else entry.command.doctor_id
                known, unknown = tallies.setdefault(group, (Tally(facts), Tally(Facts())))
                self._decide(entry, activation, (known if entry.order <= asked_by else unknown).facts)
                known.note(entry, activation.calendar)
                unknown.note(entry, activation.calendar)
                self._waiting.append(entry)
        self._waiting = deque(sorted([*self._waiting, *others], key=lambda entry: entry.order))
        self._stalled = False
        self._wake.set()


def _was_told_pending(command: Command) -> bool:
    return isinstance(command, MoveOut) and command.told_pending


def _answered_at_once(command: Command, said: Entry | Reply) -> bool:
    """Whether its caller asked not to wait, itself: one that joined an entry is answered as it asked."""
    decided = isinstance(said, Entry) and bool(said.events) and isinstance(said.outcome, Done)
    return command.respond_async and decided
