"""Whether what requests are served with can be reached, asked at most once a second however many want to know."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import ray
from redis.exceptions import RedisError
from sqlalchemy import text

from cluster.bootstrap import Services
from persistence.unit_of_work import DatabaseUnavailable

MAX_AGE_S: Final = 1.0
CHECK_TIMEOUT_S: Final = 2.0


class Readiness:
    """Checks PostgreSQL, Ray and Redis side by side."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._ray_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ray-check")
        self._ray_check: asyncio.Future[object] | None = None
        self._known: dict[str, bool] = {}
        self._checked_at = float("-inf")
        self._checking = asyncio.Lock()

    async def check(self) -> dict[str, bool]:
        """Which of ``postgres``, ``ray`` and ``redis`` can be reached."""
        async with self._checking:
            if time.monotonic() - self._checked_at > MAX_AGE_S:
                postgres, on_ray, redis = await asyncio.gather(
                    _reached(self._ask_postgres), _reached(self._ask_ray), _reached(self._ask_redis)
                )
                self._known = {"postgres": postgres, "ray": on_ray, "redis": redis}
                self._checked_at = time.monotonic()
            return self._known

    def close(self) -> None:
        """Stop asking."""
        self._ray_thread.shutdown(wait=False, cancel_futures=True)

    async def _ask_postgres(self) -> None:
        async with self._services.unit_of_work() as work:
            await work.connection.execute(text("SELECT 1"))

    async def _ask_ray(self) -> None:
        """One question at a time: Ray's own calls cannot be given up, and wait for as long as its GCS is away."""
        if self._ray_check is None or self._ray_check.done():
            self._ray_check = asyncio.get_running_loop().run_in_executor(self._ray_thread, ray.nodes)
        await asyncio.shield(self._ray_check)

    async def _ask_redis(self) -> None:
        await self._services.redis.ping()


async def _reached(ask: Callable[[], Awaitable[None]]) -> bool:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            await ask()
    except (DatabaseUnavailable, RedisError, ConnectionError, TimeoutError, RuntimeError):
        return False
    return True
