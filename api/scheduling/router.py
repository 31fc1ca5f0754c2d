"""The routes of holds, appointments and commands."""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from fastapi import Depends, Path, Query, Request
from fastapi.responses import Response

from actors.messages import FulfilAppointment, RecordArrival, RecordNoShow, Role
from api.dependencies import (
    CurrentUser,
    IdempotencyKey,
    IfVersion,
    Page,
    Prefer,
    Staff,
    as_of,
    problems,
    tagged,
    version_tag,
)
from api.directory.answers import READ
from api.errors import Problem, invalid
from api.fields import Day, Id
from api.routing import Json, encoded, router
from api.scheduling import schemas
from api.scheduling.commands import AnsweredPending
from api.scheduling.service import Scheduling, VisitCommand
from persistence.repositories.appointments import AppointmentSearch

routes = router(prefix="/v1", tag="Booking")

LIST_ORDER: Final = "appointments"
PENDING: Final[dict[int | str, dict[str, Any]]] = {
    202: {
        "model": schemas.PendingCommand,
        "description": "Decided, not committed: ask at `Location`.",
        "headers": {"Location": {"schema": {"type": "string"}}},
    }
}
_TAKING: Final = ("not_found", "slot_taken", "slot_unavailable", "too_late", "limit_reached", "hold_expired")
_COMMAND: Final = ("idempotency_key_reused",)
_VISIT: Final = ("not_found", "not_live", "version_conflict", "idempotency_key_reused")


async def scheduling(request: Request, principal: CurrentUser) -> Scheduling:
    """What serves this request."""
    return Scheduling(request, principal)


Desk = Annotated[Scheduling, Depends(scheduling)]
AppointmentId = Annotated[Id, Path(description="The appointment's id.")]


@routes.post(
    "/appointments",
    status_code=201,
    response_model=schemas.Appointment,
    responses=PENDING | problems(*_TAKING, *_COMMAND, "patient_overlap", "forbidden"),
)
async def book_appointment(
    body: schemas.BookingRequest, desk: Desk, key: IdempotencyKey = None, prefer: Prefer = None
) -> Response:
    """Book a visit in a free slot, or in one that the caller holds."""
    return await _appointment(desk.book(body, key, prefer), status=201)


@routes.get("/appointments", response_model=schemas.Appointments, responses=problems())
async def list_appointments(
    principal: CurrentUser,
    desk: Desk,
    page: Page,
    status: Annotated[str | None, Query(max_length=100, description="One status or several, by commas.")] = None,
    first_day: Annotated[Day | None, Query(alias="from", description="The first day, in the location's zone.")] = None,
    last_day: Annotated[Day | None, Query(alias="to", description="The last day, included.")] = None,
    patient_id: Id | None = None,
    doctor_id: Id | None = None,
    location_id: Id | None = None,
) -> Response:
    """A user's patients' visits, a doctor's own, for administrators all; by start, then id."""
    now = datetime.now(UTC)
    if first_day is not None and last_day is not None and last_day < first_day:
        raise invalid("/query/to", "This should not be before `from`.")
    patient_ids = None if patient_id is None else [patient_id]
    if principal.role is Role.PATIENT:
        patient_ids = [own for own in principal.patient_keys if patient_id in (None, own)]
    if principal.role is Role.DOCTOR:
        if doctor_id not in (None, principal.doctor_id):
            return Json({"items": [], "next_cursor": None}, headers=as_of(now))
        doctor_id = principal.doctor_id
    after = page.after(LIST_ORDER, 2)
    rows = await desk.search(
        AppointmentSearch(
            limit=page.limit + 1,
            after=None if after is None else (datetime.fromisoformat(after[0]), after[1]),
            patient_ids=patient_ids,
            doctor_id=doctor_id,
            location_id=location_id,
            statuses=_statuses(status),
            first_day=first_day,
            last_day=last_day,
        )
    )
    more = len(rows) > page.limit
    rows = rows[: page.limit]
    next_cursor = page.next_cursor(LIST_ORDER, (rows[-1].start, rows[-1].id)) if more else None
    return Json({"items": await desk.shown(rows), "next_cursor": next_cursor}, headers=as_of(now))


@routes.get(
    "/appointments/{appointment_id}", response_model=schemas.Appointment, responses=READ | problems("not_found")
)
async def get_appointment(request: Request, appointment_id: AppointmentId, desk: Desk) -> Response:
    """One visit; its ETag begins with its version."""
    now = datetime.now(UTC)
    appointment = await desk.get(appointment_id)
    content = encoded(appointment)
    return tagged(request, content, at=now, tag=version_tag(appointment["version"], content))


@routes.post(
    "/appointments/{appointment_id}/reschedule",
    response_model=schemas.Appointment,
    responses=PENDING | problems(*_TAKING, *_VISIT, "patient_overlap", "already_arrived", "forbidden"),
)
async def reschedule_appointment(
    appointment_id: AppointmentId,
    body: schemas.RescheduleRequest,
    desk: Desk,
    version: IfVersion,
    key: IdempotencyKey = None,
    prefer: Prefer = None,
) -> Response:
    """Move a visit to another slot, which may be another doctor's; it keeps its id."""
    return await _appointment(desk.reschedule(appointment_id, body, version, key, prefer))


@routes.post(
    "/appointments/{appointment_id}/cancel",
    response_model=schemas.Appointment,
    responses=PENDING | problems(*_VISIT, "too_late", "forbidden"),
)
async def cancel_appointment(
    appointment_id: AppointmentId,
    desk: Desk,
    version: IfVersion,
    body: schemas.CancelRequest | None = None,
    key: IdempotencyKey = None,
    prefer: Prefer = None,
) -> Response:
    """Cancel a visit; its slot is free again."""
    return await _appointment(desk.cancel(appointment_id, body or schemas.CancelRequest(), version, key, prefer))


@routes.post(
    "/appointments/{appointment_id}/arrive",
    response_model=schemas.Appointment,
    responses=PENDING | problems(*_VISIT, "already_arrived", "forbidden"),
)
async def arrive(
    _: Staff,
    appointment_id: AppointmentId,
    desk: Desk,
    version: IfVersion,
    key: IdempotencyKey = None,
    prefer: Prefer = None,
) -> Response:
    """Note that the patient is there."""
    return await _note(RecordArrival, appointment_id, desk, version, key, prefer)


@routes.post(
    "/appointments/{appointment_id}/fulfil",
    response_model=schemas.Appointment,
    responses=PENDING | problems(*_VISIT, "too_early", "forbidden"),
)
async def fulfil(
    _: Staff,
    appointment_id: AppointmentId,
    desk: Desk,
    version: IfVersion,
    key: IdempotencyKey = None,
    prefer: Prefer = None,
) -> Response:
    """Note that the visit took place."""
    return await _note(FulfilAppointment, appointment_id, desk, version, key, prefer)


@routes.post(
    "/appointments/{appointment_id}/no-show",
    response_model=schemas.Appointment,
    responses=PENDING | problems(*_VISIT, "too_early", "already_arrived", "forbidden"),
)
async def no_show(
    _: Staff,
    appointment_id: AppointmentId,
    desk: Desk,
    version: IfVersion,
    key: IdempotencyKey = None,
    prefer: Prefer = None,
) -> Response:
    """Note that the patient did not come."""
    return await _note(RecordNoShow, appointment_id, desk, version, key, prefer)


@routes.post(
    "/holds",
    status_code=201,
    response_model=schemas.Hold,
    responses=PENDING | problems("not_found", "slot_taken", "slot_unavailable", "too_late", "limit_reached", *_COMMAND),
)
async def hold_slot(
    body: schemas.HoldRequest, desk: Desk, key: IdempotencyKey = None, prefer: Prefer = None
) -> Response:
    """Keep a slot for the caller alone for a short time; it ends by itself."""
    try:
        return Json(await desk.hold(body, key, prefer), status_code=201)
    except AnsweredPending as pending:
        return pending.response()


@routes.get("/holds", response_model=schemas.Holds, responses=problems())
async def list_holds(desk: Desk, page: Page) -> Response:
    """One's own holds that have not ended, the first to end first."""
    now = datetime.now(UTC)
    after = page.after("holds", 1)
    held = [hold for hold in await desk.holds(now) if after is None or hold.id > after[0]]
    held.sort(key=lambda hold: hold.id)
    more = len(held) > page.limit
    held = held[: page.limit]
    items = [{"id": hold.id, "slot_id": hold.slot_id, "expires_at": hold.expires_at} for hold in held]
    cursor = page.next_cursor("holds", (held[-1].id,)) if more else None
    return Json({"items": items, "next_cursor": cursor}, headers=as_of(now))


@routes.delete("/holds/{hold_id}", status_code=204, responses=PENDING | problems("not_found"))
async def release_hold(hold_id: Annotated[Id, Path(description="The hold's id.")], desk: Desk) -> Response:
    """End one's own hold before its time."""
    try:
        await desk.release(hold_id)
    except AnsweredPending as pending:
        return pending.response()
    return Response(status_code=204)


@routes.get("/commands/{command_id}", response_model=schemas.CommandState, responses=problems("not_found"))
async def get_command(command_id: Annotated[Id, Path(description="The command's id.")], desk: Desk) -> Response:
    """What has become of a command that was answered with 202; 404 when it was lost."""
    now = datetime.now(UTC)
    return Json(await desk.command_state(command_id), headers=as_of(now))


async def _note(
    kind: VisitCommand, appointment_id: str, desk: Scheduling, version: int | None, key: str | None, prefer: str | None
) -> Response:
    return await _appointment(desk.note(kind, appointment_id, version, key, prefer))


async def _appointment(answering: Awaitable[dict[str, Any]], *, status: int = 200) -> Response:
    """The appointment that a command led to, or the 202 of one that is not committed."""
    try:
        appointment = await answering
    except AnsweredPending as pending:
        return pending.response()
    content = encoded(appointment)
    headers = {"ETag": version_tag(appointment["version"], content)}
    if status == 201:
        headers["Location"] = f"/v1/appointments/{appointment['id']}"
    return Response(content, status_code=status, media_type="application/json", headers=headers)


def _statuses(given: str | None) -> list[str]:
    """The statuses named in a query.

    Raises:
        Problem: one of them is none.
    """
    if given is None:
        return []
    names = [name.strip() for name in given.split(",") if name.strip()]
    known = set(schemas.Status)
    if not names or not set(names) <= known:
        raise Problem("validation_error", errors=[("/query/status", f"This should be of: {', '.join(sorted(known))}.")])
    return names
