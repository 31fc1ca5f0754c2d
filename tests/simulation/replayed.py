"""The journal replayed: every state there ever was, held against the tables and against what was refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from actors.calendar import Calendar, evolve
from actors.journal import appointment_row, slot_state_row
from actors.messages import AppointmentState
from actors.slots import Hold
from tests.simulation.history import Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A calendar after one of its events."""

    live: Mapping[str, AppointmentState]
    holds: Mapping[str, Hold]
    reserved: Mapping[str, str]
    """Moves by the slot that is kept for them."""
    closed: frozenset[str]
    """Slots that nobody can take."""
    closures: frozenset[str]
    displaced: bool
    """Whether a visit has lost its slot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """A calendar's whole life."""

    states: Sequence[State]
    """By sequence; the first is the empty calendar."""
    last: Calendar


def replay(evidence: Evidence) -> dict[str, Replayed]:
    """Every calendar, by its doctor."""
    replayed = {}
    for doctor_id, events in evidence.events.items():
        calendar = Calendar(doctor_id)
        states = [_state(calendar)]
        for row in events:
            evolve(calendar, row.event, row.at)
            states.append(_state(calendar))
        replayed[doctor_id] = Replayed(states=states, last=calendar)
    return replayed


def broken_journal(evidence: Evidence) -> Iterator[str]:
    """Events are numbered without a gap, and no older owner wrote after a newer one."""
    for doctor_id, events in evidence.events.items():
        if [row.sequence for row in events] != list(range(1, len(events) + 1)):
            yield f"the journal of {doctor_id} has gaps: {[row.sequence for row in events]}"
        if evidence.sequences[doctor_id] != len(events):
            yield f"{doctor_id} is at {evidence.sequences[doctor_id]}, its journal at {len(events)}"
        epochs = [row.epoch for row in events]
        if epochs != sorted(epochs):
            yield f"an older owner of {doctor_id} wrote after a newer one: {epochs}"
        times = [row.at for row in events]
        if times != sorted(times):
            yield f"the time of {doctor_id} ran backwards"


def broken_tables(evidence: Evidence, replayed: Mapping[str, Replayed]) -> Iterator[str]:
    """The tables say what the journal says."""
    for doctor_id, calendar in ((doctor_id, each.last) for doctor_id, each in replayed.items()):
        for slot in calendar.slots.values():
            expected = slot_state_row(slot)
            if {name: evidence.slots[slot.id][name] for name in expected} != expected:
                yield f"slot {evidence.slots[slot.id]}, replayed {expected}"
        holds = {hold_id for hold_id, row in evidence.holds.items() if row["doctor_id"] == doctor_id}
        if holds != set(calendar.holds):
            yield f"{doctor_id} has the holds {holds}, replayed {set(calendar.holds)}"
        mine = {
            visit_id: row
            for visit_id, row in evidence.appointments.items()
            if row["doctor_id"] == doctor_id and row["open_move_id"] is None
        }
        if set(mine) != set(calendar.appointments):
            yield f"{doctor_id} has the visits {set(mine)}, replayed {set(calendar.appointments)}"
            continue
        for visit_id, row in mine.items():
            expected = appointment_row(calendar.appointment_plain(visit_id))
            if {name: row[name] for name in expected} != expected:
                yield f"visit {row}, replayed {expected}"


def broken_agreement(evidence: Evidence, replayed: Mapping[str, Replayed]) -> Iterator[str]:
    """Nobody is in two places, each visit is in one calendar, and slots and visits agree."""
    live = [row for row in evidence.appointments.values() if row["live"]]
    for number, one in enumerate(live):
        for other in live[:number]:
            if one["starts_at"] < other["ends_at"] and other["starts_at"] < one["ends_at"]:
                if one["doctor_id"] == other["doctor_id"]:
                    yield f"a doctor is in two places: {one['id']} and {other['id']}"
                if one["patient_id"] == other["patient_id"]:
                    yield f"a patient is in two places: {one['id']} and {other['id']}"
    for visit_id, row in evidence.appointments.items():
        having = [doctor_id for doctor_id, each in replayed.items() if visit_id in each.last.appointments]
        if having != [row["doctor_id"]]:
            yield f"the visit {visit_id} is in {having}, its row in {row['doctor_id']}"
    taken = {row["slot_id"] for row in live}
    kept = {row["target_slot_id"] for row in evidence.moves.values() if row["state"] not in ("done", "released")}
    held = {row["slot_id"] for row in evidence.holds.values()}
    for slot_id, slot in evidence.slots.items():
        free = {"free": slot_id not in taken | held, "held": slot_id in held | kept, "booked": slot_id in taken}
        if not free.get(slot["status"], True):
            yield f"the slot {slot_id} reads as {slot['status']}"


def _state(calendar: Calendar) -> State:
    return State(
        live={each.id: each for each in calendar.appointments.values() if each.status.live},
        holds=dict(calendar.holds),
        reserved={each.slot_id: each.move_id for each in calendar.reservations.values()},
        closed=frozenset(slot.id for slot in calendar.slots.values() if slot.closed),
        closures=frozenset(calendar.closures),
        displaced=bool(calendar.displaced),
    )


def overlap(one: AppointmentState, start: datetime, end: datetime) -> bool:
    """Whether a visit takes any of that time."""
    return one.start < end and start < one.end
