from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import httpx
import psycopg
import pytest
from psycopg import sql
from sqlalchemy import func, select, text, update
from structlog.testing import capture_logs

from actors.messages import Role
from api.accounts import create_admin, service, sessions, verification
from api.accounts.create_admin import make as make_admin
from api.accounts.rotate_keys import rotate as rotate_keys
from api.accounts.tokens import UNKNOWN_KEY_RELOAD_S, AccessTokens
from api.app import create_app
from api.dependencies import authenticate
from api.errors import Problem
from api.principals import TTL_S, PrincipalCache
from cluster.embedded import EmbeddedPostgres
from cluster.settings import Settings, SettingsError
from persistence.identifiers import lock_key, new_id
from persistence.repositories.codes import Purpose
from persistence.repositories.users import LoginTaken
from persistence.sealed import Unreadable
from persistence.tables import app_user, appointment, audit, patient, refresh_token, signing_key
from persistence.unit_of_work import UnitOfWork
from tests.integration.application import PASSWORD, Application, bearer, registration, running

NEW_PASSWORD = "Another-Horse-10"


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem that the answer is, which is of that status and code and as every problem should be."""
    assert (answer.status_code, answer.json().get("code")) == (status, code), answer.text
    body: dict[str, Any] = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert body.keys() >= {"type", "title", "status", "detail", "instance", "code"}
    assert body["status"] == status
    assert body["instance"] == answer.request.url.raw_path.partition(b"?")[0].decode()
    assert answer.headers["x-request-id"]
    if status in (429, 503):
        assert int(answer.headers["retry-after"]) >= 1
    if status == 401:
        assert answer.headers["www-authenticate"].startswith("Bearer")
    return body


def pointers(answer: httpx.Response) -> set[str]:
    """What is wrong where, in an answer that is a validation error."""
    return {error["pointer"] for error in problem(answer, 422, "validation_error")["errors"]}


# Registration


async def test_who_registers_signs_in_and_sees_themselves(api: Application) -> None:
    user = await api.register(
        "Anna.Petrova ",
        email="anna.petrova@MAIL.example",
        locale="pt-br",
        timezone="Europe/Berlin",
        phone="+49 (30) 901-820",
    )
    me = await api.http.get("/v1/me", headers=await api.sign_in("ANNA.petrova"))
    assert me.json() == user
    assert user | {"id": "", "patient_id": "", "registered_at": ""} == {
        "id": "",
        "login": "anna.petrova",
        "role": "patient",
        "name": "Anna Petrova",
        "email": "anna.petrova@mail.example",
        "phone": "+4930901820",
        "email_verified": False,
        "phone_verified": False,
        "locale": "pt-BR",
        "timezone": "Europe/Berlin",
        "registered_at": "",
        "patient_id": "",
        "doctor_id": None,
    }
    assert user["registered_at"].endswith("Z")
    again = await api.http.get(
        "/v1/me", headers=await api.sign_in("anna.petrova") | {"If-None-Match": me.headers["etag"]}
    )
    assert (again.status_code, again.content) == (304, b"")


async def test_a_login_is_taken_in_any_spelling_by_one_of_many_at_once(api: Application) -> None:
    logins = ["anna.petrova", "ANNA.PETROVA", " anna.petrova", "ａnna.petrova"]
    answers = await asyncio.gather(
        *(api.http.post("/v1/auth/register", json=registration(login, email="a@b.example")) for login in logins)
    )
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]
    for answer in answers:
        if answer.status_code == 409:
            problem(answer, 409, "login_taken")
    async with api.services.unit_of_work() as work:
        assert await work.connection.scalar(select(func.count()).select_from(app_user)) == 1
        assert await work.connection.scalar(select(func.count()).select_from(patient)) == 1


BAD_REGISTRATIONS: list[tuple[dict[str, Any], str]] = [
    ({"login": "ab"}, "/login"),
    ({"login": "x" * 65}, "/login"),
    ({"login": "anna petrova"}, "/login"),
    ({"login": "anna\x00"}, "/login"),
    ({"login": "anna\u200b"}, "/login"),
    ({"login": "<script>"}, "/login"),
    ({"login": 12345}, "/login"),
    ({"login": None}, "/login"),
    ({"login": ["anna"]}, "/login"),
    ({"password": "Short-1"}, "/password"),
    ({"password": "no-upper-case-1"}, "/password"),
    ({"password": "NO-LOWER-CASE-1"}, "/password"),
    ({"password": "No-Digit-At-All"}, "/password"),
    ({"password": "NoSpecial12345"}, "/password"),
    ({"password": "Password1!"}, "/password"),
    ({"password": "Bad.Input1!"}, "/password"),
    ({"password": "Aa1-" * 400}, "/password"),
    ({"name": ""}, "/name"),
    ({"name": "   "}, "/name"),
    ({"name": "x" * 201}, "/name"),
    ({"name": "Anna\x00Petrova"}, "/name"),
    ({"name": "Anna\nPetrova"}, "/name"),
    ({"name": "…"}, "/name"),
    ({"birth_date": "2999-01-01"}, "/birth_date"),
    ({"birth_date": "1850-01-01"}, "/birth_date"),
    ({"birth_date": "0000-00-00"}, "/birth_date"),
    ({"birth_date": "1990-02-30"}, "/birth_date"),
    ({"birth_date": "12.04.1990"}, "/birth_date"),
    ({"birth_date": "1990-04-12T00:00:00Z"}, "/birth_date"),
    ({"birth_date": 0}, "/birth_date"),
    ({"email": "anna"}, "/email"),
    ({"email": "anna@"}, "/email"),
    ({"email": "anna@mail"}, "/email"),
    ({"email": "anna@@mail.example"}, "/email"),
    ({"email": "a@b.example\r\nBcc: c@d.example"}, "/email"),
    ({"email": "x" * 250 + "@mail.example"}, "/email"),
    ({"phone": "030 901820"}, "/phone"),
    ({"phone": "+0000000000"}, "/phone"),
    ({"phone": "+49"}, "/phone"),
    ({"phone": "+49 30 901820 ext. 5"}, "/phone"),
    ({"phone": "call me"}, "/phone"),
    ({"phone": 4930901820}, "/phone"),
    ({"timezone": "Mars/Olympus"}, "/timezone"),
    ({"timezone": "../../etc/passwd"}, "/timezone"),
    ({"timezone": "+02:00"}, "/timezone"),
    ({"locale": "english please"}, "/locale"),
    ({"role": "admin"}, "/role"),
    ({"~/x": 1}, "/~0~1x"),
]


async def test_what_a_registration_may_not_be(api: Application) -> None:
    for changed, pointer in BAD_REGISTRATIONS:
        answer = await api.http.post("/v1/auth/register", json=registration("bad.input", **changed))
        assert pointers(answer) == {pointer}, changed


async def test_every_flaw_is_told_at_once(api: Application) -> None:
    answer = await api.http.post("/v1/auth/register", json={"login": "x", "phone": "1", "extra": True})
    assert pointers(answer) == {"/login", "/password", "/name", "/birth_date", "/email", "/phone", "/extra"}


BAD_BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b"1",
    b'{"login": "anna"',
    b"\xff\xfe",
    b'{"login": "\xff"}',
    b'{"login": NaN}',
    b'{"login": "\\ud800"}',
    b"[" * 100_000,
    b'{"a":' * 1000 + b"1" + b"}" * 1000,
    b'{"login": ' + b"9" * 5000 + b"}",
    b'{"a": "\\u0000"}',
    b'{"\\u0000": 1}',
    b"[" * 1000 + b'"\\u0000"' + b"]" * 1000,
    b"\x00",
]


async def test_bodies_that_are_nothing_like_what_is_asked_for(api: Application) -> None:
    for body in BAD_BODIES:
        answer = await api.http.post("/v1/auth/register", content=body, headers={"Content-Type": "application/json"})
        assert pointers(answer), body[:20]


async def test_a_body_of_another_content_type_is_refused(api: Application) -> None:
    body = json.dumps(registration("anna.petrova")).encode()
    for headers in (
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/xml"},
        {"Content-Type": ""},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
        {},
    ):
        problem(await api.http.post("/v1/auth/register", content=body, headers=headers), 415, "unsupported_media_type")


async def test_a_body_that_is_too_large_is_refused_announced_or_not(api: Application) -> None:
    limit = api.services.settings.body_bytes_max

    async def chunks() -> Any:
        for _ in range(limit // 1024 + 2):
            yield b" " * 1024

    headers = {"Content-Type": "application/json"}
    announced = await api.http.post("/v1/auth/register", content=b" " * (limit + 1), headers=headers)
    problem(announced, 413, "content_too_large")
    problem(await api.http.post("/v1/auth/register", content=chunks(), headers=headers), 413, "content_too_large")


# Requests of any kind


async def test_unknown_addresses_and_methods(api: Application) -> None:
    http = api.http
    problem(await http.get("/v1/nothing"), 404, "not_found")
    problem(await http.get("/"), 404, "not_found")
    problem(await http.get("/v1/me/"), 404, "not_found")
    problem(await http.get("/v1/%00"), 404, "not_found")
    answer = await http.put("/v1/me", json={})
    problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "DELETE, GET, PATCH"


async def test_addresses_and_headers_that_are_too_long(api: Application) -> None:
    problem(await api.http.get("/v1/me?q=" + "x" * 10_000), 414, "uri_too_long")
    problem(await api.http.get("/v1/me", headers={"X-Long": "x" * 40_000}), 431, "headers_too_large")


async def test_every_answer_carries_an_id_and_headers_that_protect(api: Application) -> None:
    for path in ("/.well-known/jwks.json", "/v1/nothing", "/v1/me"):
        headers = (await api.http.get(path, headers={"X-Request-ID": "from-the-outside.1"})).headers
        assert headers["x-request-id"] == "from-the-outside.1"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
    for insane in ("", "short", "x" * 200, "with space", "<script>alert(1)</script>"):
        headers = (await api.http.get("/v1/me", headers={"X-Request-ID": insane})).headers
        assert len(headers["x-request-id"]) == 36


async def test_what_nobody_foresaw_says_nothing_of_the_inside(
    api: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise LookupError("secret detail")

    monkeypatch.setattr(sessions, "log_out", broken)
    answer = await api.http.post("/v1/auth/logout", json={"refresh_token": "x"})
    assert "secret" not in str(problem(answer, 500, "internal_error"))


async def test_the_interface_is_described(api: Application) -> None:
    schema = (await api.http.get("/openapi.json")).json()
    operations = [
        operation for path in schema["paths"].values() for method, operation in path.items() if method != "parameters"
    ]
    ids = [operation["operationId"] for operation in operations]
    assert len(ids) == len(set(ids))
    assert "ValidationError" not in schema["components"]["schemas"]
    for operation in operations:
        assert operation["responses"]["429"]["headers"]["Retry-After"], operation["operationId"]
        assert operation.get("summary"), operation["operationId"]
    assert schema["paths"]["/v1/me"]["get"]["security"] == [{"bearer": []}]


async def test_the_page_of_the_interface_needs_no_other_host(api: Application) -> None:
    page = await api.http.get("/docs")
    assert page.status_code == 200
    needed = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(needed) == 5
    for address in needed:
        if address != "data:,":
            assert (await api.http.get(f"/{address}")).status_code == 200, address
    assert "http" not in page.headers["content-security-policy"]


# Tokens


BAD_AUTHORIZATIONS = [
    None,
    "",
    "Bearer",
    "Bearer ",
    "Bearer x",
    "Bearer a.b.c",
    "Basic YW5uYTpwYXNzd29yZA==",
    "bearer null",
    "Bearer " + "x" * 5000,
    "Bearer é",
    "Bearer eyJhbGciOiJub25lIn0.e30.",
]


async def test_without_a_good_token_nobody_is_let_in(api: Application) -> None:
    for authorization in BAD_AUTHORIZATIONS:
        headers = [] if authorization is None else [(b"Authorization", authorization.encode())]
        for path in ("/v1/me", "/v1/me/patients", "/v1/patients?q=anna"):
            problem(await api.http.get(path, headers=headers), 401, "unauthenticated")


async def test_a_forged_token_is_refused(api: Application) -> None:
    await api.register("anna.petrova")
    header, claims, signature = (await api.tokens("anna.petrova"))["access_token"].split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none","typ":"at+jwt"}').rstrip(b"=").decode()
    for forged in (f"{none}.{claims}.", f"{none}.{claims}.{signature}", f"{header}.{claims}.{'A' * 86}"):
        problem(await api.http.get("/v1/me", headers=bearer(forged)), 401, "unauthenticated")


async def test_the_wrong_password_and_the_wrong_login_are_told_apart_by_nothing(api: Application) -> None:
    await api.register("anna.petrova")
    answers = []
    for login, password in (("anna.petrova", "Wrong-Horse-9"), ("nobody", PASSWORD), ("x" * 5000, "y" * 5000)):
        form = {"grant_type": "password", "username": login, "password": password}
        answers.append(await api.http.post("/v1/auth/token", data=form))
    bodies = [problem(answer, 401, "unauthenticated") for answer in answers]
    assert bodies[0] == bodies[1] == bodies[2]
    assert bodies[0]["error"] == "invalid_grant"


BAD_TOKEN_REQUESTS = [
    ("", "/grant_type", "invalid_request"),
    ("grant_type=", "/grant_type", "invalid_request"),
    ("grant_type=magic", "/grant_type", "unsupported_grant_type"),
    ("grant_type=password", "/username", "invalid_request"),
    ("grant_type=password&username=anna", "/password", "invalid_request"),
    ("grant_type=password&username=&password=x", "/username", "invalid_request"),
    ("grant_type=password&username=a%00b&password=x", "/username", "invalid_request"),
    ("grant_type=refresh_token", "/refresh_token", "invalid_request"),
    ("grant_type=password&grant_type=password", "", "invalid_request"),
    ("grant_type=password&username=%ff&password=x", "", "invalid_request"),
    ("&".join(f"a{number}=1" for number in range(100)), "", "invalid_request"),
    ("é", "", "invalid_request"),
]


async def test_token_requests_that_are_not_ones(api: Application) -> None:
    for form, pointer, error in BAD_TOKEN_REQUESTS:
        answer = await api.http.post(
            "/v1/auth/token", content=form.encode(), headers={"Content-Type": "application/x-www-form-urlencoded"}
        )
        assert pointers(answer) == {pointer}
        assert answer.json()["error"] == error


async def test_a_token_request_as_json_is_refused(api: Application) -> None:
    answer = await api.http.post(
        "/v1/auth/token", json={"grant_type": "password", "username": "anna", "password": PASSWORD}
    )
    assert problem(answer, 415, "unsupported_media_type")["error"] == "invalid_request"


async def test_a_token_request_that_gets_nowhere_has_its_error_too(api: Application) -> None:
    long = await api.http.post("/v1/auth/token", data={"username": "x" * 2_000_000})
    assert problem(long, 413, "content_too_large")["error"] == "invalid_request"
    assert problem(await api.http.get("/v1/auth/token"), 405, "method_not_allowed")["error"] == "invalid_request"
    assert "error" not in problem(await api.http.get("/v1/auth/login"), 404, "not_found")
    for code, error in (("unavailable", "temporarily_unavailable"), ("internal_error", "server_error")):
        assert json.loads(bytes(Problem(code).response("/v1/auth/token").body))["error"] == error


async def refreshed(api: Application, token: str) -> httpx.Response:
    return await api.http.post("/v1/auth/token", data={"grant_type": "refresh_token", "refresh_token": token})


async def test_a_refresh_token_works_once_and_a_second_use_ends_its_session(api: Application) -> None:
    await api.register("anna.petrova")
    first = await api.tokens("anna.petrova")
    elsewhere = await api.tokens("anna.petrova")
    second = (await refreshed(api, first["refresh_token"])).json()
    assert second["refresh_token"] != first["refresh_token"]
    assert (await api.http.get("/v1/me", headers=bearer(second["access_token"]))).status_code == 200
    stolen = problem(await refreshed(api, first["refresh_token"]), 401, "unauthenticated")
    assert stolen["error"] == "invalid_grant"
    problem(await refreshed(api, second["refresh_token"]), 401, "unauthenticated")
    assert (await refreshed(api, elsewhere["refresh_token"])).status_code == 200


async def test_of_many_uses_at_once_one_wins_and_the_session_ends(api: Application) -> None:
    await api.register("anna.petrova")
    token = (await api.tokens("anna.petrova"))["refresh_token"]
    answers = await asyncio.gather(*(refreshed(api, token) for _ in range(6)))
    won = [answer for answer in answers if answer.status_code == 200]
    assert len(won) == 1
    problem(await refreshed(api, won[0].json()["refresh_token"]), 401, "unauthenticated")


async def test_refresh_tokens_that_are_none(api: Application) -> None:
    for token in ("x", "é", "x" * 5000, "' OR 1=1"):
        problem(await refreshed(api, token), 401, "unauthenticated")


async def test_an_expired_refresh_token_is_refused(api: Application) -> None:
    await api.register("anna.petrova")
    tokens = await api.tokens("anna.petrova")
    async with api.services.unit_of_work() as work:
        await work.connection.execute(update(refresh_token).values(expires_at=func.now()))
    problem(await refreshed(api, tokens["refresh_token"]), 401, "unauthenticated")


async def test_logging_out_ends_the_session_and_always_succeeds(api: Application) -> None:
    await api.register("anna.petrova")
    tokens = await api.tokens("anna.petrova")
    for token in (tokens["refresh_token"], tokens["refresh_token"], "nonsense"):
        answer = await api.http.post("/v1/auth/logout", json={"refresh_token": token})
        assert (answer.status_code, answer.content) == (204, b"")
    problem(await refreshed(api, tokens["refresh_token"]), 401, "unauthenticated")


async def test_a_token_that_is_being_renewed_does_not_outlive_its_session(api: Application) -> None:
    await api.register("anna.petrova")
    for _ in range(8):
        token = (await api.tokens("anna.petrova"))["refresh_token"]
        renewed, _ = await asyncio.gather(
            refreshed(api, token), api.http.post("/v1/auth/logout", json={"refresh_token": token})
        )
        if renewed.status_code == 200:
            problem(await refreshed(api, renewed.json()["refresh_token"]), 401, "unauthenticated")


async def test_only_so_many_sessions_are_kept(settings: Settings) -> None:
    async with running(settings.model_copy(update={"rate_limit": 0, "sessions_max": 2})) as api:
        await api.register("anna.petrova")
        tokens = [(await api.tokens("anna.petrova"))["refresh_token"] for _ in range(4)]
        good = [(await refreshed(api, token)).status_code == 200 for token in tokens]
        unlimited = api.services.settings.model_copy(update={"sessions_max": 0})
    assert good == [False, True, True, True], "the newest two, and the one that just came"
    async with running(unlimited) as api:
        tokens = [(await api.tokens("anna.petrova"))["refresh_token"] for _ in range(4)]
        assert [(await refreshed(api, token)).status_code for token in tokens] == [200] * 4


async def test_who_is_disabled_is_kept_out(api: Application) -> None:
    user = await api.register("anna.petrova")
    tokens = await api.tokens("anna.petrova")
    async with api.services.unit_of_work() as work:
        await work.connection.execute(update(app_user).values(disabled_at=func.now()))
    api.app.state.gate.principals.forget(user["id"])
    problem(await api.http.get("/v1/me", headers=bearer(tokens["access_token"])), 401, "unauthenticated")
    problem(await refreshed(api, tokens["refresh_token"]), 401, "unauthenticated")
    form = {"grant_type": "password", "username": "anna.petrova", "password": PASSWORD}
    problem(await api.http.post("/v1/auth/token", data=form), 401, "unauthenticated")


async def test_a_sign_in_that_breaks_off_is_no_failure_of_ours(api: Application) -> None:
    told: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        told.append(message)

    headers = [(b"content-type", b"application/x-www-form-urlencoded"), (b"content-length", b"40")]
    scope: dict[str, Any] = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "headers": headers,
    }
    scope |= {"path": "/v1/auth/token", "raw_path": b"/v1/auth/token", "query_string": b"", "root_path": ""}
    with capture_logs() as logs:
        await api.app(scope | {"client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2)}, receive, send)
    assert told[0]["status"] == 400
    assert json.loads(told[1]["body"])["error"] == "invalid_request"
    assert not logs


async def test_a_hash_with_the_parameters_of_yesterday_is_renewed(api: Application) -> None:
    from argon2 import PasswordHasher

    user = await api.register("anna.petrova")
    old = PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1).hash(PASSWORD)
    async with api.services.unit_of_work() as work:
        await work.users.set_password(user["id"], old)
    await api.sign_in("anna.petrova")
    async with api.services.unit_of_work() as work:
        renewed = await work.users.get(user["id"])
    assert renewed is not None
    assert renewed.password_hash.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    await api.sign_in("anna.petrova")


async def test_wrong_passwords_lock_a_login_for_a_while_known_or_not(settings: Settings) -> None:
    async with running(settings.model_copy(update={"rate_limit": 0, "login_failures_max": 3})) as api:
        await api.register("anna.petrova")
        await api.register("boris")
        for login in ("anna.petrova", "nobody"):
            form = {"grant_type": "password", "username": login, "password": "Wrong-Horse-9"}
            for _ in range(3):
                problem(await api.http.post("/v1/auth/token", data=form), 401, "unauthenticated")
            problem(await api.http.post("/v1/auth/token", data=form), 429, "rate_limited")
        right = {"grant_type": "password", "username": "anna.petrova", "password": PASSWORD}
        problem(await api.http.post("/v1/auth/token", data=right), 429, "rate_limited")
        await api.sign_in("boris")


async def test_of_many_guesses_at_once_only_so_many_are_tried(settings: Settings) -> None:
    async with running(settings.model_copy(update={"rate_limit": 0, "login_failures_max": 3})) as api:
        await api.register("anna.petrova")
        form = {"grant_type": "password", "username": "anna.petrova", "password": "Wrong-Horse-9"}
        answers = await asyncio.gather(*(api.http.post("/v1/auth/token", data=form) for _ in range(20)))
    tried = sum(answer.status_code == 401 for answer in answers)
    assert tried <= 3 + settings.password_hashers - 1


async def test_public_keys_are_published(api: Application) -> None:
    answer = await api.http.get("/.well-known/jwks.json")
    (key,) = answer.json()["keys"]
    assert key["alg"] == "ES256"
    assert "max-age" in answer.headers["cache-control"]
    assert "d" not in key


async def test_processes_that_start_together_make_one_key(api: Application) -> None:
    async with api.services.unit_of_work() as work:
        await work.connection.execute(signing_key.delete())
    from api.gate import close_gate, open_gate

    gates = await asyncio.gather(
        *(
            open_gate(
                api.services.settings,
                unit_of_work=api.services.unit_of_work,
                lookups=api.services.lookups,
                redis=api.services.redis,
            )
            for _ in range(4)
        )
    )
    assert len({gate.tokens.jwks()["keys"][0]["kid"] for gate in gates}) == 1
    for gate in gates:
        await close_gate(gate)


# Rate limits


async def test_requests_are_limited_for_a_user_and_for_an_address(settings: Settings) -> None:
    async with running(settings.model_copy(update={"rate_limit": 40})) as api:
        await api.register("anna.petrova")
        headers = await api.sign_in("anna.petrova")
        await api.http.get("/v1/me", headers=headers)  # counted for the address: the token is not known yet
        answers = [await api.http.get("/v1/me", headers=headers) for _ in range(45)]
        assert [answer.status_code for answer in answers] == [200] * 40 + [429] * 5
        problem(answers[-1], 429, "rate_limited")
        assert (await api.http.get("/.well-known/jwks.json")).status_code == 200
        answers = [await api.http.get("/.well-known/jwks.json") for _ in range(45)]
        problem(answers[-1], 429, "rate_limited")


async def test_registrations_and_logins_have_a_tenth_of_the_limit(settings: Settings) -> None:
    async with running(settings.model_copy(update={"rate_limit": 30})) as api:
        body = registration("x")
        answers = [await api.http.post("/v1/auth/register", json=body | {"login": f"user{n}"}) for n in range(4)]
        assert [answer.status_code for answer in answers] == [201, 201, 201, 429]
        form = {"grant_type": "password", "username": "user0", "password": PASSWORD}
        logins = [await api.http.post("/v1/auth/token", data=form) for _ in range(4)]
        assert [answer.status_code for answer in logins] == [200, 200, 200, 429]
        assert problem(logins[-1], 429, "rate_limited")["error"] == "temporarily_unavailable"


async def test_limits_hold_without_redis(settings: Settings) -> None:
    away = settings.model_copy(update={"rate_limit": 20, "redis_url": "redis://127.0.0.1:1/0"})
    async with running(away) as api:
        answers = [await api.http.get("/.well-known/jwks.json") for _ in range(25)]
        await api.app.state.gate.limits.share()
        answers += [await api.http.get("/.well-known/jwks.json") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200] * 20 + [429] * 10


async def test_only_a_trusted_proxy_is_believed_about_the_address(settings: Settings) -> None:
    limited = settings.model_copy(update={"rate_limit": 20, "trusted_proxies": ("127.0.0.1/32", "10.0.0.0/8")})
    async with running(limited) as api:
        for number in range(25):  # httpx speaks from 127.0.0.1
            forwarded = {"X-Forwarded-For": f"6.6.6.6, 198.51.100.{number}, 10.1.2.3"}
            assert (await api.http.get("/.well-known/jwks.json", headers=forwarded)).status_code == 200
        forwarded = {"X-Forwarded-For": "198.51.100.99, 203.0.113.7"}
        answers = [
            await api.http.get(
                "/.well-known/jwks.json", headers=forwarded | {"X-Forwarded-For": f"{n}.1.1.1, 203.0.113.7"}
            )
            for n in range(1, 25)
        ]
    assert [answer.status_code for answer in answers] == [200] * 20 + [429] * 4


async def test_other_origins_are_let_in_by_name_only(settings: Settings) -> None:
    async with running(settings.model_copy(update={"cors_origins": ("https://clinic.example",)})) as api:
        preflight = {
            "Access-Control-Request-Method": "PATCH",
            "Access-Control-Request-Headers": "authorization,if-match",
        }
        good = await api.http.options("/v1/me", headers=preflight | {"Origin": "https://clinic.example"})
        assert good.headers["access-control-allow-origin"] == "https://clinic.example"
        bad = await api.http.options("/v1/me", headers=preflight | {"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in bad.headers
        refused = await api.http.post(
            "/v1/auth/register", content=b"x" * (2 << 20), headers={"Origin": "https://clinic.example"}
        )
        problem(refused, 413, "content_too_large")
        assert refused.headers["access-control-allow-origin"] == "https://clinic.example"


# Codes


async def test_an_address_is_verified_by_the_code_that_was_sent_there(api: Application) -> None:
    user = await api.register("anna.petrova")
    headers = await api.sign_in("anna.petrova")
    (code,) = await api.sent_codes(user["id"], Purpose.EMAIL)
    assert pointers(await api.http.post("/v1/auth/verify", json={"code": code[:-1] + "!"})) == {"/code"}
    assert (await api.http.post("/v1/auth/verify", json={"code": code})).status_code == 204
    assert pointers(await api.http.post("/v1/auth/verify", json={"code": code})) == {"/code"}
    (code,) = await api.sent_codes(user["id"], Purpose.PHONE)
    assert len(code) == 6
    problem(await api.http.post("/v1/auth/verify", json={"channel": "phone", "code": code}), 401, "unauthenticated")
    answer = await api.http.post("/v1/auth/verify", json={"channel": "phone", "code": code}, headers=headers)
    assert answer.status_code == 204
    me = (await api.http.get("/v1/me", headers=headers)).json()
    assert (me["email_verified"], me["phone_verified"]) == (True, True)


async def test_a_short_code_can_be_guessed_at_only_so_often_even_all_at_once(api: Application) -> None:
    user = await api.register("anna.petrova")
    headers = await api.sign_in("anna.petrova")
    (code,) = await api.sent_codes(user["id"], Purpose.PHONE)
    wrong = [f"{(int(code) + n) % 10**6:06d}" for n in range(1, 10)]
    answers = await asyncio.gather(
        *(
            api.http.post("/v1/auth/verify", json={"channel": "phone", "code": guess}, headers=headers)
            for guess in wrong
        )
    )
    assert all(pointers(answer) == {"/code"} for answer in answers)
    right = await api.http.post("/v1/auth/verify", json={"channel": "phone", "code": code}, headers=headers)
    assert pointers(right) == {"/code"}


async def test_codes_are_for_their_user_and_purpose_only(api: Application) -> None:
    anna = await api.register("anna.petrova")
    await api.register("boris")
    boris = await api.sign_in("boris")
    (email_code,) = await api.sent_codes(anna["id"], Purpose.EMAIL)
    (phone_code,) = await api.sent_codes(anna["id"], Purpose.PHONE)
    body = {"channel": "phone", "code": phone_code}
    assert pointers(await api.http.post("/v1/auth/verify", json=body, headers=boris)) == {"/code"}
    reset = {"code": email_code, "password": NEW_PASSWORD}
    assert pointers(await api.http.post("/v1/auth/password/reset", json=reset)) == {"/code"}


async def test_the_first_to_verify_an_address_has_it(api: Application) -> None:
    users = [await api.register(f"user{n}", email="Same@mail.example", phone="+4930901820") for n in range(3)]
    codes = [(await api.sent_codes(user["id"], Purpose.EMAIL))[0] for user in users]
    answers = await asyncio.gather(*(api.http.post("/v1/auth/verify", json={"code": code}) for code in codes))
    assert sorted(answer.status_code for answer in answers) == [204, 409, 409]
    for answer in answers:
        if answer.status_code == 409:
            problem(answer, 409, "email_taken")
    statuses = []
    for number, user in enumerate(users):
        (code,) = await api.sent_codes(user["id"], Purpose.PHONE)
        answer = await api.http.post(
            "/v1/auth/verify", json={"channel": "phone", "code": code}, headers=await api.sign_in(f"user{number}")
        )
        statuses.append(answer.status_code)
        if answer.status_code == 409:
            problem(answer, 409, "phone_taken")
    assert statuses == [204, 409, 409]


async def test_nobody_is_flooded_with_codes_by_accounts_of_others(settings: Settings) -> None:
    """Codes that one network sends to one mailbox are counted together; its owner, elsewhere, is not kept waiting."""
    address = {"email": "victim@mail.example", "phone": "+12025550177"}
    also = ("victim@mail.example", "Victim@mail.example", "victim+2@Mail.example")
    limits = {"rate_limit": 0, "code_interval_s": 0, "codes_a_day_max": 2}
    async with running(settings.model_copy(update=limits)) as api:
        sent = []
        for number in range(3):
            user = await api.register(f"stranger.{number}", **address | {"email": also[number]})
            sent.append([len(await api.sent_codes(user["id"], each)) for each in (Purpose.EMAIL, Purpose.PHONE)])
        assert sent == [[1, 1], [1, 1], [0, 0]]
        headers = await api.sign_in("stranger.2")
        for channel in ("email", "phone"):
            again = await api.http.post("/v1/auth/verify/resend", json={"channel": channel}, headers=headers)
            problem(again, 429, "rate_limited")
            assert int(again.headers["Retry-After"]) > 3600
        changed = await api.http.patch("/v1/me", json={"email": "own@mail.example"}, headers=headers)
        assert changed.status_code == 200
        assert len(await api.sent_codes(user["id"], Purpose.EMAIL)) == 1
        back = await api.http.patch("/v1/me", json={"email": address["email"]}, headers=headers)
        assert back.status_code == 200
        (code,) = await api.sent_codes(user["id"], Purpose.EMAIL)
        problem(await api.http.post("/v1/auth/verify", json={"code": code}), 422, "validation_error")
        transport = httpx.ASGITransport(api.app, client=("192.0.2.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as elsewhere:
            registered = await elsewhere.post("/v1/auth/register", json=registration("the.owner", **address))
        for purpose in (Purpose.EMAIL, Purpose.PHONE):
            assert len(await api.sent_codes(registered.json()["id"], purpose)) == 1
    async with running(settings.model_copy(update=limits | {"codes_a_day_max": 0})) as api:
        for number in range(3, 6):
            user = await api.register(f"stranger.{number}", **address)
            assert len(await api.sent_codes(user["id"], Purpose.PHONE)) == 1


async def test_codes_are_sent_again_but_not_at_once_and_void_those_before(settings: Settings) -> None:
    async with running(settings.model_copy(update={"rate_limit": 0})) as api:
        user = await api.register("anna.petrova")
        headers = await api.sign_in("anna.petrova")
        again = await api.http.post("/v1/auth/verify/resend", json={"channel": "email"}, headers=headers)
        problem(again, 429, "rate_limited")
        (first,) = await api.sent_codes(user["id"], Purpose.EMAIL)
    async with running(
        settings.model_copy(update={"rate_limit": 0, "code_interval_s": 0, "codes_a_day_max": 3})
    ) as api:
        sent = [
            await api.http.post("/v1/auth/verify/resend", json={"channel": "email"}, headers=headers) for _ in range(3)
        ]
        assert [answer.status_code for answer in sent] == [202, 202, 429]
        codes = await api.sent_codes(user["id"], Purpose.EMAIL)
        assert codes[0] == first
        results = [(await api.http.post("/v1/auth/verify", json={"code": code})).status_code for code in codes]
        assert results == [422, 422, 204]
        done = await api.http.post("/v1/auth/verify/resend", json={"channel": "email"}, headers=headers)
        assert done.status_code == 202
        assert await api.sent_codes(user["id"], Purpose.EMAIL) == codes


async def verified(api: Application, login: str) -> dict[str, Any]:
    user = await api.register(login)
    (code,) = await api.sent_codes(user["id"], Purpose.EMAIL)
    assert (await api.http.post("/v1/auth/verify", json={"code": code})).status_code == 204
    return user


async def test_the_answer_to_forgot_is_always_the_same(api: Application) -> None:
    known = await verified(api, "anna.petrova")
    unverified = await api.register("boris")
    loop = asyncio.get_running_loop()
    answers = []
    for body in (
        {"login": "anna.petrova"},
        {"login": "anna.petrova"},
        {"email": "ANNA.petrova@mail.example"},
        {"login": "boris"},
        {"login": "nobody"},
        {"email": "nobody@mail.example"},
    ):
        began = loop.time()
        answer = await api.http.post("/v1/auth/password/forgot", json=body)
        answers.append((answer.status_code, answer.content, loop.time() - began >= verification.FORGOT_SECONDS - 0.01))
    assert set(answers) == {(202, answers[0][1], True)}
    assert len(await api.sent_codes(known["id"], Purpose.PASSWORD)) == 1
    assert await api.sent_codes(unverified["id"], Purpose.PASSWORD) == []
    both = {"login": "anna.petrova", "email": "a@b.example"}
    for wrong in ({}, both, {"login": None}):
        assert pointers(await api.http.post("/v1/auth/password/forgot", json=wrong))


async def test_a_reset_sets_the_password_once_and_ends_every_session(api: Application) -> None:
    user = await verified(api, "anna.petrova")
    sessions = [await api.tokens("anna.petrova") for _ in range(2)]
    await api.http.post("/v1/auth/password/forgot", json={"login": "anna.petrova"})
    (code,) = await api.sent_codes(user["id"], Purpose.PASSWORD)
    weak = await api.http.post("/v1/auth/password/reset", json={"code": code, "password": "Password1!"})
    assert pointers(weak) == {"/password"}
    answers = await asyncio.gather(
        *(
            api.http.post("/v1/auth/password/reset", json={"code": code, "password": f"{NEW_PASSWORD}{n}"})
            for n in range(3)
        )
    )
    assert sorted(answer.status_code for answer in answers) == [204, 422, 422]
    for tokens in sessions:
        problem(await refreshed(api, tokens["refresh_token"]), 401, "unauthenticated")
        problem(await api.http.get("/v1/me", headers=bearer(tokens["access_token"])), 401, "unauthenticated")
    won = next(n for n, answer in enumerate(answers) if answer.status_code == 204)
    headers = await api.sign_in("anna.petrova", f"{NEW_PASSWORD}{won}")
    assert (await api.http.get("/v1/me", headers=headers)).status_code == 200


@pytest.mark.parametrize("purpose", Purpose)
async def test_a_code_is_redeemed_while_its_user_has_another_one_sent(api: Application, purpose: Purpose) -> None:
    """Both lock the user first: neither is a deadlock's victim, and the code that was voided is none any more."""
    user = await verified(api, "anna.petrova") if purpose is Purpose.PASSWORD else await api.register("anna.petrova")
    headers = await api.sign_in("anna.petrova")
    if purpose is Purpose.PASSWORD:
        await api.http.post("/v1/auth/password/forgot", json={"login": "anna.petrova"})
    (code,) = await api.sent_codes(user["id"], purpose)
    path, body = {
        Purpose.EMAIL: ("/v1/auth/verify", {"code": code}),
        Purpose.PHONE: ("/v1/auth/verify", {"channel": "phone", "code": code}),
        Purpose.PASSWORD: ("/v1/auth/password/reset", {"code": code, "password": NEW_PASSWORD}),
    }[purpose]

    async with api.services.unit_of_work() as sending:
        await sending.users.get(user["id"], lock=True)
        redeeming = asyncio.create_task(api.http.post(path, json=body, headers=headers))
        await waiting_for_a_lock(api)
        await sending.codes.void(user["id"], purpose, now=datetime.now(UTC))

    assert pointers(await redeeming) == {"/code"}


async def waiting_for_a_lock(api: Application) -> None:
    """Return once some transaction in this database waits for another."""
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with asyncio.timeout(10):
        while True:
            async with api.services.unit_of_work() as work:
                if await work.connection.scalar(waiting):
                    return
            await asyncio.sleep(0.02)


# One's own account


async def test_changing_oneself(api: Application) -> None:
    user = await verified(api, "anna.petrova")
    headers = await api.sign_in("anna.petrova")
    change = {"name": "Anna Ivanova", "phone": "+7 916 123-45-67", "locale": "ru", "timezone": "Europe/Moscow"}
    answer = await api.http.patch("/v1/me", json=change, headers=headers)
    assert answer.json() == user | change | {"phone": "+79161234567", "email_verified": True}
    assert answer.json() == (await api.http.get("/v1/me", headers=headers)).json()
    (own,) = (await api.http.get("/v1/me/patients", headers=headers)).json()["items"]
    assert own == {"id": user["patient_id"], "name": "Anna Ivanova", "birth_date": "1990-04-12", "relation": "self"}
    assert (await api.http.patch("/v1/me", json={}, headers=headers)).json() == answer.json()


async def test_a_new_address_has_to_be_verified(api: Application) -> None:
    user = await verified(api, "anna.petrova")
    headers = await api.sign_in("anna.petrova")
    await api.http.post("/v1/auth/password/forgot", json={"login": "anna.petrova"})
    changed = await api.http.patch("/v1/me", json={"email": "new@mail.example"}, headers=headers)
    assert (changed.json()["email"], changed.json()["email_verified"]) == ("new@mail.example", False)
    (reset_code,) = await api.sent_codes(user["id"], Purpose.PASSWORD)
    reset = await api.http.post("/v1/auth/password/reset", json={"code": reset_code, "password": NEW_PASSWORD})
    assert pointers(reset) == {"/code"}, "it went to the address before"


BAD_CHANGES = [
    ({"name": None}, "/name"),
    ({"name": ""}, "/name"),
    ({"email": "x"}, "/email"),
    ({"phone": "1"}, "/phone"),
    ({"timezone": "X/Y"}, "/timezone"),
    ({"login": "other"}, "/login"),
    ({"role": "admin"}, "/role"),
    ({"id": "x"}, "/id"),
    ({"email_verified": True}, "/email_verified"),
    ({"password": NEW_PASSWORD}, "/current_password"),
    ({"current_password": PASSWORD}, "/password"),
    ({"password": NEW_PASSWORD, "current_password": "Wrong-Horse-9"}, "/current_password"),
    ({"password": "Password1!", "current_password": PASSWORD}, "/password"),
]


async def test_what_a_change_may_not_be(api: Application) -> None:
    await api.register("anna.petrova")
    headers = await api.sign_in("anna.petrova")
    for change, pointer in BAD_CHANGES:
        assert pointers(await api.http.patch("/v1/me", json=change, headers=headers)) == {pointer}, change


async def test_a_new_password_ends_every_other_session(api: Application) -> None:
    await api.register("anna.petrova")
    here, elsewhere = await api.tokens("anna.petrova"), await api.tokens("anna.petrova")
    change = {"password": NEW_PASSWORD, "current_password": PASSWORD}
    answer = await api.http.patch("/v1/me", json=change, headers=bearer(here["access_token"]))
    assert answer.status_code == 200
    problem(await refreshed(api, elsewhere["refresh_token"]), 401, "unauthenticated")
    problem(await api.http.get("/v1/me", headers=bearer(elsewhere["access_token"])), 401, "unauthenticated")
    assert (await api.http.get("/v1/me", headers=bearer(here["access_token"]))).status_code == 200
    renewed = await refreshed(api, here["refresh_token"])
    assert renewed.status_code == 200
    for headers in (bearer(renewed.json()["access_token"]), await api.sign_in("anna.petrova", NEW_PASSWORD)):
        assert (await api.http.get("/v1/me", headers=headers)).status_code == 200


async def test_a_password_that_was_reset_meanwhile_stays(api: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever knows the old one is a moment too late: it was looked at before the reset, and is good no more."""
    user = await api.register("anna.petrova")
    headers = await api.sign_in("anna.petrova")
    passwords = api.app.state.gate.passwords
    hash_password = passwords.hash
    reset: str = await hash_password("Another-Horse-7")

    async def hash_slowly(password: str) -> str:
        async with api.services.unit_of_work() as work:
            await work.users.set_password(user["id"], reset)
        hashed: str = await hash_password(password)
        return hashed

    monkeypatch.setattr(passwords, "hash", hash_slowly)
    change = {"password": NEW_PASSWORD, "current_password": PASSWORD}
    answer = await api.http.patch("/v1/me", json=change, headers=headers)
    assert problem(answer, 422, "validation_error")["errors"][0]["pointer"] == "/current_password"
    await api.sign_in("anna.petrova", "Another-Horse-7")


async def test_a_new_password_ends_access_tokens_in_other_processes_once_they_read_anew(api: Application) -> None:
    await api.register("anna.petrova")
    token, own = [(await api.tokens("anna.petrova"))["access_token"] for _ in range(2)]
    now = 0.0
    known_there = PrincipalCache(api.services.lookups.access, clock=lambda: now)
    elsewhere = replace(api.app.state.gate, principals=known_there)
    await authenticate(elsewhere, token)
    change = {"password": NEW_PASSWORD, "current_password": PASSWORD}
    assert (await api.http.patch("/v1/me", json=change, headers=bearer(own))).status_code == 200
    now = TTL_S
    await authenticate(elsewhere, own)
    with pytest.raises(Problem, match="unauthenticated"):
        await authenticate(elsewhere, token)
    await known_there.close()


async def test_patients_to_book_for(settings: Settings) -> None:
    async with running(settings.model_copy(update={"rate_limit": 0, "own_patients_max": 3})) as api:
        await api.register("anna.petrova")
        headers = await api.sign_in("anna.petrova")
        body = {"name": "Petya Petrov", "birth_date": "2020-01-31", "relation": "child"}
        answers = await asyncio.gather(
            *(api.http.post("/v1/me/patients", json=body, headers=headers) for _ in range(5))
        )
        assert sorted(answer.status_code for answer in answers) == [201, 201, 409, 409, 409]
        for answer in answers:
            if answer.status_code == 409:
                problem(answer, 409, "limit_reached")
            else:
                assert answer.json() | {"id": ""} == body | {"id": ""}
        listed = (await api.http.get("/v1/me/patients", headers=headers)).json()
        assert [each["relation"] for each in listed["items"]] == ["self", "child", "child"]
        assert listed["next_cursor"] is None
        seen, cursor = [], ""
        while cursor is not None:
            page = (
                await api.http.get(
                    f"/v1/me/patients?limit=1&cursor={cursor}" if cursor else "/v1/me/patients?limit=1",
                    headers=headers,
                )
            ).json()
            seen += page["items"]
            cursor = page["next_cursor"]
        assert seen == listed["items"]
        for wrong, pointer in (
            ({"relation": "self"}, "/relation"),
            ({"birth_date": "2999-01-01"}, "/birth_date"),
            ({"name": "\u0000"}, "/name"),
        ):
            answer = await api.http.post("/v1/me/patients", json=body | wrong, headers=headers)
            assert pointers(answer) == {pointer}


BAD_PAGES = [
    ("limit=0", "/query/limit"),
    ("limit=201", "/query/limit"),
    ("limit=-1", "/query/limit"),
    ("limit=ten", "/query/limit"),
    ("limit=1e99", "/query/limit"),
    ("limit=", "/query/limit"),
    ("cursor=", "/query/cursor"),
    ("cursor=nonsense", "/query/cursor"),
    ("cursor=%00", "/query"),
    ("cursor=%ff", "/query/cursor"),
    ("cursor=" + "A" * 600, "/query/cursor"),
    ("cursor=W10", "/query/cursor"),
    ("cursor=AAAAAAAAAAAAAAAAAAAAAFsiMSJd", "/query/cursor"),
]


async def test_pages_that_there_are_not(api: Application) -> None:
    await api.register("anna.petrova")
    headers = await api.sign_in("anna.petrova")
    for query, pointer in BAD_PAGES:
        answer = await api.http.get(f"/v1/me/patients?{query}", headers=headers)
        assert pointers(answer) == {pointer}, query


async def test_who_erases_themselves_is_gone_and_the_login_free(api: Application) -> None:
    user = await verified(api, "anna.petrova")
    tokens = await api.tokens("anna.petrova")
    headers = bearer(tokens["access_token"])
    child = await api.http.post("/v1/me/patients", json={"name": "Petya", "birth_date": "2020-01-31"}, headers=headers)
    assert child.status_code == 201
    assert (await api.http.delete("/v1/me", headers=headers)).status_code == 204
    problem(await api.http.get("/v1/me", headers=headers), 401, "unauthenticated")
    problem(await refreshed(api, tokens["refresh_token"]), 401, "unauthenticated")
    async with api.services.unit_of_work() as work:
        left = (await work.connection.execute(select(app_user).where(app_user.c.id == user["id"]))).one()
        patients = (await work.connection.execute(select(patient))).all()
    assert (left.data_key, left.sealed, left.email_index, left.phone_index) == (None, None, None, None)
    assert [(each.data_key, each.sealed, each.search) for each in patients] == [(None, None, [])] * 2
    again = await verified(api, "anna.petrova")
    assert again["id"] != user["id"]


async def test_nobody_erases_themselves_with_a_visit_before_them(api: Application) -> None:
    user = await api.register("anna.petrova")
    headers = await api.sign_in("anna.petrova")
    async with api.services.unit_of_work() as work:
        await write_visit(work, user)
    problem(await api.http.delete("/v1/me", headers=headers), 409, "live_appointments")
    assert (await api.http.get("/v1/me", headers=headers)).status_code == 200


async def test_nobody_erases_themselves_past_a_visit_that_is_being_written(api: Application) -> None:
    user = await api.register("anna.petrova")
    headers = await api.sign_in("anna.petrova")
    async with api.services.unit_of_work() as journal:
        await journal.connection.execute(select(func.pg_advisory_xact_lock(lock_key(user["patient_id"]))))
        erasing = asyncio.create_task(api.http.delete("/v1/me", headers=headers))
        await waiting_for_a_lock(api)
        await write_visit(journal, user)
    problem(await erasing, 409, "live_appointments")


async def write_visit(work: UnitOfWork, user: dict[str, Any]) -> None:
    visit = {name: new_id() for name in ("id", "doctor_id", "slot_id", "location_id")}
    await work.connection.execute(
        appointment.insert().values(
            **visit,
            patient_id=user["patient_id"],
            booked_by=user["id"],
            starts_at=text("now() + interval '1 day'"),
            ends_at=text("now() + interval '2 days'"),
            status="booked",
            live=True,
            version=1,
            created_at=func.now(),
            updated_at=func.now(),
        )
    )


# Staff


async def staff(api: Application, login: str, role: Role) -> dict[str, str]:
    async with api.services.unit_of_work() as work:
        await service.create_user(
            work,
            login=login,
            password_hash=await api.app.state.gate.passwords.hash(PASSWORD),
            name="Dr. Weiss",
            email=f"{login}@clinic.example",
            phone="+49301234567",
            role=role,
            verified=True,
        )
    return await api.sign_in(login)


async def test_staff_find_patients_by_whole_words_and_it_is_noted(api: Application) -> None:
    anna = await api.register("anna.petrova")
    await api.register("jose", name="José Núñez-Petrova", birth_date="1985-01-02", phone="+34 612 345 678")
    headers = await staff(api, "weiss", Role.DOCTOR)

    async def found(query: str) -> list[str]:
        answer = await api.http.get("/v1/patients", params={"q": query}, headers=headers)
        assert answer.status_code == 200, answer.text
        return sorted(each["name"] for each in answer.json()["items"])

    assert await found("petrova") == ["Anna Petrova", "José Núñez-Petrova"]
    assert await found("PETROVA anna") == ["Anna Petrova"]
    assert await found("jose nunez") == ["José Núñez-Petrova"]
    assert await found("1985-01-02") == ["José Núñez-Petrova"]
    assert await found("petrova 1990-04-12") == ["Anna Petrova"]
    assert await found("+34 612 345 678") == ["José Núñez-Petrova"]
    assert await found("petr") == []
    answer = await api.http.get("/v1/patients", params={"q": "anna"}, headers=headers)
    assert answer.json()["items"] == [
        {"id": anna["patient_id"], "name": "Anna Petrova", "birth_date": "1990-04-12", "phone": "+4930901820"}
    ]
    async with api.services.unit_of_work() as work:
        noted = await work.connection.scalars(
            select(audit.c.subject_id).where(audit.c.action == "search_patients").order_by(audit.c.at, audit.c.id)
        )
        assert list(noted)[-1] == anna["patient_id"]
    for query in ("", " ", "…", "2026-02-30", "x" * 300):
        answer = await api.http.get("/v1/patients", params={"q": query}, headers=headers)
        assert pointers(answer) == {"/query/q"}, query


async def test_what_is_found_comes_in_pages(api: Application) -> None:
    names = [f"Anna Number{'x' * n}" for n in range(5)]
    for number, name in enumerate(names):
        await api.register(f"anna{number}", name=name)
    headers = await staff(api, "weiss", Role.ADMIN)
    seen: list[str] = []
    cursor = ""
    while True:
        params = {"q": "anna", "limit": "2"}
        if cursor:
            params["cursor"] = cursor
        page = (await api.http.get("/v1/patients", params=params, headers=headers)).json()
        seen += [each["name"] for each in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = page["next_cursor"]
    assert sorted(seen) == sorted(names)
    other_list = await api.http.get(f"/v1/me/patients?cursor={cursor}", headers=headers)
    assert pointers(other_list) == {"/query/cursor"}


async def test_patients_do_not_search_and_staff_do_not_erase_themselves(api: Application) -> None:
    await api.register("anna.petrova")
    problem(await api.http.get("/v1/patients?q=anna", headers=await api.sign_in("anna.petrova")), 403, "forbidden")
    doctor = await staff(api, "weiss", Role.DOCTOR)
    problem(await api.http.delete("/v1/me", headers=doctor), 403, "forbidden")
    problem(await api.http.patch("/v1/me", json={"name": "Dr. Schwarz"}, headers=doctor), 403, "forbidden")
    me = (await api.http.get("/v1/me", headers=doctor)).json()
    assert (me["role"], me["email_verified"], me["phone_verified"], me["patient_id"]) == (
        "doctor",
        True,
        True,
        None,
    )


async def test_the_first_admin_is_made_once(settings: Settings) -> None:
    given = settings.model_copy(update={"admin_login": "Chief", "admin_password": PASSWORD})
    for _ in range(2):
        async with running(given) as api:
            me = (await api.http.get("/v1/me", headers=await api.sign_in("chief"))).json()
            assert (me["role"], me["login"], me["email"]) == ("admin", "chief", None)
            async with api.services.unit_of_work() as work:
                assert await work.connection.scalar(select(func.count()).select_from(app_user)) == 1


async def test_a_login_of_someone_else_is_not_made_an_admin(settings: Settings) -> None:
    async with running(settings) as api:
        await api.register("chief")
    app = create_app(settings.model_copy(update={"admin_login": "chief", "admin_password": PASSWORD}))
    with pytest.raises(SettingsError, match="ZAPIS_ADMIN_LOGIN"):
        async with app.router.lifespan_context(app):
            pass


async def test_admins_are_made_by_hand(api: Application) -> None:
    settings = api.services.settings.model_copy(update={"admin_password": PASSWORD})
    assert await make_admin(settings, "Chief") == "chief"
    with pytest.raises(LoginTaken):
        await make_admin(settings, "chief")
    me = (await api.http.get("/v1/me", headers=await api.sign_in("chief"))).json()
    assert me["role"] == "admin"


async def test_admins_are_not_made_under_another_master_key(
    api: Application, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody could read the account, and the list of users would end in an error."""
    other = {"master_key": base64.b64encode(bytes(32)).decode(), "admin_password": PASSWORD}
    settings = api.services.settings.model_copy(update=other)
    with pytest.raises(Unreadable):
        await make_admin(settings, "chief")
    async with api.services.unit_of_work() as work:
        assert not await work.users.login_taken("chief")
    monkeypatch.setattr("api.accounts.create_admin.read_settings", lambda: settings)
    assert await asyncio.to_thread(create_admin.main, ["chief"]) == 1
    assert capsys.readouterr().err == ("ZAPIS_MASTER_KEY: the keys of this database were sealed under another one\n")


async def test_keys_are_rotated_by_hand(api: Application) -> None:
    await api.register("anna.petrova")
    before = await api.sign_in("anna.petrova")
    kid = await rotate_keys(api.services.settings)
    published = (await api.http.get("/.well-known/jwks.json")).json()["keys"]
    assert kid not in {key["kid"] for key in published}, "made in another process"
    elsewhere = open_tokens(api)
    await elsewhere.open()
    user_id = (await elsewhere.verify(before["Authorization"].removeprefix("Bearer "))).user_id
    token = await elsewhere.sign(user_id=user_id, session_id=new_id(), session_generation=0)
    assert json.loads(base64.urlsafe_b64decode(token.split(".")[0] + "=="))["kid"] == kid

    api.app.state.gate.tokens._loaded_at -= UNKNOWN_KEY_RELOAD_S
    for headers in (before, bearer(token)):
        assert (await api.http.get("/v1/me", headers=headers)).status_code == 200
    published = (await api.http.get("/.well-known/jwks.json")).json()["keys"]
    assert published[0]["kid"] == kid
    assert len(published) == 2


async def test_keys_are_not_rotated_under_another_master_key(
    api: Application,
) -> None:
    """They would be of no use to any process that serves."""
    settings = api.services.settings.model_copy(update={"master_key": base64.b64encode(bytes(32)).decode()})
    with pytest.raises(Unreadable):
        await rotate_keys(settings)
    async with api.services.unit_of_work() as work:
        assert await work.connection.scalar(select(func.count()).select_from(signing_key)) == 1


def open_tokens(api: Application) -> AccessTokens:
    settings = api.services.settings
    return AccessTokens(
        issuer=settings.token_issuer,
        audience=settings.token_audience,
        ttl_s=settings.access_token_ttl_s,
        unit_of_work=api.services.unit_of_work,
    )


# When the database is away


@contextmanager
def no_database(postgres: EmbeddedPostgres, database_url: str) -> Iterator[None]:
    """PostgreSQL ends every connection to the database and takes no new one, for as long as the block lasts."""
    name = database_url.rpartition("/")[2]
    refuse = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
    with psycopg.connect(postgres.superuser_url, autocommit=True) as connection:
        connection.execute(refuse.format(sql.Identifier(name), sql.SQL("false")))
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        yield
        connection.execute(refuse.format(sql.Identifier(name), sql.SQL("true")))


async def test_without_a_database_requests_are_refused_for_now(
    api: Application, postgres: EmbeddedPostgres, database_url: str
) -> None:
    await api.register("anna.petrova")
    headers = await api.sign_in("anna.petrova")
    assert (await api.http.get("/v1/me", headers=headers)).status_code == 200
    with no_database(postgres, database_url):
        problem(await api.http.get("/v1/me", headers=headers), 503, "unavailable")
        problem(await api.http.post("/v1/auth/register", json=registration("boris")), 503, "unavailable")
        form = {"grant_type": "password", "username": "anna.petrova", "password": PASSWORD}
        assert problem(await api.http.post("/v1/auth/token", data=form), 503, "unavailable")["error"]
        assert (await api.http.get("/.well-known/jwks.json")).status_code == 200
    assert (await api.http.get("/v1/me", headers=headers)).status_code == 200


async def test_nothing_personal_is_in_clear(api: Application, postgres: EmbeddedPostgres, database_url: str) -> None:
    user = await verified(api, "anna.petrova")
    headers = await api.sign_in("anna.petrova")
    child = {"name": "Petya Kindermann", "birth_date": "2020-01-31", "phone": "+34612345678"}
    assert (await api.http.post("/v1/me/patients", json=child, headers=headers)).status_code == 201
    await api.http.post("/v1/auth/password/forgot", json={"login": "anna.petrova"})
    codes = [code for purpose in Purpose for code in await api.sent_codes(user["id"], purpose)]
    tokens = await api.tokens("anna.petrova")
    with psycopg.connect(database_url) as connection:
        tables = [name for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
        dump = "".join(
            str(row)
            for table in tables
            for row in connection.execute(sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier(table)))
        )
    assert user["id"] in dump
    secrets = (
        "anna",
        "petrova",
        "petya",
        "kindermann",
        "mail.example",
        "30901820",
        "612345678",
        "1990-04-12",
        "2020-01-31",
    )
    for personal in (*secrets, PASSWORD, tokens["refresh_token"], "PRIVATE KEY", *codes):
        assert personal.lower() not in dump.lower()
        assert personal.encode().hex() not in dump.lower()
