"""Where the mail of a campaign arrives, by real SMTP: which message came when. Nothing else of it is kept."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from itertools import pairwise

from tests.mail import MailServer

_MESSAGE_ID = re.compile(rb"^message-id:\s*<([^@>]+)@", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A mail."""

    message_id: str
    """Of the message; a repeat has the same one."""
    at: float
    """On the monotonic clock."""


@dataclass(slots=True, kw_only=True)
class Postbox(MailServer):
    """A mail server that remembers little of what it takes."""

    arrivals: list[Arrival] = field(default_factory=list)

    def keep(self, content: bytes) -> None:
        """See ``MailServer``."""
        found = _MESSAGE_ID.search(content)
        self.arrivals.append(Arrival(message_id=found[1].decode() if found else "", at=time.monotonic()))

    def silence_s(self, first: float, end: float) -> float:
        """The longest time between these moments in which nothing came."""
        moments = [first, *(each.at for each in self.arrivals if first < each.at < end), end]
        return max(later - earlier for earlier, later in pairwise(moments))
