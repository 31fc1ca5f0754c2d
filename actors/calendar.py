"""A doctor's calendar: its state, and how events change it. Pure.

``evolve`` applies one event and decides nothing; ``decisions`` decides and changes nothing. ``calendar_actor`` is the
shell around both. Nothing here waits, reads a clock or draws an id.

An appointment is *displaced* while it is live and its slot is blocked or cancelled. That is derived, never stored
twice, as is what a slot reads as.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, assert_never

from actors.appointments import Appointments
from actors.changes import AppointmentChange, Effect, SlotChange
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
    Window,
)
from actors.slots import Hold, Slot, covers, start_of


@dataclass(slots=True, kw_only=True, eq=False)
class Reservation:
    """A slot kept for a move, until the move's outcome is known."""

    move_id: str
    slot_id: str
    appointment_id: str
    moved: AppointmentState | None = None
    """Found at activation: the source has let it go, it is to be taken in."""
    aborted: bool = False
    """Found at activation: the source refused, the slot is to be released."""


class Changes:
    """Ids of what events touched since they were last collected: what the journal has to write, once for each."""

    __slots__ = (
        "appointments",
        "closures",
        "holds",
        "latest_appointments",
        "latest_slots",
        "moved_out",
        "slots",
        "slots_published",
    )

    def __init__(self) -> None:
        self.slots: set[str] = set()
        self.slots_published: set[str] = set()
        self.holds: set[str] = set()
        self.appointments: set[str] = set()
        self.closures: set[str] = set()
        self.moved_out: dict[str, AppointmentMovedOut] = {}
        self.latest_slots: set[str] = set()
        """Those that the last event touched."""
        self.latest_appointments: set[str] = set()

    def touch_slot(self, slot_id: str) -> None:
        """The slot may read differently now."""
        self.slots.add(slot_id)
        self.latest_slots.add(slot_id)

    def touch_appointment(self, appointment_id: str) -> None:
        """The appointment has a new version."""
        self.appointments.add(appointment_id)
        self.latest_appointments.add(appointment_id)


class Calendar:
    """The state of one doctor's calendar from a day on: changed by ``evolve`` alone."""

    __slots__ = (
        "_shared",
        "appointments",
        "by_start",
        "changes",
        "closed_by",
        "closures",
        "closures_over",
        "displaced",
        "doctor_id",
        "holds",
        "last_event_at",
        "reservations",
        "sequence",
        "slots",
    )

    def __init__(self, doctor_id: str, *, sequence: int = 0, last_event_at: datetime | None = None) -> None:
        self.doctor_id = doctor_id
        self.sequence = sequence
        self.last_event_at = last_event_at
        self.slots: dict[str, Slot] = {}
        self.by_start: list[Slot] = []
        """Slots that are not cancelled, by start; they never overlap."""
        self.holds: dict[str, Hold] = {}
        self.appointments = Appointments(self.slots)
        self.displaced: set[str] = set()
        self.closures: dict[str, tuple[Window, ...]] = {}
        self.closures_over: set[str] = set()
        """Those that were over when the calendar was loaded. They close nothing any more, and can be removed."""
        self.closed_by: dict[str, str] = {}
        """Who entered each closure."""
        self.reservations: dict[str, Reservation] = {}
        self.changes = Changes()
        self._shared: dict[Any, Any] = {}
        """One object for each place and length: slots are most of a calendar's size."""

    # Loading: what the tables hold, put in place without events.

    def put_slot(self, slot: Slot, *, closed: bool | None = None) -> None:
        """Add a slot; closures that cover it are counted in.

        ``closed`` is whether a closure was known to have blocked it, where that is known: what has ended stays as it
        was, whichever closures came and went since.
        """
        share = self._shared.setdefault
        slot.length = share(slot.length, slot.length)
        slot.location_id = share(slot.location_id, slot.location_id)
        slot.service_id = share(slot.service_id, slot.service_id)
        slot.closures = sum(covers(windows, slot) for windows in self.closures.values())
        if closed is not None:
            slot.closures = max(slot.closures, 1) if closed else 0
        self.slots[slot.id] = slot
        if not slot.cancelled:
            insort(self.by_start, slot, key=start_of)

    def put_closure(self, closure_id: str, windows: tuple[Window, ...], created_by: str) -> None:
        """Add a closure; slots that are added later are counted as covered by it."""
        self.closures[closure_id] = windows
        self.closed_by[closure_id] = created_by

    def put_hold(self, hold: Hold) -> None:
        """Add a hold to its slot."""
        self.holds[hold.id] = hold
        self.slots[hold.slot_id].hold = hold

    def put_appointment(self, appointment: AppointmentState) -> None:
        """Add an appointment, or replace it by its next version."""
        previous = self.appointments.get(appointment.id)
        if previous is not None and not _stays(previous, appointment):
            self._leave_slot(previous)
        self.appointments[appointment.id] = appointment
        self.displaced.discard(appointment.id)
        if not appointment.status.live:
            return
        slot = self.slots.get(appointment.slot_id)
        if slot is not None:
            slot.appointment_id = appointment.id
            if slot.closed:
                self.displaced.add(appointment.id)

    def put_reservation(self, reservation: Reservation) -> None:
        """Keep a slot for a move."""
        self.reservations[reservation.move_id] = reservation
        self.slots[reservation.slot_id].move_id = reservation.move_id

    # Reading

    def slots_in(self, windows: Iterable[Window]) -> Iterator[Slot]:
        """The slots, not cancelled, that any of the windows overlaps, each once."""
        seen: set[str] = set()
        for window in windows:
            index = bisect_left(self.by_start, window.start, key=start_of)
            index = max(0, index - 1)
            for slot in self.by_start[index:]:
                if slot.start >= window.end:
                    break
                if slot.id not in seen and covers((window,), slot):
                    seen.add(slot.id)
                    yield slot

    def holds_ended(self, now: datetime) -> list[Hold]:
        """The holds that are past their time and not yet said to be."""
        return [hold for hold in self.holds.values() if hold.expires_at <= now]

    def appointment_plain(self, appointment_id: str) -> dict[str, Any]:
        """An appointment as plain data, as answers carry it."""
        appointment = self.appointments[appointment_id]
        return appointment_plain(appointment, doctor_id=self.doctor_id, displaced=appointment_id in self.displaced)

    # Changing

    def forget_changes(self) -> None:
        """What has been touched is written down, or is what was loaded."""
        self.changes = Changes()
        self.appointments.pack()

    def _leave_slot(self, appointment: AppointmentState) -> None:
        if not appointment.status.live:
            return
        self.displaced.discard(appointment.id)
        slot = self.slots.get(appointment.slot_id)
        if slot is not None and slot.appointment_id == appointment.id:
            slot.appointment_id = None
            self.changes.touch_slot(slot.id)

    def _remove_appointment(self, appointment_id: str) -> None:
        self._leave_slot(self.appointments.pop(appointment_id))

    def _drop_hold(self, slot: Slot) -> None:
        if slot.hold is not None:
            del self.holds[slot.hold.id]
            self.changes.holds.add(slot.hold.id)
            self.changes.touch_slot(slot.id)
            slot.hold = None


def evolve(calendar: Calendar, event: Event, at: datetime) -> Effect:
    """Apply one event, the calendar's next: one number, and its effect on the state, which is returned."""
    calendar.sequence += 1
    calendar.last_event_at = at
    changes = calendar.changes
    changes.latest_slots.clear()
    changes.latest_appointments.clear()
    match event:
        case SlotsPublished():
            for new in event.slots:
                calendar.put_slot(
                    Slot(
                        id=new.id,
                        start=new.start,
                        length=new.end - new.start,
                        location_id=new.location_id,
                        service_id=new.service_id,
                    )
                )
                changes.slots_published.add(new.id)
                changes.latest_slots.add(new.id)
        case SlotHeld():
            calendar.put_hold(
                Hold(id=event.hold_id, slot_id=event.slot_id, user_id=event.user_id, expires_at=event.expires_at)
            )
            changes.holds.add(event.hold_id)
            changes.touch_slot(event.slot_id)
        case HoldReleased() | HoldExpired():
            calendar._drop_hold(calendar.slots[event.slot_id])
        case AppointmentBooked():
            slot = calendar.slots[event.slot_id]
            calendar._drop_hold(slot)
            _put(calendar, _booked(event, slot, at))
        case AppointmentRescheduled():
            slot = calendar.slots[event.slot_id]
            calendar._drop_hold(slot)
            appointment = calendar.appointments[event.appointment_id]
            _put(calendar, moved_to(appointment, slot, event.version, at))
        case AppointmentCancelled():
            _set_status(calendar, event.appointment_id, AppointmentStatus.CANCELLED, event.version, at)
        case PatientArrived():
            _set_status(calendar, event.appointment_id, AppointmentStatus.ARRIVED, event.version, at)
        case AppointmentFulfilled():
            _set_status(calendar, event.appointment_id, AppointmentStatus.FULFILLED, event.version, at)
        case PatientMissed():
            _set_status(calendar, event.appointment_id, AppointmentStatus.NOSHOW, event.version, at)
        case CalendarClosed():
            calendar.put_closure(event.closure_id, event.windows, event.created_by)
            changes.closures.add(event.closure_id)
            for slot in calendar.slots_in(event.windows):
                if slot.end > at:
                    slot.closures += 1
                    _slot_closed(calendar, slot)
            _touch(calendar, event.displaced, at)
        case ClosureRemoved():
            windows: tuple[Window, ...] = ()
            if event.closure_id in calendar.closures_over:
                calendar.closures_over.remove(event.closure_id)
            else:
                windows = calendar.closures.pop(event.closure_id)
                del calendar.closed_by[event.closure_id]
            changes.closures.add(event.closure_id)
            for slot in calendar.slots_in(windows):
                if slot.end > at:
                    slot.closures -= 1
                    changes.touch_slot(slot.id)
            _touch(calendar, event.restored, at)
        case SlotBlocked():
            slot = calendar.slots[event.slot_id]
            slot.blocked = True
            _slot_closed(calendar, slot)
            _touch(calendar, event.displaced, at)
        case SlotUnblocked():
            calendar.slots[event.slot_id].blocked = False
            changes.touch_slot(event.slot_id)
            _touch(calendar, event.restored, at)
        case SlotCancelled():
            slot = calendar.slots[event.slot_id]
            slot.cancelled = True
            calendar.by_start.remove(slot)
            _slot_closed(calendar, slot)
            _touch(calendar, event.displaced, at)
        case MoveReserved():
            slot = calendar.slots[event.slot_id]
            calendar._drop_hold(slot)
            calendar.put_reservation(
                Reservation(move_id=event.move_id, slot_id=event.slot_id, appointment_id=event.appointment_id)
            )
            changes.touch_slot(event.slot_id)
        case AppointmentMovedOut():
            calendar._remove_appointment(event.appointment.id)
            changes.appointments.discard(event.appointment.id)
            changes.moved_out[event.appointment.id] = event
        case MoveRefused():
            pass
        case AppointmentMovedIn():
            _end_reservation(calendar, event.move_id)
            changes.moved_out.pop(event.appointment.id, None)
            _put(calendar, event.appointment)
        case ReservationReleased():
            _end_reservation(calendar, event.move_id)
        case _:
            assert_never(event)
    return _effect(calendar, event)


def appointment_plain(appointment: AppointmentState, *, doctor_id: str, displaced: bool) -> dict[str, Any]:
    """An appointment as plain data: the fields of ``AppointmentState``, its doctor and whether it is displaced."""
    return {
        "id": appointment.id,
        "doctor_id": doctor_id,
        "patient_id": appointment.patient_id,
        "booked_by": appointment.booked_by,
        "slot_id": appointment.slot_id,
        "location_id": appointment.location_id,
        "service_id": appointment.service_id,
        "start": appointment.start,
        "end": appointment.end,
        "status": appointment.status.value,
        "displaced": displaced,
        "version": appointment.version,
        "moves": appointment.moves,
        "created_at": appointment.created_at,
        "updated_at": appointment.updated_at,
    }


# Evolving


def _effect(calendar: Calendar, event: Event) -> Effect:
    slots = [calendar.slots[slot_id] for slot_id in calendar.changes.latest_slots]
    slots.sort(key=lambda slot: (slot.start, slot.id))
    appointments = [calendar.appointments[each] for each in sorted(calendar.changes.latest_appointments)]
    if isinstance(event, AppointmentMovedOut):
        appointments = [event.appointment]
    return Effect(
        slots=tuple(
            SlotChange(
                id=slot.id,
                start=slot.start,
                end=slot.end,
                location_id=slot.location_id,
                service_id=slot.service_id,
                status=slot.status,
            )
            for slot in slots
        ),
        appointments=tuple(
            AppointmentChange(id=each.id, patient_id=each.patient_id, version=each.version) for each in appointments
        ),
    )


def _stays(appointment: AppointmentState, then: AppointmentState) -> bool:
    """Whether it has its slot before and after: to others the slot reads as it did."""
    return appointment.status.live and then.status.live and appointment.slot_id == then.slot_id


def _put(calendar: Calendar, appointment: AppointmentState) -> None:
    previous = calendar.appointments.get(appointment.id)
    calendar.put_appointment(appointment)
    calendar.changes.touch_appointment(appointment.id)
    if previous is not None and _stays(previous, appointment):
        return
    if appointment.slot_id in calendar.slots:
        calendar.changes.touch_slot(appointment.slot_id)


def _booked(event: AppointmentBooked, slot: Slot, at: datetime) -> AppointmentState:
    return AppointmentState(
        id=event.appointment_id,
        patient_id=event.patient_id,
        booked_by=event.booked_by,
        slot_id=slot.id,
        location_id=slot.location_id,
        service_id=slot.service_id,
        start=slot.start,
        end=slot.end,
        status=AppointmentStatus.BOOKED,
        version=1,
        moves=0,
        created_at=at,
        updated_at=at,
    )


def moved_to(appointment: AppointmentState, slot: Slot | NewSlot, version: int, at: datetime) -> AppointmentState:
    """The appointment as it is in another slot, of whichever calendar."""
    return replace(
        appointment,
        slot_id=slot.id,
        location_id=slot.location_id,
        service_id=slot.service_id,
        start=slot.start,
        end=slot.end,
        status=AppointmentStatus.RESCHEDULED,
        version=version,
        moves=appointment.moves + 1,
        updated_at=at,
    )


def _set_status(calendar: Calendar, appointment_id: str, status: AppointmentStatus, version: int, at: datetime) -> None:
    appointment = calendar.appointments[appointment_id]
    _put(calendar, replace(appointment, status=status, version=version, updated_at=at))


def _slot_closed(calendar: Calendar, slot: Slot) -> None:
    calendar._drop_hold(slot)
    calendar.changes.touch_slot(slot.id)


def _touch(calendar: Calendar, touched: Iterable[Touched], at: datetime) -> None:
    """Raise the versions of visits whose slot was closed or opened, and see again whether they are displaced."""
    for each in touched:
        appointment = calendar.appointments[each.appointment_id]
        _put(calendar, replace(appointment, version=each.version, updated_at=at))


def _end_reservation(calendar: Calendar, move_id: str) -> None:
    reservation = calendar.reservations.pop(move_id)
    slot = calendar.slots[reservation.slot_id]
    slot.move_id = None
    calendar.changes.touch_slot(slot.id)
