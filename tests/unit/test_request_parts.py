"""What is read from a request besides its body: addresses, cursors, entity tags, instants."""

from __future__ import annotations

import hashlib
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from api.dependencies import PageRequest, if_version, unchanged, version_tag, wants_async
from api.errors import PROBLEMS, Problem, pointer_to, problem_of
from api.fields import Email, Flag, Id, Instant, Login, Phone, Timezone, Whole, rfc3339
from api.middleware import ClientAddress, Proxies, client_address
from api.routing import Json, StrictRequest
from api.scheduling.commands import keyed_command_id
from persistence.sealed import Vault

VAULT = Vault(bytes(32))


def scope(client: str | None, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http", "headers": list(headers), "client": (client, 1234) if client else None}


@pytest.mark.parametrize(
    ("client", "who"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("::1", "::/64"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("not:an:address", "not:an:address"),
        (None, ""),
    ],
)
def test_who_is_counted_when_nobody_is_signed_in(client: str | None, who: str) -> None:
    assert client_address(scope(client)) == who


@pytest.mark.parametrize(
    ("peer", "forwarded", "believed"),
    [
        ("10.0.0.1", b"203.0.113.7", "203.0.113.7"),
        ("10.0.0.1", b"6.6.6.6, 203.0.113.7", "203.0.113.7"),
        ("10.0.0.1", b"203.0.113.7, 10.0.0.2", "203.0.113.7"),
        ("10.0.0.1", b"203.0.113.7:4711", "203.0.113.7"),
        ("10.0.0.1", b"[2001:db8::1]:4711", "2001:db8::1"),
        ("10.0.0.1", b"10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", b"203.0.113.7, nonsense", "10.0.0.1"),
        ("10.0.0.1", b"", "10.0.0.1"),
        ("10.0.0.1", b"\xff\xfe", "10.0.0.1"),
        ("203.0.113.9", b"6.6.6.6", "203.0.113.9"),
    ],
)
async def test_whom_a_proxy_speaks_for(peer: str, forwarded: bytes, believed: str) -> None:
    seen: list[str] = []

    async def application(inner: Scope, receive: Receive, send: Send) -> None:
        seen.append(inner["client"][0])

    async def nothing(*_: object) -> Any:
        raise AssertionError

    await ClientAddress(application, proxies=Proxies(["10.0.0.0/8"]))(
        scope(peer, (b"x-forwarded-for", forwarded)), nothing, nothing
    )
    assert seen == [believed]


@given(st.lists(st.text(max_size=20), min_size=1, max_size=3))
def test_a_cursor_says_again_what_it_was_made_of(key: list[str]) -> None:
    first = PageRequest(50, None, VAULT)
    assert first.after("slots", len(key)) is None
    cursor = first.next_cursor("slots", key)
    assert PageRequest(50, cursor, VAULT).after("slots", len(key)) == tuple(key)
    for other in (PageRequest(50, cursor, Vault(bytes([1] * 32))), PageRequest(50, cursor[:-2], VAULT)):
        with pytest.raises(Problem):
            other.after("slots", len(key))
    with pytest.raises(Problem):
        PageRequest(50, cursor, VAULT).after("doctors", len(key))


@given(st.text(max_size=60))
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(Problem) as refused:
        PageRequest(50, text, VAULT).after("slots", 2)
    assert refused.value.errors[0][0] == "/query/cursor"


def test_instants_in_cursors_and_answers_end_in_z() -> None:
    instant = datetime(2026, 11, 24, 10, tzinfo=UTC) + timedelta(microseconds=5)
    cursor = PageRequest(50, None, VAULT).next_cursor("slots", [instant, "x"])
    assert PageRequest(50, cursor, VAULT).after("slots", 2) == ("2026-11-24T10:00:00.000005Z", "x")
    assert rfc3339(datetime(2026, 11, 24, 10, tzinfo=UTC)) == "2026-11-24T10:00:00Z"
    assert Json({"at": datetime(2026, 11, 24, 10, tzinfo=UTC)}).body == b'{"at":"2026-11-24T10:00:00Z"}'


@pytest.mark.parametrize(("header", "version"), [(None, None), ("*", None), (' "3" ', 3), (version_tag(17, b"{}"), 17)])
async def test_versions_that_if_match_names(header: str | None, version: int | None) -> None:
    assert await if_version(header) == version


@pytest.mark.parametrize(
    "header", ["", "3", '"', '""', 'W/"3"', '"x"', '"3", "4"', '"3-"', '"3-zz"', '"-3"', '"٣"', '"99999999999"']
)
async def test_what_names_no_version_is_never_matched(header: str) -> None:
    with pytest.raises(Problem) as refused:
        await if_version(header)
    assert refused.value.status == 412


@pytest.mark.parametrize(
    ("given", "same"),
    [('"a"', True), ('W/"a"', True), ('"b", "a"', True), ("*", True), ('"b"', False), ("a", False), ("", False)],
)
def test_what_somebody_has_already(given: str, same: bool) -> None:
    request = Request(scope("x", (b"if-none-match", given.encode())))
    assert (unchanged(request, '"a"') is not None) is same


def test_a_wish_not_to_wait() -> None:
    assert wants_async("respond-async")
    assert wants_async("return=minimal, Respond-Async; wait=5")
    assert not wants_async(None)
    assert not wants_async("respond-asynchronously")


@pytest.mark.parametrize(
    ("written", "instant"),
    [
        ("2026-11-24T09:00:00Z", "2026-11-24T09:00:00Z"),
        ("2026-11-24t09:00:00z", "2026-11-24T09:00:00Z"),
        ("2026-11-24T10:30:00+01:30", "2026-11-24T09:00:00Z"),
        ("2026-11-24T09:00:00.5Z", "2026-11-24T09:00:00.500000Z"),
    ],
)
def test_instants(written: str, instant: str) -> None:
    assert rfc3339(TypeAdapter(Instant).validate_python(written)) == instant


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *(
            (Instant, value)
            for value in (
                "2026-11-24T09:00:00",
                "2026-11-24 09:00:00Z",
                "2026-11-24",
                "2026-02-30T09:00:00Z",
                "2026-11-24T25:00:00Z",
                "2026-11-24T09:00:60Z",
                "0001-01-01T00:00:00+14:00",
                "9999-12-31T23:59:59-14:00",
                "1900-01-01T00:00:00+14:00",
                "2026-11-24T09:00:00+99:00",
                "٢٠٢٦-11-24T09:00:00Z",
                1_800_000_000,
                True,
                None,
                "",
            )
        ),
        *(
            (Id, value)
            for value in ("x", "", "{019ab3c4-5d6e-7f80-9123-456789abcdef}", "019ab3c45d6e7f809123456789ab", 1)
        ),
        *((Whole, value) for value in ("1", 1.5, 1.0, True, None)),
        *((Flag, value) for value in ("true", 1, 0, None)),
    ],
)
def test_what_is_not_of_its_form_is_refused(kind: Any, value: object) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(kind).validate_python(value)


@given(st.text(max_size=80))
def test_no_text_breaks_a_field(text: str) -> None:
    for kind in (Login, Email, Phone, Timezone, Instant, Id):
        adapter: TypeAdapter[Any] = TypeAdapter(kind)
        try:
            normal = adapter.validate_python(text)
        except ValidationError:
            continue
        if isinstance(normal, str):
            assert adapter.validate_python(normal) == normal, "the normal form of a normal form is itself"


def test_every_problem_has_a_body_that_names_it() -> None:
    for code, (status, detail) in PROBLEMS.items():
        body = Problem(code).body("/v1/x")
        assert (body["code"], body["status"], body["detail"], body["instance"]) == (code, status, detail, "/v1/x")
        assert ("Retry-After" in Problem(code).headers) == (status in (429, 503))


def test_what_nobody_foresaw_is_no_problem() -> None:
    assert problem_of(LookupError()) is None


def test_pointers_are_escaped_and_can_be_said() -> None:
    assert pointer_to("a/b", "c~d", 0) == "/a~1b/c~0d/0"
    assert pointer_to("\ud800").encode()
    assert len(pointer_to("x" * 10_000)) <= 200


@given(st.text(), st.text())
def test_the_id_of_a_command_follows_from_its_user_and_key(user_id: str, key: str) -> None:
    """By RFC 9562: a digest's first 16 bytes, with the version and the variant of a UUIDv7."""
    digest = hashlib.sha256(f"{user_id}\x00{key}".encode()).digest()[:16]
    made = uuid.UUID(
        bytes=bytes([*digest[:6], 0x70 | digest[6] & 0xF, digest[7], 0x80 | digest[8] & 0x3F, *digest[9:]])
    )
    assert keyed_command_id(user_id, key) == str(made)
    assert made.version == 7


def body_of(*messages: dict[str, Any]) -> StrictRequest:
    """A request whose body comes so."""
    coming = iter(messages)

    async def receive() -> dict[str, Any]:
        return next(coming)

    return StrictRequest({"type": "http", "headers": []}, receive)


async def test_a_body_is_all_of_its_pieces() -> None:
    request = body_of(
        {"type": "http.request", "body": b"[1", "more_body": True},
        {"type": "http.request", "more_body": True},
        {"type": "http.request", "body": b",2]"},
    )
    assert await request.body() == b"[1,2]"
    assert await request.json() == [1, 2]
    assert await body_of({"type": "http.request"}).body() == b""


async def test_a_body_that_will_not_come_is_no_body() -> None:
    request = body_of({"type": "http.request", "body": b"[1", "more_body": True}, {"type": "http.disconnect"})
    with pytest.raises(ClientDisconnect):
        await request.body()
