"""The short way of what is asked for most, for requests that are as they should be.

FastAPI finds out anew for every request what a route depends on and which parameters it has; for a booking that takes
as long as all that we do ourselves. A short way calls the route's own function without it. Only a request that needs
nothing else takes it: what is unusual in any way (another content type, a header given twice, a body that is not valid)
goes the long way, which alone knows what to say about it, and which is what OpenAPI describes.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

import orjson
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.dependencies import KEY_LENGTH_MAX, KEY_PATTERN, current_user
from api.errors import problem_of
from api.scheduling import router as scheduling
from api.scheduling import schemas
from api.scheduling.service import Scheduling

Endpoint = Callable[[Any, Scheduling, str | None], Awaitable[Response]]
Headers = dict[bytes, bytes]

WAYS: Final[tuple[tuple[str, type[BaseModel], Endpoint], ...]] = (
    ("/v1/appointments", schemas.BookingRequest, scheduling.book_appointment),
    ("/v1/holds", schemas.HoldRequest, scheduling.hold_slot),
)
"""By path, all POST: the body, and the function of the route, whose other parameters all have a default."""
UNUSUAL: Final = frozenset({b"content-encoding", b"prefer"})
"""Headers that say something which a short way does not understand."""
_KEY: Final = re.compile(KEY_PATTERN.encode())
_NUL: Final = b"\\u0000"


class ShortWay:
    """ASGI middleware, the innermost: answers itself, or leaves the request to the routes as it came."""

    def __init__(self, app: ASGIApp, *, routes: list[BaseRoute]) -> None:
        self._app = app
        made_of = {getattr(route, "endpoint", None): route for route in routes}
        self._ways = {path: (made_of[endpoint], body_type, endpoint) for path, body_type, endpoint in WAYS}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        way = self._ways.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        headers = _usual_headers(scope) if way is not None else None
        if way is None or headers is None:
            await self._app(scope, receive, send)
            return
        scope["route"], body_type, endpoint = way
        messages: list[Message] = []
        try:
            while not messages or messages[-1].get("more_body", False):
                messages.append(await receive())
            response = None
            if messages[-1]["type"] == "http.request":  # Whoever sent it is still there.
                content = b"".join(message.get("body", b"") for message in messages)
                response = await _answer(Request(scope), headers, content, body_type, endpoint)
        except Exception as error:
            problem = problem_of(error)
            if problem is None:
                raise
            response = problem.response(scope["path"])
        if response is None:
            await self._app(scope, _again(messages, receive), send)
        else:
            await response(scope, receive, send)


async def _answer(
    request: Request, headers: Headers, content: bytes, body_type: type[BaseModel], endpoint: Endpoint
) -> Response | None:
    """The endpoint's answer; ``None`` where the body is not as it should be."""
    if _NUL in content:
        return None
    try:
        plain = orjson.loads(content)
    except orjson.JSONDecodeError:
        return None
    principal = await current_user(request)
    try:
        body = body_type.model_validate(plain)
    except ValidationError:
        return None
    key = headers.get(b"idempotency-key")
    return await endpoint(body, Scheduling(request, principal), None if key is None else key.decode("ascii"))


def _usual_headers(scope: Scope) -> Headers | None:
    """The headers by name, where none is unusual."""
    headers: Headers = dict(scope["headers"])
    if len(headers) != len(scope["headers"]) or headers.get(b"content-type") != b"application/json":
        return None
    key = headers.get(b"idempotency-key", b"-")
    if len(key) > KEY_LENGTH_MAX or _KEY.fullmatch(key) is None:
        return None
    return headers if headers.keys().isdisjoint(UNUSUAL) else None


def _again(messages: list[Message], receive: Receive) -> Receive:
    """What gives the messages that were received already, then the rest."""
    received = iter(messages)

    async def receive_again() -> Message:
        message = next(received, None)
        return await receive() if message is None else message

    return receive_again
