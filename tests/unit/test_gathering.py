"""One query for all who ask meanwhile: what they get, whatever becomes of the query or of the others."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from api import gathering
from api.gathering import Gathering
from persistence.unit_of_work import DatabaseUnavailable


class Table:
    """Letters in capitals. It answers when it is let."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.remembered: list[tuple[str, str | None]] = []
        self.open = asyncio.Event()
        self.failure: Exception | None = None
        self.gathering = Gathering(
            self.read, lambda key, value, _: self.remembered.append((key, value)), name="letters"
        )

    async def read(self, keys: list[str]) -> Mapping[str, str]:
        self.asked.append(keys)
        await self.open.wait()
        if self.failure is not None:
            raise self.failure
        return {key: key.upper() for key in keys if key.isalpha()}

    async def is_asked(self) -> None:
        """Wait until a query is under way."""
        before = len(self.asked)
        while len(self.asked) == before:
            await asyncio.sleep(0)


@pytest.fixture
def table() -> Table:
    return Table()


async def test_all_who_ask_meanwhile_are_told_by_one_query(table: Table) -> None:
    async with asyncio.TaskGroup() as group:
        first = group.create_task(table.gathering.ask("a"))
        await table.is_asked()
        rest = [group.create_task(table.gathering.ask(key)) for key in "abcabc1"]
        await asyncio.sleep(0)
        table.open.set()
    assert table.asked == [["a"], ["b", "c", "1"]]
    assert [first.result(), *(each.result() for each in rest)] == ["A", "A", "B", "C", "A", "B", "C", None]
    assert table.remembered == [("a", "A"), ("b", "B"), ("c", "C"), ("1", None)]


async def test_who_goes_away_takes_nothing_from_the_others(table: Table) -> None:
    leaving = asyncio.create_task(table.gathering.ask("a"))
    staying = asyncio.create_task(table.gathering.ask("a"))
    await table.is_asked()
    leaving.cancel()
    table.open.set()
    assert await staying == "A"
    assert table.asked == [["a"]]


async def test_what_was_changed_meanwhile_is_asked_anew_and_not_remembered(table: Table) -> None:
    before = asyncio.create_task(table.gathering.ask("a"))
    await table.is_asked()
    table.gathering.forget("a")
    after = asyncio.create_task(table.gathering.ask("a"))
    await asyncio.sleep(0)
    table.open.set()
    assert [await before, await after] == ["A", "A"]
    assert table.asked == [["a"], ["a"]]
    assert table.remembered == [("a", "A")]


@pytest.mark.parametrize("failure", [DatabaseUnavailable(), TimeoutError(), LookupError()])
async def test_a_failure_is_everybodys_who_waits_and_nobodys_after(table: Table, failure: Exception) -> None:
    table.open.set()
    table.failure = failure
    outcomes = await asyncio.gather(*(table.gathering.ask(key) for key in "ab"), return_exceptions=True)
    assert [type(each) for each in outcomes] == [DatabaseUnavailable, DatabaseUnavailable]
    table.failure = None
    assert await table.gathering.ask("a") == "A"


async def test_a_query_that_does_not_end_is_given_up(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "READ_TIMEOUT_S", 0.01)
    with pytest.raises(DatabaseUnavailable):
        await table.gathering.ask("a")
    table.open.set()
    assert await table.gathering.ask("a") == "A"


async def test_too_many_do_not_wait(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "WAITING_MAX", 2)
    async with asyncio.TaskGroup() as group:
        first = group.create_task(table.gathering.ask("a"))
        await table.is_asked()
        waiting = [group.create_task(table.gathering.ask(key)) for key in "bc"]
        await asyncio.sleep(0)
        with pytest.raises(DatabaseUnavailable):
            await table.gathering.ask("d")
        table.open.set()
    assert [first.result(), *(each.result() for each in waiting)] == ["A", "B", "C"]


async def test_no_query_asks_for_too_many(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "BATCH_MAX", 2)
    table.open.set()
    assert await asyncio.gather(*map(table.gathering.ask, "abc")) == ["A", "B", "C"]
    assert table.asked == [["a", "b"], ["c"]]


@pytest.mark.parametrize("begun", [True, False])
async def test_closing_leaves_nobody_waiting(table: Table, begun: bool) -> None:
    asking = asyncio.create_task(table.gathering.ask("a"))
    if begun:
        await table.is_asked()
    else:
        await asyncio.sleep(0)
    assert len(table.asked) == begun
    await table.gathering.close()
    for late in (asking, table.gathering.ask("b")):
        with pytest.raises(DatabaseUnavailable):
            await late
