"""Whether weekly rules of one doctor ever cover the same time, on the clocks of their locations.

What changes of the clock do to slots on a single day is not looked at: ``actors.availability`` skips those.
"""

from collections.abc import Iterable
from datetime import date, datetime, time, timedelta
from functools import lru_cache

from actors.availability import MINUTES_MAX, Template, WeeklyRule, zone

Placed = tuple[Template, WeeklyRule]


def overlapping(rules: Iterable[Placed], first_day: date, last_day: date) -> list[tuple[int, int]]:
    """Pairs of places in the list: a rule that overlaps an earlier one, and the first such earlier one.

    Rules on clocks of different zones are compared as those clocks stand from ``first_day`` to ``last_day``.
    """
    placed = tuple(rules)
    pairs = []
    for index, later in enumerate(placed):
        for before, earlier in enumerate(placed[:index]):
            shifts = _shifts(earlier[0].timezone, later[0].timezone, first_day, last_day)
            if any(_overlap(earlier, later, shift) for shift in shifts):
                pairs.append((index, before))
                break
    return pairs


@lru_cache(maxsize=1024)
def _shifts(one: str, other: str, first_day: date, last_day: date) -> tuple[int, ...]:
    """By how many minutes the other zone's clock is behind the one's, at any noon of these days."""
    if one == other:
        return (0,)
    days = range((last_day - first_day).days + 1)
    noons = [datetime.combine(first_day + timedelta(days=number), time(12)) for number in days]
    shifts = {_offset_minutes(one, noon) - _offset_minutes(other, noon) for noon in noons}
    return tuple(sorted(shifts))


def _offset_minutes(name: str, wall: datetime) -> int:
    offset = zone(name).utcoffset(wall)
    assert offset is not None
    return int(offset.total_seconds()) // 60


def _overlap(one: Placed, other: Placed, shift: int) -> bool:
    """Whether slots of the two ever meet, where the other's clock is ``shift`` minutes behind the one's."""
    for weeks in (-1, 0, 1):
        days = other[1].weekday.number - one[1].weekday.number + 7 * weeks
        ahead = days * MINUTES_MAX + _minutes(other[1].start) - _minutes(one[1].start) + shift
        if _slots_meet(one[1], other[1], ahead) and _both_valid(one, other, days):
            return True
    return False


def _slots_meet(one: WeeklyRule, other: WeeklyRule, ahead: int) -> bool:
    """Whether slots of the two overlap, where the other rule begins that many minutes after the one."""
    if ahead >= one.span_minutes or -ahead >= other.span_minutes:
        return False
    for index in range(other.slots):
        start = ahead + index * other.step_minutes
        # Of the one's slots, the first that ends after this one's start is the only one that may be in its way.
        nearest = max(0, (start - one.slot_minutes) // one.step_minutes + 1)
        if nearest < one.slots and nearest * one.step_minutes < start + other.slot_minutes:
            return True
    return False


def _both_valid(one: Placed, other: Placed, days: int) -> bool:
    """Whether there is a day of the one's rule within its validity, and ``days`` later one within the other's."""
    first = max(one[0].valid_from.toordinal(), other[0].valid_from.toordinal() - days)
    last = min((one[0].valid_to or date.max).toordinal(), (other[0].valid_to or date.max).toordinal() - days)
    # Day 1 is a Monday, whose number is 0.
    return first + (one[1].weekday.number + 1 - first) % 7 <= last


def _minutes(wall: time) -> int:
    return wall.hour * 60 + wall.minute
