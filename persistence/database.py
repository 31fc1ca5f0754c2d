"""The connections: one SQLAlchemy engine a process for what is not a calendar, and the migrations' entry point."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Final

import psycopg
from alembic import command as alembic_command
from alembic.config import Config
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

_HAS_REACHED = text("SELECT COALESCE(pg_last_wal_replay_lsn() >= CAST(:position AS pg_lsn), NOT pg_is_in_recovery())")
MIGRATIONS = Path(__file__).parent / "migrations"
CONNECT: Final[dict[str, Any]] = {
    "connect_timeout": 3,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""How psycopg connects where a connection is kept for long: one whose other end has gone silently is found out."""


def open_database(database_url: str, *, pool_max: int, statement_timeout_s: float = 10.0) -> AsyncEngine:
    """An engine of at most ``pool_max`` connections; connects on first use.

    Every connection gives up on a statement after ``statement_timeout_s`` and on a lock or an idle transaction
    after the same time, so a stuck peer cannot hold a request for ever; nor can one that has gone silent (``CONNECT``).
    """
    timeout_ms = int(statement_timeout_s * 1000)
    options = (
        f"-c statement_timeout={timeout_ms} -c lock_timeout={timeout_ms} "
        f"-c idle_in_transaction_session_timeout={timeout_ms} -c timezone=UTC"
    )
    return create_async_engine(
        sqlalchemy_url(database_url),
        pool_size=pool_max,
        max_overflow=0,
        pool_timeout=statement_timeout_s,
        pool_pre_ping=True,
        hide_parameters=True,  # They may be personal, and errors are logged.
        connect_args={"options": options, "application_name": "zapis-api", **CONNECT},
    )


def sqlalchemy_url(database_url: str) -> str:
    """``postgresql://…`` as libpq writes it, with the driver named for SQLAlchemy."""
    url = make_url(database_url)
    return url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


def libpq_url(database_url: str) -> str:
    """The URL without SQLAlchemy's driver name, for psycopg itself."""
    return make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)


async def check_reachable(database_url: str) -> None:
    """Returns once the database has answered.

    Raises:
        DatabaseUnreachable: nobody answers there, or not to this user; the reason names no password.
    """
    try:
        async with await psycopg.AsyncConnection.connect(libpq_url(database_url), **CONNECT):
            pass
    except psycopg.OperationalError as error:
        reason = str(error).strip().splitlines() or ["no answer"]
        raise DatabaseUnreachable(reason[0].strip()) from None


async def has_reached(connection: AsyncConnection, position: str) -> bool:
    """Whether a replica has all that the primary had at a position of its log; a primary always has."""
    return bool((await connection.execute(_HAS_REACHED, {"position": position})).scalar_one())


class DatabaseUnreachable(Exception):
    """There is no database to be had at a URL."""


async def migrate(database_url: str) -> None:
    """Bring the schema to the newest revision; safe to run from several processes at once (an advisory lock)."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["database_url"] = sqlalchemy_url(database_url)
    await asyncio.to_thread(alembic_command.upgrade, config, "head")
