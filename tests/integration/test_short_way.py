"""A request gets the same answer on the short way as on the long one: that is all that the short way promises."""

from __future__ import annotations

from collections import Counter
from typing import Any

import httpx
import pytest

from api import short_way
from persistence.identifiers import new_id
from tests.integration.practice import Practice, content, refusal

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHORT = "application/json"
LONG = "application/json; charset=utf-8"
"""Means the same, and is unusual."""
NOBODYS_SLOT = "019ab3c4-5d6e-7f80-9123-456789abcdef"


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the short way was tried, and how often it answered."""
    counter: Counter[str] = Counter()
    original = short_way._answer

    async def counted(*arguments: Any) -> Any:
        counter["tried"] += 1
        answer = await original(*arguments)
        counter["answered"] += answer is not None
        return answer

    monkeypatch.setattr(short_way, "_answer", counted)
    return counter


async def sent(
    practice: Practice, body: bytes, content_type: str, path: str = "/v1/appointments", **headers: str
) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await practice.api.http.post(path, content=body, headers={"content-type": content_type} | named)


def same(one: httpx.Response, other: httpx.Response) -> bool:
    """Whether two answers differ in nothing but what differs between any two."""
    ignored = {"x-request-id", "date"}
    headers = [{name: value for name, value in each.headers.items() if name not in ignored} for each in (one, other)]
    return (one.status_code, one.content, headers[0]) == (other.status_code, other.content, headers[1])


@pytest.mark.parametrize("path", ["/v1/appointments", "/v1/holds"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"slot"',
        b"{}",
        b'{"slot_id": 7}',
        b'{"slot_id": "no id"}',
        b'{"slot_id": "019ab3c4-5d6e-7f80-9123-456789abcdef", "more": 1}',
        b'{"slot_id": "019ab3c4-5d6e-7f80-9123-456789abcdef", "reason": "\\u0000"}',
        b'{"slot_id": "019ab3c4-5d6e-7f80-9123-456789abcdef", "slot_id": NaN}',
        b'{"slot_id": "\xff"}',
        b'{"slot_id": "019ab3c4-5d6e-7f80-9123-456789abcdef"}',
    ],
)
async def test_a_body_that_leads_to_no_visit(practice: Practice, taken: Counter[str], path: str, body: bytes) -> None:
    anna = await practice.people.patient()
    for headers in (anna.headers, {}, {"authorization": "Bearer bad"}, {"authorization": "Basic YTpi"}):
        short, long = [await sent(practice, body, way, path, **headers) for way in (SHORT, LONG)]
        assert same(short, long)
        assert 400 <= short.status_code < 500
    assert taken["tried"] == 4


@pytest.mark.parametrize("key", ["", "k" * 129, "two words", "schlüssel", "ok-but-long" * 20])
async def test_a_key_that_is_none(practice: Practice, taken: Counter[str], key: str) -> None:
    anna = await practice.people.patient()
    body = f'{{"slot_id": "{NOBODYS_SLOT}"}}'.encode()
    own = [(name.encode(), value.encode()) for name, value in anna.headers.items()]
    own.append((b"idempotency-key", key.encode("latin-1")))
    answers = [
        await practice.api.http.post("/v1/appointments", content=body, headers=[(b"content-type", way.encode()), *own])
        for way in (SHORT, LONG)
    ]
    assert same(*answers)
    assert answers[0].status_code == 422
    assert not taken


async def test_a_visit(practice: Practice, taken: Counter[str]) -> None:
    anna = await practice.people.patient()
    _, slots = await practice.doctor_with_slots(2)
    key = new_id()
    body = f'{{"slot_id": "{slots[0]}", "reason": "Headaches"}}'.encode()
    booked = await sent(practice, body, SHORT, idempotency_key=key, **anna.headers)
    assert taken == {"tried": 1, "answered": 1}
    visit = content(booked, 201)
    assert visit["reason"] == "Headaches"
    assert same(booked, await sent(practice, body, LONG, idempotency_key=key, **anna.headers)), "the same command"
    other = await sent(practice, body, SHORT, **anna.headers)
    assert refusal(other) == "409 slot_taken"
    assert same(other, await sent(practice, body, LONG, **anna.headers))


async def test_a_hold(practice: Practice, taken: Counter[str]) -> None:
    anna = await practice.people.patient()
    _, slots = await practice.doctor_with_slots(1)
    body = f'{{"slot_id": "{slots[0]}"}}'.encode()
    held = await sent(practice, body, SHORT, "/v1/holds", **anna.headers)
    assert held.status_code == 201
    assert taken == {"tried": 1, "answered": 1}
    assert same(held, await sent(practice, body, LONG, "/v1/holds", **anna.headers)), "the hold that is there"


async def test_what_is_unusual_goes_the_long_way(practice: Practice, taken: Counter[str]) -> None:
    anna = await practice.people.patient()
    body = f'{{"slot_id": "{NOBODYS_SLOT}"}}'.encode()
    for headers in ({"prefer": "respond-async"}, {"content_encoding": "gzip"}):
        await sent(practice, body, SHORT, **headers, **anna.headers)
    twice = [*anna.headers.items(), ("content-type", SHORT), ("idempotency-key", "a"), ("idempotency-key", "b")]
    await practice.api.http.post("/v1/appointments", content=body, headers=twice)
    assert not taken


async def test_the_routes_are_counted_under_their_names(practice: Practice, taken: Counter[str]) -> None:
    anna = await practice.people.patient()
    await sent(practice, f'{{"slot_id": "{NOBODYS_SLOT}"}}'.encode(), SHORT, **anna.headers)
    assert taken["tried"] == 1
    metrics = await practice.api.http.get("/metrics")
    assert 'route="/v1/appointments",status="404"' in metrics.text
