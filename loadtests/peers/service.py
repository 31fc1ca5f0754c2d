"""What the hand-written booking services have in common: all but how they book.

They have our authentication, our validation and our answer, and write the rows that we write: slot, appointment, event,
command and outbox, into the same tables with the same indexes and constraints. Of what this project has beside that
they have nothing: no middleware, no metrics, no feed, no limits. They are tuned as ours is: uvloop, httptools, a frozen
heap, prepared statements, a pool of the size that was measured to be best (``ZAPIS_DATABASE_POOL_MAX``).

Where a choice is open they take the cheaper one. Their events are numbered by a PostgreSQL sequence, with gaps, instead
of one number after the other in each calendar, which would take one more row lock a booking. Whether the patient is
elsewhere at that time they leave to the exclusion constraint.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import Response

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
from cluster.settings import Settings, read_settings
from persistence.database import open_database
from persistence.identifiers import new_id
from persistence.lookups import Lookups
from persistence.sealed import Vault, place
from persistence.unit_of_work import UnitOfWork

NUMBERING = "CREATE SEQUENCE IF NOT EXISTS peer_event_sequence START 1000000000"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A booking that has been asked for, checked as far as that goes without the database."""

    appointment_id: str
    slot_id: str
    patient_id: str
    user_id: str
    hold_id: str | None
    sealed: bytes | None
    command_id: str
    mark: str
    """The fingerprint of the request."""

    def visit(self, slot: Sequence[Any], now: datetime) -> dict[str, Any]:
        """The visit there is by it, in a slot: its doctor, location and service, start and end."""
        doctor_id, location_id, service_id, start, end = slot
        return {
            "id": self.appointment_id,
            "doctor_id": doctor_id,
            "patient_id": self.patient_id,
            "booked_by": self.user_id,
            "slot_id": self.slot_id,
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


class Store(Protocol):
    """How a peer books."""

    async def book(self, order: Order) -> dict[str, Any]:
        """The visit: what the answer says of it, its instants as aware datetimes.

        Raises:
            Problem
        """
        ...


OpenStore = Callable[[Settings, Policy], AbstractAsyncContextManager[Store]]
routes = APIRouter(prefix="/v1")  # FastAPI's own, as one writes a service by hand.


def create_service(open_store: OpenStore) -> FastAPI:
    """The service over the settings in the environment."""
    settings = read_settings()
    assert settings.database_url is not None
    vault = Vault(settings.master_key_bytes())
    database = open_database(settings.database_url, pool_max=4)
    unit_of_work = partial(UnitOfWork, database, vault)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        lookups = Lookups(str(settings.database_url))
        app.state.gate = gate = await open_gate(settings, unit_of_work=unit_of_work, lookups=lookups, redis=None)
        policy = policy_of(settings)
        async with open_store(settings, policy) as store:
            app.state.service = Service(store, vault, policy, LocationDirectory(unit_of_work))
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


class Service:
    """From a request to an order, and from the visit to the answer."""

    def __init__(self, store: Store, vault: Vault, policy: Policy, locations: LocationDirectory) -> None:
        self._store = store
        self._vault = vault
        self._policy = policy
        self._locations = locations

    async def book(self, request: Request, user: CurrentUser, body: BookingRequest, key: str | None) -> dict[str, Any]:
        """Book a visit.

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
        visit = await self._store.book(
            Order(
                appointment_id=new_id(),
                slot_id=body.slot_id,
                patient_id=patient_id,
                user_id=user.user_id,
                hold_id=body.hold_id,
                sealed=sealed,
                command_id=new_id() if key is None else keyed_command_id(user.user_id, key),
                mark=fingerprint(self._vault, request.method, request.scope["path"], body.model_dump()),
            )
        )
        start = visit["start"]
        return visit | {
            "timezone": await self._locations.timezone_of(visit["location_id"]),
            "reason": body.reason,
            "move_until": self._policy.move_until(start),
            "cancel_until": self._policy.cancel_until(start),
        }


def answered_before(row: Any, order: Order) -> dict[str, Any]:
    """The visit that a command was answered with when it was sent before: ``(user_id, fingerprint, answer)``.

    Raises:
        Problem: it was another command.
    """
    if row is None or (row[0], row[1]) != (order.user_id, order.mark):
        raise Problem("idempotency_key_reused")
    plain: dict[str, Any] = row[2]["done"]["appointment"]
    return plain | {name: datetime.fromisoformat(plain[name]) for name in ("start", "end", "created_at", "updated_at")}


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


@routes.post("/appointments", status_code=201, response_model=Appointment)
async def book_appointment(
    request: Request,
    body: BookingRequest,
    user: CurrentUser,
    service: Annotated[Service, Depends(_service)],
    key: IdempotencyKey = None,
) -> Response:
    """Book a visit in a free slot, or in one that the caller holds."""
    return _created(await service.book(request, user, body, key))


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
