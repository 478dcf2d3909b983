"""How a measuring program in Python is asked, and how it measures.

The lines are those that `../ours/src/main.rs` describes. A work is `put_KIND` or `get_KIND`, with
values from `values`; a contender says how it puts, gets and deletes one value, so the timing is the
same for all of them.
"""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from typing import Any

import values


class Contender(ABC):
    """Something that keeps values for other processes."""

    @abstractmethod
    def names(self, count: int) -> list[Any]:
        """Fresh names for values. Not timed."""

    @abstractmethod
    def put(self, name: Any, value: Any) -> Any:
        """Stores a value. What is returned is what others need to find it."""

    @abstractmethod
    def get(self, found: Any) -> Any:
        """The value for what `put` returned, as another client gets it."""

    @abstractmethod
    def delete(self, found: list[Any]) -> None:
        """Removes values. Not timed."""

    def prepare(self, value: Any) -> Any:
        """The form in which a user of this contender has a value at hand. Not timed."""
        return value

    def raw(self) -> Contender:
        """The same for bytes that are stored as they are."""
        raise ValueError("not known here")

    def close(self) -> None:  # noqa: B027 - most have started nothing
        """Ends what was started."""


def serve(contender: Contender) -> None:
    """Answers questions until there are no more."""
    for line in sys.stdin:
        work, count, size = line.split()
        try:
            samples = _work(contender, work, int(count), int(size))
            answer = " ".join(["ok", *map(str, samples)])
        except Exception as error:
            answer = f"no {type(error).__name__}: {error}".replace("\n", " ")
        print(answer, flush=True)
    contender.close()


def _work(contender: Contender, work: str, count: int, size: int) -> list[int]:
    verb, _, kind = work.partition("_")
    if verb not in ("put", "get") or kind not in values.KINDS:
        raise ValueError(f"{work} is not known here")
    if kind == "raw":
        contender = contender.raw()
    value = contender.prepare(values.make(kind, size))
    measure = _puts if verb == "put" else _gets
    return measure(contender, value, count, values.together(size))


def _puts(contender: Contender, value: Any, count: int, together: int) -> list[int]:
    samples: list[int] = []
    now = time.perf_counter_ns
    while len(samples) < count:
        stored = []
        for name in contender.names(min(together, count - len(samples))):
            start = now()
            found = contender.put(name, value)
            samples.append(now() - start)
            stored.append(found)
        contender.delete(stored)
    return samples


def _gets(contender: Contender, value: Any, count: int, together: int) -> list[int]:
    """Includes that the value is let go."""
    stored = [contender.put(name, value) for name in contender.names(min(together, count))]
    samples: list[int] = []
    now = time.perf_counter_ns
    for index in range(count):
        found = stored[index % len(stored)]
        start = now()
        got = contender.get(found)
        values.touch(got)
        del got
        samples.append(now() - start)
    contender.delete(stored)
    return samples
