"""Drives a move of an appointment to another doctor's calendar, step by step, whoever began it.

The steps are told in the text of ``actors``: (a) the target keeps the slot, (b) the source lets the appointment go,
which is the commit point, (c) the target takes it in, or frees the slot when the source refused. The ``move`` row says
how far it got, so the API process that began it and the supervisor that finds it left behind do the same: look at the
row and do the next step. Every step may be repeated.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import shuffle
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncEngine

from actors.client import CalendarClient
from actors.messages import (
    AbortMove,
    AppointmentState,
    AppointmentStatus,
    Done,
    FinishMove,
    MoveOut,
    NewSlot,
    NotDecided,
    Pending,
    RefusedFor,
    Rejected,
    Reply,
    Requester,
    ReserveForMove,
    Role,
)
from persistence.identifiers import new_id

_MOVE = text(
    "SELECT appointment_id::text, source_doctor_id::text, target_doctor_id::text, state, request FROM move"
    " WHERE id = :move_id"
)
_APPOINTMENT = text(
    "SELECT id::text, patient_id::text, booked_by::text, slot_id::text, location_id::text, service_id::text,"
    ' starts_at AS start, ends_at AS "end", status,'
    " version, moves, created_at, updated_at FROM appointment WHERE open_move_id = :move_id"
)


_NOT_KNOWN = NotDecided(why=RefusedFor.UNAVAILABLE)
PENDING_MAX = 1000
"""Moves that are known to be pending. Past it they are found by their rows, later, and a refusal is not kept."""
PENDING_TRIES = 60


class MoveDriver:
    """Takes moves to their end."""

    def __init__(self, *, database: AsyncEngine, calendars: CalendarClient, deadline_s: float) -> None:
        self._database = database
        self._calendars = calendars
        self._deadline = timedelta(seconds=deadline_s)
        self._told_pending: dict[str, int] = {}
        """How often each is still to be driven on by ``pending``."""

    async def move(self, reserve: ReserveForMove) -> Reply:
        """The reply to a move that begins with ``reserve``: ``Done`` once the target has taken it in.

        Who does not want to wait for the commit is told ``Pending`` once the slot is kept and the source has decided.
        What is pending is driven on by whoever asks ``pending`` for it.
        """
        reply = await self._move(reserve)
        if isinstance(reply, Pending) and len(self._told_pending) < PENDING_MAX:
            self._told_pending[reserve.move_id] = PENDING_TRIES
        return reply

    def pending(self) -> list[str]:
        """Moves that are pending as their callers know, of this driver: each until it has ended, a few times.

        In any order: those that cannot be driven on keep no others out.
        """
        move_ids = list(self._told_pending)
        shuffle(move_ids)
        for move_id in move_ids:
            self._told_pending[move_id] -= 1
            if not self._told_pending[move_id]:
                del self._told_pending[move_id]
        return move_ids

    async def drive_on(self, move_id: str) -> Reply | None:
        """Take a move that was left behind to its end; ``None`` if it has ended, or has not begun yet."""
        row = await self._read(_MOVE, move_id)
        if row is None:
            return None
        reply = await self._go_on(move_id, row)
        if not isinstance(reply, Pending | NotDecided):
            self._told_pending.pop(move_id, None)
        return reply

    async def _go_on(self, move_id: str, row: Row[Any]) -> Reply | None:
        """The next step, and those after it."""
        match row.state:
            case "reserved":
                request = row.request
                return await self._let_go(
                    MoveOut(
                        command_id=request["command_id"],
                        doctor_id=row.source_doctor_id,
                        requester=Requester(user_id=request["user_id"], role=Role(request["role"])),
                        fingerprint=request["fingerprint"],
                        deadline=self._now() + self._deadline,
                        override="" if request["override"] else None,
                        move_id=move_id,
                        appointment_id=row.appointment_id,
                        target_doctor_id=row.target_doctor_id,
                        slot=_new_slot(request["slot"]),
                        if_version=request["if_version"],
                        told_pending=move_id in self._told_pending,
                    )
                )
            case "moved" | "aborted":
                return await self._finish(move_id, row.target_doctor_id)
            case _:
                return None

    async def _move(self, reserve: ReserveForMove) -> Reply:
        reserved = await self._reserve(reserve)
        if not isinstance(reserved, Done):
            return reserved
        if "appointment" in reserved.answer:
            # It was let go before, under the same key: perhaps a moment ago, and has not been taken in yet.
            finished = await self._finish(reserve.move_id, reserve.doctor_id)
            return reserved if finished is None or isinstance(finished, Done) else _NOT_KNOWN
        slot = reserved.answer["slot"]
        return await self._let_go(
            MoveOut(
                command_id=reserve.command_id,
                doctor_id=reserve.source_doctor_id,
                requester=reserve.requester,
                fingerprint=reserve.fingerprint,
                deadline=reserve.deadline,
                respond_async=reserve.respond_async,
                override=reserve.override,
                move_id=reserve.move_id,
                appointment_id=reserve.appointment_id,
                target_doctor_id=reserve.doctor_id,
                slot=_new_slot(slot),
                if_version=reserve.if_version,
            )
        )

    async def _reserve(self, reserve: ReserveForMove) -> Reply:
        """Step (a); a slot that is still kept from an attempt that was refused is freed first."""
        waits = replace(reserve, respond_async=False)
        reserved = await self._calendars.send(waits)
        if not isinstance(reserved, Done) or "appointment" in reserved.answer:
            return reserved
        row = await self._read(_MOVE, reserve.move_id)
        if row is None or row.state != "aborted":
            return reserved
        await self._finish(reserve.move_id, reserve.doctor_id)
        return await self._calendars.send(waits)

    async def _let_go(self, move_out: MoveOut) -> Reply:
        """Step (b), and what follows from its outcome."""
        reply = await self._calendars.send(move_out)
        if not isinstance(reply, Done | Rejected):
            return reply
        row = await self._read(_MOVE, move_out.move_id)
        if row is not None and row.state == "reserved":
            # The answer was given before, for something else under the same key: this move is not to be.
            await self._calendars.send(
                AbortMove(
                    **self._own(move_out.doctor_id),
                    move_id=move_out.move_id,
                    target_doctor_id=move_out.target_doctor_id,
                )
            )
        finished = await self._finish(move_out.move_id, move_out.target_doctor_id)
        if isinstance(reply, Done) and not isinstance(finished, Done):
            return _NOT_KNOWN
        return reply

    async def _finish(self, move_id: str, target_doctor_id: str) -> Reply | None:
        """Step (c): what the row says is what the target does."""
        row = await self._read(_MOVE, move_id)
        if row is None or row.state not in ("moved", "aborted"):
            return Done(answer={}) if row is not None and row.state in ("done", "released") else None
        appointment = None
        if row.state == "moved":
            found = await self._read(_APPOINTMENT, move_id)
            if found is None:
                return Done(answer={})
            columns = dict(found._mapping)
            columns["status"] = AppointmentStatus(columns["status"])
            appointment = AppointmentState(**columns)
        return await self._calendars.send(
            FinishMove(**self._own(target_doctor_id), move_id=move_id, appointment=appointment)
        )

    async def _read(self, statement: Any, move_id: str) -> Row[Any] | None:
        async with self._database.connect() as connection:
            return (await connection.execute(statement, {"move_id": move_id})).one_or_none()

    def _own(self, doctor_id: str) -> dict[str, Any]:
        """The header of a command of ours: it belongs to no user and is not stored."""
        command_id = new_id()
        return {
            "command_id": command_id,
            "doctor_id": doctor_id,
            "requester": Requester(user_id=command_id, role=Role.ADMIN),
            "fingerprint": "",
            "deadline": self._now() + self._deadline,
        }

    @staticmethod
    def _now() -> datetime:
        return datetime.now(UTC)


def _new_slot(plain: dict[str, Any]) -> NewSlot:
    return NewSlot(
        id=plain["id"],
        start=datetime.fromisoformat(plain["start"]),
        end=datetime.fromisoformat(plain["end"]),
        location_id=plain["location_id"],
        service_id=plain["service_id"],
    )
