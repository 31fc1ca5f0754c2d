"""One run of a plan: everybody is started, faults befall them, and in the end everything is checked."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

from structlog.testing import capture_logs

from actors.calendar_actor import CalendarActor
from tests.clinic import slot_id
from tests.fakes.actor_house import House
from tests.fakes.memory_journal import MemoryDatabase, MemoryJournal, Tables
from tests.given import uid
from tests.simulation.checker import violations
from tests.simulation.clients import Clients, hold_of, move_of, visit_of
from tests.simulation.history import Evidence, Operation
from tests.simulation.plan import DOCTORS, SLOTS, ClockStep, Plan
from tests.simulation.servers import POLICY, Servers
from tests.simulation.virtual_time import Stuck, VirtualTimeLoop

REST_S = 60.0
"""By then everything has come to rest, after the last fault."""
ENDED_S = 600.0
"""No run takes longer than that, in its own time."""
SWEEPS_MAX = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a run."""

    plan: Plan
    broken: tuple[str, ...]
    """What did not hold, in words."""
    evidence: Evidence
    trace: tuple[tuple[float, str, str, tuple[Any, ...]], ...]

    def story(self) -> list[str]:
        """What happened, in order."""
        names = _names(self.plan)
        known = re.compile("|".join(map(re.escape, names)))
        lines = []
        for at_s, who, text, values in self.trace:
            said = f"{at_s:8.3f}  {who:<14} {text.format(*values)}"
            lines.append(known.sub(lambda found: names[found[0]], said))
        return lines

    def findings(self) -> list[str]:
        """What did not hold, with names for ids."""
        names = _names(self.plan)
        known = re.compile("|".join(map(re.escape, names)))
        return [known.sub(lambda found: names[found[0]], each) for each in self.broken]


def run(
    plan: Plan,
    *,
    actor_class: type[CalendarActor] = CalendarActor,
    journal_class: type[MemoryJournal] = MemoryJournal,
) -> Outcome:
    """Run a plan to its end and check it."""
    loop = VirtualTimeLoop(plan.seed)
    trace: list[tuple[float, str, str, tuple[Any, ...]]] = []

    def note(who: object, text: str, *values: Any) -> None:
        trace.append((loop.time(), str(who), text, values))

    database = MemoryDatabase(live_appointments_max=POLICY.live_appointments_max, holds_max=POLICY.holds_max)
    database.tables = _opened().copy()
    servers = Servers(plan, database, actor_class, journal_class, note)
    clients = Clients(servers)
    with capture_logs() as logs:
        try:
            broken = loop.run(_live_through(plan, servers, clients))
        except (Stuck, TimeoutError) as failure:
            broken = [f"the run never ends: {failure!r}"]
    broken += [f"{entry['event']}: {entry.get('exc_info')!r}" for entry in logs if entry["log_level"] == "error"]
    broken += servers.bugs
    if plan.calm:
        broken += [f"nobody decided {name}" for name in clients.undecided]
    evidence = _evidence(plan, clients.history, database.tables)
    broken += violations(evidence)
    return Outcome(plan=plan, broken=tuple(broken), evidence=evidence, trace=tuple(trace))


async def _live_through(plan: Plan, servers: Servers, clients: Clients) -> list[str]:
    """Let it all happen; returns what has not come to rest."""
    async with asyncio.timeout(ENDED_S):
        faults = [servers.begin(servers.befall(fault)) for fault in plan.faults]
        await asyncio.gather(*(clients.follow_script(client) for client in plan.clients))
        await asyncio.gather(*faults)
        servers.be_calm()
        await asyncio.sleep(10)  # What is late comes.
        for _ in range(SWEEPS_MAX):
            await clients.apis[0].sweep()
            await asyncio.sleep(1)
        broken = [f"{doctor_id} decides nothing" for doctor_id in DOCTORS if not await clients.probe(doctor_id)]
        for process in servers.living:
            until = asyncio.get_running_loop().time() + REST_S
            while process.unrest() is not None and asyncio.get_running_loop().time() < until:
                await asyncio.sleep(1)
            if (unrest := process.unrest()) is not None:
                broken.append(f"{process} has not come to rest: {unrest}")
    return broken


def _evidence(plan: Plan, history: list[Operation], tables: Tables) -> Evidence:
    wrong_s = max((abs(fault.by_s) for fault in plan.faults if isinstance(fault, ClockStep)), default=0)
    return Evidence(
        operations=history,
        events={
            doctor_id: [row for (owner, _), row in sorted(tables.event.items(), key=_numbered) if owner == doctor_id]
            for doctor_id in DOCTORS
        },
        sequences={doctor_id: state.sequence for doctor_id, state in tables.calendar.items()},
        answers=tables.command,
        slots=tables.slot,
        holds=tables.hold,
        appointments=tables.appointment,
        moves=tables.move,
        policy=POLICY,
        skew=timedelta(seconds=wrong_s + (ENDED_S if wrong_s else 0)),
    )


def _numbered(item: tuple[tuple[str, int], Any]) -> int:
    return item[0][1]


@cache
def _opened() -> Tables:
    """The tables of doctors who have opened their slots."""
    house = House()
    VirtualTimeLoop(0).run(house.opened(*DOCTORS, slots=SLOTS))
    return house.database.tables


def _names(plan: Plan) -> dict[str, str]:
    """What ids are called in a story."""
    names = dict(zip(DOCTORS, ("House", "Wilson", "Cuddy"), strict=True))
    for doctor_id, name in list(names.items()):
        names |= {slot_id(doctor_id, number): f"{name}'s slot {number}" for number in range(SLOTS)}
    for request in (request for client in plan.clients for request in client.requests):
        name = request.name
        names |= {
            uid(request.who): request.who,
            uid(f"command {name}"): name,
            uid(f"command {name}/hold"): f"{name}/hold",
        }
        names |= {visit_of(name): f"visit({name})", hold_of(name): f"hold({name})", move_of(name): f"move({name})"}
    return names
