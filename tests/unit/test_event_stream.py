"""What ends a stream of events lets go of all that it holds, and is not kept silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from starlette.types import Message

from api.feed.events import EventStream


async def never() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def ignore(_: Message) -> None:
    return None


async def fails() -> AsyncIterator[bytes]:
    yield b"retry: 3000\n\n"
    raise ZeroDivisionError


async def goes_on() -> AsyncIterator[bytes]:
    yield b"retry: 3000\n\n"
    await asyncio.Event().wait()


def stream_of(events: AsyncIterator[bytes]) -> tuple[EventStream, asyncio.Event]:
    """A stream, and what is set when it has let go."""
    stack, let_go = AsyncExitStack(), asyncio.Event()
    stack.callback(let_go.set)
    return EventStream(events, stack), let_go


async def test_a_failure_travels_on() -> None:
    stream, let_go = stream_of(fails())
    with pytest.raises(ZeroDivisionError):
        await stream({"type": "http"}, never, ignore)
    assert let_go.is_set()


async def test_nobody_is_there_any_more() -> None:
    async def gone() -> Message:
        return {"type": "http.disconnect"}

    stream, let_go = stream_of(goes_on())
    await stream({"type": "http"}, gone, ignore)
    assert let_go.is_set()


async def test_a_stream_that_is_cancelled_leaves_no_task() -> None:
    stream, let_go = stream_of(goes_on())
    before = asyncio.all_tasks()
    streaming = asyncio.create_task(stream({"type": "http"}, never, ignore))
    while len(asyncio.all_tasks() - before) < 3:
        await asyncio.sleep(0)
    streaming.cancel()
    with pytest.raises(asyncio.CancelledError):
        await streaming
    assert let_go.is_set()
    assert asyncio.all_tasks() == before
