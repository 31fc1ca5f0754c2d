"""Mutants: ways to break each invariant, and the scene that catches every one of them.

What the scenes prove is only worth as much as what they would catch. Each mutant is the smallest change that a tired
person might make; it has to be caught, and the actor as it is has to pass the same scene.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from actors import decisions, entries
from actors.calendar import Calendar
from actors.calendar_actor import CalendarActor
from actors.journal import Append, Claim, Conflict, JournalUnavailable, OutcomeUnknown, StoredAnswer
from actors.messages import Command, Rejected, Reply
from tests.fakes.actor_house import House
from tests.fakes.memory_journal import MemoryJournal, Tables
from tests.mutants.invariants import (
    a_repeat_has_one_effect,
    events_are_gapless,
    no_reply_reveals_what_may_be_undone,
    nothing_acknowledged_is_lost,
    nothing_is_doubled,
    one_decider,
)

Scene = Callable[[House], Awaitable[None]]


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

    async def decide_batch(self, generation: int, commands: Any) -> list[Reply]:
        replies: list[Any] = []
        self._generation = generation
        self._start_loops()
        for command in commands:
            entry = self._take_in(command)
            replies.append(getattr(entry, "outcome", entry))
        return replies


def believes(failure: type[Exception]) -> type[MemoryJournal]:
    """A journal that takes a failure for a success."""

    class Believing(MemoryJournal):
        async def append(self, append: Append) -> dict[str, StoredAnswer]:
            try:
                return await super().append(append)
            except failure:
                return {}

    return Believing


# 3. Nothing is doubled


class NoChecks(MemoryJournal):
    """Has no constraints and compares nothing across calendars."""

    def _check(self, tables: Tables, append: Append) -> None:
        pass


def _takes_anything(*_: object) -> tuple[()]:
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

    def _take_in(self, command: Command) -> Any:
        known = self._by_command.pop(command.command_id, None)
        taken = super()._take_in(command)
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


@dataclass(frozen=True)
class Mutant:
    """A change, and the scene that has to fail with it."""

    invariant: int
    name: str
    scene: Scene
    actor: type[CalendarActor] = CalendarActor
    journal: type[MemoryJournal] = MemoryJournal
    patches: tuple[tuple[object, str, object], ...] = field(default=())

    def house(self) -> House:
        return House(actor_class=self.actor, journal_class=self.journal)


MUTANTS = (
    Mutant(1, "the journal has no fence", one_decider, journal=NoFence),
    Mutant(1, "a claim does not raise the epoch", no_reply_reveals_what_may_be_undone, journal=SameEpoch),
    Mutant(2, "answers before it commits", nothing_acknowledged_is_lost, actor=AnswersBeforeItCommits),
    Mutant(2, "takes the unknown for a success", nothing_acknowledged_is_lost, journal=believes(OutcomeUnknown)),
    Mutant(2, "takes a conflict for a success", nothing_acknowledged_is_lost, journal=believes(Conflict)),
    Mutant(2, "takes an outage for a success", nothing_acknowledged_is_lost, journal=believes(JournalUnavailable)),
    Mutant(3, "the database checks nothing", nothing_is_doubled, journal=NoChecks),
    Mutant(
        3,
        "the core gives away what is taken, the database checks nothing",
        nothing_is_doubled,
        journal=NoChecks,
        patches=((decisions, "_take", _takes_anything), (decisions, "_check_patient_free", lambda *_: 0)),
    ),
    Mutant(4, "answers are stored over answers", a_repeat_has_one_effect, journal=ForgetsCommands),
    Mutant(4, "refuses without a look-up", a_repeat_has_one_effect, journal=LooksNothingUp),
    Mutant(4, "does not join what is in flight", a_repeat_has_one_effect, actor=JoinsNothing),
    Mutant(
        4,
        "stores no answers",
        a_repeat_has_one_effect,
        patches=((entries.Entry, "stores_answer", False),),
    ),
    Mutant(5, "says no at once", no_reply_reveals_what_may_be_undone, actor=SaysNoAtOnce),
    Mutant(5, "does not decide again what waits", no_reply_reveals_what_may_be_undone, actor=LeavesWhatWaits),
    Mutant(5, "needs no epoch for a no", no_reply_reveals_what_may_be_undone, journal=NoEpochForANo),
    Mutant(6, "uses up a number for a refusal", events_are_gapless, actor=NumbersRefusals),
    Mutant(
        6,
        "goes on with what was rolled back, unfenced by number",
        events_are_gapless,
        actor=KeepsItsMemory,
        journal=ExpectsNothing,
    ),
)
SCENES = sorted({mutant.scene for mutant in MUTANTS}, key=lambda scene: scene.__name__)


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
async def test_the_actor_as_it_is_passes(scene: Scene) -> None:
    await scene(House())


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.invariant}: {mutant.name}")
async def test_a_mutant_is_caught(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    for where, name, what in mutant.patches:
        monkeypatch.setattr(where, name, what)

    with pytest.raises(AssertionError):
        await mutant.scene(mutant.house())


async def test_behind_a_core_that_gives_away_what_is_taken_stands_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "_take", _takes_anything)
    monkeypatch.setattr(decisions, "_check_patient_free", lambda *_: 0)

    await nothing_is_doubled(House())


def test_every_invariant_has_its_mutants() -> None:
    assert {mutant.invariant for mutant in MUTANTS} == {1, 2, 3, 4, 5, 6}
