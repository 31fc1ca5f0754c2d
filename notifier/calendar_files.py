"""Appointments as a calendar file (RFC 5545).

A visit keeps its UID for good; ``SEQUENCE`` is its version, so a calendar program knows what is newer. Calendar
programs send what they hold to many places: whom a doctor sees, why a patient comes and what a doctor is a specialist
of is in no file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from icalendar import Calendar, Event

from persistence.repositories.appointments import AppointmentRow
from persistence.repositories.directory import Location

MEDIA_TYPE: Final = "text/calendar; charset=utf-8"
PRODUCT: Final = "-//zapis//zapis 1//EN"
REFRESH: Final = timedelta(hours=1)
_STATUSES: Final = {"cancelled": "CANCELLED", "noshow": "CANCELLED"}
_A_YEAR: Final = timedelta(days=366)


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """An appointment and what a file says beside it."""

    appointment: AppointmentRow
    location: Location
    summary: str = field(repr=False)


def calendar_file(visits: Iterable[Visit], *, name: str) -> bytes:
    """The visits in one file, with the time zones that they need."""
    calendar = _calendar("PUBLISH")
    calendar.add("x-wr-calname", name)
    calendar.add("refresh-interval", REFRESH, parameters={"value": "DURATION"})
    return _content(calendar, [(visit, _event(visit)) for visit in visits])


def invitation(visit: Visit, *, organizer: str, attendee: str) -> tuple[str, bytes]:
    """A method and a file for a message about one visit (RFC 5546): REQUEST where it takes place, CANCEL where not.

    ``organizer`` and ``attendee`` are e-mail addresses.
    """
    method = "CANCEL" if visit.appointment.status in _STATUSES else "REQUEST"
    event = _event(visit)
    event.add("organizer", f"mailto:{organizer}")
    event.add("attendee", f"mailto:{attendee}", parameters={"PARTSTAT": "ACCEPTED", "RSVP": "FALSE"})
    return method, _content(_calendar(method), [(visit, event)])


def _calendar(method: str) -> Calendar:
    calendar = Calendar()
    calendar.add("prodid", PRODUCT)
    calendar.add("version", "2.0")
    calendar.add("calscale", "GREGORIAN")
    calendar.add("method", method)
    return calendar


def _content(calendar: Calendar, events: Sequence[tuple[Visit, Event]]) -> bytes:
    days: list[date] = []
    for visit, event in events:
        calendar.add_component(event)
        days += [visit.appointment.start.date(), visit.appointment.end.date()]
    if days:
        calendar.add_missing_timezones(first_date=min(days) - _A_YEAR, last_date=max(days) + _A_YEAR)
    content: bytes = calendar.to_ical()
    return content


def _event(visit: Visit) -> Event:
    appointment, clock = visit.appointment, ZoneInfo(visit.location.timezone)
    event = Event()
    event.add("uid", f"{appointment.id}@zapis")
    event.add("sequence", appointment.version)
    event.add("status", _STATUSES.get(appointment.status, "CONFIRMED"))
    event.add("dtstamp", _seconds(appointment.updated_at))
    event.add("created", _seconds(appointment.created_at))
    event.add("last-modified", _seconds(appointment.updated_at))
    event.add("dtstart", appointment.start.astimezone(clock))
    event.add("dtend", appointment.end.astimezone(clock))
    event.add("summary", visit.summary)
    event.add("location", f"{visit.location.name}, {visit.location.address}")
    event.add("class", "PRIVATE")
    event.add("transp", "TRANSPARENT" if appointment.status in _STATUSES else "OPAQUE")
    return event


def _seconds(instant: datetime) -> datetime:
    return instant.astimezone(UTC).replace(microsecond=0)
