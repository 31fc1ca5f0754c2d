"""What the feeds of a process work with, and how many of them are open."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from api.feed.calendars import Calendars
from cluster.bootstrap import Services


class TooMany(Exception):
    """There are as many feeds open as may be; says whose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feeds:
    """One for each process."""

    services: Services
    calendars: Calendars
    connections: FeedConnections


class FeedConnections:
    """How many feeds are open: all, and of each user."""

    def __init__(self, *, most: int, most_per_user: int) -> None:
        self._most = most
        self._most_per_user = most_per_user
        self._by_user: Counter[str] = Counter()
        self.open = 0

    @asynccontextmanager
    async def one_more(self, user_id: str) -> AsyncIterator[None]:
        """Count it for as long as the block lasts.

        Raises:
            TooMany
        """
        if self.open >= self._most:
            raise TooMany("too many feeds are open here")
        if 0 < self._most_per_user <= self._by_user[user_id]:
            raise TooMany("you have too many feeds open")
        self.open += 1
        self._by_user[user_id] += 1
        try:
            yield
        finally:
            self.open -= 1
            self._by_user[user_id] -= 1
            if not self._by_user[user_id]:
                del self._by_user[user_id]
