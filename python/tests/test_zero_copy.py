"""Reading takes no copy, type by type, as the kernel sees it.

What a reader gets lies in a mapping of the store's memory that is shared and not writable, and a
gigabyte of it adds nothing to the memory that the process has of its own. "Not writable" is the
page's, not just Python's: `test_weaknesses` (B11) writes to it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import probes
import pyarrow as pa
import pytest
from children import Child, hear, say

import plasma
from plasma import ObjectID, PlasmaClient

MB = 1_000_000
GB = 1_000_000_000
A = ObjectID(20 * b"a")

#: Numbers in each value: enough that no library thinks of copying because it is small.
COUNT = 100_000


def lies_in_the_store(address: int, size: int) -> None:
    """Checks that memory is the store's, shared, and cannot be written to."""
    mapping = probes.mapping_of(address)
    assert mapping.permissions == "r--s", mapping
    assert "memfd:plasma" in mapping.name, mapping
    assert address + size <= mapping.end


def array_lies_in_the_store(array: np.ndarray[Any, Any]) -> None:
    assert not array.flags.writeable
    lies_in_the_store(array.ctypes.data, array.nbytes)


def arrow_lies_in_the_store(data: Any) -> int:
    """Checks the buffers of a table, a batch or an array: how many there were."""
    if isinstance(data, pa.Table):
        return sum(arrow_lies_in_the_store(batch) for batch in data.to_batches())
    if isinstance(data, pa.RecordBatch):
        return sum(arrow_lies_in_the_store(column) for column in data.columns)
    buffers = [buffer for buffer in data.buffers() if buffer is not None]
    for buffer in buffers:
        assert not buffer.is_mutable
        lies_in_the_store(buffer.address, buffer.size)
    return len(buffers)


# -- numpy ----------------------------------------------------------------------------------------

ARRAYS: dict[str, Callable[[], np.ndarray[Any, Any]]] = {
    "float64": lambda: np.arange(COUNT, dtype=np.float64),
    "int8": lambda: np.arange(COUNT).astype(np.int8),
    "bool": lambda: np.arange(COUNT) % 2 == 0,
    "complex": lambda: np.arange(COUNT) * 1j,
    "datetime": lambda: np.arange(COUNT).astype("M8[s]"),
    "text": lambda: np.array(["text"] * COUNT),
    "record": lambda: np.zeros(COUNT, [("x", "f8"), ("y", "i4")]),
    "big endian": lambda: np.arange(COUNT, dtype=">i8"),
    "three axes": lambda: np.arange(COUNT).reshape(10, 100, -1),
    "Fortran": lambda: np.asfortranarray(np.arange(COUNT).reshape(100, -1)),
    "every other": lambda: np.arange(2 * COUNT)[::2],
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_a_numpy_array(client: PlasmaClient, kind: str) -> None:
    value = ARRAYS[kind]()
    found = client.get(client.put(value))
    array_lies_in_the_store(found)
    assert found.dtype == value.dtype and (found == value).all()


def test_arrays_in_a_nested_structure(client: PlasmaClient) -> None:
    arrays = [np.full(COUNT, number) for number in range(4)]
    value = {"first": arrays[0], "rest": (arrays[1], [arrays[2], {"last": arrays[3]}])}
    found = client.get(client.put(value))
    one, [two, last] = found["rest"]
    for number, array in enumerate([found["first"], one, two, last["last"]]):
        array_lies_in_the_store(array)
        assert (array == number).all()


def test_an_array_that_was_made_in_place(client: PlasmaClient) -> None:
    making = client.create_array((100, COUNT // 100), np.float32)
    with making as array:
        mapping = probes.mapping_of(array.ctypes.data)
        assert mapping.permissions == "rw-s", "it is written where it will lie"
        array[:] = 7
    array_lies_in_the_store(array)  # The writer has lost its right to write as well.
    found = client.get(making.object_id)
    array_lies_in_the_store(found)
    assert (found == 7).all()


# -- pandas, polars, Arrow, torch -----------------------------------------------------------------


def test_a_pandas_data_frame(client: PlasmaClient) -> None:
    frame = pd.DataFrame({"x": np.arange(COUNT), "y": np.arange(COUNT) / 2})
    found = client.get(client.put(frame))
    for name in frame:
        array_lies_in_the_store(found[name].to_numpy())
    pd.testing.assert_frame_equal(found, frame)


def test_a_pandas_series(client: PlasmaClient) -> None:
    found = client.get(client.put(pd.Series(np.arange(COUNT), name="x")))
    array_lies_in_the_store(found.to_numpy())
    assert found.sum() == COUNT * (COUNT - 1) // 2


def a_table() -> pa.Table:
    text = pa.array([f"text {number}" for number in range(COUNT)])
    numbers = pa.array(np.arange(COUNT))
    gaps = pa.array([None, 1.5] * (COUNT // 2))
    return pa.table({"number": numbers, "text": text, "gaps": gaps})


def test_an_arrow_table(client: PlasmaClient) -> None:
    table = a_table()
    found = client.get(client.put(table))
    assert arrow_lies_in_the_store(found) >= 5
    assert found.equals(table)


def test_an_arrow_record_batch(client: PlasmaClient) -> None:
    [batch] = a_table().to_batches()
    found = client.get(client.put(batch))
    assert arrow_lies_in_the_store(found) >= 5
    assert found.equals(batch)


def test_an_arrow_stream(client: PlasmaClient) -> None:
    table = a_table()
    found = client.get_arrow(client.put_arrow(table))
    assert arrow_lies_in_the_store(found) >= 5
    assert found.equals(table)


def test_an_arrow_tensor(client: PlasmaClient) -> None:
    tensor = pa.Tensor.from_numpy(np.arange(COUNT).reshape(100, -1))
    found = client.get(client.put(tensor))
    assert not found.is_mutable
    array_lies_in_the_store(found.to_numpy())
    assert found.equals(tensor)


def test_a_polars_data_frame(client: PlasmaClient) -> None:
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({"x": np.arange(COUNT), "y": np.arange(COUNT) / 2})
    found = client.get(client.put(frame))
    for name in frame.columns:
        array_lies_in_the_store(found[name].to_numpy(allow_copy=False))
    assert found.equals(frame)


def test_a_torch_tensor(client: PlasmaClient) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(COUNT, dtype=torch.float32).reshape(100, -1)
    found = client.get(client.put(tensor))
    # torch knows no read-only memory; the page does.
    lies_in_the_store(found.data_ptr(), found.nbytes)
    assert torch.equal(found, tensor)


# -- bytes ----------------------------------------------------------------------------------------


def test_buffers_and_metadata(client: PlasmaClient) -> None:
    client.put_raw_buffer(np.arange(COUNT), A, metadata=b"metadata")
    [buffer] = client.get_buffers([A])
    [metadata] = client.get_metadata([A])
    assert buffer is not None and metadata is not None
    for found in (buffer, metadata):
        assert not found.is_mutable and memoryview(found).readonly
        lies_in_the_store(found.address, found.size)
    array = np.frombuffer(buffer, np.int64)
    assert array.ctypes.data == buffer.address
    array_lies_in_the_store(array)
    assert (array == np.arange(COUNT)).all()


def test_two_readers_in_one_process_share_the_memory(store: str, client: PlasmaClient) -> None:
    client.put(np.arange(COUNT), A)
    assert client.get(A).ctypes.data == client.get(A).ctypes.data


# -- a gigabyte -----------------------------------------------------------------------------------

#: What a process may take while it reads, for Python's own objects and a library that is loaded for
#: the first time. A copy of a hundredth of the data would be more.
SLACK_BYTES = 8 * probes.MIB


def read_a_gigabyte(path: str, kind: str, digits: str) -> None:
    client = plasma.connect(path)
    object_id = ObjectID(bytes.fromhex(digits))
    client.get_arrow(client.put_arrow(pa.table({"x": np.arange(10.0)})))
    gc.collect()
    before = probes.status_bytes("RssAnon")
    if kind == "array":
        values = client.get(object_id)
    else:
        [chunk] = client.get_arrow(object_id)["x"].chunks
        values = chunk.to_numpy(zero_copy_only=True)
    assert values.nbytes == GB
    array_lies_in_the_store(values)
    total = float(values.sum())
    say(total)
    added = probes.status_bytes("RssAnon") - before
    assert added <= SLACK_BYTES, f"{added} bytes were taken to read {values.nbytes}"
    # That it was read is to be seen as well: all of it is in this process's tables now.
    assert probes.status_bytes("RssShmem") >= 0.9 * GB
    hear()


@pytest.mark.parametrize("kind", ["array", "table"])
def test_reading_a_gigabyte_takes_no_memory_beyond_the_mapping(
    make_store: Callable[..., str], kind: str
) -> None:
    if probes.available_bytes() < 6 * GB:
        pytest.skip("LEFT OUT: two copies of a gigabyte, and 6 GB are not available")
    path = make_store(memory=2_200 * MB)
    with plasma.connect(path) as client:
        making = client.create_array(GB // 8, float)
        with making as values:
            values[:] = 1.5
        object_id = making.object_id
        if kind == "table":
            object_id = client.put_arrow(pa.table({"x": client.get(object_id)}))
        with Child(read_a_gigabyte, path, kind, object_id.hex()) as child:
            assert float(child.hear()) == GB // 8 * 1.5
            child.say()
            child.succeeds()
