"""The exceptions of the package, and nothing else.

They derive from pyarrow's, as those of ``pyarrow.plasma`` did, so that ``except`` clauses of old
programs keep catching them. Failures of the connection are plain ``OSError`` and have no class
here.
"""

from __future__ import annotations

import pyarrow.lib as _lib

__all__ = [
    "InvalidObjectError",
    "PlasmaObjectExists",
    "PlasmaObjectNotFound",
    "PlasmaStoreFull",
]


class PlasmaObjectExists(_lib.ArrowException):  # type: ignore[misc]
    """An object with this id is in the store already, sealed or not."""


class PlasmaObjectNotFound(_lib.ArrowException):  # type: ignore[misc]
    """The store has no object with this id, or none that can be used like this."""


class PlasmaStoreFull(_lib.ArrowException):  # type: ignore[misc]
    """The store has no room for the object, even after evicting all that nobody uses."""


class InvalidObjectError(_lib.ArrowInvalid):  # type: ignore[misc]
    """The bytes of an object are not a Python value that this version can read.

    They are damaged, were written by something else, or unpickling them failed; in the last case
    ``__cause__`` is the exception that unpickling raised. Also a ``ValueError``, because
    ``pyarrow.lib.ArrowInvalid`` is one.
    """
