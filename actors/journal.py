"""What a calendar actor asks of the journal, and what it hands over to be committed.

The journal's promises (``tests/contract`` holds every implementation to them):

- ``claim`` raises the calendar's epoch and returns only when no older epoch can commit any more.
- ``append`` commits everything it is given, or nothing, in one transaction, and only while every calendar in it is
  still at the epoch and sequence that it names.
- What it raises says what is known: ``StaleEpoch`` and ``Conflict`` mean *nothing was committed*, as does
  ``JournalUnavailable``; ``OutcomeUnknown`` means just that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from actors.calendar import Calendar, appointment_plain
from actors.changes import Effect
from actors.decisions import Facts
from actors.messages import (
    AppointmentMovedIn,
    AppointmentMovedOut,
    Event,
    MoveRefused,
    MoveReserved,
    ReservationReleased,
)
from actors.slots import Slot


class StaleEpoch(Exception):
    """Someone else has claimed these calendars since; nothing was committed."""

    def __init__(self, doctor_ids: Sequence[str]) -> None:
        super().__init__(f"{len(doctor_ids)} calendars claimed by another activation")
        self.doctor_ids = tuple(doctor_ids)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.doctor_ids,)


class Conflict(Exception):
    """The database saw what the calendars could not: decide again with facts. Nothing was committed."""


class OutcomeUnknown(Exception):
    """The connection was lost around the commit: it may have happened or not."""


class JournalUnavailable(Exception):
    """The database cannot be reached or cannot write now; nothing was committed."""


class NoSuchCalendar(Exception):
    """There is no such doctor."""


class NewerPlacement(Exception):
    """Calendars have been placed anew since the generation the claim was made under."""

    def __init__(self, generation: int) -> None:
        super().__init__(f"placement is at generation {generation}")
        self.generation = generation

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.generation,)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAnswer:
    """What was answered under a command id: ``{"done": …}``, or ``{"rejected": …}`` for one that had been pending."""

    fingerprint: str
    user_id: str
    answer: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRow:
    """An answer to be stored in the transaction of the command's effect."""

    command_id: str
    user_id: str
    fingerprint: str
    answer: Mapping[str, Any]
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRow:
    """What a member of staff did to a calendar."""

    user_id: str
    role: str
    action: str
    subject: str
    subject_id: str | None
    override: str | None
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """One event with its number."""

    doctor_id: str
    sequence: int
    epoch: int
    at: datetime
    command_id: str
    event: Event
    effect: Effect


@dataclass(frozen=True, slots=True, kw_only=True)
class CalendarRow:
    """The fence of one calendar: at ``epoch`` and ``expected`` before, at ``reached`` after."""

    doctor_id: str
    epoch: int
    expected: int
    reached: int
    last_event_at: datetime | None


@dataclass(slots=True, kw_only=True)
class Append:
    """One transaction. Rows are plain data named as the columns they go to, one net row for each thing touched."""

    calendars: list[CalendarRow] = field(default_factory=list)
    events: list[EventRow] = field(default_factory=list)
    commands: list[CommandRow] = field(default_factory=list)
    audit: list[AuditRow] = field(default_factory=list)
    new_slots: list[dict[str, Any]] = field(default_factory=list)
    slots: list[dict[str, Any]] = field(default_factory=list)
    holds: list[dict[str, Any]] = field(default_factory=list)
    holds_gone: list[str] = field(default_factory=list)
    appointments: list[dict[str, Any]] = field(default_factory=list)
    closures: list[dict[str, Any]] = field(default_factory=list)
    closures_removed: list[dict[str, Any]] = field(default_factory=list)
    moves: list[dict[str, Any]] = field(default_factory=list)
    look_up: list[str] = field(default_factory=list)
    """Ids of commands refused in this batch: their stored answers are wanted."""
    patients: set[str] = field(default_factory=set)
    """Whose appointments are to be checked across calendars."""
    limited_patients: set[str] = field(default_factory=set)
    """Those of them who booked under the limit of live appointments."""
    overridden_patients: list[str] = field(default_factory=list)
    """One for each visit that staff booked past that limit in the same batch."""
    holders: set[str] = field(default_factory=set)
    """Users whose number of holds is to be checked across calendars."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A calendar is ours at ``epoch``."""

    epoch: int


class Journal(Protocol):
    """See the module's text for the promises."""

    async def claim(self, doctor_id: str, generation: int) -> Claim:
        """Raise the calendar's epoch.

        Raises:
            NoSuchCalendar, NewerPlacement, JournalUnavailable
        """
        ...

    async def load(self, doctor_id: str, now: datetime) -> Calendar:
        """The calendar as committed: what is live, open or yet to come.

        Raises:
            NoSuchCalendar, JournalUnavailable
        """
        ...

    async def append(self, append: Append) -> dict[str, StoredAnswer]:
        """Commit; returns the stored answers found for ``append.look_up``.

        Raises:
            StaleEpoch, Conflict, OutcomeUnknown, JournalUnavailable
        """
        ...

    async def look_up(self, command_ids: Iterable[str]) -> dict[str, StoredAnswer]:
        """Stored answers by command id.

        Raises:
            JournalUnavailable
        """
        ...

    async def facts(self, patient_ids: Iterable[str], user_ids: Iterable[str], move_ids: Iterable[str]) -> Facts:
        """What calendars cannot see of each other.

        Raises:
            JournalUnavailable
        """
        ...

    async def close(self) -> None:
        """Let the connections go."""
        ...


class Announcer(Protocol):
    """Tells whoever listens what has been committed, without a promise: who has to know asks the journal as well."""

    def announce(self, events: Sequence[EventRow]) -> None:
        """These are committed, in the order of their numbers within each calendar. Does not wait, and never fails."""
        ...

    async def close(self) -> None:
        """Let the connections go."""
        ...


def collect_changes(calendar: Calendar, append: Append) -> None:
    """Add to ``append`` one net row for everything touched in ``calendar`` since the last time, and forget it."""
    changes = calendar.changes
    doctor_id = calendar.doctor_id
    for slot_id in changes.slots_published:
        append.new_slots.append(_new_slot_row(doctor_id, calendar.slots[slot_id]))
    for slot_id in changes.slots - changes.slots_published:
        append.slots.append({"doctor_id": doctor_id, **slot_state_row(calendar.slots[slot_id])})
    for hold_id in changes.holds:
        hold = calendar.holds.get(hold_id)
        if hold is None:
            append.holds_gone.append(hold_id)
        else:
            append.holds.append(
                {
                    "id": hold.id,
                    "doctor_id": doctor_id,
                    "slot_id": hold.slot_id,
                    "user_id": hold.user_id,
                    "expires_at": hold.expires_at,
                }
            )
    for appointment_id in changes.appointments:
        append.appointments.append(appointment_row(calendar.appointment_plain(appointment_id)))
    for moved in changes.moved_out.values():
        append.appointments.append(moved_out_row(moved))
    for closure_id in changes.closures:
        windows = calendar.closures.get(closure_id)
        if windows is None:
            append.closures_removed.append({"id": closure_id, "removed_at": calendar.last_event_at})
        else:
            append.closures.append(
                {
                    "id": closure_id,
                    "doctor_id": doctor_id,
                    "windows": [[window.location_id, window.start, window.end] for window in windows],
                    "ends_at": max((window.end for window in windows), default=calendar.last_event_at),
                    "created_by": calendar.closed_by[closure_id],
                    "created_at": calendar.last_event_at,
                }
            )
    calendar.forget_changes()


def move_row(event: Event, doctor_id: str, at: datetime) -> dict[str, Any] | None:
    """What an event does to its ``move`` row: the state it leads to and the states it may come from."""
    match event:
        case MoveReserved():
            return {
                "id": event.move_id,
                "appointment_id": event.appointment_id,
                "source_doctor_id": event.source_doctor_id,
                "target_doctor_id": doctor_id,
                "target_slot_id": event.slot_id,
                "request": dict(event.request),
                "state": "reserved",
                "before": ["released"],
                "at": at,
            }
        case AppointmentMovedOut():
            return {"id": event.move_id, "state": "moved", "before": ["reserved"]}
        case MoveRefused():
            return {"id": event.move_id, "state": "aborted", "before": ["reserved"]}
        case AppointmentMovedIn():
            return {"id": event.move_id, "state": "done", "before": ["moved"]}
        case ReservationReleased():
            return {"id": event.move_id, "state": "released", "before": ["aborted"]}
        case _:
            return None


def slot_state_row(slot: Slot) -> dict[str, Any]:
    """The columns of a slot that change."""
    status = slot.status
    return {
        "id": slot.id,
        "status": status,
        "blocked": slot.blocked,
        "held_until": slot.hold.expires_at if status == "held" and slot.hold is not None else None,
    }


def appointment_row(plain: Mapping[str, Any], open_move_id: str | None = None) -> dict[str, Any]:
    """An appointment's columns, without its sealed ones."""
    row = dict(plain)
    row["starts_at"] = row.pop("start")
    row["ends_at"] = row.pop("end")
    row["live"] = row["status"] in ("booked", "rescheduled", "arrived")
    row["open_move_id"] = open_move_id
    return row


def moved_out_row(moved: AppointmentMovedOut) -> dict[str, Any]:
    """The columns of an appointment that has just left for another calendar and is not taken in yet."""
    plain = appointment_plain(moved.appointment, doctor_id=moved.target_doctor_id, displaced=False)
    return appointment_row(plain, open_move_id=moved.move_id)


def _new_slot_row(doctor_id: str, slot: Slot) -> dict[str, Any]:
    return {
        "doctor_id": doctor_id,
        "location_id": slot.location_id,
        "service_id": slot.service_id,
        "starts_at": slot.start,
        "ends_at": slot.end,
        **slot_state_row(slot),
    }
