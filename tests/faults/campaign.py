"""A campaign: clients who go on all the while, faults one after another and together, and the check of it all."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import psycopg
from psycopg.types.json import Jsonb

from cluster.settings import Settings
from notifier.notifier import NotifierLimits
from notifier.preferences import Preferences
from tests.e2e.clinic import Server as ClinicServer
from tests.e2e.clinic import open_clinic
from tests.faults.checker import check
from tests.faults.clients import Client, Offer, Pace
from tests.faults.history import History, Recovery
from tests.faults.nemeses import Nemesis, Scene
from tests.faults.records import read_records
from tests.faults.servers import Cluster
from tests.faults.watchers import Watcher, compare
from tests.people import Person

CLIENTS = 64
DOCTORS = 20
SLOTS = 280
SENDING_MAX = NotifierLimits().sending_max
WATCHED_BY = 2
"""So many follow each calendar."""
RECOVERY_DEADLINE_S = 90.0
SLOW_S = 25.0
"""Amid others, a fault that lasts for longer is told of by name."""
CALM_S = 2.0
"""Between two faults."""
SILENCE_MAX_S = 60.0
"""Some mail comes within this time, whatever has failed."""
FINISH_S = 30.0
"""All have their answers by then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What one fault, or the mix, came to."""

    name: str
    times: int
    first_s: float | None
    """Until each calendar actor's calendars gave their first good answer; the worst time."""
    all_s: float | None
    """Until every calendar had."""
    target_s: float | None
    silence_s: float
    """The longest time in which no mail came."""
    first: int
    """Of its operations in the history, and the one behind the last."""
    end: int

    @property
    def late(self) -> bool:
        """Whether it missed its target, or mail did not come for too long."""
        missed = self.target_s is not None and (self.first_s is None or self.first_s > self.target_s)
        return missed or self.silence_s > SILENCE_MAX_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Struck:
    """A fault amid others."""

    name: str
    since: float
    until: float
    """When every calendar answered well again."""


@dataclass(slots=True)
class Campaign:
    """Clients at work on a cluster. ``running_campaign`` makes and ends it."""

    cluster: Cluster
    history: History
    offer: Offer
    dice: random.Random
    patience_s: float = RECOVERY_DEADLINE_S
    """How long it waits until all calendars answer well again."""
    pace: Pace = field(default_factory=Pace)
    resting: asyncio.Event = field(default_factory=asyncio.Event)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    lines: list[Line] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    clients: list[asyncio.Task[None]] = field(default_factory=list)
    watchers: list[Watcher] = field(default_factory=list)
    in_flight_max: int = 0
    """Of messages, when notifiers may have died, all times together."""

    async def fault(self, nemesis: Nemesis) -> Line:
        """One fault, watched until every calendar answers well again."""
        began, began_at = len(self.history.operations), time.monotonic()
        recovery = await self._strike(nemesis, self.dice)
        await asyncio.sleep(CALM_S)
        await self._until(lambda: self.cluster.whole)
        line = self._line(nemesis.name, [recovery] if recovery else [], nemesis.target_s, began, began_at)
        self.lines.append(line)
        return line

    async def mix(self, nemeses: Sequence[Nemesis], seconds: float) -> Line:
        """Faults at the same time, one of PostgreSQL and one of something else at any moment, drawn by the seed."""
        began, began_at = len(self.history.operations), time.monotonic()
        until = time.monotonic() + seconds
        recoveries: list[Recovery] = []
        struck: list[Struck] = []

        async def one_after_another(chosen: Sequence[Nemesis], own: random.Random) -> None:
            while time.monotonic() < until:
                nemesis, since = own.choice(chosen), time.monotonic()
                if (recovery := await self._strike(nemesis, own)) is not None:
                    recoveries.append(recovery)
                    struck.append(Struck(name=nemesis.name, since=since, until=time.monotonic()))

        halves = [[nemesis for nemesis in nemeses if nemesis.postgres is postgres] for postgres in (True, False)]
        seeds = [self.dice.random() for _ in halves]
        async with asyncio.TaskGroup() as group:
            for half, seed in zip(halves, seeds, strict=True):
                group.create_task(one_after_another(half, random.Random(seed)))
        self.notes += _slow(struck)
        line = self._line("all of them, two at a time", recoveries, None, began, began_at)
        self.lines.append(line)
        return line

    async def finish(self) -> None:
        """No more wishes; when all are answered, check everything."""
        self.resting.set()
        _, left = await asyncio.wait(self.clients, timeout=FINISH_S)
        self.stopping.set()
        if left:
            await asyncio.wait(left, timeout=FINISH_S)
        for client in self.clients:
            client.result()
        records = await read_records(self.cluster.direct_url)
        records.arrivals = self.cluster.postbox.arrivals
        records.in_flight_max = self.in_flight_max
        self.violations += await asyncio.to_thread(check, self.history.operations, records)
        self.violations += await compare(self.watchers, self.cluster.direct_url)

    def leave_evidence(self) -> Path:
        """Keep the history and what the servers said, whose directory is about to go; returns where."""
        left = Path(tempfile.mkdtemp(prefix="zapis-faults-"))
        shutil.copytree(self.cluster.data.path / "log", left, dirs_exist_ok=True)
        (left / "history.jsonl").write_bytes(b"".join(self.history.lines()))
        return left

    async def _strike(self, nemesis: Nemesis, own: random.Random) -> Recovery | None:
        """How all came back, if there was something to strike."""
        recovery = self.history.watch(frozenset(self.offer.doctor_ids))
        self.in_flight_max += SENDING_MAX * nemesis.ends_notifiers
        try:
            scene = Scene(
                cluster=self.cluster,
                dice=own,
                recovery=recovery,
                pace=self.pace,
                notes=self.notes,
                violations=self.violations,
            )
            struck = await nemesis.strike(scene)
            await self._until(lambda: recovery.complete)
        finally:
            self.history.forget(recovery)
        return recovery if struck else None

    async def _until(self, condition: Callable[[], bool]) -> None:
        give_up_at = time.monotonic() + self.patience_s
        while not condition() and time.monotonic() < give_up_at:
            for client in self.clients:
                if client.done():
                    client.result()
            await asyncio.sleep(0.02)

    def _line(
        self, name: str, recoveries: Sequence[Recovery], target_s: float | None, began: int, began_at: float
    ) -> Line:
        firsts = [_first_s(each, self.offer.doctor_ids, self.cluster.calendar_actors) for each in recoveries]
        everyone = [max(each.answered_at.values()) - each.since if each.complete else None for each in recoveries]
        return Line(
            name=name,
            times=len(recoveries),
            first_s=None
            if None in firsts or not firsts
            else max((first for first in firsts if first is not None), default=0.0),
            all_s=None if None in everyone else max((each for each in everyone if each is not None), default=0.0),
            target_s=target_s,
            silence_s=self.cluster.postbox.silence_s(began_at, time.monotonic()),
            first=began,
            end=len(self.history.operations),
        )


def _slow(struck: Sequence[Struck]) -> list[str]:
    """What lasted for long amid other faults, with these and when they struck and were over, in seconds after it."""
    notes = []
    for one in struck:
        if one.until - one.since > SLOW_S:
            beside = ", ".join(
                f"{other.name} ({other.since - one.since:.0f} to {other.until - one.since:.0f} s)"
                for other in struck
                if other is not one and other.since < one.until and other.until > one.since
            )
            notes.append(f"{one.name}: {one.until - one.since:.0f} s until all was well again, beside {beside}")
    return notes


def _first_s(recovery: Recovery, doctor_ids: Sequence[str], actors: int) -> float | None:
    """When the slowest calendar actor gave its first good answer; which one was struck is nobody's to know."""
    from actors.client import Placement

    placement = Placement(generation=1, dedicated=False, actors=actors)
    firsts: dict[str, float] = {}
    for doctor_id in doctor_ids:
        name = placement.actor_name(doctor_id)
        at = recovery.answered_at.get(doctor_id, float("inf"))
        firsts[name] = min(firsts.get(name, float("inf")), at)
    worst = max(firsts.values())
    return None if worst == float("inf") else worst - recovery.since


@asynccontextmanager
async def running_campaign(
    cluster: Cluster,
    seed: int,
    *,
    clients: int = CLIENTS,
    doctors: int = DOCTORS,
    patience_s: float = RECOVERY_DEADLINE_S,
) -> AsyncIterator[Campaign]:
    """Clients at work for as long as the block lasts; every calendar has answered once."""
    people, offer = await _found(cluster, clients, doctors)
    dice = random.Random(seed)
    campaign = Campaign(cluster, History(), offer, dice, patience_s)
    ports = [api.port for api in cluster.apis]
    for person in people:
        client = Client(
            person=person,
            offer=offer,
            ports=ports,
            history=campaign.history,
            dice=random.Random(dice.random()),
            stopping=campaign.stopping,
            pace=campaign.pace,
        )
        campaign.clients.append(asyncio.create_task(client.run(campaign.resting)))
    campaign.watchers = [
        Watcher(person=person, doctor_id=doctor_id, ports=ports, dice=random.Random(dice.random()))
        for person, doctor_id in zip(cycle(people), offer.doctor_ids * WATCHED_BY)
    ]
    watching = [asyncio.create_task(watcher.run()) for watcher in campaign.watchers]
    try:
        warm = campaign.history.watch(frozenset(offer.doctor_ids))
        await campaign._until(lambda: warm.complete)
        campaign.history.forget(warm)
        yield campaign
    finally:
        for task in (*campaign.clients, *watching):
            task.cancel()
        await asyncio.gather(*campaign.clients, *watching, return_exceptions=True)


async def _found(cluster: Cluster, clients: int, doctors: int) -> tuple[list[Person], Offer]:
    """People with accounts, and doctors with free slots at the same times, published as an administrator does it."""
    settings = cluster.settings.model_copy(update={"database_url": cluster.direct_url})
    async with open_clinic(_clinic_server(cluster, settings)) as clinic:
        people = await clinic.people.patients(clients, with_mail=True)
        slots = dict([await _doctor(clinic.doctor_with_slots) for _ in range(doctors)])
    async with await psycopg.AsyncConnection.connect(cluster.direct_url) as connection:
        await connection.execute(_NEVER_QUIET, [Jsonb(Preferences(quiet=None).plain())])
        cursor = await connection.execute("SELECT id::text FROM slot ORDER BY starts_at")
        place = {row[0]: number for number, row in enumerate(await cursor.fetchall())}
    return people, Offer(slots={doctor: sorted(ids, key=place.__getitem__) for doctor, ids in slots.items()})


_NEVER_QUIET = (
    "INSERT INTO notification_preference (user_id, chosen, updated_at) SELECT id, %s, now() FROM app_user"
    " ON CONFLICT DO NOTHING"
)


async def _doctor(make: Callable[..., Awaitable[tuple[Person, list[str]]]]) -> tuple[str, list[str]]:
    doctor, slots = await make(SLOTS)
    return doctor.doctor_id, slots


def _clinic_server(cluster: Cluster, settings: Settings) -> ClinicServer:
    return ClinicServer(serving=cluster.apis[0], settings=settings)  # type: ignore[arg-type]  # It has a url.
