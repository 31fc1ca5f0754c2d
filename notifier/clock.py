"""The time that all notifiers go by is the database's: the clocks of the nodes they run on differ, and step."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import Protocol

from sqlalchemy import func, select

from persistence.unit_of_work import UnitOfWork


class Clock(Protocol):
    """Tells the time once it was read."""

    async def read(self, work: UnitOfWork) -> datetime:
        """What time it is.

        Raises:
            DatabaseUnavailable
        """
        ...

    def __call__(self) -> datetime:
        """What time it must be by now."""
        ...


class DatabaseClock:
    """``Clock`` of the database. Between two readings it goes on by itself."""

    def __init__(self) -> None:
        self._read: tuple[datetime, float] | None = None

    async def read(self, work: UnitOfWork) -> datetime:
        """See ``Clock``."""
        now: datetime = (await work.connection.execute(select(func.clock_timestamp()))).scalar_one()
        self._read = (now, time.monotonic())
        return now

    def __call__(self) -> datetime:
        """See ``Clock``."""
        assert self._read is not None, "the time was never read"
        then, read_at = self._read
        return then + timedelta(seconds=time.monotonic() - read_at)
