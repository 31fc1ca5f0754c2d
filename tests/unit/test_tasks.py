"""Tasks that go on by themselves: they end when they are told to, and their failures are seen."""

from __future__ import annotations

import asyncio
import time

import pytest
import structlog
from structlog.testing import capture_logs

from actors import tasks


async def deaf(times: int, told: list[int]) -> None:
    """Loses so many cancellations, as a loop around a client that takes them for a failure does."""
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.append(len(told))
            if len(told) > times:
                raise


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "AGAIN_S", 0.01)


async def test_a_task_that_loses_a_cancellation_ends_all_the_same() -> None:
    told: list[int] = []
    attentive, inattentive = tasks.begin(deaf(0, []), name="a"), tasks.begin(deaf(2, told), name="b")
    await asyncio.sleep(0)
    await tasks.end(attentive, inattentive)
    assert attentive.cancelled()
    assert inattentive.cancelled()
    assert told == [0, 1, 2]


async def test_nobody_waits_longer_than_they_want_to() -> None:
    told: list[int] = []
    task = tasks.begin(deaf(1_000_000, told), name="deaf")
    await asyncio.sleep(0)
    began = time.monotonic()
    await tasks.end(task, timeout_s=0.1)
    assert 0.1 <= time.monotonic() - began < 5
    assert not task.done()
    told.extend(range(1_000_000))
    await tasks.end(task)


async def test_what_has_ended_already_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "log", structlog.get_logger())  # Another test's may be kept.

    async def fails() -> None:
        raise ZeroDivisionError

    with capture_logs() as logs:
        task = tasks.begin(fails(), name="the task")
        await asyncio.wait({task})
        await tasks.end(task)
        await tasks.end()
    assert [(entry["event"], entry["task"], type(entry["exc_info"])) for entry in logs] == [
        ("task_died", "the task", ZeroDivisionError)
    ]
