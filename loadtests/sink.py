"""Where mail goes in a measurement: `python -m loadtests.sink --port …` takes it, counts it and throws it away.

As little SMTP (RFC 5321) as a client needs, in a process of its own. Asked by ``COUNT``, it tells how many mails it has
taken and how many of them had a Message-ID that it had seen before.
"""

from __future__ import annotations

import argparse
import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

from cluster.data_directory import LOOPBACK

_MESSAGE_ID = re.compile(rb"^message-id:\s*<([^>]+)>", re.IGNORECASE | re.MULTILINE)
_END = b"\r\n.\r\n"
_ANSWERS = {
    b"EHLO": b"250-sink\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n",
    b"HELO": b"250 sink\r\n",
    b"MAIL": b"250 OK\r\n",
    b"RCPT": b"250 OK\r\n",
    b"RSET": b"250 OK\r\n",
    b"NOOP": b"250 OK\r\n",
    b"DATA": b"354 go on\r\n",
}


class Sink(asyncio.Protocol):
    """A connection; all of them count together."""

    taken: ClassVar[Counter[bytes]] = Counter()

    def __init__(self) -> None:
        self._data = bytearray()
        self._in_mail = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(b"220 sink\r\n")

    def data_received(self, data: bytes) -> None:
        self._data += data
        while self._take_mail() if self._in_mail else self._take_line():
            pass

    def _take_line(self) -> bool:
        line, found, rest = self._data.partition(b"\r\n")
        if not found:
            return False
        self._data = rest
        verb = bytes(line[:4]).upper()
        if verb == b"COUN":
            repeated = self.taken.total() - len(self.taken)
            self._transport.write(b"%d %d\r\n" % (self.taken.total(), repeated))
        elif verb == b"QUIT":
            self._transport.write(b"221 bye\r\n")
            self._transport.close()
        else:
            self._transport.write(_ANSWERS.get(verb, b"500 what?\r\n"))
            self._in_mail = verb == b"DATA"
        return True

    def _take_mail(self) -> bool:
        end = self._data.find(_END)
        if end < 0:
            return False
        found = _MESSAGE_ID.search(self._data, 0, end)
        self.taken[bytes(found[1]) if found else b""] += 1
        del self._data[: end + len(_END)]
        self._in_mail = False
        self._transport.write(b"250 OK\r\n")
        return True


async def count(port: int) -> tuple[int, int]:
    """How many mails the sink has taken, and how many of them again."""
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    try:
        await reader.readline()
        writer.write(b"COUNT\r\n")
        total, repeated = (await reader.readline()).split()
        return int(total), int(repeated)
    finally:
        writer.close()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtests.sink", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    asyncio.run(_serve(parser.parse_args(arguments).port))


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Sink, LOOPBACK, port, backlog=512)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    main()
