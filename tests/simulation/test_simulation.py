"""Calendar actors and their clients, with everything befalling them that may: many seeds, each a small run."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from actors.calendar_actor import ActorLimits
from actors.messages import (
    EVENTS,
    AppointmentFulfilled,
    PatientArrived,
    PatientMissed,
    SlotCancelled,
)
from tests.clinic import WILSON
from tests.simulation.history import EFFECTS
from tests.simulation.plan import Client, Crash, JournalFault, Plan, Request, plan_of
from tests.simulation.story import Built, first_failure, smallest, tell
from tests.simulation.virtual_time import VirtualTimeLoop
from tests.simulation.world import run

BUILT = Built()
MET = set(EVENTS) - {SlotCancelled, PatientArrived, PatientMissed, AppointmentFulfilled}


@pytest.mark.timeout(0)  # As many as were asked for.
def test_any_seed_holds(seeds: range) -> None:
    failed = first_failure(seeds, BUILT)
    if failed is not None:
        pytest.fail(tell(failed.plan.seed, smallest(failed, BUILT)), pytrace=False)


@pytest.mark.parametrize("seed", range(20))
def test_a_seed_is_always_the_same_run(seed: int) -> None:
    first, again = run(plan_of(seed)), run(plan_of(seed))

    assert first.story() == again.story()
    assert first.evidence == again.evidence


def test_another_order_is_another_run() -> None:
    plan = plan_of(3)

    assert len({tuple(run(replace(plan, seed=seed)).story()) for seed in range(5)}) == 5


def test_the_seeds_meet_everything() -> None:
    outcomes = [run(plan_of(seed)) for seed in range(250)]

    told = {(each.kind, each.code or each.outcome) for outcome in outcomes for each in outcome.evidence.operations}
    assert {(kind, "ok") for kind in EFFECTS} <= told
    assert {(kind, "info") for kind in EFFECTS} <= told
    codes = {code for _, code in told} - {"ok", "info"}
    assert codes == {
        "slot_taken",
        "slot_unavailable",
        "patient_overlap",
        "limit_reached",
        "hold_expired",
        "not_live",
        "not_found",
    }
    rows = (row for outcome in outcomes for events in outcome.evidence.events.values() for row in events)
    assert {type(row.event) for row in rows} == MET
    said = {text for outcome in outcomes for _, _, text, _ in outcome.trace}
    for trouble in ("dies", "rolled back", "placed anew", "clock steps", "is away", "ends late", "given up"):
        assert any(trouble in text for text in said), trouble


SCENARIO = (
    Request(name="visit", kind="book", who="anna", hold_first=True),
    Request(name="rival", kind="book", who="boris"),
    Request(name="change", kind="move", who="anna", about="visit", slot=1),
    Request(name="away", kind="move", who="anna", about="visit", doctor=WILSON, slot=1),
    Request(name="repeat", kind="again", who="anna", about="away"),
    Request(name="end", kind="cancel", who="anna", about="visit"),
)


@pytest.mark.parametrize(
    "trouble",
    [
        (),
        (JournalFault(call="append", number=2, kind="committed and lost"),),
        (JournalFault(call="append", number=2, kind="ends late"),),
        (JournalFault(call="append", number=3, kind="conflict"),),
    ],
    ids=["no other", "committed and lost", "ends late", "conflict"],
)
def test_an_actor_may_die_at_any_step(trouble: tuple[JournalFault, ...]) -> None:
    one = Client(server=0, requests=SCENARIO)
    other = Client(server=1, requests=(Request(name="other", kind="book", who="anna", doctor=WILSON),))
    plan = Plan(seed=0, clients=(one, other), actors=1, limits=ActorLimits())
    step, died = 0, True
    while died:
        step += 1
        outcome = run(replace(plan, faults=(Crash(process=0, step=step), *trouble)))
        assert not outcome.broken, tell(0, outcome)
        died = any("dies" in text for _, _, text, _ in outcome.trace)
    assert step > 40, "it died at no step worth mentioning"


async def _count_down(seconds: float, said: list[float]) -> None:
    for _ in range(3):
        await asyncio.sleep(seconds)
        said.append(seconds)


def test_virtual_time_passes_only_when_nothing_else_can_be_done() -> None:
    loop = VirtualTimeLoop(0)
    said: list[float] = []

    async def main() -> float:
        await asyncio.gather(_count_down(1000, said), _count_down(1, said))
        return loop.time()

    assert loop.run(main()) == 3000
    assert said == [1, 1, 1, 1000, 1000, 1000]
