"""The feeds over real connections: a calendar as it changes, one's own appointments, and how feeds end."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import time
import weakref
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import pytest_asyncio
from websockets.exceptions import InvalidStatus

import api.feed.calendars
import api.feed.connection
import api.feed.events
from actors.changes import Change
from api.accounts.tokens import AccessTokens
from api.feed.calendars import CalendarReader
from api.feed.windows import FeedWindow
from persistence.identifiers import new_id
from tests.integration.feeds import JSON, feed, served
from tests.integration.practice import Practice, days_on, eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

EVERY = "free,held,booked,blocked,cancelled"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def port(practice: Practice) -> AsyncIterator[int]:
    """Where the practice is served."""
    async with served(practice.api.app) as port:
        yield port


async def searched(practice: Practice, doctor_id: str) -> dict[str, JSON]:
    """The calendar as the search has it."""
    found = await practice.get(None, "/v1/slots", doctor_id=doctor_id, status=EVERY, limit=200)
    return {slot["id"]: slot for slot in found["items"]}


async def test_a_snapshot_then_every_change_in_order(practice: Practice, port: int) -> None:
    doctor, slots = await practice.doctor_with_slots(4)
    patient = await practice.people.patient()
    async with feed(port, f"doctors/{doctor.doctor_id}/feed", patient) as calendar:
        assert calendar.connection.subprotocol == "zapis.v1"
        first = await calendar.hear()
        assert first["type"] == "snapshot"
        assert first["sequence"] == 1
        assert calendar.slots == await searched(practice, doctor.doctor_id)

        visit = await practice.book(patient, slots[0], reason="It hurts.")
        booked = await calendar.hear()
        assert (booked["type"], booked["sequence"]) == ("change", 2)
        assert [slot["id"] for slot in booked["slots"]] == [slots[0]]
        assert booked["slots"][0] == (await searched(practice, doctor.doctor_id))[slots[0]]
        assert set(booked) == {"type", "sequence", "at", "slots"}
        assert "hurts" not in str(booked)
        assert patient.patient_id not in str(booked)

        visit = await practice.change(patient, visit, "reschedule", {"slot_id": slots[1]})
        moved = await calendar.hear()
        assert {slot["id"]: slot["status"] for slot in moved["slots"]} == {slots[0]: "free", slots[1]: "booked"}

        visit = await practice.change(doctor, visit, "arrive")
        assert (await calendar.hear())["slots"] == [], "a number for every event, a slot only where it changed"

        await practice.change(doctor, visit, "cancel")
        await calendar.hear_until(slots[1], "free")
        held = await practice.post(patient, "/v1/holds", {"slot_id": slots[2]}, expect=201)
        await calendar.hear_until(slots[2], "held")
        await practice.send(patient, "DELETE", f"/v1/holds/{held['id']}")
        await calendar.hear_until(slots[2], "free")
        await practice.post(practice.admin, f"/v1/admin/slots/{slots[3]}/block")
        await calendar.hear_until(slots[3], "blocked")
        assert calendar.slots == await searched(practice, doctor.doctor_id)
    assert await practice.differences() == []


async def test_who_comes_back_gets_what_was_missed(practice: Practice, port: int) -> None:
    doctor, slots = await practice.doctor_with_slots(3)
    patient = await practice.people.patient()
    path = f"doctors/{doctor.doctor_id}/feed"
    async with feed(port, path, patient) as calendar:
        seen = (await calendar.hear())["sequence"]
    visit = await practice.book(patient, slots[0])
    await practice.change(patient, visit, "cancel")
    async with feed(port, path, patient, since=str(seen)) as again:
        again.sequence = seen
        assert [(await again.hear())["type"] for _ in range(2)] == ["change", "change"]
        await practice.book(patient, slots[1])
        assert (await again.hear())["sequence"] == seen + 3
    async with feed(port, path, patient, since="0") as whole:
        assert [(await whole.hear())["sequence"] for _ in range(4)] == [1, 2, 3, 4]
        assert whole.slots == await searched(practice, doctor.doctor_id)
    async with feed(port, path, patient, since=str(seen + 100)) as ahead:
        assert (await ahead.hear())["type"] == "snapshot", "a number that the calendar never had"


async def test_the_window_is_days_of_the_location(practice: Practice, port: int) -> None:
    doctor = await practice.doctor()
    patient = await practice.people.patient()
    late = days_on(3, hour=23)  # In Berlin it is the next day already.
    near, far = await practice.open_slots(doctor, days_on(3), late)
    day = days_on(3).date()
    path = f"doctors/{doctor.doctor_id}/feed"
    async with feed(port, path, patient, from_=str(day), to=str(day)) as calendar:
        await calendar.hear()
        assert set(calendar.slots) == {near}
        await practice.book(patient, far)
        assert (await calendar.hear())["slots"] == []
        visit = await practice.book(patient, near)
        assert [slot["id"] for slot in (await calendar.hear())["slots"]] == [near]
        await practice.change(patient, visit, "cancel")
    beyond = days_on(20).date()
    async with feed(port, path, patient, from_=str(beyond)) as calendar:
        assert (await calendar.hear())["slots"] == []


async def test_ones_own_appointments(practice: Practice, port: int) -> None:
    doctor, slots = await practice.doctor_with_slots(4)
    other_doctor, (elsewhere,) = await practice.doctor_with_slots(1, first=days_on(5))
    patient, stranger = await practice.people.patient(), await practice.people.patient()
    await practice.book(stranger, slots[3])
    before = await practice.book(patient, slots[0], reason="It hurts.")
    async with feed(port, "me/feed", patient) as mine:
        live = await mine.hear()
        assert live == {
            "type": "appointment",
            "appointment": await practice.get(patient, f"/v1/appointments/{before['id']}"),
        }

        visit = await practice.book(patient, slots[1])
        assert (await mine.hear())["appointment"]["version"] == 1
        await practice.change(patient, visit, "reschedule", {"slot_id": elsewhere})
        moved = (await mine.hear())["appointment"]
        while moved["doctor_id"] != other_doctor.doctor_id:
            moved = (await mine.hear())["appointment"]
        assert (moved["id"], moved["status"]) == (visit["id"], "rescheduled")
        await practice.change(doctor, before, "cancel")
        gone = (await mine.hear())["appointment"]
        assert (gone["id"], gone["status"]) == (before["id"], "cancelled")


async def test_how_feeds_end(practice: Practice, port: int) -> None:
    doctor, _ = await practice.doctor_with_slots(1)
    patient = await practice.people.patient()
    path = f"doctors/{doctor.doctor_id}/feed"
    for where in (path, "me/feed"):
        for token in ("", "forged", "a.b.c"):
            async with feed(port, where, None, token=token) as unknown:
                assert (await unknown.end())[0] == 4401
    for doctor_id in (new_id(), "nobody", practice.location_id):
        async with feed(port, f"doctors/{doctor_id}/feed", patient) as nowhere:
            assert (await nowhere.end())[0] == 4404
    for query in (
        {"from_": "9999-12-31"},
        {"from_": "20261124"},
        {"since": "x"},
        {"since": "-1"},
        {"from_": "tomorrow"},
        {"from_": "2026-01-02", "to": "2026-01-01"},
    ):
        async with feed(port, path, patient, **query) as odd:
            assert (await odd.end())[0] == 1008
    with pytest.raises(InvalidStatus) as refused:
        async with feed(port, path, patient, origin="https://elsewhere.example"):
            pass
    assert refused.value.response.status_code == 403
    async with feed(port, path, patient, origin=f"http://127.0.0.1:{port}") as own:
        assert (await own.hear())["type"] == "snapshot"


async def test_nothing_is_lost_that_was_not_announced(practice: Practice, port: int) -> None:
    doctor, slots = await practice.doctor_with_slots(2)
    patient = await practice.people.patient()
    stream = practice.api.app.state.feeds.calendars.stream
    hear = stream.hear
    async with (
        feed(port, f"doctors/{doctor.doctor_id}/feed", patient) as calendar,
        feed(port, "me/feed", patient) as mine,
    ):
        await calendar.hear()
        stream.hear = lambda change: None
        try:
            began = datetime.now(UTC)
            visit = await practice.book(patient, slots[0])
            assert (await calendar.hear())["slots"][0]["status"] == "booked"
            assert (await mine.hear())["appointment"]["id"] == visit["id"]
            assert datetime.now(UTC) - began < timedelta(seconds=3)
            await practice.change(patient, visit, "cancel")
            await calendar.hear_until(slots[0], "free")
        finally:
            stream.hear = hear
        await practice.book(patient, slots[1])
        await calendar.hear_until(slots[1], "booked")


async def test_many_readers_of_a_calendar_see_the_same(practice: Practice, port: int) -> None:
    doctor, slots = await practice.doctor_with_slots(8)
    patients = [await practice.people.patient() for _ in range(8)]
    path = f"doctors/{doctor.doctor_id}/feed"

    async def read(reader: int) -> dict[str, JSON]:
        async with feed(port, path, patients[reader % 8]) as calendar:
            while sum(slot["status"] == "booked" for slot in calendar.slots.values()) < 8:
                await calendar.hear()
            return calendar.slots

    readers = [asyncio.create_task(read(number)) for number in range(40)]
    await asyncio.gather(*(practice.book(patient, slot) for patient, slot in zip(patients, slots, strict=True)))
    calendars = await asyncio.gather(*readers)
    expected = await searched(practice, doctor.doctor_id)
    assert [calendar for calendar in calendars if calendar != expected] == []


async def test_a_token_that_expires_ends_the_feed(
    practice: Practice, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    doctor, _ = await practice.doctor_with_slots(1)
    patient = await practice.people.patient()
    settings = practice.api.services.settings
    short_lived = AccessTokens(
        issuer=settings.token_issuer,
        audience=settings.token_audience,
        ttl_s=2,
        unit_of_work=practice.api.services.unit_of_work,
    )
    await short_lived.open()
    for path in (f"doctors/{doctor.doctor_id}/feed", "me/feed"):
        token = await short_lived.sign(user_id=patient.user_id, session_id=new_id(), session_generation=0)
        async with feed(port, path, None, token=token) as calendar:
            assert await calendar.end() == (4401, "the token has expired")

    monkeypatch.setattr(api.feed.events, "PING_S", 0.5)
    token = await short_lived.sign(user_id=patient.user_id, session_id=new_id(), session_generation=0)
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=20) as client:
        url = f"http://127.0.0.1:{port}/v1/doctors/{doctor.doctor_id}/changes"
        async with client.stream("GET", url) as answer, asyncio.timeout(10):
            events = [event async for event in _events(answer)]
            assert [kind for kind, _, _ in events] == ["snapshot"], "and then it ended"


async def test_who_does_not_keep_up_is_closed_and_comes_back(
    practice: Practice, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.feed.calendars, "WAITING_MAX", 2)
    doctor, slots = await practice.doctor_with_slots(1)
    patient = await practice.people.patient()
    path = f"doctors/{doctor.doctor_id}/feed"
    async with feed(port, path, patient) as calendar:
        await calendar.hear()
        calendars = practice.api.app.state.feeds.calendars
        in_words, may_go_on = calendars.message, asyncio.Event()

        async def slowly(change: Change, window: FeedWindow) -> str:
            await may_go_on.wait()
            words: str = await in_words(change, window)
            return words

        monkeypatch.setattr(calendars, "message", slowly)
        (reader,) = calendars.stream.line(doctor.doctor_id).followers
        for _ in range(3):
            visit = await practice.book(patient, slots[0])
            await practice.change(patient, visit, "cancel")
        await eventually(lambda: _true(reader._too_slow))
        may_go_on.set()
        assert [(await calendar.hear())["sequence"] for _ in range(3)] == [2, 3, 4], "what it took"
        assert (await calendar.end())[0] == 4008
    async with feed(port, path, patient, since="4") as again:
        assert [(await again.hear())["sequence"] for _ in range(3)] == [5, 6, 7]


async def test_feeds_are_bounded(practice: Practice, port: int) -> None:
    doctor, _ = await practice.doctor_with_slots(1)
    patient, other = await practice.people.patient(), await practice.people.patient()
    path = f"doctors/{doctor.doctor_id}/feed"
    most = practice.api.services.settings.feed_connections_per_user_max
    async with AsyncExitStack() as stack:
        for _ in range(most):
            calendar = await stack.enter_async_context(feed(port, path, patient))
            await calendar.hear()
        async with feed(port, "me/feed", patient) as one_more:
            assert await one_more.end() == (1013, "you have too many feeds open")
        async with feed(port, path, other) as calendar:
            assert (await calendar.hear())["type"] == "snapshot"
        events = await practice.send(patient, "GET", f"/v1/doctors/{doctor.doctor_id}/changes")
        assert (events.status_code, events.json()["code"]) == (429, "rate_limited")
    await eventually(lambda: _true(practice.api.app.state.feeds.connections.open == 0))


async def test_a_restart_ends_feeds_with_a_hint_when_to_come_back(practice: Practice) -> None:
    doctor, _ = await practice.doctor_with_slots(1)
    patient = await practice.people.patient()
    async with AsyncExitStack() as stack:
        async with served(practice.api.app) as port:
            calendar = await stack.enter_async_context(feed(port, f"doctors/{doctor.doctor_id}/feed", patient))
            await calendar.hear()
            client = await stack.enter_async_context(httpx.AsyncClient(headers=patient.headers, timeout=20))
            url = f"http://127.0.0.1:{port}/v1/doctors/{doctor.doctor_id}/changes"
            answer = await stack.enter_async_context(client.stream("GET", url))
            events = _events(answer)
            await anext(events)
            began = time.monotonic()
        code, reason = await calendar.end()
        assert code == 1012
        assert re.fullmatch(r"restart: come back in \d+\.\d s", reason)
        assert await anext(events, None) is None, "an event stream ends too"
        assert time.monotonic() - began < 5


async def test_all_is_well_from_time_to_time(practice: Practice, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.feed.connection, "PING_S", 0.2)
    doctor, slots = await practice.doctor_with_slots(1)
    patient = await practice.people.patient()
    async with (
        feed(port, f"doctors/{doctor.doctor_id}/feed", patient) as calendar,
        feed(port, "me/feed", patient) as mine,
    ):
        await calendar.hear()
        assert await calendar.hear() == {"type": "ping", "sequence": 1}
        await practice.book(patient, slots[0])
        while (await calendar.hear())["type"] == "ping":
            pass
        assert await calendar.hear() == {"type": "ping", "sequence": 2}
        pings = [json.loads(await mine.connection.recv()) for _ in range(8)]
        assert {"type": "ping"} in pings


async def test_who_asks_for_the_head_of_a_stream_gets_that(practice: Practice, port: int) -> None:
    doctor, _ = await practice.doctor_with_slots(1)
    patient = await practice.people.patient()
    async with httpx.AsyncClient(headers=patient.headers, timeout=10) as client:
        answer = await client.head(f"http://127.0.0.1:{port}/v1/doctors/{doctor.doctor_id}/changes")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")


async def test_nothing_is_left_of_a_stream_that_has_ended(
    practice: Practice, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait for a garbage collection: thousands that end together make a long one."""
    doctor, _ = await practice.doctor_with_slots(1)
    patient = await practice.people.patient()
    readers: list[weakref.ref[CalendarReader]] = []

    class Seen(CalendarReader):
        def __init__(self, *arguments: Any, **more: Any) -> None:
            super().__init__(*arguments, **more)
            readers.append(weakref.ref(self))

    monkeypatch.setattr(api.feed.events, "CalendarReader", Seen)
    gc.disable()
    try:
        async with httpx.AsyncClient(headers=patient.headers) as client:
            url = f"http://127.0.0.1:{port}/v1/doctors/{doctor.doctor_id}/changes"
            async with client.stream("GET", url) as stream:
                await anext(stream.aiter_lines())

        async def is_freed() -> bool:
            return [reader() for reader in readers] == [None]

        await eventually(is_freed)
    finally:
        gc.enable()


async def test_the_same_changes_as_events_over_http(practice: Practice, port: int) -> None:
    doctor, slots = await practice.doctor_with_slots(3)
    patient = await practice.people.patient()
    url = f"http://127.0.0.1:{port}/v1/doctors/{doctor.doctor_id}/changes"
    async with httpx.AsyncClient(headers=patient.headers, timeout=20) as client:
        async with client.stream("GET", url) as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            events = _events(answer)
            kind, number, snapshot = await anext(events)
            assert (kind, number, len(snapshot["slots"])) == ("snapshot", 1, 3)
            visit = await practice.book(patient, slots[0])
            kind, number, change = await anext(events)
            assert (kind, number, change["sequence"]) == ("change", 2, 2)
            assert [slot["id"] for slot in change["slots"]] == [slots[0]]
        await practice.change(patient, visit, "cancel")
        async with client.stream("GET", url, headers={"Last-Event-ID": "2"}) as answer:
            assert (await anext(_events(answer)))[:2] == ("change", 3)
        assert (await client.get(url, headers={"Last-Event-ID": "two"})).status_code == 422
        assert (await client.get(url.replace(doctor.doctor_id, new_id()))).status_code == 404
        assert (await client.get(url, headers={"Authorization": "Bearer forged"})).status_code == 401
    feeds = practice.api.app.state.feeds
    await eventually(lambda: _true(feeds.connections.open == 0))
    assert feeds.calendars.stream._lines == {}


async def _true(value: bool) -> bool:
    return value


async def _events(answer: httpx.Response) -> AsyncIterator[tuple[str, int, JSON]]:
    fields: dict[str, str] = {}
    async for line in answer.aiter_lines():
        if not line:
            if "data" in fields:
                yield fields["event"], int(fields["id"]), json.loads(fields["data"])
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value
