"""Whether something holds up other threads of this process.

The one number that the tests assert about time beside Ctrl-C: the project promises that nothing
which a thread does in the store stalls the interpreter for more than 50 ms.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Ticker:
    """A thread that wants to run every millisecond, and notes when it could not."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)
        #: Seconds.
        self.longest_gap = 0.0

    def _tick(self) -> None:
        last = time.monotonic()
        while not self._stop.is_set():
            time.sleep(0.001)
            now = time.monotonic()
            self.longest_gap = max(self.longest_gap, now - last)
            last = now

    def __enter__(self) -> Ticker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


#: What the project promises: nothing that a thread does in the store holds up another for longer.
STALL_SECONDS_MAX = 0.050
#: A busy machine makes threads wait as well, but not every time.
ATTEMPTS = 8


def never_stalls(scene: Callable[[], None]) -> None:
    """Runs a scene while a ticker ticks; of several attempts one has to be without a stall."""
    gaps = []
    for _ in range(ATTEMPTS):
        with Ticker() as ticker:
            scene()
        gaps.append(ticker.longest_gap)
        if ticker.longest_gap <= STALL_SECONDS_MAX:
            return
    raise AssertionError(f"the ticker stalled in every attempt, for {gaps} seconds")
