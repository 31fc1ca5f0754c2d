"""``ray start`` for one more node on loopback. Ray takes a cluster on loopback for one host and refuses a second node.

The environment still says so (see ``EmbeddedRay.client_environment``): what this starts listens on loopback only.
"""

from __future__ import annotations

from ray._private import ray_constants, services
from ray.scripts.scripts import main

from cluster.data_directory import LOOPBACK


def _loopback(_: str | None = None) -> str:
    return LOOPBACK


if __name__ == "__main__":
    ray_constants.ENABLE_RAY_CLUSTER = True
    services.get_node_ip_address = _loopback
    main()  # type: ignore[no-untyped-call]  # Ray's.
