"""The child processes of ``zapis up``: started so that they end with it, stopped in order, and found when left over."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

from cluster.settings import OperatorError, reason_of

UNPRIVILEGED = 65534
"""The user (nobody) and group that servers get when zapis is started by root."""
MARK = "_ZAPIS_CHILD"
"""The environment variable by which the processes of a data directory are known: ``<data directory>#<name>``."""
POLL_S = 0.02
LAUNCHER = Path(__file__).with_name("launch.py")
INHERITED = (
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "VIRTUAL_ENV",
    "SSL_CERT_FILE",
)


class StartFailed(OperatorError):
    """A server cannot be started; the message says why."""


@contextmanager
def starting(title: str) -> Iterator[None]:
    """What the operating system does not allow in the block (a full disk, no room for a process) is ``StartFailed``."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise StartFailed(f"{title} cannot be started: {reason_of(error)}{where}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What to run, and how to end it."""

    name: str
    command: Sequence[str]
    directory: Path
    """Where it runs."""
    owner: Path
    """The data directory it belongs to."""
    environment: Mapping[str, str] = field(default_factory=dict)
    log: Path | None = None
    """Where its output goes; without one, to our standard error."""
    unprivileged: bool = False
    """Started by root, it runs as nobody."""
    stop_signal: signal.Signals = signal.SIGTERM
    descriptors: tuple[int, ...] = ()
    """What it inherits besides its standard streams."""


class Child:
    """A running program; it starts with the object."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.started_at = time.monotonic()
        user = UNPRIVILEGED if program.unprivileged and os.geteuid() == 0 else 0
        head = [sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid()), str(user), str(int(program.stop_signal))]
        output: IO[bytes] | int = program.log.open("ab") if program.log is not None else sys.stderr.fileno()
        try:
            self._process = subprocess.Popen(
                [*head, *program.command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=program.directory,
                env=inherited_environment() | dict(program.environment) | {MARK: mark(program.owner, program.name)},
                pass_fds=program.descriptors,
                start_new_session=True,
            )
        finally:
            if not isinstance(output, int):
                output.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    async def wait(self) -> int:
        """Its exit code, once it has ended."""
        while (code := self._process.poll()) is None:
            await asyncio.sleep(POLL_S)
        return code

    async def stop(self, deadline_s: float) -> None:
        """Ask it to end; kill it after ``deadline_s``. It has ended when this returns."""
        if self._process.poll() is None:
            self._process.send_signal(self.program.stop_signal)
            try:
                async with asyncio.timeout(deadline_s):
                    await self.wait()
            except TimeoutError:
                self.kill()
                await self.wait()

    def kill(self) -> None:
        """End it now, whatever it is doing."""
        self._process.kill()


def inherited_environment() -> dict[str, str]:
    """What a child gets of our environment: nothing that may be secret or that would change what it does."""
    return {name: os.environ[name] for name in INHERITED if name in os.environ}


def mark(owner: Path, name: str) -> str:
    """The value of ``MARK`` for a child of that name."""
    return f"{owner}#{name}"


def left_over(owner: Path, name: str = "") -> list[psutil.Process]:
    """The processes of a data directory (of one child and its tree, with a ``name``), whoever their parent is now.

    They are known by their inherited environment, and PostgreSQL's, which writes over its own, by the directory they
    run in: that of the cluster.
    """
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid not in own and _belongs(process, owner, name):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


async def end_left_over(owner: Path, name: str = "", *, deadline_s: float = 10.0) -> int:
    """End what ``left_over`` finds, gently first; returns how many there were. None is left when this returns."""
    processes = left_over(owner, name)
    for process in processes:
        _send(process)
    give_up_at = time.monotonic() + deadline_s
    while remaining := left_over(owner, name):
        if time.monotonic() > give_up_at:
            for process in remaining:
                _send(process, signal.SIGKILL)
        await asyncio.sleep(POLL_S)
    return len(processes)


def _belongs(process: psutil.Process, owner: Path, name: str) -> bool:
    if process.status() == psutil.STATUS_ZOMBIE:
        return False
    value = process.environ().get(MARK, "")
    if value == mark(owner, name) if name else value.startswith(mark(owner, "")):
        return True
    return (
        name in ("", "postgres")
        and process.name() == "postgres"
        and Path(process.cwd()).is_relative_to(owner / "postgres")
    )


def _send(process: psutil.Process, number: signal.Signals | None = None) -> None:
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        process.send_signal(number or (signal.SIGINT if process.name() == "postgres" else signal.SIGTERM))
