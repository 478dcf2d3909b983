"""A program as users write it, for type checkers: `mypy --strict` accepts it.

It also runs: `python typed_sample.py SOCKET`. Beyond calling things it says which types they give,
so that a stub that has become vaguer is found.
"""

from __future__ import annotations

import asyncio
import importlib
import pickle
import sys
from typing import Any

import numpy as np

import plasma
import plasma.aio
from plasma import Notification, ObjectID, ObjectNotAvailable, PlasmaClient

#: Not imported by an `import`: whether pyarrow has types differs between its versions.
pa: Any = importlib.import_module("pyarrow")


def values(client: PlasmaClient) -> None:
    object_id: ObjectID = client.put({"weights": np.arange(10)}, metadata=b"note", timeout_ms=100)
    value: Any = client.get(object_id)
    many: list[Any] = client.get([object_id, ObjectID.from_random()], timeout_ms=0)
    is_missing: bool = many[1] is ObjectNotAvailable
    assert value["weights"][3] == 3 and is_missing
    same: ObjectID = pickle.loads(pickle.dumps(object_id))
    digits: str = same.hex()
    name: bytes = same.binary()
    assert {object_id: digits}[same] == name.hex() and same <= object_id


def plain_bytes(client: PlasmaClient) -> None:
    object_id = ObjectID(20 * b"x")
    buffer = client.create(object_id, 5, metadata=b"m", evict=False)
    pa.FixedSizeBufferWriter(buffer).write(b"hello")
    client.seal(object_id)
    for found in client.get_buffers([object_id], 0):
        size: int = 0 if found is None else found.size
        assert size == 5
    for metadata, data in client.get_buffers([object_id], with_meta=True):
        if metadata is not None and data is not None:
            length: int = len(metadata) + data.size
            assert length == 6
    digest: bytes = client.hash(object_id)
    assert len(digest) == 8
    outcomes = client.delete([object_id])
    assert outcomes[0] in ("deleted", "in use")


def in_place(client: PlasmaClient) -> None:
    creating = client.create_array((2, 3), np.float32, order="F")
    with creating as array:
        array[:] = 1
        rows: int = array.shape[0]
    with client.create_buffer(10, metadata=b"m") as buffer:
        np.frombuffer(buffer, dtype="u1")[:] = rows
    table_id: ObjectID = client.put_arrow(pa.table({"x": [1, 2]}))
    assert client.get_arrow(table_id).num_rows == 2


def looking(client: PlasmaClient, object_id: ObjectID) -> None:
    ready, missing = client.wait([object_id], num_returns=1, timeout=0.0)
    rest: list[ObjectID] = ready + missing
    state: str = client.state(object_id)
    is_there: bool = client.contains(object_id)
    used: int = client.stats()["used"]
    sizes: dict[ObjectID, int] = {id: entry["data_size"] for id, entry in client.list().items()}
    freed: int = client.evict(10)
    print(rest, state, is_there, used, sizes, freed, client.store_capacity())
    with client.notifications() as events:
        event: Notification | None = events.next(timeout_ms=1000)
        if event is not None and event.object_id is not None:
            print(event.object_id.hex(), event.data_size + event.metadata_size)


async def asynchronously(path: str) -> None:
    async with await plasma.aio.connect(path, name="typed") as client:
        object_id: ObjectID = await client.put([1, 2, 3])
        value: Any = await client.get(object_id)
        both: list[Any] = await client.get([object_id, object_id], timeout_ms=0)
        ready, _ = await client.wait([object_id], timeout=1.0)
        assert value == both[0] and ready == [object_id]
        async for event in client.notifications():
            if event.kind == "snapshot end":
                break


def main(path: str) -> None:
    with plasma.connect(path, num_retries=3, name="typed") as client:
        values(client)
        plain_bytes(client)
        in_place(client)
        looking(client, client.put(1))
        try:
            client.create(ObjectID.from_random(), client.store_capacity() + 1)
        except plasma.PlasmaStoreFull as error:
            print(error)
    asyncio.run(asynchronously(path))


if __name__ == "__main__":
    main(sys.argv[1])
