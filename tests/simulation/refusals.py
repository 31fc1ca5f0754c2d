"""Whether a refusal was true: at some state between the question and the answer, as the journal has it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from actors.messages import AppointmentBooked, AppointmentMovedIn, AppointmentMovedOut, AppointmentState, MoveRefused
from tests.simulation.history import Evidence, Operation, Told, commands_of
from tests.simulation.replayed import Replayed, State, overlap


def broken_refusals(evidence: Evidence, replayed: Mapping[str, Replayed]) -> Iterator[str]:
    """Refusals that were true at no time."""
    told = commands_of(evidence)
    for operation in evidence.operations:
        if operation.outcome == "fail" and not _Refusal(evidence, replayed, told, operation).true:
            yield f"{operation.kind} {operation.command_id} was refused: {operation.code}, which was true at no time"


class _Refusal:
    """One refused operation and what may have been seen of each calendar meanwhile."""

    def __init__(
        self,
        evidence: Evidence,
        replayed: Mapping[str, Replayed],
        told: Mapping[str, Told],
        operation: Operation,
    ) -> None:
        self._evidence = evidence
        self._operation = operation
        self._seen = {
            doctor_id: _window(operation, told[operation.command_id], doctor_id, told.values(), each)
            for doctor_id, each in replayed.items()
        }
        self._states: dict[str, Sequence[State]] = {
            doctor_id: each.states[slice(*self._seen[doctor_id])] for doctor_id, each in replayed.items()
        }
        assert operation.returned_at is not None
        self._earliest = operation.invoked_at - evidence.skew
        self._latest = operation.returned_at + evidence.skew

    @property
    def true(self) -> bool:
        """Whether it was, at some time."""
        match self._operation.code:
            case "slot_taken":
                return self._slot_taken()
            case "slot_unavailable":
                slot = self._evidence.slots[self._operation.slot_id]
                return slot["starts_at"] <= self._latest or any(
                    self._operation.slot_id in state.closed or state.displaced
                    for state in self._states[self._operation.doctor_id]
                )
            case "patient_overlap":
                return self._patient_overlap()
            case "limit_reached":
                return self._limit_reached()
            case "not_live":
                # It stayed in one calendar all the time: then it is not true.
                visit = self._operation.appointment_id
                return not any(all(visit in state.live for state in states) for states in self._states.values())
            case "not_found" if self._operation.kind == "reopen":
                states = self._states[self._operation.doctor_id]
                return any(self._operation.closure_id not in state.closures for state in states)
            case "hold_expired" | "not_found":
                return self._hold_gone()
            case _:
                return False

    def _slot_taken(self) -> bool:
        operation = self._operation
        for state in self._states[operation.doctor_id]:
            if operation.slot_id in state.reserved:
                return True
            there = [visit.id for visit in state.live.values() if visit.slot_id == operation.slot_id]
            if there and (operation.kind != "book" or there != [operation.appointment_id]):
                return True  # And not by what is refused.
            for hold in state.holds.values():
                others = hold.user_id != operation.user_id and hold.expires_at > self._earliest
                if others and hold.slot_id == operation.slot_id:
                    return True
        # Or the slot was no longer kept for this move, which had been refused.
        return operation.kind == "move" and any(
            isinstance(row.event, MoveRefused) and row.command_id == operation.command_id
            for events in self._evidence.events.values()
            for row in events
        )

    def _patient_overlap(self) -> bool:
        slot = self._evidence.slots[self._operation.slot_id]
        return any(overlap(visit, slot["starts_at"], slot["ends_at"]) for visit in self._others())

    def _limit_reached(self) -> bool:
        policy, operation = self._evidence.policy, self._operation
        match operation.kind:
            case "hold":
                held = {
                    hold.id
                    for states in self._states.values()
                    for state in states
                    for hold in state.holds.values()
                    if hold.user_id == operation.user_id and hold.expires_at > self._earliest
                }
                return len(held) >= policy.holds_max
            case "book":
                return len({visit.id for visit in self._others()}) >= policy.live_appointments_max
            case _:
                return any(
                    state.live[operation.appointment_id].moves >= policy.moves_max
                    for states in self._states.values()
                    for state in states
                    if operation.appointment_id in state.live
                )

    def _hold_gone(self) -> bool:
        operation = self._operation
        for state in self._states[operation.doctor_id]:
            hold = state.holds.get(operation.hold_id or "")
            if hold is None or hold.user_id != operation.user_id:
                return True
            if operation.kind != "release" and hold.slot_id != operation.slot_id:
                return True
            if hold.expires_at <= self._latest:
                return True
        return False

    def _others(self) -> Iterator[AppointmentState]:
        """The patient's other visits that were live at some time meanwhile, in a calendar or between two."""
        patient_id = self._patient()
        for states in self._states.values():
            for state in states:
                for visit in state.live.values():
                    if visit.patient_id == patient_id and visit.id != self._operation.appointment_id:
                        yield visit
        for doctor_id, events in self._evidence.events.items():
            for row in events[: self._seen[doctor_id][1] - 1]:
                gone = row.event
                if isinstance(gone, AppointmentMovedOut) and gone.appointment.patient_id == patient_id:
                    arrived = self._arrived(gone)
                    on_its_way = arrived is None or arrived > self._seen[gone.target_doctor_id][0]
                    if on_its_way and gone.appointment.id != self._operation.appointment_id:
                        yield gone.appointment

    def _arrived(self, gone: AppointmentMovedOut) -> int | None:
        for row in self._evidence.events[gone.target_doctor_id]:
            if isinstance(row.event, AppointmentMovedIn) and row.event.move_id == gone.move_id:
                return row.sequence
        return None

    def _patient(self) -> str:
        if self._operation.kind == "book":
            return self._operation.user_id
        for events in self._evidence.events.values():
            for row in events:
                if (
                    isinstance(row.event, AppointmentBooked)
                    and row.event.appointment_id == self._operation.appointment_id
                ):
                    return row.event.patient_id
        return ""


def _window(
    operation: Operation, told: Told, doctor_id: str, commands: Iterable[Told], replayed: Replayed
) -> tuple[int, int]:
    """From which sequence to before which the calendar may have been seen while the operation was under way."""
    since = [operation, *_joined(operation, told)]
    if operation.known_after is not None and all(each.known_before is not None for each in since):
        known = [each.known_before[doctor_id] for each in since if each.known_before is not None]
        return min(known), operation.known_after[doctor_id] + 1
    assert operation.returned is not None
    invoked = min(each.invoked for each in since)
    first, behind = 0, len(replayed.states)
    for each in commands:
        for effect in each.effects:
            if effect.doctor_id == doctor_id and each.returned < invoked:
                first = max(first, effect.sequence)
            elif effect.doctor_id == doctor_id and each.invoked > operation.returned:
                behind = min(behind, effect.sequence)
    return first, behind


def _joined(operation: Operation, told: Told) -> Iterator[Operation]:
    """Operations under the same id whose refusal it may have been told: a repeat joins what is still open."""
    for other in told.operations:
        if other.returned is None or other.outcome == "info" or other.returned >= operation.invoked:
            yield other
