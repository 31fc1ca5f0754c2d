"""``zapis up``: everything on one machine, started in order, kept running, and stopped in order.

    starting   the data directory is locked and the port taken before anything starts; what an earlier start left is
               ended; then what no URL gives is started, all at once; then the schema is migrated, then the API serves
    ready      `ready http://…` is printed once /readyz says so and, with --demo, the clinic is loaded
    keeping    what dies is started again, on the same port, after a pause that doubles up to half a minute. The API
               is started again with Ray, of which it is a driver; the others it reconnects to by itself
    stopping   the API first, which lets requests in flight end; then the calendar actors, which commit what they have
               decided; then Ray, Valkey, PostgreSQL, the mail server. A second signal does not wait for requests

The API is a child process and gets its listening socket from here: while it is started again, connections wait
instead of being refused. Secrets reach children by environment or by file, never by command line. Should this process
be killed, the kernel tells its children (see ``launch``), and the next start ends what is left.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import AsyncExitStack
from pathlib import Path

import structlog

from cluster.data_directory import DataDirectory, Runtime, make_password
from cluster.embedded import EmbeddedMail, EmbeddedPostgres, EmbeddedRay, EmbeddedServer, EmbeddedValkey, Server
from cluster.processes import Child, Program, StartFailed, end_left_over
from cluster.serve import authority, listen
from cluster.settings import OperatorError, Settings, is_loopback, variable

PAUSE_MIN_S = 0.5
PAUSE_MAX_S = 30.0
STEADY_S = 60.0
"""What ran for so long is started again without a longer pause."""
DRAIN_START_S = 10.0
"""What it takes to start the command that drains the calendar actors."""
PROBE_TIMEOUT_S = 1.0
LOGIN_TIMEOUT_S = 10.0
DEMO = Path(__file__).with_name("demo.yaml")
TOLD = (
    "database_url",
    "redis_url",
    "ray_address",
    "smtp_url",
    "public_url",
    "master_key_file",
    "admin_login",
    "admin_password",
    "account_password",
)
"""The settings by which other commands find what runs here."""
COMMAND = (sys.executable, "-P", "-m", "cluster.cli")

log = structlog.get_logger()


def up(settings: Settings) -> None:
    """Returns when a signal has come and all has been stopped again.

    Raises:
        DataDirectoryError, PortTaken: before anything was started.
        StartFailed: what was started has been stopped.
    """
    os.umask(0o022)
    data = DataDirectory(settings.data_dir)
    data.lock()
    try:
        data.forget_runtime()  # Nobody is to be sent to where one that was killed has been.
        with listen(settings.host, settings.port) as listener:
            asyncio.run(_Up(settings, data, listener).run())
    finally:
        data.unlock()


class _Up:
    def __init__(self, settings: Settings, data: DataDirectory, listener: socket.socket) -> None:
        self.settings = settings
        self.data = data
        self.listener = listener
        self.port = int(listener.getsockname()[1])
        self.url = f"http://{authority(settings.host, self.port)}"
        self.postgres = EmbeddedPostgres(data) if settings.database_url is None else None
        self.valkey = EmbeddedValkey(data) if settings.redis_url is None else None
        self.ray = EmbeddedRay(data) if settings.ray_address is None else None
        self.mail = EmbeddedMail(data) if settings.smtp_url is None else None
        self.admin = _Password(data, "admin_password", settings.admin_password)
        self.accounts = _Password(data, "account_password", settings.account_password)
        self.api: _Api | None = None
        self._signalled = asyncio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)
        work = asyncio.ensure_future(self._work())
        signalled = asyncio.ensure_future(self._signalled.wait())
        try:
            await asyncio.wait({work, signalled}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        except BaseExceptionGroup as group:
            expected, bugs = group.split(OperatorError)
            if expected is None or bugs is not None:
                raise
            raise expected.exceptions[0] from None
        finally:
            signalled.cancel()
            work.cancel()
            await asyncio.wait({work})
            await self._stop()

    def _on_signal(self) -> None:
        if self._signalled.is_set() and self.api is not None:
            self.api.kill()
        self._signalled.set()

    async def _work(self) -> None:
        """Start everything, tell, and keep it running; ends only by failing to start."""
        if ended := await end_left_over(self.data.path):
            log.warning("left_over_ended", processes=ended)
        if self._embedded:
            titles = ", ".join(server.title for server in self._embedded)
            _tell(f"zapis starts {titles} in {self.data.path}")
        async with asyncio.TaskGroup() as group:
            group.create_task(self._start_database())
            for server in (self.valkey, self.ray, self.mail):
                if server is not None:
                    group.create_task(self._start(server))
        environment = self._environment()
        self._write_runtime(environment)
        self.api = _Api(self.data, self.listener, self.url, environment, self.settings.drain_timeout_s)
        await self.api.restart(self.settings.start_timeout_s)
        self.api.probe = "/healthz"
        demo = await self._load_demo(environment) if self.settings.demo else []
        mail = [f"mail   {self.url}/dev/mailbox"] if self._mailbox_dir() is not None else []
        _tell(f"docs   {self.url}/docs", *mail, f"admin  {await self._how_to_log_in()}", *demo, f"ready {self.url}")
        async with asyncio.TaskGroup() as group:
            for kept in (*self._embedded, self.api):
                group.create_task(self._keep(kept))

    @property
    def _embedded(self) -> list[EmbeddedServer]:
        return [server for server in (self.postgres, self.valkey, self.ray, self.mail) if server is not None]

    async def _start(self, server: EmbeddedServer) -> None:
        await server.start(self.settings.start_timeout_s)
        log.debug("server_started", server=server.name, port=server.port)

    async def _start_database(self) -> None:
        if self.postgres is not None:
            await self._start(self.postgres)
        await self._run("migrate", environment=self._environment())

    async def _how_to_log_in(self) -> str:
        """What is told is tried first, where it could be wrong: the database may have had its administrator before."""
        login = self.settings.admin_login
        if self.admin.made_now or self.admin.given:
            form = {"grant_type": "password", "username": login, "password": self.admin.value or ""}
            token = f"{self.url}/v1/auth/token"
            if await asyncio.to_thread(_status, token, form, timeout_s=LOGIN_TIMEOUT_S) != 200:
                return f"the database has an administrator already; {login} with {self.admin} is none"
        if self.admin.given:
            self.admin.settle()
        return f"login {login}, {self.admin}"

    async def _load_demo(self, environment: dict[str, str]) -> list[str]:
        """What to tell of it. A demo that cannot be loaded is no reason not to serve."""
        try:
            await self._run("load", str(DEMO), "--url", self.url, environment=environment)
        except StartFailed:
            return ["demo   not loaded whole: see above"]
        return [f"demo   {DEMO} names doctors and patients to log in as; {self.accounts}"]

    async def _run(self, *arguments: str, environment: dict[str, str]) -> None:
        """Run a zapis command to its end.

        Raises:
            StartFailed: it failed.
        """
        name = arguments[0]
        child = Child(
            Program(
                name=name,
                owner=self.data.path,
                directory=self.data.path,
                command=[*COMMAND, *arguments],
                environment=environment,
            )
        )
        try:
            code = await child.wait()
        finally:
            await child.stop(PAUSE_MIN_S)
        if code != 0:
            raise StartFailed(f"`zapis {name}` failed with exit code {code}; what it said is above")

    async def _keep(self, server: Server) -> None:
        """Start it again whenever it has died."""
        pause_s = PAUSE_MIN_S
        while True:
            began = time.monotonic()
            code = await server.died()
            if time.monotonic() - began > STEADY_S:
                pause_s = PAUSE_MIN_S
            log.warning("server_died", server=server.name, exit_code=code)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, PAUSE_MAX_S)
            await end_left_over(self.data.path, server.name)
            gone_at = time.monotonic()
            try:
                await server.restart(self.settings.start_timeout_s)
            except OperatorError as failure:
                log.error("server_not_restarted", server=server.name, failure=str(failure))
                continue
            log.info("server_restarted", server=server.name)
            if server is self.ray and self.api is not None and self.api.started_at < gone_at:
                await self.api.end(self.api.stop_deadline_s)  # It is a driver of the Ray that is gone.

    async def _stop(self) -> None:
        if self.api is not None and self.api.exit_code() is None:
            _tell("zapis lets requests in flight end, and stops")
        async with AsyncExitStack() as stack:  # Whatever goes wrong with one, the next is stopped too.
            stack.callback(self.data.forget_runtime)
            stack.push_async_callback(end_left_over, self.data.path)
            for server in self._embedded:
                stack.push_async_callback(server.stop)
            self.listener.close()
            if self.api is not None:
                stack.push_async_callback(self._drain_actors, self.api.environment)
                stack.push_async_callback(self.api.stop)

    async def _drain_actors(self, environment: dict[str, str]) -> None:
        """What calendar actors have decided is committed before they end; a visit that is pending is not lost."""
        if self.ray is None or self.ray.exit_code() is not None:
            return
        deadline_s = self.settings.drain_timeout_s + DRAIN_START_S
        try:
            async with asyncio.timeout(deadline_s):
                await self._run("drain", environment=environment)
        except (StartFailed, TimeoutError) as failure:
            log.warning("calendar_actors_not_drained", failure=type(failure).__name__)

    def _environment(self) -> dict[str, str]:
        """Our own environment, and where everything is."""
        settings = self.settings
        given = {
            "database_url": self.postgres.url if self.postgres else settings.database_url,
            "redis_url": self.valkey.url if self.valkey else settings.redis_url,
            "ray_address": self.ray.url if self.ray else settings.ray_address,
            "smtp_url": self.mail.url if self.mail else settings.smtp_url,
            "mailbox_dir": self._mailbox_dir(),
            "public_url": settings.public_url or self.url,
            "data_dir": str(self.data.path),
            "host": settings.host,
            "port": str(self.port),
            "demo": "0",
            "admin_login": settings.admin_login,
            "admin_password": self.admin.value,
            "account_password": self.accounts.value,
            "master_key_file": self._master_key_file(),
        }
        known = {variable(name): value for name, value in given.items() if value is not None}
        return dict(os.environ) | known | (self.ray.client_environment if self.ray else {})

    def _mailbox_dir(self) -> str | None:
        """Mail is shown where all that it says is made up, and to nobody elsewhere."""
        shown = self.mail is not None and self.settings.demo and is_loopback(self.settings.host)
        return str(self.mail.directory) if shown and self.mail is not None else None

    def _master_key_file(self) -> str | None:
        if self.settings.master_key is not None:
            return None
        return str((self.settings.master_key_file or self.data.master_key_file()).absolute())

    def _write_runtime(self, environment: dict[str, str]) -> None:
        self.data.write_runtime(
            Runtime(
                pid=os.getpid(),
                url=self.url,
                settings={name: environment[variable(name)] for name in TOLD if variable(name) in environment},
                environment=self.ray.client_environment if self.ray else {},
            )
        )


class _Api(Server):
    """The API process, on a listening socket that outlives it."""

    name = "api"
    title = "the API"

    def __init__(
        self, data: DataDirectory, listener: socket.socket, url: str, environment: dict[str, str], drain_timeout_s: int
    ) -> None:
        super().__init__(data)
        self.listener = listener
        self.url = url
        self.environment = environment
        self.stop_deadline_s = drain_timeout_s + 5.0
        self.probe = "/readyz"
        """What must answer 200: readiness at first; afterwards life, since a database away is no reason to kill it."""

    def _program(self) -> Program:
        return Program(
            name=self.name,
            owner=self.data.path,
            directory=self.data.path,
            command=[*COMMAND, "api", "--descriptor", str(self.listener.fileno())],
            environment=self.environment,
            descriptors=(self.listener.fileno(),),
        )

    async def _answers(self) -> bool:
        return await asyncio.to_thread(_status, self.url + self.probe, timeout_s=PROBE_TIMEOUT_S) == 200


class _Password:
    """A password that was given as a setting, or else was made here, is shown once and kept.

    One that was given is not kept, only that it was: a later start without it makes no other.
    """

    def __init__(self, data: DataDirectory, name: str, given: str | None) -> None:
        self._data = data
        self._name = name
        self.given = given is not None
        self.made_now = False
        self.value = given or data.recall(name)
        if self.value is None and data.recall(f"{name}_given") is None:
            self.made_now = True
            self.value = make_password()
            data.keep(name, self.value)

    def __str__(self) -> str:
        kept = self._data.path / "secrets.json"
        if self.given:
            return f"the password in {variable(self._name)}"
        if self.value is None:
            return f"the password that {variable(self._name)} once was"
        return (
            f"password {self.value} (made now, shown once, kept in {kept})" if self.made_now else f"password in {kept}"
        )

    def settle(self) -> None:
        """The one that was given counts: another that was made before does not."""
        self._data.keep(f"{self._name}_given", "1")
        self._data.forget(self._name)


def _status(url: str, form: dict[str, str] | None = None, *, timeout_s: float) -> int | None:
    """The status that a GET, or a POST of a form, is answered with; None without an answer."""
    body = None if form is None else urllib.parse.urlencode(form).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, data=body), timeout=timeout_s) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return None


def _tell(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()
