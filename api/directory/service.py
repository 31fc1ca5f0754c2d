"""Pages of the directory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from api.dependencies import PageRequest
from api.directory.location_directory import LocationDirectory
from api.directory.schemas import NEXT_FREE_DAYS, slot_plain
from api.errors import Problem, invalid
from persistence.repositories.directory import Directory, Doctor, DoctorSearch, search_beginnings
from persistence.repositories.slots import Slots
from persistence.unit_of_work import UnitOfWork

T = TypeVar("T")


def doctor_search(*, specialty: str | None, location_id: str | None, name: str | None) -> DoctorSearch:
    """The search for doctors that meet all that is given.

    Raises:
        Problem: 422, a name without letters or digits.
    """
    beginnings = search_beginnings(name) if name is not None else ()
    if name is not None and not beginnings:
        raise invalid("/query/q", "This should contain at least one letter.")
    return DoctorSearch(specialty=specialty, location_id=location_id, beginnings=beginnings)


async def add_next_free(
    doctors: Sequence[dict[str, Any]], work: UnitOfWork, directory: LocationDirectory, location_id: str | None
) -> None:
    """Put the first free slot of each doctor, at that location or at any, beside what is told of the doctor."""
    now = datetime.now(UTC)
    found = await Slots(work.connection).next_free(
        [doctor["id"] for doctor in doctors],
        now=now,
        until=now + timedelta(days=NEXT_FREE_DAYS),
        location_id=location_id,
    )
    timezones = await directory.timezones_of({slot.location_id for slot in found.values()}, work)
    for doctor in doctors:
        slot = found.get(doctor["id"])
        doctor["next_free"] = None if slot is None else slot_plain(slot, slot.doctor_id, timezones[slot.location_id])


async def known_doctor(work: UnitOfWork, doctor_id: str) -> Doctor:
    """The doctor of that id.

    Raises:
        Problem: 404, there is none.
    """
    doctor = await Directory(work.connection, work.vault).doctor(doctor_id)
    if doctor is None:
        raise Problem("not_found")
    return doctor


def page_of_all(
    page: PageRequest, order: str, everything: Iterable[T], *, key: Callable[[T], str], plain: Callable[[T], Any]
) -> dict[str, Any]:
    """One page of a few things that are all at hand, sorted by ``key``."""
    after = page.after(order, 1)
    rest = [each for each in everything if after is None or key(each) > after[0]]
    return page_by_key(page, order, rest[: page.limit + 1], key=lambda each: (key(each),), plain=plain)


def page_by_key(
    page: PageRequest,
    order: str,
    found: Sequence[T],
    *,
    key: Callable[[T], Sequence[Any]],
    plain: Callable[[T], Any],
) -> dict[str, Any]:
    """One page, of up to one thing more than asked for: that one tells whether there is a next page."""
    shown = found[: page.limit]
    more = len(found) > page.limit
    return {
        "items": [plain(each) for each in shown],
        "next_cursor": page.next_cursor(order, key(shown[-1])) if more else None,
    }
