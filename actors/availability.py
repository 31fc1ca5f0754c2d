"""From weekly templates to the slots they open, right across changes of the clock.

Pure: no clock, no randomness, no waiting. The tables of time zones (``zoneinfo``) are all that is read from outside.

How a rule becomes slots:

- A rule applies to every day of its weekday within its template's validity, as days go in the template's zone.
- Slots follow the wall clock: slot *i* begins when the clock on the wall shows
  ``start + i * (slot_minutes + break_minutes)``. What the paper on the door says stays true when the clock changes.
- A slot lasts ``slot_minutes`` of real time, whatever the clock does meanwhile.
- A rule may run past midnight. Its slots still belong to the rule's day, so they are opened with it, even when the next
  day is past the template's validity or past the days asked for.
- Where the clock goes forward, a wall time that never comes is skipped as ``dst_gap``. The instant told is the one that
  RFC 5545, section 3.3.5, gives such a time: read with the offset from before the gap.
- Where the clock goes back, a wall time that comes twice is taken at its first occurrence (the same section). The
  repeated hour stays empty.
- A slot that would begin before an earlier one has ended is skipped as ``overlap``: because a gap swallowed the clock
  between two slots of one rule, or because two rules or templates of the doctor cover the same time. The one that
  begins first stays; of two that begin together, the one whose template, then rule, comes first.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

DST_GAP = "dst_gap"
OVERLAP = "overlap"

MINUTES_MAX = 24 * 60
SLOTS_PER_RULE_MAX = 288
RULES_PER_TEMPLATE_MAX = 100
TEMPLATES_MAX = 100
DAYS_MAX = 366
CANDIDATES_MAX = 100_000
ID_LENGTH_MAX = 200  # a clinic file that is being checked has names for ids
ZONE_LENGTH_MAX = 64

# Days outside cannot be reckoned safely: an instant near the ends of the calendar has no counterpart in every zone.
FIRST_DAY = date(1900, 1, 1)
LAST_DAY = date(9998, 12, 31)

_ZONE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*")
_OTHER_TABLES = ("posix/", "right/")


class Weekday(StrEnum):
    """A day of the week, by the three letters the contract gives it."""

    MON = "mon"
    TUE = "tue"
    WED = "wed"
    THU = "thu"
    FRI = "fri"
    SAT = "sat"
    SUN = "sun"

    @property
    def number(self) -> int:
        """As ``date.weekday()`` counts: Monday is 0."""
        return _WEEK.index(self)

    @classmethod
    def of(cls, day: date) -> "Weekday":
        return _WEEK[day.weekday()]


_WEEK = tuple(Weekday)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeeklyRule:
    """Slots of one weekday: "Tuesdays from 09:00, ten slots of 30 minutes".

    Raises:
        ValueError: a value past its limit; the message begins with the field's name. From the beginning of its first
            slot to the end of its last a rule covers at most 24 hours of the wall clock.
    """

    weekday: Weekday
    start: time
    slot_minutes: int
    slots: int
    break_minutes: int = 0
    service_id: str | None = None

    def __post_init__(self) -> None:
        _check(isinstance(self.weekday, Weekday), "weekday", "must be one of mon, tue, wed, thu, fri, sat, sun")
        _check(self.start.tzinfo is None, "start", "must be a time on the wall, without a zone")
        _check(self.start.second == 0 and self.start.microsecond == 0, "start", "must be a whole minute")
        _check(1 <= self.slot_minutes <= MINUTES_MAX, "slot_minutes", f"must be from 1 to {MINUTES_MAX}")
        _check(1 <= self.slots <= SLOTS_PER_RULE_MAX, "slots", f"must be from 1 to {SLOTS_PER_RULE_MAX}")
        _check(0 <= self.break_minutes <= MINUTES_MAX, "break_minutes", f"must be from 0 to {MINUTES_MAX}")
        _check(self.span_minutes <= MINUTES_MAX, "slots", "must end within 24 hours of the rule's start")
        _check(_is_id(self.service_id), "service_id", f"must have 1 to {ID_LENGTH_MAX} characters")

    @property
    def step_minutes(self) -> int:
        """From the beginning of one slot to the beginning of the next, on the wall clock."""
        return self.slot_minutes + self.break_minutes

    @property
    def span_minutes(self) -> int:
        """From the beginning of the first slot to the end of the last, on the wall clock."""
        return (self.slots - 1) * self.step_minutes + self.slot_minutes


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """Weekly rules that hold at one location from ``valid_from`` to ``valid_to``, both included; ``None`` is no end.

    Raises:
        ValueError: a value past its limit or a zone nobody knows; the message begins with the field's name.
    """

    id: str
    location_id: str
    timezone: str
    valid_from: date
    valid_to: date | None
    rules: tuple[WeeklyRule, ...]

    def __post_init__(self) -> None:
        _check(bool(self.id) and _is_id(self.id), "id", f"must have 1 to {ID_LENGTH_MAX} characters")
        _check(_is_id(self.location_id), "location_id", f"must have 1 to {ID_LENGTH_MAX} characters")
        zone(self.timezone)
        _check(self.valid_to is None or self.valid_from <= self.valid_to, "valid_to", "must not be before valid_from")
        _check(1 <= len(self.rules) <= RULES_PER_TEMPLATE_MAX, "rules", f"must be from 1 to {RULES_PER_TEMPLATE_MAX}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """A slot to open, ``[start, end)`` in UTC."""

    start: datetime
    end: datetime
    location_id: str
    service_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A slot that a rule asks for and the clock or another slot forbids. ``why`` is ``dst_gap`` or ``overlap``."""

    start: datetime
    why: str


def openings(
    templates: Iterable[Template], first_day: date, last_day: date
) -> tuple[tuple[Opening, ...], tuple[Skipped, ...]]:
    """What one doctor's templates open on the days from ``first_day`` to ``last_day``, both included, sorted by start.

    Every slot of every rule on every day that matches is either in the first tuple or in the second. No two openings
    overlap. What is open already is not known here: the calendar decides what is new.

    Raises:
        ValueError: the days or the templates are past their limit; the message begins with what is.
    """
    templates = tuple(templates)
    _check(len(templates) <= TEMPLATES_MAX, "templates", f"must be at most {TEMPLATES_MAX}")
    _check(FIRST_DAY <= first_day <= LAST_DAY, "first_day", f"must be from {FIRST_DAY} to {LAST_DAY}")
    _check(first_day <= last_day <= LAST_DAY, "last_day", f"must be from first_day to {LAST_DAY}")
    _check((last_day - first_day).days < DAYS_MAX, "last_day", f"must be within {DAYS_MAX} days of first_day")

    candidates: list[_Candidate] = []
    for template in templates:
        for candidate in _candidates(template, first_day, last_day):
            candidates.append(candidate)
            _check(len(candidates) <= CANDIDATES_MAX, "templates", f"must ask for at most {CANDIDATES_MAX} slots")
    # The sort is stable, so candidates that begin together stay in the order of templates and rules.
    candidates.sort(key=lambda candidate: candidate.start)

    opened: list[Opening] = []
    skipped: list[Skipped] = []
    for candidate in candidates:
        if not candidate.on_the_clock:
            skipped.append(Skipped(start=candidate.start, why=DST_GAP))
        elif opened and candidate.start < opened[-1].end:
            skipped.append(Skipped(start=candidate.start, why=OVERLAP))
        else:
            opened.append(
                Opening(
                    start=candidate.start,
                    end=candidate.start + timedelta(minutes=candidate.rule.slot_minutes),
                    location_id=candidate.location_id,
                    service_id=candidate.rule.service_id,
                )
            )
    return tuple(opened), tuple(skipped)


def zone(name: str) -> ZoneInfo:
    """The time zone of that IANA name.

    Raises:
        ValueError: there is none. Names that are neither UTC nor an area and a place, as EST and localtime, are none.
    """
    known = len(name) <= ZONE_LENGTH_MAX and _ZONE_NAME.fullmatch(name) and not name.startswith(_OTHER_TABLES)
    try:
        if known and (name == "UTC" or "/" in name):
            return ZoneInfo(name)
    except (LookupError, OSError, ValueError):
        pass  # What ZoneInfo raises depends on what it stumbles over: no file, a directory, a file that is no zone.
    raise ValueError(f"timezone: {name[:ZONE_LENGTH_MAX]!r} is not the name of a time zone, such as Europe/Berlin")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    start: datetime
    on_the_clock: bool
    rule: WeeklyRule
    location_id: str


def _candidates(template: Template, first_day: date, last_day: date) -> Iterator[_Candidate]:
    """Every slot the template asks for, those that never come on the clock too."""
    tz = zone(template.timezone)
    first = max(first_day, template.valid_from)
    last = last_day if template.valid_to is None else min(last_day, template.valid_to)
    for rule in template.rules:
        days_ahead = (rule.weekday.number - first.weekday()) % 7
        for offset in range(days_ahead, (last - first).days + 1, 7):
            midnight = datetime.combine(first + timedelta(days=offset), time())
            for index in range(rule.slots):
                minutes = rule.start.hour * 60 + rule.start.minute + index * rule.step_minutes
                wall = midnight + timedelta(minutes=minutes)
                # fold=0, the default, is the first occurrence in an overlap, the offset from before in a gap (PEP 495).
                start = wall.replace(tzinfo=tz).astimezone(UTC)
                yield _Candidate(
                    start=start,
                    on_the_clock=start.astimezone(tz).replace(tzinfo=None) == wall,
                    rule=rule,
                    location_id=template.location_id,
                )


def _is_id(value: str | None) -> bool:
    return value is None or 1 <= len(value) <= ID_LENGTH_MAX


def _check(holds: bool, field: str, otherwise: str) -> None:
    if not holds:
        raise ValueError(f"{field}: {otherwise}")
