"""Values to objects and back, without a store: ``plasma.serialization``.

Memory is what a reader of the store has: pages that the kernel does not let it write to. What
comes back has to lie in them.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import mmap
import os
import pickle
import random
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from plasma import _pickling
from plasma._reducers import INLINE_BYTES
from plasma.serialization import (
    InvalidObjectError,
    SerializationContext,
    array_template,
    deserialize,
    is_serialized,
    serialize,
)

HEADER = 32
ITEMS = 5000


class Stored:
    """An object in read-only memory that begins at a multiple of 64."""

    def __init__(self, value: object, context: SerializationContext | None = None) -> None:
        data = written(value, context)
        descriptor = os.memfd_create("object")
        try:
            os.write(descriptor, data)
            self.memory = mmap.mmap(descriptor, len(data), prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
        self.size = len(data)
        self.address: int = pa.py_buffer(self.memory).address
        assert self.address % 64 == 0

    def read(self, context: SerializationContext | None = None) -> Any:
        return deserialize(self.memory, context)

    def assert_has(self, array: Any) -> None:
        """The bytes of this ndarray or pyarrow.Buffer lie in the object, at a multiple of 64."""
        if isinstance(array, np.ndarray):
            begin, size = array.__array_interface__["data"][0], array.nbytes
            assert not array.flags.writeable
        else:
            begin, size = array.address, array.size
            assert not array.is_mutable
        assert self.address <= begin and begin + size <= self.address + self.size
        assert (begin - self.address) % 64 == 0


def written(value: object, context: SerializationContext | None = None) -> bytes:
    """The object of ``value``, in memory in which something else has been before."""
    serialized = serialize(value, context)
    memory = bytearray(b"\xaa" * serialized.total_bytes)
    serialized.write_into(memoryview(memory))
    return bytes(memory)


def round_trip(value: object) -> Any:
    return deserialize(written(value))


# What Python itself has.


class Named(collections.namedtuple("Named", ["x", "y"])):
    pass


@dataclasses.dataclass
class Point:
    x: object
    y: object = 2


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -1,
        2**200,
        1.5,
        1j,
        "",
        "text \N{SNOWMAN}",
        b"",
        b"bytes" * 100_000,
        bytearray(b"more" * 100_000),
        "long" * 100_000,
        [1, 2, 3],
        (),
        {"a": 1.5, "b": [None, {1, 2}, frozenset({3})]},
        Named(1, 2),
        Point(1),
        Colour.RED,
        "__main__",
        len,
        round_trip,
        Point,
    ],
    ids=lambda value: repr(value)[:20],
)
def test_plain_values_come_back(value: object) -> None:
    result = round_trip(value)
    assert result == value
    assert type(result) is type(value)


def test_a_value_in_a_hundred_lists_comes_back() -> None:
    value: object = np.arange(ITEMS)
    for _ in range(100):
        value = [value]
    result = round_trip(value)
    for _ in range(100):
        (result,) = result
    assert np.array_equal(result, np.arange(ITEMS))


def test_a_list_that_contains_itself_comes_back() -> None:
    value: list[object] = [1]
    value.append(value)
    result = round_trip(value)
    assert result[0] == 1 and result[1] is result


# The object.


def test_parts_are_every_byte_of_the_object_once() -> None:
    value = [np.arange(n, dtype=np.uint8) for n in (1025, 5000, 70_001, 200_000)]
    value_with_bytes = [*value, b"x" * 300_000, bytearray(300_000)]
    inputs: list[object] = [[], value, value_with_bytes, [[]] * 100_000]
    for given in inputs:
        serialized = serialize(given)
        end = 0
        for offset, part in serialized.parts():
            assert offset == end
            view = memoryview(part)
            assert view.c_contiguous and view.ndim == 1 and view.format == "B"
            assert view.nbytes > 0
            end += view.nbytes
        assert end == serialized.total_bytes
        assert b"".join(bytes(part) for _, part in serialized.parts()) == written(given)


def test_large_parts_are_the_memory_of_the_value() -> None:
    array = np.arange(100_000)
    serialized = serialize(array)
    shared = [p for _, p in serialized.parts() if np.shares_memory(np.frombuffer(p, "u1"), array)]
    assert [len(part) for part in shared] == [array.nbytes]


def test_large_strings_of_bytes_are_not_copied_to_be_written() -> None:
    for value in (b"x" * 1_000_000, bytearray(1_000_000)):
        parts = [part for _, part in serialize([value]).parts()]
        assert any(memoryview(part).obj is value for part in parts)


def test_the_header_is_as_documented() -> None:
    data = written([np.arange(1000), np.ones(1000)])
    assert data[:8] == bytes.fromhex("93 50 4c 41 53 4d 41 0a")
    version, count, offset, length = struct.unpack_from("<IIQQ", data, 8)
    assert (version, count, offset) == (1, 2, HEADER + 2 * 16)
    (first, first_length), (second, second_length) = struct.iter_unpack("<QQ", data[32:64])
    assert first == -(-(offset + length) // 64) * 64
    assert second == -(-(first + first_length) // 64) * 64
    assert len(data) == second + second_length
    assert np.array_equal(
        np.frombuffer(data[first:second][:first_length]), np.arange(1000).view(float)
    )
    loaded = pickle.loads(data[offset : offset + length], buffers=[bytes(8000), data[second:]])
    assert np.array_equal(loaded[1], np.ones(1000))


def test_padding_is_zero_so_that_equal_values_make_equal_objects() -> None:
    value = [np.ones(ITEMS + n, np.uint8) for n in range(5)]
    assert written(value) == written([array.copy() for array in value])
    data = written(value)
    _, count, offset, length = struct.unpack_from("<IIQQ", data, 8)
    end = offset + length
    for start, size in struct.iter_unpack("<QQ", data[HEADER : HEADER + 16 * count]):
        assert data[end:start] == bytes(start - end)
        end = start + size


def test_an_array_that_is_in_a_value_twice_is_stored_once() -> None:
    array = np.arange(ITEMS)
    stored = Stored({"a": array, "b": [array, array]})
    assert array.nbytes < stored.size < array.nbytes + 1000
    result = stored.read()
    assert result["a"] is result["b"][0] is result["b"][1]


def test_write_into_wants_exactly_the_place_of_the_object() -> None:
    serialized = serialize([1])
    for size in (serialized.total_bytes - 1, serialized.total_bytes + 1):
        with pytest.raises(ValueError, match=f"{serialized.total_bytes}.*{size}"):
            serialized.write_into(memoryview(bytearray(size)))
    with pytest.raises(TypeError):
        serialized.write_into(memoryview(bytes(serialized.total_bytes)))


def test_the_result_keeps_the_memory() -> None:
    class Memory(bytearray):
        pass

    memory = Memory(written([np.arange(ITEMS)]))
    gone = weakref.ref(memory)
    (array,) = deserialize(memoryview(memory))
    del memory
    assert gone() is not None
    assert np.array_equal(array, np.arange(ITEMS))
    del array
    assert gone() is None


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview, pa.py_buffer, np.frombuffer])
def test_any_buffer_can_be_read(wrap: Callable[..., Any]) -> None:
    data = written([np.arange(ITEMS)])
    given: Any = np.frombuffer(data, np.int8) if wrap is np.frombuffer else wrap(data)
    assert np.array_equal(deserialize(given)[0], np.arange(ITEMS))
    assert is_serialized(given)


# numpy.

values = np.random.default_rng(1).random(ITEMS)
pairs = np.dtype([("a", "<i4"), ("b", "f8"), ("c", "S3")])
ARRAYS = {
    "float64": values,
    "F order": np.asfortranarray(values.reshape(50, 100)),
    "every second": values[::2],
    "reversed": values[::-1],
    "axes exchanged": values.reshape(10, 50, 10).transpose(1, 0, 2),
    "broadcast": np.broadcast_to(values[:3], (500, 3)),
    "structured": np.ones(ITEMS, pairs),
    "aligned": np.ones(ITEMS, np.dtype([("a", "i1"), ("b", "f8")], align=True)),
    "with dates": np.ones(ITEMS, [("a", "M8[s]"), ("b", "i1")]),
    "dates in F order": np.asfortranarray(np.arange(ITEMS).astype("M8[s]").reshape(50, 100)),
    "datetime64": np.arange(ITEMS).astype("M8[ns]"),
    "timedelta64": np.arange(ITEMS).astype("m8[s]"),
    "big endian": np.arange(ITEMS, dtype=">i8"),
    "bool": values > 0.5,
    "complex": values.astype(complex),
    "float16": values.astype("f2"),
    "long double": values.astype(np.longdouble),
    "unicode": np.array(["abc"] * ITEMS),
    "bytes": np.array([b"abc"] * ITEMS),
    "void": np.zeros(ITEMS, "V5"),
    "matrix": values.reshape(50, 100).view(np.matrix),
    "recarray": np.rec.array(np.ones(ITEMS, pairs)),
}
SMALL_ARRAYS = {
    "0-d": np.array(5.0),
    "small": np.arange(3),
    "small F": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "small dates": np.arange(3).astype("M8[D]"),
    "empty": np.zeros((0, 3)),
    "empty F": np.zeros((3, 0), order="F"),
    "no bytes": np.zeros(3, "V0"),
    "objects": np.array([1, "a", None], dtype=object),
}


@pytest.mark.parametrize("array", (ARRAYS | SMALL_ARRAYS).values(), ids=ARRAYS | SMALL_ARRAYS)
def test_arrays_come_back(array: Any) -> None:
    result = round_trip(array)
    assert type(result) is type(array)
    assert (result.dtype, result.shape) == (array.dtype, array.shape)
    if array.dtype.itemsize:
        assert np.array_equal(result, array)
    if array.flags.f_contiguous:
        assert result.flags.f_contiguous


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_arrays_lie_in_the_object(array: Any) -> None:
    stored = Stored(array)
    result = stored.read()
    stored.assert_has(np.asarray(result))
    assert stored.size < array.nbytes + 1000
    with pytest.raises(ValueError, match="read-only"):
        result[...] = result


def test_small_arrays_are_read_only_too() -> None:
    # Or a program would work with small arrays only.
    for array in (np.array(5.0), np.arange(3), np.arange(1000)):
        assert not round_trip(array).flags.writeable


def test_masked_arrays_come_back() -> None:
    mask = values > 0.5
    for array in (
        np.ma.MaskedArray(values, mask=mask, fill_value=7.0),
        np.ma.MaskedArray(values),
        np.ma.MaskedArray(values, mask=mask, hard_mask=True),
        np.ma.MaskedArray(np.ones(3, pairs), mask=[(True, False, True)] * 3),
    ):
        stored = Stored(array)
        result = stored.read()
        assert type(result) is np.ma.MaskedArray
        assert result.fill_value == array.fill_value and result.hardmask == array.hardmask
        assert (result.mask is np.ma.nomask) == (array.mask is np.ma.nomask)
        assert np.array_equal(np.ma.getmaskarray(result), np.ma.getmaskarray(array))
        assert np.array_equal(result.data, array.data)
        if array.nbytes > 1024:
            stored.assert_has(result.data)


def test_a_memmap_becomes_an_array(tmp_path: Path) -> None:
    array = np.memmap(tmp_path / "file", np.int64, "w+", shape=ITEMS)
    array[:] = np.arange(ITEMS)
    result = round_trip(array)
    assert type(result) is np.ndarray and np.array_equal(result, np.arange(ITEMS))


class Celsius(np.ndarray):
    pass


def test_other_subclasses_of_ndarray_come_back() -> None:
    array = values.view(Celsius)
    result = round_trip(array)
    assert type(result) is Celsius and np.array_equal(result, array)


# An array that is filled in later.


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["f8", ">i4", "M8[ns]", pairs, bool])
@pytest.mark.parametrize("shape", [7, (), (3, 5), (0, 4), (1000, 20)])
def test_an_array_is_written_in_place(shape: Any, dtype: Any, order: Any) -> None:
    template = array_template(shape, dtype, order)
    memory = bytearray(b"\xaa" * template.total_bytes)
    template.write_into(memoryview(memory))
    array = template.array_over(memory)
    assert array.flags.writeable and array.nbytes == template.nbytes
    filled = np.arange(array.size).reshape(array.shape).astype("i8").astype(dtype)
    array[...] = filled
    expected = bytes(array.tobytes(order))
    assert memory[template.offset : template.offset + template.nbytes] == expected
    assert template.offset % 64 == 0

    result = deserialize(bytes(memory))
    assert type(result) is np.ndarray and not result.flags.writeable
    assert (result.dtype, result.shape) == (np.dtype(dtype), filled.shape)
    assert np.array_equal(result, filled)
    assert result.flags.f_contiguous if order == "F" else result.flags.c_contiguous


def test_the_parts_of_a_template_are_all_but_the_array() -> None:
    template = array_template((10, 10), "f8")
    ((offset, head),) = template.parts()
    assert offset == 0 and len(head) == template.offset
    assert template.total_bytes == template.offset + 800
    with pytest.raises(ValueError, match=str(template.total_bytes)):
        template.array_over(bytearray(10))


def test_arrays_that_cannot_be_written_in_place_are_refused() -> None:
    with pytest.raises(TypeError, match="object"):
        array_template(3, object)
    with pytest.raises(ValueError, match="-1"):
        array_template((2, -1), "f8")
    with pytest.raises(ValueError, match="'K'"):
        array_template(3, "f8", "K")
    with pytest.raises(TypeError):
        array_template("ab", "f8")  # type: ignore[arg-type]


# pandas.


def test_a_pandas_frame_comes_back_over_the_object() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(
        {
            "float": values,
            "int": np.arange(ITEMS),
            "string": pd.array([f"string {i}" for i in range(ITEMS)], "string[pyarrow]"),
            "category": pd.Categorical(["x", "y"] * (ITEMS // 2)),
            "zone": pd.date_range("2020", periods=ITEMS, tz="Europe/Berlin"),
            "date": pd.date_range("2020", periods=ITEMS),
            "delta": pd.to_timedelta(np.arange(ITEMS)),
            "nullable": pd.array([1, None] * (ITEMS // 2), dtype="Int64"),
            "period": pd.period_range("2020", periods=ITEMS, freq="D"),
            "interval": pd.interval_range(0, ITEMS),
            "object": [[i] for i in range(ITEMS)],
        }
    )
    stored = Stored(frame)
    result = stored.read()
    pd.testing.assert_frame_equal(result, frame)
    for name in ("float", "int", "date", "delta"):
        column = result[name].to_numpy(copy=False)
        assert stored.address <= column.__array_interface__["data"][0]
        assert column.__array_interface__["data"][0] < stored.address + stored.size
    stored.assert_has(result["category"].array.codes)
    for chunk in result["string"].array.__arrow_array__().chunks:
        for buffer in filter(None, chunk.buffers()):
            stored.assert_has(buffer)

    indexed = frame.set_index(["int", "string"])
    pd.testing.assert_frame_equal(round_trip(indexed), indexed)
    pd.testing.assert_series_equal(round_trip(frame["zone"]), frame["zone"])
    pd.testing.assert_frame_equal(round_trip(frame[::2]), frame[::2])
    pd.testing.assert_frame_equal(round_trip(pd.DataFrame()), pd.DataFrame())


# Arrow.

numbers = list(range(ITEMS))
texts = [f"a string of some length {i}" for i in numbers]
COLUMNS = {
    "int": pa.array(numbers),
    "with nulls": pa.array([None, 1] * (ITEMS // 2)),
    "string": pa.array(texts),
    "large string": pa.array(texts, pa.large_string()),
    "string view": pa.array(texts, pa.string_view()),
    "binary view": pa.array([text.encode() for text in texts], pa.binary_view()),
    "fixed binary": pa.array([b"abc"] * ITEMS, pa.binary(3)),
    "list": pa.array([[i] for i in numbers]),
    "list view": pa.array([[i] for i in numbers], pa.list_view(pa.int64())),
    "fixed list": pa.array([[i, i] for i in numbers], pa.list_(pa.int64(), 2)),
    "struct": pa.array([{"a": i, "b": str(i)} for i in numbers]),
    "map": pa.array([[("k", i)] for i in numbers], pa.map_(pa.string(), pa.int64())),
    "dictionary": pa.array(["a", "b"] * (ITEMS // 2)).dictionary_encode(),
    "decimal": pa.array(numbers).cast(pa.decimal128(30, 2)),
    "bool": pa.array([True, None] * (ITEMS // 2)),
    "null": pa.nulls(ITEMS),
    "timestamp": pa.array(numbers, pa.timestamp("us", "UTC")),
    "half": pa.array(np.arange(ITEMS, dtype="f2")),
    "union": pa.UnionArray.from_sparse(pa.array([0] * ITEMS, pa.int8()), [pa.array(numbers)]),
    "run end": pa.RunEndEncodedArray.from_arrays([1, ITEMS], [1, 2]),
    "uuid": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(16)] * ITEMS, pa.binary(16))),
}


@pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS)
def test_arrow_arrays_come_back_over_the_object(column: pa.Array) -> None:
    stored = Stored(column)
    result = stored.read()
    result.validate(full=True)
    assert result.equals(column) and result.type == column.type
    for buffer in filter(None, result.buffers()):
        if buffer.size >= INLINE_BYTES:
            stored.assert_has(buffer)
    empty = round_trip(column.slice(0, 0))
    assert empty.type == column.type and len(empty) == 0


@pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS)
def test_a_slice_of_an_arrow_array_is_stored_without_the_rest(column: pa.Array) -> None:
    if column.type == pa.string_view() or column.type == pa.binary_view():
        column = pa.concat_arrays([column] * 10)
    piece = column.slice(7, 5)
    data = written(piece)
    assert deserialize(data).equals(piece)
    assert len(data) < 1000


def test_string_views_that_a_filter_left_are_stored_without_the_rest() -> None:
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame({"s": [f"a string of some length {i}" for i in range(50_000)]})
    few = frame.filter(pl.col("s").str.ends_with("7777"))
    data = written(few)
    assert deserialize(data).equals(few)
    assert len(data) < 5000 < frame.estimated_size()


def test_tables_come_back() -> None:
    table = pa.table(COLUMNS).replace_schema_metadata({"key": "value"})
    stored = Stored(table)
    result = stored.read()
    assert result.equals(table, check_metadata=True)
    assert stored.size < table.get_total_buffer_size() * 1.02
    stored.assert_has(result["int"].chunk(0).buffers()[1])
    stored.assert_has(result["string"].chunk(0).buffers()[2])
    (batch,) = table.to_batches()
    assert round_trip(batch).equals(batch, check_metadata=True)
    assert round_trip(table["string"]).equals(table["string"])
    assert round_trip(table.schema).equals(table.schema, check_metadata=True)
    assert round_trip(pa.chunked_array([], pa.int8())).type == pa.int8()
    few = table.select(["int", "string", "list", "struct"]).slice(100, 3)
    assert round_trip(few).equals(few)
    assert len(written(few)) < 2000


def test_the_chunks_of_one_buffer_are_stored_once_each() -> None:
    table = pa.table({"a": np.arange(100_000)})
    chunked = pa.Table.from_batches(table.to_batches(max_chunksize=1000))
    data = written(chunked)
    assert deserialize(data).equals(chunked)
    assert len(data) < 1.1 * table.nbytes


def test_buffers_and_tensors_come_back_over_the_object() -> None:
    buffer = pa.py_buffer(b"x" * ITEMS)
    stored = Stored(buffer)
    result = stored.read()
    assert result.equals(buffer)
    stored.assert_has(result)

    for array in (values.reshape(50, 100), np.asfortranarray(values.reshape(50, 100))):
        tensor = pa.Tensor.from_numpy(array, ["rows", "columns"])
        stored = Stored([tensor])
        (found,) = stored.read()
        assert found.equals(tensor) and found.strides == tensor.strides
        assert found.dim_names == tensor.dim_names
        stored.assert_has(found.to_numpy())


@pytest.mark.parametrize(
    "name", ["SparseCOOTensor", "SparseCSRMatrix", "SparseCSCMatrix", "SparseCSFTensor"]
)
def test_sparse_tensors_come_back(name: str) -> None:
    dense = np.zeros((40, 30))
    dense[::3, ::2] = 5.0
    tensor = getattr(pa, name).from_dense_numpy(dense, ["rows", "columns"])
    result = round_trip(tensor)
    assert type(result) is type(tensor) and result.equals(tensor)
    assert result.dim_names == tensor.dim_names


# polars.


def test_a_polars_frame_comes_back_over_the_object() -> None:
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame(
        {
            "int": numbers,
            "float": values,
            "string": texts,
            "binary": [b"a"] * ITEMS,
            "date": pl.Series(numbers).cast(pl.Datetime("us", "UTC")),
            "duration": pl.Series(numbers).cast(pl.Duration("ms")),
            "time": pl.Series(numbers).cast(pl.Time),
            "decimal": pl.Series(["1.2"] * ITEMS).cast(pl.Decimal(10, 2)),
            "list": [[i] for i in numbers],
            "array": pl.Series([[1, 2]] * ITEMS, dtype=pl.Array(pl.Int8, 2)),
            "struct": [{"a": i} for i in numbers],
            "null": [None] * ITEMS,
            "bool": [True, None] * (ITEMS // 2),
            "category": pl.Series(["x", "y"] * (ITEMS // 2), dtype=pl.Categorical),
            "enum": pl.Series(["x", "y"] * (ITEMS // 2), dtype=pl.Enum(["x", "y"])),
        }
    )
    stored = Stored(frame)
    result = stored.read()
    assert result.equals(frame) and result.schema == frame.schema
    # Polars makes codes of its own of what Arrow has as a dictionary.
    for name in set(frame.columns) - {"category", "enum", "struct"}:
        buffers = result[name].to_arrow(compat_level=pl.CompatLevel.newest()).buffers()
        large = [buffer for buffer in filter(None, buffers) if buffer.size >= 2048]
        assert large or name in ("null", "bool")
        for buffer in large:
            assert stored.address <= buffer.address
            assert buffer.address + buffer.size <= stored.address + stored.size
        series = round_trip(frame[name])
        assert series.equals(frame[name]) and series.name == name

    parts = pl.concat([frame, frame], rechunk=False)
    assert round_trip(parts).equals(parts)
    assert round_trip(frame.slice(3, 4)).equals(frame.slice(3, 4))
    assert round_trip(frame.clear()).schema == frame.schema
    assert round_trip(pl.DataFrame()).shape == (0, 0)
    lazy = frame.lazy().filter(pl.col("int") < 3).select("string")
    assert round_trip(lazy).collect().equals(frame.head(3).select("string"))
    wide = pl.DataFrame({"a": pl.Series(numbers, dtype=pl.Int128)})
    assert round_trip(wide).equals(wide)


# torch.


def test_torch_tensors_come_back_over_the_object(recwarn: pytest.WarningsRecorder) -> None:
    torch = pytest.importorskip("torch")
    for tensor in (
        torch.arange(ITEMS),
        torch.arange(ITEMS).to(torch.bfloat16),
        torch.rand(50, 100),
        torch.rand(50, 100).t(),
        torch.rand(ITEMS) > 0.5,
        torch.rand(ITEMS).to(torch.complex64),
        torch.tensor(2.5),
        torch.zeros(0, 3),
        torch.rand(ITEMS, requires_grad=True),
        torch.nn.Parameter(torch.rand(ITEMS)),
        torch.nn.Parameter(torch.rand(ITEMS), requires_grad=False),
    ):
        stored = Stored({"x": tensor})
        result = stored.read()["x"]
        assert type(result) is type(tensor)
        assert (result.dtype, result.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(result, tensor)
        assert result.requires_grad == tensor.requires_grad and result.is_leaf
        if tensor.numel() > 1:
            assert stored.address <= result.data_ptr() < stored.address + stored.size
        copy = result.detach().clone()
        copy[...] = 0
    assert not [warning for warning in recwarn if "not writable" in str(warning.message)]

    small = round_trip(torch.zeros(1, dtype=torch.uint8))
    small += 1
    assert bytes(bytearray(1)) == b"\0" and small.item() == 1

    module = torch.nn.Linear(100, 100)
    result = round_trip(module.state_dict())
    assert all(torch.equal(result[name], part) for name, part in module.state_dict().items())
    sparse = torch.eye(3).to_sparse()
    assert torch.equal(round_trip(sparse).to_dense(), torch.eye(3))
    tagged = torch.rand(3)
    tagged.name_of_user = "tag"
    by_torch = pickle.loads(pickle.dumps(tagged))
    assert vars(round_trip(tagged)) == vars(by_torch)


# Everything together.


def test_nested_structures_have_many_buffers_and_one_stream() -> None:
    value: dict[str, Any] = {
        "arrays": [np.full(ITEMS, i) for i in range(5)],
        "table": pa.table({"a": numbers, "b": texts}),
        "point": Point(np.arange(ITEMS), {"deep": [np.ones((100, 100))]}),
    }
    stored = Stored(value)
    (count,) = struct.unpack_from("<I", stored.memory, 12)
    assert count == 5 + 3 + 2
    result = stored.read()
    for i, array in enumerate(result["arrays"]):
        stored.assert_has(array)
        assert np.array_equal(array, np.full(ITEMS, i))
    assert result["table"].equals(value["table"])
    stored.assert_has(result["point"].x)
    stored.assert_has(result["point"].y["deep"][0])


def test_importing_and_writing_imports_no_library() -> None:
    program = """
import sys, uuid
import pyarrow
before = set(sys.modules)
from plasma.serialization import serialize
serialize([1, uuid.uuid4(), print, pyarrow.schema([])])
found = {"numpy", "pandas", "polars", "torch", "cloudpickle"} & (set(sys.modules) - before)
assert not found, found
"""
    run_python("-c", program)


# Functions, and the program itself.


def run_python(*arguments: object, status: int = 0) -> str:
    """What another Python printed, or its errors if it is to fail."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))),
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stderr if status else done.stdout


READ = """
import sys
from plasma.serialization import deserialize
value = deserialize(open(sys.argv[1], "rb").read())
"""


def test_closures_and_local_classes_come_back() -> None:
    pytest.importorskip("cloudpickle")
    array = np.arange(ITEMS)

    class Local:
        def total(self) -> int:
            return int(array.sum())

    stored = Stored([lambda x: x + array, Local(), array])
    function, local, given = stored.read()
    assert np.array_equal(function(1), array + 1)
    assert local.total() == array.sum()
    stored.assert_has(given)


def test_without_cloudpickle_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    _pickling._cloud_pickler_class.cache_clear()
    with pytest.raises(pickle.PicklingError, match="pip install cloudpickle") as raised:
        serialize(lambda: 1)
    assert raised.value.__cause__ is not None
    assert round_trip(["__main__", 1]) == ["__main__", 1]


def test_what_nobody_can_pickle_says_so() -> None:
    with pytest.raises(TypeError, match="lock"):
        serialize([threading.Lock()])


class Unwilling:
    calls = 0

    def __reduce__(self) -> Any:
        Unwilling.calls += 1
        raise AttributeError("no such thing")


def test_errors_of_the_value_are_raised_as_they_are() -> None:
    with pytest.raises(AttributeError, match="no such thing"):
        serialize([Unwilling()])
    assert Unwilling.calls == 1
    with pytest.raises(RecursionError):
        value: list[object] = []
        for _ in range(100_000):
            value = [value]
        serialize(value)


MAIN_PROGRAM = """
import dataclasses, enum, sys, threading
from plasma.serialization import deserialize, serialize

TWO = 2
LOCK = threading.Lock()

@dataclasses.dataclass
class Point:
    x: int
    def doubled(self):
        return Point(self.x * TWO)

class Colour(enum.Enum):
    RED = 1

class Locked:
    def lock(self):
        return LOCK

def double(x):
    return x * TWO

def write(value):
    serialized = serialize(value)
    memory = bytearray(serialized.total_bytes)
    serialized.write_into(memoryview(memory))
    return memory

if __name__ == "__main__":
    if sys.argv[1] == "write":
        open(sys.argv[2], "wb").write(write([Point(3), Colour.RED, double]))
        open(sys.argv[3], "wb").write(write([Locked()]))
    point, colour, function = deserialize(open(sys.argv[2], "rb").read())
    assert point == Point(3) and colour is Colour.RED and function(4) == 8
    (locked,) = deserialize(open(sys.argv[3], "rb").read())
    assert type(locked) is Locked
"""


def test_the_program_itself_goes_along(tmp_path: Path) -> None:
    pytest.importorskip("cloudpickle")
    program = tmp_path / "program.py"
    program.write_text(MAIN_PROGRAM)
    files = (tmp_path / "values", tmp_path / "locked")
    # The same process, and another process of the same program, have the same classes.
    run_python(program, "write", *files)
    run_python(program, "read", *files)
    # Another program has none of them.
    shown = "print(value[0], value[0].doubled().x, value[1].name, value[2](4))"
    assert run_python("-c", READ + shown, files[0]) == "Point(x=3) 6 RED 8\n"
    error = run_python("-c", READ, files[1], status=1)
    assert "InvalidObjectError" in error
    assert "the class Locked is known only to the program that wrote the object" in error
    assert str(program) in error


FORKED = """
import os, sys
from plasma.serialization import deserialize, serialize

class Point:
    pass

def write(value):
    serialized = serialize(value)
    memory = bytearray(serialized.total_bytes)
    serialized.write_into(memoryview(memory))
    return memory

reader, writer = os.pipe()
if os.fork() == 0:
    os.write(writer, write(Point()))
    os._exit(0)
os.close(writer)
data = open(reader, "rb").read()
assert type(deserialize(data)) is Point
"""


def test_a_forked_process_has_the_classes_of_a_program_without_a_file() -> None:
    pytest.importorskip("cloudpickle")
    run_python("-c", FORKED)


# Types that users register.


class Plain:
    def __init__(self, x: Any) -> None:
        self.x = x


class Derived(Plain):
    pass


class Slotted:
    __slots__ = ("x",)

    def __init__(self, x: object) -> None:
        self.x = x


class OtherPlain:
    x: object


Pair = collections.namedtuple("Pair", ["a", "b"])


def registered(*arguments: Any, **options: Any) -> SerializationContext:
    context = SerializationContext()
    context.register_type(*arguments, **options)
    return context


def test_a_custom_serializer_stores_what_it_gives() -> None:
    context = registered(
        Plain,
        "plain",
        custom_serializer=lambda value: {"stored": value.x},
        custom_deserializer=lambda stored: Plain([stored["stored"]]),
    )
    stored = Stored([Plain(np.arange(ITEMS)), Derived(1)], context)
    first, second = stored.read(context)
    assert type(first) is type(second) is Plain and second.x == [1]
    stored.assert_has(first.x[0])


@pytest.mark.parametrize("value", [Plain(5), Slotted(5)])
def test_a_type_is_stored_by_its_name(value: Any) -> None:
    data = written([value], registered(type(value), "a name"))
    assert type(value).__qualname__.encode() not in data
    other = OtherPlain if type(value) is Plain else Slotted
    (result,) = deserialize(data, registered(other, "a name"))
    assert type(result) is other and result.x == 5


def test_a_named_tuple_and_a_cycle_can_be_registered() -> None:
    context = registered(Pair, "pair")
    context.register_type(Plain, "plain")
    value = Plain(Pair(1, 2))
    value.y = value  # type: ignore[attr-defined]
    result = deserialize(written(value, context), context)
    assert result.x == Pair(1, 2) and type(result.x) is Pair and result.y is result


def test_a_local_class_can_be_registered() -> None:
    class Local:
        pass

    value = Local()
    value.x = lambda: 5  # type: ignore[attr-defined]
    context = registered(Local, "local")
    result = deserialize(written(value, context), context)
    assert type(result) is Local and result.x() == 5  # type: ignore[attr-defined]


def test_a_type_that_is_to_be_pickled_needs_no_registration_to_be_read() -> None:
    data = written(Plain(1), registered(Plain, "plain", pickle=True))
    assert type(deserialize(data)) is Plain


def test_a_missing_registration_is_an_error_with_its_name() -> None:
    data = written([Plain(1)], registered(Plain, "the plain one"))
    with pytest.raises(InvalidObjectError, match="'the plain one'.*serialization_context"):
        deserialize(data)
    with pytest.raises(InvalidObjectError, match="'the plain one' is not registered"):
        deserialize(data, SerializationContext())
    data = written([Plain(1)], registered(Plain, "plain", custom_serializer=lambda value: 1))
    with pytest.raises(InvalidObjectError, match="no custom_deserializer"):
        deserialize(data, registered(Plain, "plain"))


def test_a_later_registration_replaces_an_earlier_one() -> None:
    context = registered(Plain, "plain", custom_serializer=lambda value: 1)
    context.register_type(Plain, "plain")
    assert deserialize(written(Plain(7), context), context).x == 7


def test_wrong_registrations_are_type_errors() -> None:
    for arguments in ((1, "one"), (Plain, 1), (Plain, "plain", False, 1)):
        with pytest.raises(TypeError):
            registered(*arguments)


def test_values_without_registered_types_are_as_without_a_context() -> None:
    value = [1, np.arange(ITEMS), Named(1, 2), print, Plain]
    assert written(value, registered(Slotted, "slotted")) == written(value)


def test_threads_read_with_their_own_contexts() -> None:
    data = written([Plain(1)] * 10, registered(Plain, "plain"))
    failed: list[object] = []

    def read(type_: type) -> None:
        context = registered(type_, "plain")
        for _ in range(300):
            if {type(value) for value in deserialize(data, context)} != {type_}:
                failed.append(type_)

    threads = [threading.Thread(target=read, args=(t,)) for t in (Plain, Derived, OtherPlain)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


# Objects that are damaged, or something else.


def test_an_object_of_another_version_names_both() -> None:
    data = bytearray(written([1]))
    data[8:12] = struct.pack("<I", 2)
    assert is_serialized(data)
    with pytest.raises(InvalidObjectError, match="version 2 .*reads version 1"):
        deserialize(data)


def test_what_else_an_object_may_be_is_said_with_what_to_use() -> None:
    sink = pa.BufferOutputStream()
    table = pa.table({"a": [1]})
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    arrow = sink.getvalue()
    with pytest.raises(InvalidObjectError, match="Arrow IPC stream.*get_arrow.*get_buffers"):
        deserialize(arrow)
    for data in (pickle.dumps([1], 5), b"x", b"text that is longer than the header of an object"):
        with pytest.raises(InvalidObjectError, match=f"{len(data)} bytes.*get_buffers"):
            deserialize(data)
    with pytest.raises(InvalidObjectError, match="empty"):
        deserialize(b"")
    for data in (arrow, pickle.dumps([1]), b"", b"\x93PLASMA"):
        assert not is_serialized(data)


def test_what_is_no_buffer_is_a_type_error() -> None:
    for data in (5, "text", memoryview(written([1]))[::2]):
        with pytest.raises(TypeError):
            deserialize(data)  # type: ignore[arg-type]
    assert issubclass(InvalidObjectError, pa.lib.ArrowInvalid)


def test_the_cause_of_failed_unpickling_is_visible() -> None:
    data = written([1, len]).replace(b"builtins", b"no_such_")
    with pytest.raises(InvalidObjectError, match="No module named 'no_such_'") as raised:
        deserialize(data)
    assert isinstance(raised.value.__cause__, ModuleNotFoundError)
    data = written([Plain]).replace(b"Plain", b"Brain")
    with pytest.raises(InvalidObjectError, match="Brain") as raised:
        deserialize(data)
    assert isinstance(raised.value.__cause__, AttributeError)


def interrupt(error: str) -> None:
    raise {"KeyboardInterrupt": KeyboardInterrupt, "MemoryError": MemoryError}[error]


class Interrupting:
    def __init__(self, error: str) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return interrupt, (self.error,)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_interrupts_are_no_damage(error: type[BaseException]) -> None:
    data = written(Interrupting(error.__name__))
    with pytest.raises(error):
        deserialize(data)


def test_objects_cut_short_or_made_longer_are_invalid() -> None:
    data = written([np.arange(300), np.ones(200)])
    for size in range(len(data)):
        with pytest.raises(InvalidObjectError):
            deserialize(data[:size])
    with pytest.raises(InvalidObjectError, match=f"{len(data)}, and it has {len(data) + 1} bytes"):
        deserialize(data + b"\0")


INTERESTING = [0, 1, 63, 64, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]


def test_every_field_of_the_header_with_every_interesting_number() -> None:
    value = [np.arange(300), pa.array(["text"] * 500), np.ones((30, 40))]
    data = written(value)
    (count,) = struct.unpack_from("<I", data, 12)
    assert count >= 4
    for offset in range(16, HEADER + 16 * count, 8):
        (right,) = struct.unpack_from("<Q", data, offset)
        for number in {*INTERESTING, *(right + n for n in (-64, -1, 1, 8, 64))} - {right}:
            damaged = bytearray(data)
            struct.pack_into("<Q", damaged, offset, number % 2**64)
            try:
                array, strings, _ = deserialize(damaged)
            except InvalidObjectError:
                continue
            # A buffer that grew into its padding has all that its array needs.
            assert offset > HEADER and right < number < right + 64
            assert np.array_equal(array, value[0]) and strings.equals(value[1])
    for number in {*range(10), 2**31, 2**32 - 1} - {count}:
        damaged = bytearray(data)
        struct.pack_into("<I", damaged, 12, number)
        with pytest.raises(InvalidObjectError):
            deserialize(damaged)


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_of_the_header_gives_an_error_or_a_value(seed: int) -> None:
    chance = random.Random(seed)
    value = [np.arange(300), pa.table({"a": ["text"] * 500, "b": [1.5] * 500}), np.ones((30, 40))]
    data = written(value)
    (count,) = struct.unpack_from("<I", data, 12)
    errors = 0
    for _ in range(2000):
        damaged = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(HEADER + 16 * count)] ^= 1 << chance.randrange(8)
        if chance.random() < 0.2:
            damaged = damaged[: chance.randrange(len(damaged))]
        try:
            result = deserialize(damaged)
        except InvalidObjectError:
            errors += 1
        else:
            result[1].validate(full=True)
            assert repr(result)
    assert errors > 1900


DAMAGED_PICKLES = """
import random, resource, struct, sys
import numpy as np
from plasma.serialization import InvalidObjectError, deserialize, serialize

# A damaged stream may ask for a very large list.
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
chance = random.Random(int(sys.argv[1]))
value = {"list": [1, 2.5, "text", b"bytes", 2**70], "set": {1, 2}, "array": np.arange(300),
         "tuple": (None, True, np.ones(3), np.dtype("f8"))}
serialized = serialize(value)
data = bytearray(serialized.total_bytes)
serialized.write_into(memoryview(data))
_, begin, length = struct.unpack_from("<IQQ", data, 12)
errors = values = 0
for _ in range(3000):
    damaged = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        damaged[begin + chance.randrange(length)] = chance.randrange(256)
    try:
        repr(deserialize(damaged))
        values += 1
    except (InvalidObjectError, MemoryError):
        errors += 1
print(errors, values)
"""


@pytest.mark.parametrize("seed", range(2))
def test_random_damage_of_the_stream_gives_an_error_or_a_value(seed: int) -> None:
    # In another process, because a damaged pickle may do anything that Python can.
    errors, values_read = map(int, run_python("-c", DAMAGED_PICKLES, seed).split())
    assert errors + values_read == 3000 and errors > 1000
