"""Words for tests of calendars: instants, ids, slots and commands, and *given – when – then* over the pure core."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import orjson
import pytest

from actors.calendar import Calendar, evolve
from actors.decisions import NO_FACTS, Decision, Facts, answer, decide
from actors.errors import Rejection
from actors.messages import Command, Event, NewSlot, Requester, Role, SlotsPublished
from actors.policy import Policy

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
OPENS = datetime(2026, 11, 24, 9, 0, tzinfo=UTC)
"""When the first slot begins."""
SLOT = timedelta(minutes=30)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)

AnyCommand = TypeVar("AnyCommand", bound=Command)
_numbers = itertools.count(1)


def uid(name: str) -> str:
    """The UUID that stands for a name, always the same: for what goes through PostgreSQL."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, name))


def new_slot(number: int, *, prefix: str = "s", location_id: str = "l1", **more: Any) -> NewSlot:
    """The slot ``s<number>``: half an hour, the first at nine."""
    start = OPENS + number * SLOT
    values: dict[str, Any] = {
        "id": f"{prefix}{number}",
        "start": start,
        "end": start + SLOT,
        "location_id": location_id,
    } | more
    return NewSlot(**values)


def new_slots(count: int, **more: Any) -> tuple[NewSlot, ...]:
    """So many slots, end to end."""
    return tuple(new_slot(number, **more) for number in range(count))


def ask(
    kind: type[AnyCommand],
    *,
    by: str = "anna",
    role: Role = Role.PATIENT,
    doctor: str = "house",
    command_id: str | None = None,
    fingerprint: str = "f",
    **fields: Any,
) -> AnyCommand:
    """A command, with an id of its own unless one is given."""
    return kind(
        command_id=command_id or f"00000000-0000-7000-8000-{next(_numbers):012x}",
        doctor_id=doctor,
        requester=Requester(user_id=by, role=role),
        fingerprint=fingerprint,
        **fields,
    )


def staff(kind: type[AnyCommand], **fields: Any) -> AnyCommand:
    """A command of an administrator's."""
    return ask(kind, **{"by": "chief", "role": Role.ADMIN} | fields)


class Story:
    """One calendar: given events, when a command at a time, then events or a rejection."""

    def __init__(self, slots: Iterable[NewSlot] | int = 4, *, policy: Policy | None = None, doctor: str = "house"):
        self.calendar = Calendar(doctor)
        self.policy = policy if policy is not None else Policy()
        self.events: list[tuple[datetime, Event]] = []
        opened = new_slots(slots) if isinstance(slots, int) else tuple(slots)
        if opened:
            self.given(SlotsPublished(slots=opened))

    def given(self, *events: Event, at: datetime = NOW) -> Story:
        """These events have happened."""
        for event in events:
            before = self._statuses()
            effect = evolve(self.calendar, event, at)
            self.events.append((at, event))
            after, told = self._statuses(), {slot.id: slot.status for slot in effect.slots}
            changed = {slot_id for slot_id, status in after.items() if before.get(slot_id) != status}
            assert changed <= set(told), "a slot changed and the effect does not say so"
            assert told.items() <= after.items(), "the effect says of a slot what is not so"
            order = [(slot.start, slot.id) for slot in effect.slots]
            assert order == sorted(order)
            assert [each.id for each in effect.appointments] == sorted(each.id for each in effect.appointments)
        return self

    def _statuses(self) -> dict[str, str]:
        return {slot.id: slot.status for slot in self.calendar.slots.values()}

    def decision(self, command: Command, at: datetime = NOW, *, facts: Facts = NO_FACTS) -> Decision:
        """What the command would lead to; the calendar is proven not to change by deciding."""
        before = state(self.calendar)
        try:
            return decide(self.calendar, command, at, self.policy, facts)
        finally:
            assert state(self.calendar) == before, "deciding changed the calendar"

    def when(self, command: Command, at: datetime = NOW, *, facts: Facts = NO_FACTS) -> tuple[Event, ...]:
        """The command is decided and its events happen; returns them. It must not be refused."""
        decision = self.decision(command, at, facts=facts)
        assert decision.rejection is None, decision.rejection
        self.given(*decision.events, at=at)
        return decision.events

    def answered(self, command: Command, at: datetime = NOW, *, facts: Facts = NO_FACTS) -> dict[str, Any]:
        """As ``when``, but returns the answer."""
        decision = self.decision(command, at, facts=facts)
        assert decision.rejection is None, decision.rejection
        self.given(*decision.events, at=at)
        return answer(self.calendar, decision)

    def refused(self, command: Command, at: datetime = NOW, *, facts: Facts = NO_FACTS) -> str:
        """The code with which the command is refused."""
        with pytest.raises(Rejection) as refusal:
            self.decision(command, at, facts=facts)
        return refusal.value.code

    def slot_status(self, slot_id: str) -> str:
        """What a slot reads as."""
        return self.calendar.slots[slot_id].status


def state(calendar: Calendar) -> dict[str, Any]:
    """All that a calendar knows, as plain data that compares equal where calendars do."""
    return {
        "doctor_id": calendar.doctor_id,
        "sequence": calendar.sequence,
        "last_event_at": calendar.last_event_at,
        "slots": {
            slot.id: (
                (slot.start, slot.end, slot.location_id, slot.service_id, slot.blocked, slot.cancelled),
                # Nobody asks how many closures cover a slot that is withdrawn for good.
                None if slot.cancelled else slot.closures,
                (slot.appointment_id, slot.hold and slot.hold.id, slot.move_id, slot.status),
            )
            for slot in calendar.slots.values()
        },
        "by_start": [slot.id for slot in calendar.by_start],
        "holds": {hold.id: (hold.slot_id, hold.user_id, hold.expires_at) for hold in calendar.holds.values()},
        "appointments": {each.id: asdict(each) for each in calendar.appointments.values()},
        "displaced": set(calendar.displaced),
        "closures": dict(calendar.closures),
        "closed_by": dict(calendar.closed_by),
        "reservations": {
            each.move_id: (each.slot_id, each.appointment_id, each.moved, each.aborted)
            for each in calendar.reservations.values()
        },
    }


def as_json(value: Any) -> Any:
    """A value as it comes back from a wire or a table."""
    return orjson.loads(orjson.dumps(value))
