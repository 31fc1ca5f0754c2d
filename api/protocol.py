"""uvicorn's HTTP protocol, with two things changed.

An answer leaves in one piece: uvicorn writes head and body apart, which is two system calls here and two wake-ups at
the other end, and takes as long again as all else that it does for an answer. And what is no HTTP is told so in our
form.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.errors import MEDIA_TYPE, Problem
from api.middleware import HEADERS, POLICY
from api.routing import encoded
from persistence.identifiers import new_id


class HttpProtocol(HttpToolsProtocol):
    """Answers in one piece; what is not HTTP is a problem, and the connection's end: where would a request begin?"""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Take the connection over."""
        super().connection_made(cast(asyncio.Transport, _Gathering(transport, self.loop)))

    def send_400_response(self, msg: str) -> None:
        """The problem; ``msg`` is uvicorn's, and says no more than that."""
        body = encoded(Problem("bad_request", "This is not a request by HTTP.").body())
        headers = (
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            (b"cache-control", b"no-store"),
            (b"x-request-id", new_id().encode()),
            (b"content-security-policy", POLICY),
            *HEADERS,
        )
        lines = [b"HTTP/1.1 400 Bad Request", *(name + b": " + value for name, value in headers), b"", body]
        self.transport.write(b"\r\n".join(lines))
        self.transport.close()


class _Gathering:
    """A transport that sends together what is written before the event loop goes on."""

    __slots__ = ("_loop", "_transport", "_written")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._written: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._written:
            self._loop.call_soon(self._send)
        self._written.append(data)

    def close(self) -> None:
        self._send()
        self._transport.close()

    def _send(self) -> None:
        if self._written:
            data = b"".join(self._written)
            self._written.clear()
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
