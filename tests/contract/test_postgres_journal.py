"""What only PostgreSQL can do to a journal: lose connections, hold locks, refuse to write; and what else it stores."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import psycopg
import pytest

from actors.decisions import Facts
from actors.journal import Append, Conflict, JournalUnavailable, OutcomeUnknown, StaleEpoch
from actors.messages import BlockSlot, Done, ExpireHolds, FulfilAppointment, RemoveClosure, Role
from persistence.journal import PostgresJournal
from persistence.verify import verify
from tests.clinic import (
    CUDDY,
    HOUSE,
    SEALED,
    WILSON,
    book,
    by_staff,
    cancel,
    close,
    finish,
    hold,
    move_out,
    moved,
    publish,
    reschedule,
    reserve,
    slot_id,
    visit_id,
)
from tests.contract.conftest import PostgresWorld
from tests.contract.owner import Owner, command_row, seal
from tests.given import DAY, MINUTE, NOW, OPENS, SLOT, uid


async def opened(world: PostgresWorld, *doctor_ids: str, slots: int = 4) -> Owner:
    """An owner of calendars with slots in them."""
    owner = Owner(world.journal(live_appointments_max=0))
    for doctor_id in doctor_ids:
        world.add_doctor(doctor_id)
        await owner.take(doctor_id)
        owner.do(publish(doctor_id, slots))
    await owner.commit()
    return owner


def backends(world: PostgresWorld) -> list[int]:
    """The server's processes for journals, but those of the pool."""
    query = (
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'zapis-journal' AND query LIKE '%%journal_append%%'"
    )
    return [row["pid"] for row in world.rows(query)]


def terminate(world: PostgresWorld, pids: list[int]) -> None:
    """Kill the connections of these server processes."""
    world.rows("SELECT pg_terminate_backend(pid) FROM unnest(%(pids)s::int[]) AS pid", pids=pids)


@contextmanager
def transaction(world: PostgresWorld, statement: str, **values: Any) -> Iterator[psycopg.Connection[Any]]:
    """Somebody else's transaction, open and in the way."""
    connection = psycopg.connect(world.database_url)
    try:
        connection.execute(statement.encode(), values)
        yield connection
    finally:
        connection.close()


_SAME_COMMAND = (
    "INSERT INTO command (command_id, user_id, fingerprint, answer, at) VALUES (%(id)s, %(id)s, '', '{}', now())"
)
"""In the way of an append that has passed its fence: it waits to see whether the same key is committed."""


async def until_blocked(world: PostgresWorld, count: int = 1) -> None:
    """Wait until so many journals wait for a lock."""
    query = (
        "SELECT count(*) AS waiting FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'zapis-journal' AND wait_event_type = 'Lock'"
    )
    async with asyncio.timeout(10):
        while world.rows(query)[0]["waiting"] < count:
            await asyncio.sleep(0.01)


# Connections that are lost


async def test_a_connection_lost_while_idle_is_never_a_wrong_definite(postgres_world: PostgresWorld) -> None:
    owner = await opened(postgres_world, HOUSE)
    owner.do(book(HOUSE, 0))
    batch = owner.take_batch()
    terminate(postgres_world, backends(postgres_world))

    with pytest.raises((OutcomeUnknown, JournalUnavailable)):
        await owner.journal.append(batch)

    assert postgres_world.appointments() == {}
    await owner.journal.append(batch)
    assert set(postgres_world.appointments()) == {visit_id(HOUSE, 0)}


async def test_a_connection_lost_during_an_append_leaves_the_outcome_unknown(postgres_world: PostgresWorld) -> None:
    owner = await opened(postgres_world, HOUSE)
    owner.do(book(HOUSE, 0))
    batch = owner.take_batch()
    with transaction(postgres_world, "SELECT FROM calendar WHERE doctor_id = %(doctor)s FOR UPDATE", doctor=HOUSE):
        appending = asyncio.create_task(owner.journal.append(batch))
        await until_blocked(postgres_world)
        terminate(postgres_world, backends(postgres_world))
        with pytest.raises((OutcomeUnknown, JournalUnavailable)):
            await appending

    assert postgres_world.appointments() == {}
    await owner.take(HOUSE)
    owner.do(book(HOUSE, 0))
    await owner.commit()


async def test_whenever_a_connection_is_lost_what_is_said_of_it_is_true(postgres_world: PostgresWorld) -> None:
    """Killed after so many milliseconds, over and over: a definite answer is never wrong."""
    owner = await opened(postgres_world, HOUSE, slots=40)
    said = set()
    for number in range(40):
        command = book(HOUSE, number, patient=f"patient {number}")
        owner.do(command)
        pids = backends(postgres_world)

        async def kill(delay_s: float, victims: list[int]) -> None:
            await asyncio.sleep(delay_s)
            await asyncio.to_thread(terminate, postgres_world, victims)

        killing = asyncio.create_task(kill(number * 0.0001, pids))
        try:
            await owner.commit()
            outcome = "committed"
        except OutcomeUnknown:
            outcome = "unknown"
        except (StaleEpoch, Conflict, JournalUnavailable):
            outcome = "not committed"
        await killing
        said.add(outcome)
        await owner.take(HOUSE)
        stored = await owner.journal.look_up([command.command_id])
        there = visit_id(HOUSE, number) in postgres_world.appointments()
        assert bool(stored) == there
        if outcome != "unknown":
            assert there == (outcome == "committed")
    assert "unknown" in said or "not committed" in said, "nothing was ever lost: this test proves nothing"
    assert (await verify(postgres_world.database_url)).differences == []


async def test_when_all_connections_are_lost_at_once_nobody_waits_for_new_ones(postgres_world: PostgresWorld) -> None:
    owner = await opened(postgres_world, HOUSE)
    journal = owner.journal
    pooled = (
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'zapis-journal' AND query NOT LIKE '%%journal_append%%'"
    )
    async with asyncio.timeout(10):
        while len(postgres_world.rows(pooled)) < 3:
            await asyncio.gather(*(journal.facts((), (), ()) for _ in range(8)))
    terminate(postgres_world, [row["pid"] for row in postgres_world.rows(pooled)])

    async with asyncio.timeout(2):
        await journal.claim(HOUSE, 0)


async def test_without_a_server_everything_is_unavailable() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # Bound and not listened on: whoever connects is refused.
        url = f"postgresql://zapis@127.0.0.1:{nobody.getsockname()[1]}/zapis"
        journal = PostgresJournal(database_url=url, live_appointments_max=0, holds_max=0)
        with pytest.raises(JournalUnavailable):
            await journal.append(Append())
        calls = (journal.claim(HOUSE, 0), journal.load(HOUSE, NOW), journal.look_up([HOUSE]), journal.facts((), (), ()))
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(result) for result in results] == [JournalUnavailable] * 4
        await journal.close()


async def test_a_server_that_cannot_write_is_unavailable_and_comes_back(postgres_world: PostgresWorld) -> None:
    owner = await opened(postgres_world, HOUSE)
    owner.do(book(HOUSE, 0))
    batch = owner.take_batch()
    await owner.journal.close()
    (name,) = postgres_world.rows("SELECT current_database() AS name")
    postgres_world.connection.execute(f"ALTER DATABASE {name['name']} SET default_transaction_read_only = on".encode())
    try:
        with pytest.raises(JournalUnavailable):
            await owner.journal.append(batch)
        with pytest.raises(JournalUnavailable):
            await owner.journal.claim(HOUSE, 0)
    finally:
        await owner.journal.close()
        reset = f"ALTER DATABASE {name['name']} RESET default_transaction_read_only"
        postgres_world.connection.execute(b"SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE")
        postgres_world.connection.execute(reset.encode())

    await owner.journal.append(batch)
    assert set(postgres_world.appointments()) == {visit_id(HOUSE, 0)}


async def test_an_append_that_is_given_up_leaves_a_journal_that_goes_on(postgres_world: PostgresWorld) -> None:
    owner = await opened(postgres_world, HOUSE)
    owner.do(book(HOUSE, 0))
    batch = owner.take_batch()
    with transaction(postgres_world, "SELECT FROM calendar WHERE doctor_id = %(doctor)s FOR UPDATE", doctor=HOUSE):
        appending = asyncio.create_task(owner.journal.append(batch))
        await until_blocked(postgres_world)
        appending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await appending

    await owner.take(HOUSE)
    owner.do(book(HOUSE, 1, patient="boris"))
    await owner.commit()


# Owners that are stuck


async def test_a_claim_ends_whoever_holds_the_calendar(postgres_world: PostgresWorld) -> None:
    owner = await opened(postgres_world, HOUSE)
    update = "UPDATE calendar SET sequence = 99 WHERE doctor_id = %(doctor)s"
    with transaction(postgres_world, update, doctor=HOUSE) as stuck:
        async with asyncio.timeout(5):
            claim = await owner.journal.claim(HOUSE, 0)
        with pytest.raises(psycopg.OperationalError):
            stuck.execute("SELECT 1")

    assert claim.epoch == 2
    assert postgres_world.calendar(HOUSE) == (2, 1, NOW)


async def test_many_claims_in_the_way_of_one_are_all_helped(postgres_world: PostgresWorld) -> None:
    """More than the pool has connections: somebody has to be left who can end the one in the way."""
    doctors = [uid(f"doctor {number}") for number in range(6)]
    for doctor in doctors:
        postgres_world.add_doctor(doctor)
    journal = postgres_world.journal()
    with transaction(postgres_world, "UPDATE calendar SET sequence = 99") as stuck:
        async with asyncio.timeout(5):
            claims = await asyncio.gather(*(journal.claim(doctor, 0) for doctor in doctors))
        with pytest.raises(psycopg.OperationalError):
            stuck.execute("SELECT 1")

    assert [claim.epoch for claim in claims] == [1] * 6


async def test_a_claim_waits_for_the_old_transaction_to_end_and_then_knows(postgres_world: PostgresWorld) -> None:
    """The old owner's append has passed the fence and is in the middle of things when the claim comes."""
    owner = await opened(postgres_world, HOUSE)
    command = book(HOUSE, 0)
    owner.do(command)
    batch = owner.take_batch()
    with transaction(postgres_world, _SAME_COMMAND, id=command.command_id) as other:
        appending = asyncio.create_task(owner.journal.append(batch))
        await until_blocked(postgres_world)
        claiming = asyncio.create_task(postgres_world.journal().claim(HOUSE, 0))
        await until_blocked(postgres_world, 2)
        other.rollback()
        await appending
        assert (await claiming).epoch == 2

    assert set(postgres_world.appointments()) == {visit_id(HOUSE, 0)}
    assert (await owner.journal.load(HOUSE, NOW)).sequence == 2


async def test_a_claim_that_ends_an_append_leaves_nothing_of_it(postgres_world: PostgresWorld) -> None:
    owner = await opened(postgres_world, HOUSE)
    command = book(HOUSE, 0)
    owner.do(command)
    batch = owner.take_batch()
    with transaction(postgres_world, _SAME_COMMAND, id=command.command_id):
        appending = asyncio.create_task(owner.journal.append(batch))
        await until_blocked(postgres_world)
        async with asyncio.timeout(5):
            assert (await postgres_world.journal().claim(HOUSE, 0)).epoch == 2
        with pytest.raises((OutcomeUnknown, JournalUnavailable)):
            await appending

    assert postgres_world.appointments() == {}
    assert postgres_world.calendar(HOUSE) == (2, 1, NOW)
    assert await owner.journal.look_up([command.command_id]) == {}


# Owners that race


async def test_of_calendars_that_race_for_a_patient_one_wins(postgres_world: PostgresWorld) -> None:
    doctors = [uid(f"doctor {number}") for number in range(8)]
    owners = [await opened(postgres_world, doctor) for doctor in doctors]
    for owner, doctor in zip(owners, doctors, strict=True):
        owner.do(book(doctor, 0))

    results = await asyncio.gather(*(owner.commit() for owner in owners), return_exceptions=True)

    assert sorted(type(result).__name__ for result in results) == ["Conflict"] * 7 + ["dict"]
    assert len(postgres_world.appointments()) == 1


@dataclass
class Limit:
    """Of what a patient or a user may have so many."""

    command: Any
    table: str


@pytest.mark.parametrize("limit", [Limit(book, "appointment"), Limit(hold, "hold")], ids=["visits", "holds"])
async def test_of_calendars_that_race_for_a_limit_no_more_win_than_may(
    postgres_world: PostgresWorld, limit: Limit
) -> None:
    doctors = [uid(f"doctor {number}") for number in range(6)]
    owners = []
    for number, doctor in enumerate(doctors):
        owner = await opened(postgres_world, doctor, slots=6)
        owner.journal = postgres_world.journal(live_appointments_max=2, holds_max=2)
        assert isinstance(owner.do(limit.command(doctor, number)), Done)
        owners.append(owner)

    results = await asyncio.gather(*(owner.commit() for owner in owners), return_exceptions=True)

    assert sorted(type(result).__name__ for result in results) == ["Conflict"] * 4 + ["dict"] * 2
    assert len(postgres_world.rows(f"SELECT 1 FROM {limit.table}")) == 2


async def test_of_owners_that_race_for_a_calendar_the_newest_wins(postgres_world: PostgresWorld) -> None:
    await opened(postgres_world, HOUSE)
    owners = [await Owner(postgres_world.journal()).take(HOUSE) for _ in range(4)]
    for number, owner in enumerate(owners):
        owner.do(book(HOUSE, number, patient=f"patient {number}"))

    results = await asyncio.gather(*(owner.commit() for owner in owners), return_exceptions=True)

    assert [type(result) for result in results] == [StaleEpoch] * 3 + [dict]
    assert set(postgres_world.appointments()) == {visit_id(HOUSE, 3)}


# What is stored beside


async def test_sealed_texts_reach_their_columns_and_stay_there(postgres_world: PostgresWorld) -> None:
    owner = await opened(postgres_world, HOUSE)
    booked, closed = book(HOUSE, 0, reason=SEALED), close(HOUSE, 3, 3, reason=SEALED)
    owner.do(booked)
    owner.do(closed)
    owner.do(by_staff(BlockSlot, doctor=HOUSE, slot_id=slot_id(HOUSE, 2), override=SEALED))
    batch = owner.take_batch()
    seal(batch, booked, closed)
    await owner.journal.append(batch)
    owner.owned[HOUSE].committed = owner.calendar(HOUSE).sequence
    owner.do(reschedule(HOUSE, visit_id(HOUSE, 0), 1))
    await owner.commit()
    owner.do(cancel(HOUSE, visit_id(HOUSE, 0)))
    batch = owner.take_batch()
    batch.appointments = [row | {"cancel_reason": SEALED} for row in batch.appointments]
    await owner.journal.append(batch)

    assert postgres_world.rows("SELECT reason, cancel_reason, status FROM appointment") == [
        {"reason": b"sealed", "cancel_reason": b"sealed", "status": "cancelled"}
    ]
    assert postgres_world.rows("SELECT reason FROM closure") == [{"reason": b"sealed"}]
    overrides = postgres_world.rows("SELECT override FROM audit WHERE action = 'BlockSlot'")
    assert overrides == [{"override": b"sealed"}]
    payloads = postgres_world.rows("SELECT payload::text AS text FROM event")
    assert not any(SEALED in row["text"] for row in payloads)


async def test_notifications_are_written_with_what_causes_them(postgres_world: PostgresWorld) -> None:
    owner = await opened(postgres_world, HOUSE, WILSON)
    visit = visit_id(HOUSE, 0)
    owner.do(book(HOUSE, 0))
    owner.do(reschedule(HOUSE, visit, 1))
    owner.do(close(HOUSE, 1, 1))
    owner.do(reserve(HOUSE, WILSON, 2, visit))
    await owner.commit()
    owner.do(move_out(HOUSE, WILSON, 2, visit))
    left = moved(owner.batch.events[-1].event)
    await owner.commit()
    owner.do(finish(WILSON, appointment=left))
    owner.do(cancel(WILSON, visit))
    await owner.commit()

    rows = postgres_world.rows("SELECT kind, version, doctor_id::text, sequence FROM outbox ORDER BY version")
    assert [(row["kind"], row["version"], row["doctor_id"], row["sequence"]) for row in rows] == [
        ("booked", 1, HOUSE, 2),
        ("moved", 2, HOUSE, 3),
        ("displaced", 3, HOUSE, 4),
        ("moved", 4, HOUSE, 5),
        ("cancelled_by_patient", 5, WILSON, 4),
    ]
    assert (await verify(postgres_world.database_url)).differences == []


async def test_a_move_that_is_tried_again_remembers_where_it_comes_from_now(postgres_world: PostgresWorld) -> None:
    owner = await opened(postgres_world, HOUSE, WILSON, CUDDY)
    visit = visit_id(HOUSE, 0)
    for source, number in ((HOUSE, 2), (CUDDY, 3)):
        owner.do(reserve(source, WILSON, number, visit))
        await owner.commit()
        (row,) = postgres_world.rows("SELECT source_doctor_id::text, target_slot_id::text, state FROM move")
        assert row == {"source_doctor_id": source, "target_slot_id": slot_id(WILSON, number), "state": "reserved"}
        owner.do(move_out(source, WILSON, number, visit))
        await owner.commit()
        owner.do(finish(WILSON))
        await owner.commit()


async def test_a_refused_batch_leaves_nothing_beside_either(postgres_world: PostgresWorld) -> None:
    owner = await opened(postgres_world, HOUSE, WILSON)
    count = "SELECT (SELECT count(*) FROM outbox) AS outbox, (SELECT count(*) FROM audit) AS audit"
    before = postgres_world.rows(count)
    owner.do(book(HOUSE, 0, role=Role.ADMIN))
    owner.do(book(WILSON, 0))

    with pytest.raises(Conflict):
        await owner.commit()

    assert postgres_world.rows(count) == before


async def test_long_lives_of_calendars_replay_to_their_tables(postgres_world: PostgresWorld) -> None:
    """Days pass, calendars are loaded anew and see less and less of the past: the journal says the same as the rows."""
    owner = await opened(postgres_world, HOUSE, slots=6)
    owner.do(publish(HOUSE, 3, first=200, opens=OPENS + 5 * DAY - 200 * SLOT))
    for number in range(4):
        owner.do(book(HOUSE, number, patient=f"patient {number}"))
    owner.do(hold(HOUSE, 5))
    owner.do(close(HOUSE, 1, (5 * DAY) / SLOT, name="long"))
    await owner.commit()
    now = OPENS + 5 * DAY - MINUTE
    late = await Owner(postgres_world.journal()).take(HOUSE, now=now)
    late.do(by_staff(RemoveClosure, doctor=HOUSE, closure_id=uid("long")), now)
    late.do(by_staff(ExpireHolds, doctor=HOUSE), now)
    late.do(by_staff(FulfilAppointment, doctor=HOUSE, appointment_id=visit_id(HOUSE, 1)), now)
    late.do(replace(cancel(HOUSE, visit_id(HOUSE, 2)), override=SEALED), now)
    late.do(close(HOUSE, 0, (6 * DAY) / SLOT, name="another"), now)
    await late.commit()
    later = await Owner(postgres_world.journal()).take(HOUSE, now=now + 9 * DAY)
    later.do(by_staff(FulfilAppointment, doctor=HOUSE, appointment_id=visit_id(HOUSE, 3)), now + 9 * DAY)
    await later.commit()

    assert (await verify(postgres_world.database_url)).differences == []


async def test_facts_of_nobody_are_none(postgres_world: PostgresWorld) -> None:
    assert await postgres_world.journal().facts((), (), ()) == Facts()


async def test_since_when_a_move_waits_goes_by_the_clock_of_the_database(postgres_world: PostgresWorld) -> None:
    owner = await opened(postgres_world, HOUSE, WILSON)
    hour_ahead = NOW + 60 * MINUTE
    owner.do(book(HOUSE, 0), hour_ahead)
    await owner.commit()
    owner.do(reserve(HOUSE, WILSON, 1, visit_id(HOUSE, 0)), hour_ahead)
    await owner.commit()
    recent = "SELECT state, updated_at BETWEEN now() - interval '1 minute' AND now() AS recent FROM move"
    assert postgres_world.rows(recent) == [{"state": "reserved", "recent": True}]
    owner.do(move_out(HOUSE, WILSON, 1, visit_id(HOUSE, 0)), hour_ahead)
    await owner.commit()
    assert postgres_world.rows(recent) == [{"state": "moved", "recent": True}]


async def test_whoever_was_told_that_it_is_pending_hears_that_it_was_refused(postgres_world: PostgresWorld) -> None:
    owner = await opened(postgres_world, HOUSE)
    command = book(HOUSE, 0)
    owner.do(command)
    await owner.commit()
    late = book(HOUSE, 0, patient="boris")
    answer = {"rejected": {"code": "slot_taken", "detail": ""}}
    owner.batch.commands.append(replace(command_row(late, Done(answer={})), answer=answer))
    owner.do(book(HOUSE, 1))
    await owner.commit()
    caused = "SELECT user_id::text, appointment_id IS NULL AS of_nothing FROM outbox WHERE kind = 'refused'"
    assert postgres_world.rows(caused) == [{"user_id": late.requester.user_id, "of_nothing": True}]
    assert (await verify(postgres_world.database_url)).clean
