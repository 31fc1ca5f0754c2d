"""A practice to book visits at: one application for a module of tests, each with doctors and patients of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from actors.messages import Done, NewSlot, PublishSlots, Requester, Role
from cluster.settings import Settings
from persistence.identifiers import new_id
from persistence.repositories.directory import Directory, Location
from persistence.verify import verify
from tests.integration.application import Application, running
from tests.people import People, Person

JSON = dict[str, Any]
SLOT = timedelta(minutes=30)
DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Practice:
    """An application, a location, and an administrator."""

    api: Application
    people: People
    admin: Person
    location_id: str

    async def send(
        self, who: Person | None, method: str, path: str, body: Any = None, *, params: Any = None, **headers: str
    ) -> httpx.Response:
        """What someone's request is answered with; ``if_match="…"`` is a header."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        signed_in = who.headers if who is not None else {}
        return await self.api.http.request(method, path, json=body, params=params, headers=signed_in | named)

    async def get(self, who: Person | None, path: str, *, expect: int = 200, **params: Any) -> JSON:
        """What someone is told."""
        return content(await self.send(who, "GET", path, params=params), expect)

    async def post(self, who: Person | None, path: str, body: Any = None, *, expect: int = 200, **headers: str) -> JSON:
        """What someone's command is answered with."""
        return content(await self.send(who, "POST", path, body, **headers), expect)

    async def book(self, who: Person | None, slot_id: str, **more: str) -> JSON:
        """The visit that someone books."""
        return await self.post(who, "/v1/appointments", {"slot_id": slot_id} | more, expect=201)

    async def change(self, who: Person, visit: JSON, how: str, body: Any = None, **more: Any) -> JSON:
        """The visit after what someone did to it."""
        return await self.post(who, f"/v1/appointments/{visit['id']}/{how}", body, **more)

    async def doctor(self, *location_ids: str, **more: Any) -> Person:
        """A doctor without slots."""
        return await self.people.doctor(*(location_ids or (self.location_id,)), **more)

    async def doctor_with_slots(self, count: int = 4, *, first: datetime | None = None) -> tuple[Person, list[str]]:
        """A doctor with so many slots of half an hour, end to end."""
        doctor = await self.doctor()
        first = first or days_on(3)
        return doctor, await self.open_slots(doctor, *(first + number * SLOT for number in range(count)))

    async def open_slots(
        self, doctor: Person, *starts: datetime, length: timedelta = SLOT, location_id: str | None = None
    ) -> list[str]:
        """New slots of a doctor's at exactly these instants, which templates could not say."""
        slots = tuple(
            NewSlot(id=new_id(), start=start, end=start + length, location_id=location_id or self.location_id)
            for start in starts
        )
        publish = PublishSlots(
            command_id=new_id(),
            doctor_id=doctor.doctor_id,
            requester=Requester(user_id=self.admin.user_id, role=Role.ADMIN),
            fingerprint="",
            deadline=datetime.now(UTC) + timedelta(seconds=DEADLINE_S),
            slots=slots,
        )
        reply = await self.api.services.calendars.send(publish)
        assert isinstance(reply, Done)
        assert reply.answer["opened"] == len(starts), reply.answer
        return [slot.id for slot in slots]

    async def location(self, timezone: str) -> str:
        """Another location."""
        place = Location(id=new_id(), name="Elsewhere", address="Hill 1", timezone=timezone)
        async with self.api.services.unit_of_work() as work:
            await Directory(work.connection, work.vault).add_location(place)
        self.api.app.state.location_directory.forget()
        return place.id

    async def slot_status(self, doctor: Person, slot_id: str) -> str:
        """What a slot reads as."""
        every = "free,held,booked,blocked,cancelled"
        found = await self.get(None, "/v1/slots", doctor_id=doctor.doctor_id, status=every)
        return str(next(slot["status"] for slot in found["items"] if slot["id"] == slot_id))

    async def differences(self) -> list[str]:
        """What ``zapis verify`` finds."""
        assert self.api.services.settings.database_url is not None
        return (await verify(self.api.services.settings.database_url)).differences


@asynccontextmanager
async def open_practice(settings: Settings, **changed: Any) -> AsyncIterator[Practice]:
    """A practice over these settings, without a limit on requests, for as long as the block lasts."""
    async with running(settings.model_copy(update={"rate_limit": 0} | changed)) as api:
        people = People(api.services.unit_of_work, api.app.state.gate.tokens)
        practice = Practice(api=api, people=people, admin=await people.admin(), location_id=new_id())
        async with api.services.unit_of_work() as work:
            park = Location(
                id=practice.location_id, name="Clinic at the park", address="Parkstrasse 1", timezone="Europe/Berlin"
            )
            await Directory(work.connection, work.vault).add_location(park)
        yield practice


def content(answer: httpx.Response, expect: int) -> JSON:
    """The body of an answer that should have that status."""
    assert answer.status_code == expect, answer.text
    body: JSON = answer.json()
    return body


def refusal(answer: httpx.Response) -> str:
    """The code of a refusal, which has everything that every refusal has."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    problem = answer.json()
    assert problem["status"] == answer.status_code
    assert problem["type"] == f"urn:zapis:problem:{problem['code']}"
    assert problem["title"]
    assert problem["detail"]
    assert answer.headers["x-request-id"]
    return f"{answer.status_code} {problem['code']}"


def days_on(number: int, hour: int = 9) -> datetime:
    """An hour of the day that many days from today, in UTC."""
    return datetime.now(UTC).replace(hour=hour, minute=0, second=0, microsecond=0) + timedelta(days=number)


def instant(text: str) -> datetime:
    """An instant out of an answer."""
    assert text.endswith("Z")
    return datetime.fromisoformat(text)


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Return once the condition holds."""
    give_up_at = time.monotonic() + DEADLINE_S
    while not await condition():
        assert time.monotonic() < give_up_at, "it never came true"
        await asyncio.sleep(0.02)
