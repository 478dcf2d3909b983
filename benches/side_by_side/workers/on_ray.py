"""Ray's object store, whose ancestor is the original's: `ray.put` and `ray.get`.

Usage: on_ray.py BYTES DIRECTORY
Starts a Ray of its own, on this machine alone, with so much memory for objects.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from protocol import Contender, serve

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray  # noqa: E402 - reads its environment when it is imported


class Ray(Contender):
    """Names are Ray's own references."""

    def __init__(self, capacity: int, directory: str) -> None:
        ray.init(
            address="local",
            num_cpus=1,
            object_store_memory=capacity,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=directory,
            _node_ip_address="127.0.0.1",
        )

    def names(self, count: int) -> list[Any]:
        return [None] * count

    def put(self, name: Any, value: Any) -> Any:
        return ray.put(value)

    def get(self, found: Any) -> Any:
        return ray.get(found)

    def delete(self, found: list[Any]) -> None:
        # Ray deletes what nobody refers to.
        found.clear()

    def close(self) -> None:
        ray.shutdown()


if __name__ == "__main__":
    serve(Ray(int(sys.argv[1]), sys.argv[2]))
