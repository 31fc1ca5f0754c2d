"""Preferences and messages as clients see them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field

from api.fields import Answer, Body, Change, Flag, Id, Locale, WallTime
from notifier.preferences import REMINDERS_MAX, Channel, Offset, Preferences, QuietHours, Topic
from persistence.repositories.notifications import Notification

State = Literal["waiting", "sent", "void", "late", "unwanted", "unreachable", "capped", "dead"]
STATES: Final = ("sent", "void", "late", "unwanted", "unreachable", "capped", "dead")


def _offset(text: str) -> str:
    try:
        Offset.parse(text)
    except ValueError as error:
        raise ValueError(f"This {error}.") from None
    return text


def _each_once(offsets: list[str]) -> list[str]:
    if len(set(offsets)) < len(offsets):
        raise ValueError("Each should be named once.")
    return offsets


AheadOf = Annotated[str, Field(max_length=10, examples=["P1D"]), AfterValidator(_offset)]


class Switches(Body):
    """Which channels are on."""

    email: Flag
    sms: Flag
    push: Flag


class ByTopic(Body):
    """What there is to hear of, and how."""

    booked: Switches
    moved: Switches
    cancelled: Switches
    displaced: Switches
    reminder: Switches


class Quiet(Body):
    """From when to when reminders, and news of the clinic's, wait by the clock of the user's ``timezone``.

    Perhaps over midnight. What would come too late then is said before them, or in them.
    """

    from_: WallTime = Field(alias="from", examples=["22:00"])
    to: WallTime = Field(examples=["07:00"])


class PreferencesBody(Change):
    """New preferences; what is left out stays as it is."""

    nullable = frozenset({"quiet_hours"})

    channels: ByTopic | None = None
    reminders: Annotated[
        list[AheadOf] | None,
        Field(
            max_length=REMINDERS_MAX,
            description="How long before a visit: days (by the clock there), hours or minutes, as ISO 8601 has it.",
            examples=[["P1D", "PT2H"]],
        ),
        AfterValidator(lambda offsets: offsets and _each_once(offsets)),
    ] = None
    quiet_hours: Quiet | None = None
    locale: Locale | None = None

    def applied_to(self, known: Preferences) -> Preferences:
        """The preferences, changed."""
        given = self.model_fields_set
        channels, reminders, quiet = known.channels, known.reminders, known.quiet
        if self.channels is not None:
            channels = {
                topic: frozenset(each for each in Channel if getattr(getattr(self.channels, topic.value), each.value))
                for topic in Topic
            }
        if self.reminders is not None:
            reminders = tuple(self.reminders)
        if "quiet_hours" in given:
            quiet = None
            if self.quiet_hours is not None and self.quiet_hours.from_ != self.quiet_hours.to:
                quiet = QuietHours(begin=self.quiet_hours.from_, end=self.quiet_hours.to)
        return Preferences(channels=channels, reminders=reminders, quiet=quiet)


class QuietAnswer(Answer):
    """See ``Quiet``."""

    from_: str = Field(alias="from", examples=["22:00"])
    to: str = Field(examples=["07:00"])


class PreferencesAnswer(Answer):
    """A user's preferences; those that hold for everybody, where nothing was chosen."""

    channels: dict[str, dict[str, bool]]
    reminders: list[str] = Field(examples=[["P1D", "PT2H"]])
    quiet_hours: QuietAnswer | None
    locale: str = Field(examples=["en"])


class NotificationAnswer(Answer):
    """A message, and what became of it."""

    id: Id
    kind: str = Field(examples=["reminder"])
    channel: str = Field(examples=["email"])
    appointment_id: Id | None
    ahead: str | None = Field(description="Of a reminder: how long before the visit.", examples=["P1D"])
    due_at: datetime
    state: State = Field(
        description="void: the visit was changed since; late: it would not have mattered any more;"
        " unreachable: there is no verified address; capped: too many that day; dead: refused for good,"
        " or tried for as long as it mattered."
    )
    ended_at: datetime | None


class NotificationPage(Answer):
    """Messages, the newest first."""

    items: list[NotificationAnswer]
    next_cursor: str | None


class DeliveryAnswer(NotificationAnswer):
    """The same, for administrators."""

    user_id: Id
    attempts: int
    next_at: datetime = Field(description="When it is tried, or tried again unless an attempt under way succeeds.")
    failure: str | None = Field(description="What the last attempt failed with.", examples=["SMTP 550"])


class DeliveryPage(Answer):
    """Messages, the newest first."""

    items: list[DeliveryAnswer]
    next_cursor: str | None


def notification_plain(row: Notification) -> dict[str, Any]:
    """A message in JSON."""
    return {
        "id": row.id,
        "kind": row.kind,
        "channel": row.channel,
        "appointment_id": row.appointment_id,
        "ahead": row.ahead or None,
        "due_at": row.due_at,
        "state": row.outcome or "waiting",
        "ended_at": row.ended_at,
    }


def delivery_plain(row: Notification) -> dict[str, Any]:
    """A message in JSON, for administrators."""
    next_at = max(row.next_at, row.leased_until or row.next_at)
    more = {"user_id": row.user_id, "attempts": row.attempts, "next_at": next_at, "failure": row.failure}
    return notification_plain(row) | more
