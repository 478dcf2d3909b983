"""Writing large results straight into the store, so that they need no copy at all.

Each of these is an object that is being created: it is sealed when all went well and aborted when
something was raised, so nothing is ever left behind half written.
"""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pyarrow as pa

from plasma import _core, serialization
from plasma._core import ObjectID

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike


class Options(NamedTuple):
    """How an object is created: see `PlasmaClient.create`."""

    metadata: bytes
    evict: bool
    timeout_ms: int


class _InPlace:
    """An object that is created when a `with` block is entered, and ends with it."""

    #: The name of the object.
    object_id: ObjectID

    def __init__(
        self, core: _core.Client, data_size: int, object_id: ObjectID | None, options: Options
    ) -> None:
        self.object_id = ObjectID.from_random() if object_id is None else object_id
        self._core = core
        self._data_size = data_size
        self._options = options
        self._writer: _core.Writer | None = None

    def _create(self) -> _core.Writer:
        if self._writer is not None:
            raise RuntimeError(f"the block of object {self.object_id.hex()} was entered before")
        self._writer = self._core.create(self.object_id, self._data_size, *self._options, False)
        return self._writer

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._writer is None:
            raise RuntimeError(f"the block of object {self.object_id.hex()} was not entered")
        if kind is None:
            self._writer.seal()
            return
        # What the block has raised is what its user has to know. An object that cannot be aborted
        # here is gone with its store, or belongs to the process that this one was forked from.
        with contextlib.suppress(Exception):
            self._writer.abort()


class BufferInPlace(_InPlace):
    """Bytes, as a writable `pyarrow.Buffer`. Made by `PlasmaClient.create_buffer`."""

    def __enter__(self) -> pa.Buffer:
        return pa.py_buffer(self._create())


class ArrayInPlace(_InPlace):
    """A numpy array. Made by `PlasmaClient.create_array`."""

    def __init__(
        self,
        core: _core.Client,
        shape: int | tuple[int, ...],
        dtype: DTypeLike,
        order: Literal["C", "F"],
        object_id: ObjectID | None,
        options: Options,
    ) -> None:
        self._template = serialization.array_template(shape, dtype, order)
        self._array: np.ndarray[Any, Any] | None = None
        super().__init__(core, self._template.total_bytes, object_id, options)

    def __enter__(self) -> np.ndarray[Any, Any]:
        memory = memoryview(self._create())
        self._template.write_into(memory)
        self._array = self._template.array_over(memory)
        return self._array

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._array is not None:
            # So that a late assignment is an exception. (Through an older view it is a fault.)
            self._array.flags.writeable = False
        super().__exit__(kind, error, traceback)


def write_arrow(
    core: _core.Client, data: Any, object_id: ObjectID, threads: int, options: Options
) -> None:
    """Writes a table, or whatever has an Arrow stream, as an Arrow IPC stream of its exact size."""
    table = _as_table(data)
    size = pa.MockOutputStream()
    _write_stream(table, size)
    writer = core.create(object_id, size.size(), *options, False)
    try:
        sink = pa.FixedSizeBufferWriter(pa.py_buffer(writer))
        sink.set_memcopy_threads(threads)
        _write_stream(table, sink)
    except BaseException:
        with contextlib.suppress(Exception):
            writer.abort()
        raise
    writer.seal()


def _write_stream(table: pa.Table, sink: Any) -> None:
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)


def _as_table(data: Any) -> pa.Table:
    if isinstance(data, pa.Table):
        return data
    if isinstance(data, pa.RecordBatch):
        return pa.Table.from_batches([data])
    if isinstance(data, pa.RecordBatchReader):
        return data.read_all()
    if hasattr(data, "__arrow_c_stream__"):
        return pa.table(data)
    raise TypeError(
        f"put_arrow takes a table, a record batch or an Arrow stream, not {type(data).__name__}; "
        "put stores any Python object"
    )
