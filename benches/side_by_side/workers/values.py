"""What the Python works put and get. The same for all contenders, and known to none of them."""

from __future__ import annotations

from typing import Any

#: Kinds of values.
KINDS = ("list", "bytes", "raw", "array", "frame")

#: Bytes of values that one work keeps at a time, at most, so that memory stays warm.
KEPT_BYTES = 64 << 20


def make(kind: str, size: int) -> Any:
    """A value of about `size` bytes (a list has a size of its own)."""
    if kind == "list":
        return [1, "two", 3.0, None, {"four": 5}]
    if kind in ("bytes", "raw"):
        return bytes(range(250)) * (size // 250) + bytes(size % 250)
    import numpy as np

    if kind == "array":
        return np.arange(size // 8, dtype=np.float64)
    import pandas as pd

    rows = size // 32
    return pd.DataFrame(
        {
            "time": np.arange(rows).astype("datetime64[ns]"),
            "price": np.linspace(0.0, 1.0, rows),
            "count": np.arange(rows, dtype=np.int64),
            "share": np.linspace(1.0, 2.0, rows),
        }
    )


def touch(value: Any) -> Any:
    """Looks at the first element, so that it is known to be there."""
    if hasattr(value, "iloc"):
        return value["count"].iloc[0]
    return value[0]


def together(size: int) -> int:
    """How many values are put before they are deleted, untimed."""
    return max(1, min(1000, KEPT_BYTES // max(size, 1)))
