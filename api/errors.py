"""Every answer that is not a success: RFC 9457 problems, with one code for programs and one status for each code.

A handler raises ``Problem("slot_taken")``; rejections of a calendar, invalid input, unknown addresses and a database
that is away become problems here too. What nobody foresaw becomes a 500 that says nothing of the inside (see
``api.middleware``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from actors.errors import Rejection
from persistence.repositories.users import EmailTaken, LoginTaken, PhoneTaken
from persistence.unit_of_work import DatabaseUnavailable

MEDIA_TYPE: Final = "application/problem+json"
ERRORS_MAX: Final = 50
POINTER_LENGTH_MAX: Final = 200
RETRY_AFTER_S: Final = 2
TOKEN_PATH: Final = "/v1/auth/token"

PROBLEMS: Final[Mapping[str, tuple[int, str]]] = {
    # Of the calendar
    "slot_taken": (409, "The slot is held or booked by someone else."),
    "slot_unavailable": (409, "The slot is blocked, cancelled or in the past."),
    "patient_overlap": (409, "The patient has another live appointment at that time."),
    "too_late": (409, "It is past the cut-off for this."),
    "too_early": (409, "The visit has not begun."),
    "limit_reached": (409, "There are as many as are allowed."),
    "hold_expired": (409, "The hold named is gone."),
    "not_live": (409, "The appointment is cancelled, fulfilled or a no-show."),
    "already_arrived": (409, "The patient has already arrived."),
    "version_conflict": (412, "It has changed since the version you named."),
    "idempotency_key_reused": (422, "This Idempotency-Key was used with another request."),
    # Of accounts
    "login_taken": (409, "Someone else has this login."),
    "email_taken": (409, "Someone else has verified this e-mail address."),
    "phone_taken": (409, "Someone else has verified this phone number."),
    "live_appointments": (409, "There are visits still to come: cancel them first."),
    "last_admin": (409, "There has to be someone who administers: make another administrator first."),
    "not_a_doctor": (409, "This account has no calendar: a doctor is made as one."),
    # Of any request
    "bad_request": (400, "The request could not be read."),
    "unauthenticated": (401, "There is no token, or it is bad or expired."),
    "forbidden": (403, "Your role may not do this."),
    "not_found": (404, "There is no such thing, or you may not see it."),
    "method_not_allowed": (405, "This address does not take this method."),
    "request_timeout": (408, "The request did not arrive in time."),
    "conflict": (409, "It conflicts with what is there."),
    "content_too_large": (413, "The body is too large."),
    "uri_too_long": (414, "The address is too long."),
    "unsupported_media_type": (415, "The body is not of a type that is taken here."),
    "validation_error": (422, "Something in the request is not as it should be."),
    "rate_limited": (429, "Too many requests: wait, then try again."),
    "headers_too_large": (431, "The headers are too large."),
    "internal_error": (500, "Something went wrong on our side."),
    "unavailable": (503, "This cannot be done right now: try again; with the same key it is safe."),
}
"""The status and the usual detail of every code there is."""

_CODE_OF_STATUS: Final = {
    400: "bad_request",
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "content_too_large",
    415: "unsupported_media_type",
    422: "validation_error",
    429: "rate_limited",
    503: "unavailable",
}


class Problem(Exception):
    """An answer that is not a success.

    ``errors`` says what is wrong where: pairs of a JSON pointer and a detail. ``retry_after_s`` becomes the header,
    rounded up. ``members`` are extension members of the body, as RFC 6749's ``error``.
    """

    def __init__(
        self,
        code: str,
        detail: str | None = None,
        *,
        errors: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
        members: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(code)
        self.code = code
        self.status, usual_detail = PROBLEMS[code]
        self.detail = detail or usual_detail
        self.errors = tuple(errors)[:ERRORS_MAX]
        self.members = dict(members or {})
        self.headers = dict(headers or {})
        if retry_after_s is None and self.status in (429, 503):
            retry_after_s = RETRY_AFTER_S
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
        if self.status == 401:
            self.headers.setdefault("WWW-Authenticate", 'Bearer realm="zapis"')

    def body(self, instance: str | None = None) -> dict[str, Any]:
        """The problem as plain data; ``instance`` is the path of the request."""
        body: dict[str, Any] = {
            "type": f"urn:zapis:problem:{self.code}",
            "title": title(self.code),
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
        }
        if instance is not None:
            body["instance"] = instance
        if self.errors:
            body["errors"] = [{"pointer": pointer, "detail": detail} for pointer, detail in self.errors]
        return body | self.members

    def response(self, path: str | None = None) -> Response:
        """The problem as an answer to a request for ``path``; who wants a token gets RFC 6749's ``error``, too."""
        body = self.body(None if path is None else quote(path, errors="replace"))
        if path == TOKEN_PATH:
            body.setdefault("error", _rfc6749_error(self.status))
        return Response(orjson.dumps(body), status_code=self.status, headers=self.headers, media_type=MEDIA_TYPE)


class UnreadableBody(HTTPException):
    """A problem with a body, found while it is read: FastAPI lets no other kind of exception through there."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.status)
        self.problem = problem


def broken_off() -> Problem:
    """The problem of a request whose connection ended before its body did: no failure of ours."""
    return Problem("bad_request", "The connection ended before the body did.")


def title(code: str) -> str:
    """A short name of the problem that stays the same."""
    return code.replace("_", " ").capitalize()


def pointer_to(*path: object) -> str:
    """The JSON pointer (RFC 6901) to a place; lone surrogates, which no JSON can say, are replaced."""
    escaped = (str(part).replace("~", "~0").replace("/", "~1") for part in path)
    return _sayable("".join(f"/{part}" for part in escaped)[:POINTER_LENGTH_MAX])


def invalid(pointer: str, detail: str) -> Problem:
    """One thing in the request is not as it should be; ``pointer`` as in ``/slot_id`` or ``/query/limit``."""
    return Problem("validation_error", errors=[(pointer, detail)])


def problem_of(error: BaseException) -> Problem | None:
    """The problem that an exception amounts to; ``None`` for one that nobody foresaw."""
    match error:
        case Problem():
            return error
        case Rejection():
            return Problem(error.code, error.detail)
        case RequestValidationError():
            return Problem("validation_error", errors=[_located(each) for each in error.errors()])
        case DatabaseUnavailable() | OperationalError() | InterfaceError() | PoolTimeout():
            return Problem("unavailable")
        case LoginTaken():
            return Problem("login_taken")
        case EmailTaken():
            return Problem("email_taken")
        case PhoneTaken():
            return Problem("phone_taken")
        case UnreadableBody():
            return error.problem
        case HTTPException():
            code = _CODE_OF_STATUS.get(error.status_code, "bad_request")
            return Problem(code, headers=error.headers)
    return None


def add_handlers(app: FastAPI) -> None:
    """Answer every exception that ``problem_of`` knows with its problem."""

    async def answer(request: Request, error: Exception) -> Response:
        problem = problem_of(error)
        assert problem is not None, "registered for a type that is not known"
        if problem.status == 405:
            problem.headers["Allow"] = ", ".join(_methods(app, request)) or problem.headers.get("Allow", "")
        return problem.response(request.scope["path"])

    for kind in (
        Problem,
        Rejection,
        RequestValidationError,
        DatabaseUnavailable,
        OperationalError,
        InterfaceError,
        PoolTimeout,
        LoginTaken,
        EmailTaken,
        PhoneTaken,
        HTTPException,
    ):
        app.add_exception_handler(kind, answer)


def _rfc6749_error(status: int) -> str:
    match status:
        case 401:
            return "invalid_grant"
        case 429 | 503:
            return "temporarily_unavailable"
        case 500:
            return "server_error"
        case _:
            return "invalid_request"


def _located(error: Mapping[str, Any]) -> tuple[str, str]:
    """A validation error as a pointer into the body, or below ``/query``, ``/path`` or ``/header``, and a detail."""
    location = tuple(error["loc"])
    if error["type"] == "json_invalid":
        return "", "This is not valid JSON."
    parts = location[1:] if location[:1] == ("body",) else location
    detail = str(error["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return pointer_to(*parts), _sayable(detail)


def _sayable(text: str) -> str:
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _methods(app: FastAPI, request: Request) -> list[str]:
    """Every method that the address takes; the router by itself knows those of one route only."""
    methods: set[str] = set()
    for route in app.router.routes:
        if route.matches(dict(request.scope))[0] is not Match.NONE:
            methods |= getattr(route, "methods", None) or set()
    return sorted(methods)
