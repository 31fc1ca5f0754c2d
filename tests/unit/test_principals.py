from __future__ import annotations

import asyncio

import pytest

from actors.messages import Role
from api.principals import AWAY_S, STALE_MAX_S, TTL_S, PrincipalCache
from persistence.lookups import Access
from persistence.unit_of_work import DatabaseUnavailable


class UserTable:
    """The table of users. ``gate`` holds answers back."""

    def __init__(self, *user_ids: str) -> None:
        self.disabled = dict.fromkeys(user_ids, False)
        self.reads: list[list[str]] = []
        self.away = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def access(self, user_ids: list[str]) -> list[Access]:
        self.reads.append(user_ids)
        await self.gate.wait()
        if self.away:
            raise DatabaseUnavailable
        return [
            Access(
                user_id=user_id,
                role=Role.PATIENT,
                patient_id=None,
                doctor_id=None,
                disabled=self.disabled[user_id],
                session_generation=0,
                kept_session_id=None,
                wrapped_key=None,
                patient_keys={},
            )
            for user_id in user_ids
            if user_id in self.disabled
        ]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def cache_over(table: UserTable, clock: Clock) -> PrincipalCache:
    return PrincipalCache(lambda user_ids: table.access(user_ids), clock=clock)


async def test_a_user_is_read_once_in_a_while() -> None:
    table, clock = UserTable("a"), Clock()
    cache = cache_over(table, clock)
    for _ in range(5):
        assert await cache.get("a")
    assert table.reads == [["a"]]
    clock.now += TTL_S
    table.disabled["a"] = True
    access = await cache.get("a")
    assert access is not None
    assert access.disabled


async def test_who_is_changed_here_while_being_read_is_read_anew() -> None:
    table, clock = UserTable("a"), Clock()
    cache = cache_over(table, clock)
    table.gate.clear()
    before = asyncio.create_task(cache.get("a"))
    while not table.reads:
        await asyncio.sleep(0)
    cache.forget("a")
    after = asyncio.create_task(cache.get("a"))
    await asyncio.sleep(0)
    table.gate.set()

    assert await before
    assert await after
    assert await cache.get("a")
    assert table.reads == [["a"], ["a"]]


async def test_who_is_changed_here_is_read_anew() -> None:
    table, clock = UserTable("a"), Clock()
    cache = cache_over(table, clock)
    await cache.get("a")
    cache.forget("a")
    await cache.get("a")
    assert len(table.reads) == 2


async def test_who_is_not_there_is_remembered_too() -> None:
    table = UserTable()
    cache = cache_over(table, Clock())
    assert await cache.get("nobody") is None
    assert await cache.get("nobody") is None
    assert len(table.reads) == 1


async def test_those_who_wait_together_are_read_together() -> None:
    table = UserTable(*"abcdef")
    cache = cache_over(table, Clock())
    table.gate.clear()
    first = asyncio.create_task(cache.get("a"))
    while not table.reads:
        await asyncio.sleep(0)
    others = [asyncio.create_task(cache.get(user_id)) for user_id in "abcdefabcdef"]
    await asyncio.sleep(0)
    table.gate.set()
    assert await first
    assert all(await asyncio.gather(*others))
    assert table.reads == [["a"], list("bcdef")]


async def test_who_stops_waiting_does_not_take_the_answer_from_others() -> None:
    table = UserTable("a")
    cache = cache_over(table, Clock())
    table.gate.clear()
    impatient, patient = asyncio.create_task(cache.get("a")), asyncio.create_task(cache.get("a"))
    while not table.reads:
        await asyncio.sleep(0)
    impatient.cancel()
    await asyncio.gather(impatient, return_exceptions=True)
    table.gate.set()
    assert await patient


async def test_while_the_database_is_away_those_known_are_still_known() -> None:
    table, clock = UserTable("a", "b"), Clock()
    cache = cache_over(table, clock)
    await cache.get("a")
    table.away = True
    clock.now += TTL_S
    assert await cache.get("a")
    with pytest.raises(DatabaseUnavailable):
        await cache.get("b")
    reads = len(table.reads)
    assert await cache.get("a")
    assert len(table.reads) == reads, "nobody who can be answered asks a database that is away"
    clock.now += AWAY_S
    assert await cache.get("a")
    clock.now += STALE_MAX_S
    with pytest.raises(DatabaseUnavailable):
        await cache.get("a")


async def test_a_bug_while_reading_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    table = UserTable("a")
    cache = cache_over(table, Clock())

    async def broken(_: list[str]) -> list[Access]:
        raise LookupError

    monkeypatch.setattr(table, "access", broken)
    with pytest.raises(DatabaseUnavailable):
        await cache.get("a")
