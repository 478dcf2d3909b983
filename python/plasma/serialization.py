"""Any Python value to bytes and out-of-band buffers, and back without a copy.

Owns the layout of an object that holds a Python value. Knows nothing of the store or a client:
it computes sizes, gives out buffers, and reads memory that somebody else keeps. How values of
numpy, pandas, pyarrow, polars and torch are taken apart is in ``_reducers``, which pickler is
used in ``_pickling``, types that users register in ``_context``.

Layout, version 1. All integers are little-endian; ``n`` is the number of buffers:

======================  ==============  ===========================================================
offset                  bytes           what
======================  ==============  ===========================================================
0                       8               magic: ``93 50 4C 41 53 4D 41 0A``
8                       4               version, u32: 1
12                      4               ``n``, u32
16                      8               offset of the pickle stream, u64
24                      8               length of the pickle stream in bytes, u64
32                      16 ``n``        per buffer its offset and its length in bytes, u64 each
at its offset           its length      the pickle stream, protocol 5
at their offsets        their lengths   the buffers, in the order in which the stream takes them
======================  ==============  ===========================================================

Offsets count from the start of the object. The stream begins where the table ends. Each buffer
begins at the first multiple of 64 after what is before it, and so does the object in the memory
of the store; the object ends with its last part. Readers check all of that, as a cheap test for
damage. Bytes between parts are zero, so that equal streams and buffers make equal objects;
readers do not look at them. ``LAYOUT.md`` says the same for programmers in other languages.

The stream is a pickle: reading an object runs code that its writer chose. The store is for
processes of one user that trust each other.
"""

from __future__ import annotations

import pickle
import struct
from operator import index
from typing import TYPE_CHECKING, Any

from ._context import SerializationContext, reading_with
from ._pickling import Chunk, dump, dump_out_of_band
from .errors import InvalidObjectError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike
    from typing_extensions import Buffer

__all__ = [
    "ArrayTemplate",
    "InvalidObjectError",
    "SerializationContext",
    "Serialized",
    "array_template",
    "deserialize",
    "is_serialized",
    "serialize",
]

# The first byte opens no pickle (STACK_GLOBAL needs a stack) and no Arrow stream (FF); the line
# feed shows when somebody has moved the object through a text mode.
MAGIC = b"\x93PLASMA\n"
VERSION = 1
ALIGNMENT = 64

_HEADER = struct.Struct("<8sIIQQ")
_ENTRY_BYTES = 16
_ARROW_STREAM = b"\xff\xff\xff\xff"
_PADDING = bytes(ALIGNMENT)
_STOP = pickle.STOP[0]
# Chunks of a pickle stream up to here are joined with the header: one small copy is cheaper than
# many parts.
_JOIN_BYTES = 64 * 1024

Part = tuple[int, memoryview | bytes]


class Serialized:
    """A value, ready to be written. What `serialize` gives.

    Refers to the memory of the value's arrays: write it before they change. ``total_bytes`` is
    the size of the object in bytes.
    """

    __slots__ = ("_parts", "total_bytes")

    total_bytes: int

    def __init__(self, chunks: list[Chunk], buffers: list[memoryview]) -> None:
        pickle_bytes = sum(map(len, chunks))
        offset = _HEADER.size + _ENTRY_BYTES * len(buffers)
        header = _HEADER.pack(MAGIC, VERSION, len(buffers), offset, pickle_bytes)
        end = offset + pickle_bytes
        if not buffers and end <= _JOIN_BYTES:
            self._parts: list[Part] = [(0, b"".join((header, *chunks)))]
            self.total_bytes = end
            return

        table: list[int] = []
        pieces: list[bytes | memoryview] = [header, b""]
        pieces.extend(memoryview(c) if isinstance(c, bytearray) else c for c in chunks)
        for buffer in buffers:
            padding = -end % ALIGNMENT
            table += (end + padding, buffer.nbytes)
            if padding:
                pieces.append(_PADDING[:padding])
            pieces.append(buffer)
            end += padding + buffer.nbytes
        pieces[1] = struct.pack(f"<{len(table)}Q", *table)
        self._parts = _join_small(pieces)
        self.total_bytes = end

    def parts(self) -> list[Part]:
        """``(offset, bytes)`` in rising order: every byte of the object exactly once.

        Each is C-contiguous, one-dimensional and of unsigned bytes. Padding is among them: the
        memory of the store may have belonged to another object before.
        """
        return list(self._parts)

    def write_into(self, target: memoryview) -> None:
        """Copies the object into ``target``, in this thread.

        ``target`` is writable, C-contiguous and has exactly ``total_bytes`` bytes, else
        ``ValueError`` (``TypeError`` if it is read-only).
        """
        _write(self._parts, self.total_bytes, target)


class ArrayTemplate:
    """An object for one ndarray whose bytes are not there yet. What `array_template` gives.

    ``total_bytes`` is the size of the object, ``offset`` and ``nbytes`` say where in it the bytes
    of the array go; ``parts`` and ``write_into`` are as in `Serialized`, but without these.
    ``shape``, ``dtype`` and ``order`` are the array's.
    """

    __slots__ = ("_head", "dtype", "nbytes", "offset", "order", "shape", "total_bytes")

    def __init__(
        self, head: bytes, nbytes: int, shape: tuple[int, ...], dtype: np.dtype[Any], order: str
    ) -> None:
        self._head = head
        self.offset: int = len(head)
        self.nbytes: int = nbytes
        self.total_bytes: int = len(head) + nbytes
        self.shape: tuple[int, ...] = shape
        self.dtype: np.dtype[Any] = dtype
        self.order: str = order

    def parts(self) -> list[Part]:
        """All of the object but the array's bytes."""
        return [(0, self._head)]

    def write_into(self, target: memoryview) -> None:
        """Copies all of the object but the array's bytes into ``target``, which has
        ``total_bytes`` bytes and is writable, else ``ValueError`` or ``TypeError``."""
        _write(self.parts(), self.total_bytes, target)

    def array_over(self, target: Buffer) -> np.ndarray[Any, Any]:
        """The array in the memory of ``target``, which has ``total_bytes`` bytes and is kept
        alive by it; writable if ``target`` is."""
        import numpy as np

        view = _as_bytes(target)
        _check_target(view, self.total_bytes)
        part = view[self.offset :]
        array: np.ndarray[Any, Any] = np.ndarray(
            self.shape, self.dtype, buffer=part, order=_order(self.order)
        )
        return array


def serialize(value: object, context: SerializationContext | None = None) -> Serialized:
    """Takes any value apart into the parts of an object, without copying large buffers.

    Values that plain pickle refuses, and those that refer to ``__main__``, go through
    cloudpickle if it is installed. ``context`` has types that the user registered. What pickling
    raises is raised as it is.
    """
    return Serialized(*dump(value, context))


def deserialize(data: Buffer, context: SerializationContext | None = None) -> Any:
    """The value that `serialize` took apart, over the memory of ``data``.

    ``data`` is anything C-contiguous with the buffer protocol. Arrays, columns and tensors in the
    value refer to its memory and keep it alive; they are read-only. (``bytes`` and ``str`` are
    copies.)

    Raises `InvalidObjectError` if this is not such an object or if unpickling fails.
    """
    view = _as_bytes(data)
    pickled, buffers = _read_layout(view)
    try:
        if context is None:
            return pickle.loads(pickled, buffers=buffers)
        with reading_with(context):
            return pickle.loads(pickled, buffers=buffers)
    except MemoryError:
        raise
    except Exception as error:
        raise InvalidObjectError(
            f"this object of {view.nbytes} bytes cannot be unpickled "
            f"({pickled.nbytes} bytes of pickle, {len(buffers)} buffers): "
            f"{type(error).__name__}: {error}"
        ) from error


def is_serialized(data: Buffer) -> bool:
    """Whether ``data`` begins like an object of this module, of whichever version."""
    return _as_bytes(data)[: len(MAGIC)] == MAGIC


def array_template(
    shape: int | tuple[int, ...], dtype: DTypeLike, order: str = "C"
) -> ArrayTemplate:
    """The object for an ndarray that is yet to be filled in, in place.

    ``order`` is ``"C"`` or ``"F"``. Raises ``ValueError`` for a negative dimension or another
    order, ``TypeError`` for a dtype that holds Python objects.
    """
    import numpy as np

    from ._reducers import PendingArray

    lengths = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
    lengths = tuple(index(length) for length in lengths)
    kind = np.dtype(dtype)
    if any(length < 0 for length in lengths):
        raise ValueError(f"an array cannot have the shape {lengths}")
    pending = PendingArray(lengths, kind, _order(order))
    nbytes = kind.itemsize
    for length in lengths:
        nbytes *= length

    pickled = b"".join(dump_out_of_band(pending)[0])
    offset = _HEADER.size + _ENTRY_BYTES
    start = offset + len(pickled)
    start += -start % ALIGNMENT
    header = _HEADER.pack(MAGIC, VERSION, 1, offset, len(pickled))
    head = header + struct.pack("<2Q", start, nbytes) + pickled
    return ArrayTemplate(head.ljust(start, b"\0"), nbytes, lengths, kind, order)


def _read_layout(view: memoryview) -> tuple[memoryview, list[memoryview]]:
    """The pickle stream and the buffers in ``view``, every number of the header checked."""
    size = view.nbytes
    if size < _HEADER.size or view[: len(MAGIC)] != MAGIC:
        raise InvalidObjectError(_foreign(view))
    _, version, count, offset, length = _HEADER.unpack_from(view)
    if version != VERSION:
        raise InvalidObjectError(
            f"this object of {size} bytes has version {version} of the layout, and this package "
            f"reads version {VERSION}: it was written by another version of plasma-store"
        )
    table_end = _HEADER.size + _ENTRY_BYTES * count
    if table_end > size:
        raise InvalidObjectError(
            f"damaged object: a table of {count} buffers does not fit into its {size} bytes"
        )
    # Python's integers do not overflow, so that these sums are what they seem.
    end = offset + length
    if offset != table_end or end > size:
        raise InvalidObjectError(
            f"damaged object: a pickle of {length} bytes at {offset} does not lie between the "
            f"table, which ends at {table_end}, and the end of its {size} bytes"
        )
    pickled = view[offset:end]
    if not length or pickled[-1] != _STOP:
        raise InvalidObjectError(
            f"damaged object: its pickle of {length} bytes at {offset} does not end with STOP"
        )
    buffers: list[memoryview] = []
    if count:
        table = struct.unpack_from(f"<{2 * count}Q", view, _HEADER.size)
        for start, length in zip(table[::2], table[1::2], strict=True):
            due = end + -end % ALIGNMENT
            if start != due or start + length > size:
                raise InvalidObjectError(
                    f"damaged object: buffer {len(buffers)} of {count} has {length} bytes at "
                    f"{start}, and not at {due} and within the object's {size} bytes"
                )
            end = start + length
            buffers.append(view[start:end])
    if end != size:
        raise InvalidObjectError(f"damaged object: its parts end at {end}, and it has {size} bytes")
    return pickled, buffers


def _foreign(view: memoryview) -> str:
    """What to say about bytes that do not begin like an object of ours."""
    size = view.nbytes
    begin = bytes(view[: len(MAGIC)])
    if begin == MAGIC:
        return f"damaged object: it ends within its header, after {size} bytes"
    if begin.startswith(_ARROW_STREAM):
        return (
            f"this object of {size} bytes is an Arrow IPC stream and not a Python value: "
            "read it with get_arrow, or with get_buffers and pyarrow.ipc.open_stream"
        )
    shown = f"begins with {begin.hex(' ')}" if size else "is empty"
    return f"this object of {size} bytes was not written by put ({shown}): read it with get_buffers"


def _as_bytes(data: Buffer) -> memoryview:
    """A one-dimensional view of unsigned bytes, as read-only as ``data`` is."""
    view = memoryview(data)
    if view.format == "B" and view.ndim == 1:
        if not view.contiguous:
            raise TypeError("the bytes of an object have to be contiguous")
        return view
    if view.nbytes == 0:
        # Python does not cast a view with a zero in its shape.
        return memoryview(b"")
    return view.cast("B")


def _write(parts: list[Part], total_bytes: int, target: memoryview) -> None:
    view = _as_bytes(target)
    _check_target(view, total_bytes)
    for offset, part in parts:
        view[offset : offset + len(part)] = part


def _check_target(view: memoryview, total_bytes: int) -> None:
    if view.nbytes != total_bytes:
        raise ValueError(f"the object has {total_bytes} bytes, and its place {view.nbytes}")


def _join_small(pieces: list[bytes | memoryview]) -> list[Part]:
    """Parts with their offsets; neighbours that are small become one."""
    parts: list[Part] = []
    small: list[bytes | memoryview] = []
    offset = start = 0
    for piece in pieces:
        size = len(piece)
        if size >= _JOIN_BYTES:
            if small:
                parts.append((start, b"".join(small)))
                small = []
            parts.append((offset, piece))
            start = offset + size
        else:
            small.append(piece)
        offset += size
    if small:
        parts.append((start, b"".join(small)))
    return [part for part in parts if len(part[1])]


def _order(order: str) -> Any:
    if order not in ("C", "F"):
        raise ValueError(f"the order of an array is 'C' or 'F', not {order!r}")
    return order
