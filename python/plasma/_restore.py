"""The functions that pickle streams of objects call to put values together again.

Their names and parameters are part of the layout: objects and other versions of the package refer
to them. Add, do not rename. How values are taken apart is in ``_reducers``, ``_context`` and
``_pickling``.

``data`` is what the unpickler gives for a buffer: a read-only view of the object's memory, or
``bytes`` if it was so small that it was put into the stream.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

# Tells whether an object's writer was this process, or one forked from the same: then `__main__`
# is the same program even if it comes from no file (a notebook, `python -c`).
PROCESS_TOKEN = os.urandom(8)

_torch_warnings = threading.Lock()


def array(data: Any, dtype: Any, shape: tuple[int, ...], order: Any) -> Any:
    """A numpy.ndarray over ``data``."""
    import numpy as np

    kind = np.dtype(dtype)
    if kind.hasobject:
        raise ValueError(f"an array of {kind} cannot lie in a buffer")
    return np.ndarray(shape, kind, buffer=data, order=order)


def array_view(base: Any, type_: Any) -> Any:
    """``base``, a numpy.ndarray, as one of numpy's subclasses."""
    return base.view(type_)


def masked_array(data: Any, mask: Any, fill_value: Any, hard_mask: bool) -> Any:
    """A numpy.ma.MaskedArray over two arrays; ``mask`` may be None."""
    import numpy as np

    given = np.ma.nomask if mask is None else mask
    # The types of numpy 2.2, the last one for Python 3.10, do not know this constructor.
    masked: Any = np.ma.MaskedArray
    return masked(data, mask=given, fill_value=fill_value, hard_mask=hard_mask, copy=False)


def arrow_array(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """A pyarrow.Array, as pyarrow's own pickling rebuilds it, with its lengths checked: pyarrow
    would read outside of a buffer that is too short for them."""
    result = function(*arguments)
    result.validate()
    return result


def arrow_tensor(values: Any, dim_names: Any) -> Any:
    """A pyarrow.Tensor over a numpy.ndarray."""
    import pyarrow as pa

    return pa.Tensor.from_numpy(values, dim_names=dim_names)


def arrow_sparse(name: str, parts: tuple[Any, ...], shape: Any, dim_names: Any, **axes: Any) -> Any:
    """One of pyarrow's sparse tensors over numpy arrays; ``name`` is the name of its class."""
    import pyarrow as pa

    return getattr(pa, name).from_numpy(*parts, shape, dim_names=dim_names, **axes)


def polars_frame(table: Any) -> Any:
    """A polars.DataFrame over the columns of a pyarrow.Table."""
    import polars as pl

    return pl.from_arrow(table, rechunk=False)


def polars_series(table: Any) -> Any:
    """A polars.Series over the only column of a pyarrow.Table."""
    return polars_frame(table).to_series()


def torch_tensor(data: Any, dtype: Any, shape: tuple[int, ...], requires_grad: bool) -> Any:
    """A torch.Tensor on the CPU over ``data``.

    torch knows no read-only memory: writing to this tensor in place ends the process with a
    fault if ``data`` is memory of the store. Use ``tensor.clone()`` to have one to write to.
    Small ones have memory of their own.
    """
    import torch

    if isinstance(data, bytes):
        # A small one gets memory of its own: bytes belong to Python, which shares some of them.
        data = bytearray(data)
    if not len(data):
        tensor = torch.empty(shape, dtype=dtype)
    else:
        # Filters belong to the process: two of us must not restore them in the wrong order.
        with _torch_warnings, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            tensor = torch.frombuffer(data, dtype=dtype).reshape(shape)
    return tensor.requires_grad_() if requires_grad else tensor


def torch_parameter(tensor: Any, requires_grad: bool) -> Any:
    """A torch.nn.Parameter over a tensor."""
    import torch

    return torch.nn.Parameter(tensor, requires_grad)


def registered(type_id: str, stored: Any) -> Any:
    """A value of a type that was registered with a serializer of its own."""
    from . import _context

    return _context.current(type_id).restore(type_id, stored)


def registered_state(type_id: str, *arguments: Any) -> Any:
    """A value of a registered type; the unpickler gives it its state afterwards."""
    from . import _context

    type_ = _context.current(type_id).restore_type(type_id)
    return type_.__new__(type_, *arguments)


def main_class(token: bytes, path: str | None, name: str, by_value: bytes | None) -> Any:
    """A class of the writer's ``__main__``.

    If this process runs the same program it is the class of that name here, so that ``isinstance``
    and ``==`` hold. Otherwise it is made from the copy ``by_value``.
    """
    if token == PROCESS_TOKEN or (path is not None and path == main_path()):
        found = lookup(sys.modules.get("__main__"), name)
        if isinstance(found, type):
            return found
    if by_value is None:
        raise AttributeError(
            f"the class {name} is known only to the program that wrote the object "
            f"({path or 'which comes from no file'}): move it into a module that both import"
        )
    return pickle.loads(by_value)


def main_path() -> str | None:
    """Where the running program comes from, if from a file."""
    path = getattr(sys.modules.get("__main__"), "__file__", None)
    return os.path.realpath(path) if isinstance(path, str) else None


def lookup(module: object, name: str) -> object:
    """What the dotted ``name`` means in ``module``, or None."""
    found = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return found
