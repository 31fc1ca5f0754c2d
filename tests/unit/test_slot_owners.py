from __future__ import annotations

from collections.abc import Mapping

from api.scheduling.slot_owners import SlotOwners


class Table:
    """What is asked of the database."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.slots = {f"slot-{number}": f"doctor-{number % 3}" for number in range(100)}

    async def read(self, slot_ids: list[str]) -> Mapping[str, str]:
        self.asked.append(slot_ids)
        return {each: self.slots[each] for each in slot_ids if each in self.slots}


async def test_a_slot_is_asked_for_once() -> None:
    table = Table()
    owners = SlotOwners(table.read)
    assert [await owners.doctor_of("slot-4"), await owners.doctor_of("slot-4")] == ["doctor-1", "doctor-1"]
    assert table.asked == [["slot-4"]]


async def test_a_slot_that_is_not_there_is_asked_for_each_time() -> None:
    table = Table()
    owners = SlotOwners(table.read)
    assert await owners.doctor_of("new") is None
    table.slots["new"] = "doctor-9"
    assert await owners.doctor_of("new") == "doctor-9"


async def test_what_was_learnt_is_not_asked_for() -> None:
    table = Table()
    owners = SlotOwners(table.read)
    owners.learn([("a", "doctor-1"), ("b", "doctor-2")])
    assert await owners.doctor_of("b") == "doctor-2"
    assert table.asked == []


async def test_the_least_lately_used_are_forgotten() -> None:
    table = Table()
    owners = SlotOwners(table.read, known_max=2)
    owners.learn([("slot-1", "doctor-1"), ("slot-2", "doctor-2")])
    await owners.doctor_of("slot-1")
    owners.learn([("slot-3", "doctor-0")])
    await owners.doctor_of("slot-1")
    assert table.asked == []
    await owners.doctor_of("slot-2")
    assert table.asked == [["slot-2"]]
