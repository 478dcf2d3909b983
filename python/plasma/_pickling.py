"""Which pickler a value goes through: plain pickle, and cloudpickle where that is not enough.

Owns the choice and the split into stream and buffers. Knows nothing of the layout.

Plain pickle comes first, because it is ten times as fast. Cloudpickle is asked, if it is
installed, when plain pickle refuses (a lambda, a class defined in a function) and when the stream
refers to ``__main__``: a reader is usually another program, which has another ``__main__``.
Functions of ``__main__`` go by value then, and classes both by value and by name, see
``_restore.main_class``. If they cannot go by value (a method uses a lock), they go by name alone,
as with plain pickle.
"""

from __future__ import annotations

import functools
import pickle
from typing import Any, Protocol

from . import _restore
from ._context import SerializationContext
from ._reducers import INLINE_BYTES, REDUCERS, Reducers

PROTOCOL = 5

Chunk = bytes | bytearray
Dumped = tuple[list[Chunk], list[memoryview]]

# Pickle writes frames of 64 KiB and a little, and what is larger as it is. Only frames can hold
# references, and to search a gigabyte of somebody's bytes for them takes a while.
_FRAME_BYTES_MAX = 256 * 1024


class _Writer:
    """What pickle takes for a file. Keeps the chunks, as joining them would copy large ones."""

    __slots__ = ("write",)

    def __init__(self, chunks: list[Chunk]) -> None:
        self.write = chunks.append


class _PicklerClass(Protocol):
    def __call__(self, file: Any, protocol: int, *, buffer_callback: Any) -> Any: ...


def dump(value: object, context: SerializationContext | None) -> Dumped:
    """The chunks of the pickle stream, and the buffers that are not in it."""
    plain: Any = pickle.Pickler
    if context is not None:
        plain = functools.partial(_ContextPickler, context)
    try:
        dumped = _run(plain, REDUCERS, value)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        if not _refuses(error):
            raise
        cloud = _cloud_pickler()
        if cloud is None:
            raise pickle.PicklingError(
                f"{error}; plain pickle cannot store this {type(value).__name__}: "
                "with cloudpickle installed (pip install cloudpickle) lambdas, closures and "
                "classes defined in functions can be put"
            ) from error
        return _run(functools.partial(cloud, context), cloud.reducers, value)

    for chunk in dumped[0]:
        if len(chunk) < _FRAME_BYTES_MAX and b"__main__" in chunk:
            return _by_value(dumped, value, context)
    return dumped


def _by_value(by_name: Dumped, value: object, context: SerializationContext | None) -> Dumped:
    cloud = _cloud_pickler()
    if cloud is None:
        return by_name
    try:
        return _run(functools.partial(cloud, context), cloud.reducers, value)
    except Exception:  # By name it can be stored, and that is worth something.
        return by_name


def dump_out_of_band(value: object) -> Dumped:
    """As `dump`, with plain pickle and without buffers in the stream, however small."""
    chunks: list[Chunk] = []
    buffers: list[pickle.PickleBuffer] = []
    pickle.Pickler(_Writer(chunks), PROTOCOL, buffer_callback=buffers.append).dump(value)
    return chunks, [buffer.raw() for buffer in buffers]


def _run(pickler_class: _PicklerClass, reducers: Reducers, value: object) -> Dumped:
    chunks: list[Chunk] = []
    buffers: list[memoryview] = []

    def goes_in_band(buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:
            return True  # Not contiguous: pickle says so.
        if raw.nbytes < INLINE_BYTES:
            return True
        buffers.append(raw)
        return False

    pickler = pickler_class(_Writer(chunks), PROTOCOL, buffer_callback=goes_in_band)
    pickler.dispatch_table = reducers
    pickler.dump(value)
    return chunks, buffers


def _refuses(error: Exception) -> bool:
    """Whether it is pickle that failed, and not a method of the value."""
    text = str(error)
    return isinstance(error, pickle.PicklingError) or "pickle" in text or "local object" in text


class _ContextPickler(pickle.Pickler):
    """Plain pickle that asks a context about every value first."""

    def __init__(self, context: SerializationContext, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._context = context

    def reducer_override(self, value: Any) -> Any:
        return self._context.reduce(value)


@functools.cache
def _cloud_pickler_class() -> Any:
    import cloudpickle

    class CloudPickler(cloudpickle.Pickler):  # type: ignore[misc]
        """Cloudpickle with our reducers, a context, and classes of ``__main__`` by both ways."""

        reducers = Reducers(cloudpickle.Pickler.dispatch_table)

        def __init__(
            self, context: SerializationContext | None, *arguments: Any, **options: Any
        ) -> None:
            super().__init__(*arguments, **options)
            self._context = context

        def reducer_override(self, value: Any) -> Any:
            if self._context is not None:
                reduced = self._context.reduce(value)
                if reduced is not NotImplemented:
                    return reduced
            if isinstance(value, type) and value.__module__ == "__main__":
                reduced = _reduce_main_class(value, cloudpickle.dumps)
                if reduced is not None:
                    return reduced
            return super().reducer_override(value)

    return CloudPickler


def _cloud_pickler() -> Any:
    """The class above, or None without cloudpickle."""
    try:
        return _cloud_pickler_class()
    except ImportError:
        return None


def _reduce_main_class(type_: type, dumps: Any) -> Any:
    import sys

    name = type_.__qualname__
    if _restore.lookup(sys.modules["__main__"], name) is not type_:
        return None  # Defined in a function, or replaced since: by value is the only way.
    try:
        by_value = dumps(type_, PROTOCOL)
    except Exception:  # Its methods use what cannot be stored. Readers need the same program.
        by_value = None
    found = (_restore.PROCESS_TOKEN, _restore.main_path(), name, by_value)
    return _restore.main_class, found
