"""An event loop whose time is virtual and whose order is drawn from a seed: the same seed, the same run.

One callback is run at a time, drawn from all that are ready. When none is, the time jumps to the next timer. Every
callback belongs to the process in whose context it was scheduled: a process that has been stopped never runs again,
not even to clean up.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import random
from collections import deque
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Owner(Protocol):
    """A process, as far as the loop knows it."""

    stopped: bool

    def step(self) -> None:
        """It is about to run on, from one await to the next; it may stop itself instead."""
        ...


OWNER: contextvars.ContextVar[Owner | None] = contextvars.ContextVar("owner", default=None)


class Stuck(Exception):
    """Nothing is ready, no timer is set, and what is waited for has not happened."""


class VirtualTimeLoop(asyncio.BaseEventLoop):
    """Speaks to nobody and never waits."""

    # Of the base class, which has no types for them.
    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._dice = random.Random(seed)
        self._now = 0.0
        self._remains: list[asyncio.Handle] = []
        """What stopped processes would have run: kept, so that nothing of it is finalized while the run goes on."""

    def time(self) -> float:
        """Seconds since the run began."""
        return self._now

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run to the end of ``main``, then let everything go that still waits."""
        self.set_exception_handler(_say_nothing)
        asyncio.set_event_loop(self)
        try:
            return self.run_until_complete(main)
        finally:
            for task in asyncio.all_tasks(self):
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                coroutine = task.get_coro()
                assert isinstance(coroutine, Coroutine)
                coroutine.close()
            self._remains.clear()
            asyncio.set_event_loop(None)
            self.close()

    def _run_once(self) -> None:
        ready, scheduled = self._ready, self._scheduled
        while scheduled and scheduled[0].cancelled():
            heapq.heappop(scheduled)
        if not ready:
            if not scheduled:
                raise Stuck
            self._now = max(self._now, scheduled[0].when())
        while scheduled and scheduled[0].when() <= self._now:
            ready.append(heapq.heappop(scheduled))
        number = self._dice.randrange(len(ready))
        handle = ready[number]
        del ready[number]
        if handle.cancelled():
            return
        owner = handle._context.get(OWNER)  # type: ignore[attr-defined]
        if owner is not None and not owner.stopped:
            owner.step()
        if owner is not None and owner.stopped:
            self._remains.append(handle)
        else:
            handle._run()

    def _write_to_self(self) -> None:
        pass

    def _process_events(self, event_list: Any) -> None:
        pass


def _say_nothing(_loop: asyncio.AbstractEventLoop, _context: dict[str, Any]) -> None:
    """What dies is seen by those who wait for it, and is checked at the end."""
