from __future__ import annotations

import asyncio

import pytest

from api.directory.location_directory import MAX_AGE_S, Cached
from persistence.unit_of_work import DatabaseUnavailable


class Source:
    """Something that is read, at a time that stands still until it is moved."""

    def __init__(self) -> None:
        self.value = 1
        self.reads = 0
        self.now = 100.0
        self.away = False
        self.open = asyncio.Event()
        self.open.set()

    async def load(self) -> int:
        self.reads += 1
        value = self.value
        await self.open.wait()
        if self.away:
            raise DatabaseUnavailable("away")
        return value

    def cached(self) -> Cached[int]:
        return Cached(self.load, clock=lambda: self.now)


async def test_what_is_young_enough_is_not_read_again() -> None:
    source = Source()
    cached = source.cached()
    first = await cached.get()
    source.value = 2
    source.now += MAX_AGE_S
    assert (await cached.get()) is first
    source.now += 0.01
    assert (await cached.get()).value == 2
    assert source.reads == 2


async def test_all_who_wait_share_one_read() -> None:
    source = Source()
    source.open.clear()
    cached = source.cached()
    waiting = [asyncio.create_task(cached.get()) for _ in range(10)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    source.open.set()
    assert [(await each).value for each in waiting[1:]] == [1] * 9
    assert source.reads == 1


async def test_what_was_being_read_when_it_changed_is_not_kept() -> None:
    source = Source()
    source.open.clear()
    cached = source.cached()
    early = asyncio.create_task(cached.get())
    while not source.reads:
        await asyncio.sleep(0)
    source.value = 2
    cached.forget()
    late = asyncio.create_task(cached.get())
    source.open.set()
    assert ((await early).value, (await late).value) == (1, 2)
    assert (await cached.get()).value == 2


async def test_while_the_database_is_away_what_is_known_is_served() -> None:
    source = Source()
    cached = source.cached()
    known = await cached.get()
    source.away = True
    source.now += 60
    assert await cached.get() is known
    cached.forget()
    assert await cached.get() is known
    with pytest.raises(DatabaseUnavailable):
        await source.cached().get()


async def test_who_can_be_told_something_does_not_wait_for_a_database_that_says_nothing() -> None:
    source = Source()
    cached = source.cached()
    await cached.get()
    source.now += MAX_AGE_S + 1
    source.value = 2
    source.open.clear()
    async with asyncio.timeout(2):
        assert [(await cached.get()).value for _ in range(3)] == [1, 1, 1]
    source.open.set()
    while (await cached.get()).value != 2:
        await asyncio.sleep(0)
    assert source.reads == 2


async def test_a_read_that_was_overtaken_does_not_make_the_database_count_as_away() -> None:
    source = Source()
    cached = source.cached()
    await cached.get()
    source.now += MAX_AGE_S + 1
    source.open.clear()
    source.away = True
    failing = asyncio.create_task(cached.get())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    cached.forget()  # Something was changed here meanwhile.
    source.open.set()
    await failing
    source.away, source.value = False, 2
    assert (await cached.get()).value == 2
