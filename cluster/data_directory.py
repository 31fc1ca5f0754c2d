"""The data directory of ``zapis up``: its lock, the secrets it makes, the ports it keeps, and where what runs is found.

lock            held for as long as `up` runs; holds its pid
secrets.json    0600  passwords that were made here
master.key      0600  the key over all personal data: lose it and that data is gone
ports.json            the port each server was given, so that it is the same at the next start
runtime.json    0600  what is running now, for `zapis verify` and its like in another shell
postgres/ valkey/ ray/ log/
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import secrets
import socket
import string
import time
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.settings import OperatorError, reason_of
from persistence.sealed import KEY_BYTES

LOG_BYTES_MAX = 10 << 20
LOOPBACK = "127.0.0.1"
LOCK_ATTEMPTS = 6
PASSWORD_LENGTH = 20
PASSWORD_CLASSES = (string.ascii_lowercase, string.ascii_uppercase, string.digits, "-_.")


class DataDirectoryError(OperatorError):
    """The directory cannot be used; the message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """Where the servers of a running `up` are, with their passwords."""

    pid: int
    url: str
    settings: dict[str, str]
    """By name, as ``database_url``."""
    environment: dict[str, str]
    """What a process needs in its environment to speak to that Ray."""


class DataDirectory:
    """One directory; everything in it is made on first use.

    Raises:
        DataDirectoryError: it cannot be made or written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock: int | None = None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.path = self.path.resolve()
            (self.path / "log").mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise DataDirectoryError(f"the data directory {path}: {reason_of(error)}") from None

    def lock(self) -> None:
        """Take the directory for this process until ``unlock`` or its end.

        Raises:
            DataDirectoryError: another process has it, or it is another user's.
        """
        with self._writing("lock") as path:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        for attempt in range(LOCK_ATTEMPTS):  # `read_runtime` holds it for an instant, so once is not enough
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt + 1 == LOCK_ATTEMPTS:
                    holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "?"
                    os.close(descriptor)
                    raise DataDirectoryError(f"the data directory {self.path} is in use by process {holder}") from None
                time.sleep(0.05)
        self._lock = descriptor
        with self._writing("lock"):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)

    def unlock(self) -> None:
        """Let the directory go."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def recall(self, name: str) -> str | None:
        """A secret that was kept here, or None."""
        return self._secrets().get(name)

    def keep(self, name: str, value: str) -> None:
        """Keep a secret across starts."""
        self._write("secrets.json", self._secrets() | {name: value})

    def forget(self, name: str) -> None:
        """Keep that secret no longer."""
        self._write("secrets.json", {other: value for other, value in self._secrets().items() if other != name})

    def secret(self, name: str) -> str:
        """The secret of that name; made on first use."""
        value = self.recall(name)
        if value is None:
            value = secrets.token_urlsafe(24)
            self.keep(name, value)
        return value

    def master_key_file(self) -> Path:
        """The file with the master key; made on first use, never replaced."""
        with self._writing("master.key") as path:
            if not path.exists():
                write_private(path, base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode() + "\n")
        return path

    def port(self, name: str) -> int:
        """A free port on loopback: the one this name had the last time, unless someone else has it now."""
        ports: dict[str, int] = self._read("ports.json")
        port = ports.get(name)
        if port is None or not is_port_free(port):
            port = free_port(avoid=set(ports.values()))
            self._write("ports.json", ports | {name: port})
        return port

    def log(self, name: str) -> Path:
        """Where a server's output goes; past 10 MiB the old one is put aside, and the one before it dropped."""
        path = self.path / "log" / f"{name}.log"
        if path.exists() and path.stat().st_size > LOG_BYTES_MAX:
            path.replace(path.with_suffix(".log.1"))
        return path

    def write_runtime(self, runtime: Runtime) -> None:
        """Tell other processes where everything is."""
        self._write("runtime.json", asdict(runtime))

    def forget_runtime(self) -> None:
        """Nothing runs any more."""
        (self.path / "runtime.json").unlink(missing_ok=True)

    def _secrets(self) -> dict[str, str]:
        return {name: str(value) for name, value in self._read("secrets.json").items()}

    def _read(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise DataDirectoryError(f"{path} cannot be read: {error}") from None
        if not isinstance(content, dict):
            raise DataDirectoryError(f"{path} should hold a JSON object")
        return content

    def _write(self, name: str, content: Mapping[str, object]) -> None:
        with self._writing(name) as path:
            write_private(path, json.dumps(content, indent=1) + "\n")

    @contextmanager
    def _writing(self, name: str) -> Iterator[Path]:
        path = self.path / name
        try:
            yield path
        except OSError as error:
            raise DataDirectoryError(f"{path} cannot be written: {reason_of(error)}") from None


def read_runtime(data_dir: Path) -> Runtime | None:
    """What runs on that directory now, or None."""
    try:
        content = json.loads((data_dir / "runtime.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return Runtime(**content) if _is_locked(data_dir) else None


def write_private(path: Path, text: str) -> None:
    """Replace a file at once by one that only its owner can read."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def make_password() -> str:
    """A password that passes zapis's own rules."""
    alphabet = "".join(PASSWORD_CLASSES)
    while True:
        password = "".join(secrets.choice(alphabet) for _ in range(PASSWORD_LENGTH))
        if all(set(password) & set(wanted) for wanted in PASSWORD_CLASSES):
            return password


def free_port(*, avoid: Container[int] = ()) -> int:
    """A port on loopback that nobody has now."""
    while True:
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            port = int(probe.getsockname()[1])
        if port not in avoid:
            return port


def is_port_free(port: int) -> bool:
    """Whether a server could listen on that port of loopback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def _is_locked(data_dir: Path) -> bool:
    try:
        descriptor = os.open(data_dir / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
