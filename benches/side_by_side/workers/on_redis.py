"""Redis over a unix socket, with hiredis: bytes as they are, all else as a pickle.

Usage: on_redis.py SOCKET
A get copies the value out of the server, where a store maps it.
"""

from __future__ import annotations

import pickle
import sys
import uuid
from typing import Any

import redis

from protocol import Contender, serve


class Redis(Contender):
    """One connection for both: Redis does not tell clients apart."""

    def __init__(self, socket: str) -> None:
        self._client = redis.Redis(unix_socket_path=socket)
        self._client.ping()

    def names(self, count: int) -> list[Any]:
        return [uuid.uuid4().bytes for _ in range(count)]

    def put(self, name: Any, value: Any) -> Any:
        is_bytes = isinstance(value, bytes)
        self._client.set(name, value if is_bytes else pickle.dumps(value, protocol=5))
        return name, is_bytes

    def get(self, found: Any) -> Any:
        name, is_bytes = found
        value: Any = self._client.get(name)
        return value if is_bytes else pickle.loads(value)

    def delete(self, found: list[Any]) -> None:
        self._client.delete(*(name for name, _ in found))

    def close(self) -> None:
        self._client.close()


if __name__ == "__main__":
    serve(Redis(sys.argv[1]))
