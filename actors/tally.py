"""What calendars cannot see of each other while a refused batch is decided again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from actors.calendar import Calendar
from actors.decisions import Busy, Facts
from actors.entries import Activation, Entry
from actors.messages import (
    AbortMove,
    AppointmentBooked,
    AppointmentMovedOut,
    AppointmentRescheduled,
    BookAppointment,
    FinishMove,
    HoldSlot,
    MoveOut,
    MoveRefused,
    MoveReserved,
    ReservationReleased,
    ReserveForMove,
    SlotHeld,
)


class Tally:
    """Facts found in the database, and what is decided on top of them in calendars that cannot see each other."""

    def __init__(self, facts: Facts) -> None:
        self._busy = {patient_id: list(busy) for patient_id, busy in facts.busy.items()}
        self._holds = {user_id: list(holds) for user_id, holds in facts.holds.items()}
        self._moves = dict(facts.moves)
        self.facts = Facts(busy=self._busy, holds=self._holds, moves=self._moves, erased=facts.erased)

    def note(self, entry: Entry, calendar: Calendar) -> None:
        """Add what an entry has just made so."""
        for _, event in entry.events:
            match event:
                case AppointmentBooked() | AppointmentRescheduled():
                    appointment = calendar.appointments[event.appointment_id]
                    self._replace(
                        appointment.patient_id,
                        Busy(
                            appointment_id=appointment.id,
                            doctor_id=calendar.doctor_id,
                            start=appointment.start,
                            end=appointment.end,
                        ),
                    )
                case MoveReserved():
                    self._moves[event.move_id] = "reserved"
                case ReservationReleased():
                    self._moves[event.move_id] = "released"
                case MoveRefused():
                    self._moves[event.move_id] = "aborted"
                case AppointmentMovedOut():
                    self._moves[event.move_id] = "moved"
                    self._replace(
                        event.appointment.patient_id,
                        Busy(
                            appointment_id=event.appointment.id,
                            doctor_id=event.target_doctor_id,
                            start=event.appointment.start,
                            end=event.appointment.end,
                        ),
                    )
                case SlotHeld():
                    self._holds.setdefault(event.user_id, []).append((calendar.doctor_id, event.expires_at))
                case _:
                    pass

    def _replace(self, patient_id: str, busy: Busy) -> None:
        others = [other for other in self._busy.get(patient_id, []) if other.appointment_id != busy.appointment_id]
        self._busy[patient_id] = [*others, busy]


def facts_wanted(entries: Iterable[Entry], active: Mapping[str, Activation]) -> tuple[set[str], set[str], set[str]]:
    """Patients, users and moves whose facts decide the entries."""
    patients: set[str] = set()
    users: set[str] = set()
    moves: set[str] = set()
    for entry in entries:
        command = entry.command
        match command:
            case BookAppointment():
                patients.add(command.patient_id)
            case HoldSlot():
                users.add(command.requester.user_id)
            case ReserveForMove() | MoveOut() | AbortMove() | FinishMove():
                moves.add(command.move_id)
            case _:
                pass
        activation = active.get(command.doctor_id)
        appointment_id = getattr(command, "appointment_id", None)
        if activation is not None and appointment_id is not None:
            appointment = activation.calendar.appointments.get(appointment_id)
            if appointment is not None:
                patients.add(appointment.patient_id)
        for _, event in entry.events:
            if isinstance(event, AppointmentMovedOut):
                patients.add(event.appointment.patient_id)
    return patients, users, moves
