"""The journal in PostgreSQL: see ``actors.journal`` for its promises.

A transaction is one call of the function ``journal_append`` on a connection of its own (see the migrations); claims,
loads and look-ups use a small pool beside it. Which errors mean what:

- the connection was lost while the call was under way: ``OutcomeUnknown``;
- the server answered with an error: nothing was committed. A stale fence is ``StaleEpoch``; trouble of the server
  (shutting down, no disk, too many connections) is ``JournalUnavailable``; everything else is a ``Conflict``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import psycopg
import structlog
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from actors import tasks
from actors.calendar import Calendar, Reservation
from actors.changes import Effect
from actors.decisions import Busy, Facts
from actors.journal import (
    Append,
    Claim,
    Conflict,
    JournalUnavailable,
    NewerPlacement,
    NoSuchCalendar,
    OutcomeUnknown,
    StaleEpoch,
    StoredAnswer,
)
from actors.messages import AppointmentState, AppointmentStatus, Window, wire_name
from actors.slots import Hold, Slot
from persistence.database import CONNECT, libpq_url
from persistence.identifiers import lock_key, new_id
from persistence.outbox import REFUSED, intents

log = structlog.get_logger()

LOADED_BACK = timedelta(days=1)
"""A calendar is loaded from this long ago on: its "today", in every time zone."""

_STALE = "ZP001"
_SERVER_TROUBLE = ("53", "57", "58", "25006", "XX")
"""SQLSTATE classes (PostgreSQL, appendix A): resources, operator intervention, system, read-only, internal."""
_TOO_LARGE = ("53200", "57014")
"""Out of room for locks, past the statement's time: as it is the batch will never pass, its calendars apart may."""
_POOL_MAX = 4
_APPEND_TIMEOUT_S = 15.0
"""Past the server's own ``statement_timeout``: nobody answers any more."""


class PostgresJournal:
    """``actors.journal.Journal`` on PostgreSQL. Connects when first used; belongs to one event loop."""

    def __init__(self, *, database_url: str, live_appointments_max: int, holds_max: int) -> None:
        self._url = libpq_url(database_url)
        self._live_appointments_max = live_appointments_max
        self._holds_max = holds_max
        self._appending: psycopg.AsyncConnection[TupleRow] | None = None
        self._pool: _Pool | None = None

    async def append(self, append: Append) -> dict[str, StoredAnswer]:
        """See ``Journal.append``."""
        connection = await self._connection_to_append()
        try:
            async with asyncio.timeout(_APPEND_TIMEOUT_S):
                cursor = await connection.execute(_APPEND, self._arguments(append), prepare=True)
                row = await cursor.fetchone()
        except TimeoutError as error:
            self._appending = None
            await connection.close()
            raise OutcomeUnknown("no answer") from error
        except psycopg.Error as error:
            if connection.broken or connection.closed:
                self._appending = None
                raise OutcomeUnknown(type(error).__name__) from error
            raise _definite(error) from error
        except asyncio.CancelledError:
            self._appending = None
            await connection.close()
            raise
        found = row[0] if row is not None and row[0] is not None else ()
        return {
            command_id: StoredAnswer(fingerprint=fingerprint, user_id=user_id, answer=answer)
            for command_id, fingerprint, user_id, answer in found
        }

    async def claim(self, doctor_id: str, generation: int) -> Claim:
        """See ``Journal.claim``. An old transaction that does not end within a second is terminated."""
        async with self._connection() as connection:
            claiming = asyncio.create_task(_claim(connection, doctor_id, generation))
            try:
                done, _ = await asyncio.wait({claiming}, timeout=1.0)
                if not done:
                    await self._terminate_whoever_blocks(connection.info.backend_pid)
                return await claiming
            finally:
                await tasks.end(claiming)

    async def load(self, doctor_id: str, now: datetime) -> Calendar:
        """See ``Journal.load``: one REPEATABLE READ snapshot."""
        async with self._connection() as connection, connection.transaction():
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            return await _load(connection, doctor_id, now.astimezone(UTC) - LOADED_BACK)

    async def look_up(self, command_ids: Iterable[str]) -> dict[str, StoredAnswer]:
        """See ``Journal.look_up``."""
        wanted = list(command_ids)
        if not wanted:
            return {}
        async with self._connection() as connection:
            cursor = await connection.execute(
                "SELECT command_id::text, fingerprint, user_id::text, answer FROM command"
                " WHERE command_id = ANY(%s::uuid[])",
                (wanted,),
            )
            return {
                command_id: StoredAnswer(fingerprint=fingerprint, user_id=user_id, answer=answer)
                for command_id, fingerprint, user_id, answer in await cursor.fetchall()
            }

    async def facts(self, patient_ids: Iterable[str], user_ids: Iterable[str], move_ids: Iterable[str]) -> Facts:
        """See ``Journal.facts``."""
        busy: dict[str, list[Busy]] = {}
        holds: dict[str, list[tuple[str, datetime]]] = {}
        patients = list(patient_ids)
        async with self._connection() as connection:
            cursor = await connection.execute(
                "SELECT patient_id::text, id::text, doctor_id::text, starts_at, ends_at FROM appointment"
                " WHERE live AND patient_id = ANY(%s::uuid[])",
                (patients,),
            )
            for patient_id, appointment_id, doctor_id, start, end in await cursor.fetchall():
                busy.setdefault(patient_id, []).append(
                    Busy(appointment_id=appointment_id, doctor_id=doctor_id, start=start, end=end)
                )
            cursor = await connection.execute(
                "SELECT user_id::text, doctor_id::text, expires_at FROM hold WHERE user_id = ANY(%s::uuid[])",
                (list(user_ids),),
            )
            for user_id, doctor_id, expires_at in await cursor.fetchall():
                holds.setdefault(user_id, []).append((doctor_id, expires_at))
            cursor = await connection.execute(
                "SELECT id::text, state FROM move WHERE id = ANY(%s::uuid[])", (list(move_ids),)
            )
            moves = dict(await cursor.fetchall())
            cursor = await connection.execute(
                "SELECT id::text FROM patient WHERE id = ANY(%s::uuid[]) AND data_key IS NULL", (patients,)
            )
            erased = frozenset(row[0] for row in await cursor.fetchall())
        return Facts(busy=busy, holds=holds, moves=moves, erased=erased)

    async def close(self) -> None:
        """See ``Journal.close``."""
        if self._appending is not None:
            await self._appending.close()
            self._appending = None
        if self._pool is not None:
            await self._pool.close()
            self._pool = None

    def _arguments(self, append: Append) -> dict[str, str | int | datetime | None]:
        """The arguments of ``journal_append``; a part with nothing in it is none."""
        notifications = [
            {
                "id": new_id(),
                "kind": kind,
                "doctor_id": row.doctor_id,
                "sequence": row.sequence,
                "appointment_id": appointment_id,
                "version": version,
                "due_at": row.at,
            }
            for row in append.events
            for kind, appointment_id, version in intents(row.event)
        ]
        # A refusal is written only where somebody was told that it is pending: now they have to hear of it.
        notifications += [
            {"id": new_id(), "kind": REFUSED, "user_id": row.user_id, "due_at": row.at}
            for row in append.commands
            if "rejected" in row.answer
        ]
        events = [
            {
                "doctor_id": row.doctor_id,
                "sequence": row.sequence,
                "epoch": row.epoch,
                "at": row.at,
                "kind": wire_name(row.event),
                "payload": row.event,
                "command_id": row.command_id,
                "effect": effect_plain(row.effect),
            }
            for row in append.events
        ]
        audits = [
            {
                "id": new_id(),
                "at": row.at,
                "user_id": row.user_id,
                "role": row.role,
                "action": row.action,
                "subject": row.subject,
                "subject_id": row.subject_id,
                "override": row.override,
            }
            for row in append.audit
        ]
        return {
            # The rows are locked in this order: two batches with the same calendars never wait for each other.
            "calendars": _rows(sorted(append.calendars, key=lambda row: row.doctor_id)),
            "locks": _array(sorted(lock_key(each) for each in append.patients | append.holders)),
            "events": _rows(events),
            "commands": _rows(append.commands),
            "new_slots": _rows(append.new_slots),
            "slots": _rows(append.slots),
            "holds_gone": _array(append.holds_gone),
            "holds": _rows(append.holds),
            "appointments": _rows(append.appointments),
            "closures": _rows(append.closures),
            "closures_removed": _rows(append.closures_removed),
            "moves_reserved": _rows([row for row in append.moves if row["state"] == "reserved"]),
            "moves_changed": _rows([row for row in append.moves if row["state"] != "reserved"]),
            "notifications": _rows(notifications),
            "audits": _rows(audits),
            "patients": _array(append.patients),
            "limited_patients": _array(append.limited_patients),
            "overridden_patients": _array(append.overridden_patients),
            "holders": _array(append.holders),
            "live_appointments_max": self._live_appointments_max,
            "holds_max": self._holds_max,
            "decided_at": max((row.at for row in append.events), default=None),
            "look_up": _array(append.look_up),
        }

    async def _connection_to_append(self) -> psycopg.AsyncConnection[TupleRow]:
        """The one connection that appends; lost before the call means that nothing was committed."""
        if self._appending is None or self._appending.closed:
            try:
                self._appending = await psycopg.AsyncConnection.connect(
                    self._url, autocommit=True, options=_OPTIONS, application_name="zapis-journal", **CONNECT
                )
            except (psycopg.Error, OSError) as error:
                raise JournalUnavailable(type(error).__name__) from error
        return self._appending

    async def _terminate_whoever_blocks(self, pid: int) -> None:
        """On a connection of its own: those of the pool may all be waiting for the same one."""
        connection = await psycopg.AsyncConnection.connect(
            self._url, autocommit=True, options=_OPTIONS, application_name="zapis-journal", **CONNECT
        )
        async with connection:
            cursor = await connection.execute(
                "SELECT pg_terminate_backend(blocking) FROM unnest(pg_blocking_pids(%s)) AS blocking", (pid,)
            )
            terminated = cursor.rowcount
        log.warning("blocking_backends_terminated", backends=terminated)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[psycopg.AsyncConnection[TupleRow]]:
        """A pooled connection in autocommit; every failure on it is ``JournalUnavailable``, nothing was committed."""
        if self._pool is None:
            self._pool = AsyncConnectionPool(
                self._url,
                min_size=1,
                max_size=_POOL_MAX,
                open=False,
                timeout=5.0,
                max_waiting=1000,
                reconnect_timeout=5.0,
                kwargs={"autocommit": True, "options": _OPTIONS, "application_name": "zapis-journal", **CONNECT},
            )
            await self._pool.open(wait=False)
        pool = self._pool
        try:
            connection = await _working_connection(pool)
            try:
                async with connection:
                    yield connection
            finally:
                await pool.putconn(connection)
        except (psycopg.Error, PoolTimeout, OSError) as error:
            raise JournalUnavailable(type(error).__name__) from error


_Pool = AsyncConnectionPool[psycopg.AsyncConnection[TupleRow]]


async def _working_connection(pool: _Pool) -> psycopg.AsyncConnection[TupleRow]:
    """A pooled connection that answers; the pool makes new ones for those that do not.

    The pool's own check waits longer after each broken one that it finds, and after a failover all are.
    """
    for _ in range(_POOL_MAX):
        connection = await pool.getconn()
        try:
            await pool.check_connection(connection)
        except psycopg.Error:
            await pool.putconn(connection)
        except BaseException:
            await pool.putconn(connection)
            raise
        else:
            return connection
    return await pool.getconn()


_APPEND = """
SELECT journal_append(
    calendars => %(calendars)s, locks => %(locks)s, events => %(events)s, commands => %(commands)s,
    new_slots => %(new_slots)s, slots => %(slots)s, holds_gone => %(holds_gone)s, holds => %(holds)s,
    appointments => %(appointments)s, closures => %(closures)s, closures_removed => %(closures_removed)s,
    moves_reserved => %(moves_reserved)s, moves_changed => %(moves_changed)s, notifications => %(notifications)s,
    audits => %(audits)s, patients => %(patients)s, limited_patients => %(limited_patients)s,
    overridden_patients => %(overridden_patients)s, holders => %(holders)s,
    live_appointments_max => %(live_appointments_max)s, holds_max => %(holds_max)s, decided_at => %(decided_at)s,
    look_up => %(look_up)s)
"""
_OPTIONS = (
    "-c timezone=UTC -c statement_timeout=10s -c lock_timeout=5s"
    " -c idle_in_transaction_session_timeout=2s -c client_connection_check_interval=1s"
)


def effect_plain(effect: Effect) -> dict[str, Any]:
    """An effect as the journal keeps it: what else there is to know of a slot never changes."""
    return {
        "slots": [[slot.id, slot.status] for slot in effect.slots],
        "appointments": [[each.id, each.patient_id, each.version] for each in effect.appointments],
    }


def _definite(error: psycopg.Error) -> Exception:
    """What an error that the server answered with means: nothing was committed, and why."""
    state = error.sqlstate or ""
    if state == _STALE:
        detail = error.diag.message_detail or ""
        return StaleEpoch(detail.split(","))
    if state.startswith(_SERVER_TROUBLE) and state not in _TOO_LARGE:
        return JournalUnavailable(state)
    return Conflict(f"{state} {error.diag.constraint_name or ''}".strip())


def _rows(rows: Sequence[Any]) -> str | None:
    """Rows as JSON text."""
    return orjson.dumps(rows).decode() if rows else None


def _array(values: Collection[str] | Collection[int]) -> str | None:
    """Ids or numbers as the text of an array."""
    return f"{{{','.join(map(str, values))}}}" if values else None


_SLOTS = """
SELECT s.id::text, s.starts_at, s.ends_at, s.location_id::text, s.service_id::text, s.blocked, s.status
FROM slot AS s WHERE s.doctor_id = %(doctor_id)s AND s.starts_at >= %(since)s
UNION ALL
SELECT s.id::text, s.starts_at, s.ends_at, s.location_id::text, s.service_id::text, s.blocked, s.status
FROM slot AS s WHERE s.doctor_id = %(doctor_id)s AND s.starts_at < %(since)s AND s.id IN (
    SELECT slot_id FROM appointment WHERE doctor_id = %(doctor_id)s AND live
    UNION SELECT slot_id FROM hold WHERE doctor_id = %(doctor_id)s
    UNION SELECT target_slot_id FROM move
    WHERE target_doctor_id = %(doctor_id)s AND state IN ('reserved', 'moved', 'aborted'))
ORDER BY 2
"""
"""A calendar's slots from a time on, and older ones that someone still has."""

_APPOINTMENTS = """
SELECT open_move_id::text, id::text, patient_id::text, booked_by::text, slot_id::text, location_id::text,
    service_id::text, starts_at, ends_at, status, version, moves, created_at, updated_at
FROM appointment
WHERE doctor_id = %(doctor_id)s AND live AND starts_at >= %(since)s - interval '1 day'
UNION ALL
SELECT open_move_id::text, id::text, patient_id::text, booked_by::text, slot_id::text, location_id::text,
    service_id::text, starts_at, ends_at, status, version, moves, created_at, updated_at
FROM appointment
WHERE doctor_id = %(doctor_id)s AND live AND starts_at < %(since)s - interval '1 day'
    AND tstzrange(starts_at, ends_at) && tstzrange(NULL, %(since)s)
"""
"""A calendar's live appointments, from a day before a time on and older ones: each half by the index that it has."""


async def _claim(connection: psycopg.AsyncConnection[TupleRow], doctor_id: str, generation: int) -> Claim:
    async with connection.transaction():
        cursor = await connection.execute(
            "UPDATE calendar SET epoch = epoch + 1"
            " WHERE doctor_id = %s AND coalesce((SELECT generation FROM placement), 0) <= %s RETURNING epoch",
            (doctor_id, generation),
        )
        row = await cursor.fetchone()
        if row is not None:
            return Claim(epoch=row[0])
        cursor = await connection.execute("SELECT generation FROM placement")
        placed = await cursor.fetchone()
    if placed is not None and placed[0] > generation:
        raise NewerPlacement(placed[0])
    raise NoSuchCalendar(doctor_id)


async def _load(connection: psycopg.AsyncConnection[TupleRow], doctor_id: str, since: datetime) -> Calendar:
    cursor = await connection.execute("SELECT sequence, last_event_at FROM calendar WHERE doctor_id = %s", (doctor_id,))
    row = await cursor.fetchone()
    if row is None:
        raise NoSuchCalendar(doctor_id)
    calendar = Calendar(doctor_id, sequence=row[0], last_event_at=row[1])
    cursor = await connection.execute(
        "SELECT id::text, windows, created_by::text FROM closure"
        " WHERE doctor_id = %s AND removed_at IS NULL AND ends_at >= %s",
        (doctor_id, since),
    )
    for closure_id, windows, created_by in await cursor.fetchall():
        calendar.put_closure(closure_id, tuple(_window(window) for window in windows), created_by)
    cursor = await connection.execute(
        "SELECT id::text FROM closure WHERE doctor_id = %s AND removed_at IS NULL AND ends_at < %s", (doctor_id, since)
    )
    calendar.closures_over.update(row[0] for row in await cursor.fetchall())
    cursor = await connection.execute(_SLOTS, {"doctor_id": doctor_id, "since": since})
    for slot_id, start, end, location_id, service_id, blocked, status in await cursor.fetchall():
        calendar.put_slot(
            Slot(
                id=slot_id,
                start=start,
                length=end - start,
                location_id=location_id,
                service_id=service_id,
                blocked=blocked,
                cancelled=status == "cancelled",
            ),
            closed=None if blocked or status == "cancelled" else status == "blocked",
        )
    cursor = await connection.execute(
        "SELECT id::text, slot_id::text, user_id::text, expires_at FROM hold WHERE doctor_id = %s", (doctor_id,)
    )
    for hold_id, slot_id, user_id, expires_at in await cursor.fetchall():
        calendar.put_hold(Hold(id=hold_id, slot_id=slot_id, user_id=user_id, expires_at=expires_at))
    coming = await _load_appointments(connection, calendar, since)
    await _load_moves(connection, calendar, coming)
    return calendar


async def _load_appointments(
    connection: psycopg.AsyncConnection[TupleRow], calendar: Calendar, since: datetime
) -> dict[str, AppointmentState]:
    """Put the appointments in place; those that are to be taken in from a move are returned by move."""
    cursor = await connection.execute(_APPOINTMENTS, {"doctor_id": calendar.doctor_id, "since": since})
    coming = {}
    for move_id, *columns in await cursor.fetchall():
        appointment = _appointment(columns)
        if move_id is None:
            calendar.put_appointment(appointment)
        else:
            coming[move_id] = appointment
    calendar.forget_changes()
    return coming


def _appointment(columns: list[Any]) -> AppointmentState:
    appointment_id, patient_id, booked_by, slot_id, location_id, service_id, start, end, status, *rest = columns
    version, moves, created_at, updated_at = rest
    return AppointmentState(
        id=appointment_id,
        patient_id=patient_id,
        booked_by=booked_by,
        slot_id=slot_id,
        location_id=location_id,
        service_id=service_id,
        start=start,
        end=end,
        status=AppointmentStatus(status),
        version=version,
        moves=moves,
        created_at=created_at,
        updated_at=updated_at,
    )


async def _load_moves(
    connection: psycopg.AsyncConnection[TupleRow], calendar: Calendar, coming: dict[str, AppointmentState]
) -> None:
    cursor = await connection.execute(
        "SELECT id::text, target_slot_id::text, appointment_id::text, state FROM move"
        " WHERE target_doctor_id = %s AND state IN ('reserved', 'moved', 'aborted')",
        (calendar.doctor_id,),
    )
    for move_id, slot_id, appointment_id, state in await cursor.fetchall():
        calendar.put_reservation(
            Reservation(
                move_id=move_id,
                slot_id=slot_id,
                appointment_id=appointment_id,
                moved=coming.get(move_id) if state == "moved" else None,
                aborted=state == "aborted",
            )
        )


def _window(plain: list[Any]) -> Window:
    location_id, start, end = plain
    return Window(location_id=location_id, start=datetime.fromisoformat(start), end=datetime.fromisoformat(end))
