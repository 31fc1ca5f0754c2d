"""Whatever becomes of announcements, who follows a calendar is told every change once, in order."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
from redis.exceptions import ConnectionError as RedisAway

import api.feed.stream
from actors.changes import AppointmentChange, Change, Effect
from api.feed.stream import RECENT_MAX, ChangeStream
from persistence.announcements import UnreadableAnnouncement, decode_announcements
from persistence.change_log import CHANGES_MAX
from persistence.lookups import Reached
from persistence.unit_of_work import DatabaseUnavailable
from tests.given import NOW

PATIENCE_S = 10.0


class Announced:
    """A change as it is heard."""

    def __init__(self, change: Change) -> None:
        self.doctor_id = change.doctor_id
        self.sequence = change.sequence
        self._change = change

    def change(self) -> Change:
        return self._change


class Journal:
    """What is committed, and how those who announce it go about it."""

    def __init__(self) -> None:
        self.changes: dict[str, list[Change]] = {}
        self.away = False
        self.untold: set[str] = set()
        """Calendars whose events do not say what they changed."""
        self.asked = 0
        self._announced: asyncio.Queue[list[Announced] | Exception] = asyncio.Queue()

    def commit(self, doctor_id: str, *, patient_id: str = "anna") -> Change:
        """The calendar's next change."""
        calendar = self.changes.setdefault(doctor_id, [])
        number = len(calendar) + 1
        touched = AppointmentChange(id=f"{doctor_id} {number}", patient_id=patient_id, version=1)
        change = Change(doctor_id=doctor_id, sequence=number, at=NOW, effect=Effect(appointments=(touched,)))
        calendar.append(change)
        return change

    def announce(self, *changes: Change) -> None:
        """These are heard by whoever listens."""
        self._announced.put_nowait([Announced(change) for change in changes])

    def cut(self, why: Exception | None = None) -> None:
        """Whoever listens hears nothing for a moment, by default because Redis is gone."""
        self._announced.put_nowait(why or RedisAway("gone"))

    async def listen(self) -> AsyncIterator[list[Announced] | None]:
        """See ``persistence.announcements.listen``."""
        yield None
        while True:
            heard = await self._announced.get()
            if isinstance(heard, Exception):
                raise heard
            yield heard

    async def after(self, doctor_id: str, sequence: int) -> list[Change]:
        """See ``ChangeLog.after``."""
        await self._answer()
        return [] if doctor_id in self.untold else self.changes[doctor_id][sequence : sequence + CHANGES_MAX]

    async def reached(self, mark: str | None = None) -> Reached:
        """See ``ChangeLog.reached``."""
        await self._answer()
        return Reached(
            sequences={doctor: len(changes) for doctor, changes in self.changes.items()}, mark="1", position="0/0"
        )

    async def _answer(self) -> None:
        self.asked += 1
        await asyncio.sleep(0)
        if self.away:
            raise DatabaseUnavailable("away")


class Reader:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[int] = []
        self.lost = False
        self.noted: list[str] = []

    def tell(self, change: Change) -> None:
        self.told.append(change.sequence)

    def lose(self) -> None:
        self.lost = True

    def note(self, change: AppointmentChange) -> None:
        self.noted.append(change.id)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.feed.stream, "POLL_S", 0.02)
    monkeypatch.setattr(api.feed.stream, "RETRY_S", 0.005)


@asynccontextmanager
async def following(journal: Journal) -> AsyncIterator[ChangeStream]:
    stream = ChangeStream(listen=journal.listen, log=journal)
    stream.start()
    try:
        await until(lambda: stream.ready and stream.listening)
        yield stream
    finally:
        await stream.stop()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what must become true."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)


async def test_what_is_announced_is_passed_on_without_asking_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    journal, reader = Journal(), Reader()
    journal.commit("house")
    async with following(journal) as stream:
        stream.follow("house", reader)
        monkeypatch.setattr(api.feed.stream, "POLL_S", 60)
        await asyncio.sleep(0.05)
        asked = journal.asked
        journal.announce(journal.commit("house"), journal.commit("house"))
        await until(lambda: reader.told == [2, 3])
        assert journal.asked == asked


async def test_one_published_change_that_is_dropped_comes_from_the_journal() -> None:
    journal, reader = Journal(), Reader()
    async with following(journal) as stream:
        stream.follow("house", reader)
        journal.announce(journal.commit("house"))
        journal.commit("house")
        journal.announce(journal.commit("house"))
        await until(lambda: reader.told == [1, 2, 3])


async def test_the_last_published_change_that_is_dropped_comes_from_the_journal() -> None:
    journal, reader = Journal(), Reader()
    async with following(journal) as stream:
        stream.follow("house", reader)
        journal.commit("house")
        await until(lambda: reader.told == [1])


async def test_two_that_are_swapped_and_one_that_is_repeated_are_told_in_order_and_once() -> None:
    journal, reader = Journal(), Reader()
    async with following(journal) as stream:
        stream.follow("house", reader)
        first, second, third = (journal.commit("house") for _ in range(3))
        journal.announce(second, first, first, third, second)
        await until(lambda: len(reader.told) >= 3)
        await asyncio.sleep(0.05)
        assert reader.told == [1, 2, 3]


async def test_whatever_happens_to_announcements() -> None:
    for seed in range(30):
        dice = random.Random(seed)
        journal = Journal()
        readers = {doctor: Reader() for doctor in ("house", "grey", "quinn")}
        mine = Reader()
        async with following(journal) as stream:
            for doctor, reader in readers.items():
                stream.follow(doctor, reader)
            stream.concern("anna", mine)
            late: list[Change] = []
            for _ in range(60):
                change = journal.commit(dice.choice(list(readers)))
                match dice.choice(("told", "told", "told", "dropped", "late", "twice", "cut", "away")):
                    case "told":
                        journal.announce(change)
                    case "late":
                        late.append(change)
                    case "twice":
                        journal.announce(change, *late, change)
                        late.clear()
                    case "cut":
                        journal.cut()
                    case "away":
                        journal.away = not journal.away
                if dice.random() < 0.3:
                    await asyncio.sleep(0.002 * dice.random())
            journal.away = False
            for doctor, reader in readers.items():
                expected = [change.sequence for change in journal.changes.get(doctor, ())]
                await until(partial(_has, reader, len(expected)))
                assert reader.told == expected, (seed, doctor)
            every = [each.id for changes in journal.changes.values() for c in changes for each in c.effect.appointments]
            assert sorted(mine.noted) == sorted(every), seed


def _has(reader: Reader, count: int) -> bool:
    return len(reader.told) >= count


async def test_an_announcement_that_cannot_be_read_is_no_end() -> None:
    journal, reader = Journal(), Reader()
    async with following(journal) as stream:
        stream.follow("house", reader)
        journal.cut(UnreadableAnnouncement("of another release"))
        journal.commit("house")
        await until(lambda: reader.told == [1] and stream.listening)
        journal.announce(journal.commit("house"))
        await until(lambda: reader.told == [1, 2])


@pytest.mark.parametrize("said", [b"no JSON", b"7", b"[7]", b"[[1, 2, 3]]"])
def test_what_is_no_announcement_is_called_so(said: bytes) -> None:
    with pytest.raises(UnreadableAnnouncement):
        decode_announcements(said)


async def test_a_calendar_that_nobody_follows_costs_no_reading() -> None:
    journal, reader = Journal(), Reader()
    async with following(journal) as stream:
        for _ in range(5):
            journal.commit("house")
        journal.announce(journal.changes["house"][-1])
        await asyncio.sleep(0.05)
        stream.follow("house", reader)
        assert stream.line("house").sequence == 5
        journal.announce(journal.commit("house"))
        await until(lambda: reader.told == [6])


async def test_many_missing_changes_come_in_order() -> None:
    journal, reader = Journal(), Reader()
    async with following(journal) as stream:
        stream.follow("house", reader)
        for _ in range(2 * CHANGES_MAX + 7):
            journal.commit("house")
        await until(lambda: len(reader.told) == 2 * CHANGES_MAX + 7)
        assert reader.told == list(range(1, 2 * CHANGES_MAX + 8))
        line = stream.line("house")
        assert [change.sequence for change in line.since(line.sequence - 3) or ()] == reader.told[-3:]
        assert line.since(line.sequence) == []
        assert line.since(line.sequence - RECENT_MAX - 1) is None


async def test_what_is_read_late_does_not_take_a_calendar_back() -> None:
    journal, first, second = Journal(), Reader(), Reader()
    async with following(journal) as stream:
        stream.follow("house", first)
        may_read = asyncio.Event()
        after = journal.after

        async def late(doctor_id: str, sequence: int) -> list[Change]:
            found = await after(doctor_id, sequence)
            await may_read.wait()
            return found

        journal.after = late  # type: ignore[method-assign]  # as slow as it gets
        for _ in range(5):
            journal.commit("house")
        journal.announce(journal.changes["house"][-1])
        await until(lambda: "house" in stream._healing)
        await asyncio.sleep(0.01)
        stream.leave("house", first)
        journal.announce(journal.commit("house"))
        await until(lambda: stream._sequences.get("house") == 6)
        stream.follow("house", second)
        may_read.set()
        await until(lambda: "house" not in stream._healing)
        assert stream.line("house").sequence == 6
        journal.announce(journal.commit("house"))
        await until(lambda: second.told == [7])


async def test_who_cannot_be_told_what_comes_next_is_told_so() -> None:
    journal, reader = Journal(), Reader()
    async with following(journal) as stream:
        stream.follow("house", reader)
        mine = Reader()
        stream.concern("anna", mine)
        journal.untold.add("house")
        journal.commit("house")
        await until(lambda: reader.lost and mine.lost)
        assert reader.told == []


async def test_nothing_is_left_when_the_last_one_leaves() -> None:
    journal, one, other = Journal(), Reader(), Reader()
    async with following(journal) as stream:
        for reader in (one, other):
            stream.follow("house", reader)
            stream.concern("anna", reader)
        stream.leave("house", one)
        stream.unconcern("anna", one)
        journal.announce(journal.commit("house"))
        await until(lambda: other.told == [1])
        assert (one.told, one.noted) == ([], [])
        stream.leave("house", other)
        stream.unconcern("anna", other)
        assert (stream._lines, stream._concerned) == ({}, {})
