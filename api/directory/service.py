"""Pages of the directory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from api.dependencies import PageRequest
from api.directory.schemas import doctor_plain
from api.errors import Problem, invalid
from persistence.repositories.directory import Directory, Doctor, DoctorSearch, search_beginnings
from persistence.unit_of_work import UnitOfWork

T = TypeVar("T")


async def page_of_doctors(
    work: UnitOfWork, page: PageRequest, *, specialty: str | None, location_id: str | None, name: str | None
) -> dict[str, Any]:
    """One page of the doctors that meet all that is given.

    Raises:
        Problem: 422, a name without letters or digits, or a cursor that is none.
    """
    beginnings = search_beginnings(name) if name is not None else ()
    if name is not None and not beginnings:
        raise invalid("/query/q", "This should contain at least one letter.")
    search = DoctorSearch(specialty=specialty, location_id=location_id, beginnings=beginnings)
    after = page.after("doctors", 1)
    found = await Directory(work.connection, work.vault).doctors(
        search, after=after[0] if after else None, limit=page.limit + 1
    )
    return page_by_key(page, "doctors", found, key=lambda doctor: (doctor.id,), plain=doctor_plain)


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
