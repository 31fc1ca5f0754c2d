"""A client of the feeds: opens them on a real connection and knows what has to be true of what they say."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from api.feed.protocol import WebSocketProtocol
from api.protocol import HttpProtocol
from tests.people import Person

JSON = dict[str, Any]
PATIENCE_S = 20.0
START_DEADLINE_S = 60.0


@asynccontextmanager
async def served(app: FastAPI, *, lifespan: Literal["on", "off"] = "off") -> AsyncIterator[int]:
    """The application, which is open already if its lifespan is off, on a free port of this process."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app,
        http=HttpProtocol,
        ws=WebSocketProtocol,
        ws_per_message_deflate=False,
        log_config=None,
        lifespan=lifespan,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    async with asyncio.timeout(START_DEADLINE_S):
        while not server.started:
            assert not serving.done(), "it did not start"
            await asyncio.sleep(0.01)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await serving
        listener.close()


class FeedClient:
    """A feed, and the calendar that it has told of."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.sequence = 0
        self.slots: dict[str, JSON] = {}

    async def hear(self) -> JSON:
        """The next message; that the numbers have no gap is proven on the way."""
        async with asyncio.timeout(PATIENCE_S):
            message: JSON = json.loads(await self.connection.recv())
        match message["type"]:
            case "snapshot":
                self.slots = {slot["id"]: slot for slot in message["slots"]}
                self.sequence = message["sequence"]
            case "change":
                assert self.sequence in (0, message["sequence"] - 1), (self.sequence, message)
                self.sequence = message["sequence"]
                self.slots |= {slot["id"]: slot for slot in message["slots"]}
            case "ping":
                assert message["sequence"] == self.sequence
        return message

    async def hear_until(self, slot_id: str, status: str) -> JSON:
        """The message after which that slot reads so."""
        while True:
            message = await self.hear()
            if self.slots.get(slot_id, {}).get("status") == status:
                return message

    async def end(self) -> tuple[int, str]:
        """How it is closed."""
        async with asyncio.timeout(PATIENCE_S):
            with suppress(ConnectionClosed):
                while True:
                    await self.connection.recv()
        assert self.connection.close_code is not None
        return self.connection.close_code, self.connection.close_reason or ""


@asynccontextmanager
async def feed(
    port: int, path: str, who: Person | None, *, origin: str | None = None, token: str | None = None, **query: str
) -> AsyncIterator[FeedClient]:
    """An open feed. ``from_`` is written for ``from``."""
    asked = "&".join(f"{name.rstrip('_')}={value}" for name, value in query.items())
    given = token if token is not None else "" if who is None else who.headers["Authorization"].removeprefix("Bearer ")
    async with connect(
        f"ws://127.0.0.1:{port}/v1/{path}{'?' if asked else ''}{asked}",
        subprotocols=["zapis.v1", *([f"bearer.{given}"] if given else [])],  # type: ignore[list-item]  # plain text
        origin=origin,  # type: ignore[arg-type]  # plain text
        proxy=None,
        compression=None,
    ) as connection:
        yield FeedClient(connection)
