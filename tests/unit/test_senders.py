"""What an actor knows of its senders: late calls, and clocks that are wrong."""

from datetime import UTC, datetime, timedelta

import pytest

from actors.messages import Batch
from actors.senders import CALLS_SEEN, SENDERS_MAX, Senders

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)
NO_TIME = timedelta(0)


def call(number: int, sent_at: datetime = NOON, sender: str = "api") -> Batch:
    return Batch(generation=0, sender=sender, number=number, sent_at=sent_at, commands=())


def introduced(behind: timedelta = NO_TIME) -> Senders:
    """One whose clock has been seen once."""
    senders = Senders()
    assert senders.behind(call(1), NOON + behind) is None, "how long the first was on its way nobody knows"
    return senders


@pytest.mark.parametrize("skew", [-HOUR, NO_TIME, HOUR])
def test_a_clock_that_is_wrong_from_the_start_is_no_delay(skew: timedelta) -> None:
    senders = introduced(skew)
    for number in range(2, 20):
        sent_at = NOON + number * SECOND
        assert senders.behind(call(number, sent_at), sent_at + skew) == skew


def test_the_time_on_the_way_counts() -> None:
    senders = introduced()
    assert senders.behind(call(2), NOON + 12 * SECOND) == NO_TIME, "so its deadlines are twelve seconds nearer"
    assert senders.behind(call(3), NOON + 12 * SECOND) == NO_TIME, "and the next one's"
    assert senders.behind(call(4, NOON + 13 * SECOND), NOON + 13 * SECOND) == NO_TIME


def test_after_a_step_forward_some_calls_seem_late_and_then_none() -> None:
    senders = introduced()
    seen = [senders.behind(call(number), NOON + HOUR) for number in range(2, 12)]
    assert seen == [NO_TIME] * (CALLS_SEEN - 1) + [HOUR] * (11 - CALLS_SEEN)


def test_after_a_step_back_none_seems_late() -> None:
    senders = introduced()
    assert senders.behind(call(2), NOON - HOUR) == -HOUR
    assert senders.behind(call(3), NOON - HOUR) == -HOUR


def test_a_call_that_another_has_overtaken_was_given_up() -> None:
    senders = introduced()
    assert senders.behind(call(3), NOON) is not None
    assert senders.behind(call(2), NOON) is None
    assert senders.behind(call(3), NOON) is None
    assert senders.behind(call(4), NOON) is not None


def test_it_remembers_so_many_senders() -> None:
    senders = introduced()
    for number in range(SENDERS_MAX - 1):
        senders.behind(call(1, sender=str(number)), NOON)
    assert senders.behind(call(2), NOON) is not None
    senders.behind(call(1, sender="one more"), NOON)
    assert senders.behind(call(2, sender="0"), NOON) is None, "forgotten"
