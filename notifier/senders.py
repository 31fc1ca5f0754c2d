"""What sends on a channel, and how it may fail."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from notifier.contents import Content
from notifier.rendering import Words


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A message in words."""

    content: Content
    words: Words = field(repr=False)
    unsubscribe_url: str | None = field(repr=False)


class Refused(Exception):
    """It was refused for good: asking again would change nothing. The text is a code, without an address."""


class NoAddress(Exception):
    """There is nowhere to send it to."""


class Failed(Exception):
    """It failed in passing, or nobody knows whether it did. The text is a code, without an address.

    ``away``: not this message was refused, nobody answers. ``retry_after_s``: as the provider asked.
    """

    def __init__(self, code: str, *, away: bool = False, retry_after_s: float | None = None) -> None:
        super().__init__(code)
        self.away = away
        self.retry_after_s = retry_after_s


class Sender(Protocol):
    """Sends on one channel; called by many tasks at once."""

    async def send(self, message: Message) -> None:
        """Returns when the provider has it.

        Raises:
            Refused, Failed, NoAddress
        """
        ...

    async def close(self) -> None:
        """Let connections go."""
        ...
