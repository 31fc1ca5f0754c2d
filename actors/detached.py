"""Named, detached Ray actors of one namespace: started where they are missing, started again where they die.

These calls wait for as long as Ray's GCS is away and cannot be given up: they belong into threads.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.actor import ActorHandle


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
