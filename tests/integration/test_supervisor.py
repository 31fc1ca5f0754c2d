"""What the supervisor does when calendars do not answer or something fails that nobody foresaw."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from actors.client import CalendarClient
from actors.messages import Command, Done, Reply
from cluster import supervisor
from cluster.moves import MoveDriver
from cluster.supervisor import Supervisor
from persistence.database import open_database
from persistence.identifiers import new_id

PATIENCE_S = 15


class Calendars:
    """Remembers who was sent what; ``answer`` may hang or fail."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, timedelta]] = []
        self.answer: Callable[[str], Awaitable[None]] = self.agree

    async def send(self, command: Command) -> Reply:
        assert command.deadline is not None
        self.sent.append((command.doctor_id, command.deadline - datetime.now(UTC)))
        await self.answer(command.doctor_id)
        return Done(answer={})

    async def agree(self, _: str) -> None:
        return None

    def was_sent(self, *doctor_ids: str) -> bool:
        return set(doctor_ids) <= {doctor_id for doctor_id, _ in self.sent}


class Moves:
    """Fails at the first move it is to drive on."""

    def __init__(self, told: Sequence[str] = ()) -> None:
        self.told = list(told)
        self.driven: list[str] = []

    def pending(self) -> list[str]:
        return self.told

    async def drive_on(self, move_id: str) -> None:
        self.driven.append(move_id)
        if len(self.driven) == 1:
            raise ZeroDivisionError


class StuckMoves(Moves):
    """None ends until they all may."""

    def __init__(self, told: Sequence[str]) -> None:
        super().__init__(told)
        self.may_end = asyncio.Event()

    async def drive_on(self, move_id: str) -> None:
        self.driven.append(move_id)
        await self.may_end.wait()
        if move_id in self.told:
            self.told.remove(move_id)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[AsyncEngine]:
    """With one connection: who keeps it is found out."""
    engine = open_database(database_url, pool_max=1)
    yield engine
    await engine.dispose()


@asynccontextmanager
async def supervising(
    database: AsyncEngine, calendars: Calendars, moves: Moves, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Supervisor]:
    monkeypatch.setattr(supervisor, "ROUND_S", 0.05)
    monkeypatch.setattr(supervisor, "STOP_TIMEOUT_S", 0.2)
    running = Supervisor(database=database, calendars=cast(CalendarClient, calendars), moves=cast(MoveDriver, moves))
    running.start()
    try:
        yield running
    finally:
        await running.stop()


async def test_a_calendar_that_does_not_answer_delays_no_other(
    database: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calendars = Calendars()

    async def never_the_first(doctor_id: str) -> None:
        if doctor_id == calendars.sent[0][0]:
            await asyncio.Event().wait()

    calendars.answer = never_the_first
    doctor_ids = [await overdue_hold(database) for _ in range(5)]
    async with supervising(database, calendars, Moves(), monkeypatch):
        await until(lambda: calendars.was_sent(*doctor_ids))
        # The connection is free, and holds that come later are ended on time, too.
        later = await overdue_hold(database)
        await until(lambda: calendars.was_sent(later))
    stuck = calendars.sent[0][0]
    assert [doctor_id for doctor_id, _ in calendars.sent].count(stuck) == 1, "it is under way"
    for _, left in calendars.sent:
        assert left == pytest.approx(supervisor.SEND_DEADLINE, abs=timedelta(seconds=1)), "counted from when it is sent"


async def test_what_nobody_foresaw_is_logged_and_the_next_round_comes(
    database: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calendars, moves = Calendars(), Moves()
    lead = supervisor._lead

    async def fails_once(connection: object) -> bool:
        monkeypatch.setattr(supervisor, "_lead", lead)
        raise LookupError

    async def fails(_: str) -> None:
        raise ArithmeticError

    calendars.answer = fails
    monkeypatch.setattr(supervisor, "_lead", fails_once)
    doctor_ids = [await overdue_hold(database) for _ in range(2)]
    move_ids = [await move_left_behind(database) for _ in range(2)]
    with capture_logs() as logs:
        async with supervising(database, calendars, moves, monkeypatch):
            await until(lambda: calendars.was_sent(*doctor_ids) and set(moves.driven) == set(move_ids))
            calendars.answer, sent = calendars.agree, len(calendars.sent)
            await until(lambda: len(calendars.sent) >= sent + 2)
    failures = [entry for entry in logs if entry["event"] == "task_died"]
    assert {type(entry["exc_info"]) for entry in failures} == {LookupError, ArithmeticError, ZeroDivisionError}
    assert all(entry["exc_info"].__traceback__ is not None for entry in failures)


async def test_pending_moves_keep_none_out_that_was_left_behind(
    database: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_behind = await move_left_behind(database)
    moves = StuckMoves([new_id() for _ in range(3 * supervisor.MOVES_MAX)])
    async with supervising(database, Calendars(), moves, monkeypatch):
        await until(lambda: len(moves.driven) == supervisor.MOVES_MAX + 1)
        assert left_behind in moves.driven
        # There is room: now the others come.
        moves.may_end.set()
        await until(lambda: not moves.told)


async def test_a_stop_cuts_off_what_is_under_way(database: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    calendars = Calendars()
    cut_off = asyncio.Event()

    async def never(_: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cut_off.set()

    calendars.answer = never
    doctor_id = await overdue_hold(database)
    async with supervising(database, calendars, Moves(), monkeypatch):
        await until(lambda: calendars.was_sent(doctor_id))
    assert cut_off.is_set()


async def test_what_was_said_long_ago_is_forgotten_what_is_to_be_said_is_not(
    database: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with database.begin() as connection:
        for days in (91, 89):
            for ended in (True, False):
                # An old one that has ended of late, or is to be said of late, stays: a visit may be half a year ahead.
                await connection.execute(
                    text(
                        "INSERT INTO notification (id, outbox_id, kind, ahead, channel, user_id, due_at, expires_at,"
                        " next_at, ended_at) VALUES (uuidv7(interval '-91 days'), :id, 'booked', '', 'email', :id,"
                        " now(), now(), now() - :age, CASE WHEN :ended THEN now() - :age END)"
                    ),
                    {"id": new_id(), "ended": ended, "age": timedelta(days=days)},
                )
        for days in (8, 6):
            await connection.execute(
                text(
                    "INSERT INTO outbox (id, kind, user_id, sealed, due_at)"
                    " VALUES (:id, 'password_reset', :id, 'sealed', now() - :age)"
                ),
                {"id": new_id(), "age": timedelta(days=days)},
            )

    async def left() -> tuple[int, int]:
        async with database.begin() as connection:
            messages = await connection.scalar(text("SELECT count(*) FROM notification"))
            sealed = await connection.scalar(text("SELECT count(*) FROM outbox WHERE sealed IS NOT NULL"))
            return messages or 0, sealed or 0

    assert await left() == (4, 2)
    async with supervising(database, Calendars(), Moves(), monkeypatch):
        async with asyncio.timeout(PATIENCE_S):
            while await left() != (2, 1):
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.3)
    assert await left() == (2, 1)


async def overdue_hold(database: AsyncEngine) -> str:
    """The doctor of a new hold that should have ended."""
    doctor_id = new_id()
    async with database.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO hold (id, doctor_id, slot_id, user_id, expires_at)"
                " VALUES (:id, :doctor_id, :slot_id, :user_id, now() - interval '1 second')"
            ),
            {"id": new_id(), "doctor_id": doctor_id, "slot_id": new_id(), "user_id": new_id()},
        )
    return doctor_id


async def move_left_behind(database: AsyncEngine) -> str:
    """A move that nobody has driven on for a minute."""
    move_id = new_id()
    async with database.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO move (id, appointment_id, source_doctor_id, target_doctor_id, target_slot_id, state,"
                " request, created_at, updated_at) VALUES (:id, :id, :source, :target, :slot, 'reserved', '{}',"
                " now(), now() - interval '1 minute')"
            ),
            {"id": move_id, "source": new_id(), "target": new_id(), "slot": new_id()},
        )
    return move_id


async def until(condition: Callable[[], bool]) -> None:
    """Return once it is so."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)
