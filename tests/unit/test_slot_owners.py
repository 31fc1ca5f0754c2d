from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from api.scheduling import slot_owners
from api.scheduling.slot_owners import SlotOwners, TooManyWaiting


class Table:
    """What is asked of the database, which answers when it is let."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.slots = {f"slot-{number}": f"doctor-{number % 3}" for number in range(100)}
        self.open = asyncio.Event()
        self.open.set()
        self.failure: Exception | None = None

    async def load(self, slot_ids: list[str]) -> Mapping[str, str]:
        self.asked.append(slot_ids)
        await self.open.wait()
        if self.failure is not None:
            raise self.failure
        return {each: self.slots[each] for each in slot_ids if each in self.slots}


async def test_a_slot_is_asked_for_once() -> None:
    table = Table()
    owners = SlotOwners(table.load)
    assert [await owners.doctor_of("slot-4"), await owners.doctor_of("slot-4")] == ["doctor-1", "doctor-1"]
    assert table.asked == [["slot-4"]]


async def test_a_slot_that_is_not_there_is_asked_for_each_time() -> None:
    table = Table()
    owners = SlotOwners(table.load)
    assert await owners.doctor_of("new") is None
    table.slots["new"] = "doctor-9"
    assert await owners.doctor_of("new") == "doctor-9"


async def test_what_was_learnt_is_not_asked_for() -> None:
    table = Table()
    owners = SlotOwners(table.load)
    owners.learn([("a", "doctor-1"), ("b", "doctor-2")])
    assert await owners.doctor_of("b") == "doctor-2"
    assert table.asked == []


async def test_all_that_wait_meanwhile_are_asked_for_together() -> None:
    table = Table()
    table.open.clear()
    owners = SlotOwners(table.load)
    async with asyncio.TaskGroup() as group:
        first = group.create_task(owners.doctor_of("slot-0"))
        while not table.asked:
            await asyncio.sleep(0)
        rest = [group.create_task(owners.doctor_of(f"slot-{number % 20 + 1}")) for number in range(60)]
        await asyncio.sleep(0)
        table.open.set()
    assert len(table.asked) == 2
    assert sorted(table.asked[1]) == sorted(f"slot-{number}" for number in range(1, 21))
    assert [first.result(), *(each.result() for each in rest[:3])] == ["doctor-0", "doctor-1", "doctor-2", "doctor-0"]


async def test_who_goes_away_takes_nothing_from_the_others() -> None:
    table = Table()
    table.open.clear()
    owners = SlotOwners(table.load)
    leaving = asyncio.create_task(owners.doctor_of("slot-1"))
    staying = asyncio.create_task(owners.doctor_of("slot-1"))
    while not table.asked:
        await asyncio.sleep(0)
    leaving.cancel()
    table.open.set()
    assert await staying == "doctor-1"
    assert len(table.asked) == 1


async def test_a_failure_is_everybodys_who_waits_and_nobodys_after() -> None:
    table = Table()
    table.failure = ConnectionError()
    owners = SlotOwners(table.load)
    outcomes = await asyncio.gather(*(owners.doctor_of(f"slot-{number}") for number in (1, 2)), return_exceptions=True)
    assert outcomes == [table.failure, table.failure]
    table.failure = None
    assert await owners.doctor_of("slot-1") == "doctor-1"


async def test_the_least_lately_used_are_forgotten() -> None:
    table = Table()
    owners = SlotOwners(table.load, known_max=2)
    owners.learn([("slot-1", "doctor-1"), ("slot-2", "doctor-2")])
    await owners.doctor_of("slot-1")
    owners.learn([("slot-3", "doctor-0")])
    await owners.doctor_of("slot-1")
    assert table.asked == []
    await owners.doctor_of("slot-2")
    assert table.asked == [["slot-2"]]


async def test_too_many_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_owners, "WAITING_MAX", 2)
    table = Table()
    table.open.clear()
    owners = SlotOwners(table.load)
    first = asyncio.create_task(owners.doctor_of("slot-0"))
    while not table.asked:
        await asyncio.sleep(0)
    waiting = [asyncio.create_task(owners.doctor_of(f"slot-{number}")) for number in (1, 2)]
    await asyncio.sleep(0)
    with pytest.raises(TooManyWaiting):
        await owners.doctor_of("slot-3")
    table.open.set()
    assert await first == "doctor-0"
    assert [await each for each in waiting] == ["doctor-1", "doctor-2"]
