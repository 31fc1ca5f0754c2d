"""Peer A: `SELECT … FOR UPDATE` in a transaction by psycopg, as a good engineer writes a booking service by hand.

It sends one statement after the other, as such services do. See ``service`` for all else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import orjson
from fastapi import FastAPI
from psycopg import AsyncConnection, errors
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from actors.policy import Policy
from api.errors import Problem
from cluster.settings import Settings
from loadtests.peers.service import NUMBERING, Order, answered_before, create_service
from persistence.database import libpq_url
from persistence.identifiers import new_id

Pool = AsyncConnectionPool[AsyncConnection[TupleRow]]

LOCK_SLOT = """
SELECT doctor_id::text, location_id::text, service_id::text, starts_at, ends_at, status, held_until
FROM slot WHERE id = %s FOR UPDATE
"""
USE_HOLD = "DELETE FROM hold WHERE id = %s AND slot_id = %s AND user_id = %s AND expires_at > %s"
TAKE_SLOT = "UPDATE slot SET status = 'booked', held_until = NULL WHERE id = %s"
ADD_APPOINTMENT = """
INSERT INTO appointment (id, doctor_id, patient_id, booked_by, slot_id, location_id, service_id, starts_at, ends_at,
    status, live, displaced, version, moves, created_at, updated_at, reason)
VALUES (%(id)s, %(doctor_id)s, %(patient_id)s, %(booked_by)s, %(slot_id)s, %(location_id)s, %(service_id)s, %(start)s,
    %(end)s, 'booked', true, false, 1, 0, %(created_at)s, %(updated_at)s, %(reason)s)
"""
ADD_EVENT = """
INSERT INTO event (doctor_id, sequence, epoch, at, kind, payload, command_id, effect)
VALUES (%s, nextval('peer_event_sequence'), 0, %s, 'AppointmentBooked', %s, %s, %s)
"""
ADD_COMMAND = "INSERT INTO command (command_id, user_id, fingerprint, answer, at) VALUES (%s, %s, %s, %s, %s)"
ADD_MESSAGE = """
INSERT INTO outbox (id, kind, doctor_id, sequence, appointment_id, version, due_at)
VALUES (%s, 'booked', %s, currval('peer_event_sequence'), %s, 1, %s)
"""
FIND_ANSWER = "SELECT user_id::text, fingerprint, answer FROM command WHERE command_id = %s"


def create_app() -> FastAPI:
    """The service over the settings in the environment."""
    return create_service(open_store)


@asynccontextmanager
async def open_store(settings: Settings, policy: Policy) -> AsyncIterator[ForUpdate]:
    """The store, with its connections."""
    pool: Pool = AsyncConnectionPool(
        libpq_url(str(settings.database_url)),
        min_size=settings.database_pool_max,
        max_size=settings.database_pool_max,
        max_waiting=10_000,
        open=False,
        kwargs={"prepare_threshold": 0, "autocommit": True, "options": "-c timezone=UTC"},
    )
    async with pool:
        await pool.wait()
        async with pool.connection() as connection:
            await connection.execute(NUMBERING)
        yield ForUpdate(pool, policy)


class ForUpdate:
    """Locks the slot, looks, writes."""

    def __init__(self, pool: Pool, policy: Policy) -> None:
        self._pool = pool
        self._policy = policy

    async def book(self, order: Order) -> dict[str, Any]:
        """See ``Store``."""
        try:
            async with self._pool.connection() as connection, connection.transaction():
                visit = await self._take(connection, order)
                await self._write(connection, visit, order)
        except errors.ExclusionViolation:
            raise Problem("patient_overlap") from None
        except errors.UniqueViolation:
            async with self._pool.connection() as connection:
                row = await (await connection.execute(FIND_ANSWER, (order.command_id,))).fetchone()
            visit = answered_before(row, order)
        return visit

    async def _take(self, connection: AsyncConnection[TupleRow], order: Order) -> dict[str, Any]:
        """Lock the slot and see that it can be had; returns the visit there will be."""
        row = await (await connection.execute(LOCK_SLOT, (order.slot_id,))).fetchone()
        if row is None:
            raise Problem("not_found", "There is no such slot.")
        *slot, status, held_until = row
        start = slot[3]
        now = datetime.now(UTC)
        self._policy.check_offer(start, now, override=False)
        if order.hold_id is not None:
            used = await connection.execute(USE_HOLD, (order.hold_id, order.slot_id, order.user_id, now))
            if not used.rowcount:
                raise Problem("hold_expired")
        elif status == "booked" or (status == "held" and (held_until is None or held_until > now)):
            # Perhaps taken by this very command, sent before.
            if await (await connection.execute(FIND_ANSWER, (order.command_id,))).fetchone():
                raise errors.UniqueViolation
            raise Problem("slot_taken")
        elif status not in ("free", "held"):
            raise Problem("slot_unavailable")
        return order.visit(slot, now)

    async def _write(self, connection: AsyncConnection[TupleRow], visit: dict[str, Any], order: Order) -> None:
        appointment_id, doctor_id, now = visit["id"], visit["doctor_id"], visit["created_at"]
        event = {
            "appointment_id": appointment_id,
            "patient_id": order.patient_id,
            "booked_by": order.user_id,
            "slot_id": order.slot_id,
        }
        effect = {
            "slots": [[order.slot_id, "booked"]],
            "appointments": [[appointment_id, order.patient_id, visit["version"]]],
        }
        answer = orjson.dumps({"done": {"appointment": visit}}).decode()
        await connection.execute(TAKE_SLOT, (order.slot_id,))
        await connection.execute(ADD_APPOINTMENT, visit | {"reason": order.sealed})
        await connection.execute(
            ADD_EVENT,
            (doctor_id, now, orjson.dumps(event).decode(), order.command_id, orjson.dumps(effect).decode()),
        )
        await connection.execute(ADD_COMMAND, (order.command_id, order.user_id, order.mark, answer, now))
        await connection.execute(ADD_MESSAGE, (new_id(), doctor_id, appointment_id, now))
