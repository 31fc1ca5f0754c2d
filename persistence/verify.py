"""Replays the journal and compares it with the tables: what ``zapis verify`` does.

Everything is read in one REPEATABLE READ snapshot, so it may run on a live system. Differences are told by ids only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import DictRow, dict_row

from actors.calendar import Calendar, evolve
from actors.journal import appointment_row, moved_out_row, slot_state_row
from actors.messages import (
    AppointmentMovedIn,
    AppointmentMovedOut,
    Event,
    MoveRefused,
    MoveReserved,
    ReservationReleased,
    from_wire,
)
from persistence.database import libpq_url
from persistence.journal import effect_plain
from persistence.outbox import intents

DIFFERENCES_MAX = 1000
"""More are counted, not listed."""

_Connection = psycopg.AsyncConnection[DictRow]


@dataclass(slots=True, kw_only=True)
class Report:
    """What was compared, and where it differs."""

    calendars: int = 0
    events: int = 0
    differences: list[str] = field(default_factory=list)
    unlisted: int = 0

    @property
    def clean(self) -> bool:
        """Whether nothing differs."""
        return not self.differences

    def differs(self, what: str) -> None:
        """Note a difference."""
        if len(self.differences) < DIFFERENCES_MAX:
            self.differences.append(what)
        else:
            self.unlisted += 1


async def verify(database_url: str) -> Report:
    """Compare the journal with slots, holds, appointments, closures, moves and outbox.

    Raises:
        psycopg.OperationalError: the database cannot be reached.
    """
    report = Report()
    moves = _Moves()
    expected_intents: set[tuple[str, int, str]] = set()
    connection: _Connection = await psycopg.AsyncConnection.connect(
        libpq_url(database_url), row_factory=dict_row, options="-c timezone=UTC", application_name="zapis-verify"
    )
    async with connection:
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        rows = await connection.execute("SELECT doctor_id::text, epoch, sequence FROM calendar ORDER BY doctor_id")
        for row in await rows.fetchall():
            await _verify_calendar(connection, row, report, moves, expected_intents)
        await _verify_moves(connection, report, moves)
        await _verify_outbox(connection, report, expected_intents)
        await _verify_strays(connection, report)
    return report


class _Moves:
    """What the events of all calendars say of moves across them."""

    def __init__(self) -> None:
        self.reserved: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.released: Counter[str] = Counter()
        self.moved_out: dict[str, AppointmentMovedOut] = {}
        self.moved_in: set[str] = set()

    def note(self, event: Event) -> None:
        match event:
            case MoveReserved():
                self.reserved[event.move_id] += 1
            case MoveRefused():
                self.refused[event.move_id] += 1
            case ReservationReleased():
                self.released[event.move_id] += 1
            case AppointmentMovedOut():
                self.moved_out[event.move_id] = event
            case AppointmentMovedIn():
                self.moved_in.add(event.move_id)
            case _:
                pass

    def states(self) -> Iterator[tuple[str, str]]:
        """Each move's state as the events tell it."""
        for move_id in self.reserved:
            if move_id in self.moved_in:
                yield move_id, "done"
            elif move_id in self.moved_out:
                yield move_id, "moved"
            elif self.refused[move_id] > self.released[move_id]:
                yield move_id, "aborted"
            elif self.released[move_id] == self.reserved[move_id]:
                yield move_id, "released"
            else:
                yield move_id, "reserved"


def _in_order(effect: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {name: sorted(rows) for name, rows in effect.items()}


async def _verify_calendar(
    connection: _Connection,
    row: DictRow,
    report: Report,
    moves: _Moves,
    expected_intents: set[tuple[str, int, str]],
) -> None:
    doctor_id = row["doctor_id"]
    report.calendars += 1
    calendar = Calendar(doctor_id)
    last_epoch = 0
    cursor = await connection.execute(
        "SELECT sequence, epoch, at, kind, payload, effect FROM event WHERE doctor_id = %s ORDER BY sequence",
        (doctor_id,),
    )
    async for stored in cursor:
        report.events += 1
        number = stored["sequence"]
        if number != calendar.sequence + 1:
            report.differs(f"calendar {doctor_id}: event {number} follows {calendar.sequence}")
            return
        if stored["epoch"] < last_epoch or stored["epoch"] > row["epoch"]:
            report.differs(f"calendar {doctor_id}: event {number} has epoch {stored['epoch']} after {last_epoch}")
        last_epoch = stored["epoch"]
        event: Event = from_wire(stored["kind"], stored["payload"])
        try:
            effect = evolve(calendar, event, stored["at"])
        except KeyError as missing:
            report.differs(f"calendar {doctor_id}: event {number} speaks of an unknown {missing}")
            return
        if stored["effect"] is not None and _in_order(stored["effect"]) != _in_order(effect_plain(effect)):
            report.differs(f"calendar {doctor_id}: event {number} changed something else than it says")
        moves.note(event)
        expected_intents.update((appointment_id, version, kind) for kind, appointment_id, version in intents(event))
    if calendar.sequence != row["sequence"]:
        report.differs(f"calendar {doctor_id}: sequence is {row['sequence']}, the journal ends at {calendar.sequence}")
    await _compare(connection, report, "slot", doctor_id, _SLOTS, _slot_rows(calendar))
    await _compare(connection, report, "hold", doctor_id, _HOLDS, _hold_rows(calendar))
    await _compare(connection, report, "appointment", doctor_id, _APPOINTMENTS, _appointment_rows(calendar))
    await _compare(connection, report, "closure", doctor_id, _CLOSURES, _closure_rows(calendar))


_SLOTS = (
    b"SELECT id::text, location_id::text, service_id::text, starts_at, ends_at, status, blocked, held_until"
    b" FROM slot WHERE doctor_id = %s"
)
_HOLDS = b"SELECT id::text, slot_id::text, user_id::text, expires_at FROM hold WHERE doctor_id = %s"
_APPOINTMENT_COLUMNS = (
    b"SELECT id::text, doctor_id::text, patient_id::text, booked_by::text, slot_id::text, location_id::text,"
    b" service_id::text, starts_at, ends_at, status, live, displaced, version, moves, created_at, updated_at,"
    b" open_move_id::text FROM appointment"
)
_APPOINTMENTS = _APPOINTMENT_COLUMNS + b" WHERE doctor_id = %s AND open_move_id IS NULL"
_APPOINTMENTS_ON_THEIR_WAY = _APPOINTMENT_COLUMNS + b" WHERE open_move_id IS NOT NULL"
_CLOSURES = b"SELECT id::text, created_by::text FROM closure WHERE doctor_id = %s AND removed_at IS NULL"


def _slot_rows(calendar: Calendar) -> Iterator[dict[str, Any]]:
    for slot in calendar.slots.values():
        yield {
            "location_id": slot.location_id,
            "service_id": slot.service_id,
            "starts_at": slot.start,
            "ends_at": slot.end,
            **slot_state_row(slot),
        }


def _hold_rows(calendar: Calendar) -> Iterator[dict[str, Any]]:
    for hold in calendar.holds.values():
        yield {"id": hold.id, "slot_id": hold.slot_id, "user_id": hold.user_id, "expires_at": hold.expires_at}


def _appointment_rows(calendar: Calendar) -> Iterator[dict[str, Any]]:
    for appointment_id in calendar.appointments:
        yield appointment_row(calendar.appointment_plain(appointment_id))


def _closure_rows(calendar: Calendar) -> Iterator[dict[str, Any]]:
    for closure_id in calendar.closures:
        yield {"id": closure_id, "created_by": calendar.closed_by[closure_id]}


async def _compare(
    connection: _Connection,
    report: Report,
    table: str,
    doctor_id: str,
    query: bytes,
    expected_rows: Iterator[dict[str, Any]],
) -> None:
    cursor = await connection.execute(query, (doctor_id,))
    found = {row["id"]: row for row in await cursor.fetchall()}
    for expected in expected_rows:
        row = found.pop(expected["id"], None)
        if row is None:
            report.differs(f"{table} {expected['id']} of calendar {doctor_id}: in the journal, not in the table")
        elif (fields := _differing(expected, row)) != "":
            report.differs(f"{table} {expected['id']} of calendar {doctor_id}: {fields}")
    for stray in found:
        report.differs(f"{table} {stray} of calendar {doctor_id}: in the table, not in the journal")


def _differing(expected: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} is {row[name]}, the journal says {value}" for name, value in expected.items() if row[name] != value
    )


async def _verify_moves(connection: _Connection, report: Report, moves: _Moves) -> None:
    cursor = await connection.execute("SELECT id::text, state FROM move")
    found = {row["id"]: row["state"] for row in await cursor.fetchall()}
    for move_id, state in moves.states():
        stored = found.pop(move_id, None)
        if stored != state:
            report.differs(f"move {move_id}: is {stored}, the journal says {state}")
    for stray in found:
        report.differs(f"move {stray}: in the table, not in the journal")
    cursor = await connection.execute(_APPOINTMENTS_ON_THEIR_WAY)
    open_rows = {row["open_move_id"]: row for row in await cursor.fetchall()}
    for move_id, moved in moves.moved_out.items():
        if move_id in moves.moved_in:
            continue
        row = open_rows.pop(move_id, None)
        if row is None:
            report.differs(f"move {move_id}: its appointment is not waiting to be taken in")
        elif (fields := _differing(moved_out_row(moved), row)) != "":
            report.differs(f"appointment {moved.appointment.id} on its way: {fields}")
    for move_id in open_rows:
        report.differs(f"move {move_id}: an appointment waits for it, the journal does not know")


async def _verify_outbox(connection: _Connection, report: Report, expected: set[tuple[str, int, str]]) -> None:
    cursor = await connection.execute(
        "SELECT appointment_id::text, version, kind FROM outbox WHERE appointment_id IS NOT NULL"
    )
    async for row in cursor:
        intent = (row["appointment_id"], row["version"], row["kind"])
        if intent not in expected:
            report.differs(f"outbox: {intent} has no event that causes it")
        expected.discard(intent)
    for intent in expected:
        report.differs(f"outbox: {intent} is missing")


async def _verify_strays(connection: _Connection, report: Report) -> None:
    """Rows of calendars that do not exist."""
    for table in ("slot", "hold", "appointment", "event", "closure"):
        cursor = await connection.execute(
            sql.SQL(
                "SELECT DISTINCT doctor_id::text FROM {} AS t"
                " WHERE NOT EXISTS (SELECT FROM calendar AS c WHERE c.doctor_id = t.doctor_id) LIMIT 10"
            ).format(sql.Identifier(table))
        )
        for row in await cursor.fetchall():
            report.differs(f"{table}: rows of calendar {row['doctor_id']}, which does not exist")
