"""The calendar's core: publishing slots, closing and opening them, and the visits this displaces."""

from datetime import timedelta

import pytest

from actors.messages import (
    AppointmentBooked,
    BlockSlot,
    BookAppointment,
    CalendarClosed,
    CancelAppointment,
    CancelSlot,
    CloseCalendar,
    ClosureRemoved,
    HoldSlot,
    MoveReserved,
    PublishSlots,
    RecordArrival,
    RemoveClosure,
    RescheduleAppointment,
    SlotBlocked,
    SlotCancelled,
    SlotHeld,
    SlotsPublished,
    SlotUnblocked,
    Touched,
    UnblockSlot,
    Window,
)
from actors.policy import Policy
from actors.slots import Hold
from tests.given import DAY, MINUTE, NOW, OPENS, SECOND, SLOT, Story, ask, new_slot, new_slots, staff


def publish(*slots: object, dry_run: bool = False) -> PublishSlots:
    return staff(PublishSlots, slots=slots, dry_run=dry_run)


def close(
    closure_id: str = "c1", *, first: int = 0, last: int = 0, location_id: str | None = None, dry_run: bool = False
) -> CloseCalendar:
    window = Window(start=OPENS + first * SLOT, end=OPENS + (last + 1) * SLOT, location_id=location_id)
    return staff(CloseCalendar, closure_id=closure_id, windows=(window,), dry_run=dry_run)


def reopen(closure_id: str = "c1") -> RemoveClosure:
    return staff(RemoveClosure, closure_id=closure_id)


def block(slot: str = "s0") -> BlockSlot:
    return staff(BlockSlot, slot_id=slot)


def unblock(slot: str = "s0") -> UnblockSlot:
    return staff(UnblockSlot, slot_id=slot)


def withdraw(slot: str = "s0") -> CancelSlot:
    return staff(CancelSlot, slot_id=slot)


def booked(*slots: str) -> Story:
    """A calendar in which the slots are booked: ``a0`` in ``s0`` and so on."""
    story = Story()
    for slot in slots or ("s0",):
        story.given(
            AppointmentBooked(
                appointment_id=slot.replace("s", "a"), patient_id=f"patient {slot}", booked_by="anna", slot_id=slot
            )
        )
    return story


# Publishing


def test_slots_are_opened_in_order_of_time() -> None:
    story = Story(0)

    answer = story.answered(publish(new_slot(2), new_slot(0), new_slot(1)))

    assert answer == {"opened": 3, "kept": 0, "skipped": []}
    assert story.events[-1][1] == SlotsPublished(slots=new_slots(3))
    assert [slot.id for slot in story.calendar.by_start] == ["s0", "s1", "s2"]


def test_publishing_again_opens_nothing_twice() -> None:
    story = Story(3)

    decision = story.decision(publish(*new_slots(4, prefix="again ")))

    assert decision.answer == {"opened": 1, "kept": 3, "skipped": []}
    assert decision.events == (SlotsPublished(slots=(new_slot(3, prefix="again "),)),)
    assert Story(3).decision(publish(*new_slots(3))).events == ()


def test_a_dry_run_tells_the_same_and_does_nothing() -> None:
    decision = Story(1).decision(publish(*new_slots(3, prefix="x"), dry_run=True))

    assert decision.answer == {"opened": 2, "kept": 1, "skipped": []}
    assert decision.events == ()


@pytest.mark.parametrize("shift", [-20, -1, 1, 20])
def test_a_slot_that_overlaps_another_is_skipped(shift: int) -> None:
    overlapping = new_slot(0, prefix="x", start=OPENS + shift * MINUTE, end=OPENS + SLOT + shift * MINUTE)

    answer = Story(1).answered(publish(overlapping))

    assert answer == {"opened": 0, "kept": 0, "skipped": [{"start": overlapping.start, "why": "overlap"}]}


@pytest.mark.parametrize(("start", "end"), [(-10, 40), (5, 25), (0, 29), (0, 31), (-1, 30), (1, 30)])
def test_a_slot_around_or_inside_another_is_skipped(start: int, end: int) -> None:
    overlapping = new_slot(0, prefix="x", start=OPENS + start * MINUTE, end=OPENS + end * MINUTE)

    assert Story(1).answered(publish(overlapping))["skipped"] == [{"start": overlapping.start, "why": "overlap"}]


def test_slots_of_one_publication_do_not_overlap_each_other() -> None:
    later = new_slot(5, start=OPENS + SLOT / 2, end=OPENS + SLOT * 3 / 2)

    answer = Story(0).answered(publish(new_slot(0), later, new_slot(0, prefix="same "), new_slot(1)))

    assert answer["opened"] == 1 + 1
    assert answer["kept"] == 1
    assert answer["skipped"] == [{"start": later.start, "why": "overlap"}]


def test_slots_that_touch_do_not_overlap() -> None:
    assert Story([new_slot(1)]).answered(publish(new_slot(0), new_slot(2)))["opened"] == 2


def test_the_past_is_skipped_but_what_is_there_is_kept() -> None:
    story = Story(1)

    answer = story.answered(publish(*new_slots(2, prefix="x"), new_slot(2)), OPENS + SLOT)

    assert answer == {"opened": 1, "kept": 1, "skipped": [{"start": OPENS + SLOT, "why": "past"}]}


def test_a_slot_that_was_withdrawn_stays_so() -> None:
    story = Story(2).given(SlotCancelled(slot_id="s0", displaced=()))

    answer = story.answered(publish(*new_slots(2, prefix="x")))

    assert answer == {"opened": 0, "kept": 1, "skipped": [{"start": OPENS, "why": "cancelled"}]}


def test_another_slot_may_be_opened_where_one_was_withdrawn() -> None:
    story = Story(1).given(SlotCancelled(slot_id="s0", displaced=()))

    assert story.answered(publish(new_slot(0, prefix="x", end=OPENS + SLOT / 2)))["opened"] == 1


def test_nothing_is_opened_while_closed_and_a_blocked_slot_is_kept() -> None:
    story = Story(1)
    story.when(close(first=0, last=2))
    story.when(block("s0"))

    answer = story.answered(publish(*new_slots(4, prefix="x")))

    assert answer["opened"] == 1
    assert answer["kept"] == 1
    assert [each["why"] for each in answer["skipped"]] == ["closed", "closed"]


def test_a_closure_of_one_location_leaves_the_others_open() -> None:
    story = Story(0)
    story.when(close(location_id="l2"))

    assert story.answered(publish(new_slot(0)))["opened"] == 1
    story = Story(0)
    story.when(close(location_id="l1"))
    assert story.answered(publish(new_slot(0)))["opened"] == 0


# Closures


def test_a_closure_blocks_what_it_overlaps_and_nothing_else() -> None:
    story = Story(4)
    window = Window(start=OPENS + SLOT + MINUTE, end=OPENS + 3 * SLOT)

    answer = story.answered(staff(CloseCalendar, closure_id="c1", windows=(window,)))

    assert answer == {"closure_id": "c1", "blocked": 2, "displaced": []}
    assert [story.slot_status(f"s{n}") for n in range(4)] == ["free", "blocked", "blocked", "free"]


def test_a_closed_slot_cannot_be_taken() -> None:
    story = booked("s3")
    story.when(close(last=2))

    for command in (
        ask(HoldSlot, hold_id="h", slot_id="s1"),
        ask(BookAppointment, appointment_id="a", slot_id="s1", patient_id="p"),
        ask(RescheduleAppointment, appointment_id="a3", slot_id="s1"),
        staff(HoldSlot, hold_id="h", slot_id="s1", override="because"),
    ):
        assert story.refused(command) == "slot_unavailable"


def test_a_closure_ends_the_holds_in_it() -> None:
    story = Story().given(SlotHeld(hold_id="h1", slot_id="s0", user_id="anna", expires_at=NOW + MINUTE))

    story.when(close())

    assert story.calendar.holds == {}
    assert story.calendar.slots["s0"].hold is None
    story.when(reopen())
    assert story.slot_status("s0") == "free"


def test_a_closure_displaces_visits_and_raises_their_version() -> None:
    story = booked("s0", "s2")

    answer = story.answered(close(), NOW + MINUTE)

    (event,) = [event for at, event in story.events if at == NOW + MINUTE]
    assert event == CalendarClosed(
        closure_id="c1",
        windows=(Window(start=OPENS, end=OPENS + SLOT),),
        created_by="chief",
        displaced=(Touched(appointment_id="a0", version=2),),
    )
    assert answer["displaced"] == [story.calendar.appointment_plain("a0")]
    assert answer["displaced"][0]["displaced"] is True
    assert answer["displaced"][0]["version"] == 2
    assert story.calendar.displaced == {"a0"}
    assert story.slot_status("s0") == "blocked"
    assert story.calendar.appointments["a0"].status.live


def test_a_dry_run_of_a_closure_tells_whom_it_would_displace() -> None:
    story = booked("s0", "s1")

    decision = story.decision(close(last=2, dry_run=True))

    assert decision.events == ()
    assert decision.answer["blocked"] == 3
    assert [(each["id"], each["displaced"], each["version"]) for each in decision.answer["displaced"]] == [
        ("a0", False, 1),
        ("a1", False, 1),
    ]


def test_two_closures_over_one_slot_displace_once_and_restore_at_the_last() -> None:
    story = booked("s0")
    story.when(close("c1"))

    second = story.answered(close("c2", last=1))
    assert second["blocked"] == 1
    assert second["displaced"] == []
    assert story.calendar.appointments["a0"].version == 2

    first_removed = story.answered(reopen("c1"))
    assert first_removed == {"opened": 0}
    assert story.calendar.displaced == {"a0"}

    events = story.when(reopen("c2"))
    assert events == (ClosureRemoved(closure_id="c2", restored=(Touched(appointment_id="a0", version=3),)),)
    assert story.calendar.displaced == set()
    assert story.slot_status("s0") == "booked"
    assert story.slot_status("s1") == "free"


def test_a_closure_over_a_slot_blocked_by_hand_and_either_taken_back_first() -> None:
    for undo in ((reopen(), unblock()), (unblock(), reopen())):
        story = booked("s0")
        story.when(block())
        assert story.answered(close())["blocked"] == 0
        first, second = undo

        (event,) = story.when(first)
        assert isinstance(event, ClosureRemoved | SlotUnblocked)
        assert event.restored == ()
        assert story.slot_status("s0") == "blocked"
        (event,) = story.when(second)
        assert isinstance(event, ClosureRemoved | SlotUnblocked)
        assert event.restored == (Touched(appointment_id="a0", version=3),)
        assert story.slot_status("s0") == "booked"


def test_a_closure_with_overlapping_windows_counts_a_slot_once() -> None:
    story = Story(3)
    window = Window(start=OPENS, end=OPENS + SLOT)
    wider = Window(start=OPENS - SLOT, end=OPENS + 2 * SLOT)

    assert story.answered(staff(CloseCalendar, closure_id="c1", windows=(window, wider)))["blocked"] == 2
    assert story.answered(reopen()) == {"opened": 2}
    assert story.slot_status("s0") == "free"


def test_a_slot_opened_beside_a_closure_is_not_in_it_and_one_from_before_is() -> None:
    story = Story(1)
    story.when(close(first=0, last=0))
    story.when(publish(new_slot(1)))

    assert story.answered(reopen()) == {"opened": 1}
    assert [story.slot_status(f"s{n}") for n in range(2)] == ["free", "free"]


def test_a_closure_is_removed_once() -> None:
    story = Story()
    story.when(close())
    story.when(reopen())

    assert story.refused(reopen()) == "not_found"
    assert story.refused(reopen("c9")) == "not_found"


def test_a_slot_withdrawn_under_a_closure_does_not_open_again() -> None:
    story = booked("s0")
    story.when(close(last=1))
    story.when(withdraw("s0"))

    assert story.answered(reopen()) == {"opened": 1}
    assert story.slot_status("s0") == "cancelled"
    assert story.calendar.displaced == {"a0"}


# One slot


def test_blocking_a_slot_displaces_its_visit_and_unblocking_restores_it() -> None:
    story = booked("s0")

    assert story.answered(block())["slot"]["status"] == "blocked"
    assert story.answered(unblock())["slot"]["status"] == "booked"

    assert [event for _, event in story.events[-2:]] == [
        SlotBlocked(slot_id="s0", displaced=(Touched(appointment_id="a0", version=2),)),
        SlotUnblocked(slot_id="s0", restored=(Touched(appointment_id="a0", version=3),)),
    ]
    assert story.calendar.displaced == set()


def test_blocking_twice_and_unblocking_what_is_open_do_nothing() -> None:
    story = Story()
    story.when(block())

    assert story.when(block()) == ()
    assert story.when(unblock())
    assert story.when(unblock()) == ()
    assert story.answered(unblock())["slot"]["status"] == "free"


def test_blocking_a_slot_ends_its_hold() -> None:
    story = Story().given(SlotHeld(hold_id="h1", slot_id="s0", user_id="anna", expires_at=NOW + MINUTE))

    story.when(block())

    assert story.calendar.holds == {}
    assert story.answered(unblock())["slot"]["status"] == "free"


def test_a_slot_under_a_closure_stays_blocked_when_unblocked() -> None:
    story = Story()
    story.when(block())
    story.when(close())

    assert story.answered(unblock())["slot"]["status"] == "blocked"
    assert story.slot_status("s0") == "blocked"


def test_an_unblocked_slot_that_is_kept_for_a_move_reads_as_held() -> None:
    story = Story().given(
        MoveReserved(move_id="m1", slot_id="s0", appointment_id="a9", source_doctor_id="wilson", request={}),
        SlotBlocked(slot_id="s0", displaced=()),
    )

    assert story.answered(unblock())["slot"]["status"] == "held"
    assert story.slot_status("s0") == "held"


def test_the_answer_about_a_slot_does_not_call_a_hold_that_has_ended_a_hold() -> None:
    story = Story().given(SlotHeld(hold_id="h1", slot_id="s0", user_id="anna", expires_at=NOW + MINUTE))

    assert story.answered(unblock(), NOW + MINUTE - SECOND)["slot"]["status"] == "held"
    assert story.answered(unblock(), NOW + MINUTE)["slot"]["status"] == "free"


def test_withdrawing_a_slot_is_for_good() -> None:
    story = booked("s0")

    answer = story.answered(withdraw())
    assert story.events[-1][1] == SlotCancelled(slot_id="s0", displaced=(Touched(appointment_id="a0", version=2),))
    assert answer["slot"]["status"] == "cancelled"
    assert story.when(withdraw()) == ()
    assert story.refused(block()) == "slot_unavailable"
    assert story.refused(unblock()) == "slot_unavailable"
    assert story.refused(ask(HoldSlot, hold_id="h", slot_id="s0")) == "slot_unavailable"
    assert [slot.id for slot in story.calendar.by_start] == ["s1", "s2", "s3"]


def test_withdrawing_a_blocked_slot_displaces_nobody_again() -> None:
    story = booked("s0")
    story.when(block())

    assert story.when(withdraw()) == (SlotCancelled(slot_id="s0", displaced=()),)
    assert story.calendar.displaced == {"a0"}


@pytest.mark.parametrize("command", [block("x"), unblock("x"), withdraw("x")])
def test_a_slot_that_is_not_there_is_long_past(command: BlockSlot) -> None:
    assert Story().refused(command) == "slot_unavailable"


def test_a_free_slot_that_was_is_blocked_whenever_it_was() -> None:
    assert Story().when(block(), OPENS + 2 * DAY)


# Displaced visits


def test_a_displaced_visit_moves_whatever_the_cut_offs_and_limits_and_is_displaced_no_more() -> None:
    story = booked("s0")
    story.policy = Policy(move_cutoff=timedelta(hours=48), moves_max=1)
    story.when(close())

    answer = story.answered(ask(RescheduleAppointment, appointment_id="a0", slot_id="s1"), OPENS - MINUTE)

    assert answer["appointment"]["displaced"] is False
    assert story.calendar.displaced == set()
    assert story.slot_status("s0") == "blocked"
    story.when(reopen())
    assert story.slot_status("s0") == "free"
    assert story.calendar.appointments["a0"].version == 3


def test_a_displaced_visit_is_cancelled_whatever_the_cut_off() -> None:
    story = booked("s0")
    story.policy = Policy(cancel_cutoff=timedelta(hours=48))
    story.when(close())

    answer = story.answered(ask(CancelAppointment, appointment_id="a0"), OPENS - MINUTE)

    assert (answer["appointment"]["status"], answer["appointment"]["displaced"]) == ("cancelled", False)
    assert story.calendar.displaced == set()
    assert story.when(reopen()) == (ClosureRemoved(closure_id="c1", restored=()),)
    assert story.slot_status("s0") == "free"


def test_a_displaced_visit_may_still_take_place() -> None:
    story = booked("s0")
    story.when(close())

    answer = story.answered(staff(RecordArrival, appointment_id="a0"), OPENS)

    assert (answer["appointment"]["displaced"], answer["appointment"]["version"]) == (True, 3)


def test_a_visit_cancelled_while_displaced_is_not_restored_for_another() -> None:
    story = booked("s0")
    story.when(block())
    story.when(ask(CancelAppointment, appointment_id="a0"))

    assert story.when(unblock()) == (SlotUnblocked(slot_id="s0", restored=()),)
    assert story.calendar.appointments["a0"].version == 3


def test_nobody_is_booked_beside_a_displaced_visit_but_the_visit_itself_may_move_there() -> None:
    story = booked("s0")
    story.when(withdraw("s0"))
    beside = new_slot(9, start=OPENS + MINUTE, end=OPENS + SLOT)
    story.when(publish(beside))

    other = ask(BookAppointment, by="boris", appointment_id="a9", slot_id="s9", patient_id="p")
    assert story.refused(other) == "slot_unavailable"
    story.when(ask(BookAppointment, by="boris", appointment_id="a3", slot_id="s3", patient_id="p"))
    there = ask(RescheduleAppointment, by="boris", appointment_id="a3", slot_id="s9")
    assert story.refused(there) == "slot_unavailable"

    assert story.when(ask(RescheduleAppointment, appointment_id="a0", slot_id="s9"))
    assert story.calendar.displaced == set()


# Looking for slots


def test_windows_find_slots_each_once_however_many_cover_it() -> None:
    calendar = Story(6).calendar

    def found(*windows: tuple[float, float]) -> list[str]:
        return [
            slot.id
            for slot in calendar.slots_in(
                Window(start=OPENS + start * SLOT, end=OPENS + end * SLOT) for start, end in windows
            )
        ]

    assert found((0, 1)) == ["s0"]
    assert found((0.5, 1.5)) == ["s0", "s1"]
    assert found((-9, 0)) == []
    assert found((6, 9)) == []
    assert found((5.9, 9)) == ["s5"]
    assert found((1, 3), (2, 4)) == ["s1", "s2", "s3"]


def test_a_hold_put_in_place_holds_its_slot() -> None:
    calendar = Story(1).calendar

    calendar.put_hold(Hold(id="h", slot_id="s0", user_id="anna", expires_at=NOW))

    assert calendar.holds_ended(NOW)
    assert calendar.slots["s0"].status == "held"
