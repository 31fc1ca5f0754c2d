"""Named, detached Ray actors of one namespace: started where they are missing, started again where they die.

These calls wait for as long as Ray's GCS is away and cannot be given up: they belong into ``LookUps``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import ray
from ray.actor import ActorHandle

THREADS_MAX: Final = 4

Found = TypeVar("Found")


class LookUps:
    """Calls into Ray in threads of their own: however long they wait there, everybody else's threads stay free."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="ray-look-up")
        self._under_way: dict[str, asyncio.Future[Any]] = {}

    async def find(self, what: str, look: Callable[[], Found]) -> Found:
        """What ``look`` finds: one look at a time for each ``what``, for all who ask meanwhile and whoever gives up.

        Raises:
            RayError, ValueError, ConnectionError: as ``look`` does.
        """
        looking: asyncio.Future[Found] | None = self._under_way.get(what)
        if looking is None:
            looking = self._under_way[what] = asyncio.get_running_loop().run_in_executor(self._threads, look)
            looking.add_done_callback(lambda ended: self._ended(what, ended))
        return await asyncio.shield(looking)

    def close(self) -> None:
        """Look no more; a look that is under way is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _ended(self, what: str, ended: asyncio.Future[Any]) -> None:
        del self._under_way[what]
        if not ended.cancelled():
            ended.exception()  # Perhaps nobody waits for it any more.


def get_or_start(
    actor_class: type, name: str, *arguments: object, namespace: str, cpus: float, **options: Any
) -> ActorHandle[Any]:
    """The actor of that name; it may just be starting, or have died and not be back yet.

    Raises:
        ConnectionError: not connected to Ray, which asked now would start a cluster of its own.
    """
    if not ray.is_initialized():
        raise ConnectionError("not connected to Ray")
    remote: Any = ray.remote(actor_class)
    handle: ActorHandle[Any] = remote.options(
        name=name,
        namespace=namespace,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        max_task_retries=0,
        num_cpus=cpus,
        **options,
    ).remote(*arguments)
    return handle


def running(namespace: str, prefixes: tuple[str, ...]) -> dict[str, ActorHandle[Any]]:
    """Those that there are, by name.

    Raises:
        ConnectionError: not connected to Ray.
    """
    if not ray.is_initialized():
        raise ConnectionError("not connected to Ray")
    found = {}
    for entry in ray.util.list_named_actors(all_namespaces=True):
        if entry["namespace"] == namespace and entry["name"].startswith(prefixes):
            try:
                found[entry["name"]] = ray.get_actor(entry["name"], namespace=namespace)
            except ValueError:
                continue
    return found
