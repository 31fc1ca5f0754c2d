"""What an actor knows of its senders: late calls, and clocks that are wrong."""

from datetime import UTC, datetime, timedelta

import pytest

from actors.messages import Batch
from actors.senders import SENDERS_MAX, Senders

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)
NO_TIME = timedelta(0)


def call(number: int, sent_at: datetime = NOON, sender: str = "api") -> Batch:
    return Batch(generation=0, sender=sender, number=number, sent_at=sent_at, commands=())


@pytest.mark.parametrize("skew", [-HOUR, NO_TIME, HOUR])
def test_a_clock_that_is_wrong_from_the_start_is_no_delay(skew: timedelta) -> None:
    senders = Senders()
    for number in range(1, 4):
        sent_at = NOON + number * SECOND
        assert senders.behind(call(number, sent_at), sent_at + skew) == skew


def test_the_time_on_the_way_counts() -> None:
    senders = Senders()
    assert senders.behind(call(1), NOON) == NO_TIME
    assert senders.behind(call(2), NOON + 12 * SECOND) == NO_TIME, "so its deadlines are twelve seconds nearer"
    assert senders.behind(call(3, NOON + 13 * SECOND), NOON + 13 * SECOND) == NO_TIME


def test_after_a_step_forward_one_call_seems_late_and_the_next_does_not() -> None:
    senders = Senders()
    senders.behind(call(1), NOON)
    assert senders.behind(call(2), NOON + HOUR) == NO_TIME
    assert senders.behind(call(3), NOON + HOUR) == HOUR


def test_after_a_step_back_none_seems_late() -> None:
    senders = Senders()
    senders.behind(call(1), NOON)
    assert senders.behind(call(2), NOON - HOUR) == -HOUR
    assert senders.behind(call(3), NOON - HOUR) == -HOUR


def test_a_call_that_another_has_overtaken_was_given_up() -> None:
    senders = Senders()
    assert senders.behind(call(2), NOON) is not None
    assert senders.behind(call(1), NOON) is None
    assert senders.behind(call(2), NOON) is None
    assert senders.behind(call(1, sender="another"), NOON) is not None
    assert senders.behind(call(3), NOON) is not None


def test_it_remembers_so_many_senders() -> None:
    senders = Senders()
    senders.behind(call(5, sender="first"), NOON)
    for number in range(SENDERS_MAX):
        senders.behind(call(1, sender=str(number)), NOON)
    assert senders.behind(call(4, sender="first"), NOON) is not None, "forgotten"
    assert senders.behind(call(1, sender=str(SENDERS_MAX - 1)), NOON) is None
