"""`put` and `get` of Python values through a store: one id or many, there or not, and contexts.

How values become bytes is tested in `test_serialization`; this is about the calls.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from support import wait_until

import plasma
from plasma import ObjectID, PlasmaClient

VALUES: list[Any] = [
    "hello, world",
    "ü\0\U0001f600",
    1,
    -(2**63),
    2**100,
    1.5,
    True,
    None,
    b"bytes",
    b"",
    "",
    [],
    {},
    (),
    [1, "two", (3.0, [None])],
    {"a": {"b": [1, 2]}, 5: (1,), None: b""},
    {1, 2, 3},
    frozenset("abc"),
    complex(1, 2),
    range(5),
    ObjectID(20 * b"a"),
    [ObjectID(20 * b"a"), {"id": ObjectID(20 * b"b")}],
    np.float32(2.5),
]


def some_ids(count: int) -> list[ObjectID]:
    return [ObjectID(number.to_bytes(20, "big")) for number in range(count)]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:30])
def test_a_value_there_and_back(client: PlasmaClient, store: str, value: Any) -> None:
    object_id = client.put(value)
    assert type(object_id) is ObjectID
    for reader in (client, plasma.connect(store)):
        found = reader.get(object_id)
        assert found == value and type(found) is type(value)


@pytest.mark.parametrize("make", [list, tuple])
def test_many_ids_give_a_list_and_one_gives_one(
    client: PlasmaClient, make: Callable[[Any], Any]
) -> None:
    ids = [client.put(value) for value in VALUES]
    assert client.get(make(ids)) == VALUES
    assert client.get(make(ids[:1])) == VALUES[:1]
    assert client.get(ids[0]) == VALUES[0]


def test_the_id_can_be_chosen_and_is_returned(client: PlasmaClient) -> None:
    [object_id] = some_ids(1)
    assert client.put("value", object_id) == object_id
    assert client.get(object_id) == "value"
    with pytest.raises(plasma.PlasmaObjectExists, match=object_id.hex()):
        client.put("other", object_id)
    assert client.get(object_id) == "value"


def test_arguments_in_their_old_positions(client: PlasmaClient) -> None:
    [object_id] = some_ids(1)
    assert client.put([1, 2], object_id, 4, None) == object_id
    assert client.get(object_id, 1000, None) == [1, 2]
    assert client.get(object_ids=object_id, timeout_ms=10, serialization_context=None) == [1, 2]


def test_what_is_not_available_is_a_class_that_is_a_value(client: PlasmaClient) -> None:
    missing = ObjectID.from_random()
    found = client.get(missing, timeout_ms=0)
    assert found is plasma.ObjectNotAvailable
    assert found == plasma.ObjectNotAvailable
    assert isinstance(found, type)
    assert not isinstance(found, plasma.ObjectNotAvailable)
    there = client.put("there")
    assert client.get([missing, there, missing], 5) == [
        plasma.ObjectNotAvailable,
        "there",
        plasma.ObjectNotAvailable,
    ]


def test_an_empty_object_is_no_value_but_it_is_there(client: PlasmaClient) -> None:
    # The original said of an empty object that it is not available.
    [object_id] = some_ids(1)
    client.create_and_seal(object_id, b"")
    with pytest.raises(plasma.InvalidObjectError):
        client.get(object_id, 0)


@pytest.mark.parametrize("data", [b"x", b"garbage " * 100, bytes(1000), pickle.dumps(5)])
def test_an_object_that_put_has_not_stored_is_invalid(client: PlasmaClient, data: bytes) -> None:
    [object_id] = some_ids(1)
    client.create_and_seal(object_id, data)
    with pytest.raises(plasma.InvalidObjectError) as caught:
        client.get(object_id)
    # What the original raised for most of them.
    assert isinstance(caught.value, pa.ArrowInvalid)
    # It is not held by the exception, and the client goes on.
    del caught
    assert client.get(client.put(1)) == 1


class Unpicklable:
    def __reduce__(self) -> Any:
        raise RuntimeError("this cannot be pickled")


@pytest.mark.parametrize(
    "value", [Unpicklable(), [np.zeros(10**6), Unpicklable()], threading.Lock()]
)
def test_a_value_that_cannot_be_stored_leaves_nothing_behind(
    client: PlasmaClient, value: Any
) -> None:
    with pytest.raises((RuntimeError, TypeError)):
        client.put(value)
    assert client.list() == {}
    assert client.stats()["used"] == 0


def test_arrays_are_read_only_and_in_place(client: PlasmaClient) -> None:
    value: dict[str, Any] = {"x": np.arange(10_000.0), "nested": [np.ones((100, 100), np.int8)]}
    object_id = client.put(value)
    first, second = client.get(object_id), client.get(object_id)
    [buffer] = client.get_buffers([object_id])
    assert buffer is not None
    for array, again, original in (
        (first["x"], second["x"], value["x"]),
        (first["nested"][0], second["nested"][0], value["nested"][0]),
    ):
        assert np.array_equal(array, original)
        assert not array.flags.writeable
        address = array.__array_interface__["data"][0]
        assert address == again.__array_interface__["data"][0]
        assert buffer.address <= address < buffer.address + buffer.size


def test_values_hold_their_objects(client: PlasmaClient) -> None:
    array = client.get(client.put(np.arange(10_000)))
    assert client.evict(10**9) == 0
    assert array.sum() == 49_995_000
    del array
    assert client.evict(10**9) > 80_000


def test_values_without_arrays_hold_nothing(client: PlasmaClient) -> None:
    kept = client.get(client.put(VALUES))
    assert client.evict(10**9) > 0
    assert kept == VALUES


def test_frames_and_tables_there_and_back(client: PlasmaClient) -> None:
    frame = pd.DataFrame({"a": [1.0, None], "b": ["x", "y"], "c": pd.date_range("2026", periods=2)})
    table = pa.table({"a": [1, 2, None], "b": ["x", None, "z"]})
    batch = table.to_batches()[0]
    tensor = pa.Tensor.from_numpy(np.arange(6.0).reshape(2, 3))
    found = client.get(client.put([frame, table, batch, tensor, frame["b"]]))
    pd.testing.assert_frame_equal(found[0], frame)
    assert found[1].equals(table) and found[2].equals(batch) and found[3].equals(tensor)
    pd.testing.assert_series_equal(found[4], frame["b"])


def test_ids_can_be_sent_as_pickles(client: PlasmaClient, store: str) -> None:
    ids = [client.put(value) for value in range(10)]
    sent = pickle.loads(pickle.dumps(ids))
    assert plasma.connect(store).get(sent) == list(range(10))
    # Or through the store itself.
    assert client.get(client.get(client.put(ids))) == list(range(10))


class Point:
    """A class of a program of its own."""

    def __init__(self, x: int, y: int) -> None:
        self.x = x
        self.y = y


def test_a_context_says_how_a_class_is_stored(client: PlasmaClient) -> None:
    context = plasma.SerializationContext()
    context.register_type(
        Point,
        "point",
        custom_serializer=lambda point: (point.x, point.y),
        custom_deserializer=lambda pair: Point(pair[0] * 10, pair[1] * 10),
    )
    object_id = client.put([Point(1, 2)], serialization_context=context)
    [found] = client.get(object_id, serialization_context=context)
    assert type(found) is Point and (found.x, found.y) == (10, 20)
    [[again]] = client.get([object_id], 0, context)
    assert (again.x, again.y) == (10, 20)
    with pytest.raises(plasma.InvalidObjectError):
        client.get(object_id)


def test_without_a_context_a_class_is_pickled(client: PlasmaClient) -> None:
    found = client.get(client.put(Point(1, 2)))
    assert type(found) is Point and (found.x, found.y) == (1, 2)


# -- waiting for values ---------------------------------------------------------------------------


def test_a_get_of_ten_waits_until_all_ten_are_there(client: PlasmaClient, store: str) -> None:
    ids = some_ids(10)
    found: list[Any] = []
    waiting = threading.Thread(target=lambda: found.append(client.get(ids)))
    waiting.start()
    writer = plasma.connect(store)
    try:
        wait_until(lambda: writer.stats()["waiting_requests"] == 1)
        for number in (3, 9, 0, 1, 2, 4, 5, 6, 7):
            writer.put(number, ids[number])
        assert not found and writer.stats()["waiting_requests"] == 1
    finally:
        writer.put(8, ids[8])
        waiting.join(30)
    assert found == [list(range(10))]


WAITER = """
import sys, plasma
client = plasma.connect(sys.argv[1])
held = client.get(plasma.ObjectID(20 * b"h"))
client.create(plasma.ObjectID(20 * b"u"), 100)
client.get([plasma.ObjectID(20 * b"w"), plasma.ObjectID(20 * b"x")])
"""


def test_a_client_killed_while_it_waits_leaves_nothing_behind(
    client: PlasmaClient, store: str
) -> None:
    held, awaited, unsealed = (ObjectID(20 * name) for name in (b"h", b"w", b"u"))
    client.put(np.arange(1000), held)
    for _ in range(2):
        waiter = subprocess.Popen([sys.executable, "-c", WAITER, store])
        try:
            wait_until(lambda: client.stats()["waiting_requests"] == 1, seconds=30)
            assert client.list()[held]["ref_count"] == 1
            assert client.state(unsealed) == "created"
        finally:
            os.kill(waiter.pid, signal.SIGKILL)
            waiter.wait()
        wait_until(lambda: client.stats()["waiting_requests"] == 0)
        wait_until(lambda: client.state(unsealed) == "absent")
        assert client.list()[held]["ref_count"] == 0
    # What it waited for can be made, and goes to whoever wants it now.
    client.put("late", awaited)
    assert client.get(awaited) == "late"


def test_a_waiter_is_not_disturbed_by_an_attempt_that_was_aborted(
    client: PlasmaClient, store: str
) -> None:
    [object_id] = some_ids(1)
    found: list[Any] = []
    waiting = threading.Thread(target=lambda: found.append(client.get(object_id)))
    waiting.start()
    writer = plasma.connect(store)
    try:
        wait_until(lambda: writer.stats()["waiting_requests"] == 1)
        writer.create(object_id, 100)
        writer.abort(object_id)
        with plasma.connect(store) as leaving:
            leaving.create(object_id, 100)
        wait_until(lambda: writer.state(object_id) == "absent")
        assert not found
    finally:
        writer.put("in the end", object_id)
        waiting.join(30)
    assert found == ["in the end"]
