"""What a user wants to hear of, by which channels, how long before a visit, and when not. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from enum import StrEnum
from typing import Any, Final, Self
from zoneinfo import ZoneInfo

REMINDERS_MAX: Final = 6
DAYS_BEFORE_MAX: Final = 60
_OFFSET: Final = re.compile(r"P(?:(?P<days>[1-9]\d?)D|T(?:(?P<hours>[1-9]\d{0,2})H|(?P<minutes>[1-9]\d{0,3})M))")


class Channel(StrEnum):
    """A way to reach someone."""

    EMAIL = "email"
    SMS = "sms"
    PUSH = "push"


class Topic(StrEnum):
    """What there is to hear of a visit; each can be switched by channel."""

    BOOKED = "booked"
    MOVED = "moved"
    CANCELLED = "cancelled"
    DISPLACED = "displaced"
    REMINDER = "reminder"


@dataclass(frozen=True, slots=True, kw_only=True)
class Offset:
    """How long before a visit: whole days by the clock on the wall there, or a time that passes."""

    days: int = 0
    elapsed: timedelta = timedelta(0)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Of ``P2D``, ``PT3H`` or ``PT45M`` (ISO 8601).

        Raises:
            ValueError: it is none of these, or longer than ``DAYS_BEFORE_MAX`` days.
        """
        found = _OFFSET.fullmatch(text)
        if found is None:
            raise ValueError("should be days, hours or minutes, as P1D, PT2H or PT30M")
        days = int(found["days"] or 0)
        elapsed = timedelta(hours=int(found["hours"] or 0), minutes=int(found["minutes"] or 0))
        if days > DAYS_BEFORE_MAX or elapsed > timedelta(days=DAYS_BEFORE_MAX):
            raise ValueError(f"should be at most {DAYS_BEFORE_MAX} days")
        return cls(days=days, elapsed=elapsed)

    def before(self, start: datetime, timezone: str) -> datetime:
        """The instant so long before ``start``: ``P1D`` is the day before at the same time on the clock of the place.

        Where that time does not exist on that day, it is as much later as the clock was put forward (PEP 495).
        """
        if self.days:
            local = start.astimezone(ZoneInfo(timezone))
            return (local.replace(fold=0) - timedelta(days=self.days)).astimezone(UTC)
        return start - self.elapsed


@dataclass(frozen=True, slots=True, kw_only=True)
class QuietHours:
    """From when to when somebody is not to be disturbed, by their own clock; perhaps over midnight."""

    begin: time
    end: time

    def around(self, instant: datetime, timezone: str) -> tuple[datetime, datetime] | None:
        """When the quiet hours that this instant is in began, and when they end; ``None``: it is in none."""
        clock = ZoneInfo(timezone)
        local = instant.astimezone(clock)
        over_midnight = self.end <= self.begin
        for days in (-1, 0):
            day = local.date() + timedelta(days=days)
            last = day + timedelta(days=1) if over_midnight else day
            begin = datetime.combine(day, self.begin, clock).astimezone(UTC)
            # Where a time exists twice, they end with the second one.
            ends = datetime.combine(last, self.end, clock)
            end = max(ends.replace(fold=fold).astimezone(UTC) for fold in (0, 1))
            if begin <= instant < end:
                return begin, end
        return None


def _by_default() -> dict[Topic, frozenset[Channel]]:
    everywhere = frozenset(Channel)
    no_sms = everywhere - {Channel.SMS}
    return {
        Topic.BOOKED: no_sms,
        Topic.MOVED: no_sms,
        Topic.CANCELLED: everywhere,
        Topic.DISPLACED: everywhere,
        Topic.REMINDER: everywhere,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Preferences:
    """What one user has chosen, or what holds for whoever has not chosen."""

    channels: Mapping[Topic, frozenset[Channel]] = field(default_factory=_by_default)
    reminders: tuple[str, ...] = ("P1D", "PT2H")
    """Offsets, as ``Offset.parse`` reads them."""
    quiet: QuietHours | None = QuietHours(begin=time(22), end=time(7))

    def wants(self, topic: Topic, channel: Channel) -> bool:
        """Whether they want to hear of it so."""
        return channel in self.channels.get(topic, frozenset())

    def without(self, topic: Topic, channel: Channel) -> Preferences:
        """The same, but for that."""
        channels = {**self.channels, topic: self.channels.get(topic, frozenset()) - {channel}}
        return Preferences(channels=channels, reminders=self.reminders, quiet=self.quiet)

    def plain(self) -> dict[str, Any]:
        """As JSON data."""
        quiet = None
        if self.quiet is not None:
            quiet = {"from": f"{self.quiet.begin:%H:%M}", "to": f"{self.quiet.end:%H:%M}"}
        channels = {topic.value: {each.value: self.wants(topic, each) for each in Channel} for topic in Topic}
        return {"channels": channels, "reminders": list(self.reminders), "quiet_hours": quiet}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any] | None) -> Preferences:
        """Of what ``plain`` made; of nothing, those of whoever has not chosen.

        What a newer release has written of topics and channels that this one does not know is left aside.
        """
        if plain is None:
            return cls()
        channels = {
            Topic(topic): frozenset(
                Channel(channel) for channel, wanted in by_channel.items() if wanted and channel in set(Channel)
            )
            for topic, by_channel in plain["channels"].items()
            if topic in set(Topic)
        }
        quiet = plain["quiet_hours"]
        if quiet is not None:
            quiet = QuietHours(begin=time.fromisoformat(quiet["from"]), end=time.fromisoformat(quiet["to"]))
        return cls(channels=channels, reminders=tuple(plain["reminders"]), quiet=quiet)
