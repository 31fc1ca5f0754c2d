"""``GET /v1/doctors/{id}/changes``: a calendar's changes as Server-Sent Events (WHATWG HTML, 9.2), over plain HTTP.

For clients that can set headers. The messages are those of the feed; each has its sequence number as its id, so a
client that comes back says with ``Last-Event-ID`` what it has.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, Final

from fastapi import Header, Path, Query, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from actors import tasks
from api.dependencies import CurrentUser, authenticate, gate_of, problems
from api.errors import Problem
from api.feed.calendars import CalendarReader, Lost, NoSuchDoctor, Said, TooSlow
from api.feed.connection import PING_S, cut_off_soon
from api.feed.feeds import Feeds, TooMany
from api.feed.windows import FeedWindow
from api.fields import Day, Id
from api.middleware import HEAD, leave_admission
from api.protocol import END
from api.routing import router as strict_router
from api.scheduling.slots import check_days
from persistence.unit_of_work import DatabaseUnavailable

RETRY_MS: Final = 3000
SINCE: Final = r"^\d{1,18}$"

_EVENT: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "event": {"type": "string", "enum": ["snapshot", "change"]},
        "id": {"type": "string", "description": "The sequence number."},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
_EVENTS: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "Events, as in the feed.", "content": {"text/event-stream": {"schema": _EVENT}}}
}

router = strict_router(prefix="/v1", tag="Directory and slots")


class EventStream(StreamingResponse):
    """Events, one after the other, for as long as it goes on; lets go at its end of what the stack holds."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], stack: AsyncExitStack, status_code: int = 200) -> None:
        # The connection ends with it: one that has to be cut off may not be another request's by then.
        super().__init__(events, status_code, headers={"connection": "close"})
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them until they end or nobody is there any more; who asks by HEAD wants none.

        Not in a task group, as others do: what a cancelled one has raised holds all this until a garbage collection.
        """
        async with self._stack:
            if scope.get(HEAD):
                await Response(media_type=self.media_type)(scope, receive, send)
                return
            both = (
                asyncio.create_task(self.stream_response(send), name="send events"),
                asyncio.create_task(self.listen_for_disconnect(receive), name="listen for a disconnect"),
            )
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await tasks.end(*both)
            for task in both:
                if not task.cancelled():
                    task.result()


@router.get(
    "/doctors/{doctor_id}/changes",
    response_class=EventStream,
    responses=_EVENTS | problems("not_found"),
)
async def follow_changes(
    request: Request,
    principal: CurrentUser,
    doctor_id: Annotated[Id, Path(description="The doctor's id.")],
    first_day: Annotated[Day | None, Query(alias="from", description="Default: today.")] = None,
    last_day: Annotated[Day | None, Query(alias="to", description="Included. Default: 14 days after `from`.")] = None,
    since: Annotated[
        str | None, Header(alias="Last-Event-ID", pattern=SINCE, description="The number of the last event one has.")
    ] = None,
) -> Response:
    """A calendar: what it looks like, or what has changed since the last event one has, then every change."""
    feeds: Feeds = request.app.state.feeds
    now = datetime.now(UTC)
    check_days(first_day, last_day, now)
    if not feeds.calendars.stream.ready:
        raise Problem("unavailable")
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(feeds.connections.one_more(principal.user_id))
        except TooMany as told:
            raise Problem("rate_limited", f"{str(told).capitalize()}.", retry_after_s=60) from None
        window = FeedWindow(first_day, last_day, now)
        reader = CalendarReader(feeds.calendars, doctor_id, window, on_too_slow=partial(cut_off_soon, request.scope))
        stack.callback(reader.close)
        messages = reader.first(None if since is None else int(since))
        try:
            first = await anext(messages, None)
        except NoSuchDoctor:
            raise Problem("not_found", "There is no such doctor.") from None
        leave_admission(request.scope)
        request.scope[END] = reader.lose
        stack.callback(request.scope.pop, END, None)  # It holds the scope in turn.
        return EventStream(_events(request, reader, first, messages), stack.pop_all())
    raise AssertionError("the stack swallows nothing")


async def _events(
    request: Request, reader: CalendarReader, first: Said | None, messages: AsyncIterator[Said]
) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    token = request.headers["authorization"].partition(" ")[2]
    yield b"retry: %d\n\n" % RETRY_MS
    if first is not None:
        yield _event(*first)
    try:
        async for said in messages:
            yield _event(*said)
        ping_at = loop.time() + PING_S
        while True:
            pinging = loop.call_at(ping_at, reader.wake)
            try:
                changes = await reader.next()
            finally:
                pinging.cancel()
            for said in changes:
                yield _event(*said)
            if loop.time() >= ping_at:
                ping_at = loop.time() + PING_S
                with suppress(DatabaseUnavailable):  # Who was let in may stay while nobody can be asked.
                    await authenticate(gate_of(request), token)
                yield b": ping\n\n"
    except (TooSlow, Lost, Problem, DatabaseUnavailable):
        return  # The client comes back with what it has, and is told why if it may not.


def _event(sequence: int, message: str) -> bytes:
    kind = "snapshot" if message.startswith('{"type":"snapshot"') else "change"
    return f"id: {sequence}\nevent: {kind}\ndata: {message}\n\n".encode()
