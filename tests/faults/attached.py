"""``zapis`` as a driver of one node of several on this machine; elsewhere a machine is one node, and it is that one.

python -m tests.faults.attached DIRECTORY_OF_THE_NODE ARGUMENT …
"""

from __future__ import annotations

import functools
import sys

import ray

from cluster.cli import main

if __name__ == "__main__":
    directory = sys.argv.pop(1)
    if directory:
        ray.init = functools.partial(ray.init, _temp_dir=directory)
    main()
