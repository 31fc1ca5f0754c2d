"""Who there is no room for is turned away by the protocol itself: what is answered, and what it leaves behind."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import orjson
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from api.middleware import TURNED_AWAY_FOR_S, Admission, Proxies
from api.protocol import ADMISSION, HttpProtocol

GET = b"GET /v1/a%20b?c=d HTTP/1.1\r\nHost: zapis\r\nX-Request-ID: my-own-request\r\n\r\n"
POST = b"POST /v1/holds HTTP/1.1\r\nHost: zapis\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n"


CLIENT = "192.0.2.7"
NO_PROXIES = Proxies()


class Transport:
    """A connection whose other end is the test."""

    def __init__(self) -> None:
        self.written = b""
        self.reading = True
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def get_extra_info(self, name: str) -> object:
        return (CLIENT, 40_000) if name == "peername" else None


class Connection:
    """A connection to a server that has no room at all."""

    def __init__(
        self, *, keep_alive_s: int = 5, proxies: Proxies = NO_PROXIES, admission: Admission | None = None
    ) -> None:
        self.asked: list[str] = []
        self.turned_away: list[str] = []
        config = uvicorn.Config(
            self._app, http=HttpProtocol, timeout_keep_alive=keep_alive_s, log_config=None, interface="asgi3"
        )
        config.load()
        self.admission = admission or Admission(0, self.turned_away.append, proxies)
        state: dict[str, Any] = {ADMISSION: self.admission}
        self.protocol = HttpProtocol(config=config, server_state=ServerState(), app_state=state)
        self.transport = Transport()
        self.protocol.connection_made(self.transport)  # type: ignore[arg-type]  # all that it needs of one

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.append(scope["path"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async def sends(self, *parts: bytes) -> None:
        """The client sends these, one after the other."""
        for part in parts:
            self.protocol.data_received(part)
            await asyncio.sleep(0.01)


async def test_the_refusal_is_a_problem_like_any_other() -> None:
    connection = Connection()
    await connection.sends(GET, POST + b"{}", GET)

    head, _, rest = connection.transport.written.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 503 Service Unavailable"
    headers = dict(line.lower().split(b": ", 1) for line in lines[1:])
    assert headers[b"x-request-id"] == b"my-own-request"
    assert headers[b"retry-after"] == b"2"
    problem = orjson.loads(rest[: int(headers[b"content-length"])])
    assert (problem["code"], problem["status"], problem["instance"]) == ("unavailable", 503, "/v1/a%20b")
    assert connection.transport.written.count(b"HTTP/1.1 503") == 3
    assert connection.turned_away == ["GET", "POST", "GET"]
    assert connection.asked == []
    assert not connection.transport.closed


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /healthz HTTP/1.1\r\nHost: zapis\r\n\r\n",
        b"GET /metrics?x HTTP/1.1\r\nHost: zapis\r\n\r\n",
        b"GET http://zapis/v1/me HTTP/1.1\r\nHost: zapis\r\n\r\n",
        b"HEAD /v1/me HTTP/1.1\r\nHost: zapis\r\n\r\n",
        b"GET /v1/me HTTP/1.0\r\nHost: zapis\r\n\r\n",
        b"GET /v1/me HTTP/1.1\r\nHost: zapis\r\nConnection: close\r\n\r\n",
        b"GET /v1/me HTTP/1.1\r\nHost: zapis\r\nOrigin: https://clinic.example\r\n\r\n",
    ],
)
async def test_what_is_not_plain_takes_the_longer_way(request_: bytes) -> None:
    connection = Connection()
    await connection.sends(request_)
    assert len(connection.asked) == 1
    assert connection.turned_away == []


async def test_of_those_who_come_in_one_go_no_more_are_begun_than_there_is_room_for() -> None:
    refused: list[str] = []
    admission = Admission(2, refused.append, NO_PROXIES)
    crowd = [Connection(admission=admission) for _ in range(5)]
    for connection in crowd:
        connection.protocol.data_received(GET)
    assert admission.begun == 2
    assert len(refused) == 3

    await asyncio.sleep(0.01)
    assert [len(connection.asked) for connection in crowd] == [1, 1, 0, 0, 0]
    assert admission.begun == 0


async def test_who_does_not_read_is_not_answered_for_ever() -> None:
    connection = Connection()
    connection.protocol.pause_writing()
    await connection.sends(GET * 50)
    assert connection.turned_away == []
    assert connection.transport.written == b""
    assert not connection.transport.reading

    connection.protocol.resume_writing()
    await asyncio.sleep(0.01)
    assert connection.asked, "and when it does read, it goes on"


async def test_who_asks_again_at_once_is_heard_when_it_was_told_to() -> None:
    connection = Connection()
    began = time.monotonic()
    await connection.sends(GET, GET)
    assert not connection.transport.reading
    async with asyncio.timeout(5):
        while not connection.transport.reading:
            await asyncio.sleep(0.01)
    assert time.monotonic() - began >= 0.5 * TURNED_AWAY_FOR_S
    await connection.sends(GET)
    assert not connection.transport.reading, "and the next time too"
    connection.protocol.connection_lost(None)


async def test_a_proxy_is_heard_at_once_because_it_speaks_for_others_too() -> None:
    connection = Connection(proxies=Proxies(["192.0.2.0/24"]))
    await connection.sends(GET)
    assert connection.turned_away
    assert connection.transport.reading


async def test_nothing_is_left_of_a_connection_that_ends_while_it_is_not_heard() -> None:
    connection = Connection()
    await connection.sends(GET)
    connection.protocol.connection_lost(None)
    connection.transport.reading = False
    await asyncio.sleep(1.2 * TURNED_AWAY_FOR_S)
    assert not connection.transport.reading, "it was touched after its end"


async def test_a_connection_that_says_nothing_more_ends() -> None:
    for parts in ((GET,), (POST, b"{}"), (POST,), (POST, b"{")):
        connection = Connection(keep_alive_s=1)
        await connection.sends(*parts)
        assert connection.turned_away
        assert not connection.transport.closed
        async with asyncio.timeout(5):
            while not connection.transport.closed:
                await asyncio.sleep(0.05)
