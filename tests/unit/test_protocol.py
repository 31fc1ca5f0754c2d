"""Who there is no room for is turned away by the protocol itself: what is answered, and what it leaves behind."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
import weakref
from collections.abc import Callable
from typing import Any

import orjson
import pytest
import uvicorn
import uvloop
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

import api.middleware
import api.protocol
from api.errors import Problem
from api.middleware import (
    BODY_LENGTH,
    COMING_BACK_MAX,
    TURNED_AWAY_FOR_S,
    TURNED_AWAY_MAX_S,
    URL_BYTES_MAX,
    Admission,
    Proxies,
)
from api.protocol import ADMISSION, HELD_BYTES_MAX, HttpProtocol
from cluster.serve import KEEP_ALIVE_S

GET = b"GET /v1/a%20b?c=d HTTP/1.1\r\nHost: zapis\r\nX-Request-ID: my-own-request\r\n\r\n"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: zapis\r\n\r\n"
POST = b"POST /v1/holds HTTP/1.1\r\nHost: zapis\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n"


CLIENT = "192.0.2.7"
REST_S = 0.5
NO_PROXIES = Proxies()


class Transport:
    """A connection whose other end is the test."""

    def __init__(self) -> None:
        self.client: str | None = CLIENT
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

    def set_protocol(self, protocol: object) -> None: ...

    def get_extra_info(self, name: str) -> object:
        return (self.client, 40_000) if name == "peername" and self.client is not None else None


class Connection:
    """A connection to a server that has no room at all."""

    def __init__(
        self,
        *,
        keep_alive_s: int = 5,
        proxies: Proxies = NO_PROXIES,
        admission: Admission | None = None,
        client: str | None = CLIENT,
        app: ASGIApp | None = None,
        accepts: bool = False,
    ) -> None:
        """With ``accepts``, it is for a real transport."""
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.asked: list[str] = []
        self.turned_away: list[str] = []
        config = uvicorn.Config(
            app or self._app, http=HttpProtocol, timeout_keep_alive=keep_alive_s, log_config=None, interface="asgi3"
        )
        config.load()
        self.admission = admission or Admission(0, self.turned_away.append, proxies)
        state: dict[str, Any] = {ADMISSION: self.admission}
        self.protocol = HttpProtocol(config=config, server_state=ServerState(), app_state=state)
        self.transport = Transport()
        self.transport.client = client
        if not accepts:
            self.protocol.connection_made(self.transport)  # type: ignore[arg-type]  # all that it needs of one

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.append(scope["path"])
        await self.may_answer.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async def sends(self, *parts: bytes) -> None:
        """The client sends these, one after the other."""
        for part in parts:
            self.protocol.data_received(part)
            await asyncio.sleep(0.01)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what must become true."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.002)


async def test_the_refusal_is_a_problem_like_any_other() -> None:
    connection = Connection()
    connection.protocol.data_received(GET + POST + b"{}" + GET)
    await asyncio.sleep(0.01)

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


async def test_a_refusal_is_of_its_path_and_of_how_long_to_wait() -> None:
    admission = Admission(0, lambda _: None, NO_PROXIES)
    for path, seconds in ((b"/v1/me", 2), (b"/v1/holds", 2), (b"/v1/me", 7)):
        admission.resting = seconds * COMING_BACK_MAX
        connection = Connection(admission=admission)
        connection.protocol.data_received(b"GET " + path + b" HTTP/1.1\r\nHost: zapis\r\n\r\n")
        assert b'"instance":"' + path + b'"' in connection.transport.written
        assert b"retry-after: %d\r\n" % seconds in connection.transport.written
        connection.protocol.connection_lost(None)


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
        b"GET /v1/me?" + b"x" * URL_BYTES_MAX + b" HTTP/1.1\r\nHost: zapis\r\n\r\n",
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


async def test_who_asks_again_at_once_is_heard_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.middleware, "TURNED_AWAY_FOR_S", REST_S)
    connection = Connection()
    refused = connection.turned_away

    async def until_refused(times: int) -> None:
        await until(lambda: len(refused) == times)

    connection.protocol.data_received(GET)
    assert connection.transport.written.count(b"HTTP/1.1 503") == 1, "written at once"
    assert connection.transport.reading, "or nobody would see that the client has gone"
    for number in range(2, 5):
        began = time.monotonic()
        connection.protocol.data_received(GET)
        assert len(refused) == number - 1
        assert connection.transport.reading, "or nobody would see that the client has gone"
        await until_refused(number)
        assert time.monotonic() - began > 0.4 * REST_S
        assert connection.transport.reading
    connection.protocol.connection_lost(None)


async def test_who_asks_again_at_once_is_not_heard_much_sooner_than_told() -> None:
    for _ in range(100):
        connection = Connection()
        before = asyncio.get_running_loop().time()
        connection.protocol.data_received(GET)
        resting = connection.protocol._resting
        assert resting is not None
        after = asyncio.get_running_loop().time()
        assert resting.when() - before >= 0.85 * TURNED_AWAY_FOR_S
        assert resting.when() - after <= TURNED_AWAY_FOR_S
        connection.protocol.connection_lost(None)


def test_how_long_that_is() -> None:
    told = int(Problem("unavailable", retry_after_s=TURNED_AWAY_FOR_S).response().headers["retry-after"])
    assert told == TURNED_AWAY_FOR_S
    assert KEEP_ALIVE_S > 60 > TURNED_AWAY_MAX_S, "who is told to wait, or is a proxy, finds the connection there"


def test_the_more_wait_the_longer_they_are_told_to() -> None:
    admission = Admission(1, lambda method: None, Proxies())
    told = {}
    for resting in (0, 300, 450, 1500, 100_000):
        admission.resting = resting
        told[resting] = int(admission.problem().response().headers["retry-after"])
    assert told == {0: 2, 300: 2, 450: 3, 1500: 10, 100_000: 15}


async def test_who_waits_is_counted_for_as_long_as_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.middleware, "TURNED_AWAY_FOR_S", REST_S)
    connection = Connection()
    admission = connection.protocol.app_state[ADMISSION]
    connection.protocol.data_received(GET)
    assert admission.resting == 1
    await until(lambda: connection.protocol._resting is None)
    assert admission.resting == 0
    connection.protocol.data_received(GET)
    assert admission.resting == 1
    connection.protocol.data_received(GET)
    assert connection.protocol.timeout_keep_alive_task is None, "it is not idle: it is not heard"
    connection.protocol.connection_lost(None)
    assert admission.resting == 0


@pytest.mark.parametrize("error", [None, ConnectionResetError()])
async def test_nothing_is_left_of_a_connection_that_ends_meanwhile(error: Exception | None) -> None:
    connection = Connection()
    connection.protocol.data_received(GET)
    resting = connection.protocol._resting
    assert resting is not None
    connection.protocol.connection_lost(error)
    assert resting.cancelled()


@pytest.mark.parametrize("error", [None, ConnectionResetError()])
@pytest.mark.parametrize("room", [0, 10])
@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.parametrize("request_", [GET, GET + GET, POST, GET[:9], b""])
async def test_a_connection_that_ends_is_freed_at_once(
    request_: bytes, answered: bool, room: int, error: Exception | None
) -> None:
    connection = Connection(keep_alive_s=60, admission=Admission(room, lambda _: None, NO_PROXIES))
    if not answered:
        connection.may_answer.clear()
    await connection.sends(request_)
    freed = weakref.ref(connection.protocol)
    gc.disable()  # Thousands that end together would wait for one long collection, and all others with them.
    try:
        connection.protocol.connection_lost(error)
        del connection.protocol
        connection.may_answer.set()
        await until(lambda: freed() is None)
    finally:
        gc.enable()


@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.parametrize("room", [0, 10])
async def test_nothing_of_a_request_is_left_of_what_became_a_websocket(room: int, answered: bool) -> None:
    class WebSocket:
        def __init__(self, **_: object) -> None: ...

        def connection_made(self, _: object) -> None: ...

        def data_received(self, _: bytes) -> None: ...

    admission = Admission(room, lambda _: None, NO_PROXIES)
    connection = Connection(admission=admission)
    connection.protocol.ws_protocol_class = WebSocket  # type: ignore[assignment]  # all that is asked of it
    if not answered:
        connection.may_answer.clear()
    gc.disable()
    try:
        connection.protocol.data_received(GET + GET[:-2] + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        assert admission.resting == 0
        upgraded = connection.protocol
        connection.may_answer.set()
        await until(lambda: b"HTTP/1.1 " in connection.transport.written)
        await asyncio.sleep(0)
        assert upgraded.timeout_keep_alive_task is None, "it would end what is another's by now"
        freed = weakref.ref(connection.protocol)
        del connection.protocol, upgraded
        await until(lambda: freed() is None)
    finally:
        gc.enable()


async def test_what_a_closed_connection_held_is_not_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.middleware, "TURNED_AWAY_FOR_S", REST_S)
    connection = Connection()
    connection.protocol.data_received(GET)
    connection.protocol.data_received(GET)
    connection.transport.closed = True
    await until(lambda: connection.protocol._resting is None)
    assert connection.turned_away == ["GET"]


async def test_what_is_kept_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.middleware, "TURNED_AWAY_FOR_S", REST_S)
    connection = Connection()
    request = POST.replace(b"Length: 2", b"Length: %d" % HELD_BYTES_MAX)
    connection.protocol.data_received(GET)
    connection.protocol.data_received(request)
    assert connection.transport.reading
    connection.protocol.data_received(bytes(HELD_BYTES_MAX - 1))
    assert not connection.transport.reading, "the rest waits in the kernel"
    await until(lambda: connection.turned_away == ["GET", "POST"])
    assert connection.transport.reading
    connection.protocol.data_received(b"\0")
    await until(lambda: connection.protocol._resting is None)
    await connection.sends(GET)
    assert connection.turned_away == ["GET", "POST", "GET"]
    connection.protocol.connection_lost(None)


async def test_it_holds_also_while_others_of_one_piece_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.middleware, "TURNED_AWAY_FOR_S", REST_S)
    connection = Connection()
    connection.may_answer.clear()
    connection.protocol.data_received(GET + HEALTH * 2)
    connection.protocol.data_received(POST.replace(b"Length: 2", b"Length: %d" % HELD_BYTES_MAX))
    connection.protocol.data_received(bytes(HELD_BYTES_MAX))
    assert not connection.transport.reading
    connection.may_answer.set()
    await until(lambda: connection.transport.written.count(b"HTTP/1.1 204") == 2)
    assert connection.protocol._resting is not None
    assert not connection.transport.reading
    await until(lambda: connection.turned_away == ["GET", "POST"])
    assert connection.transport.reading
    connection.protocol.connection_lost(None)


async def test_the_head_of_who_is_not_heard_is_not_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.middleware, "TURNED_AWAY_FOR_S", REST_S)
    monkeypatch.setattr(api.protocol, "HEAD_S", 0.1 * REST_S)
    connection = Connection()
    connection.protocol.data_received(GET + GET[:9])
    connection.protocol.data_received(GET[9:])
    await until(lambda: len(connection.turned_away) == 2)
    assert b" 408 " not in connection.transport.written
    assert not connection.transport.closed
    connection.protocol.connection_lost(None)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("resets", [True, False])
def test_who_has_gone_is_not_waited_for_nor_served(
    new_loop: Callable[[], asyncio.AbstractEventLoop], resets: bool
) -> None:
    async def ask_and_go() -> Connection:
        connection = Connection(accepts=True)
        ours, client = socket.socketpair()
        with client:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection.protocol, ours)
            connection.protocol.client = (CLIENT, 40_000)
            client.sendall(GET)
            await until(lambda: connection.admission.resting == 1)
            if not resets:  # A connection that is closed with something unread in it is reset.
                client.recv(4096)
            client.sendall(GET)
            await until(lambda: connection.protocol._held == GET)
        await until(lambda: connection.admission.resting == 0)
        return connection

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(ask_and_go()).turned_away == ["GET"]


@pytest.mark.parametrize("proxies", [["192.0.2.0/24"], ["2001:db8::/32", "192.0.2.7"]])
@pytest.mark.parametrize("client", ["192.0.2.7", "::ffff:192.0.2.7"])
async def test_a_proxy_is_heard_at_once_because_it_speaks_for_others_too(proxies: list[str], client: str) -> None:
    connection = Connection(proxies=Proxies(proxies), client=client)
    await connection.sends(GET, GET)
    assert connection.turned_away == ["GET", "GET"]


async def test_who_comes_by_no_address_is_heard_at_once() -> None:
    connection = Connection(client=None)
    await connection.sends(GET, GET)
    assert connection.turned_away == ["GET", "GET"]


async def test_only_what_is_begun_counts() -> None:
    refused: list[str] = []
    admission = Admission(1, refused.append, NO_PROXIES)
    asking = Connection(admission=admission)
    asking.protocol.data_received(HEALTH * 20)
    assert admission.begun == 0, "health is asked without a limit"
    odd = Connection(admission=admission)
    odd.protocol.data_received(b"GET http://[ HTTP/1.1\r\n\r\n")
    assert admission.begun == 0, "what cannot be begun is not"
    pipelining = Connection(admission=admission)
    pipelining.protocol.data_received(GET)
    assert admission.begun == 1
    await asyncio.sleep(0.01)
    assert admission.begun == 0
    assert refused == []


async def test_what_is_begun_behind_a_refusal_is_not_cut_off() -> None:
    connection = Connection(keep_alive_s=1)
    connection.may_answer.clear()
    connection.protocol.data_received(GET + HEALTH)
    await asyncio.sleep(1.3)
    assert not connection.transport.closed, "an answer is on its way"
    connection.may_answer.set()
    await until(lambda: b"204" in connection.transport.written)


async def test_nobody_is_waited_for_who_does_not_say_what_they_want(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.protocol, "HEAD_S", 0.1)
    roomy = Admission(10, lambda _: None, NO_PROXIES)
    silent, slow = Connection(admission=roomy), Connection(admission=roomy)
    again, late = Connection(admission=roomy), Connection(admission=roomy)
    again.protocol.data_received(GET + GET[:9])
    late.may_answer.clear()
    late.protocol.data_received(GET + GET[:9])
    # Now and then a little is no reason to wait for longer.
    for part in (GET[: GET.index(b"\r\n") + 2], *[b"X-More: 1\r\n"] * 4):
        await slow.sends(part)
        await asyncio.sleep(0.04)
    await until(lambda: silent.transport.closed and slow.transport.closed and again.transport.closed)
    assert silent.transport.written == b""
    assert slow.transport.written.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert b"connection: close" in slow.transport.written
    assert orjson.loads(slow.transport.written.partition(b"\r\n\r\n")[2])["code"] == "request_timeout"
    assert again.transport.written.startswith(b"HTTP/1.1 204")
    assert b"408" in again.transport.written
    assert not late.transport.closed, "what was asked before is being answered"
    late.may_answer.set()
    await until(lambda: late.transport.closed)
    assert late.transport.written.startswith(b"HTTP/1.1 204")


async def test_a_whole_head_is_no_longer_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.protocol, "HEAD_S", 0.05)
    connection = Connection(admission=Admission(10, lambda _: None, NO_PROXIES))
    for part in (GET[:9], GET[9:]):  # In one go: however slow this machine is, it is not late.
        connection.protocol.data_received(part)
    await asyncio.sleep(0.15)
    assert connection.transport.written.startswith(b"HTTP/1.1 204")
    assert not connection.transport.closed, "it may send another"


async def test_a_connection_that_says_nothing_more_ends() -> None:
    for parts in ((GET,), (POST, b"{}"), (POST,), (POST, b"{")):
        connection = Connection(keep_alive_s=1)
        await connection.sends(*parts)
        assert connection.turned_away
        assert not connection.transport.closed
        async with asyncio.timeout(5):
            while not connection.transport.closed:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("parts", "lengths"),
    [
        ([POST + b"{}"], [2]),
        ([POST, b"{}"], [None]),
        ([GET], [0]),
        ([POST + b"{}" + GET], [None, 0]),  # The newest request is another one.
    ],
)
async def test_how_long_a_body_is_is_known_when_all_of_it_has_come(
    parts: list[bytes], lengths: list[int | None]
) -> None:
    told = []

    async def app(scope: Scope, _: Receive, send: Send) -> None:
        told.append(scope[BODY_LENGTH](scope))
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    connection = Connection(admission=Admission(10, lambda _: None, NO_PROXIES), app=app)
    await connection.sends(*parts)
    assert told == lengths


async def test_a_copy_of_a_scope_is_not_taken_for_it() -> None:
    told = []

    async def app(scope: Scope, _: Receive, send: Send) -> None:
        told.append(scope[BODY_LENGTH]({**scope}))
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    connection = Connection(admission=Admission(10, lambda _: None, NO_PROXIES), app=app)
    await connection.sends(POST + b"{}")
    assert told == [None]


async def test_nothing_is_known_of_a_body_when_the_connection_has_become_a_websocket() -> None:
    told = []

    async def app(scope: Scope, _: Receive, __: Send) -> None:
        told.append(scope[BODY_LENGTH](scope))

    connection = Connection(admission=Admission(10, lambda _: None, NO_PROXIES), app=app)
    connection.protocol.data_received(GET)
    connection.protocol.cycle = None  # type: ignore[assignment]  # as an upgrade in the same piece leaves it
    await asyncio.sleep(0.01)
    assert told == [None]
