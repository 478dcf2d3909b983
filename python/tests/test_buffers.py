"""What `create` and `get_buffers` return: real buffers of Arrow over the store's memory."""

from __future__ import annotations

import array
import gc
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import plasma
from plasma import ObjectID, PlasmaClient

NAME = ObjectID(20 * b"n")


def stored(client: PlasmaClient, data: Any, object_id: ObjectID = NAME) -> pa.Buffer:
    client.put_raw_buffer(data, object_id)
    [buffer] = client.get_buffers([object_id], 0)
    assert buffer is not None
    return buffer


def test_both_are_buffers_of_arrow(client: PlasmaClient) -> None:
    created = client.create(NAME, 10)
    assert isinstance(created, pa.Buffer) and isinstance(created, plasma.PlasmaBuffer)
    client.seal(NAME)
    for buffer in (client.get_buffers([NAME])[0], client.get_metadata([NAME])[0]):
        assert isinstance(buffer, pa.Buffer) and isinstance(buffer, plasma.PlasmaBuffer)
    assert not isinstance(b"bytes", plasma.PlasmaBuffer)


def test_users_do_not_make_them() -> None:
    with pytest.raises(TypeError, match="create"):
        plasma.PlasmaBuffer()


def test_a_created_one_can_be_written_and_a_read_one_cannot(client: PlasmaClient) -> None:
    created = client.create(NAME, 10)
    assert created.is_mutable and not memoryview(created).readonly
    np.frombuffer(created, np.uint8)[:] = list(b"0123456789")
    client.seal(NAME)
    [read] = client.get_buffers([NAME])
    assert read is not None
    assert not read.is_mutable and memoryview(read).readonly
    assert not np.frombuffer(read, np.uint8).flags.writeable
    assert created.to_pybytes() == read.to_pybytes() == b"0123456789"


@pytest.mark.parametrize("metadata", [False, True], ids=["data", "metadata"])
def test_writing_to_a_read_one_is_a_type_error(client: PlasmaClient, metadata: bool) -> None:
    client.create_and_seal(NAME, b"data", b"meta")
    [buffer] = client.get_metadata([NAME]) if metadata else client.get_buffers([NAME])
    assert buffer is not None
    with pytest.raises(TypeError, match="item assignment"):
        buffer[0] = 5
    with pytest.raises(TypeError, match="read-only"):
        memoryview(buffer)[0] = 5
    with pytest.raises(ValueError, match="read-only"):
        np.frombuffer(buffer, np.uint8)[0] = 5
    with pytest.raises((TypeError, ValueError, BufferError)):
        io.BytesIO(b"over").readinto(buffer)
    assert client.get_buffers([NAME], 0, True)[0][0] == b"meta"
    assert client.get_buffers([NAME])[0].to_pybytes() == b"data"  # type: ignore[union-attr]


def test_indices_and_slices(client: PlasmaClient) -> None:
    buffer = stored(client, b"abcdef")
    assert (len(buffer), buffer.size) == (6, 6)
    assert (buffer[0], buffer[5], buffer[-1], buffer[-6]) == (97, 102, 102, 97)
    assert buffer[1:4].to_pybytes() == b"bcd"
    assert buffer.slice(2).to_pybytes() == b"cdef"
    assert buffer.hex() == b"616263646566" or buffer.hex() == "616263646566"
    assert buffer == pa.py_buffer(b"abcdef")
    for index in (6, 7, -7, 100):
        with pytest.raises(IndexError):
            buffer[index]
        with pytest.raises(IndexError):
            memoryview(buffer)[index]


def test_memory_begins_at_multiples_of_64(client: PlasmaClient) -> None:
    for size in (1, 7, 63, 64, 65, 1000):
        object_id = ObjectID.from_random()
        assert client.create(object_id, size).address % 64 == 0
        client.seal(object_id)
        [buffer] = client.get_buffers([object_id])
        assert buffer is not None and buffer.address % 64 == 0


def test_a_second_get_shows_the_same_memory(client: PlasmaClient) -> None:
    first = stored(client, b"abc")
    [second] = client.get_buffers([NAME])
    assert second is not None and second.address == first.address


WRITE_TO_PAGE = """
import ctypes, sys, plasma
client = plasma.connect(sys.argv[1])
[buffer] = client.get_buffers([plasma.ObjectID(20 * b"n")])
assert ctypes.string_at(buffer.address, 4) == b"safe"
print("reading works", flush=True)
ctypes.memset(buffer.address, 0, 4)
print("writing works", flush=True)
"""

WRITE_AFTER_SEAL = """
import sys, plasma, numpy
client = plasma.connect(sys.argv[1])
name = plasma.ObjectID(20 * b"n")
array = numpy.frombuffer(client.create(name, 4), numpy.uint8)
array[:] = list(b"safe")
client.seal(name)
assert bytes(array) == b"safe"
print("reading works", flush=True)
array[0] = 0
print("writing works", flush=True)
"""


@pytest.mark.parametrize("program", [WRITE_TO_PAGE, WRITE_AFTER_SEAL], ids=["reader", "creator"])
def test_a_write_by_address_ends_the_writer_and_changes_nothing(
    client: PlasmaClient, store: str, program: str
) -> None:
    if program is WRITE_TO_PAGE:
        client.put_raw_buffer(b"safe", NAME)
    ended = subprocess.run(
        [sys.executable, "-c", program, store],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    assert ended.stdout == "reading works\n", ended.stderr
    assert ended.returncode == -11
    [buffer] = client.get_buffers([NAME])
    assert buffer is not None and buffer.to_pybytes() == b"safe"


# -- what libraries make of them ------------------------------------------------------------------


def test_numpy_reads_and_writes_in_place(client: PlasmaClient) -> None:
    numbers = np.random.default_rng(1).standard_normal((100, 3))
    buffer = client.create(NAME, numbers.nbytes)
    np.frombuffer(buffer, numbers.dtype).reshape(numbers.shape)[:] = numbers
    client.seal(NAME)
    [read] = client.get_buffers([NAME])
    assert read is not None
    found = np.frombuffer(read, numbers.dtype).reshape(numbers.shape)
    assert np.array_equal(found, numbers)
    assert found.__array_interface__["data"][0] == read.address


def test_a_pickle_is_read_from_a_buffer(client: PlasmaClient) -> None:
    value = {"a": [1, 2.5, "three"], "b": (None, b"bytes")}
    assert pickle.loads(stored(client, pickle.dumps(value))) == value


def test_a_buffer_reader_reads(client: PlasmaClient) -> None:
    reader = pa.BufferReader(stored(client, b"0123456789"))
    assert (reader.read(3), reader.tell(), reader.read()) == (b"012", 3, b"3456789")


@pytest.mark.parametrize("threads", [1, 4])
def test_a_fixed_size_writer_writes_with_threads(client: PlasmaClient, threads: int) -> None:
    contents = np.random.default_rng(2).integers(0, 256, 5_000_000, np.uint8).tobytes()
    writer = pa.FixedSizeBufferWriter(client.create(NAME, len(contents)))
    writer.set_memcopy_threads(threads)
    writer.write(contents)
    client.seal(NAME)
    assert client.get_buffers([NAME])[0].to_pybytes() == contents  # type: ignore[union-attr]


def test_a_writer_cannot_write_past_the_end(client: PlasmaClient) -> None:
    writer = pa.FixedSizeBufferWriter(client.create(NAME, 10))
    with pytest.raises(OSError):
        writer.write(11 * b"x")
    with pytest.raises(ValueError, match="broadcast"):
        np.frombuffer(client.create(ObjectID(20 * b"m"), 3), np.uint8)[:] = list(b"four")


@pytest.mark.parametrize(
    "numbers",
    [np.random.default_rng(3).standard_normal((10, 4)), np.arange(24).reshape(2, 3, 4)],
    ids=["floats", "integers"],
)
def test_a_tensor_there_and_back(client: PlasmaClient, numbers: Any) -> None:
    tensor = pa.Tensor.from_numpy(numbers)
    buffer = client.create(NAME, pa.ipc.get_tensor_size(tensor))
    pa.ipc.write_tensor(tensor, pa.FixedSizeBufferWriter(buffer))
    client.seal(NAME)
    [read] = client.get_buffers([NAME])
    found = pa.ipc.read_tensor(pa.BufferReader(read)).to_numpy()
    assert np.array_equal(found, numbers) and found.dtype == numbers.dtype
    start, end = read.address, read.address + read.size  # type: ignore[union-attr]
    assert start <= found.__array_interface__["data"][0] < end


def test_a_pandas_frame_there_and_back(client: PlasmaClient) -> None:
    frame = pd.DataFrame(
        {
            "one": [1.0, 2.0, None],
            "two": ["a", "ü", None],
            "three": pd.date_range("2026", periods=3),
        }
    )
    batch = pa.RecordBatch.from_pandas(frame)
    size = pa.MockOutputStream()
    with pa.RecordBatchStreamWriter(size, batch.schema) as writer:
        writer.write_batch(batch)
    buffer = client.create(NAME, size.size())
    with pa.RecordBatchStreamWriter(pa.FixedSizeBufferWriter(buffer), batch.schema) as writer:
        writer.write_batch(batch)
    client.seal(NAME)
    [read] = client.get_buffers([NAME])
    reader = pa.RecordBatchStreamReader(pa.BufferReader(read))
    pd.testing.assert_frame_equal(reader.read_next_batch().to_pandas(), frame)


# -- how long objects are held --------------------------------------------------------------------


def ref_count(client: PlasmaClient) -> int:
    count = client.list()[NAME]["ref_count"]
    assert type(count) is int
    return count


@pytest.mark.parametrize("kind", ["memoryview", "slice", "numpy", "reader", "metadata"])
def test_whatever_is_made_of_a_buffer_holds_the_object(client: PlasmaClient, kind: str) -> None:
    client.create_and_seal(NAME, 100 * b"x", b"meta")
    [buffer] = client.get_metadata([NAME]) if kind == "metadata" else client.get_buffers([NAME])
    make: dict[str, Callable[[Any], Any]] = {
        "memoryview": lambda buffer: memoryview(buffer)[10:20],
        "slice": lambda buffer: buffer.slice(10, 5),
        "numpy": lambda buffer: np.frombuffer(buffer, np.uint8)[::2],
        "reader": pa.BufferReader,
        "metadata": memoryview,
    }
    made = make[kind](buffer)
    del buffer
    gc.collect()
    assert ref_count(client) == 1
    assert client.evict(1000) == 0
    del made
    gc.collect()
    assert ref_count(client) == 0
    assert client.evict(1000) == 104


def test_a_record_batch_holds_the_object_that_it_was_read_from(client: PlasmaClient) -> None:
    batch = pa.record_batch({"numbers": np.arange(1000), "texts": ["x"] * 1000})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    buffer = stored(client, sink.getvalue())
    start, end = buffer.address, buffer.address + buffer.size
    found = pa.ipc.open_stream(buffer).read_next_batch()
    del buffer
    assert ref_count(client) == 1
    column = found.column(0)
    del found
    gc.collect()
    assert client.evict(1) == 0
    assert column.equals(batch.column(0))
    assert start <= column.buffers()[1].address < end
    del column
    gc.collect()
    assert client.evict(1) > 0


def test_the_creators_buffer_holds_the_object_after_seal(client: PlasmaClient) -> None:
    buffer = client.create(NAME, 10)
    client.seal(NAME)
    assert ref_count(client) == 1
    del buffer
    assert ref_count(client) == 0


def test_a_new_object_does_not_show_what_lay_there_before(client: PlasmaClient) -> None:
    # Two objects after one another in the same memory: nobody reads an object that was deleted.
    size = client.store_capacity()
    client.put_raw_buffer(np.full(size, 0xAB, np.uint8), NAME)
    client.delete([NAME])
    client.create(NAME, size - 100)
    client.seal(NAME)
    other = ObjectID(20 * b"o")
    assert client.get_buffers([NAME])[0].size == size - 100  # type: ignore[union-attr]
    client.create_and_seal(other, b"abc")
    assert client.get_buffers([other])[0].to_pybytes() == b"abc"  # type: ignore[union-attr]


# -- raw buffers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        b"bytes",
        bytearray(b"bytes"),
        memoryview(b"bytes"),
        memoryview(b"b-y-t-e-s")[::2],
        pa.py_buffer(b"bytes"),
        np.frombuffer(b"bytes", np.uint8),
        array.array("d", [1.5, 2.5]),
        np.arange(10.0),
        np.arange(12, dtype=np.int16).reshape(3, 4),
        np.arange(12, dtype=np.complex128).reshape(3, 4).T,
        np.arange(100)[::3],
        np.array(5.0),
        np.zeros((0, 5)),
        np.zeros(3, dtype=[("a", "i4"), ("b", "f8")]),
    ],
    ids=lambda value: f"{type(value).__name__}",
)
def test_put_raw_buffer_stores_the_bytes_of_anything(client: PlasmaClient, value: Any) -> None:
    expected = memoryview(value).tobytes()
    assert client.put_raw_buffer(value, NAME) == NAME
    assert client.list()[NAME]["data_size"] == len(expected)
    assert client.get_buffers([NAME])[0].to_pybytes() == expected  # type: ignore[union-attr]
    other = ObjectID(20 * b"o")
    client.create_and_seal(other, value)
    assert client.get_buffers([other])[0].to_pybytes() == expected  # type: ignore[union-attr]


@pytest.mark.parametrize("value", ["text", 5, None, [1, 2], {"a": 1}, object()])
def test_what_has_no_bytes_is_a_type_error_and_leaves_nothing(
    client: PlasmaClient, value: Any
) -> None:
    for call in (client.put_raw_buffer, lambda value: client.create_and_seal(NAME, value)):
        with pytest.raises(TypeError, match="bytes-like"):
            call(value)
    assert client.list() == {}


def test_a_raw_buffer_with_a_marker_in_its_metadata(client: PlasmaClient) -> None:
    # How programs tell their own formats from each other.
    raw = client.put_raw_buffer(b"raw bytes", None, b"RAW")
    pickled = client.put_raw_buffer(pickle.dumps({"a": 1}), metadata=b"PICKLE")
    found = client.get_buffers([raw, pickled], timeout_ms=1000, with_meta=True)
    readers = {b"RAW": lambda data: data.to_pybytes(), b"PICKLE": pickle.loads}
    assert [readers[metadata](data) for metadata, data in found] == [b"raw bytes", {"a": 1}]  # type: ignore[index]


@pytest.mark.parametrize("threads", [-1, 0, 1, 2, 6, 1000])
def test_any_number_of_threads_copies_the_same(client: PlasmaClient, threads: int) -> None:
    contents = np.random.default_rng(4).integers(0, 256, 3_000_001, np.uint8)
    client.put_raw_buffer(contents, NAME, b"", threads)
    [read] = client.get_buffers([NAME])
    assert read is not None and np.array_equal(np.frombuffer(read, np.uint8), contents)
    object_id = client.put(contents, memcopy_threads=threads)
    assert np.array_equal(client.get(object_id), contents)
    table = pa.table({"a": contents})
    assert client.get_arrow(client.put_arrow(table, memcopy_threads=threads)).equals(table)
