"""A Ray cluster of several nodes on this machine, and API processes that are drivers of one of them.

The head runs no calendars: it keeps the cluster's state in a Valkey of its own, so it may die and be started again
while calendars go on. Every other node is a raylet with a directory of its own; a node that is dead or stopped is found
within seconds.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import httpx
import psutil

from cluster.data_directory import LOOPBACK, DataDirectory
from cluster.embedded import EmbeddedRay, EmbeddedValkey, Server
from cluster.processes import Program, StartFailed, left_over
from tests.faults.clock import ActorsClock

REPOSITORY = Path(__file__).parents[2]
OBJECT_STORE_BYTES = 80 << 20
CALENDAR_ACTOR = re.compile(r"ray::RayCalendarActor")
NOTIFIER = re.compile(r"ray::RayNotifier")
HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "700",
    "RAY_health_check_failure_threshold": "3",
}
"""A dead node is found after 1.5 s, one that is silent after 3.6 s."""


class StateValkey(EmbeddedValkey):
    """Where the head keeps what it knows: not the Valkey of the API, which may be lost at any time."""

    name = "state"

    @property
    def _home(self) -> Path:
        return self.data.path / "state"


class OnlyNode(EmbeddedRay):
    """A node that is all there is; its workers import from ``python_path`` first, and go by a clock of their own."""

    def __init__(self, data: DataDirectory, python_path: str, clock: ActorsClock) -> None:
        super().__init__(data)
        self._python_path = python_path
        self._clock = clock

    @property
    def node_environment(self) -> dict[str, str]:
        return super().node_environment | {"PYTHONPATH": self._python_path} | self._clock.environment


class RayHead(OnlyNode):
    """The head: the cluster's state and no room for calendars."""

    def __init__(self, data: DataDirectory, state: StateValkey, python_path: str, clock: ActorsClock) -> None:
        super().__init__(data, python_path, clock)
        self._state = state

    @property
    def node_environment(self) -> dict[str, str]:
        return super().node_environment | HEALTH

    def _program(self) -> Program:
        program = super()._program()
        options = ("--num-cpus=0", f"--redis-password={self.data.secret('valkey')}", *_PORTS)
        return replace(
            program,
            command=[*program.command, *options],  # What is named twice is what it is named last.
            environment={**program.environment, "RAY_REDIS_ADDRESS": f"{LOOPBACK}:{self._state.port}"},
        )

    def gcs(self) -> psutil.Process | None:
        """The process that knows the cluster."""
        return next((each for each in left_over(self.data.path, self.name) if each.name() == "gcs_server"), None)


class RayNode(Server):
    """A further raylet, with its workers."""

    title = "A node of Ray"

    def __init__(self, data: DataDirectory, name: str, head: EmbeddedRay, *, cpus: int) -> None:
        super().__init__(data)
        self.name = name
        self._head = head
        self._cpus = cpus
        self.directory = Path(tempfile.mkdtemp(prefix=f"zapis-{name}-", dir="/tmp"))

    def _program(self) -> Program:
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(mode=0o700)
        return Program(
            name=self.name,
            owner=self.data.path,
            directory=self.data.path,
            command=[
                *(sys.executable, "-P", "-m", "tests.faults.start_node", "start", "--block"),
                f"--address={self._head.url}",
                f"--node-ip-address={LOOPBACK}",
                f"--num-cpus={self._cpus}",
                "--num-gpus=0",
                f"--object-store-memory={OBJECT_STORE_BYTES}",
                f"--temp-dir={self.directory}",
                "--disable-usage-stats",
                "--log-style=record",
                "--log-color=false",
                *_PORTS,
            ],
            environment=self._head.node_environment,
            log=self.data.log(self.name),
        )

    async def stop(self) -> None:
        await super().stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    async def _answers(self) -> bool:
        return (self.directory / "ray_current_cluster").exists()

    def processes(self) -> list[psutil.Process]:
        """All that runs on it."""
        return left_over(self.data.path, self.name)

    def raylet(self) -> psutil.Process | None:
        """The process that is the node."""
        return next((each for each in self.processes() if each.name() == "raylet"), None)

    def calendar_actors(self) -> list[psutil.Process]:
        """The calendar actors that run on it."""
        return actors(CALENDAR_ACTOR, self.processes())


class ApiProcess(Server):
    """``zapis api`` on a port of its own, a driver of the given node, or of the only one."""

    title = "The API"

    def __init__(
        self,
        data: DataDirectory,
        name: str,
        port: int,
        environment: Mapping[str, str],
        node: RayNode | None,
        python_path: str,
    ) -> None:
        super().__init__(data)
        self.name = name
        self.port = port
        self._environment = {**environment, "PYTHONPATH": python_path}
        self._node = node

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://{LOOPBACK}:{self.port}"

    def _program(self) -> Program:
        attached = "" if self._node is None else str(self._node.directory)
        return Program(
            name=self.name,
            owner=self.data.path,
            directory=REPOSITORY,
            command=[sys.executable, "-P", "-m", "tests.faults.attached", attached, "api", "--port", str(self.port)],
            environment=self._environment,
            log=self.data.log(self.name),
        )

    async def _answers(self) -> bool:
        with suppress(httpx.TransportError):
            async with httpx.AsyncClient(timeout=2.0, trust_env=False) as http:
                return (await http.get(f"{self.url}/readyz")).status_code == 200
        return False


def actors(kind: re.Pattern[str], processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those of the processes that are actors of a kind."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if kind.match(" ".join(process.cmdline())):
                found.append(process)
    return found


async def keep_running(server: Server, tell: Callable[[Server, bool], None], attempt_s: float = 30.0) -> None:
    """Start it again whenever it has ended, as whoever runs a cluster has it done; until cancelled.

    ``tell`` is told that it has ended (true), and that it answers again.
    """
    while True:
        await server.died()
        tell(server, True)
        await server.stop()
        await _start_again(server, attempt_s)
        tell(server, False)


async def _start_again(server: Server, attempt_s: float) -> None:
    while True:
        try:
            await server.restart(attempt_s)
        except StartFailed:
            await asyncio.sleep(0.2)  # What it needs may be away.
        else:
            return


_PORTS = ("--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0")
"""Any free ones: the nodes share one address."""
