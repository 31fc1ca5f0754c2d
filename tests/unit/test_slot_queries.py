"""Queries that were understood before: for as long as they mean the same."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from api.directory.location_directory import LocationDirectory
from api.scheduling.slot_queries import MIDNIGHTS_S, Queries, stamp_of
from api.searches import Searches

QUERY = b"doctor_id=house"
MIDNIGHT = 2_000_000 * MIDNIGHTS_S
"""Somewhere."""


class Directory:
    """See ``LocationDirectory``."""

    def __init__(self) -> None:
        self.generation = 0
        self.digest = "d"

    async def locations(self) -> Any:
        return SimpleNamespace(value=SimpleNamespace(digest=self.digest))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Just before midnight somewhere."""
    clock = SimpleNamespace(now=MIDNIGHT - 0.001)
    monkeypatch.setattr("api.scheduling.slot_queries.time.time", lambda: clock.now)
    return clock


async def test_a_query_means_something_else_on_another_day_and_in_another_directory(clock: SimpleNamespace) -> None:
    directory = Directory()
    searches = SimpleNamespace(known=lambda key, doctor_id: (key, doctor_id))
    queries = Queries(cast(Searches, searches), cast(LocationDirectory, directory))

    async def understood() -> object:
        return await queries.answer(QUERY)

    def learn(key: str, at: float) -> None:
        queries.learn(QUERY, key, "house", stamp_of(at, directory.digest, directory.generation))

    assert await understood() is None
    learn("before", clock.now)
    assert await understood() == ("before", "house")
    clock.now = MIDNIGHT
    assert await understood() is None
    # It was asked before midnight, and is learnt after it.
    learn("before", MIDNIGHT - 0.001)
    assert await understood() is None
    learn("after", clock.now)
    assert await understood() == ("after", "house")
    directory.digest = "e"
    assert await understood() is None
    learn("elsewhere", clock.now)
    directory.generation += 1
    assert await understood() is None
