"""The calls about objects as bytes: create, seal, get, contains, delete, evict, list, hash.

What is expected here is what the last users of the original know, found out by calling it, or what
its documentation promised where it did something else.
"""

from __future__ import annotations

import inspect
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import plasma
from plasma import ObjectID, PlasmaClient

MakeStore = Callable[..., str]


def some_id(number: int) -> ObjectID:
    return ObjectID(number.to_bytes(20, "big"))


def some_ids(count: int) -> list[ObjectID]:
    return [some_id(number) for number in range(count)]


def bytes_of(client: PlasmaClient, object_id: ObjectID) -> bytes:
    [buffer] = client.get_buffers([object_id], 0)
    assert buffer is not None
    return bytes(buffer)


# -- the form of the calls ------------------------------------------------------------------------

#: Positional parameters of the original with their defaults; "" stands for none.
SIGNATURES: dict[str, list[tuple[str, Any]]] = {
    "contains": [("object_id", "")],
    "create": [("object_id", ""), ("data_size", ""), ("metadata", b"")],
    "create_and_seal": [("object_id", ""), ("data", ""), ("metadata", b"")],
    "debug_string": [],
    "decode_notifications": [("buf", "")],
    "delete": [("object_ids", "")],
    "disconnect": [],
    "evict": [("num_bytes", "")],
    "get": [("object_ids", ""), ("timeout_ms", -1), ("serialization_context", None)],
    "get_buffers": [("object_ids", ""), ("timeout_ms", -1), ("with_meta", False)],
    "get_metadata": [("object_ids", ""), ("timeout_ms", -1)],
    "get_next_notification": [],
    "get_notification_socket": [],
    "hash": [("object_id", "")],
    "list": [],
    "put": [
        ("value", ""),
        ("object_id", None),
        ("memcopy_threads", 6),
        ("serialization_context", None),
    ],
    "put_raw_buffer": [
        ("value", ""),
        ("object_id", None),
        ("metadata", b""),
        ("memcopy_threads", 6),
    ],
    "seal": [("object_id", "")],
    "set_client_options": [("client_name", ""), ("limit_output_memory", "")],
    "store_capacity": [],
    "subscribe": [],
    "to_capsule": [],
    "_release": [("object_id", "")],
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_positional_parameters_are_those_of_the_original(name: str) -> None:
    parameters = list(inspect.signature(getattr(PlasmaClient, name)).parameters.values())[1:]
    positional = [
        (parameter.name, "" if parameter.default is parameter.empty else parameter.default)
        for parameter in parameters
        if parameter.kind is not parameter.KEYWORD_ONLY
    ]
    assert positional == SIGNATURES[name]
    # What is new has defaults, so that old calls mean what they meant.
    for parameter in parameters[len(positional) :]:
        assert parameter.default is not parameter.empty


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.create(some_id(1), 5, meta=b""),
        lambda client: client.get(some_id(1), timeout=5),
        lambda client: client.get_buffers([some_id(1)], with_metadata=True),
        lambda client: client.put(1, id=some_id(1)),
        lambda client: client.put_raw_buffer(b"", data=b""),
    ],
)
def test_a_wrong_keyword_is_a_type_error(
    client: PlasmaClient, call: Callable[[Any], object]
) -> None:
    with pytest.raises(TypeError, match="unexpected keyword"):
        call(client)
    assert client.list() == {}


@pytest.mark.parametrize("wrong", [20 * b"a", "a", None, 5], ids=["bytes", "str", "None", "int"])
@pytest.mark.parametrize(
    "call",
    [
        lambda client, id: client.abort(id),
        lambda client, id: client.contains(id),
        lambda client, id: client.create(id, 5),
        lambda client, id: client.create_and_seal(id, b""),
        lambda client, id: client.delete([id]),
        lambda client, id: client.get([id], 0),
        lambda client, id: client.get_buffers([id], 0),
        lambda client, id: client.get_metadata([id], 0),
        lambda client, id: client.hash(id),
        lambda client, id: client.refresh([id]),
        lambda client, id: client.seal(id),
        lambda client, id: client.state(id),
        lambda client, id: client.wait([id], 1, 0),
        lambda client, id: client._release(id),
    ],
)
def test_what_is_not_an_id_is_a_type_error(
    client: PlasmaClient, call: Callable[[Any, Any], object], wrong: Any
) -> None:
    with pytest.raises(TypeError):
        call(client, wrong)
    assert client.list() == {}


def test_what_is_not_an_id_is_a_type_error_where_none_means_a_random_one(
    client: PlasmaClient,
) -> None:
    for wrong in (20 * b"a", "a", 5):
        with pytest.raises(TypeError, match="ObjectID"):
            client.put(1, wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="ObjectID"):
            client.put_raw_buffer(b"", wrong)  # type: ignore[arg-type]
    assert client.list() == {}


def test_exceptions_derive_from_those_of_arrow() -> None:
    for kind in (
        plasma.PlasmaObjectExists,
        plasma.PlasmaObjectNotFound,
        plasma.PlasmaStoreFull,
    ):
        assert issubclass(kind, pa.lib.ArrowException)
        assert not issubclass(kind, OSError)
        assert str(kind("text")) == "text"
        assert kind("text").args == ("text",)


# -- create, seal, get ----------------------------------------------------------------------------


def test_create_write_seal_and_read_from_another_client(client: PlasmaClient, store: str) -> None:
    object_id = some_id(50)
    memory = np.frombuffer(client.create(object_id, 50), dtype=np.uint8)
    memory[:] = np.arange(50)
    client.seal(object_id)
    other = plasma.connect(store)
    assert bytes_of(other, object_id) == bytes(range(50))
    assert bytes_of(client, object_id) == bytes(range(50))


def test_metadata_of_every_length(client: PlasmaClient) -> None:
    for length in range(1000):
        metadata = (bytes(range(256)) * 4)[:length]
        object_id = some_id(length)
        buffer = client.create(object_id, length, metadata)
        assert len(buffer) == length
        client.seal(object_id)
        assert client.get_metadata([object_id])[0].to_pybytes() == metadata  # type: ignore[union-attr]
        [(found, data)] = client.get_buffers([object_id], with_meta=True)
        assert found == metadata and type(found) is bytes
        assert data is not None and data.size == length


def test_creating_what_exists_raises_every_time(client: PlasmaClient, store: str) -> None:
    client.create(some_id(1), 10)
    client.create_and_seal(some_id(2), b"sealed")
    other = plasma.connect(store)
    creating: list[Callable[[PlasmaClient, ObjectID], object]] = [
        lambda c, id: c.create(id, 10),
        lambda c, id: c.create_and_seal(id, b"x"),
        lambda c, id: c.put(1, id),
        lambda c, id: c.put_raw_buffer(b"x", id),
        lambda c, id: c.put_arrow(pa.table({"a": [1]}), id),
    ]
    for object_id in (some_id(1), some_id(2)):
        for creator in (client, other):
            for call in creating:
                for _ in range(50):
                    with pytest.raises(plasma.PlasmaObjectExists, match=object_id.hex()):
                        call(creator, object_id)
    assert bytes_of(client, some_id(2)) == b"sealed"


def test_create_and_seal_of_a_thousand_sizes(client: PlasmaClient) -> None:
    contents = random.Random(7).randbytes(1000)
    for size in range(1000):
        client.create_and_seal(some_id(size), contents[:size], contents[: size % 17])
    for size in range(1000):
        [(metadata, data)] = client.get_buffers([some_id(size)], with_meta=True)
        assert data is not None and data.to_pybytes() == contents[:size]
        assert metadata == contents[: size % 17]
    with pytest.raises(plasma.PlasmaObjectExists):
        client.create_and_seal(some_id(500), b"")


def test_objects_of_create_and_seal_can_be_evicted(client: PlasmaClient) -> None:
    client.create_and_seal(some_id(1), 1000 * b"x")
    assert client.list()[some_id(1)]["ref_count"] == 0
    assert client.evict(1) == 1000
    assert not client.contains(some_id(1))


@pytest.mark.parametrize(
    ("data_size", "error"),
    [(-1, ValueError), (-(2**60), ValueError), ("5", TypeError), (None, TypeError)]
    + [(2.5, TypeError), (2**70, OverflowError), (float("inf"), (TypeError, OverflowError))],
)
def test_a_size_that_is_none_is_refused(
    client: PlasmaClient, data_size: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        client.create(some_id(1), data_size)
    assert client.list() == {}


@pytest.mark.parametrize("data_size", [1000, 1e3, np.int32(1000), np.int64(1000), np.float64(1e3)])
def test_a_size_is_any_whole_number(client: PlasmaClient, data_size: Any) -> None:
    assert len(client.create(some_id(1), data_size)) == 1000


@pytest.mark.parametrize("metadata", [b"meta", bytearray(b"meta"), memoryview(b"meta")])
def test_metadata_is_anything_with_bytes(client: PlasmaClient, metadata: Any) -> None:
    client.create(some_id(1), 5, metadata)
    client.seal(some_id(1))
    client.create_and_seal(some_id(2), b"", metadata)
    client.put_raw_buffer(b"", some_id(3), metadata)
    client.put(None, some_id(4), metadata=metadata)
    found = client.get_metadata(some_ids(5)[1:])
    assert [buffer.to_pybytes() for buffer in found if buffer is not None] == 4 * [b"meta"]


@pytest.mark.parametrize("metadata", ["text", None, 7])
def test_other_metadata_is_a_type_error_and_leaves_nothing(
    client: PlasmaClient, metadata: Any
) -> None:
    for call in (
        lambda: client.create(some_id(1), 5, metadata),
        lambda: client.create_and_seal(some_id(1), b"", metadata),
        lambda: client.put_raw_buffer(b"", some_id(1), metadata),
    ):
        with pytest.raises(TypeError):
            call()
    assert client.list() == {}


def test_sealing_twice_is_a_type_error(client: PlasmaClient) -> None:
    buffer = client.create(some_id(1), 5)
    client.seal(some_id(1))
    with pytest.raises(TypeError, match=some_id(1).hex()) as caught:
        client.seal(some_id(1))
    assert isinstance(caught.value, pa.lib.ArrowTypeError)
    assert len(buffer) == 5


def test_sealing_what_one_does_not_create_is_not_found(client: PlasmaClient, store: str) -> None:
    with pytest.raises(plasma.PlasmaObjectNotFound, match=some_id(1).hex()):
        client.seal(some_id(1))
    buffer = client.create(some_id(1), 5)
    with pytest.raises(plasma.PlasmaObjectNotFound, match=some_id(1).hex()):
        plasma.connect(store).seal(some_id(1))
    assert client.state(some_id(1)) == "created"
    client.seal(some_id(1))
    assert len(buffer) == 5


def test_an_object_that_nobody_sealed_goes_with_its_buffer_when_released(
    client: PlasmaClient,
) -> None:
    buffer = client.create(some_id(1), 5)
    client._release(some_id(1))
    assert client.state(some_id(1)) == "created"
    del buffer
    assert client.list() == {}
    with pytest.raises(plasma.PlasmaObjectNotFound):
        client.seal(some_id(1))


def test_releasing_what_is_sealed_does_nothing_to_its_buffers(client: PlasmaClient) -> None:
    buffer = client.create(some_id(1), 5)
    client.seal(some_id(1))
    client._release(some_id(1))
    assert client.evict(100) == 0
    assert len(buffer) == 5


def test_releasing_what_is_not_there_is_not_found(client: PlasmaClient) -> None:
    with pytest.raises(plasma.PlasmaObjectNotFound):
        client._release(some_id(1))


# -- waiting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout_ms", [0, 10, 100, 1000])
def test_get_when_all_of_many_are_missing(client: PlasmaClient, timeout_ms: int) -> None:
    start = time.monotonic()
    assert client.get_buffers(some_ids(60), timeout_ms) == 60 * [None]
    assert time.monotonic() - start >= timeout_ms / 1000


@pytest.mark.parametrize("timeout_ms", [0, 10, 100, 1000])
def test_get_when_half_of_many_are_missing(client: PlasmaClient, timeout_ms: int) -> None:
    for number in range(0, 60, 2):
        client.create_and_seal(some_id(number), bytes([number]))
    start = time.monotonic()
    found = client.get_buffers(some_ids(60), timeout_ms)
    assert time.monotonic() - start >= timeout_ms / 1000
    expected = [None if number % 2 else bytes([number]) for number in range(60)]
    assert [None if data is None else data.to_pybytes() for data in found] == expected


@pytest.mark.parametrize("timeout_ms", [0, 1, 20])
def test_get_of_an_object_that_this_client_has_not_sealed(
    client: PlasmaClient, timeout_ms: int
) -> None:
    buffer = client.create(some_id(1), 5)
    assert client.get_buffers([some_id(1)], timeout_ms) == [None]
    assert client.get(some_id(1), timeout_ms) is plasma.ObjectNotAvailable
    assert client.get_metadata([some_id(1)], timeout_ms) == [None]
    client.seal(some_id(1))
    assert client.get_buffers([some_id(1)], timeout_ms) == [buffer]


def test_waiting_for_ever_for_what_this_thread_creates_is_an_error(client: PlasmaClient) -> None:
    # The original's process aborted here.
    client.create(some_id(1), 5)
    for call in (client.get, lambda id: client.get_buffers([id]), lambda id: client.get([id, id])):
        with pytest.raises(ValueError, match=some_id(1).hex()):
            call(some_id(1))
    client.seal(some_id(1))
    assert len(client.get_buffers([some_id(1)])) == 1


@pytest.mark.parametrize("timeout_ms", [-2, -100])
def test_other_negative_timeouts_do_not_wait(client: PlasmaClient, timeout_ms: int) -> None:
    assert client.get(some_id(1), timeout_ms) is plasma.ObjectNotAvailable


@pytest.mark.parametrize("timeout_ms", [0.0, 10.0, 0.9, 1.5, -0.5, True, np.int16(3)])
def test_a_timeout_is_any_number(client: PlasmaClient, timeout_ms: Any) -> None:
    # Programs compute timeouts. The original cut them off to milliseconds.
    assert client.get(some_id(1), timeout_ms) is plasma.ObjectNotAvailable
    assert client.get_buffers([some_id(1)], timeout_ms=timeout_ms) == [None]
    assert client.get_metadata([some_id(1)], timeout_ms=timeout_ms) == [None]


@pytest.mark.parametrize("timeout_ms", ["1", None, [], float("nan")])
def test_a_timeout_that_is_no_number_is_an_error(client: PlasmaClient, timeout_ms: Any) -> None:
    client.put(1, some_id(1))
    with pytest.raises((TypeError, ValueError)):
        client.get(some_id(1), timeout_ms)


def test_a_long_timeout_ends_when_the_objects_are_there(client: PlasmaClient) -> None:
    client.put("here", some_id(1))
    assert client.get(some_id(1), 2**40) == "here"
    assert client.get([some_id(1), some_id(1)], 2**40) == ["here", "here"]


def test_the_same_id_many_times_gives_it_many_times(client: PlasmaClient) -> None:
    client.create_and_seal(some_id(1), b"one")
    found = client.get_buffers([some_id(1), some_id(2), some_id(1), some_id(2)], 10)
    assert [None if data is None else data.to_pybytes() for data in found] == [
        b"one",
        None,
        b"one",
        None,
    ]


@pytest.mark.parametrize("make", [list, tuple, iter, dict.fromkeys, np.array])
def test_ids_come_in_any_sequence(client: PlasmaClient, make: Callable[[Any], Any]) -> None:
    ids = some_ids(3)
    for id in ids:
        client.put(id.hex(), id)
    assert client.get(make(ids), 0) == [id.hex() for id in ids]
    assert len(client.get_buffers(make(ids), 0)) == 3
    assert len(client.get_metadata(make(ids), 0)) == 3
    client.delete(make(ids))
    assert client.list() == {}


def test_no_ids_give_no_objects_at_once(client: PlasmaClient) -> None:
    assert client.get([]) == []
    assert client.get(()) == []
    assert client.get_buffers([]) == []
    assert client.get_buffers([], with_meta=True) == []
    assert client.get_metadata([]) == []


def test_where_many_ids_are_wanted_one_is_a_type_error(client: PlasmaClient) -> None:
    for call in (client.get_buffers, client.get_metadata, client.delete, client.refresh):
        with pytest.raises(TypeError, match="list of ObjectIDs"):
            call(some_id(1))  # type: ignore[arg-type]


def test_missing_ones_have_neither_metadata_nor_data(client: PlasmaClient) -> None:
    client.create_and_seal(some_id(1), b"data", b"meta")
    found = client.get_buffers([some_id(0), some_id(1), some_id(2)], 0, True)
    assert found[0] == found[2] == (None, None)
    assert found[1][0] == b"meta" and found[1][1].to_pybytes() == b"data"
    assert all(type(pair) is tuple for pair in found)


def test_an_empty_object_is_an_object(client: PlasmaClient) -> None:
    client.create_and_seal(some_id(1), b"")
    client.create(some_id(2), 0)
    client.seal(some_id(2))
    client.create(some_id(3), 0, b"only metadata")
    client.seal(some_id(3))
    client.put_raw_buffer(b"", some_id(4))
    for number in range(1, 5):
        assert client.contains(some_id(number))
        [data] = client.get_buffers([some_id(number)], 0)
        assert data is not None and data.size == 0 and data.to_pybytes() == b""
    assert client.get_buffers([some_id(3)], 0, True)[0][0] == b"only metadata"


# -- contains, hash, list -------------------------------------------------------------------------


def test_contains_what_is_sealed_and_only_that(client: PlasmaClient, store: str) -> None:
    other = plasma.connect(store)
    asked = (client, other)
    assert [asker.contains(some_id(1)) for asker in asked] == [False, False]
    buffer = client.create(some_id(1), 10)
    assert [asker.contains(some_id(1)) for asker in asked] == [False, False]
    client.seal(some_id(1))
    assert [asker.contains(some_id(1)) for asker in asked] == [True, True]
    del buffer
    client.delete([some_id(1)])
    assert [asker.contains(some_id(1)) for asker in asked] == [False, False]


def pattern(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


@pytest.mark.parametrize(
    ("size", "metadata", "digest"),
    [
        (0, b"", "99e9d85137db46ef"),
        (0, b"d", "e4147d90f2d80050"),
        (1, b"", "682705db4aa834e9"),
        (3, b"d", "472307f033079d05"),
        (3, b"meta", "711751707555c677"),
        (1000, b"", "d3548ba84af006f3"),
        (1000, b"metadata", "4b0025768a6fca5c"),
        (2**20 - 1, b"m", "cc719ea20dc50796"),
        (2**20, b"m", "892cc8ad904ef5f0"),
        (2**20 + 1, b"m", "4902fe36cae99d1a"),
        (1_280_000, b"", "9ddb2f3642f14189"),
        (3_000_017, b"mm", "3b0f53c25e33066f"),
    ],
)
def test_the_hash_is_the_one_that_the_original_gave(
    client: PlasmaClient, size: int, metadata: bytes, digest: str
) -> None:
    # The digests were printed by pyarrow 11, for the same data and metadata.
    client.put_raw_buffer(pattern(size), some_id(1), metadata)
    assert client.hash(some_id(1)) == bytes.fromhex(digest)


def test_equal_objects_have_equal_hashes(client: PlasmaClient, store: str) -> None:
    client.create_and_seal(some_id(1), pattern(1000), b"same")
    client.create_and_seal(some_id(2), pattern(1000), b"same")
    digest = client.hash(some_id(1))
    assert type(digest) is bytes and len(digest) == 8
    assert client.hash(some_id(2)) == digest
    assert plasma.connect(store).hash(some_id(1)) == digest


def test_hashes_differ_with_data_and_with_metadata(client: PlasmaClient) -> None:
    digests = set()
    for number in range(2304):
        data, metadata = divmod(number, 48)
        client.create_and_seal(some_id(number), pattern(data), pattern(metadata))
        digests.add(client.hash(some_id(number)))
    # Data and metadata are hashed one behind the other: only where one ends and the other begins
    # does not count. So there are as many digests as there are different texts.
    texts = {pattern(data) + pattern(metadata) for data in range(48) for metadata in range(48)}
    assert len(digests) == len(texts)


def test_what_is_not_sealed_has_no_hash(client: PlasmaClient) -> None:
    with pytest.raises(plasma.PlasmaObjectNotFound, match=some_id(1).hex()):
        client.hash(some_id(1))
    client.create(some_id(1), 5)
    with pytest.raises(plasma.PlasmaObjectNotFound, match=some_id(1).hex()):
        client.hash(some_id(1))


def test_hashing_leaves_no_hold(client: PlasmaClient) -> None:
    client.create_and_seal(some_id(1), b"abc")
    client.hash(some_id(1))
    assert client.evict(1) == 3


def test_list_has_the_fields_of_the_original_with_right_values(
    client: PlasmaClient, store: str
) -> None:
    before = int(time.time())
    unsealed = client.create(some_id(1), 100, b"meta")
    client.create_and_seal(some_id(2), b"abc", b"m")
    client.create_and_seal(some_id(3), b"held by two")
    held = client.get_buffers([some_id(3)]) + plasma.connect(store).get_buffers([some_id(3)])
    after = int(time.time())

    listed = client.list()
    assert set(listed) == {some_id(1), some_id(2), some_id(3)}
    for entry in listed.values():
        assert type(entry["create_time"]) is int
        assert before <= entry["create_time"] <= after
        assert entry["delete_pending"] is False
    one, two, three = (listed[some_id(number)] for number in (1, 2, 3))
    assert (one["data_size"], one["metadata_size"]) == (100, 4)
    assert (one["state"], one["ref_count"], one["construct_duration"]) == ("created", 1, -1)
    assert type(one["creator"]) is int
    assert (two["data_size"], two["metadata_size"]) == (3, 1)
    assert (two["state"], two["ref_count"], two["creator"]) == ("sealed", 0, None)
    assert 0 <= two["construct_duration"] <= after - before
    assert three["ref_count"] == 2
    assert len(unsealed) == 100 and len(held) == 2


def test_a_handle_counts_once_a_client_however_many_there_are(client: PlasmaClient) -> None:
    client.create_and_seal(some_id(1), b"abc")
    held = [client.get_buffers([some_id(1)]) for _ in range(5)]
    assert client.list()[some_id(1)]["ref_count"] == 1
    del held
    assert client.list()[some_id(1)]["ref_count"] == 0


def test_a_store_without_objects_lists_none(client: PlasmaClient) -> None:
    assert client.list() == {}


def test_the_debug_string_has_the_numbers_of_the_original(client: PlasmaClient) -> None:
    client.create_and_seal(some_id(1), 1000 * b"x")
    text = client.debug_string()
    assert "allocation limit: 100000000" in text
    assert "allocated bytes: 1000" in text
    assert "(global lru) num objects: 1" in text


# -- delete, evict, and being full ----------------------------------------------------------------


def test_delete_removes_what_is_there_and_ignores_what_is_not(client: PlasmaClient) -> None:
    client.create_and_seal(some_id(1), b"x")
    assert client.delete([some_id(0), some_id(1), some_id(1), some_id(2)]) == [
        "not found",
        "deleted",
        "not found",
        "not found",
    ]
    assert client.list() == {}
    assert client.delete([]) == []


def test_delete_then_create_of_the_same_id_works_at_once(client: PlasmaClient) -> None:
    for round_number in range(200):
        contents = round_number.to_bytes(4, "big")
        client.create_and_seal(some_id(1), contents)
        assert bytes_of(client, some_id(1)) == contents
        client.delete([some_id(1)])
        assert not client.contains(some_id(1))


def test_delete_of_what_is_in_use_waits_for_the_last_buffer(
    client: PlasmaClient, store: str
) -> None:
    client.create_and_seal(some_id(1), b"abc")
    mine = client.get_buffers([some_id(1)])
    other = plasma.connect(store)
    theirs = other.get_buffers([some_id(1)])
    assert client.delete([some_id(1)]) == ["in use"]
    assert client.list()[some_id(1)]["delete_pending"] is True
    assert mine[0].to_pybytes() == theirs[0].to_pybytes() == b"abc"  # type: ignore[union-attr]
    del mine
    assert client.list()[some_id(1)]["ref_count"] == 1
    del theirs
    assert other.list() == {}


def test_delete_of_what_is_not_sealed_happens_after_it_was(client: PlasmaClient) -> None:
    buffer = client.create(some_id(1), 5)
    assert client.delete([some_id(1)]) == ["not sealed"]
    assert client.state(some_id(1)) == "created"
    client.seal(some_id(1))
    del buffer
    assert client.list() == {}


def test_evict_takes_whole_objects_the_oldest_first(client: PlasmaClient) -> None:
    for number, size in enumerate([1000, 999, 998, 997, 996, 995, 994]):
        client.create_and_seal(some_id(number), size * b"x")
    assert client.evict(1) == 1000
    assert client.evict(999) == 999
    assert client.evict(500) == 998
    assert client.evict(998) == 997 + 996
    assert client.evict(10_000) == 995 + 994
    assert client.evict(1) == 0
    assert client.list() == {}


def test_what_is_held_is_not_evicted(client: PlasmaClient) -> None:
    client.create_and_seal(some_id(1), 1000 * b"x")
    client.create_and_seal(some_id(2), 998 * b"y")
    unsealed = client.create(some_id(3), 997)
    held = client.get_buffers([some_id(1)])
    assert client.evict(1) == 998
    assert client.evict(10_000) == 0
    del held
    assert client.evict(10_000) == 1000
    assert client.state(some_id(3)) == "created" and len(unsealed) == 997


@pytest.mark.parametrize("num_bytes", [0, -1, -(10**12)])
def test_evicting_nothing_or_less_evicts_nothing(client: PlasmaClient, num_bytes: int) -> None:
    client.create_and_seal(some_id(1), b"x")
    assert client.evict(num_bytes) == 0
    assert client.contains(some_id(1))


def test_metadata_counts_as_bytes_that_are_evicted(client: PlasmaClient) -> None:
    client.create_and_seal(some_id(1), 100 * b"x", 11 * b"m")
    assert client.evict(1) == 111


def test_an_object_may_take_the_whole_store(client: PlasmaClient) -> None:
    # Time and again: each makes room by evicting the one before.
    size = client.store_capacity()
    for number in range(10):
        buffer = client.create(some_id(number), size)
        np.frombuffer(buffer, dtype=np.uint8)[:: 2**20] = number
        client.seal(some_id(number))
        del buffer
        assert list(client.list()) == [some_id(number)]
    client.delete([some_id(9)])
    # The same in small objects.
    for number in range(100):
        client.create(some_id(number), size // 100)
        client.seal(some_id(number))
    assert len(client.list()) == 100


def test_a_byte_more_than_the_store_has_is_full(client: PlasmaClient) -> None:
    size = client.store_capacity()
    with pytest.raises(plasma.PlasmaStoreFull, match=str(size + 1)):
        client.create(some_id(1), size + 1)
    with pytest.raises(plasma.PlasmaStoreFull, match=str(size)):
        client.create(some_id(1), size - 1, b"mm")
    assert client.list() == {}


@pytest.mark.parametrize("data_size", [2 * 10**8, 2**62, 2**63 - 1])
def test_a_create_that_never_fits_evicts_nothing(client: PlasmaClient, data_size: int) -> None:
    for number in range(10):
        client.create_and_seal(some_id(number), b"small")
    for _ in range(3):
        with pytest.raises(plasma.PlasmaStoreFull):
            client.create(some_id(99), data_size)
    assert len(client.list()) == 10


def test_what_a_full_store_can_still_take(client: PlasmaClient) -> None:
    part = client.store_capacity() // 10
    held = [client.create(some_id(number), part) for number in range(9)]
    for number in range(9):
        client.seal(some_id(number))
    for size, fits in [(part, True), (part + 1, False), (2 * part, False), (part // 2, True)]:
        if fits:
            client.create(some_id(99), size)
            client.abort(some_id(99))
        else:
            with pytest.raises(plasma.PlasmaStoreFull) as caught:
                client.create(some_id(99), size)
            # The numbers that a user needs: what was asked for, what there is, what is taken.
            for number in (size, client.store_capacity(), 9 * part):
                assert str(number) in str(caught.value)
    del held
    client.create(some_id(99), 2 * part)


@pytest.mark.parametrize(
    "call",
    [
        lambda client, size: client.create_and_seal(some_id(1), bytes(size)),
        lambda client, size: client.put_raw_buffer(bytes(size), some_id(1)),
        lambda client, size: client.put(bytes(size), some_id(1)),
        lambda client, size: client.put(np.zeros(size, np.uint8), some_id(1)),
        lambda client, size: client.put_arrow(pa.table({"a": np.zeros(size, np.uint8)})),
    ],
    ids=["create_and_seal", "put_raw_buffer", "put bytes", "put array", "put_arrow"],
)
def test_a_put_that_does_not_fit_leaves_nothing_behind(
    make_store: MakeStore, call: Callable[[PlasmaClient, int], object]
) -> None:
    client = plasma.connect(make_store(memory=1_000_000))
    with pytest.raises(plasma.PlasmaStoreFull):
        call(client, 2_000_000)
    assert client.list() == {}


# -- client options -------------------------------------------------------------------------------


def test_client_options_give_a_name_and_a_quota(client: PlasmaClient) -> None:
    client.set_client_options("writer", 1000)
    [me] = client.clients()
    assert (me["name"], me["quota"]) == ("writer", 1000)
    with pytest.raises(plasma.PlasmaStoreFull, match="1001"):
        client.create(some_id(1), 1001)
    client.create(some_id(1), 1000)


def test_a_quota_is_given_once_and_within_70_percent(client: PlasmaClient, store: str) -> None:
    with pytest.raises(plasma.PlasmaStoreFull, match="70000001"):
        client.set_client_options("greedy", 70_000_001)
    client.set_client_options("modest", 60_000_000)
    with pytest.raises(plasma.PlasmaStoreFull, match="60000000"):
        client.set_client_options("modest", 60_000_000)
    other = plasma.connect(store)
    with pytest.raises(plasma.PlasmaStoreFull):
        other.set_client_options("other", 10_000_001)
    other.set_client_options("other", 10_000_000)


def test_a_name_alone_sets_no_quota(client: PlasmaClient) -> None:
    client.set_client_options(client_name="reader", limit_output_memory=-1)
    [me] = client.clients()
    assert (me["name"], me["quota"]) == ("reader", None)


def test_a_name_that_is_no_text_is_a_type_error(client: PlasmaClient) -> None:
    for wrong in (None, b"name", 5):
        with pytest.raises(TypeError):
            client.set_client_options(wrong, -1)  # type: ignore[arg-type]


@pytest.mark.parametrize("ids", [range(10**12), range(2**62)])
def test_a_length_that_is_not_meant_is_not_believed(client: PlasmaClient, ids: Any) -> None:
    for call in (client.get, client.get_buffers, client.delete):
        with pytest.raises(TypeError, match="ObjectID"):
            call(ids)


def test_what_holds_no_value_is_named(client: PlasmaClient) -> None:
    client.create_and_seal(some_id(1), b"raw")
    good = client.put("good")
    with pytest.raises(plasma.InvalidObjectError, match=some_id(1).hex()):
        client.get([good, some_id(1)])
    with pytest.raises(pa.ArrowInvalid, match=some_id(1).hex()):
        client.get_arrow(some_id(1))


def test_ids_may_come_from_an_iterator(client: PlasmaClient) -> None:
    ids = [client.put(number) for number in range(3)]
    assert client.wait(iter(ids), 3) == (ids, [])
    assert client.get(iter(ids)) == [0, 1, 2]
    with pytest.raises(ValueError, match="negative"):
        client.wait(ids, -1)
