"""The checker finds what it is there for: each rule fails for a small made-up history that breaks it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson
import pytest

from tests.faults.checker import ON_ITS_WAY_MAX_S, RULES, check
from tests.faults.history import Attempt, Kind, Operation
from tests.faults.postbox import Arrival
from tests.faults.records import Cause, Event, Message, Records, Slot, Visit

ANNA, BORIS = "anna", "boris"
HOUSE, WILSON = "house", "wilson"


class Story:
    """Two visits are booked, one is moved away to another doctor and back to a slot there, one is cancelled.

    Each change is told by mail, as soon as it was answered.
    """

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.records = Records(
            slots=[
                Slot(id=f"{who}{number}", doctor_id=who, status="free") for who in (HOUSE, WILSON) for number in "123"
            ]
        )
        self._now = 0.0
        self._versions: Counter[str] = Counter()
        first = self.does(ANNA, Kind.BOOK, HOUSE, f"{HOUSE}1", told="visit1")
        self.writes(HOUSE, first, "AppointmentBooked", appointment_id="visit1", slot_id=f"{HOUSE}1")
        second = self.does(BORIS, Kind.BOOK, HOUSE, f"{HOUSE}2", told="visit2")
        self.writes(HOUSE, second, "AppointmentBooked", appointment_id="visit2", slot_id=f"{HOUSE}2")
        self.does(BORIS, Kind.BOOK, HOUSE, f"{HOUSE}1", status=409)
        away = self.does(ANNA, Kind.MOVE_AWAY, WILSON, f"{WILSON}1", visit="visit1", told="visit1")
        moved = {"id": "visit1", "slot_id": f"{WILSON}1"}
        self.writes(HOUSE, away, "AppointmentMovedOut", move_id="move", appointment=moved)
        self.writes(WILSON, None, "AppointmentMovedIn", move_id="move", appointment=moved)
        within = self.does(ANNA, Kind.MOVE, WILSON, f"{WILSON}2", visit="visit1", told="visit1")
        self.writes(WILSON, within, "AppointmentRescheduled", appointment_id="visit1", slot_id=f"{WILSON}2")
        hold = self.does(BORIS, Kind.HOLD, WILSON, f"{WILSON}3", told="hold1")
        self.writes(WILSON, hold, "SlotHeld", hold_id="hold1", slot_id=f"{WILSON}3", user_id=BORIS)
        cancelled = self.does(BORIS, Kind.CANCEL, HOUSE, None, visit="visit2", told="visit2")
        self.writes(HOUSE, cancelled, "AppointmentCancelled", appointment_id="visit2")
        self.records.visits = [self.visit("visit1", WILSON, ANNA, 2), self.visit("visit2", HOUSE, BORIS, 2, live=False)]
        self.slot(f"{WILSON}2", "booked")

    def does(
        self,
        user: str,
        kind: Kind,
        doctor: str,
        slot: str | None,
        *,
        visit: str | None = None,
        told: str = "",
        status: int = 200,
    ) -> Operation:
        """An operation, answered before the next one begins."""
        key = f"{user} {len(self.operations)}"
        operation = Operation(kind=kind, user_id=user, key=key, doctor_id=doctor, slot_id=slot, visit_id=visit)
        if told and kind is not Kind.HOLD:
            self._versions[told] += 1
        operation.attempts.append(self.attempt(status, told))
        self.operations.append(operation)
        if told and kind is not Kind.HOLD:
            self.mails(told, self._versions[told])
        return operation

    def attempt(self, status: int, told: str = "") -> Attempt:
        """A request and its answer, later than all before."""
        self._now += 2
        body = orjson.dumps({"id": told, "version": self._versions[told]})
        return Attempt(invoked_at=self._now, returned_at=self._now + 1, status=status, body=body)

    def mails(self, visit: str, version: int) -> None:
        """A change of a visit is told."""
        name = f"{visit} {version}"
        self.records.causes.append(Cause(id=name, kind="changed", visit_id=visit, version=version, planned=True))
        message = Message(
            id=f"mail {name}",
            cause_id=name,
            kind="changed",
            visit_id=visit,
            version=version,
            outcome="sent",
            due=False,
        )
        self.records.messages.append(message)
        self.records.arrivals.append(Arrival(message_id=message.id, at=self._now + 1))

    def writes(self, doctor: str, operation: Operation | None, kind: str, **payload: Any) -> None:
        """An event, the next one of its calendar."""
        sequence = 1 + sum(event.doctor_id == doctor for event in self.records.events)
        command_id = "another" if operation is None else operation.command_id
        self.records.events.append(
            Event(doctor_id=doctor, sequence=sequence, epoch=1, kind=kind, command_id=command_id, payload=payload)
        )

    @staticmethod
    def visit(visit: str, doctor: str, patient: str, number: int, *, live: bool = True) -> Visit:
        """A row of an appointment in a slot of a doctor's."""
        slot = f"{doctor}{number}"
        return Visit(
            id=visit, doctor_id=doctor, patient_id=patient, slot_id=slot, start=number, end=number + 1, live=live
        )

    def slot(self, slot_id: str, status: str) -> None:
        """That slot has that status."""
        self.records.slots = [
            replace(slot, status=status) if slot.id == slot_id else slot for slot in self.records.slots
        ]

    def event(self, number: int, **changes: Any) -> None:
        """An event is not as it was."""
        self.records.events[number] = replace(self.records.events[number], **changes)

    def broken(self) -> set[str]:
        """The rules that are violated."""
        return {violation.partition(":")[0] for violation in check(self.operations, self.records)}


def test_a_good_history_is_good() -> None:
    assert check(Story().operations, Story().records) == []


def lost(story: Story) -> None:
    """The booking of the visit that was acknowledged is not there."""
    operation = story.does(ANNA, Kind.HOLD, HOUSE, f"{HOUSE}3", told="hold2")
    assert operation.good is not None


def told_otherwise(story: Story) -> None:
    """A hold was told, another one stands in the journal."""
    story.event(5, payload={"hold_id": "hold9", "slot_id": f"{WILSON}3"})


def another_visit(story: Story) -> None:
    """The move of one visit was answered with another."""
    story.operations[4].attempts[0].body = orjson.dumps({"id": "visit2", "version": 3})


def done_though_refused(story: Story) -> None:
    """Who was refused a hold has it."""
    refused = story.does(ANNA, Kind.HOLD, HOUSE, f"{HOUSE}3", status=409)
    story.writes(HOUSE, refused, "SlotHeld", hold_id="hold2", slot_id=f"{HOUSE}3")


def done_twice(story: Story) -> None:
    """A hold that was never answered stands there twice."""
    unknown = story.does(ANNA, Kind.HOLD, HOUSE, f"{HOUSE}3", status=0)
    for hold_id in ("hold2", "hold3"):
        story.writes(HOUSE, unknown, "SlotHeld", hold_id=hold_id, slot_id=f"{HOUSE}3")


def answered_twice(story: Story) -> None:
    """A repeat was told something else."""
    story.operations[5].attempts.append(story.attempt(200, "hold8"))


def refused_after_all(story: Story) -> None:
    """A repeat was refused what had been granted."""
    story.operations[0].attempts.append(story.attempt(409))


def crashed(story: Story) -> None:
    """The server had a bug."""
    story.operations[0].attempts.append(story.attempt(500))


def not_understood(story: Story) -> None:
    """A client was told that it may not."""
    story.operations[2].attempts[0].status = 403


def doctor_overlap(story: Story) -> None:
    """Two visits with a doctor at once."""
    twin = replace(story.visit("visit3", WILSON, BORIS, 3), start=2.5)
    story.records.visits.append(twin)


def patient_overlap(story: Story) -> None:
    """Two visits of a patient at once."""
    story.records.visits.append(story.visit("visit3", HOUSE, ANNA, 2))


def gap(story: Story) -> None:
    """A number is missing."""
    story.event(-1, sequence=9)


def older_epoch(story: Story) -> None:
    """Somebody who was overtaken has written."""
    story.event(0, epoch=2)


def not_the_journal(story: Story) -> None:
    """A table differs from the journal."""
    story.records.differences.append("slot house3: status is booked, the journal says free")


def booked_for_nobody(story: Story) -> None:
    """A slot is booked and nobody is in it."""
    story.slot(f"{HOUSE}3", "booked")


def free_with_visit(story: Story) -> None:
    """A slot is free and somebody is in it."""
    story.slot(f"{WILSON}2", "free")


def with_another_doctor(story: Story) -> None:
    """A visit is in a slot of another doctor's."""
    story.records.visits[0] = replace(story.records.visits[0], doctor_id=HOUSE)


def in_no_calendar(story: Story) -> None:
    """A visit left one calendar and came to none."""
    story.event(3, kind="HoldReleased")
    story.event(4, kind="HoldReleased")


def in_two_calendars(story: Story) -> None:
    """A visit came to one calendar and did not leave the other."""
    story.event(2, kind="HoldReleased")


def open_move(story: Story) -> None:
    """A move never ended."""
    story.records.open_moves.append("move2")


def taken_twice(story: Story) -> None:
    """A slot that was taken was given to another visit."""
    story.event(1, payload={"appointment_id": "visit2", "slot_id": f"{HOUSE}1"})


def out_of_order(story: Story) -> None:
    """What was answered first stands behind what was asked for later."""
    one, other = story.records.events[0], story.records.events[1]
    story.records.events[:2] = [replace(other, sequence=1), replace(one, sequence=2)]


def moved_in_late(story: Story) -> None:
    """A move was answered, and its visit came to the target behind what was asked for later."""
    one, other = story.records.events[3], story.records.events[5]
    story.records.events[3], story.records.events[5] = replace(other, sequence=1), replace(one, sequence=3)


def never_planned(story: Story) -> None:
    """Nobody has found out who hears of a change that was overtaken."""
    story.records.causes[0] = replace(story.records.causes[0], planned=False)


def account_not_told(story: Story) -> None:
    """A message about an account is forgotten."""
    story.records.causes.append(Cause(id="refused", kind="refused", visit_id=None, version=None, planned=True))


def nobody_told(story: Story) -> None:
    """The last change of a visit is told nobody."""
    story.records.messages[-1] = replace(story.records.messages[-1], outcome="void")


def still_to_be_sent(story: Story) -> None:
    """A message lies about."""
    story.records.messages[0] = replace(story.records.messages[0], outcome=None, due=True)


def never_came(story: Story) -> None:
    """A message was marked, and not sent."""
    del story.records.arrivals[0]


def whose_mail(story: Story) -> None:
    """A mail that nobody knows of."""
    story.records.arrivals.append(Arrival(message_id="mail 9", at=0.0))


def overtaken(story: Story) -> None:
    """That a visit was booked is told long after it was moved."""
    moved_at = story.operations[3].attempts[0].returned_at
    story.records.arrivals[0] = replace(story.records.arrivals[0], at=moved_at + ON_ITS_WAY_MAX_S + 1)


def mailed_again(story: Story) -> None:
    """More came twice than were under way when a notifier died."""
    story.records.in_flight_max = 1
    story.records.arrivals += story.records.arrivals[:2]


@pytest.mark.parametrize(
    ("break_it", "rules"),
    [
        (lost, {"each_ok_once"}),
        (told_otherwise, {"each_ok_once"}),
        (another_visit, {"each_ok_once"}),
        (done_though_refused, {"each_fail_absent"}),
        (done_twice, {"one_effect_a_key"}),
        (answered_twice, {"one_answer_a_key"}),
        (refused_after_all, {"one_answer_a_key"}),
        (crashed, {"nobody_sees_a_bug"}),
        (not_understood, {"nobody_sees_a_bug"}),
        (doctor_overlap, {"no_overlaps", "slots_and_visits_agree", "each_visit_in_one_calendar"}),
        (patient_overlap, {"no_overlaps", "slots_and_visits_agree", "each_visit_in_one_calendar"}),
        (gap, {"gapless_sequences"}),
        (older_epoch, {"gapless_sequences"}),
        (not_the_journal, {"tables_are_the_journal"}),
        (booked_for_nobody, {"slots_and_visits_agree"}),
        (free_with_visit, {"slots_and_visits_agree"}),
        (with_another_doctor, {"slots_and_visits_agree", "each_visit_in_one_calendar"}),
        (in_no_calendar, {"each_ok_once", "each_visit_in_one_calendar"}),
        (in_two_calendars, {"each_ok_once", "each_visit_in_one_calendar"}),
        (open_move, {"each_visit_in_one_calendar"}),
        (taken_twice, {"each_ok_once", "each_visit_in_one_calendar"}),
        (out_of_order, {"real_time_order"}),
        (moved_in_late, {"real_time_order"}),
        (never_planned, {"every_change_is_told"}),
        (account_not_told, {"every_change_is_told"}),
        (nobody_told, {"every_change_is_told"}),
        (still_to_be_sent, {"every_change_is_told"}),
        (never_came, {"what_is_sent_has_come"}),
        (whose_mail, {"what_is_sent_has_come"}),
        (overtaken, {"nothing_overtaken_is_told"}),
        (mailed_again, {"repeats_are_few"}),
    ],
)
def test_a_broken_history_is_found(break_it: Callable[[Story], None], rules: set[str]) -> None:
    story = Story()
    break_it(story)
    assert story.broken() == rules


def test_each_rule_has_a_history_that_breaks_it() -> None:
    (mark,) = test_a_broken_history_is_found.pytestmark  # type: ignore[attr-defined]
    assert set().union(*(rules for _, rules in mark.args[1])) == {rule.__name__ for rule in RULES}


def test_who_holds_a_slot_already_is_told_of_the_hold_that_stands() -> None:
    story = Story()
    story.does(BORIS, Kind.HOLD, WILSON, f"{WILSON}3", told="hold1")
    assert story.broken() == set()


def test_nobody_is_told_of_the_hold_of_another() -> None:
    story = Story()
    story.does(ANNA, Kind.HOLD, WILSON, f"{WILSON}3", told="hold1")
    assert "each_ok_once" in story.broken()


def test_what_is_unknown_may_have_happened_once_or_not_at_all() -> None:
    story = Story()
    done = story.does(ANNA, Kind.HOLD, HOUSE, f"{HOUSE}3", status=0)
    done.attempts.append(story.attempt(409))
    story.writes(HOUSE, done, "SlotHeld", hold_id="hold2", slot_id=f"{HOUSE}3")
    story.does(ANNA, Kind.CANCEL, WILSON, None, visit="visit1", status=503)
    assert story.broken() == set()
