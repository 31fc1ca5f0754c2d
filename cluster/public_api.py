"""A client of zapis's own public API, for what is done through it: loading a clinic, replaying a day.

It waits as it is told to (429 and 503 with ``Retry-After``), tries again what may be tried again, and in the end either
has an answer or says that there is none: ``Refused`` is a definite no, ``Unanswered`` leaves open whether it happened.
The waiting for one call is bounded by ``patience_s``.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, cast

import httpx

Json = dict[str, Any]

PATIENCE_S = 180.0
CALL_TIMEOUT_S = 30.0
WAIT_MIN_S = 0.1
WAIT_MAX_S = 60.0
BACKOFF_MAX_S = 5.0
PAGES_MAX = 1_000
PAGE_ITEMS = 200
NO_PARAMS: Mapping[str, str] = {}


class Refused(Exception):
    """The server has answered, and the answer is no. ``code`` is the contract's, ``detail`` is for people."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(status, code, detail)
        self.status = status
        self.code = code
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.status} {self.code}: {self.detail}"


class Unanswered(Exception):
    """It is not known whether the server has done what it was asked to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    body: Any
    headers: Mapping[str, str]


def http_client(url: str, *, connections: int, transport: httpx.AsyncBaseTransport | None = None) -> httpx.AsyncClient:
    """A client for the zapis at that address, to be closed by the caller. It uses no proxy: the server is one's own."""
    logging.getLogger("httpx").setLevel(logging.WARNING)  # It would log every request, with whom it is about.
    return httpx.AsyncClient(
        base_url=url,
        timeout=CALL_TIMEOUT_S,
        limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        transport=transport,
        trust_env=False,
    )


class PublicApi:
    """Calls that need no account.

    A server that nobody can connect to is given up after ``connect_patience_s``. ``observe`` is told of every exchange:
    the method and path, and how many seconds it took. ``now`` and ``sleep`` are the clock that patience goes by.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        *,
        patience_s: float = PATIENCE_S,
        connect_patience_s: float = PATIENCE_S,
        observe: Callable[[str, float], None] = lambda call, seconds: None,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._client = client
        self._patience_s = patience_s
        self._connect_patience_s = min(connect_patience_s, patience_s)
        self._observe = observe
        self._now = now
        self._sleep = sleep

    def waiting(self, patience_s: float | None = None) -> "Waiting":
        """The waiting for one call, which begins now."""
        patience_s = self._patience_s if patience_s is None else patience_s
        return Waiting(self._now() + patience_s, self._now, self._sleep)

    async def call(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        key: str | None = None,
        json: Json | None = None,
        form: dict[str, str] | None = None,
        params: Mapping[str, str] = NO_PARAMS,
        repeatable: bool = True,
    ) -> Answer:
        """The answer to that request, tried again while there is none.

        A request that is not ``repeatable`` is sent again only when it is certain that it was not acted on.

        Raises:
            Refused: a status of 400 or more that waiting does not change.
            Unanswered: patience has ended, or the outcome is unknown and the request cannot be repeated.
        """
        headers = {}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        if key is not None:
            headers["Idempotency-Key"] = key
        what = f"{method} {path}"
        waiting, connecting = self.waiting(), self.waiting(self._connect_patience_s)
        while True:
            began = time.perf_counter()
            try:
                response = await self._client.request(
                    method, path, headers=headers, json=json, data=form, params=params
                )
                self._observe(what, time.perf_counter() - began)
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
                await connecting.wait(f"{what}: {_says(error)}")
                continue
            except httpx.UnsupportedProtocol as error:
                raise Unanswered(f"{what}: {_says(error)}") from error
            except httpx.TransportError as error:
                if not repeatable:
                    raise Unanswered(f"{what}: {_says(error)}") from error
                await waiting.wait(f"{what}: {_says(error)}")
                continue
            if response.status_code < 400:
                return Answer(status=response.status_code, body=_body(response, what), headers=response.headers)
            refused = _refused(response)
            if response.status_code == 429 or (response.status_code == 503 and repeatable):
                await waiting.wait(f"{what}: {refused}", _retry_after_s(response))
            elif response.status_code in (502, 503, 504):
                raise Unanswered(f"{what}: {refused}")
            else:
                raise refused

    async def items(self, path: str, params: Mapping[str, str] = NO_PARAMS) -> list[Json]:
        """Every item of a list."""
        return await _items(lambda page: self.call("GET", path, params=page), params)


class Account:
    """Calls in the name of one account, which logs in at the first of them, and again when its token has expired."""

    def __init__(self, api: PublicApi, login: str, password: str) -> None:
        self._api = api
        self._login = login
        self._password = password
        self._token: str | None = None
        self._logging_in = asyncio.Lock()

    async def call(
        self,
        method: str,
        path: str,
        *,
        key: str | None = None,
        json: Json | None = None,
        params: Mapping[str, str] = NO_PARAMS,
        repeatable: bool = True,
    ) -> Answer:
        """As ``PublicApi.call``.

        Raises:
            Refused: with the status 401 and the code of the token endpoint, when the password is wrong.
        """
        token = await self._token_after(None)
        for last in (False, True):
            try:
                return await self._api.call(
                    method, path, token=token, key=key, json=json, params=params, repeatable=repeatable
                )
            except Refused as refused:
                if refused.status != 401 or last:
                    raise
                token = await self._token_after(token)
        raise AssertionError("the second try returns or raises")

    async def items(self, path: str, params: Mapping[str, str] = NO_PARAMS) -> list[Json]:
        """Every item of a list."""
        return await _items(lambda page: self.call("GET", path, params=page), params)

    async def book(self, slot_id: str, *, key: str, patient_id: str | None = None, reason: str | None = None) -> Json:
        """The appointment booked, once it is committed.

        Raises:
            Refused, Unanswered
        """
        body = {"slot_id": slot_id}
        if patient_id is not None:
            body["patient_id"] = patient_id
        if reason is not None:
            body["reason"] = reason
        waiting = self._api.waiting()
        while True:
            answer = await self.call("POST", "/v1/appointments", key=key, json=body)
            if answer.status != 202:
                return cast(Json, answer.body)
            # Pending promises nothing: the same request with the same key gives its answer once it is decided.
            await waiting.wait("POST /v1/appointments: still pending")

    async def _token_after(self, expired: str | None) -> str:
        """A token other than the expired one; of many that wait for it, one logs in."""
        async with self._logging_in:
            if self._token is None or self._token == expired:
                form = {"grant_type": "password", "username": self._login, "password": self._password}
                answer = await self._api.call("POST", "/v1/auth/token", form=form)
                self._token = cast(str, answer.body["access_token"])
            return self._token


class Waiting:
    """The waiting for one call: as long as the server says, else longer each time, and not without end."""

    def __init__(self, until: float, now: Callable[[], float], sleep: Callable[[float], Awaitable[None]]) -> None:
        self._until = until
        self._now = now
        self._sleep = sleep
        self._next_s = WAIT_MIN_S

    async def wait(self, why: str, told_s: float | None = None) -> None:
        """Wait before the next try.

        Raises:
            Unanswered: patience would end before that, or the server asks for more than a minute.
        """
        wait_s = max(WAIT_MIN_S, self._next_s if told_s is None else told_s)
        self._next_s = min(BACKOFF_MAX_S, self._next_s * 2)
        if wait_s > WAIT_MAX_S or self._now() + wait_s > self._until:
            raise Unanswered(why)
        await self._sleep(wait_s)


async def _items(get: Callable[[dict[str, str]], Awaitable[Answer]], params: Mapping[str, str]) -> list[Json]:
    items: list[Json] = []
    page = {"limit": str(PAGE_ITEMS), **params}
    for _ in range(PAGES_MAX):
        body = (await get(page)).body
        items += body["items"]
        if body.get("next_cursor") is None:
            return items
        page["cursor"] = body["next_cursor"]
    raise Unanswered(f"a list has more than {PAGES_MAX} pages")


def _body(response: httpx.Response, what: str) -> Any:
    if not response.content:
        return None
    try:
        return response.json()
    except ValueError as error:
        raise Unanswered(f"{what}: the answer is not JSON; is that a zapis?") from error


def _refused(response: httpx.Response) -> Refused:
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {}
    faults = [f"{fault.get('pointer')}: {fault.get('detail')}" for fault in problem.get("errors") or ()]
    detail = str(problem.get("detail") or problem.get("title") or response.reason_phrase)
    return Refused(
        response.status_code,
        str(problem.get("code") or f"http_{response.status_code}"),
        "; ".join([detail, *faults]),
    )


def _retry_after_s(response: httpx.Response) -> float | None:
    """RFC 9110, section 10.2.3: seconds or a date."""
    told = response.headers.get("Retry-After", "")
    if told.isascii() and told.isdigit():
        return float(told)
    try:
        return (parsedate_to_datetime(told) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError):
        return None


def _says(error: Exception) -> str:
    return str(error) or type(error).__name__
