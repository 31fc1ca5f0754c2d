"""``WS /v1/doctors/{id}/feed`` and ``WS /v1/me/feed``; the same changes as Server-Sent Events are in ``events``."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime
from typing import Final

from pydantic import TypeAdapter, ValidationError
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from uvicorn.protocols.utils import ClientDisconnected

from api.errors import Problem
from api.feed.appointments import AppointmentReader
from api.feed.calendars import CalendarReader, Lost, NoSuchDoctor, TooSlow
from api.feed.connection import (
    NO_SUCH_DOCTOR,
    POLICY_VIOLATION,
    RESTART,
    TOO_SLOW,
    TRY_AGAIN_LATER,
    Closed,
    FeedConnection,
    admit,
)
from api.feed.feeds import Feeds, TooMany
from api.feed.windows import FeedWindow
from api.fields import Day
from api.scheduling.appointment_view import AppointmentView
from api.scheduling.slots import check_days
from persistence.unit_of_work import DatabaseUnavailable

SINCE_DIGITS_MAX: Final = 18
_DAY: Final[TypeAdapter[date]] = TypeAdapter(Day)

Feed = Callable[[FeedConnection], Awaitable[None]]


async def doctor_feed(websocket: WebSocket) -> None:
    """A calendar: what it looks like, or what has changed since a number, then every change."""
    feeds: Feeds = websocket.app.state.feeds

    async def follow(connection: FeedConnection) -> None:
        doctor_id = _doctor_id(websocket)
        window, since = _window(websocket)
        reader = CalendarReader(feeds.calendars, doctor_id, window, on_too_slow=connection.cut_off_soon)

        async def feed() -> None:
            async for _, message in reader.first(since):
                await connection.send(message)
            while True:
                for _, message in await reader.next():
                    await connection.send(message)
                await connection.ping(sequence=reader.sequence)

        try:
            await connection.run(feed(), wake=reader.wake)
        except NoSuchDoctor:
            raise Closed(NO_SUCH_DOCTOR, "there is no such doctor") from None
        finally:
            reader.close()

    await _serve(websocket, feeds, follow)


async def my_feed(websocket: WebSocket) -> None:
    """The caller's own appointments: the live ones, then each that changes."""
    feeds: Feeds = websocket.app.state.feeds

    async def follow(connection: FeedConnection) -> None:
        locations = websocket.app.state.location_directory
        reader = AppointmentReader(
            feeds.calendars.stream,
            feeds.services,
            connection.refreshed,
            lambda: AppointmentView(feeds.services, locations, connection.principal),
        )

        async def feed() -> None:
            while True:
                async for message in reader.next():
                    await connection.send(message)
                await connection.ping()

        try:
            await connection.run(feed(), wake=reader.wake)
        finally:
            reader.close()

    await _serve(websocket, feeds, follow)


routes: Final = (
    WebSocketRoute("/v1/doctors/{doctor_id}/feed", doctor_feed),
    WebSocketRoute("/v1/me/feed", my_feed),
)


async def _serve(websocket: WebSocket, feeds: Feeds, follow: Feed) -> None:
    """Admit, count and run a feed; say why it ends."""
    admitted = await admit(websocket, websocket.app.state.gate, feeds.services.settings.cors_origins)
    if admitted is None:
        return
    token, principal = admitted
    connection = FeedConnection(websocket, websocket.app.state.gate, token, principal)
    try:
        if not feeds.calendars.stream.ready:
            raise Closed(TRY_AGAIN_LATER, "unavailable")
        async with feeds.connections.one_more(principal.user_id):
            await follow(connection)
    except Closed as closed:
        await connection.close(closed.code, closed.reason)
    except TooMany as told:
        await connection.close(TRY_AGAIN_LATER, str(told))
    except TooSlow:
        await connection.close(TOO_SLOW, "too slow: come back with since")
    except Lost:
        await connection.close(RESTART, "begin anew")
    except DatabaseUnavailable:
        await connection.close(TRY_AGAIN_LATER, "unavailable")
    except (WebSocketDisconnect, ClientDisconnected):
        pass


def _doctor_id(websocket: WebSocket) -> str:
    given: str = websocket.path_params["doctor_id"]
    try:
        parsed = str(uuid.UUID(given))
    except ValueError:
        parsed = ""
    if parsed != given.lower():
        raise Closed(NO_SUCH_DOCTOR, "there is no such doctor")
    return parsed


def _window(websocket: WebSocket) -> tuple[FeedWindow, int | None]:
    """The days asked for, and the number since which changes are."""
    query = websocket.query_params
    now = datetime.now(UTC)
    try:
        first_day, last_day = (_DAY.validate_python(query[name]) if name in query else None for name in ("from", "to"))
        check_days(first_day, last_day, now)
    except ValidationError:
        raise Closed(POLICY_VIOLATION, "from and to should be days, as 2026-11-24") from None
    except Problem as problem:
        raise Closed(POLICY_VIOLATION, f"from and to: {problem.detail}"[:120]) from None
    since = query.get("since")
    if since is not None and not (since.isascii() and since.isdigit() and len(since) <= SINCE_DIGITS_MAX):
        raise Closed(POLICY_VIOLATION, "since should be a sequence number")
    return FeedWindow(first_day, last_day, now), None if since is None else int(since)
