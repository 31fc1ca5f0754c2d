"""What has to be known all the time, each read in one round trip: whose a slot is, what a user may, who has changed.

A unit of work takes four (a ping, BEGIN, the query, COMMIT), and that is right for requests. But commands wait for
these answers before they can go to their calendars, all of them at once. So each kind of look-up has a connection of
its own, in autocommit, and one prepared statement. One query of a kind is under way at a time: whoever asks gathers
meanwhile what the next one is to ask for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from actors.messages import Role
from persistence.database import CONNECT, libpq_url
from persistence.unit_of_work import DatabaseUnavailable

_OPTIONS = (
    # The plan is made once, perhaps while the tables are empty: it goes by index however small they seem.
    "-c timezone=UTC -c statement_timeout=10s -c client_connection_check_interval=1s"
    " -c plan_cache_mode=force_generic_plan -c enable_seqscan=off -c enable_bitmapscan=off"
)
_OWNERS = "SELECT id::text, doctor_id::text FROM slot WHERE id = ANY(%s::uuid[])"
_ACCESS = """
SELECT u.id::text, u.role, u.patient_id::text, u.doctor_id::text, u.disabled_at IS NOT NULL, u.session_generation,
    u.kept_session_id::text, u.data_key, own.patient_ids, own.patient_keys
FROM app_user AS u
CROSS JOIN LATERAL (
    SELECT array_agg(p.id::text) AS patient_ids, array_agg(p.data_key) AS patient_keys
    FROM user_patient AS l JOIN patient AS p ON p.id = l.patient_id
    WHERE l.user_id = u.id
) AS own
WHERE u.id = ANY(%s::uuid[]) AND u.erased_at IS NULL
"""
# The mark is of the statement's own snapshot: what that does not see is of the oldest transaction under way, or later.
CHANGED = """
SELECT now.mark::text, now.position::text, c.doctor_id::text, c.sequence
FROM (SELECT pg_snapshot_xmin(pg_current_snapshot()) AS mark, pg_current_wal_flush_lsn() AS position) AS now
LEFT JOIN calendar AS c ON c.changed_in >= %s::xid8
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """How far calendars have come, and the mark from which on to ask the next time."""

    sequences: dict[str, int]
    mark: str
    position: str
    """Where the log of the database itself had got to: a replica that has come so far has all of this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What has to be known of a user at every request; nothing of it is personal."""

    user_id: str
    role: Role
    patient_id: str | None
    doctor_id: str | None
    disabled: bool
    session_generation: int
    """Raised when all sessions end."""
    kept_session_id: str | None
    """The one that went on when it was raised last."""
    wrapped_key: bytes | None = field(repr=False)
    patient_keys: dict[str, bytes | None] = field(repr=False)
    """The wrapped data key of every patient that the user may book for."""

    def goes_on(self, session_id: str, session_generation: int) -> bool:
        """Whether a session that began under that generation has not been ended."""
        if session_generation == self.session_generation:
            return True
        return session_generation == self.session_generation - 1 and session_id == self.kept_session_id


class Lookups:
    """Connects when first asked; belongs to one event loop."""

    def __init__(self, database_url: str) -> None:
        self._owners = _Query(database_url, _OWNERS)
        self._access = _Query(database_url, _ACCESS)
        self._changed = _Query(database_url, CHANGED)

    async def slot_owners(self, slot_ids: Collection[str]) -> Mapping[str, str]:
        """The doctor of each of these slots that exists.

        Raises:
            DatabaseUnavailable
        """
        return dict(await self._owners.rows(_array(slot_ids)))

    async def access(self, user_ids: Collection[str]) -> list[Access]:
        """What has to be known of each of these users at every request; those who are gone are left out.

        Raises:
            DatabaseUnavailable
        """
        return [_access(*row) for row in await self._access.rows(_array(user_ids))]

    async def reached(self, mark: str) -> Reached:
        """The calendars that changed since the mark was given: more, perhaps, but never fewer.

        Raises:
            DatabaseUnavailable
        """
        rows = await self._changed.rows(mark)
        return Reached(
            sequences={doctor_id: sequence for _, _, doctor_id, sequence in rows if doctor_id is not None},
            mark=rows[0][0],
            position=rows[0][1],
        )

    async def close(self) -> None:
        """Let the connections go."""
        await self._owners.close()
        await self._access.close()
        await self._changed.close()


class _Query:
    """One statement with one parameter, on a connection of its own that is made anew when it is lost."""

    def __init__(self, database_url: str, statement: str) -> None:
        self._url = libpq_url(database_url)
        self._statement = statement
        self._connection: psycopg.AsyncConnection[TupleRow] | None = None
        self._turn = asyncio.Lock()

    async def rows(self, parameter: str) -> list[Any]:
        async with self._turn:
            try:
                if self._connection is not None:
                    try:
                        return await self._ask(self._connection, parameter)
                    except psycopg.OperationalError:
                        # Lost since it was used last, most likely; reading twice does no harm.
                        await self.close()
                self._connection = await psycopg.AsyncConnection.connect(
                    self._url, autocommit=True, options=_OPTIONS, application_name="zapis-lookups", **CONNECT
                )
                return await self._ask(self._connection, parameter)
            except (psycopg.Error, OSError) as error:
                await self.close()
                raise DatabaseUnavailable("the database is unavailable") from error
            except asyncio.CancelledError:
                await self.close()  # It may be in the middle of an answer.
                raise

    async def _ask(self, connection: psycopg.AsyncConnection[TupleRow], parameter: str) -> list[TupleRow]:
        cursor = connection.cursor(binary=True)
        await cursor.execute(self._statement, (parameter,), prepare=True)
        return await cursor.fetchall()

    async def close(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.close()


def _array(ids: Collection[str]) -> str:
    return f"{{{','.join(ids)}}}"


def _access(
    user_id: str,
    role: str,
    patient_id: str | None,
    doctor_id: str | None,
    disabled: bool,
    session_generation: int,
    kept_session_id: str | None,
    wrapped_key: bytes | None,
    patient_ids: list[str] | None,
    patient_keys: list[bytes | None] | None,
) -> Access:
    return Access(
        user_id=user_id,
        role=Role(role),
        patient_id=patient_id,
        doctor_id=doctor_id,
        disabled=disabled,
        session_generation=session_generation,
        kept_session_id=kept_session_id,
        wrapped_key=wrapped_key,
        patient_keys=dict(zip(patient_ids or (), patient_keys or (), strict=True)),
    )
