"""The calendar's core: a move to another doctor, seen from the target and from the source."""

from datetime import timedelta

import pytest

from actors.calendar import Reservation
from actors.decisions import Facts
from actors.messages import (
    AbortMove,
    AppointmentBooked,
    AppointmentMovedIn,
    AppointmentMovedOut,
    AppointmentState,
    AppointmentStatus,
    BookAppointment,
    CancelAppointment,
    CancelSlot,
    FinishMove,
    HoldExpired,
    HoldSlot,
    MoveOut,
    MoveRefused,
    MoveReserved,
    PublishSlots,
    RecordArrival,
    ReservationReleased,
    ReserveForMove,
    Role,
    SlotBlocked,
    SlotHeld,
)
from actors.policy import Policy
from tests.given import MINUTE, NOW, OPENS, SECOND, SLOT, Story, ask, new_slot, staff

TARGET_SLOT = new_slot(2, prefix="t", location_id="l2", service_id="x-ray")


def reserve(move_id: str = "m1", *, slot: str = "s0", by: str = "anna", hold_id: str | None = None) -> ReserveForMove:
    return ask(
        ReserveForMove,
        by=by,
        move_id=move_id,
        slot_id=slot,
        appointment_id="a9",
        source_doctor_id="wilson",
        hold_id=hold_id,
    )


def move_out(*, version: int | None = None, override: str | None = None, role: Role = Role.PATIENT) -> MoveOut:
    return ask(
        MoveOut,
        role=role,
        move_id="m1",
        appointment_id="a1",
        target_doctor_id="wilson",
        slot=TARGET_SLOT,
        if_version=version,
        override=override,
    )


def source(*, policy: Policy | None = None) -> Story:
    return Story(policy=policy).given(
        AppointmentBooked(appointment_id="a1", patient_id="patient anna", booked_by="anna", slot_id="s0")
    )


def reserved(slot: str = "s0") -> Story:
    return Story().given(
        MoveReserved(move_id="m1", slot_id=slot, appointment_id="a9", source_doctor_id="wilson", request={})
    )


def coming(slot: str = "s0", *, number: int = 0) -> AppointmentState:
    """An appointment that has left its source for a slot here."""
    there = new_slot(number)
    return AppointmentState(
        id="a9",
        patient_id="patient anna",
        booked_by="anna",
        slot_id=slot,
        location_id=there.location_id,
        service_id=None,
        start=there.start,
        end=there.end,
        status=AppointmentStatus.RESCHEDULED,
        version=5,
        moves=1,
        created_at=NOW - timedelta(days=1),
        updated_at=NOW,
    )


# (a) the target keeps the slot


def test_the_target_keeps_a_slot_and_notes_what_it_takes_to_drive_the_move_on() -> None:
    story = Story()

    command = reserve()
    answer = story.answered(command)

    event = story.events[-1][1]
    assert isinstance(event, MoveReserved)
    assert (event.move_id, event.slot_id, event.appointment_id, event.source_doctor_id) == ("m1", "s0", "a9", "wilson")
    assert event.request == {
        "command_id": command.command_id,
        "fingerprint": "f",
        "user_id": "anna",
        "role": "patient",
        "if_version": None,
        "override": False,
        "slot": {"id": "s0", "start": OPENS, "end": OPENS + SLOT, "location_id": "l1", "service_id": None},
    }
    assert answer["slot"]["status"] == "held"
    assert story.slot_status("s0") == "held"


def test_a_slot_kept_for_a_move_is_nobody_elses_however_long_it_takes() -> None:
    story = reserved()
    later = OPENS - SECOND

    assert story.refused(ask(HoldSlot, hold_id="h", slot_id="s0"), later) == "slot_taken"
    assert story.refused(ask(BookAppointment, appointment_id="a", slot_id="s0", patient_id="p"), later) == "slot_taken"
    assert story.refused(reserve("m2"), later) == "slot_taken"


def test_reserving_again_for_the_same_move_is_one_reservation() -> None:
    assert reserved().when(reserve()) == ()


@pytest.mark.parametrize("hold_id", ["h1", None])
def test_a_reservation_uses_up_the_movers_hold(hold_id: str | None) -> None:
    story = Story().given(SlotHeld(hold_id="h1", slot_id="s0", user_id="anna", expires_at=NOW + MINUTE))

    assert [type(event) for event in story.when(reserve(hold_id=hold_id))] == [MoveReserved]
    assert story.calendar.holds == {}


def test_a_reservation_respects_holds_and_their_ends() -> None:
    story = Story().given(SlotHeld(hold_id="h1", slot_id="s0", user_id="boris", expires_at=NOW + MINUTE))

    assert story.refused(reserve()) == "slot_taken"
    assert story.refused(reserve(hold_id="h1")) == "hold_expired"
    assert [type(event) for event in story.when(reserve(), NOW + MINUTE)] == [HoldExpired, MoveReserved]


def test_a_slot_is_reserved_only_if_it_is_offered() -> None:
    story = Story(policy=Policy(book_cutoff=timedelta(hours=1), horizon=timedelta(days=7)))
    story.given(SlotBlocked(slot_id="s1", displaced=()))

    assert story.refused(reserve(slot="s1")) == "slot_unavailable"
    assert story.refused(reserve(slot="x")) == "slot_unavailable"
    assert story.refused(reserve(), OPENS) == "slot_unavailable"
    assert story.refused(reserve(), OPENS - MINUTE) == "too_late"
    assert story.refused(reserve(), OPENS - timedelta(days=8)) == "slot_unavailable"


def test_nobody_is_booked_beside_a_reservation_whose_slot_was_withdrawn() -> None:
    """The visit is still to come, to that time: a second one there could never be committed beside it."""
    story = reserved()
    story.when(staff(CancelSlot, slot_id="s0"))
    story.when(staff(PublishSlots, slots=(new_slot(9, start=OPENS + MINUTE, end=OPENS + SLOT),)))

    assert story.refused(ask(BookAppointment, appointment_id="a", slot_id="s9", patient_id="p")) == "slot_unavailable"
    assert story.refused(reserve("m2", slot="s9")) == "slot_unavailable"
    story.when(staff(FinishMove, move_id="m1"))
    assert story.when(ask(BookAppointment, appointment_id="a", slot_id="s9", patient_id="p"))


# (b) the source lets the visit go


def test_the_source_lets_the_visit_go_and_its_slot_is_free() -> None:
    story = source()

    answer = story.answered(move_out(), NOW + MINUTE)

    event = story.events[-1][1]
    assert isinstance(event, AppointmentMovedOut)
    assert (event.move_id, event.target_doctor_id, event.from_slot_id) == ("m1", "wilson", "s0")
    moved = event.appointment
    assert (moved.id, moved.slot_id, moved.location_id, moved.service_id) == ("a1", "t2", "l2", "x-ray")
    assert (moved.start, moved.end) == (TARGET_SLOT.start, TARGET_SLOT.end)
    assert (moved.status, moved.version, moved.moves) == (AppointmentStatus.RESCHEDULED, 2, 1)
    assert (moved.created_at, moved.updated_at) == (NOW, NOW + MINUTE)
    assert (answer["appointment"]["doctor_id"], answer["appointment"]["slot_id"]) == ("wilson", "t2")
    assert story.slot_status("s0") == "free"
    assert story.calendar.appointments == {}


def test_a_displaced_visit_is_let_go_whatever_the_cut_off() -> None:
    story = source(policy=Policy(move_cutoff=timedelta(hours=48), moves_max=1))
    story.when(staff(CancelSlot, slot_id="s0"))

    assert isinstance(story.when(move_out(), OPENS - MINUTE)[0], AppointmentMovedOut)
    assert story.calendar.displaced == set()


def refusal(story: Story, command: MoveOut, code: str, facts: Facts | None = None) -> None:
    """The source refuses, and has to remember that it did."""
    decision = story.decision(command, facts=facts or Facts())
    assert decision.rejection is not None
    assert decision.rejection.code == code
    assert decision.events == (MoveRefused(move_id="m1", target_doctor_id="wilson", code=code),)
    before = story.calendar.sequence
    story.given(*decision.events)
    assert story.calendar.sequence == before + 1


def test_the_source_refuses_what_is_not_live() -> None:
    refusal(Story(), move_out(), "not_live")
    cancelled = source()
    cancelled.when(ask(CancelAppointment, appointment_id="a1"))
    refusal(cancelled, move_out(), "not_live")


def test_the_source_refuses_who_has_arrived() -> None:
    story = source()
    story.when(staff(RecordArrival, appointment_id="a1"))

    refusal(story, move_out(), "already_arrived")


def test_the_source_refuses_another_version() -> None:
    refusal(source(), move_out(version=2), "version_conflict")
    assert source().when(move_out(version=1))


def test_the_source_refuses_past_the_cut_off_and_the_limit_and_staff_pass_them() -> None:
    late = Policy(move_cutoff=timedelta(days=2))
    refusal(source(policy=late), move_out(), "too_late")
    assert source(policy=late).when(move_out(override="because", role=Role.ADMIN))
    once = source(policy=Policy(moves_max=1))
    once.calendar.put_appointment(coming("s1", number=1))
    command = ask(MoveOut, move_id="m1", appointment_id="a9", target_doctor_id="wilson", slot=TARGET_SLOT)
    refusal(once, command, "limit_reached")


def test_the_source_refuses_a_time_at_which_the_patient_is_elsewhere() -> None:
    story = source()
    story.when(
        ask(BookAppointment, appointment_id="a2", slot_id="s2", patient_id="patient anna")
    )  # As TARGET_SLOT, at the same time.

    refusal(story, move_out(), "patient_overlap")


def test_a_visit_may_move_to_a_time_that_overlaps_its_own() -> None:
    overlapping = new_slot(0, prefix="t", start=OPENS + MINUTE, end=OPENS + SLOT + MINUTE)
    command = ask(MoveOut, move_id="m1", appointment_id="a1", target_doctor_id="wilson", slot=overlapping)

    assert source().when(command)


@pytest.mark.parametrize("known", ["moved", "done", "aborted", "released"])
def test_a_move_that_is_no_longer_reserved_is_refused_and_nothing_is_remembered(known: str) -> None:
    assert source().refused(move_out(), facts=Facts(moves={"m1": known})) == "slot_taken"
    assert source().when(move_out(), facts=Facts(moves={"m1": "reserved"}))


def test_a_move_is_given_up_while_it_is_only_reserved() -> None:
    command = staff(AbortMove, move_id="m1", target_doctor_id="wilson")

    assert source().when(command) == (MoveRefused(move_id="m1", target_doctor_id="wilson", code="abandoned"),)
    assert source().when(command, facts=Facts(moves={"m1": "reserved"}))
    for known in ("moved", "done", "aborted", "released"):
        assert source().when(command, facts=Facts(moves={"m1": known})) == ()


def test_a_move_that_was_done_long_ago_is_not_begun_again() -> None:
    assert Story().refused(reserve(), facts=Facts(moves={"m1": "done"})) == "idempotency_key_reused"
    assert Story().when(reserve(), facts=Facts(moves={"m1": "released"}))


# (c) the target takes it in or frees the slot


def test_the_target_takes_the_visit_in_as_it_is() -> None:
    story = reserved()

    answer = story.answered(staff(FinishMove, move_id="m1", appointment=coming()))

    assert story.events[-1][1] == AppointmentMovedIn(move_id="m1", appointment=coming())
    assert story.calendar.appointments["a9"] == coming()
    assert answer["appointment"]["version"] == 5
    assert story.slot_status("s0") == "booked"
    assert story.calendar.reservations == {}
    assert [each.id for each in story.calendar.appointments.of_patient("patient anna")] == ["a9"]


def test_the_target_frees_the_slot_when_the_source_refused() -> None:
    story = reserved()

    assert story.when(staff(FinishMove, move_id="m1")) == (ReservationReleased(move_id="m1", slot_id="s0"),)
    assert story.slot_status("s0") == "free"
    assert story.calendar.reservations == {}


def test_a_move_is_finished_once() -> None:
    story = reserved()
    story.when(staff(FinishMove, move_id="m1", appointment=coming()))

    assert story.when(staff(FinishMove, move_id="m1", appointment=coming())) == ()
    assert story.when(staff(FinishMove, move_id="m1")) == ()
    assert story.slot_status("s0") == "booked"


def test_what_was_found_at_activation_is_what_is_taken_in() -> None:
    story = Story()
    story.calendar.put_reservation(Reservation(move_id="m1", slot_id="s0", appointment_id="a9", moved=coming()))

    assert story.when(staff(FinishMove, move_id="m1")) == (AppointmentMovedIn(move_id="m1", appointment=coming()),)


def test_a_visit_taken_into_a_slot_closed_meanwhile_is_displaced() -> None:
    story = reserved()
    story.when(staff(CancelSlot, slot_id="s0"))

    answer = story.answered(staff(FinishMove, move_id="m1", appointment=coming()))

    assert answer["appointment"]["displaced"] is True
    assert story.calendar.displaced == {"a9"}


def test_a_visit_that_went_may_come_back_before_anything_was_written() -> None:
    story = source()
    story.when(move_out())
    story.given(MoveReserved(move_id="m2", slot_id="s1", appointment_id="a1", source_doctor_id="wilson", request={}))
    back = ask(FinishMove, move_id="m2", appointment=_back())

    answer = story.answered(back)["appointment"]

    assert (answer["doctor_id"], answer["slot_id"], answer["version"]) == ("house", "s1", 3)
    assert story.calendar.changes.moved_out == {}
    assert story.calendar.changes.appointments == {"a1"}


def _back() -> AppointmentState:
    there = new_slot(1)
    return AppointmentState(
        id="a1",
        patient_id="patient anna",
        booked_by="anna",
        slot_id="s1",
        location_id="l1",
        service_id=None,
        start=there.start,
        end=there.end,
        status=AppointmentStatus.RESCHEDULED,
        version=3,
        moves=2,
        created_at=NOW,
        updated_at=NOW,
    )
