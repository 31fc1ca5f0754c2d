"""``/v1/doctors``, ``/v1/specialties``, ``/v1/locations`` and ``/v1/services``: for anybody, without a token."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import Query, Request
from starlette.responses import Response

from api.dependencies import Page, TheServices, problems
from api.directory import service
from api.directory.answers import READ, answer
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

router = strict_router(prefix="/v1", tag="Directory and slots")


@router.get("/doctors", response_model=DoctorPage, responses=READ)
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
    return answer(request, found, now)


@router.get("/doctors/{doctor_id}", response_model=DoctorAnswer, responses=READ | problems("not_found"))
async def get_doctor(request: Request, services: TheServices, doctor_id: Id) -> Response:
    """One doctor."""
    now = datetime.now(UTC)
    async with services.unit_of_work() as work:
        doctor = await service.known_doctor(work, doctor_id)
    return answer(request, doctor_plain(doctor), now)


@router.get("/specialties", response_model=SpecialtyPage, responses=READ)
async def list_specialties(request: Request, directory: TheLocationDirectory, page: Page) -> Response:
    """What the doctors are trained in."""
    known = await directory.specialties()
    found = service.page_of_all(page, "specialties", known.value, key=str, plain=str)
    return answer(request, found, known.as_of)


@router.get("/locations", response_model=LocationPage, responses=READ)
async def list_locations(request: Request, directory: TheLocationDirectory, page: Page) -> Response:
    """Where visits take place."""
    known = await directory.locations()
    found = service.page_of_all(
        page, "locations", known.value.by_id.values(), key=lambda location: location.id, plain=location_plain
    )
    return answer(request, found, known.as_of)


@router.get("/services", response_model=ServicePage, responses=READ)
async def list_services(request: Request, directory: TheLocationDirectory, page: Page) -> Response:
    """What visits can be for."""
    known = await directory.services()
    found = service.page_of_all(page, "services", known.value.values(), key=lambda each: each.id, plain=service_plain)
    return answer(request, found, known.as_of)
