"""Compares what searches tell with what was booked and cancelled, all the time, while it goes on."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.integration.practice import Practice
from tests.people import Person

LATE_S = 1.0
"""What was answered so long before a search began has to show in it."""

PACE_S = 0.1
"""Between a patient's commands: most slots have to stay as they are for longer than ``LATE_S``."""
LOOK_S = 0.05
"""Between two searches of one kind: all of this shares an event loop with the servers."""
SPECIALTY = "cardiology"
"""Of every doctor."""

JSON = dict[str, Any]


@dataclass(slots=True, kw_only=True)
class Slot:
    """What its booker knows of a slot."""

    id: str
    doctor_id: str
    start: str
    visit: JSON | None = None
    """The visit that it is booked for."""
    since: float | None = 0.0
    """When that was answered; ``None`` while a command about it is under way."""
    changes: int = 0

    @property
    def is_free(self) -> bool:
        return self.visit is None


@dataclass(slots=True, kw_only=True)
class Comparison:
    """Books and cancels, searches and compares, until its time is up."""

    practice: Practice
    """Through which it books."""
    searched: Sequence[httpx.AsyncClient]
    """Clients of the API processes in which it searches."""
    slots: Sequence[Slot]
    patients: Sequence[Person]
    dice: random.Random
    commands: int = 0
    searches: int = 0
    compared: int = 0
    wrong: list[str] = field(default_factory=list)

    async def run(self, seconds: float) -> None:
        """Everything at once."""
        ends_at = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            # Each patient goes to one doctor, who has no two slots at one time.
            doctor_ids = sorted({slot.doctor_id for slot in self.slots})
            for number, patient in enumerate(self.patients):
                row, doctor = divmod(number, len(doctor_ids))
                own = [slot for slot in self.slots if slot.doctor_id == doctor_ids[doctor]]
                group.create_task(self._book(patient, own[row :: len(self.patients) // len(doctor_ids)], ends_at))
            for client in self.searched:
                for search in (self._of_doctor, self._of_specialty, self._of_everybody, self._next_free):
                    group.create_task(self._search(client, search, ends_at))

    async def _book(self, patient: Person, own: Sequence[Slot], ends_at: float) -> None:
        while time.monotonic() < ends_at:
            slot = self.dice.choice(own)
            slot.since = None
            slot.changes += 1
            if slot.visit is None:
                slot.visit = await self.practice.book(patient, slot.id)
            else:
                await self.practice.change(patient, slot.visit, "cancel")
                slot.visit = None
            slot.since = time.monotonic()
            self.commands += 1
            await asyncio.sleep(PACE_S)

    async def _search(self, client: httpx.AsyncClient, search: Any, ends_at: float) -> None:
        while time.monotonic() < ends_at:
            began = time.monotonic()
            settled = {
                slot.id: (slot, slot.changes)
                for slot in self.slots
                if slot.since is not None and slot.since <= began - LATE_S
            }
            told = await search(client)
            self.searches += 1
            await asyncio.sleep(LOOK_S)
            for slot_id, (slot, changes) in settled.items():
                if slot.changes == changes and slot_id in told:
                    self.compared += 1
                    if told[slot_id] != slot.is_free:
                        self.wrong.append(f"{search.__name__}: {slot.start} free {told[slot_id]}, was {slot.is_free}")

    async def _of_doctor(self, client: httpx.AsyncClient) -> dict[str, bool]:
        doctor_id = self.dice.choice(self.slots).doctor_id
        return await self._told(client, doctor_id=doctor_id)

    async def _of_specialty(self, client: httpx.AsyncClient) -> dict[str, bool]:
        return await self._told(client, specialty=SPECIALTY, location_id=self.practice.location_id)

    async def _of_everybody(self, client: httpx.AsyncClient) -> dict[str, bool]:
        return await self._told(client)

    async def _told(self, client: httpx.AsyncClient, **params: str) -> dict[str, bool]:
        """Of each slot that the search is about, whether it is told to be free."""
        answer = await client.get("/v1/slots", params=params | {"limit": "200"})
        assert answer.status_code == 200, answer.text
        page = answer.json()
        assert page["next_cursor"] is None, "there are fewer slots than that"
        free = {each["id"] for each in page["items"]}
        wanted = params.get("doctor_id")
        return {slot.id: slot.id in free for slot in self.slots if wanted in (None, slot.doctor_id)}

    async def _next_free(self, client: httpx.AsyncClient) -> dict[str, bool]:
        """Of the first free slot of each doctor, that it is; of those before it, that they are not."""
        answer = await client.get("/v1/doctors", params={"with": "next_free", "limit": "200"})
        assert answer.status_code == 200, answer.text
        first = {each["id"]: each["next_free"] for each in answer.json()["items"]}
        told: dict[str, bool] = {}
        for slot in self.slots:
            next_free = first[slot.doctor_id]
            if next_free is None or slot.start <= next_free["start"]:
                told[slot.id] = next_free is not None and slot.id == next_free["id"]
        return told
