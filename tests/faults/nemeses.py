"""What is done to the cluster. Each nemesis strikes, waits as long as its fault takes, and leaves all healed."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

import psutil
import psycopg

from cluster.processes import left_over
from persistence.database import open_database
from persistence.repositories.placement import Placements
from persistence.sealed import Vault
from persistence.unit_of_work import DatabaseUnavailable, UnitOfWork
from tests.faults.clients import Pace
from tests.faults.history import Recovery
from tests.faults.nodes import RayHead, RayNode
from tests.faults.servers import Cluster

AWAY_S = 4.0
"""How long something is away."""
STOPPED_S = 8.0
"""How long a node is stopped: past the health timeout, until its calendars have gone elsewhere."""
COMMITS = 5
"""Backends that are terminated, replies that are swallowed."""
DELAY_S = 0.05
FOUND_S = 5.0
STARTED_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What a nemesis works with."""

    cluster: Cluster
    dice: random.Random
    recovery: Recovery
    """``restart`` it where time counts from the healing, not from the blow."""
    pace: Pace
    notes: list[str] = field(default_factory=list)
    """What else there is to tell."""
    violations: list[str] = field(default_factory=list)


Strike = Callable[[Scene], Awaitable[bool]]
"""Whether there was something to strike: another fault may be about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nemesis:
    """A fault by its name."""

    name: str
    strike: Strike
    target_s: float | None = None
    """The first good answer should come by then."""
    nodes: bool = False
    """Needs a cluster of several nodes."""
    ends_notifiers: int = 0
    """So many, perhaps with messages in their hands."""
    postgres: bool = False
    """Strikes PostgreSQL or the way to it: one such at a time."""


async def kill_actor(scene: Scene) -> bool:
    """The process of one calendar actor dies."""
    actors = await asyncio.to_thread(scene.cluster.calendar_actor_processes)
    return bool(actors) and _signal(scene, [scene.dice.choice(actors)], signal.SIGKILL)


async def kill_notifier(scene: Scene) -> bool:
    """The process of a notifier dies; until another one sends what has been caused since."""
    notifiers = await asyncio.to_thread(scene.cluster.notifier_processes)
    struck = bool(notifiers) and _signal(scene, [scene.dice.choice(notifiers)], signal.SIGKILL)
    postbox = scene.cluster.postbox
    arrived, give_up_at = len(postbox.arrivals), time.monotonic() + STARTED_S
    while struck and len(postbox.arrivals) == arrived and time.monotonic() < give_up_at:
        await asyncio.sleep(0.02)
    return struck


async def kill_api(scene: Scene) -> bool:
    """One API process dies."""
    scene.dice.choice(scene.cluster.apis).kill()
    scene.recovery.restart()
    return True


async def kill_raylet(scene: Scene) -> bool:
    """The raylet of a node with calendars dies, and its actors follow when they notice."""
    node = await _populated(scene)
    if node is None or (raylet := await asyncio.to_thread(node.raylet)) is None:
        return False
    actors = await asyncio.to_thread(node.calendar_actors)
    _signal(scene, [raylet], signal.SIGKILL)
    died_at = time.monotonic()
    while any(_runs(actor) for actor in actors) and time.monotonic() < died_at + FOUND_S:
        await asyncio.sleep(0.02)
    scene.recovery.restart(since=died_at)
    return True


async def kill_node(scene: Scene) -> bool:
    """All that runs on a node with calendars dies, as when its machine does."""
    node = await _populated(scene)
    return node is not None and _signal(scene, await asyncio.to_thread(node.processes), signal.SIGKILL)


async def kill_gcs(scene: Scene) -> bool:
    """The cluster's memory dies: running calendars go on."""
    assert isinstance(scene.cluster.head, RayHead)
    gcs = await asyncio.to_thread(scene.cluster.head.gcs)
    return gcs is not None and _signal(scene, [gcs], signal.SIGKILL)


async def kill_gcs_and_actor(scene: Scene) -> bool:
    """The same, and a calendar actor, which nobody starts again until the cluster's memory is back."""
    actors = await asyncio.to_thread(scene.cluster.calendar_actor_processes)
    struck = await kill_gcs(scene)
    return struck and bool(actors) and _signal(scene, [scene.dice.choice(actors)], signal.SIGKILL)


async def kill_valkey(scene: Scene) -> bool:
    """Valkey dies and is away for a while."""
    valkey = scene.cluster.valkey
    valkey.kill()
    await valkey.died()
    await asyncio.sleep(AWAY_S)
    await valkey.restart()
    return True


async def flush_valkey(scene: Scene) -> bool:
    """All that Valkey has is gone."""
    from redis.asyncio import Redis
    from redis.exceptions import RedisError

    async with Redis.from_url(scene.cluster.valkey.url) as redis:
        with suppress(RedisError):
            await redis.flushall()
            return True
    return False


async def stop_postgres(scene: Scene) -> bool:
    """PostgreSQL ends as in a crash, and is started again."""
    postgres = scene.cluster.postgres
    processes = await asyncio.to_thread(left_over, postgres.data.path, postgres.name)
    pids = {process.pid for process in processes}
    _signal(scene, [process for process in processes if _parent(process) not in pids], signal.SIGQUIT)
    await postgres.died()
    await asyncio.sleep(AWAY_S)
    await postgres.restart()
    scene.recovery.restart()
    return True


async def fill_disk(scene: Scene) -> bool:
    """PostgreSQL has no room on its disk, and may give up for it."""
    cluster = scene.cluster
    if not cluster.disk.mounted:
        return False
    await asyncio.to_thread(cluster.disk.fill)
    try:
        await asyncio.sleep(AWAY_S)
    finally:
        await asyncio.to_thread(cluster.disk.free)
    await _answers(cluster)
    scene.recovery.restart()
    return True


async def terminate_backends(scene: Scene) -> bool:
    """Backends of the journal are terminated while they commit."""
    terminated = 0
    give_up_at = time.monotonic() + FOUND_S
    with suppress(psycopg.OperationalError):
        while terminated < COMMITS and time.monotonic() < give_up_at:
            terminated += len(await scene.cluster.administer(_TERMINATE))
            await asyncio.sleep(0.001)
    return terminated > 0


_TERMINATE = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'zapis-journal'"
    " AND state = 'active' AND query LIKE '%journal_append(%'"
)


async def stop_node(scene: Scene) -> bool:
    """A node stands still for so long that it is given up, and then goes on: its calendars have two actors."""
    if (node := await _populated(scene)) is None:
        return False
    processes = await asyncio.to_thread(node.processes)
    _signal(scene, processes, signal.SIGSTOP)
    try:
        await asyncio.sleep(STOPPED_S)
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
    return True


async def change_nodes(scene: Scene) -> bool:
    """A node joins, then one that has calendars leaves."""
    node = await scene.cluster.join()
    scene.cluster.keep(node)
    leaving = await _populated(scene) or scene.cluster.nodes[0]
    scene.recovery.restart()
    await scene.cluster.leave(leaving)
    return True


async def place_anew(scene: Scene) -> bool:
    """Calendars are spread over another number of actors, get one each, and are put together again."""
    for dedicated, actors in ((False, 3), (True, 1), (False, scene.cluster.calendar_actors)):
        await _place(scene.cluster, dedicated=dedicated, actors=actors)
        scene.recovery.restart()
        await asyncio.sleep(AWAY_S)
    return True


async def step_clocks(scene: Scene) -> bool:
    """The clocks of all calendar actors go an hour ahead, then an hour behind, then right again."""
    clock = scene.cluster.clock
    try:
        for seconds_off in (3600, -3600, 0):
            if clock.adjustable:
                await asyncio.to_thread(clock.step_to, seconds_off)
            scene.recovery.restart()
            await asyncio.sleep(AWAY_S)
    finally:
        await asyncio.to_thread(clock.step_to, 0)
    return clock.adjustable


async def delay_postgres(scene: Scene) -> bool:
    """Every word to and from PostgreSQL takes longer."""
    return await _delayed(scene, "postgres_proxy")


async def cut_postgres(scene: Scene) -> bool:
    """Every connection to PostgreSQL is reset."""
    scene.recovery.restart()
    return scene.cluster.postgres_proxy.cut() > 0


async def hold_postgres(scene: Scene) -> bool:
    """Nothing gets to PostgreSQL or back, and no connection breaks."""
    return await _held(scene, "postgres_proxy")


async def swallow_replies(scene: Scene) -> bool:
    """Commits are made, and their answers are lost with the connection."""
    proxy = scene.cluster.postgres_proxy
    wanted = proxy.swallowed + COMMITS
    proxy.swallow_commits(COMMITS)
    give_up_at = time.monotonic() + FOUND_S
    while proxy.swallowed < wanted and time.monotonic() < give_up_at:
        await asyncio.sleep(0.01)
    proxy.swallow_commits(0)
    return proxy.swallowed > wanted - COMMITS


async def delay_valkey(scene: Scene) -> bool:
    """Every word to and from Valkey takes longer."""
    return await _delayed(scene, "valkey_proxy")


async def cut_valkey(scene: Scene) -> bool:
    """Every connection to Valkey is reset."""
    scene.recovery.restart()
    return scene.cluster.valkey_proxy.cut() > 0


async def hold_valkey(scene: Scene) -> bool:
    """Nothing gets to Valkey or back, and no connection breaks."""
    return await _held(scene, "valkey_proxy")


ACTOR = Nemesis(name="actor killed", strike=kill_actor, target_s=2.5)
NOTIFIER = Nemesis(name="notifier killed", strike=kill_notifier, ends_notifiers=1)
TERMINATED = Nemesis(name="backends terminated mid-commit", strike=terminate_backends, postgres=True)
SWALLOWED = Nemesis(name="replies to COMMIT swallowed", strike=swallow_replies, postgres=True)
POSTGRES = Nemesis(name="PostgreSQL stopped, started", strike=stop_postgres, target_s=3.0, postgres=True)
NEMESES = (
    ACTOR,
    NOTIFIER,
    Nemesis(name="API process killed", strike=kill_api),
    Nemesis(name="raylet killed", strike=kill_raylet, target_s=8.0, nodes=True, ends_notifiers=1),
    Nemesis(name="node killed", strike=kill_node, target_s=8.0, nodes=True, ends_notifiers=1),
    Nemesis(name="node stopped, goes on", strike=stop_node, target_s=8.0, nodes=True, ends_notifiers=1),
    Nemesis(name="nodes join and leave", strike=change_nodes, target_s=8.0, nodes=True, ends_notifiers=1),
    Nemesis(name="GCS killed", strike=kill_gcs, target_s=1.0, nodes=True),
    Nemesis(name="GCS and an actor killed", strike=kill_gcs_and_actor, target_s=30.0, nodes=True),
    Nemesis(name="Valkey killed", strike=kill_valkey),
    Nemesis(name="Valkey flushed", strike=flush_valkey),
    Nemesis(name="Valkey delayed", strike=delay_valkey),
    Nemesis(name="Valkey cut off", strike=cut_valkey),
    Nemesis(name="Valkey silent", strike=hold_valkey),
    POSTGRES,
    Nemesis(name="PostgreSQL's disk full", strike=fill_disk, target_s=3.0, postgres=True),
    TERMINATED,
    SWALLOWED,
    Nemesis(name="PostgreSQL delayed", strike=delay_postgres, postgres=True),
    Nemesis(name="PostgreSQL cut off", strike=cut_postgres, postgres=True),
    Nemesis(name="PostgreSQL silent", strike=hold_postgres, postgres=True),
    Nemesis(name="calendars placed anew", strike=place_anew),
    Nemesis(name="clocks of the actors step", strike=step_clocks, target_s=3.0),
)
SHORT = (ACTOR, NOTIFIER, TERMINATED, SWALLOWED, POSTGRES)


async def _place(cluster: Cluster, *, dedicated: bool, actors: int) -> None:
    database = open_database(cluster.direct_url, pool_max=1)
    try:
        async with UnitOfWork(database, Vault(cluster.settings.master_key_bytes())) as work:
            await Placements(work.connection).put(dedicated=dedicated, actors=actors)
    except DatabaseUnavailable:
        pass  # Another fault is about.
    finally:
        await database.dispose()


async def _answers(cluster: Cluster) -> None:
    """PostgreSQL, which puts itself in order after a crash, or is started again if it has given up."""
    give_up_at = time.monotonic() + STARTED_S
    while time.monotonic() < give_up_at:
        if cluster.postgres.exit_code() is not None:
            await cluster.postgres.restart()
        with suppress(psycopg.OperationalError):
            await cluster.administer("CHECKPOINT")
            return
        await asyncio.sleep(0.05)


async def _delayed(scene: Scene, name: str) -> bool:
    proxy = getattr(scene.cluster, name)
    proxy.delay_s = DELAY_S
    try:
        await asyncio.sleep(AWAY_S)
    finally:
        proxy.delay_s = 0.0
    scene.recovery.restart()
    return True


async def _held(scene: Scene, name: str) -> bool:
    proxy = getattr(scene.cluster, name)
    proxy.hold()
    try:
        await asyncio.sleep(2 * AWAY_S)
    finally:
        proxy.release()
    scene.recovery.restart()
    return True


async def _populated(scene: Scene) -> RayNode | None:
    """A node with calendars, once there is one and some other remains."""
    give_up_at = time.monotonic() + FOUND_S
    while time.monotonic() < give_up_at:
        nodes = [node for node in scene.cluster.nodes if node.exit_code() is None]
        populated = [node for node in nodes if await asyncio.to_thread(node.calendar_actors)]
        if populated and len(nodes) > 1:
            return scene.dice.choice(populated)
        await asyncio.sleep(0.1)
    return None


def _signal(scene: Scene, processes: Iterable[psutil.Process], number: signal.Signals) -> bool:
    """Strike: time counts from now on."""
    struck = False
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
            struck = True
    scene.recovery.restart()
    return struck


def _parent(process: psutil.Process) -> int:
    """The parent's pid; its own where it has ended since it was found."""
    with suppress(psutil.NoSuchProcess):
        return process.ppid()
    return process.pid


def _runs(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False
