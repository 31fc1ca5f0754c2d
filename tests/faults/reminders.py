"""Very many reminders are due at once, and while they are sent, all that it takes dies, one after another."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import psycopg

from tests.faults.nemeses import Nemesis, Scene, kill_node, kill_notifier, kill_valkey, stop_postgres

REMINDERS = 20_000
LAG_S = 5.0
LAG_MAX_S = 60.0
"""After the last fault; by then no message is later than ``LAG_S``."""
DRAINED_S = 300.0
REST_S = 8.0
"""Of clients, who would leave nothing of this machine to notifiers."""


async def kill_amid_reminders(scene: Scene) -> bool:
    """A notifier, a node, Valkey and PostgreSQL."""
    scene.pace.rest_s = REST_S
    try:
        return await _kill_amid_reminders(scene)
    finally:
        scene.pace.rest_s = 0.0


async def _kill_amid_reminders(scene: Scene) -> bool:
    url = scene.cluster.direct_url
    async with await psycopg.AsyncConnection.connect(url) as connection:
        await connection.execute(_MAKE_DUE, [REMINDERS])
    for share, strike in ((0.8, kill_notifier), (0.6, kill_node), (0.4, kill_valkey), (0.2, stop_postgres)):
        await _wait_until_due(url, most=int(share * REMINDERS), lag_s=0.0)
        await strike(scene)
    healed_at = time.monotonic()
    await _wait_until_due(url, most=0, lag_s=LAG_S)
    took_s = time.monotonic() - healed_at
    scene.notes.append(f"{REMINDERS:,} reminders: {took_s:.0f} s after the last fault none was later than {LAG_S:g} s")
    if took_s > LAG_MAX_S:
        scene.violations.append(f"reminders were late for {took_s:.0f} s after the last fault")
    return True


async def _wait_until_due(url: str, *, most: int, lag_s: float) -> None:
    """Until no more messages than that have been due for so long."""
    give_up_at = time.monotonic() + DRAINED_S
    while time.monotonic() < give_up_at:
        with suppress(psycopg.OperationalError):
            async with await psycopg.AsyncConnection.connect(url) as connection:
                found = await (await connection.execute(_DUE, [lag_s])).fetchone()
            if found is not None and found[0] <= most:
                return
        await asyncio.sleep(0.1)


_MAKE_DUE = """
    INSERT INTO notification
        (id, outbox_id, kind, ahead, channel, user_id, appointment_id, version, due_at, expires_at, next_at)
    SELECT uuidv7(), uuidv7(), 'reminder', 'P1D', 'email', booked_by, id, version, now(), starts_at, now()
    FROM appointment, generate_series(1, 9999) AS number
    WHERE live ORDER BY number LIMIT %s
"""
_DUE = """
    INSERT INTO notification
        (id, outbox_id, kind, ahead, channel, user_id, appointment_id, version, due_at, expires_at, next_at)
    SELECT uuidv7(), o.id, 'reminder', 'PT' || number || 'M', 'email', a.booked_by, a.id, a.version, now(),
        a.starts_at, now()
    FROM appointment AS a JOIN outbox AS o ON o.appointment_id = a.id AND o.version = a.version,
        generate_series(1, 9999) AS number
    WHERE a.live ORDER BY number LIMIT %s
    ON CONFLICT DO NOTHING
"""
_DUE = "SELECT count(*) FROM notification WHERE ended_at IS NULL AND due_at <= now() - %s * interval '1 second'"

AMID_REMINDERS = Nemesis(
    name="all killed amid reminders", strike=kill_amid_reminders, nodes=True, ends_notifiers=2, postgres=True
)
