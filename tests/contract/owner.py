"""Owns calendars without an actor: claims, loads, decides and appends by hand, one batch at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from actors.calendar import Calendar, evolve
from actors.decisions import NO_FACTS, Decision, Facts, answer, decide
from actors.errors import Rejection
from actors.journal import (
    Append,
    AuditRow,
    CalendarRow,
    CommandRow,
    EventRow,
    Journal,
    StoredAnswer,
    collect_changes,
    move_row,
)
from actors.messages import (
    AppointmentBooked,
    AppointmentMovedOut,
    AppointmentRescheduled,
    BookAppointment,
    CloseCalendar,
    Command,
    Done,
    Event,
    Rejected,
    SlotHeld,
)
from actors.policy import Policy
from tests.given import NOW


@dataclass
class Owned:
    """A calendar and what it may be changed under."""

    calendar: Calendar
    epoch: int
    committed: int


@dataclass
class Owner:
    """One who owns calendars through a journal."""

    journal: Journal
    policy: Policy = field(default_factory=Policy)
    owned: dict[str, Owned] = field(default_factory=dict)
    batch: Append = field(default_factory=Append)

    async def take(self, *doctor_ids: str, now: datetime = NOW, generation: int = 0) -> Owner:
        """Claim and load calendars."""
        for doctor_id in doctor_ids:
            claim = await self.journal.claim(doctor_id, generation)
            calendar = await self.journal.load(doctor_id, now)
            self.owned[doctor_id] = Owned(calendar=calendar, epoch=claim.epoch, committed=calendar.sequence)
        return self

    def calendar(self, doctor_id: str) -> Calendar:
        """The state as decided."""
        return self.owned[doctor_id].calendar

    def do(self, command: Command, now: datetime = NOW, *, facts: Facts = NO_FACTS) -> Done | Rejected:
        """Decide a command into the batch."""
        calendar = self.owned[command.doctor_id].calendar
        try:
            decision = decide(calendar, command, now, self.policy, facts)
        except Rejection as rejection:
            decision = Decision(rejection=rejection)
        for event in decision.events:
            self.happen(command, event, now)
        if decision.rejection is not None:
            self.batch.look_up.append(command.command_id)
            return Rejected(code=decision.rejection.code, detail=decision.rejection.detail)
        reply = Done(answer=answer(calendar, decision))
        self.batch.commands.append(command_row(command, reply, now))
        if command.requester.staff and decision.events:
            self.batch.audit.append(audit_row(command, now))
        return reply

    def happen(self, command: Command, event: Event, now: datetime = NOW) -> None:
        """An event into the batch, decided or not."""
        owned = self.owned[command.doctor_id]
        effect = evolve(owned.calendar, event, now)
        self.batch.events.append(
            EventRow(
                doctor_id=command.doctor_id,
                sequence=owned.calendar.sequence,
                epoch=owned.epoch,
                at=now,
                command_id=command.command_id,
                event=event,
                effect=effect,
            )
        )
        if (move := move_row(event, command.doctor_id, now)) is not None:
            self.batch.moves.append(move)
        match event:
            case AppointmentBooked():
                self.batch.patients.add(event.patient_id)
                if command.override is None:
                    self.batch.limited_patients.add(event.patient_id)
                else:
                    self.batch.overridden_patients.append(event.patient_id)
            case AppointmentRescheduled():
                self.batch.patients.add(owned.calendar.appointments[event.appointment_id].patient_id)
            case AppointmentMovedOut():
                self.batch.patients.add(event.appointment.patient_id)
            case SlotHeld():
                self.batch.holders.add(event.user_id)
            case _:
                pass

    def take_batch(self, *doctor_ids: str) -> Append:
        """All that was decided as one transaction, over these calendars or over all that are owned."""
        batch = self.batch
        self.batch = Append()
        for doctor_id in doctor_ids or tuple(self.owned):
            owned = self.owned[doctor_id]
            batch.calendars.append(
                CalendarRow(
                    doctor_id=doctor_id,
                    epoch=owned.epoch,
                    expected=owned.committed,
                    reached=owned.calendar.sequence,
                    last_event_at=owned.calendar.last_event_at,
                )
            )
            collect_changes(owned.calendar, batch)
        return batch

    async def commit(self, *doctor_ids: str) -> dict[str, StoredAnswer]:
        """Append the batch."""
        batch = self.take_batch(*doctor_ids)
        stored = await self.journal.append(batch)
        for row in batch.calendars:
            self.owned[row.doctor_id].committed = row.reached
        return stored


def command_row(command: Command, reply: Done, now: datetime = NOW) -> CommandRow:
    """What a repeat of the command is to be answered with."""
    return CommandRow(
        command_id=command.command_id,
        user_id=command.requester.user_id,
        fingerprint=command.fingerprint,
        answer={"done": reply.answer},
        at=now,
    )


def audit_row(command: Command, now: datetime) -> AuditRow:
    """What a member of staff did."""
    return AuditRow(
        user_id=command.requester.user_id,
        role=command.requester.role.value,
        action=type(command).__name__,
        subject="doctor",
        subject_id=command.doctor_id,
        override=command.override,
        at=now,
    )


def seal(batch: Append, *commands: Command) -> None:
    """Give the rows of a batch the sealed texts that their commands brought."""
    reasons: dict[str, str | None] = {}
    for command in commands:
        if isinstance(command, BookAppointment):
            reasons[command.appointment_id] = command.reason
        elif isinstance(command, CloseCalendar):
            reasons[command.closure_id] = command.reason
    for row in (*batch.appointments, *batch.closures):
        row["reason"] = reasons.get(row["id"])
