"""Real servers for the tests that need them: one PostgreSQL, Valkey and Ray for the whole run, started on first use.

Every test that asks for ``database_url`` gets a database of its own, cloned from a migrated template.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest
from psycopg import sql

from cluster.data_directory import DataDirectory
from cluster.embedded import EmbeddedPostgres, EmbeddedRay, EmbeddedServer, EmbeddedValkey
from cluster.settings import PREFIX, Settings
from persistence.database import migrate

TEMPLATE = "zapis_template"
_numbers = itertools.count(1)
_data = pytest.StashKey[DataDirectory]()

T = TypeVar("T")
Server = TypeVar("Server", bound=EmbeddedServer)


def pytest_addoption(parser: pytest.Parser) -> None:
    """How many seeds ``tests/simulation`` runs, and from which on."""
    parser.addoption("--seeds", type=int, default=1500, help="runs of the simulation")
    parser.addoption("--first-seed", type=int, default=0, help="the seed of the first of them")


def pytest_configure(config: pytest.Config) -> None:
    """The tests see no setting of the developer's, and Ray is told how to connect before anything imports it."""
    for name in [name for name in os.environ if name.startswith((PREFIX, "RAY_"))]:
        del os.environ[name]
    # Not pytest's own temporary directory: when root runs the tests, PostgreSQL's user could not enter that one.
    path = Path(tempfile.mkdtemp(prefix="zapis-tests-", dir="/tmp"))
    path.chmod(0o755)
    config.stash[_data] = data = DataDirectory(path)
    os.environ.update(EmbeddedRay(data).client_environment)


def pytest_unconfigure(config: pytest.Config) -> None:
    if (data := config.stash.get(_data, None)) is not None:
        shutil.rmtree(data.path, ignore_errors=True)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run in a loop of its own, which pytest-asyncio's loops never hear of."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.close()


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Iterator[EmbeddedPostgres]:
    with _running(EmbeddedPostgres(request.config.stash[_data])) as server:
        yield server


@pytest.fixture(scope="session")
def template_database(postgres: EmbeddedPostgres) -> str:
    """The name of a migrated database to clone."""
    with psycopg.connect(postgres.superuser_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER zapis").format(sql.Identifier(TEMPLATE)))
    run(migrate(postgres.url_of(TEMPLATE)))
    return TEMPLATE


@pytest.fixture(scope="session")
def valkey(request: pytest.FixtureRequest) -> Iterator[EmbeddedValkey]:
    with _running(EmbeddedValkey(request.config.stash[_data])) as server:
        yield server


@pytest.fixture(scope="session")
def ray_cluster(request: pytest.FixtureRequest) -> Iterator[EmbeddedRay]:
    """A local Ray; ``ray.init(address=ray_cluster.url)`` connects to it."""
    with _running(EmbeddedRay(request.config.stash[_data])) as server:
        yield server


@pytest.fixture(scope="session")
def new_database(postgres: EmbeddedPostgres, template_database: str) -> Callable[[], AbstractContextManager[str]]:
    """Opens a migrated, empty database for as long as a block lasts, and tells its URL."""

    @contextmanager
    def new_database() -> Iterator[str]:
        name = f"test_{next(_numbers)}"
        with psycopg.connect(postgres.superuser_url, autocommit=True) as connection:
            clone = "CREATE DATABASE {} OWNER zapis TEMPLATE {}"
            connection.execute(sql.SQL(clone).format(sql.Identifier(name), sql.Identifier(template_database)))
        yield postgres.url_of(name)
        with psycopg.connect(postgres.superuser_url, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    return new_database


@pytest.fixture
def database_url(new_database: Callable[[], AbstractContextManager[str]]) -> Iterator[str]:
    """A migrated, empty database for this test alone."""
    with new_database() as url:
        yield url


@pytest.fixture
def redis_url(valkey: EmbeddedValkey) -> str:
    """An empty Valkey."""
    from redis import Redis

    with Redis.from_url(valkey.url) as redis:
        redis.flushall()
    return valkey.url


@pytest.fixture(scope="session")
def settings_over(valkey: EmbeddedValkey, ray_cluster: EmbeddedRay) -> Callable[[str], Settings]:
    """Makes settings for a database of this run, over its other servers, in a Ray namespace of the database's own."""

    def settings_over(database_url: str) -> Settings:
        return Settings(
            database_url=database_url,
            redis_url=valkey.url,
            ray_address=ray_cluster.url,
            ray_namespace=database_url.rpartition("/")[2],
            master_key="MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
        )

    return settings_over


@pytest.fixture
def settings(database_url: str, redis_url: str, settings_over: Callable[[str], Settings]) -> Settings:
    """Settings over the real servers, with an empty Valkey."""
    assert redis_url, "emptied"
    return settings_over(database_url)


@contextmanager
def _running(server: Server) -> Iterator[Server]:
    try:
        run(server.start())
        yield server
    finally:
        run(server.stop())
