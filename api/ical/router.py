"""``GET /v1/appointments/{id}.ics``, and links to a file of all one's visits that a calendar program subscribes to.

Who has a link can read the file without signing in: the link is the secret. Only its hash is kept; it is shown once,
and ends when it is revoked or its user's account does.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Annotated, Final

from fastapi import Path, Request
from starlette.responses import Response

from actors.messages import Role
from api.dependencies import CurrentUser, Page, TheGate, TheServices, problems, tagged
from api.directory.answers import READ
from api.directory.location_directory import TheLocationDirectory
from api.directory.service import page_by_key
from api.errors import Problem
from api.fields import Answer, Id
from api.routing import Json
from api.routing import router as strict_router
from api.scheduling.router import Desk
from notifier.calendar_files import MEDIA_TYPE, Visit, calendar_file
from persistence.identifiers import new_id
from persistence.repositories.appointments import AppointmentRow, Appointments, AppointmentSearch
from persistence.repositories.calendar_links import CalendarLink, CalendarLinks
from persistence.repositories.directory import Directory
from persistence.unit_of_work import UnitOfWork

LINKS_MAX: Final = 10
"""Links that one user may have."""
SECRET_BYTES: Final = 32
KEPT: Final = timedelta(days=30)
"""Visits of so long ago are still in the file, cancelled ones too: a calendar program has to hear of it."""
VISITS_MAX: Final = 500
"""So many coming ones, and as many past ones."""
MAX_AGE_S: Final = 300

router = strict_router(prefix="/v1", tag="Calendar files")
before_appointments = strict_router(prefix="/v1", tag="Calendar files")
"""What the route of an appointment would take for an id with a dot in it."""


class LinkAnswer(Answer):
    """A link to a calendar file, without its secret."""

    id: Id
    created_at: datetime


class NewLinkAnswer(LinkAnswer):
    """A link that was just made: its address is told only here."""

    url: str


class LinkPage(Answer):
    """One's links."""

    items: list[LinkAnswer]
    next_cursor: str | None


class CalendarFile(Response):
    """A calendar file."""

    media_type = "text/calendar"


@before_appointments.get(
    "/appointments/{appointment_id}.ics", response_class=CalendarFile, responses=READ | problems("not_found")
)
async def appointment_file(
    request: Request,
    appointment_id: Annotated[Id, Path(description="The appointment's id.")],
    desk: Desk,
    services: TheServices,
    principal: CurrentUser,
    locations: TheLocationDirectory,
) -> Response:
    """A visit as a calendar file."""
    row = await desk.visible(appointment_id)
    return await _answered(request, [row], services.unit_of_work(), principal.role, locations, name="zapis")


@router.post("/me/calendar-links", status_code=201, response_model=NewLinkAnswer, responses=problems("limit_reached"))
async def make_link(request: Request, principal: CurrentUser, services: TheServices) -> Response:
    """A new secret address of a file with the caller's visits: their patients', and for doctors those of their day."""
    link = CalendarLink(id=new_id(), user_id=principal.user_id, created_at=datetime.now(UTC))
    secret = secrets.token_urlsafe(SECRET_BYTES)
    async with services.unit_of_work() as work:
        links = CalendarLinks(work.connection)
        if not await links.add(link, secret_hash=_hash(secret), most=LINKS_MAX):
            raise Problem("limit_reached", f"You may have {LINKS_MAX} links: revoke one.")
    base = request.base_url
    if request.headers.get("x-forwarded-proto") == "https":  # Whoever makes that up is told what they made up.
        base = base.replace(scheme="https")
    url = f"{str(base).rstrip('/')}/v1/calendars/{secret}.ics"
    return Json({"id": link.id, "created_at": link.created_at, "url": url}, status_code=201)


@router.get("/me/calendar-links", response_model=LinkPage, responses=problems())
async def list_links(principal: CurrentUser, services: TheServices, page: Page) -> Response:
    """The caller's links."""
    after = page.after("calendar-links", 1)
    async with services.unit_of_work() as work:
        found = await CalendarLinks(work.connection).of(
            principal.user_id, after=None if after is None else after[0], limit=page.limit + 1
        )
    return Json(
        page_by_key(
            page,
            "calendar-links",
            found,
            key=lambda link: (link.id,),
            plain=lambda link: {"id": link.id, "created_at": link.created_at},
        )
    )


@router.delete("/me/calendar-links/{link_id}", status_code=204, responses=problems("not_found"))
async def revoke_link(
    link_id: Annotated[Id, Path(description="The link's id.")], principal: CurrentUser, services: TheServices
) -> Response:
    """End a link: its address is good for nothing any more."""
    async with services.unit_of_work() as work:
        if not await CalendarLinks(work.connection).remove(link_id, user_id=principal.user_id):
            raise Problem("not_found")
    return Response(status_code=204)


@router.get("/calendars/{secret}.ics", response_class=CalendarFile, responses=READ | problems("not_found"))
async def subscribed_file(
    request: Request,
    secret: Annotated[str, Path(max_length=100, description="What `POST /v1/me/calendar-links` told.")],
    services: TheServices,
    gate: TheGate,
    locations: TheLocationDirectory,
) -> Response:
    """The visits of whoever made the link, from 30 days ago on; no token is needed."""
    async with services.unit_of_work() as work:
        user_id = await CalendarLinks(work.connection).user_of(_hash(secret))
    access = None if user_id is None else await gate.principals.get(user_id)
    is_doctor = access is not None and access.role is Role.DOCTOR
    if access is None or access.disabled or (is_doctor and access.doctor_id is None):
        raise Problem("not_found", "There is no such calendar.")
    today = datetime.now(UTC).date()
    coming = AppointmentSearch(
        limit=VISITS_MAX,
        patient_ids=None if is_doctor else sorted(access.patient_keys),
        doctor_id=access.doctor_id if is_doctor else None,
        first_day=today,
    )
    past = replace(coming, latest=True, first_day=today - KEPT, last_day=today - timedelta(days=1))
    async with services.unit_of_work() as work:
        appointments = Appointments(work.connection)
        rows = [*await appointments.search(past), *await appointments.search(coming)]
    return await _answered(request, rows, services.unit_of_work(), access.role, locations, name="zapis")


async def _answered(
    request: Request,
    rows: Sequence[AppointmentRow],
    unit_of_work: UnitOfWork,
    role: Role,
    locations: TheLocationDirectory,
    *,
    name: str,
) -> Response:
    now = datetime.now(UTC)
    for location_id in {row.location_id for row in rows}:
        await locations.timezone_of(location_id)  # It may have been made a moment ago.
    places = (await locations.locations()).value.by_id
    async with unit_of_work as work:
        directory = Directory(work.connection, work.vault)
        doctors = {} if role is Role.DOCTOR else await directory.names({row.doctor_id for row in rows})
    visits = [
        Visit(
            appointment=row,
            location=places[row.location_id],
            summary=doctors.get(row.doctor_id) or places[row.location_id].name,
        )
        for row in rows
    ]
    # In a thread: a year of visits and their time zones take longer than others should wait.
    content = await asyncio.to_thread(calendar_file, visits, name=name)
    response = tagged(request, content, at=now)
    response.headers["cache-control"] = f"private, max-age={MAX_AGE_S}"
    if response.status_code == 200:
        response.headers["content-type"] = MEDIA_TYPE
        response.headers["content-disposition"] = 'inline; filename="visits.ics"'
    return response


def _hash(secret: str) -> bytes:
    return sha256(secret.encode()).digest()
