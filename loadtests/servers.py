"""Servers of its own for a measurement: PostgreSQL, Valkey and Ray as `zapis up` brings them, and web servers on them.

Everything is on loopback, in a temporary directory, and gone when the block ends, also by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import psycopg
from psycopg import sql

from cluster.data_directory import LOOPBACK, DataDirectory, free_port
from cluster.embedded import EmbeddedPostgres, EmbeddedRay, EmbeddedServer, EmbeddedValkey
from cluster.processes import Child, Program, left_over
from cluster.serve import PROTOCOL
from cluster.settings import PREFIX, Settings, variable
from persistence.database import migrate

REPOSITORY = Path(__file__).parent.parent
READY_TIMEOUT_S = 60.0
TOKEN_TTL_S = 24 * 3600

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class WebServer:
    """A running web server."""

    url: str
    pid: int
    ready_after_s: float
    """From its start to its first good answer."""


class Servers:
    """The servers that a measurement stands on. ``running_servers`` makes and ends them."""

    def __init__(self, data: DataDirectory) -> None:
        self.data = data
        self.postgres = EmbeddedPostgres(data)
        self.valkey = EmbeddedValkey(data)
        self.ray = EmbeddedRay(data)
        self._all: tuple[EmbeddedServer, ...] = (self.postgres, self.valkey, self.ray)

    async def start(self) -> None:
        """Returns when all answer."""
        await asyncio.gather(*(server.start() for server in self._all))

    async def stop(self) -> None:
        """Nothing of them runs when this returns."""
        await asyncio.gather(*(server.stop() for server in self._all))

    async def create_database(self, name: str) -> str:
        """A new database with the newest schema; returns its URL."""
        async with await psycopg.AsyncConnection.connect(self.postgres.superuser_url, autocommit=True) as connection:
            await connection.execute(sql.SQL("CREATE DATABASE {} OWNER zapis").format(sql.Identifier(name)))
        url = self.postgres.url_of(name)
        await migrate(url)
        return url

    async def checkpoint(self) -> None:
        """Have what was loaded on disk, so that writing it is no part of what is measured next."""
        async with await psycopg.AsyncConnection.connect(self.postgres.superuser_url, autocommit=True) as connection:
            await connection.execute("CHECKPOINT")

    def settings(self, database_url: str, **given: object) -> Settings:
        """Settings over these servers, without limits on requests and visits; a Ray namespace for each database."""
        settings: dict[str, Any] = {
            "database_url": database_url,
            "redis_url": self.valkey.url,
            "ray_address": self.ray.url,
            "ray_namespace": database_url.rpartition("/")[2],
            "master_key_file": self.data.master_key_file(),
            "rate_limit": 0,
            "live_appointments_max": 0,
            "horizon_days": 0,
            "access_token_ttl_s": TOKEN_TTL_S,
            "log_level": "warning",
        }
        return Settings(**settings | given)

    @asynccontextmanager
    async def zapis(self, settings: Settings, *, port: int | None = None) -> AsyncIterator[WebServer]:
        """This project's API process, for as long as the block lasts; without a ``port``, on a free one."""
        arguments = ("-m", "cluster.cli", "api")
        async with self._web_server("zapis", arguments, settings, probe="/readyz", port=port) as server:
            yield server

    @asynccontextmanager
    async def peer(self, application: str, settings: Settings) -> AsyncIterator[WebServer]:
        """An application of ``loadtests.peers`` under uvicorn as we run it, for as long as the block lasts."""
        arguments = ("-m", "uvicorn", application, "--factory", "--loop", "uvloop", "--http", PROTOCOL)
        quiet = ("--no-access-log", "--log-level", "warning", "--no-server-header", "--host", LOOPBACK)
        async with self._web_server("peer", (*arguments, *quiet), settings, probe="/readyz") as server:
            yield server

    @asynccontextmanager
    async def _web_server(
        self, name: str, arguments: Sequence[str], settings: Settings, *, probe: str, port: int | None = None
    ) -> AsyncIterator[WebServer]:
        port = port or free_port()
        began = time.monotonic()
        child = Child(
            Program(
                name=name,
                owner=self.data.path,
                directory=REPOSITORY,
                command=[sys.executable, *arguments, "--port", str(port)],
                environment=self.ray.client_environment | environment(settings),
                log=self.data.log(name),
            )
        )
        try:
            url = f"http://{LOOPBACK}:{port}"
            await self._wait_until_ready(name, child, url + probe)
            yield WebServer(url=url, pid=child.pid, ready_after_s=time.monotonic() - began)
        finally:
            await child.stop(20.0)

    async def _wait_until_ready(self, name: str, child: Child, url: str) -> None:
        give_up_at = time.monotonic() + READY_TIMEOUT_S
        async with httpx.AsyncClient(timeout=5.0) as client:
            while True:
                with suppress(httpx.TransportError):
                    if (await client.get(url)).status_code == 200:
                        return
                if child.exit_code() is not None or time.monotonic() > give_up_at:
                    raise RuntimeError(f"{name} did not start: {_tail(self.data.log(name))}")
                await asyncio.sleep(0.02)


@asynccontextmanager
async def running_servers(name: str) -> AsyncIterator[Servers]:
    """Servers for as long as the block lasts; nothing of them is left behind."""
    # Not below a directory that the unprivileged user of PostgreSQL may not enter.
    path = Path(tempfile.mkdtemp(prefix=f"zapis-{name}-", dir="/tmp"))
    path.chmod(0o755)
    servers = Servers(DataDirectory(path))
    try:
        await servers.start()
        yield servers
    finally:
        await servers.stop()
        shutil.rmtree(path, ignore_errors=True)


def run(main: Coroutine[Any, Any, int]) -> int:
    """Run a measurement to its end, or to Ctrl-C or SIGTERM, which end it in order."""
    # Whoever measures has the developer's settings nowhere in the way.
    for variable_name in [each for each in os.environ if each.startswith((PREFIX, "RAY_"))]:
        del os.environ[variable_name]

    async def ending_in_order() -> int:
        task = asyncio.ensure_future(main)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            # Once: the second signal must not cut short what the first one has begun.
            loop.add_signal_handler(number, lambda: task.cancelling() or task.cancel())
        try:
            return await task
        except asyncio.CancelledError:
            print("stopped", file=sys.stderr)
            return 130

    return asyncio.run(ending_in_order())


def environment(settings: Settings) -> dict[str, str]:
    """The environment variables that give a process these settings."""
    given = settings.model_dump(mode="json", exclude_unset=True)
    return {variable(name): ",".join(value) if isinstance(value, list) else str(value) for name, value in given.items()}


class CpuClock:
    """The CPU seconds of groups of processes: of those that there are when it is made and are still there when it is
    asked, and their threads."""

    def __init__(self, groups: Mapping[str, Sequence[psutil.Process]]) -> None:
        self._groups = groups
        self._began = self._read()

    def used(self) -> dict[str, float]:
        """Seconds since the start, by group."""
        began, now = self._began, self._read()
        return {
            name: sum(now[process] - began[process] for process in processes if process in began and process in now)
            for name, processes in self._groups.items()
        }

    def _read(self) -> dict[psutil.Process, float]:
        seconds = {}
        for processes in self._groups.values():
            for process in processes:
                with _unless_gone():
                    times = process.cpu_times()
                    seconds[process] = times.user + times.system
        return seconds


def processes_of(servers: Servers, web_server: WebServer) -> dict[str, list[psutil.Process]]:
    """The processes that take part in answering, by what they do."""
    groups: dict[str, list[psutil.Process]] = {"api": [psutil.Process(web_server.pid)], "actors": [], "ray": []}
    groups["postgres"] = left_over(servers.data.path, servers.postgres.name)
    for process in left_over(servers.data.path, servers.ray.name):
        with _unless_gone():
            groups["actors" if process.cmdline()[0].startswith("ray::") else "ray"].append(process)
    return groups


@contextmanager
def _unless_gone() -> Iterator[None]:
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        yield


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:].strip() if log.exists() else "it said nothing"
