"""What a calendar decides: a command, and the events or the rejection that it leads to. Pure.

``decide`` takes everything it needs, the time and facts from elsewhere included, changes nothing and never waits; what
it decided becomes so by ``calendar.evolve``, and ``answer`` is what the caller gets then.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from actors import messages
from actors.calendar import Calendar, appointment_plain, moved_to
from actors.errors import (
    AlreadyArrived,
    HoldExpiredRejection,
    IdempotencyKeyReused,
    NotFound,
    NotLive,
    PatientOverlap,
    Rejection,
    SlotTaken,
    SlotUnavailable,
    TooEarly,
    VersionConflict,
)
from actors.messages import (
    AppointmentBooked,
    AppointmentCancelled,
    AppointmentFulfilled,
    AppointmentMovedIn,
    AppointmentMovedOut,
    AppointmentRescheduled,
    AppointmentState,
    AppointmentStatus,
    CalendarClosed,
    ClosureRemoved,
    Command,
    Event,
    HoldExpired,
    HoldReleased,
    MoveRefused,
    MoveReserved,
    NewSlot,
    PatientArrived,
    PatientMissed,
    ReservationReleased,
    SlotBlocked,
    SlotCancelled,
    SlotHeld,
    SlotsPublished,
    SlotUnblocked,
    Touched,
)
from actors.policy import Policy
from actors.slots import Slot, covers, start_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a command leads to: events, and either an answer or a rejection.

    A rejection with events is a refusal that must be remembered: a move that its source refuses.
    """

    events: tuple[Event, ...] = ()
    appointment_id: str | None = None
    """The answer is this appointment, as it is after the events."""
    answer: Mapping[str, Any] = field(default_factory=dict)
    """The answer, where it is no appointment."""
    rejection: Rejection | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """A live appointment of a patient in some other calendar."""

    appointment_id: str
    doctor_id: str
    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What only the database can see, found after it refused a batch: used to decide the batch again."""

    busy: Mapping[str, Sequence[Busy]] = field(default_factory=dict)
    """Live appointments by patient; a calendar ignores its own."""
    holds: Mapping[str, Sequence[tuple[str, datetime]]] = field(default_factory=dict)
    """Holds by user: the calendar's doctor and the end."""
    moves: Mapping[str, str] = field(default_factory=dict)
    """States of moves by id."""
    erased: frozenset[str] = frozenset()
    """Patients that have been erased."""


NO_FACTS = Facts()


def decide(calendar: Calendar, command: Command, now: datetime, policy: Policy, facts: Facts = NO_FACTS) -> Decision:
    """What the command leads to at ``now``; changes nothing.

    Raises:
        Rejection: the command is refused and nothing needs to be remembered of it.
    """
    match command:
        case messages.HoldSlot():
            return _hold_slot(calendar, command, now, policy, facts)
        case messages.ReleaseHold():
            hold = calendar.holds.get(command.hold_id)
            if hold is None or hold.user_id != command.requester.user_id or hold.expires_at <= now:
                raise NotFound
            return Decision(events=(HoldReleased(hold_id=hold.id, slot_id=hold.slot_id),))
        case messages.BookAppointment():
            return _book(calendar, command, now, policy, facts)
        case messages.RescheduleAppointment():
            return _reschedule(calendar, command, now, policy, facts)
        case messages.CancelAppointment():
            return _cancel(calendar, command, now, policy)
        case messages.RecordArrival():
            appointment = _waiting(calendar, command.appointment_id, command.if_version)
            return _changed(PatientArrived(appointment_id=appointment.id, version=appointment.version + 1))
        case messages.FulfilAppointment():
            appointment = _live(calendar, command.appointment_id, command.if_version)
            if appointment.start > now:
                raise TooEarly
            return _changed(AppointmentFulfilled(appointment_id=appointment.id, version=appointment.version + 1))
        case messages.RecordNoShow():
            appointment = _waiting(calendar, command.appointment_id, command.if_version)
            if appointment.start > now:
                raise TooEarly
            return _changed(PatientMissed(appointment_id=appointment.id, version=appointment.version + 1))
        case messages.PublishSlots():
            return _publish(calendar, command, now)
        case messages.CloseCalendar():
            return _close(calendar, command, now)
        case messages.RemoveClosure():
            return _remove_closure(calendar, command, now)
        case messages.BlockSlot():
            slot = _open_slot(calendar, command.slot_id)
            events: tuple[Event, ...] = ()
            if not slot.blocked:
                events = (SlotBlocked(slot_id=slot.id, displaced=_newly_displaced(calendar, (slot,))),)
            return Decision(events=events, answer={"slot": _slot_plain(slot, status="blocked")})
        case messages.UnblockSlot():
            slot = _open_slot(calendar, command.slot_id)
            events = ()
            if slot.blocked:
                restored = () if slot.closures else _live_in(calendar, (slot,))
                events = (SlotUnblocked(slot_id=slot.id, restored=restored),)
            return Decision(events=events, answer={"slot": _slot_plain(slot, status=_unblocked_status(slot, now))})
        case messages.CancelSlot():
            cancelled = _known_slot(calendar, command.slot_id)
            events = ()
            if not cancelled.cancelled:
                events = (SlotCancelled(slot_id=cancelled.id, displaced=_newly_displaced(calendar, (cancelled,))),)
            return Decision(events=events, answer={"slot": _slot_plain(cancelled, status="cancelled")})
        case messages.ReserveForMove():
            return _reserve_for_move(calendar, command, now, policy, facts)
        case messages.MoveOut():
            return _move_out(calendar, command, now, policy, facts)
        case messages.AbortMove():
            if facts.moves.get(command.move_id, "reserved") != "reserved":
                return Decision()
            refused = MoveRefused(move_id=command.move_id, target_doctor_id=command.target_doctor_id, code="abandoned")
            return Decision(events=(refused,))
        case messages.FinishMove():
            return _finish_move(calendar, command, now, facts)
        case messages.ExpireHolds():
            ended = calendar.holds_ended(now)
            return Decision(events=tuple(HoldExpired(hold_id=hold.id, slot_id=hold.slot_id) for hold in ended))
        case _:
            raise TypeError(f"not a command of a calendar: {type(command).__name__}")


def answer(calendar: Calendar, decision: Decision) -> dict[str, Any]:
    """What the caller gets for a decision whose events have been applied, as plain data."""
    if decision.appointment_id is None:
        return dict(decision.answer)
    if decision.appointment_id in calendar.changes.moved_out:
        moved = calendar.changes.moved_out[decision.appointment_id]
        return {"appointment": appointment_plain(moved.appointment, doctor_id=moved.target_doctor_id, displaced=False)}
    return {"appointment": calendar.appointment_plain(decision.appointment_id)}


def _hold_slot(calendar: Calendar, command: messages.HoldSlot, now: datetime, policy: Policy, facts: Facts) -> Decision:
    slot = _offered(calendar, command.slot_id, now, policy, override=command.override is not None)
    user_id = command.requester.user_id
    if slot.appointment_id is not None or slot.move_id is not None:
        raise SlotTaken
    hold = slot.hold
    if hold is not None and hold.expires_at > now:
        if hold.user_id != user_id:
            raise SlotTaken
        return Decision(answer={"hold": _hold_plain(hold.id, slot.id, hold.expires_at)})
    own = sum(other.user_id == user_id and other.expires_at > now for other in calendar.holds.values())
    elsewhere = sum(
        doctor_id != calendar.doctor_id and expires_at > now for doctor_id, expires_at in facts.holds.get(user_id, ())
    )
    policy.check_holds(own + elsewhere)
    expires_at = now + policy.hold_ttl
    return Decision(
        events=(
            *_ended_hold(slot),
            SlotHeld(hold_id=command.hold_id, slot_id=slot.id, user_id=user_id, expires_at=expires_at),
        ),
        answer={"hold": _hold_plain(command.hold_id, slot.id, expires_at)},
    )


def _book(
    calendar: Calendar, command: messages.BookAppointment, now: datetime, policy: Policy, facts: Facts
) -> Decision:
    _check_not_erased(command.patient_id, facts)
    override = command.override is not None
    slot = _offered(calendar, command.slot_id, now, policy, override=override)
    ended = _take(calendar, slot, command.requester.user_id, command.hold_id, now)
    _check_nobody_there(calendar, slot, None)
    live = _check_patient_free(calendar, command.patient_id, None, slot.start, slot.end, now, facts)
    policy.check_live_appointments(live, override=override)
    booked = AppointmentBooked(
        appointment_id=command.appointment_id,
        patient_id=command.patient_id,
        booked_by=command.requester.user_id,
        slot_id=slot.id,
    )
    return Decision(events=(*ended, booked), appointment_id=command.appointment_id)


def _reschedule(
    calendar: Calendar, command: messages.RescheduleAppointment, now: datetime, policy: Policy, facts: Facts
) -> Decision:
    override = command.override is not None
    appointment = _waiting(calendar, command.appointment_id, command.if_version)
    _check_not_erased(appointment.patient_id, facts)
    displaced = appointment.id in calendar.displaced
    slot = _offered(calendar, command.slot_id, now, policy, override=override)
    ended = _take(calendar, slot, command.requester.user_id, command.hold_id, now)
    policy.check_move(appointment.start, appointment.moves, now, override=override or displaced)
    _check_nobody_there(calendar, slot, appointment.id)
    _check_patient_free(calendar, appointment.patient_id, appointment.id, slot.start, slot.end, now, facts)
    moved = AppointmentRescheduled(
        appointment_id=appointment.id,
        from_slot_id=appointment.slot_id,
        slot_id=slot.id,
        version=appointment.version + 1,
    )
    return Decision(events=(*ended, moved), appointment_id=appointment.id)


def _cancel(calendar: Calendar, command: messages.CancelAppointment, now: datetime, policy: Policy) -> Decision:
    appointment = _live(calendar, command.appointment_id, command.if_version)
    displaced = appointment.id in calendar.displaced
    policy.check_cancel(appointment.start, now, override=command.override is not None or displaced)
    return _changed(
        AppointmentCancelled(appointment_id=appointment.id, by=command.requester.role, version=appointment.version + 1)
    )


def _publish(calendar: Calendar, command: messages.PublishSlots, now: datetime) -> Decision:
    taken = [(slot.start, slot.end) for slot in calendar.by_start]
    cancelled = {(slot.start, slot.end) for slot in calendar.slots.values() if slot.cancelled}
    opened: list[NewSlot] = []
    skipped: list[dict[str, Any]] = []
    kept = 0
    for new in sorted(command.slots, key=start_of):
        interval = (new.start, new.end)
        index = bisect_left(taken, interval)
        why = None
        if index < len(taken) and taken[index] == interval:
            kept += 1
            continue
        if new.start <= now:
            why = "past"
        elif interval in cancelled:
            why = "cancelled"
        elif (index > 0 and taken[index - 1][1] > new.start) or (index < len(taken) and taken[index][0] < new.end):
            why = "overlap"
        elif any(covers(windows, new) for windows in calendar.closures.values()):
            why = "closed"
        if why is not None:
            skipped.append({"start": new.start, "why": why})
            continue
        taken.insert(index, interval)
        opened.append(new)
    events = (SlotsPublished(slots=tuple(opened)),) if opened and not command.dry_run else ()
    return Decision(events=events, answer={"opened": len(opened), "kept": kept, "skipped": skipped})


def _close(calendar: Calendar, command: messages.CloseCalendar, now: datetime) -> Decision:
    covered = [slot for slot in calendar.slots_in(command.windows) if slot.end > now]
    displaced = _newly_displaced(calendar, covered)
    report: list[dict[str, Any]] = []
    for touched in displaced:
        plain = calendar.appointment_plain(touched.appointment_id)
        report.append(
            plain if command.dry_run else plain | {"displaced": True, "version": touched.version, "updated_at": now}
        )
    event = CalendarClosed(
        closure_id=command.closure_id,
        windows=command.windows,
        created_by=command.requester.user_id,
        displaced=displaced,
    )
    return Decision(
        events=() if command.dry_run else (event,),
        answer={
            "closure_id": command.closure_id,
            "blocked": sum(not slot.closed for slot in covered),
            "displaced": report,
        },
    )


def _remove_closure(calendar: Calendar, command: messages.RemoveClosure, now: datetime) -> Decision:
    windows = calendar.closures.get(command.closure_id)
    if windows is None:
        if command.closure_id not in calendar.closures_over:
            raise NotFound
        windows = ()
    covered = (slot for slot in calendar.slots_in(windows) if slot.end > now)
    opened = [slot for slot in covered if slot.closures == 1 and not slot.blocked]
    event = ClosureRemoved(closure_id=command.closure_id, restored=_live_in(calendar, opened))
    return Decision(events=(event,), answer={"opened": len(opened)})


def _reserve_for_move(
    calendar: Calendar, command: messages.ReserveForMove, now: datetime, policy: Policy, facts: Facts
) -> Decision:
    reservation = calendar.reservations.get(command.move_id)
    if reservation is not None:
        return Decision(answer={"slot": _slot_plain(calendar.slots[reservation.slot_id])})
    if facts.moves.get(command.move_id) == "done":  # So long ago that its answer is not stored any more.
        raise IdempotencyKeyReused
    slot = _offered(calendar, command.slot_id, now, policy, override=command.override is not None)
    ended = _take(calendar, slot, command.requester.user_id, command.hold_id, now)
    _check_nobody_there(calendar, slot, None)
    reserved = MoveReserved(
        move_id=command.move_id,
        slot_id=slot.id,
        appointment_id=command.appointment_id,
        source_doctor_id=command.source_doctor_id,
        request={
            "command_id": command.command_id,
            "fingerprint": command.fingerprint,
            "user_id": command.requester.user_id,
            "role": command.requester.role.value,
            "if_version": command.if_version,
            "override": command.override is not None,
            "slot": _new_slot_plain(slot),
        },
    )
    return Decision(events=(*ended, reserved), answer={"slot": _slot_plain(slot, status="held")})


def _move_out(calendar: Calendar, command: messages.MoveOut, now: datetime, policy: Policy, facts: Facts) -> Decision:
    slot = command.slot
    if facts.moves.get(command.move_id, "reserved") != "reserved":
        raise SlotTaken("The slot is no longer kept for this move.")
    try:
        appointment = _waiting(calendar, command.appointment_id, command.if_version)
        _check_not_erased(appointment.patient_id, facts)
        displaced = appointment.id in calendar.displaced
        override = command.override is not None or displaced
        policy.check_move(appointment.start, appointment.moves, now, override=override)
        _check_patient_free(calendar, appointment.patient_id, appointment.id, slot.start, slot.end, now, facts)
    except Rejection as rejection:
        refused = MoveRefused(move_id=command.move_id, target_doctor_id=command.target_doctor_id, code=rejection.code)
        return Decision(events=(refused,), rejection=rejection)
    moved = AppointmentMovedOut(
        move_id=command.move_id,
        target_doctor_id=command.target_doctor_id,
        from_slot_id=appointment.slot_id,
        appointment=moved_to(appointment, slot, appointment.version + 1, now),
    )
    return Decision(events=(moved,), appointment_id=appointment.id)


def _finish_move(calendar: Calendar, command: messages.FinishMove, now: datetime, facts: Facts) -> Decision:
    reservation = calendar.reservations.get(command.move_id)
    if reservation is None:
        return Decision()
    appointment = command.appointment or reservation.moved
    if appointment is None:
        if facts.moves.get(command.move_id, "aborted") != "aborted":
            return Decision()  # The slot has been kept anew since whoever sent this looked.
        return Decision(events=(ReservationReleased(move_id=reservation.move_id, slot_id=reservation.slot_id),))
    displaced = calendar.slots[reservation.slot_id].closed
    if displaced:
        appointment = replace(appointment, version=appointment.version + 1, updated_at=now)
    return Decision(
        events=(AppointmentMovedIn(move_id=command.move_id, appointment=appointment, displaced=displaced),),
        appointment_id=appointment.id,
    )


def _check_not_erased(patient_id: str, facts: Facts) -> None:
    if patient_id in facts.erased:
        raise NotFound("There is no such patient.")


def _known_slot(calendar: Calendar, slot_id: str) -> Slot:
    slot = calendar.slots.get(slot_id)
    if slot is None:
        raise SlotUnavailable("The slot is in the past.")
    return slot


def _open_slot(calendar: Calendar, slot_id: str) -> Slot:
    slot = _known_slot(calendar, slot_id)
    if slot.cancelled:
        raise SlotUnavailable("The slot is cancelled.")
    return slot


def _offered(calendar: Calendar, slot_id: str, now: datetime, policy: Policy, *, override: bool) -> Slot:
    slot = _known_slot(calendar, slot_id)
    if slot.closed:
        raise SlotUnavailable("The slot is blocked or cancelled.")
    policy.check_offer(slot.start, now, override=override)
    return slot


def _take(calendar: Calendar, slot: Slot, user_id: str, hold_id: str | None, now: datetime) -> tuple[HoldExpired, ...]:
    """Check that the user may take the slot; returns the end of a hold that nobody has noted yet."""
    hold = slot.hold
    standing = hold is not None and hold.expires_at > now
    if hold_id is not None and not (hold is not None and standing and hold.id == hold_id and hold.user_id == user_id):
        raise HoldExpiredRejection
    if slot.appointment_id is not None or slot.move_id is not None:
        raise SlotTaken
    if hold is not None and standing and hold.user_id != user_id:
        raise SlotTaken
    return () if standing else _ended_hold(slot)


def _ended_hold(slot: Slot) -> tuple[HoldExpired, ...]:
    return (HoldExpired(hold_id=slot.hold.id, slot_id=slot.id),) if slot.hold is not None else ()


def _check_nobody_there(calendar: Calendar, slot: Slot, appointment_id: str | None) -> None:
    """A visit is still with the doctor at its time, or is to come at it, though its slot was withdrawn."""
    for other_id in calendar.displaced:
        other = calendar.appointments[other_id]
        if other_id != appointment_id and other.start < slot.end and slot.start < other.end:
            raise SlotUnavailable("A displaced visit is still at that time.")
    for reservation in calendar.reservations.values():
        reserved = calendar.slots[reservation.slot_id]
        if reserved is not slot and reserved.start < slot.end and slot.start < reserved.end:
            raise SlotUnavailable("A visit is to come at that time.")


def _check_patient_free(
    calendar: Calendar,
    patient_id: str,
    appointment_id: str | None,
    start: datetime,
    end: datetime,
    now: datetime,
    facts: Facts,
) -> int:
    """Check that no other live visit of the patient overlaps; returns how many have not ended."""
    live = 0
    for other in calendar.appointments.of_patient(patient_id):
        if other.id == appointment_id or not other.status.live:
            continue
        if other.start < end and start < other.end:
            raise PatientOverlap
        live += other.end > now
    for busy in facts.busy.get(patient_id, ()):
        if busy.doctor_id == calendar.doctor_id or busy.appointment_id == appointment_id:
            continue
        if busy.start < end and start < busy.end:
            raise PatientOverlap
        live += busy.end > now
    return live


def _live(calendar: Calendar, appointment_id: str, if_version: int | None) -> AppointmentState:
    appointment = calendar.appointments.get(appointment_id)
    if appointment is None:
        raise NotLive
    if if_version is not None and appointment.version != if_version:
        raise VersionConflict
    if not appointment.status.live:
        raise NotLive
    return appointment


def _waiting(calendar: Calendar, appointment_id: str, if_version: int | None) -> AppointmentState:
    appointment = _live(calendar, appointment_id, if_version)
    if appointment.status is AppointmentStatus.ARRIVED:
        raise AlreadyArrived
    return appointment


def _live_in(calendar: Calendar, slots: Iterable[Slot]) -> tuple[Touched, ...]:
    return tuple(
        Touched(appointment_id=slot.appointment_id, version=calendar.appointments[slot.appointment_id].version + 1)
        for slot in slots
        if slot.appointment_id is not None and calendar.appointments[slot.appointment_id].status.live
    )


def _newly_displaced(calendar: Calendar, slots: Iterable[Slot]) -> tuple[Touched, ...]:
    return _live_in(calendar, (slot for slot in slots if not slot.closed))


def _changed(
    event: AppointmentCancelled | PatientArrived | AppointmentFulfilled | PatientMissed,
) -> Decision:
    return Decision(events=(event,), appointment_id=event.appointment_id)


def _unblocked_status(slot: Slot, now: datetime) -> str:
    if slot.closures:
        return "blocked"
    if slot.appointment_id is not None:
        return "booked"
    held = slot.move_id is not None or (slot.hold is not None and slot.hold.expires_at > now)
    return "held" if held else "free"


def _slot_plain(slot: Slot, *, status: str | None = None) -> dict[str, Any]:
    return _new_slot_plain(slot) | {"status": status or slot.status}


def _new_slot_plain(slot: Slot) -> dict[str, Any]:
    return {
        "id": slot.id,
        "start": slot.start,
        "end": slot.end,
        "location_id": slot.location_id,
        "service_id": slot.service_id,
    }


def _hold_plain(hold_id: str, slot_id: str, expires_at: datetime) -> dict[str, Any]:
    return {"id": hold_id, "slot_id": slot_id, "expires_at": expires_at}
