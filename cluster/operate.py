"""What an operator asks of a running cluster: ``zapis status`` and ``zapis drain``. Both need its Ray."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from actors import detached
from actors.client import CALENDAR_ACTORS
from cluster.bootstrap import calendar_actors, policy_of
from cluster.settings import OperatorError, Settings
from notifier.actor import RayNotifiers

ANSWER_TIMEOUT_S = 5.0


class RayAway(OperatorError):
    """There is no Ray at its address."""


def status(settings: Settings) -> Iterator[str]:
    """Lines to print: the nodes, and what calendar actors and notifiers say of themselves."""
    with _connected(settings):
        for node in ray.nodes():  # type: ignore[no-untyped-call]  # Ray's is untyped.
            state = "alive" if node["Alive"] else "dead"
            yield f"node {node['NodeManagerAddress']}: {state}, {node['Resources'].get('CPU', 0):g} CPUs"
        for name, actor in sorted(detached.running(settings.ray_namespace, CALENDAR_ACTORS).items()):
            yield f"calendar actor {name}: {_said_by_calendar_actor(actor)}"
        for name, figures in sorted(asyncio.run(RayNotifiers(settings.ray_namespace).status()).items()):
            yield f"{name}: {_said_by_notifier(figures)}"


def drain(settings: Settings) -> None:
    """Have every calendar actor commit what it has decided, and end it and the notifiers; for before Ray is stopped."""
    with _connected(settings):
        asyncio.run(_drain(settings))


async def _drain(settings: Settings) -> None:
    await RayNotifiers(settings.ray_namespace).stop()
    await calendar_actors(settings, policy_of(settings)).drain(settings.drain_timeout_s)


@contextmanager
def _connected(settings: Settings) -> Iterator[None]:
    try:
        ray.init(
            address=settings.ray_address,
            namespace=settings.ray_namespace,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except ConnectionError:
        raise RayAway(f"there is no Ray at {settings.ray_address}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _said_by_notifier(figures: Mapping[str, Any]) -> str:
    if not figures:
        return "does not run yet, or cannot reach the database"
    sent = sum(count for _, outcome, count in figures["counts"] if outcome == "sent")
    dead = sum(count for _, outcome, count in figures["counts"] if outcome == "dead")
    waiting = f"{figures['due']} due, the oldest for {figures['oldest_due_s']:.0f} s"
    return f"{waiting}, {sent} sent, {dead} dead, lag {figures['lag_p50_s']:.1f} s"


def _said_by_calendar_actor(actor: ActorHandle[Any]) -> str:
    try:
        answer: Any = ray.get(actor.status.remote(), timeout=ANSWER_TIMEOUT_S)
    except RayError as error:
        return f"does not answer ({type(error).__name__})"
    figures: dict[str, Any] = answer
    said = (
        f"{figures['active_calendars']} active calendars, backlog {figures['backlog']}, "
        f"{figures['committed_commands']} commands in {figures['commits']} commits, placement {figures['generation']}"
    )
    return f"{said}, commits are overdue" if figures["stalled"] else said
