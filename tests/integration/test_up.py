"""``zapis up`` as its users meet it: a command, its output, its signals, and what it leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest

from cluster.data_directory import free_port, read_runtime
from cluster.processes import MARK, left_over, mark

START_DEADLINE_S = 90.0
SECOND_START_S = 20.0
STOP_DEADLINE_S = 60.0

pytestmark = pytest.mark.timeout(240)


class Up:
    """One run of ``zapis up``."""

    def __init__(self, data_dir: Path, **environment: str) -> None:
        self.data_dir = data_dir
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.output = data_dir.with_suffix(".out")
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*zapis("up"), "--data-dir", str(data_dir), "--port", str(self.port)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"ZAPIS_LOG_FORMAT": "json"} | environment,
            )

    def said(self) -> str:
        return self.output.read_text(encoding="utf-8")

    def wait_ready(self) -> float:
        """Seconds until it said so."""
        began = time.monotonic()
        wait_for(lambda: f"ready {self.url}\n" in self.said(), START_DEADLINE_S, self)
        return time.monotonic() - began

    def signal(self, number: signal.Signals) -> int:
        """The exit code after that signal."""
        self.process.send_signal(number)
        return self.process.wait(STOP_DEADLINE_S)

    def processes(self, name: str) -> list[psutil.Process]:
        return left_over(self.data_dir.resolve(), name)

    def restarts(self, name: str) -> int:
        lines = [json.loads(line) for line in self.said().splitlines() if line.startswith("{")]
        return sum(line.get("event") == "server_restarted" and line["server"] == name for line in lines)

    def kill(self) -> None:
        """``kill -9`` of everything."""
        self.process.kill()
        for process in self.processes(""):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()

    def get(self, path: str) -> int:
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return int(answer.status)


def zapis(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "cluster.cli", *arguments]


def wait_for(condition: Callable[[], object], deadline_s: float, up: Up) -> None:
    give_up_at = time.monotonic() + deadline_s
    while not condition():
        assert up.process.poll() is None, up.said()
        assert time.monotonic() < give_up_at, up.said()
        time.sleep(0.05)


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="zapis-up-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def start(directory: Path) -> Iterator[Callable[..., Up]]:
    """Start one; it is ended with the test, however the test ends."""
    started: list[Up] = []

    def start(name: str, **environment: str) -> Up:
        started.append(Up(directory / name, **environment))
        return started[-1]

    yield start
    for up in started:
        up.kill()


@pytest.fixture(scope="module")
def running(directory: Path) -> Iterator[Up]:
    """One that runs for several tests, which leave it running."""
    up = Up(directory / "shared")
    try:
        up.wait_ready()
        yield up
    finally:
        up.kill()


def test_the_first_start_tells_how_to_log_in_and_where_the_docs_are(running: Up) -> None:
    assert f"docs   {running.url}/docs" in running.said()
    assert "login admin, password " in running.said()
    assert running.get("/docs") == 200
    assert running.get("/readyz") == 200


def test_the_directory_is_refused_to_a_second_one(running: Up) -> None:
    second = Up(running.data_dir)
    assert second.process.wait(10) == 1
    pid = running.process.pid
    assert second.said() == f"zapis: the data directory {running.data_dir} is in use by process {pid}\n"
    assert running.get("/readyz") == 200


def test_a_taken_port_is_named_before_anything_starts(directory: Path) -> None:
    stale = directory / "taken" / "runtime.json"
    stale.parent.mkdir()
    stale.write_text("{}")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        answer = subprocess.run(
            [*zapis("up"), "--data-dir", str(directory / "taken"), "--port", str(port)],
            capture_output=True,
            text=True,
            check=False,
        )
    assert answer.returncode == 1
    assert answer.stderr == f"zapis: cannot serve on 127.0.0.1:{port}: address already in use\n"
    assert answer.stdout == ""
    assert not stale.exists(), "what one that was killed had left is not believed"


def test_other_commands_find_what_runs(running: Up) -> None:
    for command in ("migrate", "verify", "status"):
        answer = subprocess.run(
            [*zapis(command), "--data-dir", str(running.data_dir)], capture_output=True, text=True, check=False
        )
        assert answer.returncode == 0, answer.stderr
        assert "Traceback" not in answer.stderr


def test_keys_are_rotated_beside_what_runs(running: Up) -> None:
    command = [*zapis("rotate-keys"), "--data-dir", str(running.data_dir)]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=False) for _ in range(2))
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.startswith("access tokens are signed by the new key ")
    assert second.stdout != first.stdout


def test_no_secret_is_on_a_command_line_or_in_a_log(running: Up) -> None:
    secrets = [value for value in (running.data_dir / "secrets.json").read_text().split('"') if len(value) >= 20]
    assert len(secrets) >= 4
    lines = [" ".join(process.cmdline()) for process in running.processes("")]
    logs = [path.read_text(errors="replace") for path in (running.data_dir / "log").iterdir()]
    assert not [secret for secret in secrets for text in (*lines, *logs) if secret in text]
    for name in ("secrets.json", "master.key", "runtime.json", "ray.token"):
        assert (running.data_dir / name).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["valkey", "postgres", "mail", "api", "ray"])
def test_what_dies_is_started_again(running: Up, name: str) -> None:
    # With Ray goes the API, which is its driver.
    expected = {server: running.restarts(server) + 1 for server in {name, "api" if name == "ray" else name}}
    (victim,) = [process for process in running.processes(name) if process.ppid() == running.process.pid]
    victim.kill()
    wait_for(lambda: all(running.restarts(server) >= n for server, n in expected.items()), START_DEADLINE_S, running)
    wait_for(lambda: answers(running), START_DEADLINE_S, running)


def answers(up: Up) -> bool:
    try:
        return up.get("/readyz") == 200
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_everything(start: Callable[..., Up], number: signal.Signals) -> None:
    up = start("signalled")
    up.wait_ready()
    assert up.signal(number) == 0
    assert up.processes("") == []
    assert read_runtime(up.data_dir) is None
    assert "Traceback" not in up.said()
    assert "calendar_actors_not_drained" not in up.said()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", up.port), 5).close()


def test_a_signal_during_the_start_stops_what_has_started(start: Callable[..., Up]) -> None:
    up = start("hasty")
    wait_for(lambda: up.processes("postgres") and up.processes("ray"), START_DEADLINE_S, up)
    assert up.signal(signal.SIGTERM) == 0
    assert up.processes("") == []


def test_killed_whole_it_starts_again_with_everything_kept(start: Callable[..., Up]) -> None:
    first = start("killed")
    first.wait_ready()
    runtime = read_runtime(first.data_dir)
    assert runtime is not None
    with psycopg.connect(runtime.settings["database_url"]) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    first.kill()

    second = start("killed")
    assert second.wait_ready() < SECOND_START_S
    runtime = read_runtime(second.data_dir)
    assert runtime is not None
    with psycopg.connect(runtime.settings["database_url"]) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
    assert "password in " in second.said()  # Not shown again.
    assert second.signal(signal.SIGTERM) == 0
    assert second.processes("") == []


def test_children_end_with_their_parent(start: Callable[..., Up]) -> None:
    up = start("orphans")
    up.wait_ready()
    up.process.kill()
    up.process.wait()
    give_up_at = time.monotonic() + STOP_DEADLINE_S
    while left := up.processes(""):
        assert time.monotonic() < give_up_at, left
        time.sleep(0.1)


def test_a_wrong_setting_is_one_line(directory: Path) -> None:
    for name, value, expected in [
        ("ZAPIS_PORT", "x", "zapis: ZAPIS_PORT: input should be a valid integer"),
        ("ZAPIS_PROT", "1", "zapis: ZAPIS_PROT: there is no such setting; did you mean ZAPIS_PORT?"),
        ("ZAPIS_MASTER_KEY_FILE", "/nowhere", "zapis: ZAPIS_MASTER_KEY_FILE: /nowhere: no such file"),
        ("ZAPIS_DATABASE_URL", "postgresql://u:secret@127.0.0.1:1/x", "zapis: ZAPIS_DATABASE_URL: connection failed"),
        ("ZAPIS_RAY_ADDRESS", "127.0.0.1:1", "zapis: ZAPIS_RAY_ADDRESS: 127.0.0.1:1: connection refused"),
    ]:
        answer = subprocess.run(
            [*zapis("up"), "--data-dir", str(directory / "wrong")],
            env=os.environ | {name: value},
            capture_output=True,
            text=True,
            check=False,
        )
        assert answer.returncode == 2
        assert answer.stderr.startswith(expected)
        assert answer.stderr.count("\n") == 1
        assert "secret" not in answer.stderr


def test_whoever_asks_is_not_left_over(directory: Path) -> None:
    script = "import sys, pathlib, cluster.processes as p; sys.exit(len(p.left_over(pathlib.Path(sys.argv[1]))))"
    nobodys = directory / "nobodys"
    environment = os.environ | {MARK: mark(nobodys, "test")}
    answer = subprocess.run([sys.executable, "-c", script, str(nobodys)], env=environment, check=False)
    assert answer.returncode == 0
