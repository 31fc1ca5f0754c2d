"""Peer B: a booking as one statement by asyncpg: the best that plain SQL can do, in one round trip.

See ``service`` for all else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import asyncpg
import orjson
from fastapi import FastAPI

from actors.policy import Policy
from api.errors import Problem
from cluster.settings import Settings
from loadtests.peers.service import NUMBERING, Order, answered_before, create_service
from persistence.database import libpq_url
from persistence.identifiers import new_id

BOOK = """
WITH used AS (
    DELETE FROM hold WHERE id = $6::uuid AND slot_id = $1::uuid AND user_id = $3::uuid AND expires_at > $4 RETURNING id
), taken AS (
    UPDATE slot SET status = 'booked', held_until = NULL
    WHERE id = $1::uuid AND starts_at > $4
        AND CASE WHEN $6::uuid IS NULL THEN status = 'free' OR (status = 'held' AND held_until <= $4)
            ELSE status = 'held' AND EXISTS (SELECT FROM used) END
    RETURNING doctor_id, location_id, service_id, starts_at, ends_at
), visit AS (
    INSERT INTO appointment (id, doctor_id, patient_id, booked_by, slot_id, location_id, service_id, starts_at, ends_at,
        status, live, displaced, version, moves, created_at, updated_at, reason)
    SELECT $2::uuid, doctor_id, $5::uuid, $3::uuid, $1::uuid, location_id, service_id, starts_at, ends_at,
        'booked', true, false, 1, 0, $4, $4, $7 FROM taken
), noted AS (
    INSERT INTO event (doctor_id, sequence, epoch, at, kind, payload, command_id, effect)
    SELECT doctor_id, nextval('peer_event_sequence'), 0, $4, 'AppointmentBooked',
        jsonb_build_object('appointment_id', $2::uuid, 'patient_id', $5::uuid, 'booked_by', $3::uuid,
            'slot_id', $1::uuid), $8::uuid,
        jsonb_build_object('slots', jsonb_build_array(jsonb_build_array($1::uuid, 'booked')),
            'appointments', jsonb_build_array(jsonb_build_array($2::uuid, $5::uuid, 1))) FROM taken
    RETURNING doctor_id, sequence
), answered AS (
    INSERT INTO command (command_id, user_id, fingerprint, answer, at)
    SELECT $8::uuid, $3::uuid, $9, jsonb_build_object('done', jsonb_build_object('appointment', jsonb_build_object(
        'id', $2::uuid, 'doctor_id', doctor_id, 'patient_id', $5::uuid, 'booked_by', $3::uuid, 'slot_id', $1::uuid,
        'location_id', location_id, 'service_id', service_id, 'start', starts_at, 'end', ends_at,
        'status', 'booked', 'displaced', false, 'version', 1, 'created_at', $4, 'updated_at', $4))), $4 FROM taken
), told AS (
    INSERT INTO outbox (id, kind, doctor_id, sequence, appointment_id, version, due_at)
    SELECT $10::uuid, 'booked', doctor_id, sequence, $2::uuid, 1, $4 FROM noted
)
SELECT doctor_id::text, location_id::text, service_id::text, starts_at, ends_at FROM taken
"""
FIND_ANSWER = "SELECT user_id::text, fingerprint, answer FROM command WHERE command_id = $1::uuid"
FIND_SLOT = "SELECT status FROM slot WHERE id = $1::uuid"


def create_app() -> FastAPI:
    """The service over the settings in the environment."""
    return create_service(open_store)


@asynccontextmanager
async def open_store(settings: Settings, _: Policy) -> AsyncIterator[OneStatement]:
    """The store, with its connections."""
    size = settings.database_pool_max
    async with asyncpg.create_pool(
        libpq_url(str(settings.database_url)),
        min_size=size,
        max_size=size,
        max_inactive_connection_lifetime=0,
        server_settings={"timezone": "UTC"},
        init=_set_codecs,
    ) as pool:
        await pool.execute(NUMBERING)
        yield OneStatement(pool)


async def _set_codecs(connection: asyncpg.Connection) -> None:
    await connection.set_type_codec("jsonb", encoder=orjson.dumps, decoder=orjson.loads, schema="pg_catalog")
    await connection.set_type_codec("uuid", encoder=str, decoder=str, schema="pg_catalog", format="text")


class OneStatement:
    """Takes the slot and writes all rows by one statement; asks why only if that took nothing."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def book(self, order: Order) -> dict[str, Any]:
        """See ``Store``."""
        now = datetime.now(UTC)
        try:
            row = await self._pool.fetchrow(
                BOOK,
                order.slot_id,
                order.appointment_id,
                order.user_id,
                now,
                order.patient_id,
                order.hold_id,
                order.sealed,
                order.command_id,
                order.mark,
                new_id(),
            )
        except asyncpg.ExclusionViolationError:
            raise Problem("patient_overlap") from None
        except asyncpg.UniqueViolationError:
            return answered_before(await self._pool.fetchrow(FIND_ANSWER, order.command_id), order)
        if row is None:
            return await self._why_not(order)
        return order.visit(row, now)

    async def _why_not(self, order: Order) -> dict[str, Any]:
        """The answer given before, if the slot was taken by this very command.

        Raises:
            Problem
        """
        if (row := await self._pool.fetchrow(FIND_ANSWER, order.command_id)) is not None:
            return answered_before(row, order)
        slot = await self._pool.fetchrow(FIND_SLOT, order.slot_id)
        if slot is None:
            raise Problem("not_found", "There is no such slot.")
        if order.hold_id is not None:
            raise Problem("hold_expired")
        raise Problem("slot_taken" if slot["status"] in ("booked", "held") else "slot_unavailable")
