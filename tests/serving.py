"""zapis as processes: an API on the servers of the test run, or a whole ``zapis up``."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil

from cluster.data_directory import LOOPBACK, free_port
from cluster.processes import left_over
from cluster.serve import listen
from cluster.settings import Settings, variable

READY_DEADLINE_S = 90.0
STOP_DEADLINE_S = 60.0
COMMAND = (sys.executable, "-P", "-m", "cluster.cli")
QUIET = {"ZAPIS_LOG_FORMAT": "json", "NO_PROXY": "*", "no_proxy": "*"}


class Serving:
    """A command that serves at ``url``; what it says goes to the file ``output``."""

    def __init__(
        self,
        arguments: Sequence[str],
        url: str,
        *,
        output: Path,
        environment: Mapping[str, str],
        listener: socket.socket | None = None,
    ) -> None:
        self.url = url
        self.output = output
        with output.open("ab") as file:
            self.process = subprocess.Popen(
                [*COMMAND, *arguments],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | QUIET | dict(environment),
                pass_fds=() if listener is None else (listener.fileno(),),
            )

    def said(self) -> str:
        """All that it has said."""
        return self.output.read_text(encoding="utf-8")

    def events(self, name: str) -> list[dict[str, object]]:
        """What it has logged under that name."""
        lines = [json.loads(line) for line in self.said().splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("event") == name]

    def wait_until(self, condition: Callable[[], object], deadline_s: float = READY_DEADLINE_S) -> None:
        """Return once the condition holds; it has to run until then."""
        give_up_at = time.monotonic() + deadline_s
        while not condition():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < give_up_at, self.said()
            time.sleep(0.05)

    def ready(self) -> bool:
        """Whether it says that it can serve."""
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def terminate(self) -> int:
        """Ask it to end; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_DEADLINE_S)

    def kill(self) -> None:
        """End it, whatever it is doing."""
        self.process.kill()
        self.process.wait()


@contextmanager
def serving_api(settings: Settings, output: Path) -> Iterator[Serving]:
    """``zapis api`` over these settings, ready; its calendar actors end with it."""
    environment = environment_of(settings)
    with listen(LOOPBACK, 0) as listener:
        url = f"http://{LOOPBACK}:{listener.getsockname()[1]}"
        arguments = ["api", "--descriptor", str(listener.fileno())]
        server = Serving(arguments, url, output=output, environment=environment, listener=listener)
    try:
        server.wait_until(server.ready)
        yield server
        # uvicorn ends in order, then as the signal would have ended it.
        assert server.terminate() in (0, -signal.SIGTERM), server.said()
    finally:
        server.kill()
        subprocess.run([*COMMAND, "drain"], env=os.environ | QUIET | environment, check=False, capture_output=True)


class Up(Serving):
    """``zapis up`` on a data directory."""

    def __init__(self, data_dir: Path, *arguments: str, **environment: str) -> None:
        self.data_dir = data_dir
        port = free_port()
        super().__init__(
            ["up", "--data-dir", str(data_dir), "--port", str(port), *arguments],
            f"http://{LOOPBACK}:{port}",
            output=data_dir.with_suffix(".out"),
            environment=environment,
        )

    def wait_ready(self) -> None:
        """Return once it says that it is."""
        self.wait_until(lambda: f"ready {self.url}\n" in self.said())

    def processes(self, name: str = "") -> list[psutil.Process]:
        """The processes that it has started, all or those of one of its servers."""
        return left_over(self.data_dir.resolve(), name)

    def zapis(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another command, beside it."""
        command = [*COMMAND, *arguments, "--data-dir", str(self.data_dir)]
        return subprocess.run(command, env=os.environ | QUIET, check=False, capture_output=True, text=True)

    def kill(self) -> None:
        super().kill()
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()


def environment_of(settings: Settings) -> dict[str, str]:
    """These settings as environment variables."""
    given = settings.model_dump(exclude_unset=True)
    return {
        variable(name): ",".join(value) if isinstance(value, tuple) else str(value)
        for name, value in given.items()
        if value is not None
    }
