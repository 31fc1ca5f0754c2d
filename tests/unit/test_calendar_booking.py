"""The calendar's core: holding, booking, moving within the calendar, cancelling, and the day of the visit."""

from datetime import timedelta

import pytest

from actors.calendar import Calendar
from actors.decisions import decide
from actors.messages import (
    AppointmentBooked,
    AppointmentCancelled,
    AppointmentFulfilled,
    AppointmentRescheduled,
    AppointmentStatus,
    BookAppointment,
    CancelAppointment,
    Command,
    ExpireHolds,
    FulfilAppointment,
    HoldExpired,
    HoldReleased,
    HoldSlot,
    PatientArrived,
    PatientMissed,
    RecordArrival,
    RecordNoShow,
    ReleaseHold,
    RescheduleAppointment,
    Role,
    SlotHeld,
)
from actors.policy import Policy
from tests.given import MINUTE, NOW, OPENS, SECOND, SLOT, Story, ask, staff

TTL = timedelta(minutes=5)


def hold(hold_id: str = "h1", *, slot: str = "s0", by: str = "anna") -> HoldSlot:
    return ask(HoldSlot, by=by, hold_id=hold_id, slot_id=slot)


def book(
    appointment_id: str = "a1",
    *,
    slot: str = "s0",
    by: str = "anna",
    patient: str | None = None,
    hold_id: str | None = None,
) -> BookAppointment:
    return ask(
        BookAppointment,
        by=by,
        appointment_id=appointment_id,
        slot_id=slot,
        patient_id=patient or f"patient {by}",
        hold_id=hold_id,
    )


def move(
    appointment_id: str = "a1",
    *,
    slot: str = "s1",
    by: str = "anna",
    hold_id: str | None = None,
    version: int | None = None,
) -> RescheduleAppointment:
    return ask(
        RescheduleAppointment,
        by=by,
        appointment_id=appointment_id,
        slot_id=slot,
        hold_id=hold_id,
        if_version=version,
    )


def cancel(appointment_id: str = "a1", *, version: int | None = None) -> CancelAppointment:
    return ask(CancelAppointment, appointment_id=appointment_id, if_version=version)


def booked(slot: str = "s0") -> Story:
    return Story().given(
        AppointmentBooked(appointment_id="a1", patient_id="patient anna", booked_by="anna", slot_id=slot)
    )


def held(*, by: str = "anna", slot: str = "s0") -> Story:
    return Story().given(SlotHeld(hold_id="h1", slot_id=slot, user_id=by, expires_at=NOW + TTL))


# Holds


def test_a_free_slot_is_held_for_a_time() -> None:
    story = Story()

    events = story.when(hold())

    assert events == (SlotHeld(hold_id="h1", slot_id="s0", user_id="anna", expires_at=NOW + TTL),)
    assert story.slot_status("s0") == "held"


def test_the_answer_to_a_hold_says_until_when() -> None:
    assert Story().answered(hold()) == {"hold": {"id": "h1", "slot_id": "s0", "expires_at": NOW + TTL}}


def test_holding_what_one_holds_gives_the_same_hold_and_no_event() -> None:
    story = held()

    decision = story.decision(hold("h2"), NOW + MINUTE)

    assert decision.events == ()
    assert decision.answer == {"hold": {"id": "h1", "slot_id": "s0", "expires_at": NOW + TTL}}


@pytest.mark.parametrize(
    "command",
    [hold("h2", by="boris"), book(by="boris"), book(by="boris", patient="patient anna")],
    ids=["hold", "book", "book for the same patient"],
)
def test_a_hold_is_its_holders_alone(command: Command) -> None:
    assert held().refused(command, NOW + TTL - SECOND) == "slot_taken"


def test_a_hold_ends_by_itself_and_the_next_to_come_says_so() -> None:
    story = held()

    events = story.when(hold("h2", by="boris"), NOW + TTL)

    assert events == (
        HoldExpired(hold_id="h1", slot_id="s0"),
        SlotHeld(hold_id="h2", slot_id="s0", user_id="boris", expires_at=NOW + 2 * TTL),
    )
    assert set(story.calendar.holds) == {"h2"}


def test_ones_own_hold_that_has_ended_is_no_hold() -> None:
    events = held().when(hold("h2"), NOW + TTL)

    assert events[0] == HoldExpired(hold_id="h1", slot_id="s0")
    assert events[1] == SlotHeld(hold_id="h2", slot_id="s0", user_id="anna", expires_at=NOW + 2 * TTL)


def test_a_booked_slot_cannot_be_held() -> None:
    assert booked().refused(hold(by="boris")) == "slot_taken"
    assert booked().refused(hold(by="anna")) == "slot_taken"


def test_a_hold_is_released() -> None:
    story = held()

    events = story.when(ask(ReleaseHold, hold_id="h1"))

    assert events == (HoldReleased(hold_id="h1", slot_id="s0"),)
    assert story.slot_status("s0") == "free"
    assert story.calendar.holds == {}


def test_only_its_holder_releases_a_hold_and_only_while_it_lasts() -> None:
    story = held()

    assert story.refused(ask(ReleaseHold, by="boris", hold_id="h1")) == "not_found"
    assert story.refused(ask(ReleaseHold, hold_id="h2")) == "not_found"
    assert story.refused(ask(ReleaseHold, hold_id="h1"), NOW + TTL) == "not_found"
    assert story.when(ask(ReleaseHold, hold_id="h1"), NOW + TTL - SECOND)


def test_overdue_holds_are_said_to_have_ended_the_others_not() -> None:
    story = held().given(
        SlotHeld(hold_id="h2", slot_id="s1", user_id="boris", expires_at=NOW + TTL + SECOND),
        SlotHeld(hold_id="h3", slot_id="s2", user_id="clara", expires_at=NOW + TTL - SECOND),
    )

    events = story.when(staff(ExpireHolds), NOW + TTL)

    assert set(events) == {HoldExpired(hold_id="h1", slot_id="s0"), HoldExpired(hold_id="h3", slot_id="s2")}
    assert set(story.calendar.holds) == {"h2"}
    assert story.when(staff(ExpireHolds), NOW + TTL) == ()


# Booking


def test_a_free_slot_is_booked() -> None:
    story = Story()

    answer = story.answered(book())

    assert story.events[-1][1] == AppointmentBooked(
        appointment_id="a1", patient_id="patient anna", booked_by="anna", slot_id="s0"
    )
    assert answer == {
        "appointment": {
            "id": "a1",
            "doctor_id": "house",
            "patient_id": "patient anna",
            "booked_by": "anna",
            "slot_id": "s0",
            "location_id": "l1",
            "service_id": None,
            "start": OPENS,
            "end": OPENS + SLOT,
            "status": "booked",
            "displaced": False,
            "version": 1,
            "moves": 0,
            "created_at": NOW,
            "updated_at": NOW,
        }
    }
    assert story.slot_status("s0") == "booked"


def test_a_booked_slot_is_taken_for_everyone() -> None:
    assert booked().refused(book("a2", by="boris")) == "slot_taken"
    assert booked().refused(book("a2", by="anna", patient="child")) == "slot_taken"


@pytest.mark.parametrize("named", ["h1", None], ids=["naming the hold", "not naming it"])
def test_the_holder_books_what_it_holds_and_the_hold_is_used_up(named: str | None) -> None:
    story = held()

    events = story.when(book(hold_id=named), NOW + MINUTE)

    assert [type(event) for event in events] == [AppointmentBooked]
    assert story.calendar.holds == {}
    story.when(cancel(), NOW + MINUTE)
    assert story.slot_status("s0") == "free"


def test_a_hold_named_must_stand_be_ones_own_and_be_on_that_slot() -> None:
    story = held()

    assert story.refused(book(hold_id="h1"), NOW + TTL) == "hold_expired"
    assert story.refused(book(hold_id="h2")) == "hold_expired"
    assert story.refused(book(by="boris", hold_id="h1")) == "hold_expired"
    assert story.refused(book(slot="s1", hold_id="h1")) == "hold_expired"
    assert booked().refused(book(by="boris", hold_id="h1")) == "hold_expired"


def test_a_slot_whose_hold_has_ended_is_booked_and_the_end_is_said_first() -> None:
    story = held()

    events = story.when(book(by="boris"), NOW + TTL)

    assert [type(event) for event in events] == [HoldExpired, AppointmentBooked]


def test_one_books_for_a_patient_and_is_remembered_as_who_booked() -> None:
    answer = Story().answered(book(by="mother", patient="child"))["appointment"]

    assert (answer["patient_id"], answer["booked_by"]) == ("child", "mother")


@pytest.mark.parametrize("command", [hold(slot="s0"), book(slot="s0"), move(slot="s0")], ids=["hold", "book", "move"])
def test_nobody_takes_the_past(command: Command) -> None:
    story = booked("s1")

    assert story.refused(command, OPENS) == "slot_unavailable"
    assert story.refused(staff(type(command), **_own_fields(command), override="because"), OPENS) == "slot_unavailable"
    assert story.when(command, OPENS - SECOND)


@pytest.mark.parametrize("command", [hold(slot="x"), book(slot="x"), move(slot="x")], ids=["hold", "book", "move"])
def test_a_slot_that_is_not_there_is_long_past(command: Command) -> None:
    assert booked("s1").refused(command) == "slot_unavailable"


def _own_fields(command: Command) -> dict[str, object]:
    header = set(Command.__dataclass_fields__)
    return {name: getattr(command, name) for name in type(command).__dataclass_fields__ if name not in header}


# Moving within the calendar


def test_a_visit_is_moved_and_its_old_slot_is_free() -> None:
    story = booked()

    answer = story.answered(move(), NOW + MINUTE)["appointment"]

    assert story.events[-1][1] == AppointmentRescheduled(
        appointment_id="a1", from_slot_id="s0", slot_id="s1", version=2
    )
    assert (answer["id"], answer["slot_id"], answer["start"]) == ("a1", "s1", OPENS + SLOT)
    assert (answer["status"], answer["version"], answer["moves"]) == ("rescheduled", 2, 1)
    assert (answer["created_at"], answer["updated_at"]) == (NOW, NOW + MINUTE)
    assert (story.slot_status("s0"), story.slot_status("s1")) == ("free", "booked")


def test_a_moved_visit_can_move_back() -> None:
    story = booked()
    story.when(move(slot="s1"))

    story.when(move(slot="s0"))

    assert (story.slot_status("s0"), story.slot_status("s1")) == ("booked", "free")
    assert story.calendar.appointments["a1"].version == 3


def test_a_visit_is_not_moved_to_where_it_is_nor_where_another_is() -> None:
    story = booked()
    story.when(book("a2", slot="s1", by="boris"))

    assert story.refused(move(slot="s0")) == "slot_taken"
    assert story.refused(move(slot="s1")) == "slot_taken"


def test_a_move_uses_up_the_movers_hold_and_respects_others() -> None:
    story = booked().given(
        SlotHeld(hold_id="h1", slot_id="s1", user_id="anna", expires_at=NOW + TTL),
        SlotHeld(hold_id="h2", slot_id="s2", user_id="boris", expires_at=NOW + TTL),
    )

    assert story.refused(move(slot="s2")) == "slot_taken"
    assert story.refused(move(slot="s1", hold_id="h2")) == "hold_expired"
    story.when(move(slot="s1", hold_id="h1"))
    assert set(story.calendar.holds) == {"h2"}
    events = story.when(move(slot="s2"), NOW + TTL)
    assert [type(event) for event in events] == [HoldExpired, AppointmentRescheduled]


@pytest.mark.parametrize("ends", [RecordArrival, CancelAppointment, RecordNoShow, FulfilAppointment])
def test_only_a_visit_that_waits_is_moved(ends: type[RecordArrival]) -> None:
    story = booked()
    story.when(staff(ends, appointment_id="a1"), OPENS)

    code = story.refused(move(slot="s3"), OPENS)

    assert code == ("already_arrived" if ends is RecordArrival else "not_live")


def test_what_was_never_here_is_not_live() -> None:
    for command in (move("a9"), cancel("a9"), staff(RecordArrival, appointment_id="a9")):
        assert booked().refused(command) == "not_live"


# If-Match


@pytest.mark.parametrize(
    "kind", [RescheduleAppointment, CancelAppointment, RecordArrival, FulfilAppointment, RecordNoShow]
)
def test_a_change_can_be_made_to_depend_on_the_version(kind: type[Command]) -> None:
    story = booked()
    more = {"slot_id": "s3"} if kind is RescheduleAppointment else {}
    story.when(move(slot="s1"))
    now = OPENS + SLOT

    assert story.refused(staff(kind, appointment_id="a1", if_version=1, **more), now) == "version_conflict"
    assert story.refused(staff(kind, appointment_id="a1", if_version=3, **more), now) == "version_conflict"
    assert story.when(staff(kind, appointment_id="a1", if_version=2, override="because", **more), now)


def test_the_version_is_asked_about_before_the_state() -> None:
    story = booked()
    story.when(cancel())

    assert story.refused(cancel(version=1)) == "version_conflict"
    assert story.refused(cancel(version=2)) == "not_live"


# Cancelling


def test_a_cancelled_visit_frees_its_slot() -> None:
    story = booked()

    answer = story.answered(cancel(), NOW + MINUTE)["appointment"]

    assert story.events[-1][1] == AppointmentCancelled(appointment_id="a1", by=Role.PATIENT, version=2)
    assert (answer["status"], answer["version"], answer["updated_at"]) == ("cancelled", 2, NOW + MINUTE)
    assert story.slot_status("s0") == "free"
    assert story.when(book("a2", by="boris"))


def test_a_cancelled_visit_leaves_the_slot_to_the_next_and_never_comes_back_for_it() -> None:
    story = booked()
    story.when(cancel())
    story.when(book("a2", by="boris"))

    assert story.refused(cancel()) == "not_live"
    assert story.slot_status("s0") == "booked"


def test_who_cancelled_is_remembered() -> None:
    assert booked().when(staff(CancelAppointment, appointment_id="a1")) == (
        AppointmentCancelled(appointment_id="a1", by=Role.ADMIN, version=2),
    )


# The day of the visit


def test_a_patient_arrives_and_is_seen() -> None:
    story = booked()

    assert story.when(staff(RecordArrival, appointment_id="a1"), OPENS - MINUTE) == (
        PatientArrived(appointment_id="a1", version=2),
    )
    assert story.slot_status("s0") == "booked"
    assert story.when(staff(FulfilAppointment, appointment_id="a1"), OPENS) == (
        AppointmentFulfilled(appointment_id="a1", version=3),
    )
    assert story.calendar.appointments["a1"].status is AppointmentStatus.FULFILLED


def test_a_visit_is_fulfilled_without_an_arrival() -> None:
    assert booked().when(staff(FulfilAppointment, appointment_id="a1"), OPENS)


def test_a_patient_misses_a_visit() -> None:
    story = booked()

    assert story.when(staff(RecordNoShow, appointment_id="a1"), OPENS) == (
        PatientMissed(appointment_id="a1", version=2),
    )
    assert story.calendar.appointments["a1"].status is AppointmentStatus.NOSHOW


@pytest.mark.parametrize("kind", [FulfilAppointment, RecordNoShow])
def test_nothing_is_said_of_a_visit_before_it_begins(kind: type[FulfilAppointment]) -> None:
    assert booked().refused(staff(kind, appointment_id="a1"), OPENS - SECOND) == "too_early"
    assert booked().refused(staff(kind, appointment_id="a1", override="because"), OPENS - SECOND) == "too_early"


def test_who_has_arrived_neither_arrives_again_nor_misses_the_visit_but_may_cancel() -> None:
    story = booked()
    story.when(staff(RecordArrival, appointment_id="a1"), OPENS)

    assert story.refused(staff(RecordArrival, appointment_id="a1"), OPENS) == "already_arrived"
    assert story.refused(staff(RecordNoShow, appointment_id="a1"), OPENS) == "already_arrived"
    assert story.when(cancel(), OPENS)


@pytest.mark.parametrize("ends", [CancelAppointment, FulfilAppointment, RecordNoShow])
@pytest.mark.parametrize("then", [RecordArrival, CancelAppointment, FulfilAppointment, RecordNoShow])
def test_what_has_ended_has_ended(ends: type[CancelAppointment], then: type[CancelAppointment]) -> None:
    story = booked()
    story.when(staff(ends, appointment_id="a1"), OPENS)

    assert story.refused(staff(then, appointment_id="a1"), OPENS) == "not_live"


# Cut-offs and the horizon


def test_the_booking_cut_off_and_the_horizon_are_exact_and_staff_pass_them_with_a_reason() -> None:
    policy = Policy(book_cutoff=timedelta(hours=1), horizon=timedelta(days=7))
    last, first = OPENS - timedelta(hours=1), OPENS - timedelta(days=7)

    for command in (hold(), book()):
        assert Story(policy=policy).when(command, last)
        assert Story(policy=policy).refused(command, last + SECOND) == "too_late"
        assert Story(policy=policy).when(command, first)
        assert Story(policy=policy).refused(command, first - SECOND) == "slot_unavailable"
        by_staff = staff(type(command), **_own_fields(command))
        assert Story(policy=policy).refused(by_staff, last + SECOND) == "too_late"
        overriding = staff(type(command), **_own_fields(command), override="because")
        assert Story(policy=policy).when(overriding, last + SECOND)
        assert Story(policy=policy).when(overriding, first - SECOND)


def test_the_cut_offs_to_move_and_to_cancel() -> None:
    policy = Policy(move_cutoff=timedelta(hours=2), cancel_cutoff=timedelta(hours=1))

    def story() -> Story:
        told = Story(policy=policy)
        told.when(book())
        return told

    assert story().when(move(), OPENS - timedelta(hours=2))
    assert story().refused(move(), OPENS - timedelta(hours=2) + SECOND) == "too_late"
    late = staff(RescheduleAppointment, appointment_id="a1", slot_id="s1", override="because")
    assert story().when(late, OPENS - SECOND)
    assert story().when(cancel(), OPENS - timedelta(hours=1))
    assert story().refused(cancel(), OPENS - timedelta(hours=1) + SECOND) == "too_late"
    assert story().when(staff(CancelAppointment, appointment_id="a1", override="because"), OPENS)


def test_without_a_cut_off_a_visit_is_cancelled_until_it_begins() -> None:
    assert booked().when(cancel(), OPENS)
    assert booked().refused(cancel(), OPENS + SECOND) == "too_late"


# What no caller should do


def test_what_is_no_command_of_a_calendar_is_a_bug() -> None:
    with pytest.raises(TypeError, match="not a command"):
        decide(Calendar("house"), ask(Command), NOW, Policy())
