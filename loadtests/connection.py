"""As little HTTP as a client needs: one kept connection, one request at a time, cheap enough for tens of clients."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from cluster.data_directory import LOOPBACK

TIMEOUT_S = 20.0
"""Past every deadline of the server's: whoever waits for so long gets no answer."""


Answer = tuple[int, bytes]


class NoAnswer(Exception):
    """Nobody answered, or the connection was lost: what became of the request is unknown."""


class Connection:
    """A connection to one API process on loopback, made when it is needed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.retry_after_s = 0
        """What the last answer asked to wait."""

    async def send(self, method: str, path: str, token: str, body: bytes = b"", key: str | None = None) -> Answer:
        """Status and body of the answer.

        Raises:
            NoAnswer: there is none.
        """
        lines = [f"{method} {path} HTTP/1.1", f"Host: {LOOPBACK}", f"Authorization: Bearer {token}"]
        if key is not None:
            lines.append(f"Idempotency-Key: {key}")
        if method == "POST":
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        head = "\r\n".join([*lines, "", ""])
        try:
            async with asyncio.timeout(TIMEOUT_S):
                if self._streams is None or self._streams[0].at_eof():  # The server ends connections that are idle.
                    self.close()
                    self._streams = await asyncio.open_connection(LOOPBACK, self._port)
                reader, writer = self._streams
                writer.write(head.encode() + body)
                said = (await reader.readuntil(b"\r\n\r\n")).lower()
                self.retry_after_s = _number(said, b"retry-after")
                return int(said[9:12]), await reader.readexactly(_number(said, b"content-length"))
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError, TimeoutError) as failure:
            self.close()
            raise NoAnswer from failure
        except asyncio.CancelledError:
            self.close()
            raise

    def close(self) -> None:
        """Let the connection go."""
        if self._streams is not None:
            with suppress(RuntimeError):  # The loop is gone.
                self._streams[1].close()
            self._streams = None


def _number(head: bytes, name: bytes) -> int:
    """Of a header, in small letters; 0 without it."""
    return int(head.partition(b"\r\n" + name + b": ")[2].partition(b"\r\n")[0] or 0)
