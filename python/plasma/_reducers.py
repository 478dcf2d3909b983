"""How values of numpy, pyarrow, polars and torch are taken apart into buffers.

Owns the reductions (pickle's word) of types whose own pickling copies, writes too much, or does
not exist. pandas needs none: its frames pickle as numpy and Arrow arrays. None of the libraries
is imported before a value of one of its types is seen.

Buffers are given as read-only, so that small arrays, which come back in memory of their own, are
as read-only as large ones, which lie in the store.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable, Mapping
from pickle import PickleBuffer
from typing import Any

from . import _restore

# Smaller buffers go into the pickle stream. A buffer outside costs an entry, padding up to the
# next multiple of 64, and two views; copying this little costs less.
INLINE_BYTES = 1024

# A piece of a larger Arrow array is cut out if that saves more than a fraction and a few bytes.
_WASTE_PART = 8
_WASTE_BYTES = 1024
_VIEW_WASTE_BYTES = 64 * 1024
_VIEW_INLINE_BYTES = 12

# numpy's kinds whose items are bytes and nothing else.
_FLAT_KINDS = frozenset("biufcmMSUV")

Reducer = Callable[[Any], Any]


class Reducers(dict[type, Reducer]):
    """A pickler's ``dispatch_table``: finds the reducer of a library's type when it is first
    asked for, and otherwise asks ``others``."""

    def __init__(self, others: Mapping[Any, Any]) -> None:
        super().__init__()
        self._others = others

    def __missing__(self, type_: type) -> Reducer:
        module = type_.__module__
        if isinstance(module, str):
            find = _LIBRARIES.get(module.partition(".")[0])
            if find is not None:
                reducer = find(type_)
                if reducer is not None:
                    self[type_] = reducer
                    return reducer
        found: Reducer = self._others[type_]
        return found


def _numpy_reducer(type_: type) -> Reducer | None:
    import numpy as np

    if type_ is np.ndarray or type_ is np.memmap:
        return _reduce_array
    if type_ is np.matrix or type_ is np.recarray:
        return _reduce_array_view
    if type_ is np.ma.MaskedArray:
        return _reduce_masked_array
    return None


def _reduce_array(array: Any) -> Any:
    """Unlike numpy's own: dates, and what is not contiguous, have a buffer as well. A memmap
    becomes an array: the file stays with the writer."""
    import numpy as np

    kind = array.dtype
    if kind.kind not in _FLAT_KINDS or kind.hasobject or not kind.itemsize:
        return array.__reduce_ex__(5)
    flags = array.flags
    order = "F" if flags.f_contiguous and not flags.c_contiguous else "C"
    # Not so for types that other packages define: their string means another type.
    name = kind.str if kind.isbuiltin == 1 else kind
    if array.nbytes < INLINE_BYTES:
        return _restore.array, (array.tobytes(order), name, array.shape, order)
    if not (flags.c_contiguous or flags.f_contiguous):
        array = np.ascontiguousarray(array)
    # Not over a memoryview: CPython before 3.12.2 and 3.11.8 crashes if it collects the memoryview
    # of a memoryview as garbage, as from the frames of an exception.
    try:
        data = PickleBuffer(_read_only(array.view()))
    except (TypeError, ValueError):
        # Python's buffers know no dates: show the bytes alone.
        flat = (array.T if order == "F" else array).reshape(-1).view(np.uint8)
        data = PickleBuffer(_read_only(flat))
    return _restore.array, (data, name, array.shape, order)


def _read_only(view: Any) -> Any:
    view.flags.writeable = False
    return view


def _reduce_array_view(array: Any) -> Any:
    import numpy as np

    return _restore.array_view, (np.asarray(array), type(array))


def _reduce_masked_array(array: Any) -> Any:
    import numpy as np

    mask = None if array.mask is np.ma.nomask else array.mask
    return _restore.masked_array, (array.data, mask, array.fill_value, bool(array.hardmask))


class PendingArray:
    """Pickles like an array whose bytes are in a buffer, before there are any bytes."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, order: str) -> None:
        if dtype.hasobject or dtype.kind not in _FLAT_KINDS or not dtype.itemsize:
            raise TypeError(f"an array of {dtype} cannot be written in place")
        self._rest = (dtype.str if dtype.isbuiltin == 1 else dtype, shape, order)

    def __reduce__(self) -> Any:
        return _restore.array, (PickleBuffer(b""), *self._rest)


def _pyarrow_reducer(type_: type) -> Reducer | None:
    import pyarrow as pa

    if issubclass(type_, pa.Array):
        return _reduce_arrow_array
    if type_ is pa.Tensor:
        return _reduce_arrow_tensor
    if type_ in (pa.SparseCOOTensor, pa.SparseCSRMatrix, pa.SparseCSCMatrix, pa.SparseCSFTensor):
        return _reduce_arrow_sparse
    return None


def _reduce_arrow_array(array: Any) -> Any:
    """pyarrow pickles the whole buffers of a slice: cut it out first."""
    import pyarrow as pa

    if _is_piece(array):
        try:
            array = pa.concat_arrays([array])
        except pa.ArrowException:
            pass  # Larger than it has to be, but right.
    if str(array.type) in ("string_view", "binary_view"):
        array = _without_unused_strings(array)
    function, arguments = array.__reduce__()[:2]
    return _restore.arrow_array, (function, arguments)


def _is_piece(array: Any) -> bool:
    """Whether the array has buffers that are much larger than what it needs of them."""
    import pyarrow as pa

    try:
        needed = array.nbytes
    except pa.ArrowException:
        # Before pyarrow 22 not known for views: these have 4 to 16 bytes a value.
        views = array.buffers()[1]
        return bool(array.offset or views and views.size > 16 * len(array) + _WASTE_BYTES)
    waste = array.get_total_buffer_size() - needed
    return bool(waste > needed // _WASTE_PART + _WASTE_BYTES)


def _without_unused_strings(array: Any) -> Any:
    """A string view array that refers to little of its data: with data of its own.

    Slices and filters keep all data of the array that they were made from, and pyarrow counts it
    as needed."""
    import pyarrow as pa

    _, views, *data = array.buffers()
    held = sum(buffer.size for buffer in data if buffer is not None)
    if held < _VIEW_WASTE_BYTES or views is None:
        return array
    try:
        import numpy as np
    except ImportError:
        return array
    words = np.frombuffer(views, np.int32, 4 * len(array), 16 * array.offset)
    lengths = words[::4]
    needed = int(lengths[lengths > _VIEW_INLINE_BYTES].sum(dtype=np.int64))
    if held <= needed + needed // _WASTE_PART + _VIEW_WASTE_BYTES:
        return array
    flat = pa.large_string() if str(array.type) == "string_view" else pa.large_binary()
    try:
        return array.cast(flat).cast(array.type)
    except pa.ArrowException:
        return array


def _reduce_arrow_tensor(tensor: Any) -> Any:
    return _restore.arrow_tensor, (tensor.to_numpy(), tensor.dim_names)


def _reduce_arrow_sparse(tensor: Any) -> Any:
    name = type(tensor).__name__
    return _restore.arrow_sparse, (name, tensor.to_numpy(), tensor.shape, tensor.dim_names)


def _polars_reducer(type_: type) -> Reducer | None:
    import polars as pl

    if type_ is pl.DataFrame:
        return _reduce_polars_frame
    if type_ is pl.Series:
        return _reduce_polars_series
    return None


def _reduce_polars_frame(frame: Any) -> Any:
    table = _arrow_table(frame)
    return frame.__reduce_ex__(5) if table is None else (_restore.polars_frame, (table,))


def _reduce_polars_series(series: Any) -> Any:
    table = _arrow_table(series.to_frame())
    return series.__reduce_ex__(5) if table is None else (_restore.polars_series, (table,))


def _arrow_table(frame: Any) -> Any:
    """The frame as an Arrow table that gives the same frame again, or None if none does
    (columns of Python objects)."""
    import polars as pl

    try:
        table = frame.to_arrow(compat_level=pl.CompatLevel.newest())
        empty = _restore.polars_frame(table.slice(0, 0))
    except Exception:
        return None
    return table if empty.schema == frame.schema and table.num_rows == frame.height else None


def _torch_reducer(type_: type) -> Reducer | None:
    import torch

    if type_ is torch.Tensor:
        return _reduce_torch_tensor
    if type_ is torch.nn.Parameter:
        return _reduce_torch_parameter
    return None


def _reduce_torch_tensor(tensor: Any) -> Any:
    """Dense tensors of the CPU. What others have (a graph, a device, sparse or quantized values,
    attributes, hooks) is for torch's own pickling, which copies."""
    import torch

    if not _is_plain_tensor(tensor) or tensor.grad_fn is not None:
        return tensor.__reduce_ex__(5)
    flat = tensor.detach().contiguous().reshape(-1)
    data: Any = b""
    if flat.numel():
        # numpy has no bfloat16: only bytes go through it.
        values = flat.view(torch.uint8).numpy()
        values.flags.writeable = False
        data = PickleBuffer(values)
    shape = tuple(int(length) for length in tensor.shape)
    return _restore.torch_tensor, (data, tensor.dtype, shape, tensor.requires_grad)


def _reduce_torch_parameter(parameter: Any) -> Any:
    if not _is_plain_tensor(parameter):
        return parameter.__reduce_ex__(5)
    return _restore.torch_parameter, (parameter.detach(), parameter.requires_grad)


def _is_plain_tensor(tensor: Any) -> bool:
    import torch

    return (
        tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
        and not (tensor.__dict__ or tensor._backward_hooks)
    )


_LIBRARIES: dict[str, Callable[[type], Reducer | None]] = {
    "numpy": _numpy_reducer,
    "pyarrow": _pyarrow_reducer,
    "polars": _polars_reducer,
    "torch": _torch_reducer,
}

REDUCERS = Reducers(copyreg.dispatch_table)
