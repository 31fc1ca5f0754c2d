"""All that a campaign of faults is made against: real servers as processes, and the proxies between them."""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import psycopg
from psycopg import sql

from cluster.data_directory import LOOPBACK, DataDirectory, free_port
from cluster.embedded import EmbeddedPostgres, EmbeddedRay, EmbeddedValkey, Server
from cluster.processes import left_over
from cluster.settings import Settings
from persistence.database import migrate
from tests.faults.clock import ActorsClock
from tests.faults.disk import SmallDisk
from tests.faults.mutants import Mutant
from tests.faults.nodes import (
    CALENDAR_ACTOR,
    NOTIFIER,
    REPOSITORY,
    ApiProcess,
    OnlyNode,
    RayHead,
    RayNode,
    StateValkey,
    actors,
    keep_running,
)
from tests.faults.postbox import Postbox
from tests.faults.proxy import Proxy
from tests.serving import environment_of

DATABASE = "zapis"
NODE_CPUS = 2
NODES = 2
APIS = 2


class Cluster:
    """PostgreSQL, Valkey, Ray on one node or several, API processes. ``running_cluster`` makes and ends it.

    Settings name the proxies; ``direct_url`` goes past them, for whoever looks from outside.
    """

    def __init__(
        self, data: DataDirectory, *, nodes: int, apis: int, calendar_actors: int, mutant: Mutant | None = None
    ) -> None:
        self.data = data
        self.clock = ActorsClock(data.path)
        python_path = str(REPOSITORY)
        if mutant is not None:
            python_path = f"{mutant.write(data.path / 'mutant')}:{python_path}"
        self._python_path = python_path
        self.postgres = EmbeddedPostgres(data)
        self.valkey = EmbeddedValkey(data)
        self.state = StateValkey(data)
        self.head: EmbeddedRay = (
            RayHead(data, self.state, python_path, self.clock) if nodes else OnlyNode(data, python_path, self.clock)
        )
        self.nodes: list[RayNode] = []
        self.apis: list[ApiProcess] = []
        self.calendar_actors = calendar_actors
        self.disk = SmallDisk(self.postgres._home)
        """That of PostgreSQL, where there are several nodes and it can be had."""
        self.postgres_proxy = Proxy(0)
        self.valkey_proxy = Proxy(0)
        self.postbox = Postbox()
        """Where all mail arrives."""
        self.restarts: Counter[str] = Counter()
        """How often what ended was started again."""
        self._nodes = nodes
        self._apis = apis
        self._joined = 0
        self._door: RayNode | None = None
        self._down: set[Server] = set()
        self._kept: dict[Server, asyncio.Task[None]] = {}

    @property
    def direct_url(self) -> str:
        """The database, not through the proxy."""
        return self.postgres.url_of(DATABASE)

    @property
    def settings(self) -> Settings:
        """What the API processes run with: no limit that anyone reaches, holds that soon end."""
        redis_url = self.valkey.url.replace(f":{self.valkey.port}/", f":{self.valkey_proxy.port}/")
        return Settings(
            database_url=self.direct_url.replace(f":{self.postgres.port}/", f":{self.postgres_proxy.port}/"),
            redis_url=redis_url,
            ray_address=self.head.url,
            ray_namespace="faults",
            master_key_file=self.data.master_key_file(),
            rate_limit=1600,  # Nobody reaches it; a sixteenth of it is reached, and counted in Valkey.
            live_appointments_max=0,
            holds_max=0,
            moves_max=0,
            hold_ttl_s=3,
            access_token_ttl_s=24 * 3600,
            calendar_actors=self.calendar_actors,
            log_format="json",
            smtp_url=f"smtp://{LOOPBACK}:{self.postbox.port}",
            notifications_a_day_max=0,
        )

    async def start(self) -> None:
        """Returns when all of it answers."""
        await asyncio.gather(self._start_stores(), self._start_ray(), self.postbox.start())
        node = self._door
        environment = self.head.client_environment | environment_of(self.settings)
        for number in range(self._apis):
            self.apis.append(ApiProcess(self.data, f"api{number}", free_port(), environment, node, self._python_path))
        await asyncio.gather(*(api.restart() for api in self.apis))
        for server in (*self.apis, *self.nodes, *((self.head, self._door) if self._door else ())):
            self.keep(server)

    async def _start_stores(self) -> None:
        if self._nodes:
            self.disk.mount()
        await asyncio.gather(self.postgres.start(), self.valkey.start())
        await migrate(self.direct_url)
        for proxy, server in ((self.postgres_proxy, self.postgres), (self.valkey_proxy, self.valkey)):
            proxy.upstream_port = server.port
            await proxy.start()

    async def _start_ray(self) -> None:
        await asyncio.to_thread(self.clock.prepare)
        if self._nodes:
            await self.state.start()
        await self.head.start()
        if self._nodes:
            # The API's own node: a host that serves and has no room for calendars.
            self._door = RayNode(self.data, "door", self.head, cpus=0)
            await asyncio.gather(self._door.restart(), *(self.join() for _ in range(self._nodes)))

    async def stop(self) -> None:
        """Nothing of it runs when this returns."""
        for task in self._kept.values():
            task.cancel()
        await asyncio.gather(*self._kept.values(), return_exceptions=True)
        doors = [self._door] if self._door else []
        for proxy in (self.postgres_proxy, self.valkey_proxy):
            proxy.release()
        await asyncio.gather(*(server.stop() for server in self.apis))
        await asyncio.gather(*(server.stop() for server in (*self.nodes, *doors)))
        await self.head.stop()
        for proxy in (self.postgres_proxy, self.valkey_proxy):
            await proxy.stop()
        await asyncio.gather(self.state.stop(), self.valkey.stop(), self.postgres.stop(), self.postbox.stop())
        self.disk.unmount()

    def keep(self, server: Server) -> None:
        """Have it started again whenever it ends."""
        self._kept[server] = asyncio.create_task(keep_running(server, self._ended), name=f"keep {server.name}")

    def _ended(self, server: Server, ended: bool) -> None:
        if ended:
            self.restarts[server.name] += 1
            self._down.add(server)
        else:
            self._down.discard(server)

    @property
    def whole(self) -> bool:
        """Whether all that is kept running runs."""
        return not self._down

    async def join(self) -> RayNode:
        """Another node with room for calendars."""
        self._joined += 1
        node = RayNode(self.data, f"node{self._joined}", self.head, cpus=NODE_CPUS)
        await node.restart()
        self.nodes.append(node)
        return node

    async def leave(self, node: RayNode) -> None:
        """A node ends in order and does not come back."""
        self.nodes.remove(node)
        if (task := self._kept.pop(node, None)) is not None:
            task.cancel()
        self._down.discard(node)
        await node.stop()

    def calendar_actor_processes(self) -> list[psutil.Process]:
        """The processes of all calendar actors."""
        return self._processes(CALENDAR_ACTOR)

    def notifier_processes(self) -> list[psutil.Process]:
        """The processes of all notifiers."""
        return self._processes(NOTIFIER)

    def _processes(self, kind: re.Pattern[str]) -> list[psutil.Process]:
        owners: list[Server] = [*self.nodes] or [self.head]
        return [each for owner in owners for each in actors(kind, left_over(self.data.path, owner.name))]

    async def administer(self, statement: str, *arguments: object) -> list[tuple[object, ...]]:
        """As the database's superuser, past the proxy.

        Raises:
            psycopg.OperationalError: it is away.
        """
        url = self.postgres.superuser_url
        async with await psycopg.AsyncConnection.connect(url, autocommit=True, connect_timeout=2) as connection:
            cursor = await connection.execute(sql.SQL(statement), arguments or None)
            return list(await cursor.fetchall()) if cursor.description else []


@asynccontextmanager
async def running_cluster(
    *, nodes: int = NODES, apis: int = APIS, calendar_actors: int = 2, mutant: Mutant | None = None
) -> AsyncIterator[Cluster]:
    """All of it for as long as the block lasts; nothing of it is left behind. Without nodes, the head does it all."""
    # Not below a directory that the unprivileged user of PostgreSQL may not enter.
    path = Path(tempfile.mkdtemp(prefix="zapis-faults-", dir="/tmp"))
    path.chmod(0o755)
    cluster = Cluster(DataDirectory(path), nodes=nodes, apis=apis, calendar_actors=calendar_actors, mutant=mutant)
    try:
        await cluster.start()
        yield cluster
    finally:
        await cluster.stop()
        shutil.rmtree(path, ignore_errors=True)
