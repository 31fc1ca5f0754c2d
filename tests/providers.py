"""A provider of SMS and a push service, spoken to by real HTTP: they may fail, be slow, keep answers back, be away."""

from __future__ import annotations

import asyncio
import random
import socket
from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import http_ece
import orjson
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cluster.data_directory import LOOPBACK

AUTH: Final = b"sixteen bytes ok"


@dataclass(slots=True, kw_only=True)
class Provider:
    """Takes messages by HTTP."""

    failing: float = 0.0
    """So many of all requests, as a fraction, get 503."""
    slow_s: float = 0.0
    withheld: int = 0
    """So many messages are taken, and the answer says that they were not."""
    answers_withheld: int = 0
    status: int = 201
    accepted: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Key and content of each message that was taken, in order."""
    authorizations: set[str] = field(default_factory=set)
    dice: random.Random = field(default_factory=lambda: random.Random(1))

    @property
    def by_key(self) -> Counter[str]:
        """How often each was taken."""
        return Counter(key for key, _ in self.accepted)

    async def take(self, request: Request, key: str, content: dict[str, Any]) -> Response:
        """Take a message, or not."""
        self.authorizations.add(request.headers.get("authorization", ""))
        if self.slow_s:
            await asyncio.sleep(self.slow_s)
        if self.dice.random() < self.failing:
            return Response(status_code=503, headers={"Retry-After": "0"})
        if self.status >= 400:
            return Response(status_code=self.status)
        self.accepted.append((key, content))
        if self.withheld:
            self.withheld -= 1
            self.answers_withheld += 1
            return Response(status_code=500)
        return Response(status_code=self.status)

    def application(self) -> Starlette:
        """What answers for it: ``/sms``, Twilio's path, and ``/push/…``."""
        return Starlette(
            routes=[
                Route("/sms", self._webhook, methods=["POST"]),
                Route("/2010-04-01/Accounts/{sid}/Messages.json", self._twilio, methods=["POST"]),
                Route("/push/{name}", self._push, methods=["POST"]),
            ]
        )

    async def _webhook(self, request: Request) -> Response:
        return await self.take(request, request.headers["idempotency-key"], await request.json())

    async def _twilio(self, request: Request) -> Response:
        async with request.form() as form:
            content = {name: str(value) for name, value in form.items()}
        return await self.take(request, request.headers["idempotency-key"], content)

    async def _push(self, request: Request) -> Response:
        headers = {name: request.headers[name] for name in ("ttl", "topic", "urgency")}
        content = BROWSER.read(await request.body())
        return await self.take(request, content["id"], content | headers)


@asynccontextmanager
async def provider() -> AsyncIterator[tuple[Provider, int]]:
    """A provider and its port, for as long as the block lasts."""
    taking = Provider()
    listener = socket.create_server((LOOPBACK, 0))
    server = uvicorn.Server(uvicorn.Config(taking.application(), log_config=None, lifespan="off"))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield taking, listener.getsockname()[1]
    finally:
        server.should_exit = True
        await serving
        listener.close()


class Browser:
    """One that has subscribed, and reads what is pushed to it."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())

    def subscription(self, endpoint: str) -> dict[str, Any]:
        """As its ``PushSubscription`` is written."""
        point = self._key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        keys = {"p256dh": _base64url(point), "auth": _base64url(AUTH)}
        return {"endpoint": endpoint, "expirationTime": None, "keys": keys}

    def read(self, body: bytes) -> dict[str, Any]:
        """What was pushed."""
        plain = http_ece.decrypt(body, private_key=self._key, auth_secret=AUTH, version="aes128gcm")
        content: dict[str, Any] = orjson.loads(plain)
        return content


BROWSER: Final = Browser()


def _base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")
