"""Broken actors and journals: the smallest changes that a tired person might make, in the order of what they break."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from actors.calendar import Calendar
from actors.calendar_actor import CalendarActor
from actors.entries import append_of
from actors.errors import SlotTaken
from actors.journal import Append, Claim, StoredAnswer
from actors.messages import Batch, Command, Rejected, Reply
from tests.fakes.announcer import MemoryAnnouncer
from tests.fakes.memory_journal import MemoryJournal, Tables

# 1. One decider


class NoFence(MemoryJournal):
    """Writes whoever asks."""

    def _fence(self, tables: Tables, append: Append) -> None:
        for row in append.calendars:
            state = tables.calendar[row.doctor_id]
            reached = max(row.reached, state.sequence)
            tables.calendar[row.doctor_id] = replace(state, sequence=reached, last_event_at=row.last_event_at)


class SameEpoch(MemoryJournal):
    """Claims without raising the epoch."""

    def _claim(self, doctor_id: str, generation: int) -> Claim:
        before = self.database.tables.calendar[doctor_id]
        super()._claim(doctor_id, generation)
        self.database.tables.calendar[doctor_id] = before
        return Claim(epoch=before.epoch)


# 2. Nothing acknowledged is lost


class AnswersBeforeItCommits(CalendarActor):
    """Tells what it has decided."""

    def _enqueue(self, entry: Any, activation: Any) -> None:
        super()._enqueue(entry, activation)
        entry.reply.set_result(entry.outcome)


def believes(failure: type[Exception]) -> type[MemoryJournal]:
    """A journal that takes a failure for a success."""

    class Believing(MemoryJournal):
        async def append(self, append: Append) -> dict[str, StoredAnswer]:
            try:
                return await super().append(append)
            except failure:
                return {}

    return Believing


class AnnouncesBeforeItCommits(CalendarActor):
    """Tells readers what it is about to commit."""

    async def _commit(self, entries: Any) -> None:
        self._announcer.announce(append_of(entries, self._active).events)
        await super()._commit(entries)


class AnnouncesNothing(CalendarActor):
    """Leaves it to readers to find out."""

    async def _commit(self, entries: Any) -> None:
        announcer, self._announcer = self._announcer, MemoryAnnouncer()
        try:
            await super()._commit(entries)
        finally:
            self._announcer = announcer


# 3. Nothing is doubled


class NoChecks(MemoryJournal):
    """Has no constraints and compares nothing across calendars."""

    def _check(self, tables: Tables, append: Append) -> None:
        pass


def takes_anything(*_: object) -> tuple[()]:
    """In place of ``decisions._take``: whatever is asked for may be taken."""
    return ()


# 4. A repeated command has one effect


class ForgetsCommands(MemoryJournal):
    """Stores answers over answers."""

    def _append(self, append: Append) -> dict[str, StoredAnswer]:
        for row in append.commands:
            self.database.tables.command.pop(row.command_id, None)
        return super()._append(append)


class LooksNothingUp(MemoryJournal):
    """Lets refusals go without a look at what was answered before."""

    def _append(self, append: Append) -> dict[str, StoredAnswer]:
        super()._append(append)
        return {}


class JoinsNothing(CalendarActor):
    """Decides a command again that it has decided and not committed."""

    def _take_in(self, command: Command, behind: timedelta) -> Any:
        known = self._by_command.pop(command.command_id, None)
        taken = super()._take_in(command, behind)
        if known is not None:
            self._by_command.setdefault(command.command_id, known)
        return taken

    def _settle(self, entry: Any, reply: Reply) -> None:
        self._by_command[entry.command.command_id] = entry
        super()._settle(entry, reply)


# 5. A reply reveals nothing that may be undone


class SaysNoAtOnce(CalendarActor):
    """Refuses as soon as it has decided to."""

    def _enqueue(self, entry: Any, activation: Any) -> None:
        super()._enqueue(entry, activation)
        if isinstance(entry.outcome, Rejected):
            entry.reply.set_result(entry.outcome)


class LeavesWhatWaits(CalendarActor):
    """Decides the batch again, but not what was decided behind it."""

    def _decide_again(self, entries: Any, doctor_ids: Any, fresh: Any, *found: Any) -> None:
        waiting, self._waiting = self._waiting, deque()
        super()._decide_again(entries, doctor_ids, fresh, *found)
        self._waiting.extend(waiting)


class NoEpochForANo(MemoryJournal):
    """Checks the epoch only of whoever writes events."""

    def _fence(self, tables: Tables, append: Append) -> None:
        written = [row for row in append.calendars if row.reached > row.expected]
        super()._fence(tables, replace(append, calendars=written))


# 6. Events are gapless


class NumbersRefusals(CalendarActor):
    """Uses up a number for what it refused."""

    def _decide(self, entry: Any, activation: Any, facts: Any) -> None:
        super()._decide(entry, activation, facts)
        if isinstance(entry.outcome, Rejected):
            activation.calendar.sequence += 1


class KeepsItsMemory(CalendarActor):
    """Goes on with the state and the numbers of what was rolled back."""

    def _decide_again(self, entries: Any, doctor_ids: Any, fresh: Any, *found: Any) -> None:
        kept: dict[str, tuple[Calendar, int]] = {
            doctor_id: (self._active[doctor_id].calendar, epoch) for doctor_id, (_, epoch) in fresh.items()
        }
        super()._decide_again(entries, doctor_ids, kept, *found)


class ExpectsNothing(MemoryJournal):
    """Fences by epoch alone, not by number."""

    def _fence(self, tables: Tables, append: Append) -> None:
        expected = [
            replace(row, expected=tables.calendar[row.doctor_id].sequence) if row.reached > row.expected else row
            for row in append.calendars
        ]
        super()._fence(tables, replace(append, calendars=expected))


# What only a storm brings out


class TakesTheUnknownForANo(CalendarActor):
    """Refuses what it does not know to be committed, and goes on without it."""

    async def _recover(self, entries: Any, *, claim: bool) -> None:
        if claim:
            for doctor_id in {entry.command.doctor_id for entry in entries}:
                self._active.pop(doctor_id, None)
            for entry in [*entries, *self._waiting]:
                self._settle(entry, Rejected(**SlotTaken().as_plain()))
            self._waiting.clear()
        else:
            await super()._recover(entries, claim=claim)


class ForgetsMoves(MemoryJournal):
    """Writes no ``move`` rows: only the two calendars know of a move."""

    def _append(self, append: Append) -> dict[str, StoredAnswer]:
        return super()._append(replace(append, moves=[]))


class TellsWhatIsAhead(CalendarActor):
    """Answers a repeat with what it has decided, committed or not."""

    def _take_in(self, command: Command, behind: timedelta) -> Any:
        same = self._by_command.get(command.command_id)
        if same is not None and same.command.fingerprint == command.fingerprint:
            return same.outcome
        return super()._take_in(command, behind)


def obeys_what_comes_late(_: object, batch: Batch, now: datetime) -> timedelta:
    """In place of ``Senders.behind``: any call is as good as any other."""
    return now - batch.sent_at
