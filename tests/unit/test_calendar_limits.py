"""The calendar's core: limits, and what it is told of other calendars (``Facts``)."""

from datetime import datetime, timedelta

from actors.decisions import Busy, Facts
from actors.messages import BookAppointment, CancelAppointment, HoldSlot, RescheduleAppointment
from actors.policy import Policy
from tests.given import MINUTE, NOW, OPENS, SLOT, Story, ask, staff


def busy(number: float, *, doctor: str = "wilson", appointment_id: str = "b1") -> Busy:
    """A visit elsewhere, at the time of slot ``number``."""
    start = OPENS + number * SLOT
    return Busy(appointment_id=appointment_id, doctor_id=doctor, start=start, end=start + SLOT)


def elsewhere(*visits: Busy) -> Facts:
    return Facts(busy={"anna": visits})


def book(number: int = 0, *, patient: str = "anna", by: str = "anna") -> BookAppointment:
    return ask(BookAppointment, by=by, appointment_id=f"a{number}", slot_id=f"s{number}", patient_id=patient)


def hold(number: int, *, by: str = "anna") -> HoldSlot:
    return ask(HoldSlot, by=by, hold_id=f"h{number}", slot_id=f"s{number}")


# The patient's own time


def test_a_visit_elsewhere_at_that_time_stands_against_it() -> None:
    for number in (-0.5, 0, 0.5):
        assert Story().refused(book(0), facts=elsewhere(busy(number))) == "patient_overlap"
    for number in (-1, 1):
        assert Story().when(book(0), facts=elsewhere(busy(number)))


def test_visits_of_others_and_those_it_knows_better_itself_do_not() -> None:
    assert Story().when(book(0), facts=Facts(busy={"boris": [busy(0)]}))
    assert Story().when(book(0), facts=elsewhere(busy(0, doctor="house")))


def test_staff_cannot_be_in_two_places_for_a_patient_either() -> None:
    by_staff = staff(BookAppointment, appointment_id="a", slot_id="s0", patient_id="anna", override="because")

    assert Story().refused(by_staff, facts=elsewhere(busy(0))) == "patient_overlap"


def test_a_move_is_checked_the_same_way_but_never_against_itself() -> None:
    story = Story()
    story.when(book(0))
    move = ask(RescheduleAppointment, appointment_id="a0", slot_id="s1")

    assert story.refused(move, facts=elsewhere(busy(1))) == "patient_overlap"
    assert story.when(move, facts=elsewhere(busy(1, appointment_id="a0")))


# Live appointments of a patient


def test_live_visits_are_limited_here() -> None:
    story = Story(policy=Policy(live_appointments_max=2))
    story.when(book(0))
    story.when(book(1))

    assert story.refused(book(2)) == "limit_reached"
    assert story.when(book(2, patient="child"))
    assert story.when(ask(RescheduleAppointment, appointment_id="a0", slot_id="s3"))
    story.when(ask(CancelAppointment, appointment_id="a1"))
    assert story.when(book(1))


def test_live_visits_elsewhere_count_until_they_have_ended() -> None:
    story = Story(policy=Policy(live_appointments_max=2))
    past = NOW - SLOT
    ended = Busy(appointment_id="b0", doctor_id="wilson", start=past, end=NOW)

    assert story.when(book(0), facts=elsewhere(busy(5), ended))
    assert story.refused(book(1), facts=elsewhere(busy(5), ended)) == "limit_reached"


def test_visits_here_that_have_ended_do_not_count() -> None:
    story = Story(policy=Policy(live_appointments_max=1))
    story.when(book(0))

    assert story.refused(book(1), OPENS + SLOT - MINUTE) == "limit_reached"
    assert story.when(book(2), OPENS + SLOT)


def test_staff_pass_the_limit_with_a_reason_and_nought_is_no_limit() -> None:
    story = Story(policy=Policy(live_appointments_max=1))
    story.when(book(0))

    by_staff = {"appointment_id": "a1", "slot_id": "s1", "patient_id": "anna"}
    assert story.refused(staff(BookAppointment, **by_staff)) == "limit_reached"
    assert story.when(staff(BookAppointment, **by_staff, override="because"))
    unlimited = Story(policy=Policy(live_appointments_max=0))
    assert all(unlimited.when(book(number)) for number in range(4))


# Holds of a user


def test_holds_are_limited_by_user_and_count_while_they_last() -> None:
    story = Story(policy=Policy(holds_max=2))
    story.when(hold(0))
    story.when(hold(1), NOW + MINUTE)

    assert story.refused(hold(2), NOW + MINUTE) == "limit_reached"
    assert story.when(hold(2, by="boris"), NOW + MINUTE)
    assert story.when(hold(3), NOW + timedelta(minutes=5))
    assert story.decision(hold(3), NOW + timedelta(minutes=5)).events == ()


def test_holds_elsewhere_count_too() -> None:
    def held(doctor: str, until: datetime) -> Facts:
        return Facts(holds={"anna": [(doctor, until)]})

    story = Story(policy=Policy(holds_max=1))

    assert story.refused(hold(0), facts=held("wilson", NOW + MINUTE)) == "limit_reached"
    assert story.decision(hold(0), facts=held("wilson", NOW)).events
    assert story.decision(hold(0), facts=held("house", NOW + MINUTE)).events
    assert story.decision(hold(0, by="boris"), facts=held("wilson", NOW + MINUTE)).events


def test_nought_holds_is_no_limit() -> None:
    story = Story(policy=Policy(holds_max=0))

    assert all(story.when(hold(number)) for number in range(4))


# Moves of an appointment


def test_moves_are_limited_and_staff_pass_the_limit() -> None:
    story = Story(policy=Policy(moves_max=2))
    story.when(book(0))
    story.when(ask(RescheduleAppointment, appointment_id="a0", slot_id="s1"))
    story.when(ask(RescheduleAppointment, appointment_id="a0", slot_id="s2"))

    assert story.refused(ask(RescheduleAppointment, appointment_id="a0", slot_id="s3")) == "limit_reached"
    assert story.when(staff(RescheduleAppointment, appointment_id="a0", slot_id="s3", override="because"))
