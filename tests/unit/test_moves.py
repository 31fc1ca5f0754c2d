"""Which moves the driver knows to be pending: they are bounded, and so is how often each is driven on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, cast

from actors.client import CalendarClient
from actors.messages import Command, Pending, Reply, Requester, ReserveForMove, Role
from cluster.moves import PENDING_MAX, PENDING_TRIES, MoveDriver


class Calendars:
    """None of them can commit."""

    async def send(self, command: Command) -> Reply:
        assert not command.respond_async, "a slot is kept before its source is asked"
        return Pending(command_id=command.command_id)


def reserve(number: int) -> ReserveForMove:
    """The first step of a move."""
    return ReserveForMove(
        command_id=f"c{number}",
        doctor_id="wilson",
        requester=Requester(user_id="anna", role=Role.PATIENT),
        fingerprint="",
        deadline=datetime.now(UTC) + timedelta(seconds=5),
        respond_async=True,
        move_id=f"m{number}",
        slot_id="s",
        appointment_id="a",
        source_doctor_id="house",
    )


async def test_so_many_are_known_and_each_is_named_so_often() -> None:
    database: Any = None
    driver = MoveDriver(database=database, calendars=cast(CalendarClient, Calendars()), deadline_s=5)
    for number in range(PENDING_MAX + 1):
        assert await driver.move(reserve(number)) == Pending(command_id=f"c{number}")

    rounds = [driver.pending() for _ in range(PENDING_TRIES + 1)]

    known = {f"m{number}" for number in range(PENDING_MAX)}
    assert [set(named) for named in rounds] == [known] * PENDING_TRIES + [set()]
