"""People who look at calendars all the while: each follows one by its feed and comes back with what they have.

However often they are cut off, to whichever API process they come back: every number is there, once and in order, and
in the end they see what stands in PostgreSQL.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import psycopg
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from cluster.data_directory import LOOPBACK
from tests.people import Person

COME_BACK_S = 0.2
DAYS = 61
LEVEL_DEADLINE_S = 60.0
"""All have seen everything by then, once nothing happens any more."""


@dataclass(slots=True, kw_only=True)
class Watcher:
    """Follows one calendar."""

    person: Person
    doctor_id: str
    ports: Sequence[int]
    dice: random.Random
    sequence: int | None = None
    slots: dict[str, str] = field(default_factory=dict)
    """What each reads as."""
    opened: int = 0
    messages: int = 0
    violations: list[str] = field(default_factory=list)

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            with suppress(OSError, WebSocketException, TimeoutError):
                await self._follow()
            await asyncio.sleep(COME_BACK_S)

    async def _follow(self) -> None:
        token = self.person.headers["Authorization"].removeprefix("Bearer ")
        first = datetime.now(UTC).date()
        query = f"from={first}&to={first + timedelta(days=DAYS)}"
        since = self.sequence
        if since is not None:
            query += f"&since={since}"
        async with connect(
            f"ws://{LOOPBACK}:{self.dice.choice(self.ports)}/v1/doctors/{self.doctor_id}/feed?{query}",
            subprotocols=["zapis.v1", f"bearer.{token}"],  # type: ignore[list-item]  # plain text
            proxy=None,
            compression=None,
            open_timeout=5,
        ) as connection:
            self.opened += 1
            async for said in connection:
                self._hear(orjson.loads(said), since)

    def _hear(self, message: dict[str, Any], since: int | None) -> None:
        match message["type"]:
            case "snapshot":
                if since is not None:
                    self._violated(f"asked for what came after {since}, got a snapshot")
                self.slots = {}
            case "change" if self.sequence is None or message["sequence"] != self.sequence + 1:
                self._violated(f"{message['sequence']} follows {self.sequence}")
            case "change":
                self.messages += 1
            case _:
                return
        self.sequence = message["sequence"]
        self.slots |= {slot["id"]: slot["status"] for slot in message["slots"]}

    def _violated(self, what: str) -> None:
        self.violations.append(f"feed of {self.doctor_id}: {what}")


async def compare(watchers: Sequence[Watcher], database_url: str) -> list[str]:
    """Where what they see is not what stands there, once nothing happens any more."""
    give_up_at = time.monotonic() + LEVEL_DEADLINE_S
    while True:
        reached, slots = await _standing(database_url)
        behind = [each for each in watchers if each.sequence != reached[each.doctor_id]]
        held = any("held" in calendar.values() for calendar in slots.values())
        if not (behind or held) or time.monotonic() > give_up_at:
            break
        await asyncio.sleep(0.2)
    violations = [violation for each in watchers for violation in each.violations]
    violations += [
        f"feed of {each.doctor_id}: at {each.sequence}, the journal at {reached[each.doctor_id]}" for each in behind
    ]
    for each in watchers:
        if each not in behind and each.slots != slots[each.doctor_id]:
            different = sum(each.slots.get(slot_id) != status for slot_id, status in slots[each.doctor_id].items())
            violations.append(f"feed of {each.doctor_id}: {different} slots are seen as they are not")
    return violations


async def _standing(database_url: str) -> tuple[Mapping[str, int], Mapping[str, Mapping[str, str]]]:
    async with await psycopg.AsyncConnection.connect(database_url) as connection:
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reached = await (await connection.execute("SELECT doctor_id::text, sequence FROM calendar")).fetchall()
        found = await (await connection.execute("SELECT doctor_id::text, id::text, status FROM slot")).fetchall()
    slots: dict[str, dict[str, str]] = {doctor_id: {} for doctor_id, _ in reached}
    for doctor_id, slot_id, status in found:
        slots[doctor_id][slot_id] = status
    return dict(reached), slots
