"""uvicorn's HTTP protocol, with some things changed.

An answer leaves in one piece: uvicorn writes head and body apart, which is two system calls here and two wake-ups at
the other end, and takes as long again as all else that it does for an answer. What is no HTTP is told so in our form.
And what there is no room for is turned away before it becomes a request: when most are, that is most of the work. Who
asks again on the same connection sooner than it was told to is not heard for a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import lru_cache
from math import ceil
from random import uniform
from types import SimpleNamespace
from typing import Any, Final, cast
from urllib.parse import unquote

from starlette.responses import Response
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from api.errors import Problem
from api.middleware import (
    BODY_LENGTH,
    HEADERS,
    POLICY,
    UNLIMITED_PATHS,
    URL_BYTES_MAX,
    Admission,
    no_room,
    request_id_of,
)

ABORT: Final = "zapis.abort"
"""Where a scope has the function that ends its connection at once, whatever there is to be sent."""
END: Final = "zapis.end"
"""Where an application leaves in a scope what ends an answer that goes on until the server stops."""
ADMISSION: Final = "zapis.admission"
"""Where the application's lifespan leaves its ``Admission``."""
HEAD_S: Final = 10.0
"""How long the head of a request may take, from the connection or from its first byte on."""
HELD_BYTES_MAX: Final = 16 * 1024
"""Past so much no more is read of a connection that is not heard for a while. As long as it is read, it shows when its
client goes, and what that asked for is not done."""
REFUSALS_KEPT: Final = 128
"""Refusals that need not be made anew: for one path and time to wait they differ in their id only."""
_STATUS_LINES: Final = {
    400: b"HTTP/1.1 400 Bad Request",
    408: b"HTTP/1.1 408 Request Timeout",
    503: b"HTTP/1.1 503 Service Unavailable",
}
_ANSWERED: Final = SimpleNamespace(response_complete=True, message_event=SimpleNamespace(set=lambda: None))
"""In place of uvicorn's cycle of a request and its response: there is nothing left to do for it."""
_UNLIMITED: Final = frozenset(path.encode() for path in UNLIMITED_PATHS)


class HttpProtocol(HttpToolsProtocol):
    """Answers in one piece; what is not HTTP is a problem, and the connection's end: where would a request begin?

    Who connects and sends nothing, or a head that never ends, is not waited for: uvicorn would, for ever.
    """

    _in_head = False
    """Whether some of a request's head has come, and not all of it."""
    _late: asyncio.TimerHandle | None = None
    """Ends the wait for a head."""
    _resting: asyncio.TimerHandle | None = None
    """Ends the while in which nothing is heard, because something was turned away."""
    _held = b""
    """What came meanwhile."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Take the connection over."""
        super().connection_made(cast(asyncio.Transport, _Together(transport, self.loop)))
        self._late = self.loop.call_later(HEAD_S, self._end_late)

    def data_received(self, data: bytes) -> None:
        """Go on; a connection whose last request was turned away ends when nothing comes any more."""
        if self._resting is not None:
            self._unset_keepalive_if_required()  # It is we who let it wait.
            self._held += data
            self._read_no_more_than_held()
            return
        super().data_received(data)
        if self._in_head and self._late is None:
            self._late = self.loop.call_later(HEAD_S, self._end_late)
        if (
            cast(object, self.cycle) is _ANSWERED
            and self.timeout_keep_alive_task is None
            and not self.transport.is_closing()
        ):
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._in_head = True

    def on_headers_complete(self) -> None:
        """Begin the request, unless it is turned away."""
        self._in_head = False
        if self._late is not None:
            self._late.cancel()
            self._late = None
        admission: Admission | None = self.app_state.get(ADMISSION)
        if admission is None or not admission.will_be_full or not self._is_plain():
            self._unset_keepalive_if_required()  # One that was turned away in the same piece has begun it.
            super().on_headers_complete()
            return
        method = self.parser.get_method().decode("ascii")
        admission.turned_away(method)
        self._write(*_refusal(self.url.partition(b"?")[0], ceil(admission.away_for_s)))
        self.cycle = _ANSWERED  # type: ignore[assignment]  # what uvicorn asks of one that is complete
        self.on_response_complete()
        # Told to come back in a moment, some come back at once, and being told again is all that the server would do.
        # What a proxy sends next may be another's.
        if self._resting is None and self.client is not None and self.client[0] not in admission.proxies:
            # Not all at once: they came together, they should not come back together.
            self._resting = self.loop.call_later(admission.away_for_s * uniform(0.85, 1.0), self._hear)
            admission.resting += 1

    def on_response_complete(self) -> None:
        """Go on with what waits, or for the next request; not on a connection that is a WebSocket's by now."""
        if self.parser is not None:
            super().on_response_complete()
            self._read_no_more_than_held()

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over, with nothing left of what was turned away on it."""
        super().handle_websocket_upgrade()
        self.parser = None  # type: ignore[assignment]  # as when the connection is lost
        self._let_go()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of it, and of all that holds it in turn: thousands that go would else wait for one long collection."""
        super().connection_lost(exc)
        self._let_go()

    def send_400_response(self, msg: str) -> None:
        """The problem; ``msg`` is uvicorn's, and says no more than that."""
        self._end_with(Problem("bad_request", "This is not a request by HTTP."))

    def shutdown(self) -> None:
        """Let what is under way end; what would go on for ever is told to."""
        super().shutdown()
        cycle = cast(RequestResponseCycle | None, self.cycle)
        if cycle is not None and not cycle.response_complete:
            end = cast(dict[str, Callable[[], None]], cycle.scope).get(END)
            if end is not None:
                end()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        scope = cast(dict[str, object], cycle.scope)
        scope[ABORT] = self._abort
        scope[BODY_LENGTH] = self._body_length
        super()._start_asgi_task(cycle, app)
        admission: Admission | None = self.app_state.get(ADMISSION)
        if admission is not None and cycle.scope["path"] not in UNLIMITED_PATHS:
            admission.begun += 1
            self.loop.call_soon(_is_counted, admission)

    def _end_late(self) -> None:
        self._late = None
        # The one before is still being answered, or it is we who do not hear the rest of it.
        if self._resting is not None or not getattr(self.cycle, "response_complete", True):
            self._late = self.loop.call_later(HEAD_S, self._end_late)
        elif self._in_head and not self.transport.is_closing():
            self._end_with(Problem("request_timeout", "The head of the request took too long."))
        else:
            self.transport.close()

    def _end_with(self, problem: Problem) -> None:
        response = problem.response()
        response.headers["connection"] = "close"
        self.headers = []
        self._write(*_parts(response))
        self.transport.close()

    def _body_length(self, scope: Mapping[str, object]) -> int | None:
        cycle = self.cycle  # Of the newest request, or of none: there may be another that was sent without waiting.
        if getattr(cycle, "scope", None) is not scope or cycle.more_body:
            return None
        return len(cycle.body)

    def _abort(self) -> None:
        self.transport.abort()

    def _let_go(self) -> None:
        """End the timers, and the circle: a request holds its connection by what its scope can do to it."""
        for timer in (self._late, self._resting):
            if timer is not None:
                timer.cancel()
        if self._resting is not None:
            self._rested()
        self._unset_keepalive_if_required()
        self.pipeline.clear()
        self.cycle = None  # type: ignore[assignment]  # as it is at the beginning
        self.scope = None  # type: ignore[assignment]  # as well

    def _hear(self) -> None:
        """What came meanwhile, and what comes."""
        self._rested()
        if not self.transport.is_closing():
            self.flow.resume_reading()
            held, self._held = self._held, b""
            if held:
                self.data_received(held)

    def _read_no_more_than_held(self) -> None:
        if len(self._held) >= HELD_BYTES_MAX:
            self.flow.pause_reading()

    def _rested(self) -> None:
        self._resting = None
        admission: Admission = self.app_state[ADMISSION]
        admission.resting -= 1

    def _is_plain(self) -> bool:
        """Whether it may be turned away here: nothing is answered before it, and it is of no browser's page."""
        return (
            getattr(self.cycle, "response_complete", True)
            and not self.flow.write_paused  # Who does not read what is answered is not answered for ever.
            and self.url.startswith(b"/")
            and len(self.url) <= URL_BYTES_MAX  # Its refusal is kept.
            and self.parser.get_http_version() == "1.1"
            and self.parser.should_keep_alive()
            and not self.parser.should_upgrade()
            and self.parser.get_method() != b"HEAD"
            and self.url.partition(b"?")[0] not in _UNLIMITED
            and not any(name == b"origin" for name, _ in self.headers)
        )

    def _write(self, before_id: bytes, after_id: bytes) -> None:
        """A whole response, but for the request's id, ahead of all that has been begun meanwhile.

        Those of one piece leave together: each would be a system call.
        """
        self.transport.write(before_id + request_id_of(self.headers) + after_id)
        if self._resting is None:
            cast(_Together, self.transport).send()


@lru_cache(REFUSALS_KEPT)
def _refusal(path: bytes, retry_after_s: int) -> tuple[bytes, bytes]:
    return _parts(no_room(retry_after_s).response(unquote(path.decode("ascii", errors="replace"))))


def _parts(response: Response) -> tuple[bytes, bytes]:
    """What is sent of a response before the id of its request, and after it, with the headers that every one has."""
    headers = [
        *response.raw_headers,
        *HEADERS,
        (b"cache-control", b"no-store"),
        (b"content-security-policy", POLICY),
        (b"x-request-id", b""),
    ]
    lines = [_STATUS_LINES[response.status_code], *(name + b": " + value for name, value in headers)]
    return b"\r\n".join(lines), b"\r\n\r\n" + bytes(response.body)


def _is_counted(admission: Admission) -> None:
    """The request has had its first turn: ``Admit`` counts it from there on."""
    admission.begun -= 1


class _Together:
    """A transport that sends together what is written before the event loop goes on."""

    __slots__ = ("_loop", "_transport", "_written")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._written: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._written:
            self._loop.call_soon(self.send)
        self._written.append(data)

    def close(self) -> None:
        self.send()
        self._transport.close()

    def send(self) -> None:
        """Do not wait any longer."""
        data = b"".join(self._written)
        self._written.clear()
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
