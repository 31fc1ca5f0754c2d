"""``zapis status``: the nodes of the cluster and what its calendar actors say of themselves."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from cluster.settings import Settings

ANSWER_TIMEOUT_S = 5.0


def status(settings: Settings) -> Iterator[str]:
    """Lines to print. Needs a running Ray at ``ray_address``."""
    import ray
    from ray.util import list_named_actors

    ray.init(
        address=settings.ray_address, namespace=settings.ray_namespace, log_to_driver=False, logging_level=logging.ERROR
    )
    try:
        for node in ray.nodes():  # type: ignore[no-untyped-call]  # Ray's is untyped.
            state = "alive" if node["Alive"] else "dead"
            yield f"node {node['NodeManagerAddress']}: {state}, {node['Resources'].get('CPU', 0):g} CPUs"
        for name in sorted(list_named_actors()):
            yield f"actor {name}: {_ask(name)}"
    finally:
        ray.shutdown()


def _ask(name: str) -> object:
    import ray
    from ray.exceptions import RayError

    try:
        answer: object = ray.get(ray.get_actor(name).status.remote(), timeout=ANSWER_TIMEOUT_S)
    except (RayError, AttributeError) as error:
        return f"does not answer ({type(error).__name__})"
    return answer
