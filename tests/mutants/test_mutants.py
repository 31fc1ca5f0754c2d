"""Mutants: ways to break each invariant, and the scene that catches every one of them.

What the scenes prove is only worth as much as what they would catch. Each mutant is the smallest change that a tired
person might make; it has to be caught, and the actor as it is has to pass the same scene.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from actors import decisions, entries
from actors.calendar_actor import CalendarActor
from actors.journal import Conflict, JournalUnavailable, OutcomeUnknown
from tests.fakes.actor_house import House
from tests.fakes.memory_journal import MemoryJournal
from tests.mutants.broken import (
    AnnouncesBeforeItCommits,
    AnnouncesNothing,
    AnswersBeforeItCommits,
    ExpectsNothing,
    ForgetsCommands,
    JoinsNothing,
    KeepsItsMemory,
    LeavesWhatWaits,
    LooksNothingUp,
    NoChecks,
    NoEpochForANo,
    NoFence,
    NumbersRefusals,
    SameEpoch,
    SaysNoAtOnce,
    believes,
    takes_anything,
)
from tests.mutants.invariants import (
    a_repeat_has_one_effect,
    events_are_gapless,
    no_reply_reveals_what_may_be_undone,
    nothing_acknowledged_is_lost,
    nothing_is_announced_that_is_not_committed,
    nothing_is_doubled,
    one_decider,
)

Scene = Callable[[House], Awaitable[None]]


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
    Mutant(
        2, "announces before it commits", nothing_is_announced_that_is_not_committed, actor=AnnouncesBeforeItCommits
    ),
    Mutant(6, "announces nothing", nothing_is_announced_that_is_not_committed, actor=AnnouncesNothing),
    Mutant(3, "the database checks nothing", nothing_is_doubled, journal=NoChecks),
    Mutant(
        3,
        "the core gives away what is taken, the database checks nothing",
        nothing_is_doubled,
        journal=NoChecks,
        patches=((decisions, "_take", takes_anything), (decisions, "_check_patient_free", lambda *_: 0)),
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
    monkeypatch.setattr(decisions, "_take", takes_anything)
    monkeypatch.setattr(decisions, "_check_patient_free", lambda *_: 0)

    await nothing_is_doubled(House())


def test_every_invariant_has_its_mutants() -> None:
    assert {mutant.invariant for mutant in MUTANTS} == {1, 2, 3, 4, 5, 6}
