"""Clients that only read. What the store lets them do is in `tests/read_only.rs`."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pytest

import plasma
from plasma import ObjectID, PlasmaClient

A = ObjectID(20 * b"a")
B = ObjectID(20 * b"b")


@pytest.fixture
def reader(store: str) -> Iterator[PlasmaClient]:
    with plasma.connect(store, read_only=True) as reader:
        yield reader


CHANGES: dict[str, Callable[[PlasmaClient], object]] = {
    "put": lambda client: client.put(1, B),
    "put large": lambda client: client.put(np.ones(100_000), B),
    "put_arrow": lambda client: client.put_arrow(pa.table({"x": [1]}), B),
    "put_raw_buffer": lambda client: client.put_raw_buffer(b"1", B),
    "create": lambda client: client.create(B, 1),
    "create_and_seal": lambda client: client.create_and_seal(B, b"1"),
    "create_and_seal_batch": lambda client: client.create_and_seal_batch([B], [b"1"]),
    "create_array": lambda client: client.create_array(3).__enter__(),
    "delete": lambda client: client.delete([A]),
    "evict": lambda client: client.evict(1),
    "set_client_options": lambda client: client.set_client_options("name", 1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_changes_objects_is_not_permitted(
    client: PlasmaClient, reader: PlasmaClient, change: Callable[[PlasmaClient], object]
) -> None:
    client.put("here", A)
    with pytest.raises(PermissionError, match="read-only"):
        change(reader)
    assert set(client.list()) == {A}


def test_all_else_is(client: PlasmaClient, reader: PlasmaClient) -> None:
    assert reader.read_only and not client.read_only
    object_id = client.put(np.arange(1000))
    assert reader.get(object_id).sum() == 499_500
    assert reader.wait([object_id], 1)[0] == [object_id]
    assert reader.contains(object_id)
    assert set(reader.list()) == {object_id}
    reader.refresh([object_id])
    with reader.notifications() as events:
        assert events.next().object_id == object_id
    assert pickle.loads(pickle.dumps(reader)).read_only


def test_in_an_event_loop(store: str) -> None:
    async def main() -> None:
        async with await plasma.aio.connect(store, read_only=True) as reader:
            with pytest.raises(PermissionError):
                await reader.put(1)

    asyncio.run(main())
