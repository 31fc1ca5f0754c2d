"""``GET /v1/slots``: what can be booked, and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Final

from fastapi import Query, Request
from pydantic import AfterValidator, WithJsonSchema
from starlette.responses import Response

from actors.availability import zone
from api.dependencies import Page
from api.directory.answers import READ
from api.directory.location_directory import TheLocationDirectory
from api.directory.schemas import SlotAnswer, Specialty, slot_plain
from api.directory.service import page_by_key
from api.errors import invalid
from api.fields import Answer, Day, Id
from api.routing import router as strict_router
from api.scheduling.slot_owners import TheSlotOwners
from api.scheduling.slot_queries import Queries, SlotsRoute, stamp_of
from api.searches import Found, TheSearches, earliest, key_of, respond
from persistence.repositories.slots import Slots, SlotSearch, SlotStatus, Window
from persistence.unit_of_work import UnitOfWork

DAYS_MAX: Final = 62
DAYS_AFTER_FIRST: Final = 14

router = strict_router(prefix="/v1", tag="Directory and slots", route_class=SlotsRoute)


class SlotPage(Answer):
    """Slots by start, then id."""

    items: list[SlotAnswer]
    next_cursor: str | None


def _statuses(value: str) -> str:
    if not set(value.split(",")) <= set(SlotStatus):
        raise ValueError(f"This should be one or more of {', '.join(SlotStatus)}, separated by commas.")
    return value


_STATUS: Final = f"({'|'.join(SlotStatus)})"

Statuses = Annotated[
    str,
    Query(max_length=100, description="One or more of them, separated by commas."),
    AfterValidator(_statuses),
    WithJsonSchema({"type": "string", "pattern": f"^{_STATUS}(,{_STATUS}){{0,4}}$", "examples": ["free"]}),
]


@router.get("/slots", response_model=SlotPage, responses=READ)
async def list_slots(
    request: Request,
    directory: TheLocationDirectory,
    owners: TheSlotOwners,
    searches: TheSearches,
    page: Page,
    doctor_id: Annotated[Id | None, Query()] = None,
    specialty: Annotated[Specialty | None, Query()] = None,
    location_id: Annotated[Id | None, Query()] = None,
    service_id: Annotated[
        Id | None, Query(description="Slots of doctors who offer it, for it or for anything.")
    ] = None,
    first_day: Annotated[Day | None, Query(alias="from", description="Default: today.")] = None,
    last_day: Annotated[Day | None, Query(alias="to", description="Included. Default: 14 days after `from`.")] = None,
    status: Statuses = SlotStatus.FREE.value,
) -> Response:
    """Slots that meet every condition given, on days as the clocks of their locations have them.

    A free slot is one that can still be booked: those that have begun are not listed as free.
    """
    now = datetime.now(UTC)
    check_days(first_day, last_day, now)
    locations = (await directory.locations()).value
    generation = directory.generation
    zones = locations.by_timezone
    if location_id is not None:
        place = locations.by_id.get(location_id)
        zones = {} if place is None else {place.timezone: (location_id,)}
    after = page.after("slots", 2)
    search = SlotSearch(
        windows=windows(first_day, last_day, now, zones),
        now=now,
        limit=page.limit + 1,
        statuses=frozenset(SlotStatus(each) for each in status.split(",")),
        after=None if after is None else (datetime.fromisoformat(after[0]), after[1]),
        doctor_id=doctor_id,
        location_id=location_id,
        specialty=specialty,
        service_id=service_id,
    )
    alone = doctor_id if specialty is None and service_id is None else None

    async def read(work: UnitOfWork) -> Found:
        slots = Slots(work.connection)
        calendar = None if alone is None else await slots.calendar(alone, now)
        found = await slots.search(search)
        owners.learn((row.id, row.doctor_id) for row in found)
        first_free = next((row.start for row in found if row.status is SlotStatus.FREE), None)
        timezones = await directory.timezones_of({row.location_id for row in found}, work)
        return Found(
            content=page_by_key(
                page,
                "slots",
                found,
                key=lambda row: (row.start, row.id),
                plain=lambda row: slot_plain(row, row.doctor_id, timezones[row.location_id]),
            ),
            sequence=0 if calendar is None else calendar.sequence,
            until=earliest(first_free, None if calendar is None else calendar.next_hold_ends_at),
        )

    key = key_of("slots", search.key, locations.digest, generation)
    queries: Queries = request.app.state.slot_queries
    queries.learn(request.scope["query_string"], key, alone, stamp_of(now.timestamp(), locations.digest, generation))
    return respond(request, await searches.answer(key, read, doctor_id=alone))


def check_days(first_day: date | None, last_day: date | None, now: datetime) -> None:
    """Let a sane range of days pass.

    Raises:
        Problem: 422, it ends before it begins, or is too long.
    """
    if last_day is None:
        return
    if first_day is not None and last_day < first_day:
        raise invalid("/query/to", "This should not be before from.")
    if (last_day - (first_day or now.date())).days >= DAYS_MAX:
        raise invalid("/query/to", f"The range should have at most {DAYS_MAX} days.")


def windows(
    first_day: date | None, last_day: date | None, now: datetime, zones: Mapping[str, tuple[str, ...]]
) -> tuple[Window, ...]:
    """The instants of the days asked for, by the clocks of each zone's locations; zones that agree share a window."""
    agreeing: dict[tuple[datetime, datetime], tuple[str, ...]] = {}
    for name, location_ids in zones.items():
        start, end = days_in(name, first_day, last_day, now)
        if start < end:
            agreeing[start, end] = agreeing.get((start, end), ()) + location_ids
    return tuple(Window(start=start, end=end, location_ids=ids) for (start, end), ids in agreeing.items())


def days_in(timezone: str, first_day: date | None, last_day: date | None, now: datetime) -> tuple[datetime, datetime]:
    """The instants ``[start, end)`` of days by a zone's clock; none where the last day is before the first.

    By default from today on, and 14 more.
    """
    clock = zone(timezone)
    first = first_day or now.astimezone(clock).date()
    last = last_day or first + timedelta(days=DAYS_AFTER_FIRST)
    start, end = (datetime.combine(day, time(), clock).astimezone(UTC) for day in (first, last + timedelta(days=1)))
    return start, max(start, end)
