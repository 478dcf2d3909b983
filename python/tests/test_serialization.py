"""Values to objects and back, without a store: ``plasma.serialization``."""

from __future__ import annotations

import pytest
from plasma.serialization import InvalidObjectError, deserialize, serialize


def written(value: object) -> bytes:
    """The bytes that the object of ``value`` has in the store."""
    serialized = serialize(value)
    memory = bytearray(b"\xaa" * serialized.total_bytes)
    serialized.write_into(memoryview(memory))
    return bytes(memory)


@pytest.mark.parametrize("value", [None, 1, 2**200, "text", b"bytes", [1, {"a": (2.5, True)}]])
def test_plain_values_come_back(value: object) -> None:
    result = deserialize(written(value))
    assert result == value
    assert type(result) is type(value)


def test_an_object_that_is_cut_short_is_invalid() -> None:
    data = written([1, 2, 3])
    for size in range(len(data)):
        with pytest.raises(InvalidObjectError):
            deserialize(data[:size])
