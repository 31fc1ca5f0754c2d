"""Decided commands on their way into the journal, and the one transaction that they make together."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from actors.calendar import Calendar
from actors.changes import Effect
from actors.errors import IdempotencyKeyReused, NotLive
from actors.journal import Append, AuditRow, CalendarRow, CommandRow, EventRow, StoredAnswer, collect_changes, move_row
from actors.messages import (
    COMMANDS,
    AbortMove,
    AppointmentBooked,
    AppointmentMovedOut,
    AppointmentRescheduled,
    BookAppointment,
    CancelAppointment,
    CloseCalendar,
    Command,
    Done,
    Event,
    ExpireHolds,
    FinishMove,
    MoveOut,
    PublishSlots,
    Rejected,
    Reply,
    ReserveForMove,
    SlotHeld,
)


@dataclass(slots=True, kw_only=True, eq=False)
class Activation:
    """A calendar in memory, at the epoch under which it may be changed."""

    calendar: Calendar
    epoch: int
    committed: int
    """The sequence that the database has."""
    used_at: datetime
    uncommitted: int = 0
    """Entries that have not been settled."""


@dataclass(slots=True, kw_only=True, eq=False)
class Entry:
    """A decided command on its way into the journal."""

    command: Command
    reply: asyncio.Future[Reply]
    order: int
    gives_up_at: datetime | None = None
    """When its caller does, by the actor's own clock."""
    at: datetime = field(init=False)
    events: tuple[tuple[int, Event], ...] = ()
    """With their sequence numbers."""
    effects: tuple[Effect, ...] = ()
    """Of each event."""
    outcome: Done | Rejected = field(init=False)
    attempts: int = 0
    told_pending: bool = False
    abandoned: bool = False
    """A refusal that nobody waits for any more."""

    @property
    def stores_answer(self) -> bool:
        """Whether a repeat is to be answered from the command table."""
        if isinstance(self.outcome, Rejected):
            if isinstance(self.command, MoveOut):
                # Without events somebody else has decided about the move; a visit that is not here may be elsewhere.
                return self.told_pending and bool(self.events) and self.outcome.code != NotLive.code
            return self.told_pending
        steps = ReserveForMove | AbortMove | FinishMove | ExpireHolds
        return not (isinstance(self.command, steps) or self.only_tries)

    @property
    def only_tries(self) -> bool:
        """Whether it changes nothing, whatever is decided."""
        return isinstance(self.command, PublishSlots | CloseCalendar) and self.command.dry_run

    @property
    def looks_up(self) -> bool:
        """Whether its answer is another one if there is one already under its id."""
        return isinstance(self.outcome, Rejected) or self.only_tries


def append_of(entries: Sequence[Entry], active: Mapping[str, Activation]) -> Append:
    """The transaction that commits the entries: all of their calendars' entries that wait, in order."""
    append = Append()
    calendars: dict[str, Activation] = {}
    for entry in entries:
        command = entry.command
        activation = calendars.setdefault(command.doctor_id, active[command.doctor_id])
        for (sequence, event), effect in zip(entry.events, entry.effects, strict=True):
            append.events.append(
                EventRow(
                    doctor_id=command.doctor_id,
                    sequence=sequence,
                    epoch=activation.epoch,
                    at=entry.at,
                    command_id=command.command_id,
                    event=event,
                    effect=effect,
                )
            )
            move = move_row(event, command.doctor_id, entry.at)
            if move is not None:
                append.moves.append(move)
            _note_checks(append, command, event, activation.calendar)
        if entry.looks_up:
            append.look_up.append(command.command_id)
        if entry.stores_answer:
            append.commands.append(_command_row(entry))
        if _is_audited(entry):
            append.audit.append(_audit_row(entry))
    reached = {row.doctor_id: row.sequence for row in sorted(append.events, key=lambda row: row.sequence)}
    for doctor_id, activation in calendars.items():
        append.calendars.append(
            CalendarRow(
                doctor_id=doctor_id,
                epoch=activation.epoch,
                expected=activation.committed,
                reached=reached.get(doctor_id, activation.committed),
                last_event_at=activation.calendar.last_event_at,
            )
        )
        collect_changes(activation.calendar, append)
    _add_sealed(append, entries)
    return append


def stored_reply(stored: StoredAnswer, command: Command) -> Done | Rejected:
    """What a repeat of a command gets."""
    if stored.fingerprint != command.fingerprint or stored.user_id != command.requester.user_id:
        return Rejected(code=IdempotencyKeyReused.code, detail=IdempotencyKeyReused.default_detail)
    if "rejected" in stored.answer:
        return Rejected(**stored.answer["rejected"])
    return Done(answer=stored.answer["done"])


def _command_row(entry: Entry) -> CommandRow:
    if isinstance(entry.outcome, Rejected):
        body: dict[str, Any] = {"rejected": {"code": entry.outcome.code, "detail": entry.outcome.detail}}
    else:
        body = {"done": entry.outcome.answer}
    return CommandRow(
        command_id=entry.command.command_id,
        user_id=entry.command.requester.user_id,
        fingerprint=entry.command.fingerprint,
        answer=body,
        at=entry.at,
    )


_ACTIONS = {command: re.sub(r"(?<!^)(?=[A-Z])", "_", command.__name__).lower() for command in COMMANDS}
"""What a command is called in the audit: ``book_appointment`` and so on."""


def _is_audited(entry: Entry) -> bool:
    """Whether staff have changed something by it; what the system does by itself is in the journal."""
    return (
        bool(entry.events)
        and isinstance(entry.outcome, Done)
        and entry.command.requester.staff
        and not isinstance(entry.command, AbortMove | FinishMove | ExpireHolds)
    )


def _audit_row(entry: Entry) -> AuditRow:
    command = entry.command
    subject, subject_id = "doctor", command.doctor_id
    for name in ("slot_id", "closure_id", "appointment_id"):
        if hasattr(command, name):
            subject, subject_id = name.removesuffix("_id"), getattr(command, name)
    return AuditRow(
        user_id=command.requester.user_id,
        role=command.requester.role.value,
        action=_ACTIONS[type(command)],
        subject=subject,
        subject_id=subject_id,
        override=command.override or None,
        at=entry.at,
    )


def _note_checks(append: Append, command: Command, event: Event, calendar: Calendar) -> None:
    """What the database has to see across calendars because of an event."""
    match event:
        case AppointmentBooked():
            append.patients.add(event.patient_id)
            if command.override is None:
                append.limited_patients.add(event.patient_id)
            else:
                append.overridden_patients.append(event.patient_id)
        case AppointmentRescheduled():
            # One that has left meanwhile brings its patient by the event with which it left.
            if event.appointment_id in calendar.appointments:
                append.patients.add(calendar.appointments[event.appointment_id].patient_id)
        case AppointmentMovedOut():
            append.patients.add(event.appointment.patient_id)
        case SlotHeld():
            append.holders.add(event.user_id)
        case _:
            pass


def _add_sealed(append: Append, entries: Iterable[Entry]) -> None:
    """Give rows what their commands brought sealed: it never passes through state or events."""
    booked: dict[str, str] = {}
    cancelled: dict[str, str] = {}
    closed: dict[str, str] = {}
    for entry in entries:
        if not entry.events or isinstance(entry.outcome, Rejected):
            continue
        match entry.command:
            case BookAppointment(reason=str(reason), appointment_id=appointment_id):
                booked[appointment_id] = reason
            case CancelAppointment(reason=str(reason), appointment_id=appointment_id):
                cancelled[appointment_id] = reason
            case CloseCalendar(reason=str(reason), closure_id=closure_id):
                closed[closure_id] = reason
            case _:
                pass
    for row in append.appointments:
        row["reason"] = booked.get(row["id"])
        row["cancel_reason"] = cancelled.get(row["id"])
    for row in append.closures:
        row["reason"] = closed.get(row["id"])
