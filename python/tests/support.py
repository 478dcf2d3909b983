"""What the tests share and is no fixture."""

import os
import time
from collections.abc import Callable

PATIENCE_SECONDS = 10.0


HAS_DIRECTORY = "PLASMA_TEST_NO_DIRECTORY" not in os.environ
"""Whether the stores of the tests publish their objects, so that clients need not ask for them."""


def wait_until(predicate: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
    """Waits for a condition; fails if it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not predicate():
        assert time.monotonic() < deadline, f"not true after {seconds} s: {predicate}"
        time.sleep(0.005)
