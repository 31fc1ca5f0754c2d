"""What bad input gets wherever visits are booked: the contract's code, and never a 500."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from persistence.identifiers import new_id
from tests.integration.practice import Practice, days_on, refusal
from tests.people import Person

pytestmark = pytest.mark.asyncio(loop_scope="module")

ID = "01a203f1-3cf2-732b-9eb8-316bba9cc488"
HOLDS, VISITS = "/v1/holds", "/v1/appointments"
MOVE, CANCEL = f"/v1/appointments/{ID}/reschedule", f"/v1/appointments/{ID}/cancel"
TAKING = (HOLDS, VISITS, MOVE)
"""What takes a slot."""
NOTES = tuple(f"/v1/appointments/{ID}/{how}" for how in ("arrive", "fulfil", "no-show"))
DEEP = 100_000


async def _raw(practice: Practice, who: Person, path: str, body: bytes, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in ({"content_type": "application/json"} | headers).items()}
    return await practice.api.http.post(path, content=body, headers=who.headers | named)


def _pointers(answer: httpx.Response) -> list[str]:
    assert refusal(answer) == "422 validation_error", answer.text
    return [error["pointer"] for error in answer.json()["errors"]]


@pytest.fixture(scope="module")
def people() -> dict[str, Person]:
    return {}


async def _anna(practice: Practice, people: dict[str, Person]) -> Person:
    """The same patient in every test."""
    if "anna" not in people:
        people["anna"] = await practice.people.patient()
    return people["anna"]


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"",
        b"slot_id=1",
        b'{"slot_id": "\xff\xfe"}',
        b'\xef\xbb\xbf{"slot_id": "x"}',
        b'{"slot_id": "\\ud800"}',
        b'{"slot_id": NaN}',
        b'{"slot_id": 1e999}',
        b'{"slot_id": ' + b"9" * 4000 + b"}",
        b'{"slot_id": "x",}',
        b"{'slot_id': 'x'}",
        b'{"slot_id": "x"} {}',
        b"[" * DEEP,
        b"[" * DEEP + b"]" * DEEP,
        b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    ],
    ids=lambda body: repr(body[:24]),
)
async def test_what_is_not_json(practice: Practice, people: dict[str, Person], body: bytes) -> None:
    anna = await _anna(practice, people)
    for path in (*TAKING, CANCEL):
        answer = await _raw(practice, anna, path, body)
        if path == CANCEL and not body:
            assert refusal(answer) == "404 not_found"
            continue
        assert _pointers(answer) == [""], path


@pytest.mark.parametrize("body", ["[]", '"x"', "1", "true", "[1, 2]", f'["{ID}"]'])
async def test_what_is_no_object(practice: Practice, people: dict[str, Person], body: str) -> None:
    anna = await _anna(practice, people)
    for path in (*TAKING, CANCEL):
        assert _pointers(await _raw(practice, anna, path, body.encode())) == [""], path


@pytest.mark.parametrize(
    "slot_id",
    [
        *("null", "1", "1.5", "true", "[]", "{}", '""', '"x"', '" "', "9" * 300, "-1", "1e300"),
        *(f'"{ID[:-1]}"', f'"{ID}0"', f'"{{{ID}}}"', f'"urn:uuid:{ID}"', f'"{ID.replace("-", "")}"', f'" {ID}"'),
        *(f'"{ID[:-1]}g"', f'"{ID[:-1]}\u0661"', f'"{ID[:-1]}\\u0000"', f'["{ID}"]', f'"{"a" * 100_000}"'),
    ],
    ids=lambda text: text[:40],
)
async def test_what_is_no_id(practice: Practice, people: dict[str, Person], slot_id: str) -> None:
    anna = await _anna(practice, people)
    for path in TAKING:
        assert _pointers(await _raw(practice, anna, path, f'{{"slot_id": {slot_id}}}'.encode())) == ["/slot_id"], path
    if slot_id != "null":
        for path in (VISITS, MOVE):
            body = f'{{"slot_id": "{ID}", "hold_id": {slot_id}}}'
            assert _pointers(await _raw(practice, anna, path, body.encode())) == ["/hold_id"], path
        body = f'{{"slot_id": "{ID}", "patient_id": {slot_id}}}'
        assert _pointers(await _raw(practice, anna, VISITS, body.encode())) == ["/patient_id"]


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("x" * 501, "at most 500"),
        ("a\x00b", "NUL"),
        ("a\x07b", "control"),
        ("a\x1b[31mb", "control"),
        ("a\u0085b", "control"),
        (1, "string"),
        (["x"], "string"),
        ({"x": 1}, "string"),
        (True, "string"),
        (10**30, "string"),
    ],
    ids=lambda value: repr(value)[:20],
)
async def test_what_is_no_reason(practice: Practice, people: dict[str, Person], text: Any, detail: str) -> None:
    anna = await _anna(practice, people)
    for who, path, field in (
        (anna, VISITS, "reason"),
        (anna, CANCEL, "reason"),
        (practice.admin, VISITS, "override_reason"),
        (practice.admin, MOVE, "override_reason"),
        (practice.admin, CANCEL, "override_reason"),
    ):
        body = {field: text} | ({} if path == CANCEL else {"slot_id": ID})
        answer = await practice.send(who, "POST", path, body)
        assert _pointers(answer) == [f"/{field}"], (path, field)
        assert detail in answer.json()["errors"][0]["detail"]
        assert "x" * 20 not in answer.text, "what was sent is not sent back"


async def test_an_override_says_why(practice: Practice) -> None:
    for path in (VISITS, MOVE, CANCEL):
        for reason in ("", "  ", "\n\t"):
            body = {"override_reason": reason} | ({} if path == CANCEL else {"slot_id": ID})
            assert _pointers(await practice.send(practice.admin, "POST", path, body)) == ["/override_reason"]


async def test_texts_that_are_fine(practice: Practice) -> None:
    anna = await practice.people.patient()
    _, slots = await practice.doctor_with_slots(6)
    texts = ["Боль в груди\nс понедельника", "👩‍⚕️ " * 50, "é" * 500, "'; DROP TABLE slot; --", "<script>", "%s {0} \\"]
    for slot, text in zip(slots, texts, strict=True):
        visit = await practice.book(anna, slot, reason=text)
        assert visit["reason"] == text.strip()
        assert (await practice.get(anna, f"{VISITS}/{visit['id']}"))["reason"] == text.strip()


@pytest.mark.parametrize("path", [*TAKING, CANCEL])
async def test_fields_that_are_missing_or_unknown(practice: Practice, people: dict[str, Person], path: str) -> None:
    anna = await _anna(practice, people)
    if path != CANCEL:
        assert _pointers(await practice.send(anna, "POST", path, {})) == ["/slot_id"]
        assert _pointers(await practice.send(anna, "POST", path)) == [""]
    known = {} if path == CANCEL else {"slot_id": ID}
    for unknown in ("slot", "Slot_id", "status", "start", "booked_by", "a/b~c", "\ufffd", "x" * 1000, ""):
        pointer = "/" + unknown.replace("~", "~0").replace("/", "~1")
        assert _pointers(await practice.send(anna, "POST", path, known | {unknown: 1})) == [pointer[:200]]
    many = await practice.send(anna, "POST", path, known | {f"f{number}": number for number in range(5000)})
    assert len(_pointers(many)) == 50
    nul = await practice.send(anna, "POST", path, known | {"a\x00": {"b": ["", "\x00"]}})
    assert _pointers(nul) == ["/a\ufffd", "/a\ufffd/b/1"]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"content_type": "text/plain"}, "415 unsupported_media_type"),
        ({"content_type": ""}, "415 unsupported_media_type"),
        ({"content_type": "application/x-www-form-urlencoded"}, "415 unsupported_media_type"),
        ({"content_type": "multipart/form-data; boundary=x"}, "415 unsupported_media_type"),
        ({"content_type": "application/jsonp"}, "415 unsupported_media_type"),
        ({"content_type": "application/problem+json"}, "415 unsupported_media_type"),
        ({"content_type": "application/json, text/plain"}, "415 unsupported_media_type"),
        ({"content_type": "application/json", "content_encoding": "gzip"}, "415 unsupported_media_type"),
        ({"content_type": "Application/JSON; charset=utf-8"}, "404 not_found"),
    ],
    ids=str,
)
async def test_content_types(
    practice: Practice, people: dict[str, Person], headers: dict[str, str], expected: str
) -> None:
    anna = await _anna(practice, people)
    body = json.dumps({"slot_id": ID}).encode()
    for path in TAKING:
        assert refusal(await _raw(practice, anna, path, body, **headers)) == expected, path
    assert refusal(await _raw(practice, anna, CANCEL, b"{}", **headers)) == expected


async def test_bodies_that_are_too_long(practice: Practice, people: dict[str, Person]) -> None:
    anna = await _anna(practice, people)
    too_long = b'{"slot_id": "' + b"x" * (1 << 20) + b'"}'

    async def in_pieces() -> Any:
        for _ in range(20):
            yield b" " * 100_000

    for path in (*TAKING, CANCEL):
        assert refusal(await _raw(practice, anna, path, too_long)) == "413 content_too_large", path
        chunked = await practice.api.http.post(
            path, content=in_pieces(), headers=anna.headers | {"Content-Type": "application/json"}
        )
        assert refusal(chunked) == "413 content_too_large", path


@pytest.mark.parametrize("body", [None, {"reason": "x"}, []])
async def test_bodies_where_there_should_be_none(practice: Practice, people: dict[str, Person], body: Any) -> None:
    for path in NOTES:
        assert refusal(await practice.send(practice.admin, "POST", path, body)) == "404 not_found"


@pytest.mark.parametrize(
    "given",
    ["x", "1", "null", ID + "0", ID.replace("-", ""), "%7B" + ID + "%7D", "%00", "a" * 200, "..%2f..", "%ff", "%20"],
)
async def test_addresses_that_name_no_id(practice: Practice, people: dict[str, Person], given: str) -> None:
    anna = await _anna(practice, people)
    admin = practice.admin
    for who, method, path in (
        (anna, "GET", f"{VISITS}/{given}"),
        (anna, "POST", f"{VISITS}/{given}/cancel"),
        (anna, "POST", f"{VISITS}/{given}/reschedule"),
        (admin, "POST", f"{VISITS}/{given}/arrive"),
        (anna, "DELETE", f"{HOLDS}/{given}"),
        (anna, "GET", f"/v1/commands/{given}"),
        (admin, "POST", f"/v1/admin/slots/{given}/block"),
    ):
        body = {"slot_id": ID} if path.endswith("reschedule") else None
        answer = await practice.send(who, method, path, body)
        if given in ("%00", "..%2f.."):
            assert refusal(answer) == "404 not_found", (method, path)
        else:
            assert refusal(answer) == "422 validation_error", (method, path)
            assert [error["pointer"].split("/")[1] for error in answer.json()["errors"]] == ["path"]


async def test_addresses_where_nothing_is(practice: Practice, people: dict[str, Person]) -> None:
    anna = await _anna(practice, people)
    _, (slot, *_) = await practice.doctor_with_slots(1)
    visit = await practice.book(anna, slot)
    for method, path, expected in (
        ("GET", f"{VISITS}/{new_id()}", "404 not_found"),
        ("GET", f"{VISITS}/{slot}", "404 not_found"),
        ("GET", f"{VISITS}/{visit['id']}/", "404 not_found"),
        ("GET", f"{VISITS}/", "404 not_found"),
        ("GET", f"/v1//appointments/{visit['id']}", "404 not_found"),
        ("GET", f"/V1/appointments/{visit['id']}", "404 not_found"),
        ("POST", f"{VISITS}/{visit['id']}/explode", "404 not_found"),
        ("POST", f"{VISITS}/{visit['id']}/Cancel", "404 not_found"),
        ("GET", "/", "404 not_found"),
        ("GET", "/v2/appointments", "404 not_found"),
        ("DELETE", f"{HOLDS}/{new_id()}", "404 not_found"),
        ("GET", f"/v1/commands/{visit['id']}", "404 not_found"),
        ("GET", VISITS + "/" + "a" * 9000, "414 uri_too_long"),
        ("GET", VISITS + "?status=" + "a" * 9000, "414 uri_too_long"),
    ):
        assert refusal(await practice.send(anna, method, path)) == expected, (method, path)
    assert (await practice.get(anna, f"{VISITS}/{visit['id'].upper()}"))["id"] == visit["id"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", VISITS, "GET, POST"),
        ("DELETE", VISITS, "GET, POST"),
        ("PATCH", f"{VISITS}/{ID}", "GET"),
        ("POST", f"{VISITS}/{ID}", "GET"),
        ("DELETE", f"{VISITS}/{ID}", "GET"),
        ("GET", CANCEL, "POST"),
        ("PUT", MOVE, "POST"),
        ("GET", f"{HOLDS}/{ID}", "DELETE"),
        ("POST", "/v1/slots", "GET"),
        ("TRACE", VISITS, "GET, POST"),
        ("BOOK", VISITS, "GET, POST"),
        ("get", VISITS, "GET, POST"),
    ],
)
async def test_methods_that_are_wrong(
    practice: Practice, people: dict[str, Person], method: str, path: str, allowed: str
) -> None:
    anna = await _anna(practice, people)
    request = practice.api.http.build_request("GET", path, headers=anna.headers)
    request.method = method
    answer = await practice.api.http.send(request)
    assert refusal(answer) == "405 method_not_allowed"
    assert answer.headers["allow"] == allowed


LISTS = (VISITS, HOLDS, "/v1/slots")


@pytest.mark.parametrize("limit", ["0", "-1", "201", "x", "", "1.5", "1e2", "9" * 100, "0x10", "null"])
async def test_limits_that_are_none(practice: Practice, people: dict[str, Person], limit: str) -> None:
    anna = await _anna(practice, people)
    for path in LISTS:
        answer = await practice.send(anna, "GET", path, params={"limit": limit})
        assert _pointers(answer) == ["/query/limit"], path


@pytest.mark.parametrize(
    "day",
    [
        *("", "x", "today", "2026-13-01", "2026-02-30", "2026-1-1", "20261124", "2026-W48-2", "2026-328", "24.11.2026"),
        *("2026-11-24T09:00:00Z", "2026-11-24T00:00:00", "1764000000", "0001-01-01", "9999-12-31", "10000-01-01"),
        *("-2026-11-24", "2026-11-24 ", "２０２６-11-24", "1899-12-31", "2201-01-01"),
    ],
)
async def test_days_that_are_none(practice: Practice, people: dict[str, Person], day: str) -> None:
    anna = await _anna(practice, people)
    for path in (VISITS, "/v1/slots"):
        for name in ("from", "to"):
            answer = await practice.send(anna, "GET", path, params={name: day})
            assert _pointers(answer) == [f"/query/{name}"], (path, name)


async def test_ranges_that_are_none(practice: Practice, people: dict[str, Person]) -> None:
    anna = await _anna(practice, people)
    for path in (VISITS, "/v1/slots"):
        backwards = {"from": "2026-11-25", "to": "2026-11-24"}
        assert _pointers(await practice.send(anna, "GET", path, params=backwards)) == ["/query/to"], path
    too_long = {"from": "2026-11-24", "to": "2027-01-25"}
    assert _pointers(await practice.send(anna, "GET", "/v1/slots", params=too_long)) == ["/query/to"]
    long = {"from": "1901-01-01", "to": "2199-12-31"}
    assert (await practice.send(anna, "GET", VISITS, params=long)).status_code == 200


@pytest.mark.parametrize(
    "status", ["", ",", " ", "x", "free", "booked,x", "BOOKED", "booked;cancelled", "pending", "x" * 101]
)
async def test_statuses_that_are_none(practice: Practice, people: dict[str, Person], status: str) -> None:
    anna = await _anna(practice, people)
    assert _pointers(await practice.send(anna, "GET", VISITS, params={"status": status})) == ["/query/status"]
    if status != "free":
        assert _pointers(await practice.send(anna, "GET", "/v1/slots", params={"status": status})) == ["/query/status"]


@pytest.mark.parametrize("name", ["patient_id", "doctor_id", "location_id"])
async def test_ids_in_queries_that_are_none(practice: Practice, people: dict[str, Person], name: str) -> None:
    anna = await _anna(practice, people)
    for given in ("x", "", ID + "0", f"{{{ID}}}", ID.replace("-", "")):
        assert _pointers(await practice.send(anna, "GET", VISITS, params={name: given})) == [f"/query/{name}"]
    assert (await practice.send(anna, "GET", VISITS, params={name: ID.upper()})).json()["items"] == []


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("status=%00", "422 validation_error"),
        ("cursor=a%00b", "422 validation_error"),
        ("x=%00", "422 validation_error"),
        ("status=%ED%A0%80", "422 validation_error"),
        ("status=%ff%fe", "422 validation_error"),
        ("status=%zz", "422 validation_error"),
        ("limit=1&limit=x", "422 validation_error"),
        ("patient_id=" + ID + "&patient_id=x", "422 validation_error"),
        ("&&&==&=&", ""),
        ("unknown=1", ""),
        ("%ED%A0%80=1", ""),
    ],
)
async def test_queries(practice: Practice, people: dict[str, Person], query: str, expected: str) -> None:
    anna = await _anna(practice, people)
    answer = await practice.send(anna, "GET", f"{VISITS}?{query}")
    assert (refusal(answer) if answer.status_code != 200 else "") == expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"if_match": "x" * 201}, "422 validation_error"),
        ({"prefer": "x" * 201}, "422 validation_error"),
        ({"idempotency_key": "x" * 129}, "422 validation_error"),
        ({"x_request_id": "\x7f" * 10}, "404 not_found"),
        ({"x_request_id": "x" * 20_000}, "404 not_found"),
        ({"x_long": "x" * 40_000}, "431 headers_too_large"),
        ({"if_none_match": "x" * 1000}, "404 not_found"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_headers(practice: Practice, people: dict[str, Person], headers: dict[str, str], expected: str) -> None:
    anna = await _anna(practice, people)
    answer = await practice.send(anna, "POST", CANCEL, {}, **headers)
    assert refusal(answer) == expected
    assert "\x7f" not in answer.headers["x-request-id"]
    assert len(answer.headers["x-request-id"]) <= 128


async def test_times_without_a_zone(practice: Practice) -> None:
    doctor = await practice.doctor()
    path = f"/v1/admin/doctors/{doctor.doctor_id}/closures"
    for given in (
        *("2026-11-24T09:00:00", "2026-11-24 09:00:00Z", "2026-11-24T09:00Z", "2026-11-24T25:00:00Z", "1764000000"),
        *("2026-11-24T09:00:00+25:00", "2026-11-24T09:00:00 Europe/Berlin", "2026-11-24T09:00:00z+01:00", "now"),
        *("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", "2026-11-24T09:00:60Z"),
    ):
        body = {"from": given, "to": "2026-11-25T09:00:00Z", "reason": "Conference", "dry_run": True}
        assert _pointers(await practice.send(practice.admin, "POST", path, body)) == ["/from"], given
    with_offset = {"from": "2026-11-24T09:00:00+01:00", "to": "2026-11-24t08:00:01z", "reason": "x", "dry_run": True}
    made = await practice.post(practice.admin, path, with_offset, expect=201)
    assert made == {"id": None, "blocked": 0, "displaced": []}


async def test_who_may_not(practice: Practice, people: dict[str, Person]) -> None:
    """The role is looked at before anything else, the token before the role."""
    anna = await _anna(practice, people)
    _, (slot, *_) = await practice.doctor_with_slots(1, first=days_on(6))
    visit = await practice.book(await practice.people.patient(), slot)
    for method, path in (
        ("POST", VISITS),
        ("GET", VISITS),
        ("GET", f"{VISITS}/{visit['id']}"),
        ("POST", f"{VISITS}/{visit['id']}/reschedule"),
        ("POST", f"{VISITS}/{visit['id']}/cancel"),
        ("POST", f"{VISITS}/{visit['id']}/arrive"),
        ("POST", f"{VISITS}/{visit['id']}/fulfil"),
        ("POST", f"{VISITS}/{visit['id']}/no-show"),
        ("POST", HOLDS),
        ("GET", HOLDS),
        ("DELETE", f"{HOLDS}/{ID}"),
        ("GET", f"/v1/commands/{ID}"),
    ):
        assert refusal(await practice.send(None, method, path)) == "401 unauthenticated", (method, path)
        forged = {"authorization": anna.headers["Authorization"][:-8] + "AAAAAAAA"}
        assert refusal(await practice.send(None, method, path, **forged)) == "401 unauthenticated", (method, path)
        if path.endswith(("arrive", "fulfil", "no-show")):
            assert refusal(await practice.send(anna, method, path)) == "403 forbidden", path
