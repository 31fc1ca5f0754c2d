"""The load: prepared requests over keep-alive connections, each as soon as its connection has its answer.

``wrk`` makes it where it is installed (a compiled generator; ``book.lua`` walks the requests); else a client of our own
on bare sockets, which costs a few times as much.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

SCRIPT = Path(__file__).with_name("book.lua")
BEGUN = b"begun\n"
"""What it prints when all requests are read."""
ANSWER_TIMEOUT_S = 20.0
GRACE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a round brought."""

    read: int
    """Answers 200."""
    created: int
    """Answers 201."""
    refused: int
    """Answers 409: someone else has the slot."""
    unavailable: int
    """Answers 503."""
    others: int
    """Answers of another status."""
    failed: int
    """Requests without an answer."""
    seconds: float
    p50_ms: float
    p99_ms: float
    worst_ms: float

    @property
    def answered(self) -> int:
        """Told, booked or refused."""
        return self.read + self.created + self.refused

    @property
    def rate(self) -> float:
        """Such answers a second."""
        return self.answered / self.seconds


def generator_name() -> str:
    """Which generator ``drive`` will use."""
    return "wrk" if shutil.which("wrk") else "asyncio"


async def drive(
    url: str, requests: Sequence[bytes], *, connections: int, seconds: float, begun: asyncio.Event | None = None
) -> Outcome:
    """Send the requests, each once, until the seconds have passed.

    ``begun`` is set just before the first connects.

    Raises:
        RuntimeError: the requests were too few for so long, or the generator failed.
    """
    assert len(requests) > connections, "a round needs more requests than connections"
    begun = begun or asyncio.Event()
    if generator_name() == "wrk":
        return await _drive_with_wrk(url, requests, connections, seconds, begun)
    return await _drive_ourselves(url, requests, connections, seconds, begun)


async def _drive_with_wrk(
    url: str, requests: Sequence[bytes], connections: int, seconds: float, begun: asyncio.Event
) -> Outcome:
    with tempfile.NamedTemporaryFile(prefix="zapis-requests-") as file:
        file.writelines(request + b"\0" for request in requests)
        file.flush()
        process = await asyncio.create_subprocess_exec(
            "wrk",
            *("--threads", "1", "--connections", str(connections), "--duration", f"{max(1, round(seconds))}s"),
            *("--timeout", f"{ANSWER_TIMEOUT_S:.0f}s", "--script", str(SCRIPT), url, "--", file.name),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        assert process.stdout is not None
        output = b""
        try:
            async with asyncio.timeout(seconds + ANSWER_TIMEOUT_S + GRACE_S):
                async for line in process.stdout:
                    output += line
                    if line == BEGUN:
                        begun.set()
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    report = next((line for line in output.decode().splitlines() if line.startswith("{")), None)
    if report is None:
        raise RuntimeError(f"wrk: {output.decode().strip()}")
    figures = json.loads(report)
    if figures.pop("exhausted"):
        raise RuntimeError("the requests ran out before the round ended")
    return Outcome(**figures)


async def _drive_ourselves(
    url: str, requests: Sequence[bytes], connections: int, seconds: float, begun: asyncio.Event
) -> Outcome:
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    began = loop.time()
    round_ = _Round(iter(requests), loop.time() + seconds)
    clients = []
    begun.set()
    for _ in range(connections):
        _, client = await loop.create_connection(lambda: _Client(round_), parts.hostname or "", parts.port or 80)
        clients.append(client)
    try:
        await asyncio.wait([client.ended for client in clients], timeout=seconds + ANSWER_TIMEOUT_S)
    finally:
        for client in clients:
            client.close()
    if round_.exhausted:
        raise RuntimeError("the requests ran out before the round ended")
    elapsed = min(loop.time(), round_.ends_at) - began
    latencies = sorted(round_.latencies_s) or [0.0]
    read, created, refused, unavailable = (
        round_.statuses.pop(status, 0) for status in (b"200", b"201", b"409", b"503")
    )
    return Outcome(
        read=read,
        created=created,
        refused=refused,
        unavailable=unavailable,
        others=sum(round_.statuses.values()),
        failed=round_.failed,
        seconds=elapsed,
        p50_ms=1000 * statistics.median(latencies),
        p99_ms=1000 * latencies[int(len(latencies) * 0.99) - 1],
        worst_ms=1000 * latencies[-1],
    )


class _Round:
    """What the clients of a round share."""

    def __init__(self, requests: Iterator[bytes], ends_at: float) -> None:
        self.requests = requests
        self.ends_at = ends_at
        self.statuses: dict[bytes, int] = {}
        self.latencies_s: list[float] = []
        self.failed = 0
        self.exhausted = False


class _Client(asyncio.Protocol):
    """One connection: a request, its answer, the next request."""

    def __init__(self, round_: _Round) -> None:
        self._round = round_
        self._buffer = b""
        self._sent_at = 0.0
        self._transport: asyncio.Transport | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        name, _, value = head.lower().partition(b"content-length: ")
        if len(body) < (int(value.partition(b"\r\n")[0]) if name else 0):
            return
        self._buffer = b""
        now = time.monotonic()
        status = head[9:12]
        if now <= self._round.ends_at:
            self._round.statuses[status] = self._round.statuses.get(status, 0) + 1
            self._round.latencies_s.append(now - self._sent_at)
        self._send()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self._round.failed += 1
            self.ended.set_result(None)

    def close(self) -> None:
        """Let the connection go."""
        if not self.ended.done():
            self.ended.set_result(None)
        if self._transport is not None:
            self._transport.abort()

    def _send(self) -> None:
        assert self._transport is not None
        if time.monotonic() >= self._round.ends_at:
            self.close()
            return
        request = next(self._round.requests, None)
        if request is None:
            self._round.exhausted = True
            self.close()
            return
        self._sent_at = time.monotonic()
        self._transport.write(request)
