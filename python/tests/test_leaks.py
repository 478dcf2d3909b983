"""Nothing grows: 100,000 rounds leave client and store where they were.

Takes about half a minute. The rounds run in a process of their own, where nothing but the client
takes memory, after a warm-up in which every table and cache gets its size.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import probes
import pyarrow as pa
from children import Child, running_store, say
from support import wait_until

import plasma
from plasma import ObjectID, PlasmaClient

WARM_UP_ROUNDS = 10_000
ROUNDS = 100_000

#: There are ten kinds of rounds, so each is run 10,000 times: a leak of one Python object (at least
#: 56 bytes) or one allocation (at least 32, and none here is that small) in one of them would be
#: twice this and more. Without any leak the heaps go up and down by some 100 KiB.
SLACK_BYTES = 512 * probes.KIB
#: Python objects in caches of the interpreter. A leak in one kind of round would be 10,000.
SLACK_OBJECTS = 1000

MISSING = ObjectID(20 * b"m")
FOREIGN = ObjectID(20 * b"f")
KEPT = ObjectID(20 * b"k")


# -- the rounds -----------------------------------------------------------------------------------


def small(client: PlasmaClient, number: int) -> None:
    assert client.get(client.put(("small", number))) == ("small", number)


def small_and_deleted(client: PlasmaClient, number: int) -> None:
    id = client.put({"number": number})
    assert client.get([id], 0) == [{"number": number}]
    assert client.delete([id]) == ["deleted"]


def array(client: PlasmaClient, number: int) -> None:
    found = client.get(client.put(np.full(10_000, number)))
    assert found[-1] == number


def buffers(client: PlasmaClient, number: int) -> None:
    id = client.put_raw_buffer(b"some bytes", metadata=b"meta")
    [(metadata, data)] = client.get_buffers([id], 0, with_meta=True)
    assert metadata == b"meta" and data is not None and memoryview(data).nbytes == 10
    assert len(client.get_metadata([id, MISSING], 0)) == 2


def made_and_sealed(client: PlasmaClient, number: int) -> None:
    id = ObjectID.from_random()
    view = memoryview(client.create(id, 5000)).cast("B")
    view[0] = 1
    client.seal(id)


def made_and_aborted(client: PlasmaClient, number: int) -> None:
    id = ObjectID.from_random()
    buffer = client.create(id, 5000)
    client.abort(id)
    assert buffer.size == 5000
    client.create(id, 10)
    client._release(id)


def made_in_place(client: PlasmaClient, number: int) -> None:
    try:
        with client.create_array(1000) as values:
            values[:] = number
            if number % 20 < 10:
                raise LookupError("given up")
    except LookupError:
        pass


def arrow(client: PlasmaClient, number: int) -> None:
    table = pa.table({"x": [number]})
    assert client.get_arrow(client.put_arrow(table)).num_rows == 1


def not_there(client: PlasmaClient, number: int) -> None:
    assert client.get([MISSING, KEPT], 0) == [plasma.ObjectNotAvailable, "kept"]
    assert client.wait([MISSING, KEPT], 2, 0) == ([KEPT], [MISSING])
    assert not client.contains(MISSING)


def errors(client: PlasmaClient, number: int) -> None:
    mistakes: list[tuple[type[Exception], Callable[[], object]]] = [
        (plasma.PlasmaObjectExists, lambda: client.put(1, KEPT)),
        (plasma.PlasmaObjectNotFound, lambda: client.seal(MISSING)),
        (plasma.PlasmaStoreFull, lambda: client.create(MISSING, 10**12)),
        (plasma.InvalidObjectError, lambda: client.get(FOREIGN)),
        (TypeError, lambda: client.put(1, b"no id")),  # type: ignore[arg-type]
        (ValueError, lambda: ObjectID(b"short")),
    ]
    error, call = mistakes[number // 10 % len(mistakes)]
    try:
        call()
    except error:
        return
    raise AssertionError(f"no {error.__name__}")


KINDS = [
    small,
    small_and_deleted,
    array,
    buffers,
    made_and_sealed,
    made_and_aborted,
    made_in_place,
    arrow,
    not_there,
    errors,
]


# -- the measurement ------------------------------------------------------------------------------


class Sizes(NamedTuple):
    """What must not grow: of the client's process, and of the store's."""

    own_bytes: int
    own_objects: int
    own_descriptors: int
    own_mappings: int
    store_bytes: int
    store_descriptors: int
    store_mappings: int
    store_numbers: dict[str, Any]


def sizes(client: PlasmaClient) -> Sizes:
    # What is idle goes, so that the store's numbers do not depend on what was evicted when.
    client.evict(10**12)
    wait_until(lambda: client.stats()["objects"] == 2)
    gc.collect()
    # Free memory that malloc keeps is no leak, and how much it is depends on chance.
    ctypes.CDLL(None).malloc_trim(0)
    store = client._core.server_pid()
    numbers = {name: value for name, value in client.stats().items() if name != "counters"}
    return Sizes(
        probes.status_bytes("RssAnon"),
        sys.getallocatedblocks(),
        probes.descriptors(),
        len(probes.mappings()),
        probes.status_bytes("RssAnon", store),
        probes.descriptors(store),
        len(probes.mappings(store)),
        numbers,
    )


def run_rounds(path: str) -> None:
    client = plasma.connect(path)
    client.put("kept", KEPT)
    client.put_raw_buffer(b"foreign", FOREIGN)
    held = [client.get_buffers([KEPT]), client.get_buffers([FOREIGN])]
    for number in range(WARM_UP_ROUNDS):
        KINDS[number % len(KINDS)](client, number)
    before = sizes(client)
    for number in range(ROUNDS):
        KINDS[number % len(KINDS)](client, number)
    after = sizes(client)
    counters = client.stats()["counters"]
    assert counters["objects_created"] > ROUNDS / 2, "they did something"
    assert counters["objects_evicted"] > 1000, "and there was not room for all of it"
    del held

    say(f"before {before}")
    say(f"after {after}")
    assert after.own_bytes <= before.own_bytes + SLACK_BYTES
    assert after.own_objects <= before.own_objects + SLACK_OBJECTS
    assert after.own_descriptors == before.own_descriptors
    # A heap can grow into one more mapping or two.
    assert after.own_mappings <= before.own_mappings + 4
    assert after.store_bytes <= before.store_bytes + SLACK_BYTES
    assert after.store_descriptors == before.store_descriptors
    assert after.store_mappings <= before.store_mappings + 4
    assert after.store_numbers == before.store_numbers


def test_a_hundred_thousand_rounds_leave_everything_where_it_was(
    tmp_path: os.PathLike[str],
) -> None:
    path = os.path.join(tmp_path, "plasma")
    with running_store("-m", "20000000", path=path), Child(run_rounds, path, seconds=300) as child:
        child.hear(), child.hear()
        child.succeeds()


def fail_in_a_cycle(path: str) -> None:
    client = plasma.connect(path)
    values = [np.ones(100_000), np.ones(100_000).astype("M8[s]"), pa.table({"x": np.ones(100_000)})]
    for value in values:
        for _ in range(10):
            try:
                client.put([value, value], KEPT)
            except plasma.PlasmaObjectExists as error:
                # Now it is reachable from itself, with its frames and all that is in them.
                error.itself = error
        assert gc.collect() > 0
    assert client.get(KEPT) == "kept"


def test_what_is_in_the_frames_of_an_exception_can_be_collected(
    store: str, client: PlasmaClient
) -> None:
    # CPython before 3.11.8 and 3.12.2 crashes over the memoryview of a memoryview.
    client.put("kept", KEPT)
    with Child(fail_in_a_cycle, store) as child:
        child.succeeds()


def test_clients_that_come_and_go_leave_nothing(store: str, client: PlasmaClient) -> None:
    def come_and_go() -> None:
        for _ in range(100):
            with plasma.connect(store) as visitor:
                visitor.get(visitor.put(np.ones(1000)))
                visitor.create(ObjectID.from_random(), 1000)
                visitor.subscribe()
                visitor.get_notification_socket().close()
        wait_until(lambda: client.stats()["clients"] == 1)

    def counts() -> tuple[int, ...]:
        pid = client._core.server_pid()
        wait_until(lambda: client.stats()["subscribers"] == 0)
        return (
            probes.descriptors(),
            len([mapping for mapping in probes.mappings() if "memfd:plasma" in mapping.name]),
            probes.descriptors(pid),
            len([mapping for mapping in probes.mappings(pid) if "memfd:plasma" in mapping.name]),
        )

    come_and_go()
    before = counts()
    come_and_go()
    wait_until(lambda: counts() == before)
    assert client.stats()["unsealed_objects"] == 0
