"""Mutants of the journal's transaction itself: each line that holds an invariant, and the contract test it fails."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest

from tests.contract import test_journal as contract
from tests.contract.conftest import PostgresWorld


@dataclass(frozen=True)
class Mutant:
    """A change of ``journal_append`` (or of the tables), and the contract test that has to fail with it."""

    invariant: int
    name: str
    test: Callable[[PostgresWorld], Awaitable[None]]
    written: str = ""
    instead: str = ""
    dropped: tuple[str, ...] = ()
    """Constraints of ``appointment``."""


def _with(test: Callable[..., Awaitable[None]], value: object) -> Callable[[PostgresWorld], Awaitable[None]]:
    """A contract test with its other argument."""

    async def bound(world: PostgresWorld) -> None:
        await test(world, value)

    return bound


PATIENTS = "IF patients IS NOT NULL THEN"

MUTANTS = (
    Mutant(
        1,
        "no epoch in the fence",
        contract.test_a_claim_fences_whoever_owned_the_calendar_before,
        "c.epoch = f.epoch AND c.sequence = f.expected",
        "c.sequence = f.expected",
    ),
    Mutant(
        1,
        "a stale calendar stops only itself",
        contract.test_a_batch_is_all_or_nothing_across_calendars,
        "IF stale IS NOT NULL THEN",
        "IF array_length(stale, 1) >= 2 THEN",
    ),
    Mutant(
        2,
        "says committed and writes nothing",
        contract.test_a_batch_leaves_one_net_row_however_often_it_touched_a_thing,
        "IF appointments IS NOT NULL THEN",
        "IF false THEN",
    ),
    Mutant(
        3,
        "no constraint and no question, for patients",
        contract.test_a_patient_is_in_one_place_at_a_time,
        PATIENTS,
        "IF false THEN",
        dropped=("ex_appointment_patient",),
    ),
    Mutant(
        3,
        "no constraint, for doctors",
        contract.test_a_reschedule_into_a_taken_slot_cannot_be_committed_either,
        dropped=("ex_appointment_doctor",),
    ),
    Mutant(
        3, "nobody counts visits", contract.test_the_limit_of_live_visits_spans_calendars, PATIENTS, "IF false THEN"
    ),
    Mutant(
        3,
        "a move passes its commit point twice",
        _with(contract.test_a_move_passes_its_commit_point_once, "moved"),
        "AND m.state = ANY (n.before)",
        "",
    ),
    Mutant(
        4,
        "an id used before is no trouble",
        contract.test_a_command_id_is_used_once,
        "command_id uuid, user_id uuid, fingerprint text, answer jsonb, at timestamptz);",
        "command_id uuid, user_id uuid, fingerprint text, answer jsonb, at timestamptz) ON CONFLICT DO NOTHING;",
    ),
    Mutant(
        4,
        "nothing is looked up",
        contract.test_whoever_is_refused_gets_the_answer_it_had_before,
        "IF look_up IS NOT NULL THEN",
        "IF false THEN",
    ),
    Mutant(
        5,
        "no epoch for a no",
        contract.test_even_a_refusal_needs_the_epoch,
        "ELSE NOT EXISTS (SELECT FROM calendar AS c WHERE c.doctor_id = f.doctor_id AND c.epoch = f.epoch)",
        "ELSE false",
    ),
    Mutant(
        6,
        "no number in the fence",
        _with(contract.test_a_batch_that_expects_another_number_is_stale, 0),
        "c.epoch = f.epoch AND c.sequence = f.expected",
        "c.epoch = f.epoch",
    ),
)


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[PostgresWorld]:
    """A database to spoil."""
    world = PostgresWorld(database_url)
    yield world
    await world.close()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.invariant}: {mutant.name}")
async def test_a_mutant_of_the_transaction_is_caught(mutant: Mutant, world: PostgresWorld) -> None:
    if mutant.written:
        (row,) = world.rows("SELECT pg_get_functiondef('journal_append'::regproc) AS text")
        assert mutant.written in row["text"], "the mutant has lost its line"
        world.connection.execute(row["text"].replace(mutant.written, mutant.instead))
    for constraint in mutant.dropped:
        world.connection.execute(f"ALTER TABLE appointment DROP CONSTRAINT {constraint}".encode())

    with pytest.raises((AssertionError, pytest.fail.Exception)):
        await mutant.test(world)


def test_every_invariant_has_its_mutants() -> None:
    assert {mutant.invariant for mutant in MUTANTS} == {1, 2, 3, 4, 5, 6}
