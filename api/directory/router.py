"""``/v1/doctors``, ``/v1/specialties``, ``/v1/locations`` and ``/v1/services``: for anybody, without a token."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from fastapi import Query, Request
from starlette.responses import Response

from api.dependencies import Page, TheServices, problems
from api.directory import service
from api.directory.answers import READ, answer
from api.directory.location_directory import TheLocationDirectory
from api.directory.schemas import (
    NEXT_FREE_DAYS,
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
from api.searches import Found, TheSearches, key_of, respond
from persistence.repositories.directory import Directory
from persistence.unit_of_work import UnitOfWork

router = strict_router(prefix="/v1", tag="Directory and slots")


@router.get("/doctors", response_model=DoctorPage, responses=READ)
async def list_doctors(
    request: Request,
    searches: TheSearches,
    directory: TheLocationDirectory,
    page: Page,
    specialty: Annotated[Specialty | None, Query()] = None,
    location_id: Annotated[Id | None, Query()] = None,
    q: NameQuery = None,
    with_next_free: Annotated[
        Literal["next_free"] | None,
        Query(alias="with", description=f"`next_free`: with the first free slot of the next {NEXT_FREE_DAYS} days."),
    ] = None,
) -> Response:
    """Doctors that meet every condition given. A first free slot is one at the location, if that is given."""
    search = service.doctor_search(specialty=specialty, location_id=location_id, name=q)
    after = page.after("doctors", 1)

    async def read(work: UnitOfWork) -> Found:
        found = await Directory(work.connection, work.vault).doctors(
            search, after=after[0] if after else None, limit=page.limit + 1
        )
        plain = service.page_by_key(page, "doctors", found, key=lambda doctor: (doctor.id,), plain=doctor_plain)
        if with_next_free is not None:
            await service.add_next_free(plain["items"], work, directory, location_id)
        return Found(content=plain)

    conditions = (specialty, location_id, search.beginnings, after, page.limit, with_next_free)
    key = key_of("doctors", *conditions, directory.generation)
    return respond(request, await searches.answer(key, read))


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
