"""Absences of a doctor, and single slots that are blocked, opened again or withdrawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final

from fastapi import Request

from actors.availability import DAYS_MAX, zone
from actors.messages import BlockSlot, CancelSlot, CloseCalendar, RemoveClosure, UnblockSlot, Window
from api.administration import schemas
from api.administration.service import unsealed
from api.dependencies import PageRequest, Principal, services_of
from api.directory.location_directory import LocationDirectory
from api.directory.service import page_by_key
from api.errors import Problem, invalid
from api.scheduling import commands
from api.scheduling.service import Scheduling
from api.scheduling.slot_owners import SlotOwners
from persistence.identifiers import new_id
from persistence.repositories.appointments import AppointmentRow
from persistence.repositories.closures import ClosureRow, Closures
from persistence.repositories.directory import Directory
from persistence.repositories.slots import Slots
from persistence.sealed import Vault

REASON_COLUMN: Final = "closure_reason"
DAY: Final = timedelta(days=1)
"""No clock is further from UTC."""

SlotCommand = type[BlockSlot] | type[UnblockSlot] | type[CancelSlot]


class Absences:
    """Serves one request about closures or single slots."""

    def __init__(self, request: Request, principal: Principal) -> None:
        self._request = request
        self._principal = principal
        self._services = services_of(request)
        self._directory: LocationDirectory = request.app.state.location_directory
        self._slot_owners: SlotOwners = request.app.state.slot_owners

    async def close(
        self, doctor_id: str, body: schemas.NewClosure, key: str | None, prefer: str | None
    ) -> dict[str, Any]:
        """Enter an absence, or tell what it would do.

        Raises:
            Problem: ``not_found``, 422.
            Rejection, AnsweredPending: the calendar's answer.
        """
        windows = await self._windows(doctor_id, body)
        command = CloseCalendar(
            **self._header(doctor_id, body.model_dump(), key, prefer),
            closure_id=new_id(),
            windows=windows,
            reason=commands.seal_own(self._services, self._principal, body.reason, REASON_COLUMN),
            dry_run=body.dry_run,
        )
        answer = await commands.run(self._services, command, key=key)
        return {
            "id": None if body.dry_run else answer["closure_id"],
            "blocked": answer["blocked"],
            "displaced": await self._displaced(answer["displaced"]),
        }

    async def page(self, doctor_id: str, page: PageRequest) -> dict[str, Any]:
        """One page of the doctor's absences.

        Raises:
            Problem: ``not_found``.
        """
        after = page.after("closures", 2)
        position = None if after is None else (datetime.fromisoformat(after[0]), after[1])
        async with self._services.unit_of_work() as work:
            if await Directory(work.connection, work.vault).doctor(doctor_id) is None:
                raise Problem("not_found")
            found = await Closures(work.connection).page(doctor_id, after=position, limit=page.limit + 1)
        vault = self._services.vault
        return page_by_key(
            page, "closures", found, key=lambda each: (each.ends_at, each.id), plain=lambda each: _plain(vault, each)
        )

    async def open_again(self, doctor_id: str, closure_id: str, key: str | None) -> None:
        """Take an absence back.

        Raises:
            Problem: ``not_found``.
            Rejection, AnsweredPending: the calendar's answer.
        """
        if key is None:
            async with self._services.unit_of_work() as work:
                if not await Closures(work.connection).exists(closure_id, doctor_id=doctor_id):
                    raise Problem("not_found")
        await commands.run(
            self._services, RemoveClosure(**self._header(doctor_id, None, key, None), closure_id=closure_id)
        )

    async def change_slot(self, kind: SlotCommand, slot_id: str, key: str | None, prefer: str | None) -> dict[str, Any]:
        """Block one slot, open it again or withdraw it: the slot as it is then.

        Raises:
            Problem: ``not_found``.
            Rejection, AnsweredPending: the calendar's answer.
        """
        doctor_id = await self._slot_owners.doctor_of(slot_id)
        if doctor_id is None:
            raise Problem("not_found", "There is no such slot.")
        command = kind(**self._header(doctor_id, None, key, prefer), slot_id=slot_id)
        answer = await commands.run(self._services, command, key=key)
        slot = answer["slot"]
        return {
            "id": slot["id"],
            "doctor_id": doctor_id,
            "location_id": slot["location_id"],
            "service_id": slot["service_id"],
            "timezone": await self._directory.timezone_of(slot["location_id"]),
            "start": datetime.fromisoformat(slot["start"]),
            "end": datetime.fromisoformat(slot["end"]),
            "status": slot["status"],
        }

    def _header(
        self, doctor_id: str, body: Mapping[str, Any] | None, key: str | None, prefer: str | None
    ) -> dict[str, Any]:
        return commands.header(self._request, self._principal, doctor_id=doctor_id, body=body, key=key, prefer=prefer)

    async def _windows(self, doctor_id: str, body: schemas.NewClosure) -> tuple[Window, ...]:
        """What the absence covers: days are those of each location where the doctor works or has slots then."""
        bounds = checked_bounds(body.start, body.end)
        async with self._services.unit_of_work() as work:
            doctor = await Directory(work.connection, work.vault).doctor(doctor_id)
            if doctor is None:
                raise Problem("not_found")
            if isinstance(bounds, Window):
                return (bounds,)
            first_day, last_day = bounds
            location_ids = set(doctor.location_ids) | await Slots(work.connection).locations_between(
                doctor_id,
                datetime.combine(first_day, time(), UTC) - DAY,
                datetime.combine(last_day, time(), UTC) + 2 * DAY,
            )
        zones = {each: await self._directory.timezone_of(each) for each in sorted(location_ids)}
        return day_windows(first_day, last_day, zones)

    async def _displaced(self, appointments: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The visits that lose their slot, as staff see them."""
        plain = list(appointments)
        if not plain:
            return []
        async with self._services.unit_of_work() as work:
            reasons = await Closures(work.connection).sealed_reasons([each["id"] for each in plain])
        return await Scheduling(self._request, self._principal).shown(
            [_row(each, reasons.get(each["id"])) for each in plain]
        )


def checked_bounds(start: date | datetime, end: date | datetime) -> tuple[date, date] | Window:
    """Days, both included, or a window from an instant to before another.

    Raises:
        Problem: 422, one of each, an end before the beginning, or too long a time between.
    """
    longest = timedelta(days=DAYS_MAX)
    if isinstance(start, datetime) and isinstance(end, datetime):
        if end <= start:
            raise invalid("/to", "This should be after from.")
        if end - start > longest:
            raise invalid("/to", f"An absence should have at most {DAYS_MAX} days.")
        return Window(start=start, end=end)
    if isinstance(start, datetime) or isinstance(end, datetime):
        raise invalid("/to", "from and to should both be dates or both be instants.")
    if end < start:
        raise invalid("/to", "This should not be before from.")
    if end - start >= longest:
        raise invalid("/to", f"An absence should have at most {DAYS_MAX} days.")
    return start, end


def day_windows(first_day: date, last_day: date, zones: Mapping[str, str]) -> tuple[Window, ...]:
    """One window for each location: from the first midnight to the last on its clock."""
    windows = []
    for location_id, name in zones.items():
        clock = zone(name)
        start = datetime.combine(first_day, time(), clock).astimezone(UTC)
        end = datetime.combine(last_day + DAY, time(), clock).astimezone(UTC)
        windows.append(Window(start=start, end=end, location_id=location_id))
    return tuple(windows)


def _plain(vault: Vault, closure: ClosureRow) -> dict[str, Any]:
    return {
        "id": closure.id,
        "doctor_id": closure.doctor_id,
        "windows": [
            {"location_id": window.location_id, "start": window.start, "end": window.end} for window in closure.windows
        ],
        "reason": unsealed(vault, closure.created_by, closure.wrapped_key, closure.sealed_reason, REASON_COLUMN),
        "created_by": closure.created_by,
        "created_at": closure.created_at,
    }


def _row(plain: Mapping[str, Any], sealed_reason: bytes | None) -> AppointmentRow:
    """An appointment out of a calendar's answer as if read from the database."""
    return AppointmentRow(
        id=plain["id"],
        doctor_id=plain["doctor_id"],
        patient_id=plain["patient_id"],
        booked_by=plain["booked_by"],
        slot_id=plain["slot_id"],
        location_id=plain["location_id"],
        service_id=plain["service_id"],
        start=datetime.fromisoformat(plain["start"]),
        end=datetime.fromisoformat(plain["end"]),
        status=plain["status"],
        live=True,
        displaced=plain["displaced"],
        version=plain["version"],
        created_at=datetime.fromisoformat(plain["created_at"]),
        updated_at=datetime.fromisoformat(plain["updated_at"]),
        sealed_reason=sealed_reason,
        open_move_id=None,
    )
