"""Peer A: FastAPI and `SELECT … FOR UPDATE` in a transaction, as a good engineer writes a booking service by hand.

It has our authentication, our validation and our answer, and writes the rows that we write: slot, appointment, event,
command and outbox, into the same tables with the same indexes and constraints. Of what this project has beside that it
has nothing: no middleware, no metrics, no feed, no limits. It is tuned as ours is: uvloop, httptools, a frozen heap,
prepared statements, a pool of the size that was measured to be best (``ZAPIS_DATABASE_POOL_MAX``). There are two of it:
one sends a statement after the other, as such services are written; the other (``/v1/pipelined/…``) sends all that it
writes in one go, by psycopg's pipeline mode, as few are.

Where a choice is open it takes the cheaper one. Its events are numbered by a PostgreSQL sequence, with gaps, instead of
one number after the other in each calendar, which would take one more row lock a booking. Whether the patient is
elsewhere at that time it leaves to the exclusion constraint.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import Response
from psycopg import AsyncConnection, errors
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from actors.client import freeze_heap
from actors.policy import Policy
from api.dependencies import CurrentUser, IdempotencyKey, version_tag
from api.directory.location_directory import LocationDirectory
from api.errors import Problem, add_handlers
from api.gate import close_gate, open_gate
from api.routing import Json, encoded
from api.scheduling.commands import fingerprint, keyed_command_id
from api.scheduling.schemas import Appointment, BookingRequest
from cluster.bootstrap import policy_of
from cluster.settings import read_settings
from persistence.database import libpq_url, open_database
from persistence.identifiers import new_id
from persistence.lookups import Lookups
from persistence.sealed import Vault, place
from persistence.unit_of_work import UnitOfWork

Pool = AsyncConnectionPool[AsyncConnection[TupleRow]]
routes = APIRouter(prefix="/v1")  # FastAPI's own, as one writes a service by hand.

NUMBERING = "CREATE SEQUENCE IF NOT EXISTS peer_event_sequence START 1000000000"
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
INSERT INTO event (doctor_id, sequence, epoch, at, kind, payload, command_id)
VALUES (%s, nextval('peer_event_sequence'), 0, %s, 'AppointmentBooked', %s, %s)
"""
ADD_COMMAND = "INSERT INTO command (command_id, user_id, fingerprint, answer, at) VALUES (%s, %s, %s, %s, %s)"
ADD_MESSAGE = """
INSERT INTO outbox (id, kind, doctor_id, sequence, appointment_id, version, due_at)
VALUES (%s, 'booked', %s, currval('peer_event_sequence'), %s, 1, %s)
"""
FIND_ANSWER = "SELECT user_id::text, fingerprint, answer FROM command WHERE command_id = %s"


def create_app() -> FastAPI:
    """The service over the settings in the environment."""
    settings = read_settings()
    assert settings.database_url is not None
    vault = Vault(settings.master_key_bytes())
    database = open_database(settings.database_url, pool_max=4)
    unit_of_work = partial(UnitOfWork, database, vault)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        pool: Pool = AsyncConnectionPool(
            libpq_url(str(settings.database_url)),
            min_size=settings.database_pool_max,
            max_size=settings.database_pool_max,
            max_waiting=10_000,
            open=False,
            kwargs={"prepare_threshold": 0, "autocommit": True, "options": "-c timezone=UTC"},
        )
        lookups = Lookups(str(settings.database_url))
        gate = await open_gate(settings, unit_of_work=unit_of_work, lookups=lookups, redis=None)
        app.state.gate = gate
        app.state.peer = Peer(
            pool=pool, vault=vault, policy=policy_of(settings), locations=LocationDirectory(unit_of_work)
        )
        async with pool:
            await pool.wait()
            async with pool.connection() as connection:
                await connection.execute(NUMBERING)
            freeze_heap()
            yield
        await close_gate(gate)
        await lookups.close()
        await database.dispose()

    app = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    add_handlers(app)
    app.router.routes.extend(routes.routes)
    app.add_route("/readyz", _ready)
    return app


class Peer:
    """What books."""

    def __init__(self, *, pool: Pool, vault: Vault, policy: Policy, locations: LocationDirectory) -> None:
        self._pool = pool
        self._vault = vault
        self._policy = policy
        self._locations = locations

    async def book(
        self, request: Request, user: CurrentUser, body: BookingRequest, key: str | None, *, pipelined: bool
    ) -> dict[str, Any]:
        """Book a visit in one transaction.

        Raises:
            Problem
        """
        patient_id = body.patient_id or user.patient_id
        if patient_id is None or not user.books_for(patient_id):
            raise Problem("not_found", "There is no such patient.")
        sealed = None
        if body.reason is not None:
            data_key = user.patient_data_key(self._vault, patient_id)
            sealed = data_key.seal(body.reason.encode(), place("patient", patient_id, "reason"))
        command_id = new_id() if key is None else keyed_command_id(user.user_id, key)
        mark = fingerprint(self._vault, request.method, request.scope["path"], body.model_dump())
        try:
            async with self._pool.connection() as connection, connection.transaction():
                visit = await self._take(connection, user.user_id, patient_id, body, command_id)
                async with connection.pipeline() if pipelined else nullcontext():
                    await self._write(connection, visit, command_id, mark, sealed)
        except errors.ExclusionViolation:
            raise Problem("patient_overlap") from None
        except errors.UniqueViolation:
            visit = await self._answered_before(command_id, user.user_id, mark)
        start = visit["start"]
        return visit | {
            "timezone": await self._locations.timezone_of(visit["location_id"]),
            "reason": body.reason,
            "move_until": self._policy.move_until(start),
            "cancel_until": self._policy.cancel_until(start),
        }

    async def _take(
        self,
        connection: AsyncConnection[TupleRow],
        user_id: str,
        patient_id: str,
        body: BookingRequest,
        command_id: str,
    ) -> dict[str, Any]:
        """Lock the slot and see that it can be had; returns the visit there will be."""
        row = await (await connection.execute(LOCK_SLOT, (body.slot_id,))).fetchone()
        if row is None:
            raise Problem("not_found", "There is no such slot.")
        doctor_id, location_id, service_id, start, end, status, held_until = row
        now = datetime.now(UTC)
        self._policy.check_offer(start, now, override=False)
        if body.hold_id is not None:
            used = await connection.execute(USE_HOLD, (body.hold_id, body.slot_id, user_id, now))
            if not used.rowcount:
                raise Problem("hold_expired")
        elif status == "booked" or (status == "held" and (held_until is None or held_until > now)):
            # Perhaps taken by this very command, sent before.
            if await (await connection.execute(FIND_ANSWER, (command_id,))).fetchone():
                raise errors.UniqueViolation
            raise Problem("slot_taken")
        elif status not in ("free", "held"):
            raise Problem("slot_unavailable")
        return {
            "id": new_id(),
            "doctor_id": doctor_id,
            "patient_id": patient_id,
            "booked_by": user_id,
            "slot_id": body.slot_id,
            "location_id": location_id,
            "service_id": service_id,
            "start": start,
            "end": end,
            "status": "booked",
            "displaced": False,
            "version": 1,
            "created_at": now,
            "updated_at": now,
        }

    async def _write(
        self,
        connection: AsyncConnection[TupleRow],
        visit: dict[str, Any],
        command_id: str,
        mark: str,
        sealed: bytes | None,
    ) -> None:
        appointment_id, doctor_id, slot_id, now = visit["id"], visit["doctor_id"], visit["slot_id"], visit["created_at"]
        event = {
            "appointment_id": appointment_id,
            "patient_id": visit["patient_id"],
            "booked_by": visit["booked_by"],
            "slot_id": slot_id,
        }
        answer = orjson.dumps({"done": {"appointment": visit}}).decode()
        await connection.execute(TAKE_SLOT, (slot_id,))
        await connection.execute(ADD_APPOINTMENT, visit | {"reason": sealed})
        await connection.execute(ADD_EVENT, (doctor_id, now, orjson.dumps(event).decode(), command_id))
        await connection.execute(ADD_COMMAND, (command_id, visit["booked_by"], mark, answer, now))
        await connection.execute(ADD_MESSAGE, (new_id(), doctor_id, appointment_id, now))

    async def _answered_before(self, command_id: str, user_id: str, mark: str) -> dict[str, Any]:
        """What the command was answered when it was sent before."""
        async with self._pool.connection() as connection:
            row = await (await connection.execute(FIND_ANSWER, (command_id,))).fetchone()
        if row is None or row[0] != user_id or row[1] != mark:
            raise Problem("idempotency_key_reused")
        plain: dict[str, Any] = row[2]["done"]["appointment"]
        for name in ("start", "end", "created_at", "updated_at"):
            plain[name] = datetime.fromisoformat(plain[name])
        return plain


async def _peer(request: Request) -> Peer:
    peer: Peer = request.app.state.peer
    return peer


@routes.post("/appointments", status_code=201, response_model=Appointment)
async def book_appointment(
    request: Request,
    body: BookingRequest,
    user: CurrentUser,
    peer: Annotated[Peer, Depends(_peer)],
    key: IdempotencyKey = None,
) -> Response:
    """Book a visit in a free slot, or in one that the caller holds."""
    return _created(await peer.book(request, user, body, key, pipelined=False))


@routes.post("/pipelined/appointments", status_code=201, response_model=Appointment)
async def book_pipelined(
    request: Request,
    body: BookingRequest,
    user: CurrentUser,
    peer: Annotated[Peer, Depends(_peer)],
    key: IdempotencyKey = None,
) -> Response:
    """The same in fewer round trips."""
    return _created(await peer.book(request, user, body, key, pipelined=True))


@routes.post("/nothing", status_code=201, response_model=Appointment)
async def do_nothing(body: BookingRequest, user: CurrentUser, key: IdempotencyKey = None) -> Response:
    """The ceiling: the same authentication and validation, an answer of the same size, and no booking."""
    answer = {"id": user.user_id, "slot_id": body.slot_id, "padding": "x" * 620}
    return _created({"id": "-", "version": 1} | answer)


def _created(visit: dict[str, Any]) -> Response:
    content = encoded(visit)
    headers = {"ETag": version_tag(visit["version"], content), "Location": f"/v1/appointments/{visit['id']}"}
    return Response(content, status_code=201, media_type="application/json", headers=headers)


async def _ready(_: Request) -> Response:
    return Json({"status": "ready"})
