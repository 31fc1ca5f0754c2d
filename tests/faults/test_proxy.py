"""The proxy does to connections what it says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from cluster.data_directory import LOOPBACK
from tests.faults.proxy import COMMIT, READY, Proxy

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Echo:
    """A server that gives back what it gets, as the answer to a statement, and remembers it."""

    def __init__(self) -> None:
        self.got = b""
        self.writers: list[asyncio.StreamWriter] = []
        self.serving: set[asyncio.Task[None]] = set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A new connection."""
        self.writers.append(writer)
        self.serving.add(asyncio.create_task(self.serve(reader, writer)))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        with suppress(ConnectionError):
            while data := await reader.read(1000):
                self.got += data
                writer.write(data + READY)
        await ended(writer)


@asynccontextmanager
async def proxied() -> AsyncIterator[tuple[Proxy, Echo, Streams]]:
    """A proxy before a server, and a connection through it."""
    echo = Echo()
    server = await asyncio.start_server(echo.accept, LOOPBACK, 0)
    proxy = Proxy(server.sockets[0].getsockname()[1])
    await proxy.start()
    streams = await asyncio.open_connection(LOOPBACK, proxy.port)
    try:
        yield proxy, echo, streams
    finally:
        await ended(streams[1])
        await proxy.stop()
        server.close()
        async with asyncio.timeout(5):
            await asyncio.gather(*echo.serving)


async def ended(writer: asyncio.StreamWriter) -> None:
    """Closed, whoever closes it first."""
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


async def said(streams: Streams, words: bytes) -> bytes:
    """What is answered to that."""
    reader, writer = streams
    writer.write(words)
    async with asyncio.timeout(5):
        answer = await reader.readuntil(READY)
    return answer.removesuffix(READY)


async def test_it_passes_on_what_is_said_both_ways() -> None:
    async with proxied() as (_, echo, streams):
        assert await said(streams, b"one") == b"one"
        assert await said(streams, b"two") == b"two"
        assert echo.got == b"onetwo"


async def test_it_delays_and_keeps_the_order() -> None:
    async with proxied() as (proxy, echo, streams):
        await said(streams, b"first")
        proxy.delay_s = 0.1
        began = asyncio.get_running_loop().time()
        streams[1].write(b"slow ")
        await asyncio.sleep(0.02)
        proxy.delay_s = 0.0
        assert await said(streams, b"fast") == b"slow fast" or echo.got == b"firstslow fast"
        assert asyncio.get_running_loop().time() - began > 0.09


async def test_nothing_arrives_while_it_holds_and_all_does_when_it_lets_go() -> None:
    async with proxied() as (proxy, echo, streams):
        await said(streams, b"before ")
        proxy.hold()
        streams[1].write(b"held ")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await streams[0].readexactly(1)
        assert echo.got == b"before "
        proxy.release()
        async with asyncio.timeout(5):
            assert await streams[0].readuntil(READY) == b"held " + READY


async def test_what_was_held_of_a_client_that_is_gone_arrives_still() -> None:
    async with proxied() as (proxy, echo, streams):
        await said(streams, b"before ")
        proxy.hold()
        streams[1].write(b"late")
        await streams[1].drain()
        streams[1].close()
        await asyncio.sleep(0.05)
        proxy.release()
        async with asyncio.timeout(5):
            while echo.got != b"before late":
                await asyncio.sleep(0.01)


async def test_who_waited_for_a_server_that_is_gone_is_told_when_it_lets_go() -> None:
    async with proxied() as (proxy, echo, streams):
        await said(streams, b"before ")
        proxy.hold()
        streams[1].write(b"lost")
        await streams[1].drain()
        for writer in echo.writers:
            writer.transport.abort()
        async with asyncio.timeout(5):
            await asyncio.gather(*echo.serving)
        proxy.release()
        async with asyncio.timeout(5):
            assert await streams[0].read() == b""


async def test_a_cut_resets_every_connection() -> None:
    async with proxied() as (proxy, _, streams):
        await said(streams, b"one")
        assert proxy.cut() == 1
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await said(streams, b"two")


async def test_the_reply_to_a_commit_is_swallowed_after_it_was_delivered() -> None:
    async with proxied() as (proxy, echo, streams):
        await said(streams, b"SELECT 1")
        proxy.swallow_commits(1)
        await said(streams, b"SELECT 2")
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await said(streams, b"SELECT " + COMMIT + b")")
        assert COMMIT in echo.got
        assert proxy.swallowed == 1
        again = await asyncio.open_connection(LOOPBACK, proxy.port)
        assert await said(again, b"SELECT " + COMMIT + b")") == b"SELECT " + COMMIT + b")"
        await ended(again[1])
