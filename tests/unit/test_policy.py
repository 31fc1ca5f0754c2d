"""The clinic's rules, each at its edge."""

from datetime import timedelta

import pytest

from actors.errors import LimitReached, SlotUnavailable, TooLate
from actors.policy import Policy
from tests.given import NOW, OPENS, SECOND

HOUR = timedelta(hours=1)


@pytest.mark.parametrize("override", [False, True])
def test_nobody_takes_a_slot_that_has_begun(override: bool) -> None:
    with pytest.raises(SlotUnavailable):
        Policy(horizon=None).check_offer(OPENS, OPENS, override=override)
    Policy(horizon=None).check_offer(OPENS, OPENS - SECOND, override=override)


def test_the_booking_cut_off() -> None:
    policy = Policy(book_cutoff=HOUR)

    policy.check_offer(OPENS, OPENS - HOUR, override=False)
    with pytest.raises(TooLate):
        policy.check_offer(OPENS, OPENS - HOUR + SECOND, override=False)
    policy.check_offer(OPENS, OPENS - SECOND, override=True)


def test_the_horizon() -> None:
    policy = Policy(horizon=HOUR)

    policy.check_offer(OPENS, OPENS - HOUR, override=False)
    with pytest.raises(SlotUnavailable):
        policy.check_offer(OPENS, OPENS - HOUR - SECOND, override=False)
    policy.check_offer(OPENS, OPENS - 9 * HOUR, override=True)
    Policy(horizon=None).check_offer(OPENS, OPENS - timedelta(days=9999), override=False)


def test_the_cut_off_and_the_number_of_moves() -> None:
    policy = Policy(move_cutoff=HOUR, moves_max=2)

    policy.check_move(OPENS, 1, OPENS - HOUR, override=False)
    with pytest.raises(TooLate):
        policy.check_move(OPENS, 0, OPENS - HOUR + SECOND, override=False)
    with pytest.raises(LimitReached):
        policy.check_move(OPENS, 2, NOW, override=False)
    policy.check_move(OPENS, 2, OPENS + HOUR, override=True)
    Policy(moves_max=0).check_move(OPENS, 999, NOW, override=False)


def test_the_cut_off_to_cancel() -> None:
    policy = Policy(cancel_cutoff=HOUR)

    policy.check_cancel(OPENS, OPENS - HOUR, override=False)
    with pytest.raises(TooLate):
        policy.check_cancel(OPENS, OPENS - HOUR + SECOND, override=False)
    policy.check_cancel(OPENS, OPENS + HOUR, override=True)


def test_what_callers_are_told_is_what_is_checked() -> None:
    policy = Policy(move_cutoff=2 * HOUR, cancel_cutoff=HOUR)

    policy.check_move(OPENS, 0, policy.move_until(OPENS), override=False)
    policy.check_cancel(OPENS, policy.cancel_until(OPENS), override=False)
    assert policy.move_until(OPENS) == OPENS - 2 * HOUR
    assert policy.cancel_until(OPENS) == OPENS - HOUR


def test_the_limits_of_live_appointments_and_holds() -> None:
    policy = Policy(live_appointments_max=2, holds_max=2)

    policy.check_live_appointments(1, override=False)
    policy.check_live_appointments(9, override=True)
    policy.check_holds(1)
    with pytest.raises(LimitReached):
        policy.check_live_appointments(2, override=False)
    with pytest.raises(LimitReached):
        policy.check_holds(2)
    unlimited = Policy(live_appointments_max=0, holds_max=0)
    unlimited.check_live_appointments(999, override=False)
    unlimited.check_holds(999)
