"""Ways to break the notifier, and the test of ``tests.integration.test_notifier`` that catches each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from notifier.contents import Content
from notifier.notifier import Notifier
from persistence.repositories.notifications import Ended, Notification, Notifications
from tests.integration import test_notifier as scenes
from tests.integration.test_notifier import Desk, clinic, desk

__all__ = ["clinic", "desk"]  # The fixtures.

pytestmark = pytest.mark.asyncio(loop_scope="module")

Scene = Callable[[Desk], Awaitable[None]]


def marks_before_it_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not sent counts as sent."""
    send = Notifier._send

    async def mark_and_send(self: Notifier, content: Content, give_up_at: float) -> None:
        async with self._begin() as work:
            ended = Ended(id=content.notification.id, outcome="sent", at=self._clock())
            await Notifications(work.connection).end([ended])
        await send(self, content, give_up_at)

    monkeypatch.setattr(Notifier, "_send", mark_and_send)


def leases_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a notifier that died had in its hands is nobody's."""
    lease = Notifications.lease

    async def lease_for_ever(
        self: Notifications, channel: str, *, now: datetime, until: datetime, limit: int
    ) -> list[Notification]:
        return await lease(self, channel, now=now, until=until + timedelta(days=3650), limit=limit)

    monkeypatch.setattr(Notifications, "lease", lease_for_ever)


def forgets_to_void(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier version of a visit still had to say stays."""

    async def void_nothing(self: Notifications, versions: object, *, now: datetime) -> None:
        pass

    monkeypatch.setattr(Notifications, "void_before", void_nothing)


def stops_at_the_first_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages are sent together: one fails, and the others are cut off."""
    has_sent = Notifier._has_sent

    def cut_off(self: Notifier, task: asyncio.Task[None]) -> None:
        failed = not task.cancelled() and isinstance(task.exception(), ZeroDivisionError)
        has_sent(self, task)
        if failed:
            for other in self._tasks:
                other.cancel()

    monkeypatch.setattr(Notifier, "_has_sent", cut_off)


@pytest.mark.parametrize(
    ("mutate", "scene"),
    [
        (marks_before_it_sends, scenes.test_who_dies_while_sending_leaves_it_to_the_next),
        (leases_for_ever, scenes.test_who_dies_while_sending_leaves_it_to_the_next),
        (forgets_to_void, scenes.test_what_is_no_longer_true_is_not_said),
        (stops_at_the_first_failure, scenes.test_what_cannot_be_sent_in_a_way_that_nobody_foresaw_delays_nobody),
    ],
)
async def test_it_is_caught(
    mutate: Callable[[pytest.MonkeyPatch], None], scene: Scene, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch)
    with pytest.raises((AssertionError, TimeoutError, pytest.fail.Exception)):
        await scene(replace(desk, patience_s=3.0))
