"""What the checker compares with the history: the rows that stood in PostgreSQL, and the mail that came."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg

from persistence.verify import verify
from tests.faults.postbox import Arrival

QUIET_DEADLINE_S = 90.0
"""What was left behind is driven on by the supervisor and by notifiers, who wait for a while before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A row of the journal."""

    doctor_id: str
    sequence: int
    epoch: int
    kind: str
    command_id: str
    payload: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """A row of an appointment."""

    id: str
    doctor_id: str
    patient_id: str
    slot_id: str
    start: float
    end: float
    live: bool
    open_move: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A row of a slot."""

    id: str
    doctor_id: str
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """A row of the outbox."""

    id: str
    kind: str
    visit_id: str | None
    """``None``: it is about an account."""
    version: int | None
    planned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A row of a notification."""

    id: str
    cause_id: str
    kind: str
    visit_id: str | None
    version: int | None
    outcome: str | None
    due: bool
    """Whether it could be sent by now."""


@dataclass(slots=True, kw_only=True)
class Records:
    """What stood in PostgreSQL when all was quiet, and the mail that had come by then."""

    events: list[Event] = field(default_factory=list)
    """By doctor and sequence."""
    visits: list[Visit] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)
    open_moves: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    """Of ``zapis verify``: between the tables and the journal replayed."""
    causes: list[Cause] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    arrivals: list[Arrival] = field(default_factory=list)
    in_flight_max: int = 0
    """Of messages, when notifiers died, all deaths together."""

    def calendars(self) -> dict[str, list[Event]]:
        """The journal by doctor."""
        calendars: dict[str, list[Event]] = defaultdict(list)
        for event in self.events:
            calendars[event.doctor_id].append(event)
        return calendars

    def by_command(self) -> dict[str, list[Event]]:
        """The journal by command."""
        commands: dict[str, list[Event]] = defaultdict(list)
        for event in self.events:
            commands[event.command_id].append(event)
        return commands


async def read_records(database_url: str) -> Records:
    """Everything that stands there once no move is open and no message is due."""
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        open_moves = await _wait_until_none(connection, _OPEN_MOVES)
        await _wait_until_none(connection, _UNTOLD)
        events = await connection.execute(
            "SELECT doctor_id::text, sequence, epoch, kind, command_id::text, payload FROM event"
            " ORDER BY doctor_id, sequence"
        )
        visits = await connection.execute(
            "SELECT id::text, doctor_id::text, patient_id::text, slot_id::text, extract(epoch FROM starts_at)::float8,"
            " extract(epoch FROM ends_at)::float8, live, open_move_id IS NOT NULL FROM appointment"
        )
        slots = await connection.execute("SELECT id::text, doctor_id::text, status FROM slot")
        records = Records(
            events=[
                Event(doctor_id=doctor, sequence=sequence, epoch=epoch, kind=kind, command_id=command, payload=payload)
                for doctor, sequence, epoch, kind, command, payload in await events.fetchall()
            ],
            visits=[
                Visit(
                    id=id_,
                    doctor_id=doctor,
                    patient_id=patient,
                    slot_id=slot,
                    start=start,
                    end=end,
                    live=live,
                    open_move=move,
                )
                for id_, doctor, patient, slot, start, end, live, move in await visits.fetchall()
            ],
            slots=[Slot(id=id_, doctor_id=doctor, status=status) for id_, doctor, status in await slots.fetchall()],
            open_moves=open_moves,
            causes=[
                Cause(id=id_, kind=kind, visit_id=visit, version=version, planned=planned)
                for id_, kind, visit, version, planned in await _rows(connection, _CAUSES)
            ],
            messages=[
                Message(id=id_, cause_id=cause, kind=kind, visit_id=visit, version=version, outcome=outcome, due=due)
                for id_, cause, kind, visit, version, outcome, due in await _rows(connection, _MESSAGES)
            ],
        )
    report = await verify(database_url)
    records.differences = report.differences
    return records


async def _wait_until_none(connection: psycopg.AsyncConnection, query: str) -> list[str]:
    """What is found still when its time is up; normally nothing."""
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + QUIET_DEADLINE_S
    while True:
        found = await _rows(connection, query)
        await connection.commit()
        if not found or loop.time() > give_up_at:
            return [row[0] for row in found]
        await asyncio.sleep(0.2)


async def _rows(connection: psycopg.AsyncConnection, query: str) -> Sequence[tuple[Any, ...]]:
    return await (await connection.execute(query.encode())).fetchall()


_OPEN_MOVES = "SELECT id::text FROM move WHERE state IN ('reserved', 'moved', 'aborted')"
_UNTOLD = (
    "SELECT id::text FROM outbox WHERE planned_at IS NULL"
    " UNION ALL SELECT id::text FROM notification WHERE ended_at IS NULL AND due_at <= now()"
)
_CAUSES = "SELECT id::text, kind, appointment_id::text, version, planned_at IS NOT NULL FROM outbox"
_MESSAGES = (
    "SELECT id::text, outbox_id::text, kind, appointment_id::text, version, outcome,"
    " ended_at IS NULL AND due_at <= now() FROM notification"
)
