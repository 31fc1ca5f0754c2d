"""Everything that has to hold when everybody is done, of a simulation or of real servers."""

from __future__ import annotations

from tests.simulation.history import Evidence, broken_answers, broken_moves, broken_order
from tests.simulation.refusals import broken_refusals
from tests.simulation.replayed import broken_agreement, broken_journal, broken_tables, replay


def violations(evidence: Evidence) -> list[str]:
    """What does not hold, in words; nothing if all does."""
    broken = list(broken_journal(evidence))
    if broken:
        return broken  # It cannot be replayed.
    replayed = replay(evidence)
    return [
        *broken_answers(evidence),
        *broken_order(evidence),
        *broken_moves(evidence),
        *broken_tables(evidence, replayed),
        *broken_agreement(evidence, replayed),
        *broken_refusals(evidence, replayed),
    ]
