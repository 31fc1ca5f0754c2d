"""The client of the public API: what it waits for, what it repeats, and what it gives up."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from cluster.public_api import WAIT_MAX_S, Account, PublicApi, Refused, Unanswered

Reply = httpx.Response | Exception


class Server:
    """Answers with the replies it was given, in order, and remembers the requests."""

    def __init__(self, *replies: Reply) -> None:
        self.replies = list(replies)
        self.requests: list[httpx.Request] = []
        self.slept: list[float] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def api(
        self, patience_s: float = 100, observe: Callable[[str, float], None] = lambda call, seconds: None
    ) -> PublicApi:
        client = httpx.AsyncClient(base_url="http://zapis.example", transport=httpx.MockTransport(self))
        return PublicApi(client, patience_s=patience_s, observe=observe, now=lambda: sum(self.slept), sleep=self.sleep)


def problem(status: int, code: str, **headers: str) -> httpx.Response:
    body = {"code": code, "detail": "Why.", "errors": [{"pointer": "/name", "detail": "Odd."}]}
    return httpx.Response(status, json=body, headers=headers)


def token(value: str) -> httpx.Response:
    return httpx.Response(200, json={"access_token": value})


async def test_an_answer_is_given_and_its_time_observed() -> None:
    server, seen = Server(httpx.Response(201, json={"id": "1"})), []

    answer = await server.api(observe=lambda call, seconds: seen.append(call)).call(
        "POST", "/v1/x", key="k", json={"a": 1}, params={"q": "1"}, token="t"
    )

    assert (answer.status, answer.body) == (201, {"id": "1"})
    (request,) = server.requests
    assert request.headers["Idempotency-Key"] == "k"
    assert request.headers["Authorization"] == "Bearer t"
    assert request.url == "http://zapis.example/v1/x?q=1"
    assert seen == ["POST /v1/x"]


async def test_a_refusal_has_its_code_and_every_fault() -> None:
    with pytest.raises(Refused, match=r"409 slot_taken: Why\.; /name: Odd\.") as caught:
        await Server(problem(409, "slot_taken")).api().call("POST", "/v1/x")
    assert caught.value.code == "slot_taken"


async def test_a_refusal_that_is_no_problem_has_the_status_for_a_code() -> None:
    with pytest.raises(Refused, match=r"404 http_404"):
        await Server(httpx.Response(404, text="<html>")).api().call("GET", "/v1/x")


@pytest.mark.parametrize("repeatable", [True, False])
async def test_429_is_waited_for_as_told(repeatable: bool) -> None:
    server = Server(problem(429, "rate_limited", **{"Retry-After": "7"}), httpx.Response(204))

    answer = await server.api().call("POST", "/v1/x", repeatable=repeatable)

    assert (answer.status, answer.body, server.slept) == (204, None, [7.0])


async def test_503_and_lost_answers_are_tried_again_with_the_same_key() -> None:
    server = Server(
        problem(503, "unavailable", **{"Retry-After": "1"}),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("closed"),
        httpx.Response(200, json={}),
    )

    await server.api().call("POST", "/v1/x", key="k")

    assert {request.headers["Idempotency-Key"] for request in server.requests} == {"k"}
    assert len(server.requests) == 4
    assert server.slept[0] == 1.0


@pytest.mark.parametrize("reply", [problem(503, "unavailable"), httpx.ReadTimeout("slow"), httpx.Response(502)])
async def test_what_cannot_be_repeated_is_left_open(reply: Reply) -> None:
    server = Server(reply)

    with pytest.raises(Unanswered):
        await server.api().call("POST", "/v1/x", repeatable=False)
    assert len(server.requests) == 1


async def test_what_never_arrived_is_sent_again_even_if_it_cannot_be_repeated() -> None:
    server = Server(httpx.ConnectError("refused"), httpx.ConnectTimeout(""), httpx.Response(200, json={}))

    await server.api().call("POST", "/v1/x", repeatable=False)

    assert len(server.requests) == 3


async def test_patience_ends() -> None:
    server = Server(*[httpx.ConnectError("refused") for _ in range(1000)])

    with pytest.raises(Unanswered, match="refused"):
        await server.api(patience_s=30).call("GET", "/v1/x")
    assert 20 <= sum(server.slept) <= 30
    assert len(server.requests) < 30


async def test_a_server_that_is_not_there_is_given_up_sooner() -> None:
    server = Server(*[httpx.ConnectError("refused") for _ in range(1000)])
    client = httpx.AsyncClient(base_url="http://zapis.example", transport=httpx.MockTransport(server))
    api = PublicApi(client, connect_patience_s=10, now=lambda: sum(server.slept), sleep=server.sleep)

    with pytest.raises(Unanswered, match="refused"):
        await api.call("GET", "/v1/x")
    assert sum(server.slept) <= 10


async def test_an_address_that_is_none_is_told_at_once() -> None:
    with pytest.raises(Unanswered, match="protocol"):
        await PublicApi(httpx.AsyncClient(base_url="ftp://zapis.example")).call("GET", "/v1/x")


@pytest.mark.parametrize("told", [str(int(WAIT_MAX_S) + 1), "9" * 400, "Fri, 01 Jan 2100 00:00:00 GMT"])
async def test_nobody_waits_for_longer_than_a_minute_at_once(told: str) -> None:
    server = Server(problem(429, "rate_limited", **{"Retry-After": told}))

    with pytest.raises(Unanswered):
        await server.api(patience_s=10**6).call("GET", "/v1/x")
    assert server.slept == []


@pytest.mark.parametrize("told", ["soon", "-1", "", "²", "Fri, 01 Jan 2021 00:00:00 GMT"])
async def test_a_retry_after_that_says_nothing_is_a_short_wait(told: str) -> None:
    server = Server(httpx.Response(429, headers=[(b"Retry-After", told.encode())]), httpx.Response(200, json={}))

    await server.api().call("GET", "/v1/x")

    assert server.slept == [0.1]


async def test_what_is_not_json_is_no_answer() -> None:
    with pytest.raises(Unanswered, match="is that a zapis"):
        await Server(httpx.Response(200, text="<html>")).api().call("GET", "/v1/x")


async def test_items_of_every_page() -> None:
    server = Server(
        httpx.Response(200, json={"items": [{"id": "1"}], "next_cursor": "c1"}),
        httpx.Response(200, json={"items": [{"id": "2"}], "next_cursor": None}),
    )

    assert await server.api().items("/v1/x", {"q": "1"}) == [{"id": "1"}, {"id": "2"}]
    assert [dict(request.url.params) for request in server.requests] == [
        {"limit": "200", "q": "1"},
        {"limit": "200", "q": "1", "cursor": "c1"},
    ]


async def test_an_account_logs_in_once_for_many_calls() -> None:
    server = Server(token("t1"), *[httpx.Response(200, json={}) for _ in range(5)])
    account = Account(server.api(), "anna", "secret")

    await asyncio.gather(*(account.call("GET", "/v1/me") for _ in range(5)))

    assert server.requests[0].content == b"grant_type=password&username=anna&password=secret"
    assert [request.headers["Authorization"] for request in server.requests[1:]] == ["Bearer t1"] * 5


async def test_an_account_logs_in_again_when_its_token_has_expired() -> None:
    server = Server(token("t1"), problem(401, "unauthenticated"), token("t2"), httpx.Response(200, json={"id": 1}))

    assert (await Account(server.api(), "anna", "secret").call("GET", "/v1/me")).body == {"id": 1}
    assert server.requests[-1].headers["Authorization"] == "Bearer t2"


@pytest.mark.parametrize(
    "replies",
    [
        [problem(401, "unauthenticated")],
        [token("t1"), problem(401, "unauthenticated"), token("t2"), problem(401, "unauthenticated")],
    ],
)
async def test_an_account_that_is_not_let_in_is_refused(replies: list[httpx.Response]) -> None:
    server = Server(*replies)

    with pytest.raises(Refused, match="401"):
        await Account(server.api(), "anna", "wrong").call("GET", "/v1/me")
    assert server.replies == []


async def test_a_pending_booking_is_followed_to_its_answer() -> None:
    server = Server(
        token("t"),
        httpx.Response(202, json={"command_id": "c", "status": "pending"}),
        httpx.Response(202, json={"command_id": "c", "status": "pending"}),
        httpx.Response(201, json={"id": "a"}),
    )

    booked = await Account(server.api(), "anna", "secret").book("s1", key="k", patient_id="p", reason="r")

    assert booked == {"id": "a"}
    assert {request.headers["Idempotency-Key"] for request in server.requests[1:]} == {"k"}
    assert {request.content for request in server.requests[1:]} == {b'{"slot_id":"s1","patient_id":"p","reason":"r"}'}


async def test_a_booking_that_stays_pending_is_left_open() -> None:
    pending: list[Any] = [httpx.Response(202, json={"status": "pending"}) for _ in range(1000)]
    server = Server(token("t"), *pending)

    with pytest.raises(Unanswered, match="still pending"):
        await Account(server.api(patience_s=30), "anna", "secret").book("s1", key="k")
