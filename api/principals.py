"""What has to be known of a user at every request, remembered for two seconds.

While the database is away a user who was known a short while ago is still known, so that commands can be taken and
answered as pending.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final

from api.gathering import Gathering
from persistence.lookups import Access
from persistence.unit_of_work import DatabaseUnavailable

TTL_S: Final = 2.0
STALE_MAX_S: Final = 900.0
AWAY_S: Final = 1.0
"""After a failed read the database counts as away for so long: nobody waits for it who can be answered without it."""
REMEMBERED_MAX: Final = 50_000


class PrincipalCache:
    """``get`` gives what is known of a user; at most ``TTL_S`` old unless the database is away."""

    def __init__(
        self, read: Callable[[list[str]], Awaitable[Iterable[Access]]], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._known: OrderedDict[str, tuple[float, Access | None]] = OrderedDict()
        self._away_until = float("-inf")

        async def by_user(user_ids: list[str]) -> Mapping[str, Access]:
            try:
                return {access.user_id: access for access in await read(user_ids)}
            except (DatabaseUnavailable, asyncio.CancelledError):  # Cancelled: it took too long.
                self._away_until = self._clock() + AWAY_S
                raise

        self._gathering = Gathering(by_user, self._remember, name="principals", clock=clock)

    async def get(self, user_id: str) -> Access | None:
        """What is known of a user; ``None``: there is none, or it was erased.

        Raises:
            DatabaseUnavailable: it cannot be read, and was not known a short while ago.
        """
        now = self._clock()
        known = self._known.get(user_id)
        if known is not None:
            age_s = now - known[0]
            if age_s < TTL_S or (now < self._away_until and age_s < STALE_MAX_S):
                return known[1]
        try:
            return await self._gathering.ask(user_id)
        except DatabaseUnavailable:
            if known is not None and self._clock() - known[0] < STALE_MAX_S:
                return known[1]
            raise

    def forget(self, user_id: str) -> None:
        """Read the user anew next time: it was changed here."""
        self._known.pop(user_id, None)
        self._gathering.forget(user_id)

    async def close(self) -> None:
        """Stop reading."""
        await self._gathering.close()

    def _remember(self, user_id: str, access: Access | None, at: float) -> None:
        self._known[user_id] = (at, access)
        self._known.move_to_end(user_id)
        if len(self._known) > REMEMBERED_MAX:
            self._known.popitem(last=False)
