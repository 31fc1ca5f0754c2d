"""``python -m tests.faults``: every nemesis and all of them mixed, on a cluster of its own; prints a table.

Exits with 1 where anything was violated or came later than it should, and leaves the history in a file then.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Sequence

import uvloop

from cluster.settings import PREFIX
from tests.faults.campaign import Campaign, Line, running_campaign
from tests.faults.history import Outcome
from tests.faults.mutants import MUTANTS
from tests.faults.nemeses import NEMESES, Nemesis
from tests.faults.reminders import AMID_REMINDERS
from tests.faults.servers import running_cluster

COLUMNS = (
    *("fault", "times", "first good answer", "all calendars", "target", "no mail for"),
    *("commands", "ok", "fail", "unknown"),
)

MUTANT_TIMES = 3
MUTANT_PATIENCE_S = 10.0
"""A mutant need not come back."""
MIX_MIN_S = 30.0
MIX_MAX_S = 120.0


async def run(seed: int, minutes: float, only: Sequence[str]) -> int:
    """A campaign of so many minutes; what every fault leaves of them is for the mix."""
    _end_in_order()
    _say(f"seed {seed}, {minutes:g} minutes")
    began = time.monotonic()
    nemeses, last = (_named(only, each) for each in (NEMESES, (AMID_REMINDERS,)))
    async with running_cluster() as cluster, running_campaign(cluster, seed) as campaign:
        if not cluster.disk.mounted:
            _say("no small disk can be mounted here: PostgreSQL's is never full")
        for nemesis in (*nemeses, *last):
            _progress(began, await campaign.fault(nemesis))
        while (left := began + 60 * minutes - time.monotonic()) > MIX_MIN_S and not only:
            _progress(began, await campaign.mix(nemeses, min(left, MIX_MAX_S)))
        await campaign.finish()
        _report(campaign, time.monotonic() - began)
        return _verdict(campaign, seed)


def _named(words: Sequence[str], nemeses: Sequence[Nemesis]) -> list[Nemesis]:
    """Those whose name has one of the words, or all."""
    return [each for each in nemeses if not words or any(word in each.name for word in words)]


async def run_mutants(seed: int) -> int:
    """Whether each mutant is caught, by a campaign of the faults under which it shows."""
    _end_in_order()
    survivors = []
    for mutant in MUTANTS:
        began = time.monotonic()
        async with (
            running_cluster(nodes=0, apis=1, mutant=mutant) as cluster,
            running_campaign(cluster, seed, clients=16, doctors=4, patience_s=MUTANT_PATIENCE_S) as campaign,
        ):
            for nemesis in [each for each in NEMESES if each.name in mutant.faults] * MUTANT_TIMES:
                await campaign.fault(nemesis)
            await campaign.finish()
            told = campaign.violations[0] if campaign.violations else "NOT CAUGHT"
        survivors += [] if campaign.violations else [mutant.name]
        _say(f"{time.monotonic() - began:4.0f} s  {mutant.name}: {len(campaign.violations)} violations. {told}")
    return 1 if survivors else 0


def _end_in_order() -> None:
    """Have SIGTERM cancel this task: nothing of it is left behind."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


def _progress(began: float, line: Line) -> None:
    times = f"{_seconds(line.first_s)}, all {_seconds(line.all_s)}" if line.times else "found nothing to strike"
    _say(f"{time.monotonic() - began:6.0f} s  {line.name}: {times}")


def _report(campaign: Campaign, seconds: float) -> None:
    _say(_row(COLUMNS))
    for line in campaign.lines:
        counts = campaign.history.counts(line.first, line.end)
        target = "" if line.target_s is None else _seconds(line.target_s)
        numbers = (counts.total(), counts[Outcome.OK], counts[Outcome.FAIL], counts[Outcome.UNKNOWN])
        times = (str(line.times), _seconds(line.first_s), _seconds(line.all_s), target, _seconds(line.silence_s))
        _say(_row((line.name, *times, *map(str, numbers))) + ("  LATE" if line.late else ""))
    counts = campaign.history.counts()
    _say(f"{counts.total()} commands in {seconds:.0f} s: " + ", ".join(f"{counts[each]} {each}" for each in Outcome))
    answers = sorted(campaign.history.answers.items())
    _say("answers: " + ", ".join(f"{count} × {status or 'none'}" for status, count in answers))
    messages = sum(watcher.messages for watcher in campaign.watchers)
    opened = sum(watcher.opened for watcher in campaign.watchers)
    _say(f"feeds: {messages} changes seen by {len(campaign.watchers)} watchers, who connected {opened} times")
    arrivals = campaign.cluster.postbox.arrivals
    repeats = len(arrivals) - len({arrival.message_id for arrival in arrivals})
    _say(f"mail: {len(arrivals)} came, {repeats} of them again")
    for note in campaign.notes:
        _say(note)
    _say("started again: " + (", ".join(f"{name} {n}" for name, n in campaign.cluster.restarts.items()) or "nothing"))


def _verdict(campaign: Campaign, seed: int) -> int:
    for violation in campaign.violations:
        _say(f"VIOLATION {violation}")
    _say(f"the checker finds {len(campaign.violations) or 'no'} violations")
    if not campaign.violations and not any(line.late for line in campaign.lines):
        return 0
    _say(f"the history and what the servers said is in {campaign.leave_evidence()}; again with --seed {seed}")
    return 1


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} s"


def _row(cells: Sequence[str]) -> str:
    widths = [max(8, len(title) + 2) for title in COLUMNS[1:]]
    return f"{cells[0]:32}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells[1:], widths, strict=True))


def _say(line: str) -> None:
    print(line, flush=True)


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--minutes", type=float, default=13.0)
    parser.add_argument("--only", action="append", default=[], help="faults whose name has this, and no mix")
    parser.add_argument("--mutants", action="store_true", help="only see that each mutant is caught")
    given = parser.parse_args()
    for name in [name for name in os.environ if name.startswith((PREFIX, "RAY_"))]:
        del os.environ[name]  # The developer's settings are nowhere in the way.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if given.mutants:
            return runner.run(run_mutants(given.seed))
        return runner.run(run(given.seed, given.minutes, given.only))


if __name__ == "__main__":
    sys.exit(main())
