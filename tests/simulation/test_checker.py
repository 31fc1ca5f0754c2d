"""The checker itself: on histories as real servers give them, and on answers that are false."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.clinic import HOUSE, WILSON
from tests.given import uid
from tests.simulation.checker import violations
from tests.simulation.history import Evidence, Operation
from tests.simulation.plan import Client, Plan, Request, plan_of
from tests.simulation.world import run

SCRIPT = (
    Request(name="booked", kind="book", who="anna"),
    Request(name="taken", kind="book", who="boris"),
    Request(name="elsewhere", kind="book", who="anna", doctor=WILSON),
    Request(name="moved", kind="move", who="anna", about="booked", doctor=WILSON, slot=1),
    Request(name="again", kind="again", who="anna", about="booked"),
    Request(name="held", kind="hold", who="boris"),
    Request(name="cancelled", kind="cancel", who="anna", about="booked"),
    Request(name="gone", kind="cancel", who="anna", about="booked"),
)


@pytest.fixture(scope="module")
def true() -> Evidence:
    """What happened, and was told as it happened."""
    outcome = run(Plan(seed=0, clients=(Client(server=0, requests=SCRIPT),)))
    assert not outcome.broken
    told = [(each.outcome, each.code) for each in outcome.evidence.operations]
    assert told == [
        ("ok", ""),
        ("fail", "slot_taken"),
        ("fail", "patient_overlap"),
        ("ok", ""),
        ("ok", ""),
        ("ok", ""),
        ("ok", ""),
        ("fail", "not_live"),
    ]
    return outcome.evidence


def told(evidence: Evidence, number: int, **changes: Any) -> Evidence:
    """The same, but one operation was told something else."""
    operations = list(evidence.operations)
    operations[number] = replace(operations[number], **changes)
    return replace(evidence, operations=operations)


def without(evidence: Evidence, sequence: int) -> Evidence:
    """The same, but House's journal lacks an event."""
    rows = [row for row in evidence.events[HOUSE] if row.sequence != sequence]
    return replace(evidence, events={**evidence.events, HOUSE: rows})


def swapped(evidence: Evidence) -> Evidence:
    """The same, but the hold was asked for, and told, before anything else."""
    return told(evidence, 5, invoked=-2, returned=-1)


FALSE: dict[str, Callable[[Evidence], Evidence]] = {
    "an ok that was refused": lambda true: told(true, 0, outcome="fail", code="slot_taken"),
    "an ok that never was": lambda true: told(true, 1, outcome="ok", code=""),
    "another answer to a repeat": lambda true: told(true, 4, answer={"appointment": {"id": "another"}}),
    "a no that was not true": lambda true: told(true, 1, code="limit_reached"),
    "a no of no known kind": lambda true: told(true, 1, code="idempotency_key_reused"),
    "an answer to another question": lambda true: told(true, 6, appointment_id=uid("another")),
    "an order that cannot be": swapped,
    "a lost event": lambda true: without(true, 3),
    "a sequence that is ahead": lambda true: replace(true, sequences={**true.sequences, HOUSE: 99}),
    "a lost answer": lambda true: replace(true, answers={}),
    "a lost hold": lambda true: replace(true, holds={}),
    "a lost visit": lambda true: replace(true, appointments={}),
    "a move that has not ended": lambda true: replace(
        true, moves={move_id: {**row, "state": "moved"} for move_id, row in true.moves.items()}
    ),
}


@pytest.mark.parametrize("name", FALSE)
def test_what_is_false_is_found(true: Evidence, name: str) -> None:
    assert violations(FALSE[name](true))


def as_seen_from_outside(operation: Operation) -> Operation:
    return replace(operation, known_before=None, known_after=None)


@pytest.mark.parametrize("name", FALSE)
def test_what_is_false_is_found_from_outside(true: Evidence, name: str) -> None:
    false = FALSE[name](true)

    assert violations(replace(false, operations=[as_seen_from_outside(each) for each in false.operations]))


@pytest.mark.parametrize("seed", range(60))
def test_what_holds_holds_from_outside(seed: int) -> None:
    evidence = run(plan_of(seed)).evidence

    assert violations(replace(evidence, operations=[as_seen_from_outside(each) for each in evidence.operations])) == []
