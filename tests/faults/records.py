"""Reads from PostgreSQL what the checker compares with the history."""

from __future__ import annotations

import asyncio

import psycopg

from persistence.verify import verify
from tests.faults.checker import Event, Records, Slot, Visit

QUIET_DEADLINE_S = 60.0
"""What was left behind is driven on by the supervisor, who waits for a while before."""


async def read_records(database_url: str) -> Records:
    """Everything that stands there once no move is open."""
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        open_moves = await _wait_for_moves(connection)
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
        )
    report = await verify(database_url)
    records.differences = report.differences
    return records


async def _wait_for_moves(connection: psycopg.AsyncConnection) -> list[str]:
    """The moves that are open still when their time is up; normally none."""
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + QUIET_DEADLINE_S
    while True:
        cursor = await connection.execute("SELECT id::text FROM move WHERE state IN ('reserved', 'moved', 'aborted')")
        found = [row[0] for row in await cursor.fetchall()]
        await connection.commit()
        if not found or loop.time() > give_up_at:
            return found
        await asyncio.sleep(0.2)
