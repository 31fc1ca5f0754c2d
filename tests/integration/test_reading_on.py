"""While PostgreSQL is away what is known is told, with the instant it was true for; when it is back, what is true."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import pytest

from cluster.data_directory import free_port
from cluster.embedded import EmbeddedPostgres
from cluster.settings import Settings
from tests.faults.proxy import Proxy
from tests.integration.practice import Practice, eventually, instant, open_practice

PROMPT_S = 1.0
FIRST_S = 6.0
"""Until it is known that the database is away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A practice that reaches its database through a proxy."""

    practice: Practice
    proxy: Proxy
    postgres_port: int

    async def look(self, path: str, **params: str) -> httpx.Response:
        """What anybody is told."""
        return await self.practice.send(None, "GET", path, params=params)


@pytest.fixture
async def cut(settings: Settings, postgres: EmbeddedPostgres) -> AsyncIterator[Cut]:
    assert settings.database_url is not None
    proxy = Proxy(postgres.port)
    await proxy.start()
    through = settings.database_url.replace(f":{postgres.port}/", f":{proxy.port}/")
    async with open_practice(settings.model_copy(update={"database_url": through})) as practice:
        yield Cut(practice=practice, proxy=proxy, postgres_port=postgres.port)
    await proxy.stop()


@pytest.mark.parametrize("silent", [True, False])
async def test_searches_go_on_while_postgres_is_away(cut: Cut, silent: bool) -> None:
    """It does not answer, or nobody is there."""
    doctor, slots = await cut.practice.doctor_with_slots(4)
    patient = await cut.practice.people.patient()
    searches: tuple[tuple[str, dict[str, str]], ...] = (
        ("/v1/slots", {"doctor_id": doctor.doctor_id}),
        ("/v1/slots", {"specialty": "cardiology"}),
        ("/v1/doctors", {"with": "next_free"}),
        ("/v1/locations", {}),
    )
    before = [await cut.look(path, **params) for path, params in searches]

    cut.proxy.upstream_port = free_port()
    if silent:
        cut.proxy.hold()
    else:
        cut.proxy.cut()
    away_at = time.monotonic()
    while time.monotonic() - away_at < FIRST_S:
        await asyncio.gather(*(cut.look(path, **params) for path, params in searches))
    for (path, params), known in zip(searches, before, strict=True):
        began = time.monotonic()
        answer = await cut.look(path, **params)
        assert time.monotonic() - began < PROMPT_S, path
        assert (answer.status_code, answer.content) == (200, known.content), path
        assert answer.headers["etag"] == known.headers["etag"]
        as_of = [instant(each.headers["x-as-of"]) for each in (known, answer)]
        assert 0 <= (as_of[1] - as_of[0]).total_seconds() < 2, "it says of when it is"
    # What nobody has asked for is known to nobody.
    assert (await cut.look("/v1/slots", specialty="cardiology", limit="3")).status_code == 503

    cut.proxy.upstream_port = cut.postgres_port
    cut.proxy.release()
    cut.proxy.cut()

    async def booked() -> bool:
        return (await cut.practice.send(patient, "POST", "/v1/appointments", {"slot_id": slots[0]})).status_code == 201

    await eventually(booked)
    for path, params in searches[:2]:
        found = (await cut.look(path, **params)).json()["items"]
        assert [each["id"] for each in found] == slots[1:], path
