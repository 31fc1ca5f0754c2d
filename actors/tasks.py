"""Tasks that go on beside the one that began them: their failures are seen, and they end when they are told to."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

import structlog

AGAIN_S: Final = 0.5
"""Long enough for what a task tidies up on its way out."""

log = structlog.get_logger()


def begin(work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
    """A task whose failure is logged, as nobody may ever wait for it. Keep a reference: the event loop does not."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(report_death)
    return task


async def end(*tasks: asyncio.Task[Any], timeout_s: float | None = None) -> None:
    """Cancel tasks until they have ended, or for so long; what they raised is not told here.

    Telling them once is not enough: redis-py loses a cancellation that comes while it connects, and so does
    ``asyncio.wait_for`` before Python 3.12 when what it waits for is there in that moment; redis-py writes in one. A
    loop around such a call would go on. In our own code it is ``asyncio.timeout``, which loses none.
    """
    give_up_at = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
    left = {task for task in tasks if not task.done()}
    while left and (give_up_at is None or asyncio.get_running_loop().time() < give_up_at):
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=AGAIN_S)


def report_death(task: asyncio.Task[Any]) -> None:
    """A callback for when the task is done: log what it failed with."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("task_died", task=task.get_name(), exc_info=error)
