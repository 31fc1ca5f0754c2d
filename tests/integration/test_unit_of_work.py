from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from cluster.embedded import EmbeddedPostgres
from persistence.database import open_database
from persistence.sealed import Vault
from persistence.unit_of_work import DatabaseUnavailable, UnitOfWork


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[AsyncEngine]:
    database = open_database(database_url, pool_max=1)
    yield database
    await database.dispose()


async def read_cut_off(database: AsyncEngine, postgres: EmbeddedPostgres, then: BaseException | None) -> None:
    """A transaction whose connection is lost in the middle; ``then`` something happens, or it reads on."""
    async with UnitOfWork(database, Vault(bytes(32))) as work:
        pid = await work.connection.scalar(text("SELECT pg_backend_pid()"))
        async with await psycopg.AsyncConnection.connect(postgres.superuser_url, autocommit=True) as connection:
            ended = await connection.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
            assert await ended.fetchone() == (True,)
        if then is not None:
            raise then
        await work.connection.scalar(text("SELECT 1"))


async def test_who_is_cancelled_while_the_connection_is_lost_is_cancelled(
    database: AsyncEngine, postgres: EmbeddedPostgres
) -> None:
    with pytest.raises(asyncio.CancelledError):
        await read_cut_off(database, postgres, asyncio.CancelledError())
    async with UnitOfWork(database, Vault(bytes(32))) as work:
        assert await work.connection.scalar(text("SELECT 1")) == 1


async def test_a_lost_connection_is_a_database_that_is_unavailable(
    database: AsyncEngine, postgres: EmbeddedPostgres
) -> None:
    with pytest.raises(DatabaseUnavailable):
        await read_cut_off(database, postgres, None)
