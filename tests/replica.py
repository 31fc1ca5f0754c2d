"""A hot standby of an embedded PostgreSQL, which can be told to fall behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg

from cluster.data_directory import LOOPBACK
from cluster.embedded import EmbeddedPostgres
from cluster.processes import Child, Program
from cluster.unprivileged import own_directory

COPY_TIMEOUT_S = 60.0


class Replica(EmbeddedPostgres):
    """Follows a server of the same data directory, under the same passwords."""

    name = "replica"

    def __init__(self, primary: EmbeddedPostgres) -> None:
        super().__init__(primary.data)
        self._primary = primary

    async def pause(self) -> None:
        """Fall behind from now on."""
        await self._administer("SELECT pg_wal_replay_pause()")

    async def resume(self) -> None:
        """Catch up."""
        await self._administer("SELECT pg_wal_replay_resume()")

    async def _administer(self, statement: str) -> None:
        async with await psycopg.AsyncConnection.connect(self.superuser_url, autocommit=True) as connection:
            await connection.execute(statement.encode())

    async def _create_database(self) -> bool:
        return False  # It comes from the primary.

    @property
    def _home(self) -> Path:
        return self.data.path / self.name

    async def _prepare(self) -> None:
        own_directory(self._home)
        command = [
            str(self.binaries / "pg_basebackup"),
            *("--pgdata", str(self._cluster), "--write-recovery-conf", "--checkpoint", "fast"),
            *("--host", LOOPBACK, "--port", str(self._primary.port), "--username", "postgres"),
        ]
        copy = Child(
            Program(
                name="basebackup",
                owner=self.data.path,
                directory=self._home,
                command=command,
                environment={"LC_ALL": "C", "PGPASSWORD": self.data.secret("postgres_superuser")},
                log=self.data.log("basebackup"),
                unprivileged=True,
            )
        )
        try:
            assert await copy.wait() == 0, self.data.log("basebackup").read_text(encoding="utf-8")
        finally:
            await copy.stop(1.0)


@asynccontextmanager
async def replica_of(primary: EmbeddedPostgres) -> AsyncIterator[Replica]:
    """A replica for as long as the block lasts."""
    replica = Replica(primary)
    await replica.start()
    try:
        yield replica
    finally:
        await replica.stop()
