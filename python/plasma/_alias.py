"""The names `pyarrow.plasma` and `pyarrow._plasma`, for programs that were written for them.

Names only: everything that they lead to is this package's own. `plasma.compat` is the command line
that does this for a program that cannot be changed.
"""

import importlib.util
import multiprocessing.spawn
import sys
import types
from collections.abc import Callable
from typing import Any

__all__ = ["install_as_pyarrow_plasma"]

# What the original's extension module had. Pickles of old programs name it, by `make_object_id`
# for an id and by `ObjectNotAvailable` for that.
_EXTENSION_NAMES = (
    "ObjectID",
    "ObjectNotAvailable",
    "PlasmaBuffer",
    "PlasmaClient",
    "PlasmaObjectExists",
    "PlasmaObjectNotFound",
    "PlasmaStoreFull",
    "connect",
)
_PLASMA_WAIT_TIMEOUT_MS = 2**30

_PREPARATION_KEY = "plasma_install_as_pyarrow_plasma"


def install_as_pyarrow_plasma() -> None:
    """Makes `pyarrow.plasma` and `pyarrow._plasma` mean this package, in this process.

    From then on `import pyarrow.plasma as plasma`, `from pyarrow import plasma`, `pa.plasma` and
    `import pyarrow._plasma` work, and pickles that name them load. `pa.serialize`,
    `pa.serialize_to`, `pa.deserialize`, `pa.SerializationContext` and
    `pa.default_serialization_context` are added if pyarrow has them no more; they write this
    package's own format.

    Child processes of `multiprocessing` have it as well, whichever way they start. Other children
    (a `subprocess` that runs Python, workers of libraries that start Python in their own way) have
    to call this themselves or be run with `python -m plasma.compat`.

    Calling it again does nothing.

    Raises:
        RuntimeError: this pyarrow still has a Plasma of its own. Its client cannot talk to this
            store, and which of the two a program means could not be seen any more.
    """
    import pyarrow

    import plasma

    if sys.modules.get("pyarrow.plasma") is plasma:
        return
    if importlib.util.find_spec("pyarrow._plasma") is not None:
        raise RuntimeError(
            f"pyarrow {pyarrow.__version__} still has its own pyarrow.plasma, which cannot talk to "
            "this store; install pyarrow 12 or newer"
        )
    extension = types.ModuleType("pyarrow._plasma", "The names of the original's extension module.")
    for name in _EXTENSION_NAMES:
        setattr(extension, name, getattr(plasma, name))
    extension.__dict__["make_object_id"] = plasma.ObjectID
    extension.__dict__["PLASMA_WAIT_TIMEOUT"] = _PLASMA_WAIT_TIMEOUT_MS
    _add_module("plasma", plasma)
    _add_module("_plasma", extension)

    from plasma import _pyarrow_serialization as serialization

    for name in serialization.__all__:
        if not hasattr(pyarrow, name):
            setattr(pyarrow, name, getattr(serialization, name))
    _tell_children()


def _add_module(name: str, module: types.ModuleType) -> None:
    import pyarrow

    sys.modules[f"pyarrow.{name}"] = module
    setattr(pyarrow, name, module)


class _Install:
    """Installs the names by being unpickled."""

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return install_as_pyarrow_plasma, ()


def _tell_children() -> None:
    """Has children that start afresh (spawn, forkserver) install the names as well.

    Such a child unpickles a dictionary first and then imports the main program, which already
    needs them. It ignores keys of the dictionary that it does not know.
    """
    original: Callable[..., dict[str, Any]] = multiprocessing.spawn.get_preparation_data

    def get_preparation_data(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return {_PREPARATION_KEY: _Install(), **original(*args, **kwargs)}

    multiprocessing.spawn.get_preparation_data = get_preparation_data
