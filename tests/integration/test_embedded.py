"""The embedded servers: real, on loopback only, behind passwords."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest
from redis import AuthenticationError, Redis

from cluster.data_directory import LOOPBACK, DataDirectory
from cluster.embedded import EmbeddedMail, EmbeddedPostgres, EmbeddedRay, EmbeddedServer, EmbeddedValkey
from cluster.processes import UNPRIVILEGED, StartFailed, left_over


def test_each_database_is_migrated_and_its_own(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        row = connection.execute("SELECT current_user, current_setting('server_version_num')::int").fetchone()
        assert row is not None
        assert row[0] == "zapis"
        assert row[1] >= 150_000
        assert connection.execute("SELECT count(*) FROM calendar").fetchone() == (0,)


async def test_what_the_system_does_not_allow_is_a_failed_start(tmp_path: Path) -> None:
    mail = EmbeddedMail(DataDirectory(tmp_path))
    (tmp_path / "log" / "mail.log").mkdir()
    with pytest.raises(StartFailed, match=r"^a mail server cannot be started: is a directory \(.*mail\.log\)$"):
        await mail.start()


def test_a_postgres_of_somebody_else_below_the_directory_is_not_left_over(tmp_path: Path) -> None:
    program = tmp_path / "postgres-18" / "postgres"
    program.parent.mkdir()
    shutil.copy("/bin/sleep", program)
    for directory, found in (("pg", 0), ("postgres", 1), ("postgres/data", 1)):
        (tmp_path / directory).mkdir()
        with subprocess.Popen([str(program), "60"], cwd=tmp_path / directory) as process:
            try:
                assert len(left_over(tmp_path)) == found, directory
            finally:
                process.kill()


def test_postgres_asks_for_a_password(postgres: EmbeddedPostgres) -> None:
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(f"postgresql://zapis@127.0.0.1:{postgres.port}/zapis").close()


async def test_who_is_told_to_end_as_valkey_answers_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    valkey = EmbeddedValkey(DataDirectory(tmp_path))
    readers: list[asyncio.StreamReader] = []
    connect = asyncio.open_connection

    async def connected(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await connect(host, port)
        readers.append(reader)
        return reader, writer

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while await reader.read(4096):
                pass
        writer.close()

    monkeypatch.setattr(asyncio, "open_connection", connected)
    async with asyncio.timeout(10), await asyncio.start_server(say_nothing, LOOPBACK, 0) as silent:
        valkey.port = silent.sockets[0].getsockname()[1]
        for steps in range(4):  # So many of the event loop come between the answer and being told.
            readers.clear()
            asking = asyncio.create_task(valkey._answers())
            while not (readers and readers[0]._waiter):  # type: ignore[attr-defined]  # nothing else says so
                await asyncio.sleep(0)
            readers[0].feed_data(b"+OK\r\n+PONG\r\n")
            for _ in range(steps):
                await asyncio.sleep(0)
            told = asking.cancel()
            await asyncio.wait({asking})
            assert asking.cancelled() == told, steps


def test_valkey_asks_for_a_password(valkey: EmbeddedValkey) -> None:
    with Redis.from_url(valkey.url) as redis:
        assert redis.ping()
        assert redis.config_get("appendonly") == {"appendonly": "yes"}
    with Redis(port=valkey.port) as stranger, pytest.raises(AuthenticationError):
        stranger.ping()


@pytest.mark.parametrize("name", ["postgres", "valkey", "ray_cluster"])
def test_servers_listen_on_loopback_only(name: str, request: pytest.FixtureRequest) -> None:
    server: EmbeddedServer = request.getfixturevalue(name)
    listening = [
        connection.laddr.ip
        for process in left_over(server.data.path, server.name)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}


@pytest.mark.parametrize("name", ["postgres", "valkey"])
def test_servers_are_never_root(name: str, request: pytest.FixtureRequest) -> None:
    server: EmbeddedServer = request.getfixturevalue(name)
    users = {process.uids().effective for process in left_over(server.data.path, server.name)}
    assert users == {UNPRIVILEGED if psutil.Process().uids().effective == 0 else psutil.Process().uids().effective}


def test_secrets_are_for_their_owner_only(postgres: EmbeddedPostgres, valkey: EmbeddedValkey) -> None:
    assert postgres.port != valkey.port
    for name in ("secrets.json", "valkey/valkey.conf"):
        assert (postgres.data.path / name).stat().st_mode & 0o077 == 0


def test_no_password_is_on_a_command_line(postgres: EmbeddedPostgres, valkey: EmbeddedValkey) -> None:
    secrets = [postgres.data.secret(name) for name in ("postgres_zapis", "postgres_superuser", "valkey")]
    for process in left_over(postgres.data.path):
        assert not any(secret in " ".join(process.cmdline()) for secret in secrets)


def test_a_taken_port_is_left_to_whoever_has_it(postgres: EmbeddedPostgres) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        assert postgres.data.port("elsewhere") != taken


async def test_ray_takes_commands_only_with_the_token(ray_cluster: EmbeddedRay) -> None:
    token_path = ray_cluster.data.path / "ray.token"
    assert token_path.stat().st_mode & 0o077 == 0
    assert ray_cluster.client_environment["RAY_AUTH_MODE"] == "token"
