"""`multiprocessing.shared_memory`: a named file of memory for each value, and no store.

Usage: on_shared_memory.py
Names have to be passed on by other means, and nothing is ever evicted. It can do the same job for
values that are bytes; an array is copied in and read in place, everything else is left out.
"""

from __future__ import annotations

from multiprocessing import resource_tracker, shared_memory
from typing import Any

from protocol import Contender, serve


class SharedMemory(Contender):
    """Creates and attaches; a value that was got keeps its attachment."""

    def names(self, count: int) -> list[Any]:
        return [None] * count

    def put(self, name: Any, value: Any) -> Any:
        view = memoryview(value).cast("B")
        memory = shared_memory.SharedMemory(create=True, size=len(view))
        memory.buf[: len(view)] = view
        name = memory.name
        memory.close()
        return name

    def get(self, found: Any) -> Any:
        return Attached(found)

    def delete(self, found: list[Any]) -> None:
        for name in found:
            memory = shared_memory.SharedMemory(name)
            memory.close()
            memory.unlink()


class Attached:
    """A value that was got. Detached when it is dropped."""

    def __init__(self, name: str) -> None:
        self._memory = shared_memory.SharedMemory(name)

    def __getitem__(self, index: int) -> int:
        return self._memory.buf[index]

    def __del__(self) -> None:
        self._memory.close()


def untrack() -> None:
    """An attachment registers the name with a helper process, as if it had been created. That is
    a round trip which is none of the job's, and a message at the end."""
    resource_tracker.register = lambda *_: None
    resource_tracker.unregister = lambda *_: None


if __name__ == "__main__":
    untrack()
    serve(SharedMemory())
