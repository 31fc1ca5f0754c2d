"""As little WebSocket as a reader of feeds needs, cheap enough for ten thousand in one process (RFC 6455)."""

from __future__ import annotations

import asyncio
from abc import abstractmethod

from cluster.data_directory import LOOPBACK
from loadtests.fixture import Account

_PONG = 0x8A
_MASKED = 0x80


def feed_request(doctor_id: str, account: Account, query: str = "") -> bytes:
    """The request that opens a doctor's feed."""
    return (
        f"GET /v1/doctors/{doctor_id}/feed{query} HTTP/1.1\r\nHost: {LOOPBACK}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Protocol: zapis.v1, bearer.{account.token}\r\n\r\n"
    ).encode()


class FeedReader(asyncio.Protocol):
    """One connection to a feed."""

    __slots__ = ("_data", "_open", "_transport")

    def __init__(self, request: bytes) -> None:
        self._data = bytearray(request)
        self._open = False

    @abstractmethod
    def hear(self, message: bytes) -> None:
        """A message came."""

    @abstractmethod
    def ended(self, why: str) -> None:
        """It was not opened, closed or lost. Once or twice."""

    @property
    def is_open(self) -> bool:
        """Whether it was accepted and has not ended."""
        return self._open and not self._transport.is_closing()

    def close(self) -> None:
        """Go."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(bytes(self._data))
        self._data.clear()

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self._open:
            head, found, rest = self._data.partition(b"\r\n\r\n")
            if not found:
                return
            if not head.startswith(b"HTTP/1.1 101"):
                self.ended(f"not opened: {bytes(head[:60])!r}")
                self._transport.close()
                return
            self._open = True
            self._data = bytearray(rest)
        while (payload := self._payload()) is not None:
            start, end = payload
            self._frame(self._data[0], bytes(self._data[start:end]))
            del self._data[:end]

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended("lost")

    def _payload(self) -> tuple[int, int] | None:
        """Where the payload of the next frame begins and ends, once all of it is there (5.2)."""
        if len(self._data) < 2:
            return None
        start, size = 2, self._data[1]
        if size >= 126:
            start = 4 if size == 126 else 10
            if len(self._data) < start:
                return None
            size = int.from_bytes(self._data[2:start], "big")
        return (start, start + size) if len(self._data) >= start + size else None

    def _frame(self, first_byte: int, payload: bytes) -> None:
        match first_byte & 0x0F:
            case 1:
                self.hear(payload)
            case 8:
                self.ended(f"closed: {int.from_bytes(payload[:2], 'big')} {payload[2:60].decode(errors='replace')}")
            case 9:
                self._transport.write(bytes((_PONG, _MASKED | len(payload), 0, 0, 0, 0)) + payload)
