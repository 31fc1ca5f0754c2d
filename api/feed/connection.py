"""One feed's connection: who is there, how long they may stay, and how it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

import orjson
from starlette.types import Scope
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState
from uvicorn.protocols.utils import ClientDisconnected

from actors import tasks
from api.dependencies import Principal, authenticate
from api.errors import Problem
from api.gate import Gate
from api.middleware import client_address
from api.protocol import ABORT
from persistence.unit_of_work import DatabaseUnavailable

PROTOCOL: Final = "zapis.v1"
BEARER: Final = "bearer."
PING_S: Final = 20.0
GOODBYE_S: Final = 10.0
"""Who does not read is given so long to take the last message."""

POLICY_VIOLATION: Final = 1008
RESTART: Final = 1012
TRY_AGAIN_LATER: Final = 1013
TOO_SLOW: Final = 4008
UNAUTHENTICATED: Final = 4401
NO_SUCH_DOCTOR: Final = 4404


class Closed(Exception):
    """The connection is to end, for this reason."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(f"{code} {reason}")
        self.code = code
        self.reason = reason


class FeedConnection:
    """A WebSocket that was accepted, of a user who is signed in."""

    def __init__(self, websocket: WebSocket, gate: Gate, token: str, principal: Principal) -> None:
        self._websocket = websocket
        self._gate = gate
        self._token = token
        self._ping_due = False
        self.principal = principal

    async def send(self, message: str) -> None:
        """Send a message; waits while the client does not read."""
        await self._websocket.send_text(message)

    async def ping(self, **said: int) -> None:
        """Say that all is well, if it is time to."""
        if self._ping_due:
            self._ping_due = False
            await self.send(orjson.dumps({"type": "ping"} | said).decode())

    def cut_off_soon(self) -> None:
        """The client does not keep up."""
        cut_off_soon(self._websocket.scope)

    async def run(self, feed: Coroutine[Any, Any, None], *, wake: Callable[[], None]) -> None:
        """Let the feed go on until the client goes, the token expires or the account ends.

        ``wake`` has it come to its ``ping``, every ``PING_S``.

        Raises:
            Closed
        """
        feeding = asyncio.create_task(feed, name="feed")
        hearing = asyncio.create_task(self._hear(), name="feed hears")
        staying = asyncio.create_task(self._stay(wake), name="feed stays")
        try:
            done, _ = await asyncio.wait((feeding, hearing, staying), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await tasks.end(feeding, hearing, staying)

    async def refreshed(self) -> Principal:
        """Who it is, as is known now.

        Raises:
            Closed: they have signed out, or the account has ended.
        """
        try:
            self.principal = await authenticate(self._gate, self._token)
        except Problem:
            raise Closed(UNAUTHENTICATED, "signed out") from None
        except DatabaseUnavailable:
            pass  # Who was let in may stay while nobody can be asked.
        return self.principal

    async def close(self, code: int, reason: str) -> None:
        """End it; a client that does not read is cut off."""
        await close(self._websocket, code, reason)

    async def _hear(self) -> None:
        """What the client says is of no interest, that it goes is."""
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                return

    async def _stay(self, wake: Callable[[], None]) -> None:
        claims = self._gate.tokens.remembered(self._token)
        expires_at = time.time() if claims is None else claims.expires_at
        while True:
            await asyncio.sleep(max(0.0, min(PING_S, expires_at - time.time())))
            if time.time() >= expires_at:
                raise Closed(UNAUTHENTICATED, "the token has expired")
            await self.refreshed()
            self._ping_due = True
            wake()


async def admit(websocket: WebSocket, gate: Gate, origins: Sequence[str]) -> tuple[str, Principal] | None:
    """Accept a WebSocket and say whose it is; ``None``: it was refused, or has been closed.

    A page of another origin is refused before anything is said (RFC 6455, 10.2).
    """
    if not _welcome(websocket, origins):
        await websocket.close()
        return None
    offered: list[str] = websocket.scope["subprotocols"]
    await websocket.accept(subprotocol=PROTOCOL if PROTOCOL in offered else None)
    token = next((each.removeprefix(BEARER) for each in offered if each.startswith(BEARER)), "")
    claims = gate.tokens.remembered(token)
    who = client_address(websocket.scope) if claims is None else claims.user_id
    if gate.limits.take(gate.requests, who):
        await close(websocket, TRY_AGAIN_LATER, "too many requests")
        return None
    try:
        return token, await authenticate(gate, token)
    except Problem:
        await close(websocket, UNAUTHENTICATED, "a good token is needed, as subprotocol bearer.<token>")
    except DatabaseUnavailable:
        await close(websocket, TRY_AGAIN_LATER, "unavailable")
    return None


def cut_off_soon(scope: Scope) -> None:
    """Let the client take what is on its way, and be told why it ends; but not for long."""
    abort: Callable[[], None] | None = scope.get(ABORT)
    if abort is not None:
        asyncio.get_running_loop().call_later(GOODBYE_S, abort)


async def close(websocket: WebSocket, code: int, reason: str) -> None:
    """End a connection that may have ended already; a client that does not read is cut off."""
    if websocket.application_state is not WebSocketState.CONNECTED:
        return
    try:
        async with asyncio.timeout(GOODBYE_S):
            with suppress(WebSocketDisconnect, ClientDisconnected, RuntimeError):
                await websocket.close(code, reason)
    except TimeoutError:
        if (abort := websocket.scope.get(ABORT)) is not None:
            abort()


def _welcome(websocket: WebSocket, origins: Sequence[str]) -> bool:
    """No browser, a page of our own, or one of those that may."""
    origin = websocket.headers.get("origin")
    if origin is None or origin in origins or "*" in origins:
        return True
    return bool(origin) and urlsplit(origin).netloc == websocket.headers.get("host")
