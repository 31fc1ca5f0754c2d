"""A TCP proxy of our own before PostgreSQL, Valkey or a provider, which does to connections what networks do.

It delays, holds back (a black hole: nothing arrives until it is healed, then all that was sent does), cuts, and
swallows the reply to a commit: the one statement that is the journal's transaction is delivered, its answer dropped,
the connection cut.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import cast

from cluster.data_directory import LOOPBACK

COMMIT = b"journal_append("
"""What the one statement that is the transaction looks like where it is prepared."""
READY = b"Z\x00\x00\x00\x05I"
"""ReadyForQuery outside a transaction: the end of an answer (PostgreSQL, 54.7)."""


class Proxy:
    """Listens on a port of its own; ``upstream_port`` may change when what is there is started anew."""

    def __init__(self, upstream_port: int) -> None:
        self.upstream_port = upstream_port
        self.port = 0
        self.delay_s = 0.0
        """For every piece of data, each way."""
        self.swallowed = 0
        """Replies to commits that were dropped so far."""
        self._to_swallow = 0
        self._held = False
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None

    @property
    def held(self) -> bool:
        """Whether nothing arrives."""
        return self._held

    async def start(self) -> None:
        """Begin to listen, on the port that it had before."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Link(self).client, LOOPBACK, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Cut all and listen no longer."""
        self.cut()
        if self._server is not None:
            self._server.close()

    def cut(self) -> int:
        """Reset every connection; returns how many there were."""
        links = list(self._links)
        for link in links:
            link.cut()
        return len(links)

    def hold(self) -> None:
        """Let nothing through."""
        self._held = True

    def release(self) -> None:
        """Let through what was held back, in order."""
        self._held = False
        for link in list(self._links):
            link.move_on()

    def swallow_commits(self, count: int) -> None:
        """Drop the replies to the next so many commits."""
        self._to_swallow = count

    def take_swallow(self) -> bool:
        """Whether the commit that is being delivered is to have no reply."""
        if self._to_swallow == 0:
            return False
        self._to_swallow -= 1
        return True

    def opened(self, link: _Link) -> None:
        """A connection was made."""
        self._links.add(link)

    def closed(self, link: _Link) -> None:
        """A connection is gone."""
        self._links.discard(link)


class _Link:
    """A connection from a client and the one made for it."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.client = _Side(self)
        self.server = _Side(self)
        self._commits = False
        self._swallowing = False
        self._connected = False
        self._over = False
        self._connecting: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: deque[tuple[float, _Side, bytes]] = deque()

    def client_connected(self) -> None:
        self.proxy.opened(self)
        self._connecting = asyncio.ensure_future(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: self.server, LOOPBACK, self.proxy.upstream_port)
        except OSError:
            self.cut()
        else:
            self._connected = True
            self.move_on()

    def received(self, side: _Side, data: bytes) -> None:
        """Data from one side: pass it on when it is time."""
        to = self.server if side is self.client else self.client
        now = asyncio.get_running_loop().time()
        if self._waiting or self.proxy.held or self.proxy.delay_s or not self._connected:
            self._waiting.append((now + self.proxy.delay_s, to, data))
            self.move_on()
        else:
            self._deliver(to, data)

    def move_on(self) -> None:
        """Pass on what is due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop = asyncio.get_running_loop()
        while self._waiting and not self.proxy.held and self._connected:
            due, to, data = self._waiting[0]
            if due > loop.time():
                self._timer = loop.call_at(due, self.move_on)
                return
            self._waiting.popleft()
            self._deliver(to, data)
        if self._over and not self._waiting:
            self._end()

    def _deliver(self, to: _Side, data: bytes) -> None:
        if to is self.server:
            self._commits = self._commits or COMMIT in data
            if self._commits and not self._swallowing:
                self._swallowing = self.proxy.take_swallow()
        elif self._swallowing:
            if data.endswith(READY):
                self.proxy.swallowed += 1
                self.cut()
            return
        if to.transport is not None:
            to.transport.write(data)

    def lost(self) -> None:
        """One side is gone: what it had sent still goes its way."""
        self._over = True
        if not self._waiting:
            self._end()

    def _end(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
        for side in (self.client, self.server):
            if side.transport is not None:
                side.transport.close()
        self.proxy.closed(self)

    def cut(self) -> None:
        """Reset both sides."""
        self._waiting.clear()
        for side in (self.client, self.server):
            if side.transport is not None:
                side.transport.abort()
        self._end()


class _Side(asyncio.Protocol):
    def __init__(self, link: _Link) -> None:
        self._link = link
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class.
        if self is self._link.client:
            self._link.client_connected()

    def data_received(self, data: bytes) -> None:
        self._link.received(self, data)

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self._link.lost()
