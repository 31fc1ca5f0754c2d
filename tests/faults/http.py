"""As little HTTP as a client needs: one kept connection, one request at a time, cheap enough for tens of clients."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from cluster.data_directory import LOOPBACK

TIMEOUT_S = 20.0
"""Past every deadline of the server's: whoever waits for so long gets no answer."""


class NoAnswer(Exception):
    """Nobody answered, or the connection was lost: what became of the request is unknown."""


class Connection:
    """A connection to one API process, made when it is needed."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._head = f" HTTP/1.1\r\nHost: {LOOPBACK}\r\nAuthorization: {token}\r\nContent-Type: application/json\r\n"
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes, key: str) -> tuple[int, bytes]:
        """Status and body of the answer.

        Raises:
            NoAnswer: there is none.
        """
        head = f"POST {path}{self._head}Idempotency-Key: {key}\r\nContent-Length: {len(body)}\r\n\r\n"
        try:
            async with asyncio.timeout(TIMEOUT_S):
                if self._streams is None or self._streams[0].at_eof():  # The server ends connections that are idle.
                    self.close()
                    self._streams = await asyncio.open_connection(LOOPBACK, self._port)
                reader, writer = self._streams
                writer.write(head.encode() + body)
                return await _answer(reader)
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as failure:
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


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    _, _, rest = head.partition(b"content-length: ")
    length = int(rest.partition(b"\r\n")[0])
    return int(head[9:12]), await reader.readexactly(length)
