"""What the simulation would catch: each broken actor or journal fails within a few hundred seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from actors import decisions, entries
from actors.calendar_actor import CalendarActor
from actors.journal import Conflict, JournalUnavailable, OutcomeUnknown
from actors.senders import Senders
from tests.fakes.memory_journal import MemoryJournal
from tests.mutants import broken
from tests.simulation.story import Built, first_failure

SEEDS_MAX = 400


@dataclass(frozen=True)
class Mutant:
    """A change that some seed has to find."""

    name: str
    actor: type[CalendarActor] = CalendarActor
    journal: type[MemoryJournal] = MemoryJournal
    patches: tuple[tuple[object, str, object], ...] = field(default=())
    first_seed: int = 0
    """Where to look: one in some thousands takes too long to wait for."""


class ForgetsEverythingSaid(broken.LooksNothingUp):
    """Neither looks answers up nor minds storing them again."""

    _append = broken.ForgetsCommands._append


MUTANTS = (
    Mutant("the journal has no fence", journal=broken.NoFence),
    Mutant("a claim does not raise the epoch", journal=broken.SameEpoch),
    Mutant("needs no epoch for a no", journal=broken.NoEpochForANo),
    Mutant("answers before it commits", actor=broken.AnswersBeforeItCommits),
    Mutant("answers a repeat before it commits", actor=broken.TellsWhatIsAhead),
    Mutant("takes the unknown for a no", actor=broken.TakesTheUnknownForANo),
    Mutant("takes the unknown for a success", journal=broken.believes(OutcomeUnknown)),
    Mutant("takes a conflict for a success", journal=broken.believes(Conflict)),
    Mutant("takes an outage for a success", journal=broken.believes(JournalUnavailable)),
    Mutant("the database checks nothing", journal=broken.NoChecks),
    Mutant("the core gives away what is taken", patches=((decisions, "_take", broken.takes_anything),)),
    Mutant("answers are stored over answers", journal=broken.ForgetsCommands),
    Mutant("refuses without a look-up", journal=broken.LooksNothingUp),
    Mutant("does not join what is in flight", actor=broken.JoinsNothing),
    Mutant("stores no answers", patches=((entries.Entry, "stores_answer", False),)),
    Mutant("a move has no durable row", journal=broken.ForgetsMoves),
    Mutant("says no at once", actor=broken.SaysNoAtOnce),
    Mutant("does not decide again what waits", actor=broken.LeavesWhatWaits),
    Mutant("obeys what comes late", patches=((Senders, "behind", broken.obeys_what_comes_late),), first_seed=2900),
    Mutant("uses up a number for a refusal", actor=broken.NumbersRefusals),
    Mutant("goes on with what was rolled back", actor=broken.KeepsItsMemory, journal=broken.ExpectsNothing),
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_caught(
    mutant: Mutant, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    for where, name, what in mutant.patches:
        monkeypatch.setattr(where, name, what)

    failed = first_failure(
        range(mutant.first_seed, mutant.first_seed + SEEDS_MAX),
        Built(actor_class=mutant.actor, journal_class=mutant.journal),
    )

    assert failed is not None, f"survived {SEEDS_MAX} seeds"
    record_property("seeds", failed.plan.seed + 1 - mutant.first_seed)
