"""`pa.serialize` and what belongs to it, for old programs whose pyarrow has lost them.

The calls are pyarrow's, what they write is this package's format (`plasma.serialization`). Bytes
that pyarrow itself once wrote cannot be read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from plasma import serialization
from plasma.serialization import SerializationContext

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "SerializationContext",
    "SerializedPyObject",
    "default_serialization_context",
    "deserialize",
    "serialize",
    "serialize_to",
]


class SerializedPyObject:
    """A value that is ready to be written. Refers to the memory of the value's arrays."""

    def __init__(self, value: object, context: SerializationContext | None) -> None:
        self._value = serialization.serialize(value, context)
        self._context = context

    @property
    def total_bytes(self) -> int:
        """Bytes that `write_to` writes, and of `to_buffer`."""
        return self._value.total_bytes

    def to_buffer(self, nthreads: int = 1) -> pa.Buffer:
        """All of it in memory of its own. ``nthreads`` is taken and changes nothing."""
        buffer = pa.allocate_buffer(self.total_bytes)
        self._value.write_into(memoryview(buffer).cast("B"))
        return buffer

    def write_to(self, sink: Any) -> None:
        """Writes it to a file of pyarrow or Python, such as `pa.FixedSizeBufferWriter`."""
        for _, part in self._value.parts():
            sink.write(part)

    def deserialize(self, context: SerializationContext | None = None) -> Any:
        """The value again, as a reader gets it."""
        return deserialize(self.to_buffer(), context or self._context)


def default_serialization_context() -> SerializationContext:
    """A context in which nothing is registered: what was special to pyarrow's is built in."""
    return SerializationContext()


def serialize(value: object, context: SerializationContext | None = None) -> SerializedPyObject:
    """`pa.serialize`. Raises what pickling the value raises."""
    return SerializedPyObject(value, context)


def serialize_to(value: object, sink: Any, context: SerializationContext | None = None) -> None:
    """`pa.serialize_to`: serializes and writes in one call."""
    serialize(value, context).write_to(sink)


def deserialize(obj: Buffer, context: SerializationContext | None = None) -> Any:
    """`pa.deserialize`: the value, whose arrays refer to the memory of ``obj``.

    Raises `plasma.serialization.InvalidObjectError` if `serialize` has not written it.
    """
    return serialization.deserialize(obj, context)
