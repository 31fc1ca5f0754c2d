"""``/v1/doctors``, ``/v1/specialties``, ``/v1/locations`` and ``/v1/services``: for anybody, without a token."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import Query, Request
from starlette.responses import Response

from api.dependencies import Page, TheServices, problems
from api.directory import service
from api.directory.answers import READ_RESPONSES, tagged
from api.directory.location_directory import TheLocationDirectory
from api.directory.schemas import (
    DoctorAnswer,
    DoctorPage,
    LocationPage,
    NameQuery,
    ServicePage,
    Specialty,
    SpecialtyPage,
    doctor_plain,
    location_plain,
    service_plain,
)
from api.fields import Id
from api.routing import router as strict_router

router = strict_router(tag="directory")


@router.get("/v1/doctors", response_model=DoctorPage, responses=READ_RESPONSES)
async def list_doctors(
    request: Request,
    services: TheServices,
    page: Page,
    specialty: Annotated[Specialty | None, Query()] = None,
    location_id: Annotated[Id | None, Query()] = None,
    q: NameQuery = None,
) -> Response:
    """Doctors that meet every condition given."""
    now = datetime.now(UTC)
    async with services.unit_of_work() as work:
        found = await service.page_of_doctors(work, page, specialty=specialty, location_id=location_id, name=q)
    return tagged(request, found, now)


@router.get("/v1/doctors/{doctor_id}", response_model=DoctorAnswer, responses=READ_RESPONSES | problems("not_found"))
async def get_doctor(request: Request, services: TheServices, doctor_id: Id) -> Response:
    """One doctor."""
    now = datetime.now(UTC)
    async with services.unit_of_work() as work:
        doctor = await service.known_doctor(work, doctor_id)
    return tagged(request, doctor_plain(doctor), now)


@router.get("/v1/specialties", response_model=SpecialtyPage, responses=READ_RESPONSES)
async def list_specialties(request: Request, directory: TheLocationDirectory, page: Page) -> Response:
    """What the doctors are trained in."""
    known = await directory.specialties()
    found = service.page_of_all(page, "specialties", known.value, key=str, plain=str)
    return tagged(request, found, known.as_of)


@router.get("/v1/locations", response_model=LocationPage, responses=READ_RESPONSES)
async def list_locations(request: Request, directory: TheLocationDirectory, page: Page) -> Response:
    """Where visits take place."""
    known = await directory.locations()
    found = service.page_of_all(
        page, "locations", known.value.by_id.values(), key=lambda location: location.id, plain=location_plain
    )
    return tagged(request, found, known.as_of)


@router.get("/v1/services", response_model=ServicePage, responses=READ_RESPONSES)
async def list_services(request: Request, directory: TheLocationDirectory, page: Page) -> Response:
    """What visits can be for."""
    known = await directory.services()
    found = service.page_of_all(page, "services", known.value.values(), key=lambda each: each.id, plain=service_plain)
    return tagged(request, found, known.as_of)
