"""Buffers, arrays and tables outlive their client: `del`, `disconnect()`, and the end of the store.

Their memory stays mapped and unchanged, and what they hold stays pinned as long as the store is.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from processes import kill_store
from support import wait_until

import plasma
from plasma import ObjectID, PlasmaClient

MB = 1_000_000


def make_buffer(client: PlasmaClient, size: int) -> pa.Buffer:
    [buffer] = client.get_buffers([client.put_raw_buffer(np.full(size, 7, np.uint8))])
    assert buffer is not None
    return buffer


def make_created(client: PlasmaClient, size: int) -> pa.Buffer:
    object_id = ObjectID.from_random()
    buffer = client.create(object_id, size)
    np.frombuffer(buffer, np.uint8)[:] = 7
    client.seal(object_id)
    return buffer


def make_metadata(client: PlasmaClient, size: int) -> pa.Buffer:
    object_id = ObjectID.from_random()
    client.create(object_id, 0, bytes([7]) * size)
    client.seal(object_id)
    [buffer] = client.get_metadata([object_id])
    assert buffer is not None
    return buffer


def make_array(client: PlasmaClient, size: int) -> Any:
    return client.get(client.put({"nested": [np.full(size, 7, np.uint8)]}))["nested"][0]


def make_table(client: PlasmaClient, size: int) -> Any:
    return client.get(client.put(pa.table({"a": np.full(size, 7, np.uint8)})))


def make_stream(client: PlasmaClient, size: int) -> Any:
    return client.get_arrow(client.put_arrow(pa.table({"a": np.full(size, 7, np.uint8)})))


MAKERS = [make_buffer, make_created, make_metadata, make_array, make_table, make_stream]


def is_unchanged(thing: Any, size: int) -> bool:
    if isinstance(thing, pa.Table):
        thing = thing.column("a").chunk(0).to_numpy()
    if isinstance(thing, pa.Buffer):
        thing = np.frombuffer(thing, np.uint8)
    assert isinstance(thing, np.ndarray)
    return thing.shape == (size,) and bool((thing == 7).all())


def overwrite(store: str) -> None:
    """Another client fills all the memory that it can get."""
    with plasma.connect(store) as other:
        for _ in range(30):
            other.put_raw_buffer(np.full(10 * MB, 0xEE, np.uint8))


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("end", ["del", "disconnect", "block"])
def test_the_end_of_the_client_changes_nothing(
    store: str, make: Callable[[PlasmaClient, int], Any], end: str
) -> None:
    client = plasma.connect(store)
    if end == "block":
        with client:
            thing = make(client, 5 * MB)
    else:
        thing = make(client, 5 * MB)
        if end == "disconnect":
            client.disconnect()
    del client
    gc.collect()
    overwrite(store)
    assert is_unchanged(thing, 5 * MB)
    # It is still pinned, and let go when it goes, though its client has long been gone.
    with plasma.connect(store) as other:
        assert sum(entry["ref_count"] for entry in other.list().values()) == 1
        del thing
        gc.collect()
        assert sum(entry["ref_count"] for entry in other.list().values()) == 0


@pytest.mark.parametrize("make", MAKERS)
def test_the_end_of_the_store_changes_nothing(
    store: str, make: Callable[[PlasmaClient, int], Any]
) -> None:
    client = plasma.connect(store)
    thing = make(client, 5 * MB)
    kill_store(client)
    with pytest.raises(OSError):
        client.list()
    assert is_unchanged(thing, 5 * MB)
    client.disconnect()
    del client
    gc.collect()
    assert is_unchanged(thing, 5 * MB)
    # Letting go of it then is no error.
    del thing
    gc.collect()


def mappings_of_the_store() -> Iterator[str]:
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "memfd:plasma" in line or "plasma" in line.rpartition("/")[2] and "deleted" in line:
            yield line


def test_the_memory_goes_with_the_last_of_them(store: str) -> None:
    before = len(list(mappings_of_the_store()))
    client = plasma.connect(store)
    thing = make_array(client, 5 * MB)
    assert len(list(mappings_of_the_store())) > before
    client.disconnect()
    del client
    gc.collect()
    assert len(list(mappings_of_the_store())) > before
    del thing
    gc.collect()
    wait_until(lambda: len(list(mappings_of_the_store())) == before)


def test_an_unsealed_buffer_can_be_written_after_its_client_is_gone(store: str) -> None:
    client = plasma.connect(store)
    object_id = ObjectID.from_random()
    buffer = client.create(object_id, MB)
    client.disconnect()
    del client
    gc.collect()
    overwrite(store)
    memory = np.frombuffer(buffer, np.uint8)
    memory[:] = 7
    overwrite(store)
    assert is_unchanged(buffer, MB)
