"""Overlapping weekly rules, against a model that lays every slot on a line."""

from datetime import date, datetime, time, timedelta
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from actors.availability import Template, Weekday, WeeklyRule, zone
from cluster.rule_overlap import Placed, overlapping

FIRST_DAY, LAST_DAY = date(2026, 6, 1), date(2026, 8, 30)  # no clock changes in the zones below
ZONES = ("UTC", "Europe/Moscow", "Asia/Kathmandu", "Pacific/Kiritimati", "Pacific/Pago_Pago")


@st.composite
def placed(draw: st.DrawFn) -> Placed:
    slot_minutes, break_minutes = draw(st.sampled_from((10, 45, 90))), draw(st.sampled_from((0, 10, 60)))
    most = 1 + (24 * 60 - slot_minutes) // (slot_minutes + break_minutes)
    rule = WeeklyRule(
        weekday=draw(st.sampled_from(Weekday)),
        start=time(draw(st.integers(0, 23)), draw(st.sampled_from((0, 10, 45)))),
        slot_minutes=slot_minutes,
        slots=draw(st.integers(1, most)),
        break_minutes=break_minutes,
    )
    valid_from = FIRST_DAY + timedelta(days=draw(st.integers(7, 40)))
    template = Template(
        id="t",
        location_id="l",
        timezone=draw(st.sampled_from(ZONES)),
        valid_from=valid_from,
        valid_to=draw(st.none() | st.integers(0, 20).map(lambda days: valid_from + timedelta(days=days))),
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


@settings(deadline=None)
@given(placed(), placed())
def test_two_rules_overlap_where_two_of_their_slots_do(one: Placed, other: Placed) -> None:
    laid = sorted((start, end, which) for which, rule in enumerate((one, other)) for start, end in slots(*rule))
    # A rule never meets itself, so two slots meet only where the next one to begin is the other rule's.
    meet = any(following[0] < before[1] for before, following in pairwise(laid))

    assert overlapping([one, other], FIRST_DAY, LAST_DAY) == ([(1, 0)] if meet else [])


def test_each_rule_is_told_once_with_the_first_it_overlaps() -> None:
    rule = WeeklyRule(weekday=Weekday.TUE, start=time(9), slot_minutes=30, slots=4)
    template = Template(id="t", location_id="l", timezone="UTC", valid_from=date.min, valid_to=date.max, rules=(rule,))

    assert overlapping([(template, rule)] * 3, FIRST_DAY, LAST_DAY) == [(1, 0), (2, 0)]
