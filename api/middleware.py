"""What every request passes through before it reaches a route, from the outside in:

``RequestContext`` gives it an id, bounds its address and headers, takes HEAD for the GET that it asks about (RFC 9110,
9.3.2; the server sends no body), puts the common headers on the answer, and answers 500 for what nobody foresaw;
``ClientAddress`` finds out who speaks behind a proxy; then CORS, around the rest, so that a browser may read refusals;
``Admit`` turns away what is too much at once, before anything is done for it; ``BodyLimit`` bounds size and
duration of the body; ``RateLimit`` counts requests of a user or an address.

Plain ASGI: each costs a few microseconds, and none reads a body or holds back an answer.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import Problem, UnreadableBody, invalid, problem_of
from api.gate import Gate
from persistence.identifiers import new_id

REQUEST_ID: Final = "zapis.request_id"
URL_BYTES_MAX: Final = 8 * 1024
HEADER_BYTES_MAX: Final = 32 * 1024
FORWARDED_MAX: Final = 20
CLOSE: Final = {"Connection": "close"}
ROOM_FOR_S: Final = 0.15
"""How long somebody waits who is let in last, and how often it is looked how quickly requests are answered."""
ROOM_MIN: Final = 600
"""Requests under way at once, before it is known how quickly they are answered, and where that is slow."""
TURNED_AWAY_FOR_S: Final = 2
"""What those for whom there is no room are told to wait; who comes sooner may have to wait so long for an answer."""
TURNED_AWAY_MAX_S: Final = 15
COMING_BACK_MAX: Final = 150
"""In a second; to turn so many away takes little from those who are served. Where more wait, they wait for longer."""
UNLIMITED_PATHS: Final = frozenset({"/healthz", "/readyz", "/metrics"})
HEAD: Final = "zapis.head"
"""Whether what looks like a GET asks for the head only."""
BODY_LENGTH: Final = "zapis.body_length"
"""Where a scope may have a function that tells, of this scope, how long the body is that waits to be received; ``None``
when some of it has not come, or nobody can say."""
_LEAVE: Final = "zapis.leave_admission"
_SANE_ID: Final = re.compile(rb"[A-Za-z0-9._-]{8,128}")
_BEARER: Final = b"bearer "

HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)
POLICY: Final = b"default-src 'none'; frame-ancestors 'none'"

log = structlog.get_logger()


class RequestContext:
    """The outermost: nothing leaves without an id, and no exception leaves at all."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(scope["headers"])
        scope[REQUEST_ID] = request_id.decode()
        structlog.contextvars.bind_contextvars(request_id=scope[REQUEST_ID])
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET", HEAD: True}
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = message["headers"] = list(message.get("headers", ()))
                names = {name for name, _ in headers}
                headers.append((b"x-request-id", request_id))
                headers.extend(HEADERS)
                if b"cache-control" not in names:
                    headers.append((b"cache-control", b"no-store"))
                if b"content-security-policy" not in names:
                    headers.append((b"content-security-policy", POLICY))
            await send(message)

        try:
            if (problem := _oversized(scope)) is not None:
                await problem.response(scope["path"])(scope, receive, send_with_headers)
                return
            await self._app(scope, receive, send_with_headers)
        except Exception as error:  # The last resort: it is logged, and answered without internals.
            problem = problem_of(error)
            if problem is None:
                log.error("request_failed", method=scope["method"], path=_route(scope), exc_info=error)
                problem = Problem("internal_error")
            if started:
                raise  # Too late for an answer: the connection has to break.
            await problem.response(scope["path"])(scope, receive, send_with_headers)


class ClientAddress:
    """Believes ``X-Forwarded-For`` when the peer is a trusted proxy: the last address in it that is not one."""

    def __init__(self, app: ASGIApp, *, proxies: Proxies) -> None:
        self._app = app
        self._proxies = proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        if client and client[0] in self._proxies:
            forwarded = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for")
            for candidate in reversed(forwarded.decode("latin-1").split(",")[-FORWARDED_MAX:]):
                address = _address(candidate)
                if address is None:
                    break
                scope["client"] = (address, 0)
                if address not in self._proxies:
                    break
        await self._app(scope, receive, send)


class Proxies:
    """The addresses that speak for others, as networks."""

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks: list[IPv4Network | IPv6Network] = [ip_network(network) for network in networks]

    def __contains__(self, address: str) -> bool:
        if not self._networks:
            return False
        try:
            parsed = ip_address(address)
        except ValueError:
            return False
        # On a socket of both families an IPv4 peer has a mapped address.
        parsed = getattr(parsed, "ipv4_mapped", None) or parsed
        return any(parsed in network for network in self._networks)


class Admission:
    """Room for so many requests under way in a process as it answers in ``ROOM_FOR_S``, whatever they ask for; who
    would wait longer had better come back. It is never for more than ``requests_max``, and never for less than
    ``ROOM_MIN`` where that is not more.

    Who sends or reads slowly is not under way meanwhile: nobody keeps others out by waiting.
    """

    def __init__(
        self,
        requests_max: int,
        turned_away: Callable[[str], None],
        proxies: Proxies,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``turned_away`` is told the method of each request for which there was no room."""
        self.proxies = proxies
        self.room = min(ROOM_MIN, requests_max)
        """How many may be under way now."""
        self.under_way = 0
        self.begun = 0
        """Those whose task has been made and has had no turn yet: thousands may come in one go."""
        self.resting = 0
        """Connections that are not heard for a while: they were turned away and ask again at once."""
        self.turned_away = turned_away
        self._requests_max = requests_max
        self._clock = clock
        self._counted_from = clock()
        self._ended = 0

    def ended(self) -> None:
        """One has been answered: from how many were lately it follows how many there is room for."""
        self._ended += 1
        now = self._clock()
        seconds = now - self._counted_from
        if seconds >= ROOM_FOR_S:
            self.room = min(max(ROOM_MIN, round(self._ended / seconds * ROOM_FOR_S)), self._requests_max)
            self._counted_from = now
            self._ended = 0

    @property
    def away_for_s(self) -> float:
        """How long whoever is turned away now should stay away."""
        return min(max(TURNED_AWAY_FOR_S, self.resting / COMING_BACK_MAX), TURNED_AWAY_MAX_S)

    @property
    def full(self) -> bool:
        """Whether one more is too many."""
        return self.under_way >= self.room

    @property
    def will_be_full(self) -> bool:
        """Whether one more is too many when those that have been begun have had their turn."""
        return self.under_way + self.begun >= self.room

    def problem(self) -> Problem:
        """What is told to whoever comes then."""
        return no_room(self.away_for_s)


def no_room(retry_after_s: float) -> Problem:
    """Too much is asked for right now."""
    return Problem(
        "unavailable", "Too much is asked for right now: try again in a moment.", retry_after_s=retry_after_s
    )


class Admit:
    """Turns away what there is no room for, which costs a fraction of what it asks for.

    Most of it does not get here: ``HttpProtocol`` looks first.
    """

    def __init__(self, app: ASGIApp, *, admission: Admission) -> None:
        self._app = app
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        admission = self._admission
        if scope["type"] != "http" or scope["path"] in UNLIMITED_PATHS:
            await self._app(scope, receive, send)
            return
        if admission.full:
            await admission.problem().response(scope["path"])(scope, receive, send)
            return

        counts = 1
        refused = False

        async def receive_uncounted() -> Message:
            nonlocal refused
            counted = counts
            admission.under_way -= counted
            try:
                message = await receive()
                if message["type"] == "http.request" and admission.full:  # There was room for it, and is none now.
                    refused = True
                    raise UnreadableBody(admission.problem())
                return message
            finally:
                admission.under_way += counted

        async def send_uncounted(message: Message) -> None:
            counted = counts
            admission.under_way -= counted
            try:
                await send(message)
            finally:
                admission.under_way += counted

        def leave() -> None:
            nonlocal counts
            admission.under_way -= counts
            counts = 0

        scope[_LEAVE] = leave
        admission.under_way += 1
        try:
            await self._app(scope, receive_uncounted, send_uncounted)
        finally:
            admission.under_way -= counts
            if counts and not refused:
                admission.ended()


def leave_admission(scope: Scope) -> None:
    """The request goes on for long and does nothing most of the time: it takes nobody's place from now on."""
    leave: Callable[[], None] = scope[_LEAVE]
    leave()


class BodyLimit:
    """A body past ``bytes_max`` gets 413, said or not beforehand; one that takes longer than ``seconds_max``, 408."""

    def __init__(self, app: ASGIApp, *, bytes_max: int, seconds_max: float) -> None:
        self._app = app
        self._bytes_max = bytes_max
        self._seconds_max = seconds_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = _header(scope, b"content-length")
        if announced is not None and not (announced.isdigit() and int(announced[:20]) <= self._bytes_max):
            await self._too_large().response(scope["path"])(scope, receive, send)
            return
        if BODY_LENGTH in scope and (length := scope[BODY_LENGTH](scope)) is not None:  # It has nothing to wait for.
            if length > self._bytes_max:
                await self._too_large().response(scope["path"])(scope, receive, send)
            else:
                await self._app(scope, receive, send)
            return
        received = 0
        complete = False
        deadline = asyncio.get_running_loop().time() + self._seconds_max

        async def receive_some() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise UnreadableBody(Problem("request_timeout", headers=CLOSE)) from None
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                complete = not message.get("more_body", False)
                if received > self._bytes_max:
                    raise UnreadableBody(self._too_large())
            return message

        await self._app(scope, receive_some, send)

    def _too_large(self) -> Problem:
        detail = f"The body may have {self._bytes_max} bytes at most."
        return Problem("content_too_large", detail, headers=CLOSE)


class RateLimit:
    """At most so many requests a minute for a user whose token is known to be good, and for an address otherwise."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in UNLIMITED_PATHS and scope["method"] != "OPTIONS":
            gate: Gate = scope["app"].state.gate
            wait_s = gate.limits.take(gate.requests, _who(scope, gate))
            if wait_s:
                await Problem("rate_limited", retry_after_s=wait_s).response(scope["path"])(scope, receive, send)
                return
        await self._app(scope, receive, send)


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The id that the request brings, if it is a sane one, else a new one."""
    given = next((value for name, value in headers if name == b"x-request-id"), None)
    return given if given is not None and _SANE_ID.fullmatch(given) else new_id().encode()


def client_address(scope: Mapping[str, object]) -> str:
    """Who is counted when nobody is signed in: an address, of IPv6 the network that one customer has."""
    client = scope.get("client")
    address = client[0] if isinstance(client, tuple | list) and client else ""
    if ":" not in address:
        return address
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    assert isinstance(parsed, IPv6Address)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(IPv6Network((int(parsed) >> 64 << 64, 64)))


def _who(scope: Scope, gate: Gate) -> str:
    authorization = _header(scope, b"authorization")
    if authorization is not None and authorization[:7].lower() == _BEARER:
        claims = gate.tokens.remembered(authorization[7:].decode("latin-1"))
        if claims is not None:
            return claims.user_id
    return client_address(scope)


def _oversized(scope: Scope) -> Problem | None:
    query = scope.get("query_string", b"")
    if len(scope.get("raw_path") or scope["path"]) + len(query) > URL_BYTES_MAX:
        return Problem("uri_too_long")
    if sum(len(name) + len(value) for name, value in scope["headers"]) > HEADER_BYTES_MAX:
        return Problem("headers_too_large")
    if b"%00" in query or b"\x00" in query:
        return invalid("/query", "This must not contain NUL characters.")
    if "\x00" in scope["path"]:
        return Problem("not_found")
    return None


def _header(scope: Scope, wanted: bytes) -> bytes | None:
    for name, value in scope["headers"]:
        if name == wanted:
            return bytes(value)
    return None


def _address(candidate: str) -> str | None:
    """An address as proxies write them: bare, or with a port, IPv6 perhaps in brackets."""
    text = candidate.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return str(ip_address(text))
    except ValueError:
        return None


def _route(scope: Scope) -> str | None:
    """The template of the route, not the address: that may name someone."""
    return getattr(scope.get("route"), "path", None)
