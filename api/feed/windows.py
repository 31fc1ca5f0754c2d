"""The days of a feed, as the clocks of each location have them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime

from api.scheduling.slots import days_in

Bounds = tuple[datetime, datetime]


class FeedWindow:
    """The days from a first to a last one, both included. By default today, when the feed is opened, and 14 more."""

    __slots__ = ("_bounds", "_first_day", "_last_day", "_opened_at")

    def __init__(self, first_day: date | None, last_day: date | None, opened_at: datetime) -> None:
        self._first_day = first_day
        self._last_day = last_day
        self._opened_at = opened_at
        self._bounds: dict[str, Bounds] = {}

    def bounds(self, timezone: str) -> Bounds:
        """The instants ``[start, end)`` of these days in a time zone; empty where the last day is before the first."""
        known = self._bounds.get(timezone)
        if known is None:
            known = self._bounds[timezone] = days_in(timezone, self._first_day, self._last_day, self._opened_at)
        return known

    def key(self, timezones: Iterable[str]) -> tuple[Bounds, ...]:
        """The same for all feeds that show the same of slots in these time zones."""
        return tuple(map(self.bounds, timezones))

    def shows(self, start: datetime, timezone: str) -> bool:
        """Whether a slot that begins then, there, is of these days."""
        first, end = self.bounds(timezone)
        return first <= start < end
