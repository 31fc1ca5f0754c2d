from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest

from api.errors import Problem
from api.scheduling.slots import DAYS_MAX, check_days, windows
from persistence.repositories.slots import Window

NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
BERLIN, MOSCOW, AUCKLAND = {"Europe/Berlin": ("b",)}, {"Europe/Moscow": ("m",)}, {"Pacific/Auckland": ("a",)}


def test_a_day_is_that_of_the_location() -> None:
    day = date(2026, 11, 24)
    (window,) = windows(day, day, NOON, BERLIN)
    assert window == Window(
        start=datetime(2026, 11, 23, 23, tzinfo=UTC), end=datetime(2026, 11, 24, 23, tzinfo=UTC), location_ids=("b",)
    )


def test_both_ends_are_included() -> None:
    (window,) = windows(date(2026, 11, 24), date(2026, 11, 26), NOON, BERLIN)
    assert window.end - window.start == timedelta(days=3)


def test_a_day_on_which_the_clock_goes_back_has_25_hours() -> None:
    day = date(2026, 10, 25)
    (window,) = windows(day, day, NOON, BERLIN)
    assert window.end - window.start == timedelta(hours=25)


def test_a_day_without_a_midnight_begins_when_the_clock_goes_on() -> None:
    day = date(2026, 4, 24)  # Cairo goes from 00:00 to 01:00.
    (window,) = windows(day, day, NOON, {"Africa/Cairo": ("c",)})
    assert window.end - window.start == timedelta(hours=23)
    assert window.start == datetime(2026, 4, 23, 22, tzinfo=UTC)


def test_the_default_is_today_there_and_the_fourteen_days_after() -> None:
    (window,) = windows(None, None, NOON, AUCKLAND)
    # There it is the 25th already, thirteen hours ahead.
    assert window.start == datetime(2026, 11, 24, 11, tzinfo=UTC)
    assert window.end - window.start == timedelta(days=15)


def test_from_alone_has_fourteen_days_after_it_and_to_alone_begins_today() -> None:
    (window,) = windows(date(2027, 1, 1), None, NOON, MOSCOW)
    assert (window.start, window.end - window.start) == (
        datetime(2026, 12, 31, 21, tzinfo=UTC),
        timedelta(days=15),
    )
    (window,) = windows(None, date(2026, 11, 24), NOON, MOSCOW)
    assert (window.start, window.end - window.start) == (datetime(2026, 11, 23, 21, tzinfo=UTC), timedelta(days=1))


def test_where_the_last_day_is_over_there_is_no_window() -> None:
    assert windows(None, date(2026, 11, 24), NOON, AUCKLAND) == ()
    assert windows(None, None, NOON, {}) == ()


def test_zones_that_agree_share_a_window() -> None:
    zones = {"Europe/Berlin": ("b", "c"), "Europe/Paris": ("p",), **MOSCOW}
    shared, own = windows(date(2026, 11, 24), date(2026, 11, 24), NOON, zones)
    assert (shared.location_ids, own.location_ids) == (("b", "c", "p"), ("m",))


def test_a_range_is_refused_that_is_too_long_or_ends_before_it_begins() -> None:
    first = date(2026, 11, 24)
    check_days(None, None, NOON)
    check_days(first, None, NOON)
    check_days(first, first + timedelta(days=DAYS_MAX - 1), NOON)
    check_days(None, first + timedelta(days=DAYS_MAX - 1), NOON)
    for start, end in (
        (first, first + timedelta(days=DAYS_MAX)),
        (None, first + timedelta(days=DAYS_MAX)),
        (first, first - timedelta(days=1)),
    ):
        with pytest.raises(Problem) as refused:
            check_days(start, end, NOON)
        assert refused.value.code == "validation_error"
        assert refused.value.errors[0][0] == "/query/to"
