from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisAway
from structlog.testing import capture_logs

from api import limits
from api.limits import Limit, Limits

TEN = Limit(name="test", count=10, window_s=60)


class Clock:
    def __init__(self) -> None:
        self.now = 600_000.0

    def __call__(self) -> float:
        return self.now


class SharedCounts:
    """What of Redis the limits use, in memory; ``away`` makes it fail."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.away = False
        self.sent = 0

    def pipeline(self, *, transaction: bool) -> SharedCounts:
        assert not transaction
        self._commands: list[tuple[str, int]] = []
        return self

    def incrby(self, name: str, number: int) -> None:
        self._commands.append((name, number))

    def expire(self, name: str, seconds: int) -> None:
        assert seconds > 0
        assert self._commands[-1][0] == name

    async def execute(self) -> list[Any]:
        if self.away:
            raise RedisAway
        answers: list[Any] = []
        for name, number in self._commands:
            self.sent += 1
            self.counts[name] = self.counts.get(name, 0) + number
            answers += [self.counts[name], True]
        return answers


def process(shared: SharedCounts, clock: Clock) -> Limits:
    return Limits(cast(Redis, shared), clock=clock)


def test_so_many_are_allowed_and_the_next_is_told_when_to_come_back() -> None:
    clock = Clock()
    counted = Limits(None, clock=clock)
    assert [counted.take(TEN, "a") for _ in range(10)] == [0] * 10
    wait_s = counted.take(TEN, "a")
    assert 0 < wait_s <= 120
    assert counted.take(TEN, "b") == 0
    clock.now += wait_s + 0.001
    assert counted.take(TEN, "a") == 0


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_so_many_are_allowed_wherever_the_border_of_two_windows_falls(count: int) -> None:
    limit = Limit(name="test", count=count, window_s=60)
    for before in range(count + 1):
        clock = Clock()
        counted = Limits(None, clock=clock)
        clock.now += 59.9
        allowed = sum(counted.take(limit, "a") == 0 for _ in range(before))
        clock.now += 0.2
        allowed += sum(counted.take(limit, "a") == 0 for _ in range(2 * count))
        assert allowed == count, before


def test_a_limit_of_zero_is_none() -> None:
    counted = Limits(None, clock=Clock())
    assert not any(counted.take(Limit(name="none", count=0, window_s=60), "a") for _ in range(1000))


@given(st.sampled_from([1, 2, 10]), st.lists(st.tuples(st.floats(0, 30), st.integers(0, 12)), min_size=1, max_size=100))
def test_waiting_as_told_is_enough_and_no_longer_than_needed(count: int, pauses: list[tuple[float, int]]) -> None:
    limit = Limit(name="test", count=count, window_s=60)
    clock = Clock()
    counted = Limits(None, clock=clock)
    for pause, others in pauses:
        clock.now += pause
        for _ in range(others):  # Those that other processes let in come on top.
            counted.add(limit, "a")
        wait_s = counted.take(limit, "a")
        if wait_s:
            assert wait_s <= 120
            if wait_s > 1:
                clock.now += wait_s - 0.001
                assert counted.wait_s(limit, "a") > 0
                clock.now -= wait_s - 0.001
            clock.now += wait_s + 0.001
            assert counted.take(limit, "a") == 0


async def test_processes_share_their_counts() -> None:
    shared, clock = SharedCounts(), Clock()
    one, two = process(shared, clock), process(shared, clock)
    for _ in range(6):
        assert one.take(TEN, "a") == 0
        assert two.take(TEN, "a") == 0
    await one.share()
    await two.share()
    assert two.take(TEN, "a") > 0
    one.add(TEN, "a")
    await one.share()
    assert one.take(TEN, "a") > 0


async def test_small_counts_are_not_sent() -> None:
    shared, clock = SharedCounts(), Clock()
    one = process(shared, clock)
    many = Limit(name="many", count=1200, window_s=60)
    for number in range(1000):
        one.take(many, str(number))
    await one.share()
    assert shared.sent == 0


async def test_without_redis_each_process_goes_on_by_itself_and_tells_later() -> None:
    shared, clock = SharedCounts(), Clock()
    one = process(shared, clock)
    shared.away = True
    for _ in range(10):
        assert one.take(TEN, "a") == 0
        await one.share()
    assert one.take(TEN, "a") > 0
    shared.away = False
    await one.share()
    assert sum(shared.counts.values()) == 10


async def test_it_is_told_when_counts_are_shared_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(SharedCounts):
        async def execute(self) -> list[Any]:
            raise ZeroDivisionError

    monkeypatch.setattr(limits, "SYNC_INTERVAL_S", 0)
    ours = process(Broken(), Clock())
    ours.take(TEN, "anna")
    with capture_logs() as logs:
        ours.start()
        async with asyncio.timeout(10):
            while not logs:
                await asyncio.sleep(0)
    await ours.stop()

    assert [(entry["event"], type(entry["exc_info"])) for entry in logs] == [("task_died", ZeroDivisionError)]


def test_no_more_is_remembered_than_there_is_room_for() -> None:
    counted = Limits(None, clock=Clock())
    for number in range(limits.WHO_MAX + 10):
        counted.add(TEN, str(number))
    assert len(counted._counts) == limits.WHO_MAX
