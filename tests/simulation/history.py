"""Checks what clients were told against what the journal and the tables hold in the end.

Plain data in, violations out: it does not matter whether the history is of a simulation or of real servers. The
journal is the witness: replayed, it gives every state there ever was, and each answer has to fit into it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from actors.journal import EventRow, StoredAnswer
from actors.messages import (
    AppointmentBooked,
    AppointmentCancelled,
    AppointmentMovedIn,
    AppointmentMovedOut,
    AppointmentRescheduled,
    CalendarClosed,
    ClosureRemoved,
    Event,
    HoldReleased,
    SlotBlocked,
    SlotHeld,
    SlotUnblocked,
)
from actors.policy import Policy
from tests.given import as_json

Row = Mapping[str, Any]

EFFECTS: dict[str, tuple[type[Any], ...]] = {
    "hold": (SlotHeld,),
    "release": (HoldReleased,),
    "book": (AppointmentBooked,),
    "move": (AppointmentRescheduled, AppointmentMovedOut),
    "cancel": (AppointmentCancelled,),
    "close": (CalendarClosed,),
    "reopen": (ClosureRemoved,),
    "block": (SlotBlocked,),
    "unblock": (SlotUnblocked,),
}
"""What an operation of a kind leads to: exactly one of these, once."""
MAY_BE_SO_ALREADY = ("hold", "block", "unblock")
"""Operations that are acknowledged, too, when there is nothing left to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One request and its answer. A repeat is an operation of its own, under the same command id."""

    command_id: str
    kind: str
    user_id: str
    """Who asked; patients book for themselves."""
    doctor_id: str
    """Whose slot or calendar is meant; for a cancellation it does not matter."""
    slot_id: str
    appointment_id: str = ""
    hold_id: str | None = None
    closure_id: str = ""
    invoked: int
    """Any clock that all clients share, as long as it orders them."""
    returned: int | None = None
    invoked_at: datetime
    returned_at: datetime | None = None
    outcome: Literal["ok", "fail", "info"]
    """``info``: nobody knows, or the client went away."""
    answer: Any = None
    """What an ``ok`` said, to compare with what is stored; ``None`` where that cannot be compared."""
    code: str = ""
    known_before: Mapping[str, int] | None = None
    """The sequence of each calendar when it was asked, if anybody could see that."""
    known_after: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that is known when everybody is done."""

    operations: Sequence[Operation]
    events: Mapping[str, Sequence[EventRow]]
    """The journal of each calendar, by sequence."""
    sequences: Mapping[str, int]
    """The sequence in each calendar's own row."""
    answers: Mapping[str, StoredAnswer]
    """By command id."""
    slots: Mapping[str, Row]
    holds: Mapping[str, Row]
    appointments: Mapping[str, Row]
    moves: Mapping[str, Row]
    policy: Policy
    skew: timedelta = timedelta(0)
    """How far any clock may have been off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """An event that a client's command led to."""

    doctor_id: str
    sequence: int
    event: Event


@dataclass(slots=True)
class Told:
    """All that was asked and told under one command id, and what came of it."""

    operations: list[Operation] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)

    @property
    def invoked(self) -> float:
        """When it was first asked."""
        return min((operation.invoked for operation in self.operations), default=0)

    @property
    def returned(self) -> float:
        """When somebody was first told that it is done."""
        returned = (each.returned for each in self.operations if each.outcome == "ok" and each.returned is not None)
        return min(returned, default=float("inf"))


def commands_of(evidence: Evidence) -> dict[str, Told]:
    """Operations and effects by command id."""
    told: dict[str, Told] = {}
    for operation in evidence.operations:
        told.setdefault(operation.command_id, Told()).operations.append(operation)
    kinds = tuple(kind for kinds in EFFECTS.values() for kind in kinds)
    for doctor_id, events in evidence.events.items():
        for row in events:
            if isinstance(row.event, kinds):
                effect = Effect(doctor_id=doctor_id, sequence=row.sequence, event=row.event)
                told.setdefault(row.command_id, Told()).effects.append(effect)
    return told


def broken_answers(evidence: Evidence) -> Iterator[str]:
    """Every ok is in the journal once, every definite no is not in it, and a repeat is told the same."""
    for command_id, told in commands_of(evidence).items():
        if not told.operations:
            yield f"nobody asked for {told.effects[0]} under {command_id}"
            continue
        first = told.operations[0]
        what = f"{first.kind} {command_id}"
        stored = evidence.answers.get(command_id)
        oks = [each for each in told.operations if each.outcome == "ok"]
        done = stored is not None and "done" in stored.answer
        if len(told.effects) > 1:
            yield f"{what} has {len(told.effects)} effects: {told.effects}"
        for effect in told.effects:
            if not _fits(first, effect):
                yield f"{what} led to something else: {effect.event}"
        if told.effects and not done:
            yield f"{what} has an effect and no stored answer"
        if oks and not done:
            yield f"{what} was acknowledged and is not stored"
        elif oks and not told.effects and first.kind not in MAY_BE_SO_ALREADY:
            yield f"{what} was acknowledged and is not in the journal"
        for ok in oks:
            if stored is not None and ok.answer is not None and {"done": ok.answer} != as_json(stored.answer):
                yield f"{what} was told {ok.answer}, stored is {stored.answer}"
            if first.kind == "hold" and not _held(evidence, ok):
                yield f"{what} was told of a hold that never was"
        if all(each.outcome == "fail" for each in told.operations) and (told.effects or done):
            yield f"{what} was refused and is in the journal: {told.effects}"
        for fail in told.operations:
            if fail.outcome == "fail" and told.returned < fail.invoked:
                yield f"{what} was refused ({fail.code}) after it had been acknowledged"
            elif fail.outcome == "fail" and any(_known_before(fail, effect) for effect in told.effects):
                yield f"{what} was refused ({fail.code}) after it had been committed"


def broken_order(evidence: Evidence) -> Iterator[str]:
    """What had returned before something else was asked stands before it in the journal."""
    told = commands_of(evidence)
    for doctor_id, events in evidence.events.items():
        later, later_id = float("inf"), ""
        for row in reversed(events):
            here = told.get(row.command_id)
            if here is None or not any(each.event is row.event for each in here.effects):
                continue
            if later < here.invoked:
                yield f"{later_id} had returned before {row.command_id} was asked, and stands behind it in {doctor_id}"
            if here.returned < later:
                later, later_id = here.returned, row.command_id


def broken_moves(evidence: Evidence) -> Iterator[str]:
    """Who left a calendar came into the other one, once, and no move is left open."""
    for doctor_id, events in evidence.events.items():
        for row in events:
            if not isinstance(row.event, AppointmentMovedOut):
                continue
            target = evidence.events.get(row.event.target_doctor_id, ())
            into = [
                each.event
                for each in target
                if isinstance(each.event, AppointmentMovedIn) and each.event.move_id == row.event.move_id
            ]
            if len(into) != 1:
                yield f"{row.event.appointment.id} left {doctor_id} and came in {len(into)} times: {row.event.move_id}"
    for move_id, move in evidence.moves.items():
        if move["state"] not in ("done", "released"):
            yield f"the move {move_id} is left {move['state']}"


def _fits(operation: Operation, effect: Effect) -> bool:
    """Whether the event is what was asked for."""
    wanted = (operation.kind, operation.appointment_id, operation.slot_id)
    match effect.event:
        case SlotHeld() as held:
            return operation.kind == "hold" and held.slot_id == operation.slot_id and held.user_id == operation.user_id
        case HoldReleased() as released:
            return operation.kind == "release" and released.hold_id == operation.hold_id
        case AppointmentBooked() as booked:
            same = wanted == ("book", booked.appointment_id, booked.slot_id)
            return same and booked.patient_id == operation.user_id
        case AppointmentRescheduled() as moved:
            return wanted == ("move", moved.appointment_id, moved.slot_id)
        case AppointmentMovedOut(appointment=gone):
            return wanted == ("move", gone.id, gone.slot_id)
        case AppointmentCancelled() as cancelled:
            return wanted[:2] == ("cancel", cancelled.appointment_id)
        case CalendarClosed() as closed:
            return (operation.kind, operation.closure_id) == ("close", closed.closure_id)
        case ClosureRemoved() as removed:
            return (operation.kind, operation.closure_id) == ("reopen", removed.closure_id)
        case SlotBlocked() as blocked:
            return (operation.kind, operation.slot_id) == ("block", blocked.slot_id)
        case SlotUnblocked() as unblocked:
            return (operation.kind, operation.slot_id) == ("unblock", unblocked.slot_id)
        case _:
            return False


def _held(evidence: Evidence, operation: Operation) -> bool:
    """Whether the hold that was told of is one of the user's on that slot."""
    if operation.answer is None:
        return True
    hold_id = operation.answer["hold"]["id"]
    return any(
        isinstance(row.event, SlotHeld)
        and (row.event.hold_id, row.event.slot_id, row.event.user_id) == (hold_id, operation.slot_id, operation.user_id)
        for row in evidence.events[operation.doctor_id]
    )


def _known_before(operation: Operation, effect: Effect) -> bool:
    return operation.known_before is not None and effect.sequence <= operation.known_before[effect.doctor_id]
