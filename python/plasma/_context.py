"""Types that users register by name, so that a reader may have another class for them.

Owns `SerializationContext`. Knows pickle's reductions, and nothing of layouts or buffers.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import BuiltinFunctionType, FunctionType
from typing import Any

from . import _restore

# Asked for by `_restore` while an object is read. A context variable, because unpickling passes
# nothing to the functions that it calls, and other threads read with other contexts.
_reading: ContextVar[SerializationContext | None] = ContextVar("plasma_reading", default=None)


class SerializationContext:
    """Which types are stored by a name, and how: the ``serialization_context`` of put and get.

    Writer and reader register the same ``type_id``, each with its own class if they like.
    Subclasses of a registered type are stored as that type, unless registered themselves.
    Exact ``list``, ``dict``, ``tuple``, ``set``, ``str``, ``bytes``, ``int``, ``float``, ``bool``
    and ``None`` are never asked for.
    """

    def __init__(self) -> None:
        self._ids: dict[type, str] = {}
        self._types: dict[str, type] = {}
        self._pickled: set[str] = set()
        self._serializers: dict[str, Callable[[Any], Any]] = {}
        self._deserializers: dict[str, Callable[[Any], Any]] = {}

    def register_type(
        self,
        type_: type,
        type_id: str,
        pickle: bool = False,
        custom_serializer: Callable[[Any], Any] | None = None,
        custom_deserializer: Callable[[Any], Any] | None = None,
    ) -> None:
        """Stores values of ``type_`` under the name ``type_id``; a later call replaces it.

        With ``custom_serializer`` its result is stored, itself any value, and
        ``custom_deserializer`` makes the value of it on reading. Without, the state of the value
        is stored and the reader's class gets it, without a call of ``__init__``. With ``pickle``
        the type is pickled as if it were not registered, and readers need no registration.
        """
        if not isinstance(type_, type):
            raise TypeError(f"type_ has to be a class, not {type_!r}")
        if not isinstance(type_id, str):
            raise TypeError(f"type_id has to be a str, not {type(type_id).__name__}")
        for name, function in (
            ("custom_serializer", custom_serializer),
            ("custom_deserializer", custom_deserializer),
        ):
            if function is not None and not callable(function):
                raise TypeError(f"{name} has to be callable, not {function!r}")
        self._ids[type_] = type_id
        self._types[type_id] = type_
        self._pickled.discard(type_id)
        self._serializers.pop(type_id, None)
        self._deserializers.pop(type_id, None)
        if pickle:
            self._pickled.add(type_id)
            return
        if custom_serializer is not None:
            self._serializers[type_id] = custom_serializer
        if custom_deserializer is not None:
            self._deserializers[type_id] = custom_deserializer

    def reduce(self, value: object) -> Any:
        """What pickle's ``reducer_override`` has to give for ``value``."""
        kind = type(value)
        if kind is type or kind is FunctionType or kind is BuiltinFunctionType:
            # Also how the functions of `_restore` are stored, whatever is registered.
            return NotImplemented
        for base in kind.__mro__:
            type_id = self._ids.get(base)
            if type_id is not None:
                break
        else:
            return NotImplemented
        if type_id in self._pickled:
            return NotImplemented
        serializer = self._serializers.get(type_id)
        if serializer is not None:
            return _restore.registered, (type_id, serializer(value))
        reduced = value.__reduce_ex__(5)
        if isinstance(reduced, tuple) and reduced[0] is copyreg.__newobj__:  # type: ignore[attr-defined]
            # Keep arguments and state, but name the class by its id.
            return (_restore.registered_state, (type_id, *reduced[1][1:]), *reduced[2:])
        return reduced

    def restore(self, type_id: str, stored: object) -> Any:
        """The value that ``custom_deserializer`` makes of ``stored``."""
        deserializer = self._deserializers.get(type_id)
        if deserializer is None:
            raise LookupError(
                f"the object was written with a custom_serializer for the type id {type_id!r}, "
                "and the serialization_context of this reader has no custom_deserializer for it"
            )
        return deserializer(stored)

    def restore_type(self, type_id: str) -> type:
        """The class that this reader has registered as ``type_id``."""
        found = self._types.get(type_id)
        if found is None:
            raise LookupError(
                f"the type id {type_id!r} is not registered in the serialization_context of "
                "this reader"
            )
        return found


def current(type_id: str) -> SerializationContext:
    """The context of the read that goes on in this thread."""
    context = _reading.get()
    if context is None:
        raise LookupError(
            f"the object holds a value of the registered type id {type_id!r}: "
            "read it with a serialization_context in which it is registered"
        )
    return context


@contextmanager
def reading_with(context: SerializationContext) -> Iterator[None]:
    """Makes ``context`` the one that `current` gives, in this thread, until the end."""
    token = _reading.set(context)
    try:
        yield
    finally:
        _reading.reset(token)
