"""Templates to slots: examples at known changes of the clock, and properties over many zones."""

from dataclasses import FrozenInstanceError
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from actors.availability import (
    CANDIDATES_MAX,
    DAYS_MAX,
    FIRST_DAY,
    LAST_DAY,
    MINUTES_MAX,
    RULES_PER_TEMPLATE_MAX,
    SLOTS_PER_RULE_MAX,
    TEMPLATES_MAX,
    Opening,
    Skipped,
    Template,
    Weekday,
    WeeklyRule,
    openings,
    zone,
)


def rule(weekday: Weekday, start: str, slot_minutes: int, slots: int, **more: Any) -> WeeklyRule:
    return WeeklyRule(weekday=weekday, start=time.fromisoformat(start), slot_minutes=slot_minutes, slots=slots, **more)


def template(timezone: str, *rules: WeeklyRule, **more: Any) -> Template:
    values: dict[str, Any] = {"id": "t1", "location_id": "l1", "valid_from": date(2000, 1, 1), "valid_to": None} | more
    return Template(timezone=timezone, rules=rules, **values)


def wall(instant: datetime, timezone: str) -> str:
    return instant.astimezone(ZoneInfo(timezone)).strftime("%a %H:%M")


def on(day: date, *templates: Template) -> tuple[tuple[Opening, ...], tuple[Skipped, ...]]:
    return openings(templates, day, day)


# Examples.


def test_tuesdays_ten_slots() -> None:
    tuesdays = template("Europe/Moscow", rule(Weekday.TUE, "09:00", 30, 10, service_id="s1"))

    opened, skipped = openings([tuesdays], date(2026, 11, 23), date(2026, 11, 29))

    assert [opening.start for opening in opened] == [
        datetime(2026, 11, 24, 6, tzinfo=UTC) + timedelta(minutes=30 * i) for i in range(10)
    ]
    assert {opening.end - opening.start for opening in opened} == {timedelta(minutes=30)}
    assert {(opening.location_id, opening.service_id) for opening in opened} == {("l1", "s1")}
    assert skipped == ()


def test_breaks_lie_between_slots() -> None:
    opened, _ = on(date(2026, 11, 24), template("UTC", rule(Weekday.TUE, "09:00", 20, 3, break_minutes=10)))

    assert [f"{o.start:%H:%M}-{o.end:%H:%M}" for o in opened] == ["09:00-09:20", "09:30-09:50", "10:00-10:20"]


def test_the_wall_clock_stays_when_the_clock_changes() -> None:
    sundays = template("Europe/Berlin", rule(Weekday.SUN, "09:00", 30, 1))

    opened, skipped = openings([sundays], date(2026, 3, 22), date(2026, 4, 5))

    assert [opening.start.hour for opening in opened] == [8, 7, 7]
    assert skipped == ()


def test_a_wall_time_in_the_gap_is_skipped_and_told_by_the_offset_before_it() -> None:
    opened, skipped = on(date(2026, 3, 29), template("Europe/Berlin", rule(Weekday.SUN, "01:00", 30, 6)))

    assert [wall(opening.start, "Europe/Berlin")[4:] for opening in opened] == ["01:00", "01:30", "03:00", "03:30"]
    assert skipped == (
        Skipped(start=datetime(2026, 3, 29, 1, 0, tzinfo=UTC), why="dst_gap"),
        Skipped(start=datetime(2026, 3, 29, 1, 30, tzinfo=UTC), why="dst_gap"),
    )


def test_an_ambiguous_wall_time_is_taken_at_its_first_occurrence() -> None:
    opened, skipped = on(date(2026, 10, 25), template("Europe/Berlin", rule(Weekday.SUN, "02:00", 30, 3)))

    assert [f"{opening.start:%H:%M}" for opening in opened] == ["00:00", "00:30", "02:00"]
    assert skipped == ()


def test_a_slot_lasts_real_minutes_over_a_gap_and_the_one_it_runs_into_is_skipped() -> None:
    # 01:30 CET + 45 real minutes is 03:15 CEST; 02:15 never comes; 03:00 comes before the first slot has ended.
    opened, skipped = on(date(2026, 3, 29), template("Europe/Berlin", rule(Weekday.SUN, "01:30", 45, 4)))

    assert [f"{o.start:%H:%M}-{o.end:%H:%M}" for o in opened] == ["00:30-01:15", "01:45-02:30"]
    assert [(f"{s.start:%H:%M}", s.why) for s in skipped] == [("01:00", "overlap"), ("01:15", "dst_gap")]


def test_lord_howe_changes_by_half_an_hour() -> None:
    lord_howe = "Australia/Lord_Howe"
    opened, skipped = on(date(2026, 10, 4), template(lord_howe, rule(Weekday.SUN, "01:30", 30, 4)))

    assert [wall(opening.start, lord_howe)[4:] for opening in opened] == ["01:30", "02:30", "03:00"]
    assert [skip.why for skip in skipped] == ["dst_gap"]


def test_apia_had_no_30_december_2011() -> None:
    apia = "Pacific/Apia"
    daily = template(apia, *(rule(day, "09:00", 60, 2) for day in Weekday))

    opened, skipped = openings([daily], date(2011, 12, 29), date(2011, 12, 31))

    assert [wall(opening.start, apia) for opening in opened] == ["Thu 09:00", "Thu 10:00", "Sat 09:00", "Sat 10:00"]
    assert opened[2].start - opened[0].start == timedelta(hours=24)
    assert [skip.why for skip in skipped] == ["dst_gap", "dst_gap"]


def test_a_rule_past_midnight_belongs_to_its_day() -> None:
    night = template(
        "Europe/Moscow", rule(Weekday.TUE, "23:00", 60, 3), valid_from=date(2026, 11, 24), valid_to=date(2026, 11, 24)
    )

    opened, _ = on(date(2026, 11, 24), night)
    next_day, _ = on(date(2026, 11, 25), night)

    assert [wall(o.start, "Europe/Moscow") for o in opened] == ["Tue 23:00", "Wed 00:00", "Wed 01:00"]
    assert next_day == ()


def test_of_overlapping_rules_the_slot_that_begins_later_is_skipped() -> None:
    opened, skipped = on(
        date(2026, 11, 24),
        template("UTC", rule(Weekday.TUE, "09:15", 30, 2, service_id="late"), id="t1"),
        template("UTC", rule(Weekday.TUE, "09:00", 30, 1, service_id="early"), id="t2"),
    )

    assert [(f"{o.start:%H:%M}", o.service_id) for o in opened] == [("09:00", "early"), ("09:45", "late")]
    assert skipped == (Skipped(start=datetime(2026, 11, 24, 9, 15, tzinfo=UTC), why="overlap"),)


def test_of_slots_that_begin_together_the_first_template_opens_its_own() -> None:
    one = template("Europe/Moscow", rule(Weekday.TUE, "09:00", 30, 1), id="t1", location_id="moscow")
    two = template("Asia/Yekaterinburg", rule(Weekday.TUE, "11:00", 60, 1), id="t2", location_id="yekaterinburg")

    assert [o.location_id for o in on(date(2026, 11, 24), one, two)[0]] == ["moscow"]
    assert [o.location_id for o in on(date(2026, 11, 24), two, one)[0]] == ["yekaterinburg"]


def test_last_night_reaches_into_this_morning() -> None:
    night = template("UTC", rule(Weekday.MON, "23:30", 60, 2), rule(Weekday.TUE, "01:00", 30, 2))

    opened, skipped = openings([night], date(2026, 11, 23), date(2026, 11, 24))

    assert [f"{o.start:%d %H:%M}" for o in opened] == ["23 23:30", "24 00:30", "24 01:30"]
    assert [f"{s.start:%d %H:%M} {s.why}" for s in skipped] == ["24 01:00 overlap"]


def test_validity_includes_both_its_days() -> None:
    days = template(
        "Europe/Moscow",
        *(rule(day, "09:00", 30, 1) for day in Weekday),
        valid_from=date(2026, 11, 24),
        valid_to=date(2026, 11, 26),
    )

    opened, _ = openings([days], date(2026, 11, 1), date(2026, 12, 31))

    assert [o.start.day for o in opened] == [24, 25, 26]


def test_no_templates_open_nothing() -> None:
    assert openings([], date(2026, 1, 1), date(2026, 12, 31)) == ((), ())


def test_the_first_and_the_last_day_of_all() -> None:
    for name in ("Pacific/Kiritimati", "Pacific/Pago_Pago"):
        nights = template(name, *(rule(day, "12:00", 60, 24) for day in Weekday), valid_from=date.min)
        for day in (FIRST_DAY, LAST_DAY):
            opened, skipped = on(day, nights)
            assert len(opened) + len(skipped) == 24


# Limits.


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("weekday", "tuesday"),
        ("start", time(9, 0, tzinfo=UTC)),
        ("start", time(9, 0, 30)),
        ("slot_minutes", 0),
        ("slot_minutes", MINUTES_MAX + 1),
        ("slots", 0),
        ("slots", SLOTS_PER_RULE_MAX + 1),
        ("slots", 49),  # 49 half hours are more than a day
        ("break_minutes", -1),
        ("break_minutes", MINUTES_MAX + 1),
        ("service_id", ""),
        ("service_id", "x" * 201),
    ],
)
def test_a_rule_past_a_limit_names_its_field(field: str, value: object) -> None:
    good: dict[str, Any] = {"weekday": Weekday.TUE, "start": time(9), "slot_minutes": 30, "slots": 10}
    with pytest.raises(ValueError, match=f"^{field}: "):
        WeeklyRule(**(good | {field: value}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", ""),
        ("id", "x" * 201),
        ("location_id", ""),
        ("valid_to", date(1999, 12, 31)),
        ("rules", ()),
        ("rules", (WeeklyRule(weekday=Weekday.TUE, start=time(9), slot_minutes=5, slots=1),) * 101),
        *(
            ("timezone", name)
            for name in (
                "",
                "Moscow",
                "europe",
                "Europe",
                "../etc/passwd",
                "/UTC",
                "posix/UTC",
                "localtime",
                "EST",
                "UTC\0",
            )
        ),
        ("timezone", "Europe/" + "x" * 300),
    ],
)
def test_a_template_past_a_limit_names_its_field(field: str, value: object) -> None:
    good: dict[str, Any] = {
        "id": "t1",
        "location_id": "l1",
        "timezone": "UTC",
        "valid_from": date(2000, 1, 1),
        "valid_to": None,
        "rules": (rule(Weekday.TUE, "09:00", 30, 1),),
    }
    with pytest.raises(ValueError, match=f"^{field}: "):
        Template(**(good | {field: value}))


def test_days_past_a_limit_are_named() -> None:
    with pytest.raises(ValueError, match=r"^last_day: "):
        openings([], date(2026, 1, 2), date(2026, 1, 1))
    with pytest.raises(ValueError, match=r"^last_day: "):
        openings([], date(2026, 1, 1), date(2026, 1, 1) + timedelta(days=DAYS_MAX))
    with pytest.raises(ValueError, match=r"^first_day: "):
        openings([], date.min, date.min)
    with pytest.raises(ValueError, match=r"^first_day: "):
        openings([], date.max, date.max)


def test_more_than_can_be_asked_for_at_once() -> None:
    one = template("UTC", rule(Weekday.TUE, "09:00", 30, 1))
    with pytest.raises(ValueError, match=r"^templates: "):
        on(date(2026, 11, 24), *([one] * (TEMPLATES_MAX + 1)))
    flood = template("UTC", *([rule(Weekday.TUE, "00:00", 5, SLOTS_PER_RULE_MAX)] * RULES_PER_TEMPLATE_MAX))
    with pytest.raises(ValueError, match=f"^templates: must ask for at most {CANDIDATES_MAX} "):
        openings([flood], date(2026, 11, 1), date(2026, 12, 31))


def test_values_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        rule(Weekday.TUE, "09:00", 30, 1).slots = 2  # type: ignore[misc]  # that it cannot be assigned is what is tested


def test_weekdays_count_as_dates_do() -> None:
    assert [Weekday.of(date(2026, 11, 23 + number)).number for number in range(7)] == list(range(7))
    assert Weekday("tue") is Weekday.TUE


# Properties.

ZONES = (
    "Europe/Berlin",
    "America/Sao_Paulo",
    "Australia/Lord_Howe",
    "Africa/Casablanca",
    "Asia/Kolkata",
    "America/St_Johns",
    "Pacific/Apia",
    "Asia/Tehran",
    "Africa/Cairo",
    "America/Havana",
    "Antarctica/Troll",
    "Asia/Kathmandu",
    "Pacific/Chatham",
    "Europe/Dublin",
    "Europe/Moscow",
    "Asia/Pyongyang",
    "America/Caracas",
    "UTC",
)


def changes(name: str, first_year: int, last_year: int) -> list[date]:
    """Days on which the zone's clock changes."""
    day, last, found = date(first_year, 1, 1), date(last_year, 12, 31), []
    before = zone(name).utcoffset(datetime.combine(day, time()))
    while day < last:
        day += timedelta(days=1)
        after = zone(name).utcoffset(datetime.combine(day, time()))
        if after != before:
            found.append(day - timedelta(days=1))
        before = after
    return found


CHANGES = {name: changes(name, 2009, 2027) or [date(2020, 6, 1)] for name in ZONES}


@st.composite
def rules(draw: st.DrawFn) -> WeeklyRule:
    slot_minutes = draw(st.sampled_from((5, 7, 15, 20, 30, 45, 60, 90, 150, 480, 1440)))
    break_minutes = draw(st.sampled_from((0, 0, 0, 5, 10, 75)))
    most = min(SLOTS_PER_RULE_MAX, 1 + (MINUTES_MAX - slot_minutes) // (slot_minutes + break_minutes))
    return WeeklyRule(
        weekday=draw(st.sampled_from(Weekday)),
        start=time(draw(st.sampled_from((0, 1, 1, 2, 2, 3, 9, 22, 23))), draw(st.sampled_from((0, 15, 30, 45, 59)))),
        slot_minutes=slot_minutes,
        slots=draw(st.integers(1, min(most, 40))),
        break_minutes=break_minutes,
        service_id=draw(st.sampled_from((None, "s1"))),
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[tuple[Template, ...], date, date]:
    """Templates of one doctor and days around a change of the clock, where there is one."""
    names = draw(st.lists(st.sampled_from(ZONES), min_size=1, max_size=2))
    change = draw(st.sampled_from(CHANGES[names[0]]))
    first_day = change - timedelta(days=draw(st.integers(0, 10)))
    last_day = first_day + timedelta(days=draw(st.integers(0, 20)))
    templates = []
    for number, name in enumerate(names):
        valid_from = change + timedelta(days=draw(st.integers(-20, 5)))
        valid_for_days = draw(st.none() | st.integers(0, 20))
        templates.append(
            Template(
                id=f"t{number}",
                location_id=f"l{number}",
                timezone=name,
                valid_from=valid_from,
                valid_to=None if valid_for_days is None else valid_from + timedelta(days=valid_for_days),
                rules=tuple(draw(st.lists(rules(), min_size=1, max_size=4))),
            )
        )
    return tuple(templates), first_day, last_day


def asked_for(
    templates: tuple[Template, ...], first_day: date, last_day: date
) -> list[tuple[Template, WeeklyRule, datetime]]:
    """Naively, each slot's template, rule and wall time: what a reader of the template expects to see on the clock."""
    asked = []
    for one in templates:
        for number in range((last_day - first_day).days + 1):
            day = first_day + timedelta(days=number)
            if day < one.valid_from or (one.valid_to is not None and day > one.valid_to):
                continue
            for weekly in one.rules:
                if weekly.weekday.number == day.weekday():
                    begin = datetime.combine(day, weekly.start)
                    step = timedelta(minutes=weekly.slot_minutes + weekly.break_minutes)
                    asked += [(one, weekly, begin + index * step) for index in range(weekly.slots)]
    return asked


BERLIN_GAP = (template("Europe/Berlin", rule(Weekday.SUN, "01:30", 45, 4)),), date(2026, 3, 29), date(2026, 3, 29)


@given(cases())
@example(BERLIN_GAP)
def test_no_two_openings_overlap_and_both_lists_are_sorted(case: tuple[tuple[Template, ...], date, date]) -> None:
    opened, skipped = openings(*case)

    for one, following in pairwise(opened):
        assert one.end <= following.start
    assert list(skipped) == sorted(skipped, key=lambda skip: skip.start)
    assert all(moment.tzinfo is UTC for o in opened for moment in (o.start, o.end))
    assert all(skip.start.tzinfo is UTC for skip in skipped)


@given(cases())
@example(BERLIN_GAP)
def test_openings_and_skipped_add_up(case: tuple[tuple[Template, ...], date, date]) -> None:
    opened, skipped = openings(*case)

    assert len(opened) + len(skipped) == len(asked_for(*case))
    assert {skip.why for skip in skipped} <= {"dst_gap", "overlap"}


@given(cases())
@example(BERLIN_GAP)
def test_every_opening_is_where_some_rule_puts_it_on_the_wall_clock(
    case: tuple[tuple[Template, ...], date, date],
) -> None:
    asked = {
        (one.location_id, weekly.service_id, timedelta(minutes=weekly.slot_minutes), at)
        for one, weekly, at in asked_for(*case)
    }
    zones = {one.location_id: ZoneInfo(one.timezone) for one in case[0]}

    for opening in openings(*case)[0]:
        local = opening.start.astimezone(zones[opening.location_id])
        assert local.fold == 0, "a wall time that comes twice is taken at its first occurrence"
        shown = local.replace(tzinfo=None)
        assert (opening.location_id, opening.service_id, opening.end - opening.start, shown) in asked


@given(cases())
@example(BERLIN_GAP)
def test_every_skip_has_its_reason(case: tuple[tuple[Template, ...], date, date]) -> None:
    opened, skipped = openings(*case)
    never_comes = set()
    for one, _, at in asked_for(*case):
        for fold in (0, 1):
            instant = at.replace(tzinfo=ZoneInfo(one.timezone), fold=fold).astimezone(UTC)
            if instant.astimezone(ZoneInfo(one.timezone)).replace(tzinfo=None) == at:
                break
        else:
            never_comes.add(at.replace(tzinfo=ZoneInfo(one.timezone), fold=0).astimezone(UTC))

    for skip in skipped:
        if skip.why == "dst_gap":
            assert skip.start in never_comes
        else:
            assert any(o.start <= skip.start < o.end for o in opened)


@given(cases())
@example(BERLIN_GAP)
def test_every_opening_is_within_validity(case: tuple[tuple[Template, ...], date, date]) -> None:
    templates, first_day, last_day = case

    for opening in openings(*case)[0]:
        one = next(t for t in templates if t.location_id == opening.location_id)
        day = opening.start.astimezone(ZoneInfo(one.timezone)).date()
        # A rule's slots belong to the rule's day, and may begin on the morning after it.
        for belongs_to in (day, day - timedelta(days=1)):
            ends = last_day if one.valid_to is None else min(last_day, one.valid_to)
            if max(first_day, one.valid_from) <= belongs_to <= ends:
                break
        else:
            raise AssertionError(f"{opening} is outside the days asked for or the validity")
