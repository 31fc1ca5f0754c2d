"""Looks for a seed that fails, makes its plan as small as it gets, and tells what happened."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from actors.calendar_actor import ActorLimits, CalendarActor
from tests.fakes.memory_journal import MemoryJournal
from tests.simulation.plan import Plan, Request, plan_of
from tests.simulation.world import Outcome, run

LINES_MAX = 60
LINE_LENGTH_MAX = 200
RUNS_MAX = 600
"""So many smaller plans are tried."""
ORDERS = 3
"""With so many seeds each: what is left out changes the order of the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What the servers of a run are made of."""

    actor_class: type[CalendarActor] = CalendarActor
    journal_class: type[MemoryJournal] = MemoryJournal

    def run(self, plan: Plan) -> Outcome:
        """Run a plan with it."""
        return run(plan, actor_class=self.actor_class, journal_class=self.journal_class)


def first_failure(seeds: Iterable[int], built: Built) -> Outcome | None:
    """The first run in which something did not hold."""
    for seed in seeds:
        outcome = built.run(plan_of(seed))
        if outcome.broken:
            return outcome
    return None


def smallest(failed: Outcome, built: Built) -> Outcome:
    """A run of as little as possible that fails, too."""
    runs = 0
    found: Outcome | None = failed
    while found is not None:
        failed, found = found, None
        for smaller in failed.plan.smaller():
            for order in range(ORDERS):
                runs += 1
                if runs > RUNS_MAX:
                    return failed
                outcome = built.run(replace(smaller, seed=failed.plan.seed + order * 1_000_003))
                if outcome.broken:
                    found = outcome
                    break
            if found is not None:
                break
    return failed


def tell(seed: int, outcome: Outcome) -> str:
    """What did not hold, what was asked and befell, what happened, and how to see it again."""
    lines = ["", *outcome.findings(), "", "asked:"]
    lines += [f"  {_said(request)}" for client in outcome.plan.clients for request in client.requests]
    lines += ["befell:", *(f"  {fault}" for fault in outcome.plan.faults)]
    if outcome.plan.limits != ActorLimits():
        lines.append(f"limits: {outcome.plan.limits}")
    story = outcome.story()
    lines += ["happened:", *story[:LINES_MAX]]
    if len(story) > LINES_MAX:
        lines.append(f"  ... and {len(story) - LINES_MAX} lines more")
    lines += ["again:", f"  .venv/bin/pytest tests/simulation -k any_seed --seeds 1 --first-seed {seed}"]
    return "\n".join(line[:LINE_LENGTH_MAX] for line in lines)


def _said(request: Request) -> str:
    """A request, without what is usual."""
    usual = Request(name="", kind="", who="")
    said = {each.name: getattr(request, each.name) for each in fields(Request)}
    return ", ".join(f"{name}={value!r}" for name, value in said.items() if value != getattr(usual, name))
