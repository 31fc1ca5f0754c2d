"""Searches on real servers, from two API processes' memories: whatever happens, a booking shows within a second."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import orjson
import pytest
import ray
from redis.asyncio import Redis
from sqlalchemy import text

from actors import tasks
from api.feed.stream import ChangeStream
from api.searches import Searches
from cluster.bootstrap import REDIS_CONNECTIONS, open_redis
from cluster.embedded import EmbeddedPostgres
from cluster.settings import Settings
from persistence.repositories.slots import SlotStatus
from persistence.search_store import AWAY_S, Answer, SearchStore
from tests.given import NOW
from tests.integration.application import Application, running
from tests.integration.comparing import Comparison, Slot
from tests.integration.practice import JSON, Practice, content, days_on, eventually, instant, open_practice
from tests.replica import replica_of

SECONDS = 4.0
DOCTORS = 4
PATIENTS = 8

Disturb = Callable[[Redis], Awaitable[None]]


async def nothing(redis: Redis) -> None:
    """Let it be."""


async def flush(redis: Redis) -> None:
    """Take everything away that Redis holds."""
    await redis.flushall()


async def silence(redis: Redis) -> None:
    """End every subscription: what is announced until there is a new one is not heard."""
    await redis.client_kill_filter(_type="pubsub")


@asynccontextmanager
async def comparison(settings: Settings) -> AsyncIterator[Comparison]:
    """Two API processes, as far as one process can be two; visits are booked through one, searches ask both."""
    async with (
        one_ray_for_both(),
        open_practice(settings) as practice,
        running(settings.model_copy(update={"rate_limit": 0})) as other,
    ):
        slots = []
        for _ in range(DOCTORS):
            doctor, _ = await practice.doctor_with_slots(40)
            found = await practice.get(None, "/v1/slots", doctor_id=doctor.doctor_id, limit=200)
            slots += [Slot(id=each["id"], doctor_id=each["doctor_id"], start=each["start"]) for each in found["items"]]
        dice = random.Random(4)
        dice.shuffle(slots)
        yield Comparison(
            practice=practice,
            searched=(practice.api.http, other.http),
            slots=slots,
            patients=await practice.people.patients(PATIENTS),
            dice=dice,
        )


@asynccontextmanager
async def one_ray_for_both() -> AsyncIterator[None]:
    """A process has one connection to Ray: the first application that closes leaves it to the other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "shutdown", lambda: None)
        yield
    await asyncio.to_thread(ray.shutdown)


@asynccontextmanager
async def disturbed(settings: Settings, disturb: Disturb) -> AsyncIterator[None]:
    """While the block lasts it happens again and again."""
    assert settings.redis_url is not None

    async def again_and_again(redis: Redis) -> None:
        while True:
            await disturb(redis)
            await asyncio.sleep(0.05)

    async with Redis.from_url(settings.redis_url) as redis:
        disturbing = asyncio.create_task(again_and_again(redis))
        try:
            yield
        finally:
            await tasks.end(disturbing)


@pytest.mark.parametrize("disturb", [nothing, flush, silence])
async def test_a_booking_shows_in_every_search_within_a_second(settings: Settings, disturb: Disturb) -> None:
    settings = settings.model_copy(update={"live_appointments_max": 0})
    async with comparison(settings) as comparing, disturbed(settings, disturb):
        await comparing.run(SECONDS)
        assert comparing.wrong == []
        assert comparing.commands > 50
        assert comparing.compared > 1000


async def test_the_comparison_finds_answers_that_are_told_without_their_numbers(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant that serves a cache entry without its sequence check."""
    monkeypatch.setattr(ChangeStream, "reached", lambda *_: 0)
    async with comparison(settings.model_copy(update={"live_appointments_max": 0})) as comparing:
        await comparing.run(SECONDS)
        assert any(each.startswith("_of_doctor") for each in comparing.wrong)


async def test_the_comparison_finds_answers_that_are_kept_too_long(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.searches.AGE_MAX_S", 3.0)
    monkeypatch.setattr(Searches, "note", lambda *_: None)
    async with comparison(settings.model_copy(update={"live_appointments_max": 0})) as comparing:
        await comparing.run(SECONDS)
        assert {each.partition(":")[0] for each in comparing.wrong} >= {"_of_specialty", "_of_everybody"}


async def test_a_replica_that_is_behind_makes_no_search_late(settings: Settings, postgres: EmbeddedPostgres) -> None:
    assert settings.database_url is not None
    database = settings.database_url.rpartition("/")[2]
    async with replica_of(postgres) as replica:
        settings = settings.model_copy(
            update={"live_appointments_max": 0, "read_database_url": replica.url_of(database)}
        )
        async with comparison(settings) as comparing:
            await comparing.run(SECONDS / 2)
            assert await asked(comparing.practice.api) > 0, "the replica is used"
            await replica.pause()
            await comparing.run(SECONDS / 2)
            await replica.resume()
            await comparing.run(SECONDS / 2)
            assert comparing.wrong == []


async def asked(api: Application) -> int:
    """How many transactions the replica has had in this database."""
    async with api.services.begin_on_replica() as work:
        row = await work.connection.execute(
            text("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")
        )
        return int(row.scalar_one())


@pytest.fixture
async def practice(settings: Settings) -> AsyncIterator[Practice]:
    async with open_practice(settings) as practice:
        yield practice


async def test_what_is_told_wrongly_leads_to_no_wrong_booking(practice: Practice) -> None:
    """Somebody writes into Redis that a booked slot is free, under a number that no calendar has come to."""
    doctor, slots = await practice.doctor_with_slots(2)
    anna, boris = await practice.people.patients(2)
    before = await practice.get(None, "/v1/slots", doctor_id=doctor.doctor_id)
    await practice.book(anna, slots[0])
    searches: Searches = practice.api.app.state.searches
    key, known = next(
        (key, known) for key, known in searches._known.items() if doctor.doctor_id in key and known.answer.sequence
    )
    lie = replace(known.answer, body=orjson.dumps(before, option=orjson.OPT_UTC_Z), until=4e9, sequence=10**6)
    await searches._store.put(key, lie)

    async def told() -> bool:
        searches._known.pop(key, None)
        items = (await practice.get(None, "/v1/slots", doctor_id=doctor.doctor_id))["items"]
        return bool(items[0]["id"] == slots[0])

    await eventually(told)
    assert (await practice.send(boris, "POST", "/v1/appointments", {"slot_id": slots[0]})).status_code == 409
    assert await practice.differences() == []


async def test_answers_are_shared_through_redis_and_never_replaced_by_older_ones(settings: Settings) -> None:
    assert settings.redis_url is not None
    async with Redis.from_url(settings.redis_url, protocol=3) as redis:
        store, other = (SearchStore(redis, namespace="clinic") for _ in range(2))
        new = Answer(body=b'["new"]', tag='"n"', as_of=NOW, until=NOW.timestamp() + 5, sequence=10)
        old = Answer(body=b'["old"]', tag='"o"', as_of=NOW, until=NOW.timestamp(), sequence=9)
        assert await store.get("key") is None
        await store.put("key", new)
        await other.put("key", old)
        assert await other.get("key") == new
        assert await SearchStore(redis, namespace="another").get("key") is None
        (name,) = await redis.keys("*")
        assert await redis.pttl(name) > 0
        head = b'[%b,"t","2026-01-01T00:00:00%b",%b]\n{}'
        unsound = (head % (b'"7"', b"Z", b"4e9"), head % (b"7", b"", b"4e9"), head % (b"7", b"Z", b"null"))
        for garbage in (b"", b"garbage", b"[1,2]\nbody", b'["\xff', *unsound):
            await redis.set(name, garbage)
            assert await store.get("key") is None
            await store.put("key", old)
            assert await store.get("key") == old


async def test_however_many_ask_redis_at_once_its_connections_are_few(redis_url: str) -> None:
    redis = open_redis(redis_url)
    try:
        before = {client["id"] for client in await redis.client_list()}
        assert await asyncio.gather(*(redis.get("nothing") for _ in range(100))) == [None] * 100
        made = {client["id"] for client in await redis.client_list()} - before
    finally:
        await redis.aclose()
    assert len(made) < REDIS_CONNECTIONS


async def test_redis_that_is_away_is_left_alone_for_a_moment() -> None:
    now = 0.0
    asked = 0

    async def count(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        writer.close()

    server = await asyncio.start_server(count, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, Redis.from_url(f"redis://127.0.0.1:{port}", socket_connect_timeout=0.2, retry=None) as redis:
        store = SearchStore(redis, namespace="clinic", clock=lambda: now)
        assert await store.get("key") is None
        first = asked
        assert first > 0
        for _ in range(3):
            assert await store.get("key") is None
            await store.put("key", Answer(body=b"", tag="", as_of=NOW, until=0, sequence=1))
        assert asked == first
        now += 2 * AWAY_S
        assert await store.get("key") is None
        assert asked > first


async def test_a_hold_that_ends_and_a_slot_that_begins_show_at_once(practice: Practice) -> None:
    doctor, slots = await practice.doctor_with_slots(2)
    anna = await practice.people.patient()
    await practice.post(anna, "/v1/holds", {"slot_id": slots[0]}, expect=201)
    assert [each["id"] for each in (await practice.get(None, "/v1/slots", doctor_id=doctor.doctor_id))["items"]] == [
        slots[1]
    ]
    searches: Searches = practice.api.app.state.searches
    until = [known.answer.until for known in searches._known.values()]
    holds = await practice.get(anna, "/v1/holds")
    assert min(until) <= instant(holds["items"][0]["expires_at"]).timestamp()


async def test_doctors_are_told_with_their_first_free_slot(practice: Practice) -> None:
    elsewhere = await practice.location("Pacific/Auckland")
    doctor = await practice.doctor(practice.location_id, elsewhere)
    here = await practice.open_slots(doctor, days_on(3, 10), days_on(3, 11))
    there = await practice.open_slots(doctor, days_on(2, 10), location_id=elsewhere)
    idle = await practice.doctor()
    anna = await practice.people.patient()

    async def listed(**params: str) -> JSON:
        return content(await practice.send(None, "GET", "/v1/doctors", params={"with": "next_free"} | params), 200)

    async def first(**params: str) -> dict[str, str | None]:
        items = (await listed(**params))["items"]
        return {each["id"]: each["next_free"] and each["next_free"]["id"] for each in items}

    assert await first() == {doctor.doctor_id: there[0], idle.doctor_id: None}
    assert await first(location_id=practice.location_id) == {doctor.doctor_id: here[0], idle.doctor_id: None}
    assert await first(location_id=elsewhere) == {doctor.doctor_id: there[0]}
    await practice.book(anna, here[0])
    assert await first(location_id=practice.location_id) == {doctor.doctor_id: here[1], idle.doctor_id: None}
    slot = (await listed(location_id=elsewhere))["items"][0]["next_free"]
    assert (slot["status"], slot["timezone"]) == (SlotStatus.FREE, "Pacific/Auckland")
    assert "next_free" not in (await practice.get(None, "/v1/doctors"))["items"][0]
    assert (await practice.send(None, "GET", "/v1/doctors", params={"with": "prices"})).status_code == 422
