"""Large results that are written straight into the store, and what a failure leaves behind."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from processes import kill_store
from support import wait_until

import plasma
from plasma import ObjectID, PlasmaClient

MakeStore = Callable[..., str]


def address(array: Any) -> int:
    start = array.__array_interface__["data"][0]
    assert type(start) is int
    return start


# -- arrays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        (5, float),
        ((3, 4), np.int16),
        ((2, 0, 3), "f4"),
        ((), np.complex128),
        ((7,), np.dtype([("a", "i4"), ("b", "f8")])),
        ((4,), "datetime64[ns]"),
        ((4,), bool),
        ((100, 100, 100), np.uint8),
    ],
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_becomes_an_object_at_the_end_of_its_block(
    client: PlasmaClient, store: str, shape: Any, dtype: Any, order: Any
) -> None:
    values = np.random.default_rng(5).integers(0, 2, shape).astype(dtype)
    block = client.create_array(shape, dtype, order=order)
    with block as array:
        assert array.shape == values.shape and array.dtype == values.dtype
        assert array.flags.writeable
        assert array.flags.c_contiguous if order == "C" else array.flags.f_contiguous
        assert client.state(block.object_id) == "created"
        array[...] = values
    assert client.state(block.object_id) == "sealed"
    found = plasma.connect(store).get(block.object_id)
    assert np.array_equal(found, values) and found.dtype == values.dtype
    assert not found.flags.writeable
    assert found.flags.c_contiguous if order == "C" else found.flags.f_contiguous


def test_an_array_is_written_where_readers_read_it(client: PlasmaClient) -> None:
    with client.create_array(1000) as array:
        array[:] = 1
        object_ids = list(client.list())
    found = client.get(object_ids[0])
    assert address(array) % 64 == address(found) % 64 == 0
    assert client.stats()["used"] < 8 * 1000 + 4096


def test_floats_are_the_default_and_the_id_can_be_chosen(client: PlasmaClient) -> None:
    name = ObjectID(20 * b"n")
    with client.create_array((2, 3), object_id=name, metadata=b"meta") as array:
        assert array.dtype == np.float64
        array[:] = 2.5
    assert client.get(name).tolist() == [[2.5] * 3] * 2
    assert client.get_metadata([name])[0].to_pybytes() == b"meta"  # type: ignore[union-attr]


def test_an_array_is_read_only_after_its_block(client: PlasmaClient) -> None:
    with client.create_array(10) as array:
        array[:] = 1
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 2
    assert array.sum() == 10


@pytest.mark.parametrize("kind", ["array", "buffer"])
def test_an_exception_leaves_nothing_and_reaches_the_caller(
    client: PlasmaClient, kind: str
) -> None:
    block: Any = client.create_array(1000) if kind == "array" else client.create_buffer(1000)
    with pytest.raises(KeyError, match="mine"), block:
        assert client.state(block.object_id) == "created"
        raise KeyError("mine")
    assert client.list() == {}
    assert client.stats()["used"] == 0
    client.create_and_seal(block.object_id, b"the name is free")


@pytest.mark.parametrize("kind", ["array", "buffer"])
def test_entering_raises_as_create_does(make_store: MakeStore, kind: str) -> None:
    client = plasma.connect(make_store(memory=100_000))

    def block(size: int, object_id: ObjectID | None = None) -> Any:
        make: Any = client.create_array if kind == "array" else client.create_buffer
        arguments = (size, np.uint8) if kind == "array" else (size,)
        return make(*arguments, object_id=object_id)

    name = ObjectID(20 * b"n")
    client.create_and_seal(name, b"x")
    with pytest.raises(plasma.PlasmaObjectExists, match=name.hex()), block(10, name):
        raise AssertionError("the block was entered")
    with pytest.raises(plasma.PlasmaStoreFull, match="capacity 100000"), block(200_000):
        raise AssertionError("the block was entered")
    with pytest.raises(ValueError), block(-1):
        raise AssertionError("the block was entered")
    assert list(client.list()) == [name]


def test_a_block_is_entered_once(client: PlasmaClient) -> None:
    block = client.create_buffer(10)
    with block:
        pass
    with pytest.raises(RuntimeError, match=block.object_id.hex()), block:
        raise AssertionError("the block was entered")
    assert client.contains(block.object_id)


def test_an_array_of_objects_cannot_lie_in_the_store(client: PlasmaClient) -> None:
    with pytest.raises((TypeError, ValueError)), client.create_array(3, object) as array:
        raise AssertionError(f"there is an array {array}")
    assert client.list() == {}


def test_nothing_is_created_before_the_block_is_entered(client: PlasmaClient) -> None:
    client.create_array(1000)
    client.create_buffer(1000)
    assert client.list() == {}


# -- bytes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 1000, 5_000_000])
def test_a_buffer_becomes_an_object_at_the_end_of_its_block(
    client: PlasmaClient, size: int
) -> None:
    block = client.create_buffer(size, metadata=b"meta")
    with block as buffer:
        assert isinstance(buffer, pa.Buffer) and buffer.is_mutable and buffer.size == size
        np.frombuffer(buffer, np.uint8)[:] = 7
    [(metadata, data)] = client.get_buffers([block.object_id], with_meta=True)
    assert data is not None and data.to_pybytes() == size * b"\x07"
    assert metadata == b"meta"


# -- Arrow ----------------------------------------------------------------------------------------

TABLE = pa.table(
    {
        "numbers": pa.array([1, 2, None, 4], pa.int64()),
        "texts": ["a", "ü", None, ""],
        "lists": [[1.5], [], None, [2.5, 3.5]],
        "kinds": pa.array(["x", "y", "x", "y"]).dictionary_encode(),
    }
)
#: What can be written as a stream, and the table that it is.
STREAMS: dict[str, tuple[Callable[[], Any], pa.Table]] = {
    "table": (lambda: TABLE, TABLE),
    "table of many batches": (lambda: pa.concat_tables([TABLE] * 5), pa.concat_tables([TABLE] * 5)),
    "slice": (lambda: TABLE.slice(1, 2), TABLE.slice(1, 2)),
    "empty table": (lambda: TABLE.slice(0, 0), TABLE.slice(0, 0)),
    "no columns": (lambda: pa.table({}), pa.table({})),
    "batch": (lambda: TABLE.to_batches()[0], TABLE),
    "reader": (lambda: pa.RecordBatchReader.from_batches(TABLE.schema, TABLE.to_batches()), TABLE),
    "pandas": (
        lambda: pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]}),
        pa.table(pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]})),
    ),
    "polars": (lambda: pl.DataFrame({"a": [1.0, 2.0]}), pa.table({"a": [1.0, 2.0]})),
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_table_there_and_back(client: PlasmaClient, store: str, name: str) -> None:
    make, expected = STREAMS[name]
    object_id = client.put_arrow(make(), metadata=b"meta")
    found = plasma.connect(store).get_arrow(object_id)
    assert isinstance(found, pa.Table)
    assert found.equals(expected)
    found.validate(full=True)
    assert client.get_metadata([object_id])[0].to_pybytes() == b"meta"  # type: ignore[union-attr]


def test_schema_metadata_survives(client: PlasmaClient) -> None:
    table = TABLE.replace_schema_metadata({"made by": "a test"})
    found = client.get_arrow(client.put_arrow(table))
    assert found.schema.equals(table.schema, check_metadata=True)


def test_columns_lie_in_the_stores_memory_and_pin_it(client: PlasmaClient) -> None:
    values = np.random.default_rng(6).standard_normal(100_000)
    object_id = client.put_arrow(pa.table({"a": values}))
    [buffer] = client.get_buffers([object_id])
    assert buffer is not None
    found = client.get_arrow(object_id).column("a").chunk(0).to_numpy()
    assert buffer.address <= address(found) < buffer.address + buffer.size
    assert not found.flags.writeable
    del buffer
    assert client.evict(1) == 0
    assert np.array_equal(found, values)
    del found
    assert client.evict(1) > 800_000


def test_the_size_is_exact(client: PlasmaClient) -> None:
    object_id = client.put_arrow(TABLE)
    sink = pa.MockOutputStream()
    with pa.ipc.new_stream(sink, TABLE.schema) as stream:
        stream.write_table(TABLE)
    assert client.list()[object_id]["data_size"] == sink.size()


def test_a_stream_is_read_one_batch_at_a_time(client: PlasmaClient) -> None:
    table = pa.concat_tables([TABLE] * 5)
    reader = client.open_arrow(client.put_arrow(table))
    assert reader.schema.equals(TABLE.schema)
    batches = list(reader)
    assert [batch.num_rows for batch in batches] == [4] * 5
    assert pa.Table.from_batches(batches).equals(table)


def test_a_stream_that_is_not_there_is_not_available(client: PlasmaClient) -> None:
    missing = ObjectID.from_random()
    assert client.get_arrow(missing, 0) is plasma.ObjectNotAvailable
    assert client.open_arrow(missing, timeout_ms=1) is plasma.ObjectNotAvailable


@pytest.mark.parametrize("data", [b"", b"something else entirely", bytes(1000)])
def test_an_object_that_is_no_stream_is_invalid(client: PlasmaClient, data: bytes) -> None:
    client.create_and_seal(ObjectID(20 * b"n"), data)
    with pytest.raises(pa.ArrowInvalid):
        client.get_arrow(ObjectID(20 * b"n"))


@pytest.mark.parametrize("cut", [1, 100, 1000])
def test_a_stream_cut_short_is_an_error(client: PlasmaClient, cut: int) -> None:
    [whole] = client.get_buffers([client.put_arrow(pa.table({"a": range(1000)}))])
    assert whole is not None
    client.create_and_seal(ObjectID(20 * b"n"), whole.slice(0, whole.size - cut - 8))
    with pytest.raises((pa.ArrowInvalid, OSError)):
        client.get_arrow(ObjectID(20 * b"n"))


@pytest.mark.parametrize("data", [5, "text", [1, 2], None, {"a": [1]}, np.arange(3)])
def test_what_is_no_stream_is_a_type_error_and_leaves_nothing(
    client: PlasmaClient, data: Any
) -> None:
    with pytest.raises(TypeError, match="put_arrow"):
        client.put_arrow(data)
    assert client.list() == {}


class Failing:
    """A stream that fails on its second batch."""

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        def batches() -> Any:
            yield TABLE.to_batches()[0]
            raise RuntimeError("the source has failed")

        reader = pa.RecordBatchReader.from_batches(TABLE.schema, batches())
        return reader.__arrow_c_stream__(requested_schema)


def test_a_source_that_fails_half_way_leaves_nothing(client: PlasmaClient) -> None:
    with pytest.raises(Exception, match="the source has failed"):
        client.put_arrow(Failing())
    assert client.list() == {}


def test_a_table_is_what_programs_of_the_original_read(client: PlasmaClient) -> None:
    [buffer] = client.get_buffers([client.put_arrow(TABLE)])
    assert pa.RecordBatchStreamReader(pa.BufferReader(buffer)).read_all().equals(TABLE)


def test_a_block_that_was_given_up_before_it_began_leaves_nothing(client: PlasmaClient) -> None:
    # As when Ctrl-C comes between the making of the object and the first line of the block.
    for make in (client.create_buffer, client.create_array):
        place: Any = make(100)
        object_id = place.object_id
        place.__enter__()
        assert client.state(object_id) == "created"
        del place
        gc.collect()
        wait_until(lambda id=object_id: client.state(id) == "absent")  # type: ignore[misc]


def test_what_a_block_raises_is_what_its_user_sees(client: PlasmaClient) -> None:
    with pytest.raises(KeyboardInterrupt), client.create_array(100):
        kill_store(client)
        raise KeyboardInterrupt


def test_a_block_ends_its_own_object_and_no_other_of_that_name(
    client: PlasmaClient, store: str
) -> None:
    place = client.create_buffer(100)
    with pytest.raises(plasma.PlasmaObjectNotFound), place:
        client.abort(place.object_id)
    assert client.state(place.object_id) == "absent"
