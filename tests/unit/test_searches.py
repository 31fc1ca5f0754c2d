"""Searches from memory: told while they are right, and read anew when they may not be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import pytest

from api import searches
from api.feed.stream import ChangeStream, Confirmed
from api.searches import AGE_MAX_S, READ_AGAIN_A_SECOND, STALE_MAX_S, Found, Searches, key_of
from persistence.search_store import Answer, SearchStore
from persistence.unit_of_work import DatabaseUnavailable, UnitOfWork
from tests.given import NOW

LATER = NOW + timedelta(days=36_500)
"""After every reading."""
HOUSE = "house"
SLOTS = "slots of house"


class World:
    """A database with one number in it, what is known of it, and a clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0
        self.sequence = 7
        self.value = 1
        self.until = searches.FOREVER
        self.reads: list[str] = []
        self.away: set[str] = set()
        self.open = asyncio.Event()
        self.open.set()
        self.replica_behind = False
        self.replica_sequence: int | None = None
        # What the stream knows.
        self.reached_number = 7
        self.confirmed: Confirmed | None = None
        self.stream_away_at: float | None = None
        self.shared: dict[str, Answer] = {}
        self.confirm()

    def confirm(self) -> None:
        """The journal has been asked just now."""
        self.confirmed = Confirmed(at=self.now, instant=LATER + timedelta(seconds=self.now), position="0/0")

    def change(self, *, heard: bool = True) -> None:
        """The calendar's next change."""
        self.sequence += 1
        self.value += 1
        if heard:
            self.reached_number = self.sequence

    # As ``ChangeStream`` and ``SearchStore``.

    def reached(self, doctor_id: str) -> int:
        assert doctor_id == HOUSE
        return self.reached_number

    async def get(self, key: str) -> Answer | None:
        return self.shared.get(key)

    async def put(self, key: str, answer: Answer) -> None:
        self.shared[key] = answer


class Stream:
    """See ``ChangeStream``."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.reached = world.reached

    @property
    def confirmed(self) -> Confirmed | None:
        return self._world.confirmed

    @property
    def away_at(self) -> float | None:
        return self._world.stream_away_at


class Work:
    """A transaction in which one can only see where one is."""

    def __init__(self, world: World, where: str) -> None:
        self.world = world
        self.where = where
        self.connection = self

    async def __aenter__(self) -> Work:
        if self.where in self.world.away:
            raise DatabaseUnavailable(self.where)
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


async def read(work: UnitOfWork) -> Found:
    """The number."""
    here = cast(Work, work)
    world = here.world
    found = Found(content=world.value, sequence=world.sequence, until=world.until)
    world.reads.append(here.where)
    await world.open.wait()
    if here.where == "replica" and world.replica_sequence is not None:
        return replace(found, sequence=world.replica_sequence)
    return found


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(searches, "monotonic", lambda: world.now)
    monkeypatch.setattr(searches, "wall_clock", lambda: world.now)

    async def has_reached(work: Work, position: str) -> bool:
        assert position == "0/0"
        return not work.world.replica_behind

    monkeypatch.setattr(searches, "has_reached", has_reached)
    return world


def searching(world: World, *, replica: bool = False) -> Searches:
    begin = cast(Callable[[str], UnitOfWork], lambda where: Work(world, where))
    return Searches(
        stream=cast(ChangeStream, Stream(world)),
        store=cast(SearchStore, world),
        begin=lambda: begin("primary"),
        begin_on_replica=(lambda: begin("replica")) if replica else None,
    )


async def one(found: Searches) -> bytes:
    """The slots of one doctor."""
    return (await found.answer(SLOTS, read, doctor_id=HOUSE)).body


async def many(found: Searches) -> bytes:
    """The slots of many."""
    return (await found.answer("everybody", read)).body


async def test_one_doctors_answer_is_told_for_as_long_as_its_number_is_confirmed(world: World) -> None:
    found = searching(world)
    for _ in range(100):
        assert await one(found) == b"1"
        world.now += AGE_MAX_S / 2
        world.confirm()
    assert world.reads == ["primary"]


async def test_it_is_as_of_the_last_confirmation(world: World) -> None:
    found = searching(world)
    await one(found)
    world.now += 60
    world.confirm()
    answer = await found.answer(SLOTS, read, doctor_id=HOUSE)
    assert answer.as_of == LATER + timedelta(seconds=world.now)
    assert world.reads == ["primary"]


async def test_a_change_that_was_heard_ends_it(world: World) -> None:
    found = searching(world)
    await one(found)
    world.change()
    assert await one(found) == b"2"
    assert await one(found) == b"2"
    assert world.reads == ["primary"] * 2


async def test_without_a_confirmation_it_is_read_anew(world: World) -> None:
    found = searching(world)
    await one(found)
    world.change(heard=False)
    world.now += AGE_MAX_S
    assert await one(found) == b"1"
    world.now += 0.01
    assert await one(found) == b"2"


@pytest.mark.parametrize("ask", [one, many])
async def test_it_ends_when_time_changes_it(world: World, ask: Callable[[Searches], Any]) -> None:
    found = searching(world)
    world.until = world.now + 0.1
    await ask(found)
    world.value = 5
    assert await ask(found) == b"1"
    world.now += 0.1
    assert await ask(found) == b"5"


async def test_the_answer_about_many_is_told_for_a_while(world: World) -> None:
    found = searching(world)
    await many(found)
    world.change()
    world.now += AGE_MAX_S
    world.confirm()
    assert await many(found) == b"1"
    world.now += 0.01
    assert await many(found) == b"2"


@pytest.mark.parametrize("ask", [one, many])
async def test_what_was_done_here_shows_at_once(world: World, ask: Callable[[Searches], Any]) -> None:
    found = searching(world)
    await ask(found)
    world.change(heard=False)
    world.now += 0.001
    found.note(HOUSE)
    assert await ask(found) == b"2"
    assert await ask(found) == b"2"
    assert len(world.reads) == 2


@pytest.mark.parametrize("ask", [one, many])
async def test_a_read_that_began_before_is_not_what_was_done_since(
    world: World, ask: Callable[[Searches], Any]
) -> None:
    found = searching(world)
    world.open.clear()
    early = asyncio.create_task(ask(found))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    world.now += 0.001
    world.change(heard=False)
    found.note(HOUSE)
    late = asyncio.create_task(ask(found))
    for _ in range(5):
        await asyncio.sleep(0)
    world.open.set()
    assert (await early, await late) == (b"1", b"2")
    assert await ask(found) == b"2", "what was read later stays"


async def test_answers_about_many_are_not_read_at_every_booking(world: World) -> None:
    found = searching(world)
    for _ in range(1000):
        world.now += 0.002
        found.note(HOUSE)
        await many(found)
    # Two seconds, one of them saved up.
    assert len(world.reads) <= 3 * READ_AGAIN_A_SECOND + 3


async def test_all_who_wait_share_one_read_and_none_takes_it_from_the_others(world: World) -> None:
    found = searching(world)
    world.open.clear()
    waiting = [asyncio.create_task(one(found)) for _ in range(10)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    world.open.set()
    assert [await each for each in waiting[1:]] == [b"1"] * 9
    assert len(world.reads) == 1


async def test_who_asks_late_does_not_take_what_began_long_ago(world: World) -> None:
    found = searching(world)
    world.open.clear()
    early = asyncio.create_task(one(found))
    await asyncio.sleep(0)
    world.now += AGE_MAX_S + 0.01
    world.confirm()
    late = asyncio.create_task(one(found))
    for _ in range(5):
        await asyncio.sleep(0)
    world.open.set()
    await asyncio.gather(early, late)
    assert len(world.reads) == 2


@pytest.mark.parametrize("ask", [one, many])
async def test_while_the_database_is_away_what_is_known_is_told_as_of_then(
    world: World, ask: Callable[[Searches], Any]
) -> None:
    found = searching(world)
    world.away.add("primary")
    with pytest.raises(DatabaseUnavailable):
        await ask(found)
    world.away.clear()
    assert await ask(found) == b"1"
    world.away.add("primary")
    world.now += AGE_MAX_S + 1
    assert await ask(found) == b"1"
    world.now += 60
    world.stream_away_at = world.now
    assert await ask(found) == b"1"
    assert world.reads == ["primary"]
    world.away.clear()
    assert await ask(found) == b"1", "it is not tried while it is known to be away"
    world.now += 0.1
    world.value = 3
    found.note(HOUSE)
    assert await ask(found) == b"3", "whatever was done since: it is not away any more"
    world.away.add("primary")
    world.now += STALE_MAX_S
    with pytest.raises(DatabaseUnavailable):
        await ask(found)


async def test_what_others_have_read_is_told_if_its_number_is_right(world: World) -> None:
    await one(searching(world))
    assert await one(searching(world)) == b"1"
    assert world.reads == ["primary"]


async def test_what_others_have_read_is_not_told_without_its_number(world: World) -> None:
    """The mutant that serves a cache entry without its sequence check fails here."""
    await one(searching(world))
    world.change()
    assert await one(searching(world)) == b"2"
    assert world.shared[SLOTS].body == b"2"


async def test_what_others_have_read_is_not_told_while_nobody_knows_the_number(world: World) -> None:
    await one(searching(world))
    world.change(heard=False)
    world.now += AGE_MAX_S + 0.01
    assert await one(searching(world)) == b"2"


async def test_what_others_have_read_ends_with_the_confirmation_it_was_told_by(world: World) -> None:
    await one(searching(world))
    found = searching(world)
    world.now += AGE_MAX_S - 0.1
    await one(found)
    world.change(heard=False)
    world.now += 0.2
    assert await one(found) == b"2"


async def test_what_others_have_read_is_not_told_after_something_was_done_here(world: World) -> None:
    await one(searching(world))
    found = searching(world)
    world.change(heard=False)
    world.now += 0.001
    found.note(HOUSE)
    assert await one(found) == b"2"


@pytest.mark.parametrize("ask", [one, many])
async def test_a_replica_is_read_that_has_come_as_far(world: World, ask: Callable[[Searches], Any]) -> None:
    found = searching(world, replica=True)
    await ask(found)
    assert world.reads == ["replica"]
    world.shared.clear()
    world.now += AGE_MAX_S + 0.01
    world.confirm()
    world.replica_behind = True
    world.change()
    await ask(found)
    assert world.reads == ["replica", "primary"]


async def test_a_replica_that_is_behind_what_was_heard_is_not_believed(world: World) -> None:
    found = searching(world, replica=True)
    world.replica_sequence = 6
    await one(found)
    assert world.reads == ["replica", "primary"]


@pytest.mark.parametrize("ask", [one, many])
async def test_a_replica_that_is_away_or_may_lack_what_was_done_here_is_left_alone(
    world: World, ask: Callable[[Searches], Any]
) -> None:
    found = searching(world, replica=True)
    world.away.add("replica")
    await ask(found)
    world.away.clear()
    world.now += 0.001
    found.note(HOUSE)
    await ask(found)
    world.confirmed = None
    await ask(searching(world, replica=True))
    assert set(world.reads) == {"primary"}


async def test_no_more_is_known_than_there_is_room_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searches, "KNOWN_BYTES_MAX", 50_000)
    monkeypatch.setattr(searches, "DONE_MAX", 100)
    found = searching(world)
    for number in range(200):
        await found.answer(f"number {number}", read)
        found.note(str(number))
        world.now += 0.01
        world.confirm()
    assert len(found._known) <= 50
    assert len(found._done_at) <= 101


def test_keys_tell_apart_what_differs() -> None:
    assert key_of("a", ("b", "c")) != key_of("a", "b", "c")
    assert key_of("a,b", None) != key_of("a", "b", None)
    assert key_of(NOW) != key_of(NOW + timedelta(microseconds=1))


async def test_what_was_right_a_moment_ago_is_told_however_long_ago_it_was_read(world: World) -> None:
    found = searching(world)
    await one(found)
    for _ in range(2 * int(STALE_MAX_S)):
        world.now += 1
        world.confirm()
        assert await one(found) == b"1"
    assert world.reads == ["primary"]
    world.now += 1
    world.stream_away_at = world.now
    world.away.add("primary")
    assert await one(found) == b"1"


@pytest.mark.parametrize("ask", [one, many])
async def test_a_replica_that_says_nothing_is_not_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch, ask: Callable[[Searches], Any]
) -> None:
    asked = 0

    async def never(_connection: object, _position: str) -> bool:
        nonlocal asked
        asked += 1
        await asyncio.Event().wait()
        return True

    monkeypatch.setattr(searches, "REPLICA_TIMEOUT_S", 0.05)
    monkeypatch.setattr(searches, "has_reached", never)
    found = searching(world, replica=True)
    assert await ask(found) == b"1"
    for _ in range(3):
        world.change()
        world.now += 0.5
        world.confirm()
        found.note(HOUSE)
        world.now += 0.01
        world.confirm()
        assert await ask(found) == str(world.value).encode()
    assert (asked, set(world.reads)) == (1, {"primary"}), "it is left alone for a while"


@pytest.mark.parametrize("ask", [one, many])
async def test_a_database_that_is_slow_is_waited_for_not_talked_past(
    world: World, monkeypatch: pytest.MonkeyPatch, ask: Callable[[Searches], Any]
) -> None:
    monkeypatch.setattr(searches, "PATIENCE_S", 0.01)
    monkeypatch.setattr(searches, "READ_TIMEOUT_S", 0.1)
    found = searching(world)
    await ask(found)
    world.change()
    world.now += 600
    world.confirm()  # The journal answers: the database is there.
    world.open.clear()
    with pytest.raises(DatabaseUnavailable):
        await ask(found)
    world.confirmed = replace(cast(Confirmed, world.confirmed), at=world.now - 10)
    assert await ask(found) == b"1", "nobody can know better"


async def test_what_was_done_before_the_journal_was_found_away_is_not_talked_past(world: World) -> None:
    found = searching(world)
    await one(found)
    world.now += 1.5
    asked_at = world.now
    world.now += 1.5
    world.change(heard=False)
    found.note(HOUSE)
    world.now += 0.5
    world.stream_away_at = asked_at  # It was asked before, and was given up just now.
    assert await one(found) == b"2"


async def test_looking_uses_up_no_readings(world: World) -> None:
    found = searching(world)
    await many(found)

    async def look() -> bytes:
        known = found.known("everybody", None)
        return known.body if known is not None else await many(found)

    for _ in range(60):
        world.now += 1.5 / READ_AGAIN_A_SECOND
        world.confirm()
        world.change(heard=False)
        found.note(HOUSE)
        world.now += 0.001
        assert await asyncio.gather(*(look() for _ in range(30))) == [str(world.value).encode()] * 30
    assert len(world.reads) == 61
