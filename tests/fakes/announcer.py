"""An announcer that remembers what it was told to say."""

from __future__ import annotations

from collections.abc import Sequence

from actors.journal import EventRow


class MemoryAnnouncer:
    """``actors.journal.Announcer`` to nobody."""

    def __init__(self) -> None:
        self.announced: list[EventRow] = []
        self.closed = False

    def announce(self, events: Sequence[EventRow]) -> None:
        """See ``Announcer.announce``."""
        self.announced.extend(events)

    async def close(self) -> None:
        """See ``Announcer.close``."""
        self.closed = True
