"""``/v1/admin/…`` and ``/v1/doctor/closures``."""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from fastapi import Depends, Path, Request
from starlette.responses import Response

from actors.messages import BlockSlot, CancelSlot, UnblockSlot
from api.administration import schemas
from api.administration.closures import Absences, SlotCommand
from api.administration.schedules import Schedules, template_plain
from api.administration.service import Administration, account_plain
from api.dependencies import (
    Admin,
    DoctorOnly,
    IdempotencyKey,
    Page,
    Prefer,
    Principal,
    TheGate,
    TheServices,
    as_of,
    problems,
)
from api.directory.location_directory import TheLocationDirectory
from api.directory.schemas import (
    DoctorAnswer,
    LocationAnswer,
    ServiceAnswer,
    SlotAnswer,
    doctor_plain,
    location_plain,
    service_plain,
)
from api.errors import Problem
from api.fields import Id
from api.routing import Json
from api.routing import router as strict_router
from api.scheduling.commands import AnsweredPending
from api.scheduling.router import PENDING

router = strict_router(prefix="/v1", tag="Administration")

CALENDAR: Final = ("forbidden", "not_found", "idempotency_key_reused", "validation_error")
SLOT: Final = (*CALENDAR, "slot_unavailable")


async def administration(services: TheServices, directory: TheLocationDirectory, principal: Admin) -> Administration:
    """What serves this request."""
    return Administration(services, directory, principal)


async def schedules(request: Request, principal: Admin) -> Schedules:
    """What serves this request."""
    return Schedules(request, principal)


async def absences(request: Request, principal: Admin) -> Absences:
    """What serves this request."""
    return Absences(request, principal)


async def own_absences(request: Request, principal: DoctorOnly) -> tuple[Absences, str]:
    """What serves this request, and whose absences these are."""
    return Absences(request, principal), _own_doctor_id(principal)


TheAdministration = Annotated[Administration, Depends(administration)]
TheSchedules = Annotated[Schedules, Depends(schedules)]
TheAbsences = Annotated[Absences, Depends(absences)]
OwnAbsences = Annotated[tuple[Absences, str], Depends(own_absences)]
LocationId = Annotated[Id, Path(description="The location's id.")]
ServiceId = Annotated[Id, Path(description="The service's id.")]
DoctorId = Annotated[Id, Path(description="The doctor's id.")]
TemplateId = Annotated[Id, Path(description="The template's id.")]
ClosureId = Annotated[Id, Path(description="The closure's id.")]
SlotId = Annotated[Id, Path(description="The slot's id.")]
UserId = Annotated[Id, Path(description="The user's id.")]

# Locations and services


@router.post(
    "/admin/locations",
    status_code=201,
    response_model=LocationAnswer,
    responses=problems("forbidden", "limit_reached"),
)
async def create_location(body: schemas.NewLocation, admin: TheAdministration) -> Response:
    """Add a place where doctors see patients."""
    return Json(location_plain(await admin.add_location(body)), status_code=201)


@router.patch(
    "/admin/locations/{location_id}", response_model=LocationAnswer, responses=problems("forbidden", "not_found")
)
async def change_location(location_id: LocationId, body: schemas.LocationChange, admin: TheAdministration) -> Response:
    """Change a location."""
    return Json(location_plain(await admin.change_location(location_id, body)))


@router.post(
    "/admin/services",
    status_code=201,
    response_model=ServiceAnswer,
    responses=problems("forbidden", "limit_reached"),
)
async def create_service(body: schemas.NewService, admin: TheAdministration) -> Response:
    """Add something that a visit can be for."""
    return Json(service_plain(await admin.add_service(body)), status_code=201)


@router.patch(
    "/admin/services/{service_id}", response_model=ServiceAnswer, responses=problems("forbidden", "not_found")
)
async def change_service(service_id: ServiceId, body: schemas.ServiceChange, admin: TheAdministration) -> Response:
    """Change a service."""
    return Json(service_plain(await admin.change_service(service_id, body)))


# Doctors


@router.post(
    "/admin/doctors",
    status_code=201,
    response_model=DoctorAnswer,
    responses=problems("forbidden", "login_taken", "email_taken", "phone_taken"),
)
async def create_doctor(body: schemas.NewDoctor, gate: TheGate, admin: TheAdministration) -> Response:
    """Add a doctor, with the account that they sign in with and an empty calendar."""
    doctor = await admin.add_doctor(gate, body)
    return Json(doctor_plain(doctor), status_code=201, headers={"Location": f"/v1/doctors/{doctor.id}"})


@router.patch(
    "/admin/doctors/{doctor_id}",
    response_model=DoctorAnswer,
    responses=problems("forbidden", "not_found"),
)
async def change_doctor(doctor_id: DoctorId, body: schemas.DoctorChange, admin: TheAdministration) -> Response:
    """Change a doctor; slots that are open already stay."""
    return Json(doctor_plain(await admin.change_doctor(doctor_id, body)))


# Templates


@router.post(
    "/admin/doctors/{doctor_id}/templates",
    status_code=201,
    response_model=schemas.TemplateAnswer,
    responses=problems("forbidden", "not_found", "limit_reached"),
)
async def create_template(doctor_id: DoctorId, body: schemas.NewTemplate, admin: TheSchedules) -> Response:
    """Add weekly rules of a doctor; they open nothing until they are published."""
    return Json(template_plain(await admin.add(doctor_id, body)), status_code=201)


@router.get(
    "/admin/doctors/{doctor_id}/templates",
    response_model=schemas.TemplatePage,
    responses=problems("forbidden", "not_found"),
)
async def list_templates(doctor_id: DoctorId, page: Page, admin: TheSchedules) -> Response:
    """The doctor's templates."""
    return await _listed(admin.page(doctor_id, page))


@router.delete(
    "/admin/doctors/{doctor_id}/templates/{template_id}",
    status_code=204,
    responses=problems("forbidden", "not_found"),
)
async def delete_template(doctor_id: DoctorId, template_id: TemplateId, admin: TheSchedules) -> Response:
    """Remove a template; the slots that it has opened stay."""
    await admin.remove(doctor_id, template_id)
    return Response(status_code=204)


@router.post(
    "/admin/doctors/{doctor_id}/publish",
    response_model=schemas.PublicationAnswer,
    responses=PENDING | problems(*CALENDAR),
)
async def publish(
    doctor_id: DoctorId,
    body: schemas.Publication,
    admin: TheSchedules,
    key: IdempotencyKey = None,
    prefer: Prefer = None,
) -> Response:
    """Open the slots that the doctor's templates ask for; repeating it opens nothing twice."""
    return await _answered(admin.publish(doctor_id, body, key, prefer))


# Closures


@router.post(
    "/admin/doctors/{doctor_id}/closures",
    status_code=201,
    response_model=schemas.ClosureMade,
    responses=PENDING | problems(*CALENDAR),
)
async def create_closure(
    doctor_id: DoctorId,
    body: schemas.NewClosure,
    admin: TheAbsences,
    key: IdempotencyKey = None,
    prefer: Prefer = None,
) -> Response:
    """Enter an absence of a doctor: it blocks the slots it covers. Visits in them stay live, and are displaced."""
    return await _answered(admin.close(doctor_id, body, key, prefer), status=201)


@router.get(
    "/admin/doctors/{doctor_id}/closures",
    response_model=schemas.ClosurePage,
    responses=problems("forbidden", "not_found"),
)
async def list_closures(doctor_id: DoctorId, page: Page, admin: TheAbsences) -> Response:
    """The doctor's absences."""
    return await _listed(admin.page(doctor_id, page))


@router.delete(
    "/admin/doctors/{doctor_id}/closures/{closure_id}",
    status_code=204,
    responses=PENDING | problems("forbidden", "not_found", "idempotency_key_reused"),
)
async def delete_closure(
    doctor_id: DoctorId, closure_id: ClosureId, admin: TheAbsences, key: IdempotencyKey = None
) -> Response:
    """Take an absence back: its slots are open again."""
    return await _done(admin.open_again(doctor_id, closure_id, key))


@router.post(
    "/doctor/closures",
    status_code=201,
    response_model=schemas.ClosureMade,
    responses=PENDING | problems(*CALENDAR),
)
async def create_own_closure(
    body: schemas.NewClosure, own: OwnAbsences, key: IdempotencyKey = None, prefer: Prefer = None
) -> Response:
    """Enter an absence of one's own."""
    doctor, doctor_id = own
    return await _answered(doctor.close(doctor_id, body, key, prefer), status=201)


@router.get("/doctor/closures", response_model=schemas.ClosurePage, responses=problems("forbidden"))
async def list_own_closures(page: Page, own: OwnAbsences) -> Response:
    """One's own absences."""
    doctor, doctor_id = own
    return await _listed(doctor.page(doctor_id, page))


@router.delete(
    "/doctor/closures/{closure_id}",
    status_code=204,
    responses=PENDING | problems("forbidden", "not_found", "idempotency_key_reused"),
)
async def delete_own_closure(closure_id: ClosureId, own: OwnAbsences, key: IdempotencyKey = None) -> Response:
    """Take an absence of one's own back."""
    doctor, doctor_id = own
    return await _done(doctor.open_again(doctor_id, closure_id, key))


# Single slots


@router.post("/admin/slots/{slot_id}/block", response_model=SlotAnswer, responses=PENDING | problems(*SLOT))
async def block_slot(
    slot_id: SlotId, admin: TheAbsences, key: IdempotencyKey = None, prefer: Prefer = None
) -> Response:
    """Block one slot; a visit in it stays live, and is displaced."""
    return await _slot(admin, BlockSlot, slot_id, key, prefer)


@router.post("/admin/slots/{slot_id}/unblock", response_model=SlotAnswer, responses=PENDING | problems(*SLOT))
async def unblock_slot(
    slot_id: SlotId, admin: TheAbsences, key: IdempotencyKey = None, prefer: Prefer = None
) -> Response:
    """Undo the blocking of one slot."""
    return await _slot(admin, UnblockSlot, slot_id, key, prefer)


@router.post("/admin/slots/{slot_id}/cancel", response_model=SlotAnswer, responses=PENDING | problems(*SLOT))
async def cancel_slot(
    slot_id: SlotId, admin: TheAbsences, key: IdempotencyKey = None, prefer: Prefer = None
) -> Response:
    """Withdraw one slot for good."""
    return await _slot(admin, CancelSlot, slot_id, key, prefer)


# Accounts and the audit trail


@router.get("/admin/users", response_model=schemas.AccountPage, responses=problems("forbidden"))
async def list_users(page: Page, admin: TheAdministration) -> Response:
    """Every account."""
    return await _listed(admin.users(page))


@router.patch(
    "/admin/users/{user_id}",
    response_model=schemas.AccountAnswer,
    responses=problems("forbidden", "not_found", "last_admin", "not_a_doctor"),
)
async def change_user(
    user_id: UserId, body: schemas.AccountChange, gate: TheGate, admin: TheAdministration
) -> Response:
    """Keep a user out or let them in again; make them something else to the clinic."""
    return Json(account_plain(await admin.change_user(gate, user_id, body)))


@router.get("/admin/audit", response_model=schemas.AuditPage, responses=problems("forbidden"))
async def list_audit(page: Page, admin: TheAdministration) -> Response:
    """Who did what to what, when, and by which override; the last first."""
    return await _listed(admin.audit(page))


async def _slot(admin: Absences, kind: SlotCommand, slot_id: str, key: str | None, prefer: str | None) -> Response:
    return await _answered(admin.change_slot(kind, slot_id, key, prefer))


async def _listed(reading: Awaitable[dict[str, Any]]) -> Response:
    """A page, as of now."""
    now = datetime.now(UTC)
    return Json(await reading, headers=as_of(now))


async def _answered(answering: Awaitable[dict[str, Any]], *, status: int = 200) -> Response:
    """What a command led to, or the 202 of one that is not committed."""
    try:
        return Json(await answering, status_code=status)
    except AnsweredPending as pending:
        return pending.response()


async def _done(doing: Awaitable[None]) -> Response:
    try:
        await doing
    except AnsweredPending as pending:
        return pending.response()
    return Response(status_code=204)


def _own_doctor_id(principal: Principal) -> str:
    if principal.doctor_id is None:
        raise Problem("forbidden", "You have no calendar.")
    return principal.doctor_id
