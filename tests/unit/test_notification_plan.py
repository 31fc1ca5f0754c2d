"""Who hears of a visit and when: the rules, across quiet hours and clock changes."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notifier.plan import Planned, PlannedVisit, Recipient, plan_reminders, plan_visit, quiet_until
from notifier.preferences import Channel, Offset, Preferences, QuietHours, Topic

BOOKED_AT = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
EMAIL_ONLY = {topic: frozenset({Channel.EMAIL}) for topic in Topic}
HOUR = timedelta(hours=1)


def preferences(*reminders: str, quiet: tuple[str, str] | None = None) -> Preferences:
    """E-mail for everything."""
    hours = None if quiet is None else QuietHours(begin=time.fromisoformat(quiet[0]), end=time.fromisoformat(quiet[1]))
    return Preferences(channels=EMAIL_ONLY, reminders=reminders, quiet=hours)


def visit(
    start: datetime, timezone: str, *, version: int = 1, live: bool = True, displaced: bool = False
) -> PlannedVisit:
    return PlannedVisit(version=version, start=start, live=live, displaced=displaced, timezone=timezone)


def recipient(chosen: Preferences, timezone: str = "UTC") -> Recipient:
    return Recipient(user_id="u1", timezone=timezone, preferences=chosen)


def at(local: str, timezone: str) -> datetime:
    """An instant by the clock of a place."""
    return datetime.fromisoformat(local).replace(tzinfo=ZoneInfo(timezone)).astimezone(UTC)


def by_offset(planned: list[Planned]) -> dict[str, datetime]:
    return {each.offset: each.due_at for each in planned}


@pytest.mark.parametrize(
    ("timezone", "start", "day_before"),
    [
        # The day before at the same time on the wall, though the clocks change between the two.
        ("Europe/Berlin", "2026-03-29T09:00", "2026-03-28T09:00"),
        ("America/New_York", "2026-11-01T09:00", "2026-10-31T09:00"),
        ("Australia/Lord_Howe", "2026-04-05T09:00", "2026-04-04T09:00"),
        ("America/Santiago", "2026-09-06T09:00", "2026-09-05T09:00"),
        ("Africa/Casablanca", "2026-03-22T09:00", "2026-03-21T09:00"),
        # The time does not exist the day before: as much later as the clock was put forward.
        ("Europe/Berlin", "2026-03-30T02:30", "2026-03-29T03:30"),
        # It exists twice the day before: the first.
        ("Europe/Berlin", "2026-10-26T02:30", "2026-10-25T02:30"),
    ],
)
def test_days_go_by_the_clock_on_the_wall_and_hours_by_what_passes(timezone: str, start: str, day_before: str) -> None:
    begins = at(start, timezone)
    chosen = preferences("P1D", "PT2H", "PT30M")
    due = by_offset(list(plan_reminders(BOOKED_AT, visit(begins, timezone), recipient(chosen))))
    assert due == {
        "P1D": at(day_before, timezone),
        "PT2H": begins - 2 * HOUR,
        "PT30M": begins - HOUR / 2,
    }


def test_a_reminder_is_too_late_once_the_next_one_is_due() -> None:
    start = datetime(2026, 3, 10, 9, 0, tzinfo=UTC)
    planned = list(plan_reminders(BOOKED_AT, visit(start, "UTC"), recipient(preferences("PT2H", "P2D", "PT30M"))))
    assert [each.offset for each in planned] == ["P2D", "PT2H", "PT30M"]
    assert [earlier.expires_at for earlier in planned] == [*(later.due_at for later in planned[1:]), start]


def test_what_would_have_been_due_before_is_not_said() -> None:
    start = BOOKED_AT + 90 * timedelta(minutes=1)
    chosen = preferences("P1D", "PT2H", "PT1H")
    assert [each.offset for each in plan_reminders(BOOKED_AT, visit(start, "UTC"), recipient(chosen))] == ["PT1H"]


@pytest.mark.parametrize(
    ("timezone", "start", "due"),
    [
        ("Europe/Moscow", "2026-03-10T12:00", "2026-03-10T07:00"),  # Due at six: put off until they end.
        ("Europe/Moscow", "2026-03-10T06:30", "2026-03-09T22:00"),  # Their end is too late: said before they begin.
        ("Europe/Moscow", "2026-03-10T18:00", "2026-03-10T12:00"),  # By day.
        ("Asia/Tokyo", "2026-03-10T12:00", "2026-03-10T07:00"),
    ],
)
def test_quiet_hours_put_reminders_off(timezone: str, start: str, due: str) -> None:
    chosen = preferences("PT6H", quiet=("22:00", "07:00"))
    (planned,) = plan_reminders(BOOKED_AT, visit(at(start, timezone), timezone), recipient(chosen, timezone))
    assert planned.due_at == at(due, timezone)


def test_what_quiet_hours_put_off_to_one_moment_is_said_once() -> None:
    start = at("2026-03-10T09:00", "UTC")
    chosen = preferences("PT9H", "PT5H", "PT3H", quiet=("22:00", "07:00"))
    (planned,) = plan_reminders(BOOKED_AT, visit(start, "UTC"), recipient(chosen))
    assert (planned.offset, planned.due_at, planned.expires_at) == ("PT3H", at("2026-03-10T07:00", "UTC"), start)


def test_what_one_does_oneself_is_confirmed_at_once_what_the_clinic_does_waits_for_the_morning() -> None:
    night = at("2026-03-02T23:30", "UTC")
    start = at("2026-03-10T09:00", "UTC")
    chosen = recipient(preferences(quiet=("22:00", "07:00")))
    due = {
        kind: [
            each.due_at for each in plan_visit(kind, 1, night, visit(start, "UTC", live="cancel" not in kind), [chosen])
        ]
        for kind in ("booked", "moved", "cancelled_by_patient", "cancelled_by_clinic", "displaced")
    }
    morning = at("2026-03-03T07:00", "UTC")
    assert due == {
        "booked": [night],
        "moved": [night],
        "cancelled_by_patient": [night],
        "cancelled_by_clinic": [morning],
        "displaced": [morning],
    }


@pytest.mark.parametrize("kind", ["cancelled_by_clinic", "displaced", "restored"])
def test_what_the_clinic_does_is_known_well_before_the_visit_be_it_in_quiet_hours(kind: str) -> None:
    chosen = recipient(preferences(quiet=("22:00", "07:00")))
    night = at("2026-03-02T22:30", "UTC")
    for start, due in (
        ("2026-03-03T06:30", night),
        ("2026-03-03T09:30", night),  # Who hears of it at seven may be on the way.
        ("2026-03-03T10:30", at("2026-03-03T07:00", "UTC")),
        ("2026-03-02T22:00", night),
    ):
        told = [
            each for each in plan_visit(kind, 1, night, visit(at(start, "UTC"), "UTC"), [chosen]) if each.kind == kind
        ]
        if at(start, "UTC") > night or kind == "cancelled_by_clinic":
            assert [each.due_at for each in told] == [due], start
        else:
            assert told == [], "over"


@pytest.mark.parametrize(
    ("now", "until"),
    [
        ("2026-03-02T21:59", None),
        ("2026-03-02T22:00", "2026-03-03T07:00"),
        ("2026-03-03T06:59", "2026-03-03T07:00"),
        ("2026-03-03T07:00", None),
    ],
)
def test_what_is_late_waits_for_the_morning_if_it_still_matters_then(now: str, until: str | None) -> None:
    chosen = recipient(preferences(quiet=("22:00", "07:00")))
    moment, start = at(now, "UTC"), at("2026-03-03T12:00", "UTC")
    expected = at(until, "UTC") if until else None
    for kind in ("reminder", "cancelled_by_clinic", "displaced", "restored"):
        assert quiet_until(kind, start, start, chosen, moment) == expected
    for kind in ("booked", "moved", "cancelled_by_patient"):
        assert quiet_until(kind, start, start, chosen, moment) is None
    assert quiet_until("reminder", start, at("2026-03-03T06:59", "UTC"), chosen, moment) is None


def test_nobody_is_reminded_of_what_cannot_take_place() -> None:
    start = at("2026-03-10T09:00", "UTC")
    for state in ({"displaced": True}, {"live": False}):
        assert not list(plan_reminders(BOOKED_AT, visit(start, "UTC", **state), recipient(preferences("P1D"))))


def test_quiet_hours_end_when_the_clock_shows_their_end_for_the_last_time() -> None:
    hours = QuietHours(begin=time(23), end=time(2, 30))
    second = at("2026-10-25T00:10", "UTC") + timedelta(hours=1)  # 02:10 in Berlin, once more.
    around = hours.around(second, "Europe/Berlin")
    assert around is not None
    assert around[1] == at("2026-10-25T01:30", "UTC")


def test_a_change_that_was_overtaken_is_not_said() -> None:
    start = at("2026-03-10T09:00", "UTC")
    assert not list(plan_visit("booked", 1, BOOKED_AT, visit(start, "UTC", version=2), [recipient(preferences())]))


def test_news_matter_for_some_days_and_never_longer_than_the_visit_is_to_come() -> None:
    chosen = recipient(preferences())
    for kind, start, expires_at in (
        ("booked", BOOKED_AT + 2 * HOUR, BOOKED_AT + 2 * HOUR),
        ("booked", BOOKED_AT + 2000 * HOUR, BOOKED_AT + timedelta(days=3)),
        ("cancelled_by_patient", BOOKED_AT + 2 * HOUR, BOOKED_AT + timedelta(days=1)),
        ("cancelled_by_patient", BOOKED_AT + 2000 * HOUR, BOOKED_AT + 2000 * HOUR),
    ):
        (planned,) = plan_visit(kind, 1, BOOKED_AT, visit(start, "UTC"), [chosen])
        assert planned.expires_at == expires_at


def test_each_channel_is_switched_by_topic() -> None:
    start = at("2026-03-10T09:00", "UTC")
    chosen = Preferences(quiet=None).without(Topic.REMINDER, Channel.SMS)
    planned = list(plan_visit("booked", 1, BOOKED_AT, visit(start, "UTC"), [recipient(chosen)]))
    assert {(each.kind, each.channel) for each in planned} == {
        ("booked", Channel.EMAIL),
        ("booked", Channel.PUSH),
        ("reminder", Channel.EMAIL),
        ("reminder", Channel.PUSH),
    }


@pytest.mark.parametrize("text", ["", "P0D", "P61D", "PT1441H", "P1DT2H", "PT-2H", "P1W", "P١D", "pt2h", "PT2H\n"])
def test_what_is_no_offset_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="should be"):
        Offset.parse(text)


def test_preferences_survive_their_plain_form() -> None:
    for chosen in (Preferences(), preferences("PT15M", quiet=("23:30", "06:15")), preferences()):
        assert Preferences.from_plain(chosen.plain()) == chosen
    assert Preferences.from_plain(None) == Preferences()


_MINUTES = st.integers(0, 24 * 60 - 1).map(lambda minute: time(minute // 60, minute % 60))


@given(
    begin=_MINUTES,
    end=_MINUTES,
    minute=st.integers(0, 60 * 24 * 300),
    timezone=st.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns", "Asia/Kathmandu", "Australia/Lord_Howe"]),
)
def test_quiet_hours_are_those_of_the_clock(begin: time, end: time, minute: int, timezone: str) -> None:
    quiet = QuietHours(begin=begin, end=end)
    instant = BOOKED_AT + timedelta(minutes=minute)
    local = instant.astimezone(ZoneInfo(timezone))
    around = quiet.around(instant, timezone)
    changes = {(local + timedelta(hours=hours)).utcoffset() for hours in range(-26, 27)}
    if len(changes) == 1:  # On the days when clocks change, hours are missing or doubled.
        clock = local.time()
        over_midnight = end <= begin
        assert (around is not None) == ((clock >= begin or clock < end) if over_midnight else begin <= clock < end)
    if around is not None:
        assert around[0] <= instant < around[1]


@given(
    offsets=st.lists(st.sampled_from(["P1D", "P2D", "PT1H", "PT2H", "PT30M", "PT12H", "P7D"]), unique=True, max_size=6),
    hours=st.integers(1, 24 * 30),
    quiet=st.none() | st.just(("22:00", "07:00")) | st.just(("00:00", "23:59")),
)
def test_reminders_are_in_order_before_the_visit_and_after_now(
    offsets: list[str], hours: int, quiet: tuple[str, str] | None
) -> None:
    start = BOOKED_AT + hours * HOUR
    planned = list(plan_reminders(BOOKED_AT, visit(start, "UTC"), recipient(preferences(*offsets, quiet=quiet))))
    assert all(BOOKED_AT < each.due_at < each.expires_at <= start for each in planned)
    assert all(earlier.expires_at <= later.due_at for earlier, later in pairwise(planned))
    assert len({each.offset for each in planned}) == len(planned)
