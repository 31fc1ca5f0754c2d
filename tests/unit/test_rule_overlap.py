"""Overlapping weekly rules, against a model that lays every slot on a line."""

from datetime import date, datetime, time, timedelta
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from actors.availability import Template, Weekday, WeeklyRule, zone
from cluster.rule_overlap import Placed, overlapping

FIRST_DAY, LAST_DAY = date(2026, 6, 1), date(2026, 7, 1)  # no clock changes in the zones below
ZONES = ("UTC", "Europe/Moscow", "Asia/Kathmandu", "Pacific/Kiritimati", "Pacific/Pago_Pago")


@st.composite
def placed(draw: st.DrawFn) -> Placed:
    slot_minutes, break_minutes = draw(st.sampled_from((10, 45, 90))), draw(st.sampled_from((0, 10, 60)))
    most = 1 + (24 * 60 - slot_minutes) // (slot_minutes + break_minutes)
    rule = WeeklyRule(
        weekday=draw(st.sampled_from((Weekday.SAT, Weekday.SUN, Weekday.MON))),
        start=time(draw(st.integers(0, 23)), draw(st.sampled_from((0, 10, 45)))),
        slot_minutes=slot_minutes,
        slots=draw(st.integers(1, most)),
        break_minutes=break_minutes,
    )
    valid_from = FIRST_DAY + timedelta(days=draw(st.integers(7, 16)))
    template = Template(
        id="t",
        location_id="l",
        timezone=draw(st.sampled_from(ZONES)),
        valid_from=valid_from,
        valid_to=draw(st.none() | st.integers(0, 8).map(lambda days: valid_from + timedelta(days=days))),
        rules=(rule,),
    )
    return template, rule


def slots(template: Template, rule: WeeklyRule) -> list[tuple[datetime, datetime]]:
    laid = []
    day = template.valid_from
    while day <= (template.valid_to or LAST_DAY):
        if Weekday.of(day) is rule.weekday:
            for index in range(rule.slots):
                wall = datetime.combine(day, rule.start) + index * timedelta(minutes=rule.step_minutes)
                start = wall.replace(tzinfo=zone(template.timezone))
                laid.append((start, start + timedelta(minutes=rule.slot_minutes)))
        day += timedelta(days=1)
    return laid


@settings(deadline=None, max_examples=500)
@given(placed(), placed())
def test_two_rules_overlap_where_two_of_their_slots_do(one: Placed, other: Placed) -> None:
    laid = sorted((start, end, which) for which, rule in enumerate((one, other)) for start, end in slots(*rule))
    # A rule never meets itself, so two slots meet only where the next one to begin is the other rule's.
    meet = any(following[0] < before[1] for before, following in pairwise(laid))

    assert overlapping([one, other], FIRST_DAY, LAST_DAY) == ([(1, 0)] if meet else [])


def weekly(weekday: Weekday, start: int, slots: int, first: date, last: date | None) -> Placed:
    """Hours on the hour, with breaks of half an hour."""
    rule = WeeklyRule(weekday=weekday, start=time(start), slot_minutes=60, slots=slots, break_minutes=30)
    return Template(id="t", location_id="l", timezone="UTC", valid_from=first, valid_to=last, rules=(rule,)), rule


def test_a_night_reaches_into_the_next_week() -> None:
    sunday, monday = date(2026, 6, 7), date(2026, 6, 8)
    night = weekly(Weekday.SUN, 23, 2, sunday, sunday)  # 23:00 to 24:00 and 00:30 to 01:30
    morning = weekly(Weekday.MON, 1, 1, monday, monday)

    assert overlapping([night, morning], FIRST_DAY, LAST_DAY) == [(1, 0)]
    assert overlapping([morning, night], FIRST_DAY, LAST_DAY) == [(1, 0)]


def test_rules_whose_days_are_never_both_valid_do_not_overlap() -> None:
    first = weekly(Weekday.SUN, 23, 2, date(2026, 6, 1), date(2026, 6, 13))  # its last night is that of the 7th
    then = weekly(Weekday.MON, 1, 1, date(2026, 6, 9), None)

    assert overlapping([first, then], FIRST_DAY, LAST_DAY) == []


def test_a_rule_may_lie_in_the_breaks_of_another() -> None:
    lines = weekly(Weekday.TUE, 8, 4, FIRST_DAY, None)  # 08:00 to 09:00, 09:30 to 10:30, 11:00 to 12:00, …
    rule = WeeklyRule(weekday=Weekday.TUE, start=time(9), slot_minutes=30, slots=3, break_minutes=60)
    between = (
        Template(id="t", location_id="l", timezone="UTC", valid_from=FIRST_DAY, valid_to=None, rules=(rule,)),
        rule,
    )

    assert overlapping([lines, between], FIRST_DAY, LAST_DAY) == []


def test_each_rule_is_told_once_with_the_first_it_overlaps() -> None:
    rule = WeeklyRule(weekday=Weekday.TUE, start=time(9), slot_minutes=30, slots=4)
    template = Template(id="t", location_id="l", timezone="UTC", valid_from=date.min, valid_to=date.max, rules=(rule,))

    assert overlapping([(template, rule)] * 3, FIRST_DAY, LAST_DAY) == [(1, 0), (2, 0)]
