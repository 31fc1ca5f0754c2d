"""Routes as all of zapis makes them: strict about bodies, quick about answers.

Every package makes its router with ``router()``. JSON bodies are read by orjson, which refuses what JSON forbids (NaN,
lone surrogates, bytes that are not UTF-8, nesting without end). A NUL character, which PostgreSQL cannot store, is
refused wherever it stands. A body of another content type than the route takes gets 415.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final

import orjson
from fastapi import APIRouter, Request
from fastapi.params import Form
from fastapi.routing import APIRoute
from pydantic import TypeAdapter
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.errors import Problem, UnreadableBody, pointer_to
from api.plan import Plan

FORM: Final = "application/x-www-form-urlencoded"
NUL_DETAIL: Final = "This must not contain NUL characters."


class Json(Response):
    """A JSON answer from plain data, for handlers that need no model; aware datetimes in UTC end in ``Z``."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The body."""
        return encoded(content)


def encoded(content: Any) -> bytes:
    """Plain data as JSON; aware datetimes in UTC end in ``Z``."""
    return orjson.dumps(content, option=orjson.OPT_UTC_Z)


class StrictRequest(Request):
    """A request that reads JSON as ``json.loads`` would not: strictly."""

    async def body(self) -> bytes:
        """The whole body; as Starlette's, which goes through an asynchronous generator even for one of one piece.

        Raises:
            ClientDisconnect: it will not come any more.
        """
        if not hasattr(self, "_body"):
            pieces = []
            more = True
            self._stream_consumed = True
            while more:
                message = await self.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                pieces.append(message.get("body", b""))
                more = message.get("more_body", False)
            self._body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return self._body

    async def json(self) -> Any:
        """The body as plain data.

        Raises:
            json.JSONDecodeError: it is not JSON; the error quotes nothing of it.
            UnreadableBody: a string in it contains NUL.
        """
        if not hasattr(self, "_json"):
            body = await self.body()
            try:
                self._json = orjson.loads(body)
            except orjson.JSONDecodeError as error:
                raise json.JSONDecodeError("not valid JSON", "", 0) from error
            if b"\\u0000" in body and (errors := [(pointer_to(*place), NUL_DETAIL) for place in _nuls(self._json)]):
                raise UnreadableBody(Problem("validation_error", errors=errors))
        return self._json


class StrictRoute(APIRoute):
    """A route that reads its body through ``StrictRequest``, takes one content type only and is served by a ``Plan``.

    A route with a form is served by FastAPI.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **more: Any) -> None:
        super().__init__(path, endpoint, **more)
        if not self._wants_form:
            self._plan = Plan(self.dependant)
            self._adapter = TypeAdapter(self.response_model) if self.response_model is not None else None
            self.app = self._serve

    @property
    def _wants_form(self) -> bool:
        return self.body_field is not None and isinstance(self.body_field.field_info, Form)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, behind the check of the form's content type."""
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            check_content_type(request, FORM)
            return await handle(request)

        return handle_strictly if self._wants_form else handle

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = StrictRequest(scope, receive)
        if self._plan.reads_body:
            check_content_type(request, "application/json")
        content, headers = await self._plan.carry_out(request)
        await self._response(content, headers)(scope, receive, send)

    def _response(self, content: Any, headers: Response) -> Response:
        if isinstance(content, Response):
            return content
        if content is None:
            return Response(status_code=self.status_code or 204)
        assert self._adapter is not None, "a route that returns something has a model for it"
        response = Response(
            self._adapter.dump_json(content, by_alias=True),
            status_code=self.status_code or 200,
            media_type="application/json",
        )
        response.headers.update({name: value for name, value in headers.headers.items() if name != "content-length"})
        return response


def router(*, prefix: str = "", tag: str, route_class: type[StrictRoute] = StrictRoute) -> APIRouter:
    """A router whose routes are strict; its operations are named for their functions and stand under ``tag``."""
    return APIRouter(
        prefix=prefix,
        tags=[tag],
        route_class=route_class,
        generate_unique_id_function=lambda route: route.name,
        redirect_slashes=False,
    )


def check_content_type(request: Request, wanted: str) -> None:
    """Let a body of the media type ``wanted`` pass, and a request that has none.

    Raises:
        Problem: 415, with what would be accepted.
    """
    headers = request.headers
    given = headers.get("content-type")
    if given is None and headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
        return
    media_type = (given or "").partition(";")[0].strip().lower()
    encoded_as = headers["content-encoding"].strip().lower() if "content-encoding" in headers else "identity"
    if media_type != wanted or encoded_as != "identity":
        raise Problem("unsupported_media_type", f"The body should be {wanted}.", headers={"Accept": wanted})


def _nuls(value: Any) -> Iterator[tuple[str | int, ...]]:
    """Where a string contains NUL. Not recursive: JSON may be nested deeper than Python likes."""
    pending: list[tuple[tuple[str | int, ...], Any]] = [((), value)]
    while pending:
        place, value = pending.pop()
        match value:
            case str() if "\x00" in value:
                yield place
            case list():
                pending.extend(((*place, number), element) for number, element in enumerate(value))
            case dict():
                for name, element in value.items():
                    shown = (*place, name.replace("\x00", "\ufffd"))
                    if "\x00" in name:
                        yield shown
                    pending.append((shown, element))
