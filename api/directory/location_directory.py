"""Locations, services and specialties as this process last read them, at most ``MAX_AGE_S`` ago.

They are few, hardly ever change and are needed by nearly every answer: the time zone of a slot is that of its location.
What this process writes itself it sees at once (``forget``). While the database is away, what is known is still served.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Annotated, Final, Generic, TypeVar

from fastapi import Depends, Request

from persistence.repositories.directory import Directory, Location, Service
from persistence.unit_of_work import DatabaseUnavailable, UnitOfWork

MAX_AGE_S: Final = 1.0
READ_TIMEOUT_S: Final = 3.0
AWAY_S: Final = 1.0
"""After a failed read the database counts as away for so long: nobody waits for it who can be answered without it."""
PATIENCE_S: Final = 0.2
"""Who can be told something older waits no longer than that for something new."""
LOCATIONS_MAX: Final = 10_000
SERVICES_MAX: Final = 10_000

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Known(Generic[T]):
    """Something as it was at an instant."""

    value: T
    as_of: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Locations:
    """Every location by its id, in the order in which they were made, and the ids of those in each time zone."""

    by_id: dict[str, Location]
    by_timezone: Mapping[str, tuple[str, ...]]
    digest: str
    """Another one when a location is there that was not, or has another time zone."""


class Cached(Generic[T]):
    """What ``load`` gives, asked anew when it is older than ``MAX_AGE_S``, once for all who wait for it."""

    def __init__(self, load: Callable[[], Awaitable[T]], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._load = load
        self._clock = clock
        self._known: Known[T] | None = None
        self._loaded_at = 0.0
        self._away_until = float("-inf")
        self._loading: asyncio.Task[Known[T]] | None = None

    async def get(self) -> Known[T]:
        """What is known, at most ``MAX_AGE_S`` old; older only while the database is away or does not answer at once.

        Raises:
            DatabaseUnavailable: nothing is known yet.
        """
        if self._known is not None:
            now = self._clock()
            if now - self._loaded_at <= MAX_AGE_S or now < self._away_until:
                return self._known
        if self._loading is None:
            self._loading = asyncio.create_task(self._load_now(), name="directory cache")
        loading = self._loading
        if self._known is not None:  # Who can be told something does not wait for a database that says nothing.
            await asyncio.wait({loading}, timeout=PATIENCE_S)
            if not loading.done():
                return self._known
        try:
            # Shielded: one caller that goes away must not take the answer from the others.
            return await asyncio.shield(loading)
        except DatabaseUnavailable:
            if self._known is None:
                raise
            return self._known

    def forget(self) -> None:
        """Read anew before the next answer: what is known, or is being read now, may have been overtaken."""
        self._loaded_at = self._away_until = float("-inf")
        self._loading = None

    async def _load_now(self) -> Known[T]:
        asked_at, as_of = self._clock(), datetime.now(UTC)
        loading = asyncio.current_task()
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                known = Known(value=await self._load(), as_of=as_of)
            if self._loading is loading:
                self._known, self._loaded_at = known, asked_at
            return known
        except (DatabaseUnavailable, TimeoutError):
            if self._loading is loading:
                self._away_until = self._clock() + AWAY_S
            raise DatabaseUnavailable("the directory cannot be read") from None
        finally:
            if self._loading is loading:
                self._loading = None


class LocationDirectory:
    """Looks up locations, services and specialties without asking the database each time."""

    def __init__(self, begin: Callable[[], UnitOfWork], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._begin = begin
        self.generation = 0
        """How often the directory has been changed here."""
        self._locations = Cached(self._load_locations, clock=clock)
        self._services = Cached(self._load_services, clock=clock)
        self._specialties = Cached(self._load_specialties, clock=clock)

    async def timezone_of(self, location_id: str) -> str:
        """The time zone of a location that exists.

        Raises:
            KeyError: there is no such location.
        """
        by_id = (await self._locations.get()).value.by_id
        if location_id not in by_id:  # Made by another process a moment ago.
            self._locations.forget()
            by_id = (await self._locations.get()).value.by_id
        return by_id[location_id].timezone

    async def timezones_of(self, location_ids: Collection[str], work: UnitOfWork) -> dict[str, str]:
        """The time zones of locations that exist; those that are not known yet are read by ``work``."""
        by_id = (await self._locations.get()).value.by_id
        unknown = [each for each in location_ids if each not in by_id]  # Made by another process a moment ago.
        if unknown:
            directory = Directory(work.connection, work.vault)
            by_id = by_id | {each: place for each in unknown if (place := await directory.location(each)) is not None}
        return {each: by_id[each].timezone for each in location_ids}

    async def locations(self) -> Known[Locations]:
        """Every location."""
        return await self._locations.get()

    async def services(self) -> Known[Mapping[str, Service]]:
        """Every service by its id, in the order in which they were made."""
        return await self._services.get()

    async def specialties(self) -> Known[tuple[str, ...]]:
        """Every specialty that some doctor has, sorted."""
        return await self._specialties.get()

    def forget(self) -> None:
        """Read everything anew before the next answer; to be called after each change to the directory."""
        self.generation += 1
        for cached in (self._locations, self._services, self._specialties):
            cached.forget()

    async def _load_locations(self) -> Locations:
        async with self._begin() as work:
            found = await Directory(work.connection, work.vault).locations(limit=LOCATIONS_MAX)
        by_timezone: dict[str, list[str]] = {}
        for location in found:
            by_timezone.setdefault(location.timezone, []).append(location.id)
        return Locations(
            by_id={location.id: location for location in found},
            by_timezone={timezone: tuple(ids) for timezone, ids in by_timezone.items()},
            digest=blake2b(repr(by_timezone).encode(), digest_size=8).hexdigest(),
        )

    async def _load_services(self) -> Mapping[str, Service]:
        async with self._begin() as work:
            found = await Directory(work.connection, work.vault).services(limit=SERVICES_MAX)
        return {service.id: service for service in found}

    async def _load_specialties(self) -> tuple[str, ...]:
        async with self._begin() as work:
            return tuple(await Directory(work.connection, work.vault).specialties())


async def location_directory_of(request: Request) -> LocationDirectory:
    """The one of this process."""
    directory: LocationDirectory = request.app.state.location_directory
    return directory


TheLocationDirectory = Annotated[LocationDirectory, Depends(location_directory_of)]
