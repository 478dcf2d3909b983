"""The Python clients of a Plasma store: ours and the original's, by the calls they share.

Usage: store.py SOCKET
Takes `pyarrow.plasma` where there is one, in the original's environment, and ours in the other.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

from protocol import Contender, serve

warnings.filterwarnings("ignore")

try:
    from pyarrow import plasma
except ImportError:
    import plasma


class Store(Contender):
    """One client that puts, another that gets."""

    def __init__(self, socket: str) -> None:
        self._maker = plasma.connect(socket)
        self._reader = plasma.connect(socket)

    def names(self, count: int) -> list[Any]:
        return [plasma.ObjectID(os.urandom(20)) for _ in range(count)]

    def put(self, name: Any, value: Any) -> Any:
        return self._maker.put(value, name)

    def get(self, found: Any) -> Any:
        return self._reader.get(found)

    def delete(self, found: list[Any]) -> None:
        self._maker.delete(found)

    def raw(self) -> Contender:
        return Raw(self._maker, self._reader)

    def close(self) -> None:
        self._maker.disconnect()
        self._reader.disconnect()


class Raw(Store):
    """The same two clients with bytes and buffers."""

    def __init__(self, maker: Any, reader: Any) -> None:
        self._maker = maker
        self._reader = reader

    def put(self, name: Any, value: Any) -> Any:
        self._maker.create_and_seal(name, value, b"")
        return name

    def get(self, found: Any) -> Any:
        return self._reader.get_buffers([found])[0]


if __name__ == "__main__":
    serve(Store(sys.argv[1]))
