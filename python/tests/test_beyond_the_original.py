"""What the original's Python layer did not have: batches, abort, refresh, wait, states, numbers."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support import wait_until

import plasma
from plasma import ObjectID, PlasmaClient


def some_id(number: int) -> ObjectID:
    return ObjectID(number.to_bytes(20, "big"))


def some_ids(count: int) -> list[ObjectID]:
    return [some_id(number) for number in range(count)]


# -- batches --------------------------------------------------------------------------------------


def test_a_batch_stores_all_of_its_objects(client: PlasmaClient) -> None:
    ids = some_ids(1000)
    client.create_and_seal_batch(
        ids,
        [id.binary()[-2:] for id in ids],
        [b"meta" if number % 2 else b"" for number in range(1000)],
    )
    found = client.get_buffers(ids, 0, with_meta=True)
    for number, (metadata, data) in enumerate(found):
        assert data is not None and data.to_pybytes() == ids[number].binary()[-2:]
        assert metadata == (b"meta" if number % 2 else b"")


def test_a_batch_takes_anything_with_bytes_and_needs_no_metadata(client: PlasmaClient) -> None:
    data = [b"a", bytearray(b"bc"), memoryview(b"def"), np.arange(3.0)]
    client.create_and_seal_batch(some_ids(4), data)
    assert [client.list()[id]["data_size"] for id in some_ids(4)] == [1, 2, 3, 24]
    client.create_and_seal_batch([], [])


def test_a_batch_with_one_that_exists_stores_nothing(client: PlasmaClient) -> None:
    client.create_and_seal(some_id(5), b"first")
    with pytest.raises(plasma.PlasmaObjectExists, match=some_id(5).hex()):
        client.create_and_seal_batch(some_ids(10), [b"x"] * 10)
    assert list(client.list()) == [some_id(5)]
    with pytest.raises(plasma.PlasmaObjectExists, match=some_id(1).hex()):
        client.create_and_seal_batch([some_id(1), some_id(1)], [b"x", b"x"])
    assert list(client.list()) == [some_id(5)]


@pytest.mark.parametrize(
    ("ids", "data", "metadata"),
    [(3, 2, None), (2, 3, None), (2, 2, 1), (2, 2, 3), (0, 1, None)],
)
def test_a_batch_of_unequal_lengths_is_a_value_error(
    client: PlasmaClient, ids: int, data: int, metadata: int | None
) -> None:
    with pytest.raises(ValueError, match=f"{ids} ids, {data} data"):
        client.create_and_seal_batch(
            some_ids(ids), [b""] * data, None if metadata is None else [b""] * metadata
        )
    assert client.list() == {}


@pytest.mark.parametrize(("count", "size"), [(5000, 1), (3, 500_000)], ids=["objects", "bytes"])
def test_a_batch_too_large_for_one_message_is_a_value_error(
    client: PlasmaClient, count: int, size: int
) -> None:
    with pytest.raises(ValueError):
        client.create_and_seal_batch(some_ids(count), [bytes(size)] * count)
    assert client.list() == {}
    client.create_and_seal(some_id(1), b"the client still works")


def test_a_batch_of_something_else_is_a_type_error(client: PlasmaClient) -> None:
    with pytest.raises(TypeError):
        client.create_and_seal_batch([20 * b"a"], [b""])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        client.create_and_seal_batch(some_ids(1), ["text"])
    assert client.list() == {}


# -- abort ----------------------------------------------------------------------------------------


def test_an_aborted_object_was_never_there(client: PlasmaClient, store: str) -> None:
    for round_number in range(20):
        buffer = client.create(some_id(1), 1000 + round_number)
        np.frombuffer(buffer, np.uint8)[:] = 7
        client.abort(some_id(1))
        assert client.list() == {}
        assert client.stats()["used"] == 0
    # A buffer that is left over is no danger to whoever gets the memory next.
    client.put_raw_buffer(1000 * b"x", some_id(1))
    assert buffer.to_pybytes() == bytes(1019)
    other = plasma.connect(store).get_buffers([some_id(1)])[0]
    assert other is not None and other.to_pybytes() == 1000 * b"x"


def test_abort_of_what_one_does_not_create(client: PlasmaClient, store: str) -> None:
    with pytest.raises(plasma.PlasmaObjectNotFound, match=some_id(1).hex()):
        client.abort(some_id(1))
    theirs = plasma.connect(store)
    buffer = theirs.create(some_id(1), 5)
    with pytest.raises(plasma.PlasmaObjectNotFound, match=some_id(1).hex()):
        client.abort(some_id(1))
    theirs.seal(some_id(1))
    for aborting in (client, theirs):
        with pytest.raises(TypeError, match="sealed"):
            aborting.abort(some_id(1))
    assert client.contains(some_id(1)) and len(buffer) == 5


def test_seal_after_abort_is_not_found(client: PlasmaClient) -> None:
    buffer = client.create(some_id(1), 5)
    client.abort(some_id(1))
    with pytest.raises(plasma.PlasmaObjectNotFound, match=some_id(1).hex()):
        client.seal(some_id(1))
    assert len(buffer) == 5


# -- refresh --------------------------------------------------------------------------------------


def test_what_is_refreshed_is_evicted_last(client: PlasmaClient) -> None:
    for number in range(5):
        client.create_and_seal(some_id(number), 100 * b"x")
    held = client.get_buffers([some_id(4)])
    assert client.refresh([some_id(1), some_id(0), some_id(4), some_id(99)]) == 2
    order: list[ObjectID] = []
    for _ in range(4):
        before = set(client.list())
        client.evict(1)
        order += before - set(client.list())
    assert order == [some_id(2), some_id(3), some_id(1), some_id(0)]
    assert len(held) == 1


# -- wait -----------------------------------------------------------------------------------------


def test_wait_tells_those_that_are_there_from_those_that_are_not(client: PlasmaClient) -> None:
    for number in (1, 3):
        client.create_and_seal(some_id(number), b"x")
    client.create(some_id(4), 5)
    there, not_there = [some_id(1), some_id(3)], [some_id(0), some_id(2), some_id(4)]
    assert client.wait(some_ids(5), 2) == (there, not_there)
    assert client.wait(some_ids(5), num_returns=5, timeout=0.02) == (there, not_there)
    assert client.wait(some_ids(5), 0) == (there, not_there)
    assert client.wait(there, 2, 0) == (there, [])
    assert client.wait([some_id(9)], 1, 0) == ([], [some_id(9)])


def test_wait_holds_nothing(client: PlasmaClient) -> None:
    client.create_and_seal(some_id(1), b"x")
    client.wait([some_id(1)])
    assert client.list()[some_id(1)]["ref_count"] == 0


def test_wait_ends_when_as_many_as_asked_for_are_sealed(client: PlasmaClient, store: str) -> None:
    answers: list[Any] = []
    waiting = threading.Thread(target=lambda: answers.append(client.wait(some_ids(10), 3, 60)))
    waiting.start()
    other = plasma.connect(store)
    try:
        wait_until(lambda: other.stats()["waiting_requests"] == 1)
        for number in (7, 2):
            other.create_and_seal(some_id(number), b"x")
        assert other.stats()["waiting_requests"] == 1
    finally:
        other.create_and_seal(some_id(5), b"x")
        waiting.join(10)
    assert not waiting.is_alive()
    assert answers[0][0] == [some_id(2), some_id(5), some_id(7)]
    assert len(answers[0][1]) == 7


@pytest.mark.parametrize("timeout", [0.05, 0.2])
def test_wait_waits_as_many_seconds_as_it_is_told(client: PlasmaClient, timeout: float) -> None:
    start = time.monotonic()
    assert client.wait([some_id(1)], 1, timeout) == ([], [some_id(1)])
    assert time.monotonic() - start >= timeout


@pytest.mark.parametrize(("count", "num_returns"), [(3, 4), (0, 1), (9000, 1)])
def test_wait_for_more_than_there_can_be_is_a_value_error(
    client: PlasmaClient, count: int, num_returns: int
) -> None:
    with pytest.raises(ValueError):
        client.wait(some_ids(count), num_returns, 0)


# -- states and numbers ---------------------------------------------------------------------------


def test_states_follow_an_object_through_its_life(client: PlasmaClient, store: str) -> None:
    other = plasma.connect(store)

    def states() -> list[str]:
        assert client.states(some_ids(2)) == other.states(some_ids(2))
        assert client.state(some_id(1)) == client.states(some_ids(2))[1]
        return list(client.states(some_ids(2)))

    assert states() == ["absent", "absent"]
    buffer = client.create(some_id(1), 5)
    assert states() == ["absent", "created"]
    client.seal(some_id(1))
    assert states() == ["absent", "sealed"]
    del buffer
    client.delete([some_id(1)])
    assert states() == ["absent", "absent"]
    assert client.states([]) == []


def test_stats_count_bytes_and_objects(client: PlasmaClient, store: str) -> None:
    empty = client.stats()
    assert empty["capacity"] == empty["largest_free_run"] == 100_000_000
    assert empty["used"] == empty["objects"] == empty["pinned"] == 0
    assert empty["clients"] == 1
    unsealed = client.create(some_id(1), 1000)
    client.create_and_seal(some_id(2), 500 * b"x")
    client.create_and_seal(some_id(3), 300 * b"x")
    held = plasma.connect(store).get_buffers([some_id(3)])
    stats = client.stats()
    assert (stats["objects"], stats["unsealed_objects"]) == (3, 1)
    assert stats["used"] >= 1800
    assert stats["pinned"] >= 1300 and stats["evictable"] >= 500
    assert all(type(value) is int and value >= 0 for value in stats["counters"].values())
    assert stats["counters"] != empty["counters"]
    assert len(unsealed) == 1000 and len(held) == 1


def test_clients_are_listed_with_name_pid_and_what_they_hold(store: str) -> None:
    first = plasma.connect(store, name="first")
    second = plasma.connect(store, name="second")
    buffer = first.create(some_id(1), 1000)
    clients = {client["name"]: client for client in second.clients()}
    assert set(clients) == {"first", "second"}
    assert len({client["id"] for client in clients.values()}) == 2
    assert all(client["pid"] == os.getpid() for client in clients.values())
    assert all(client["uid"] == os.getuid() for client in clients.values())
    holder = clients["first"]
    assert (holder["objects"], holder["unsealed_objects"]) == (1, 1)
    assert holder["bytes"] >= 1000 and holder["quota"] is None
    assert len(buffer) == 1000


def test_the_holders_of_one_object(store: str, client: PlasmaClient) -> None:
    client.create_and_seal(some_id(1), b"x")
    client.create_and_seal(some_id(2), b"x")
    assert client.clients(some_id(1)) == []
    readers = [plasma.connect(store, name=name) for name in ("one", "two", "three")]
    held = [reader.get_buffers([some_id(1)]) for reader in readers[:2]]
    assert sorted(holder["name"] for holder in client.clients(holding=some_id(1))) == ["one", "two"]
    assert client.clients(some_id(2)) == []
    assert len(held) == 2


# -- waiting for room -----------------------------------------------------------------------------

#: Ways to store 40 MB, each with the options of `create`.
WRITERS: dict[str, Callable[..., Any]] = {
    "create": lambda client, id, **options: client.create(id, 40_000_000, **options),
    "create_and_seal": lambda client, id, **options: client.create_and_seal(
        id, bytes(40_000_000), **options
    ),
    "put": lambda client, id, **options: client.put(np.zeros(40_000_000, np.uint8), id, **options),
    "put_raw_buffer": lambda client, id, **options: client.put_raw_buffer(
        bytes(40_000_000), id, **options
    ),
    "create_array": lambda client, id, **options: client.create_array(
        40_000_000, np.uint8, id, **options
    ).__enter__(),
    "create_buffer": lambda client, id, **options: client.create_buffer(
        40_000_000, id, **options
    ).__enter__(),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_create_with_a_timeout_waits_until_another_client_lets_go(
    client: PlasmaClient, store: str, write: Callable[..., Any]
) -> None:
    holder = plasma.connect(store)
    held = [holder.create(some_id(0), 90_000_000)]
    holder.seal(some_id(0))
    with pytest.raises(plasma.PlasmaStoreFull):
        write(client, some_id(1))
    done: list[Any] = []
    writing = threading.Thread(
        target=lambda: done.append(write(client, some_id(1), timeout_ms=60_000))
    )
    writing.start()
    try:
        wait_until(lambda: holder.stats()["waiting_requests"] == 1)
        assert not done
    finally:
        held.clear()
        writing.join(30)
    assert len(done) == 1
    assert set(holder.list()) == {some_id(1)}


def test_a_create_that_waits_in_vain_is_full_after_its_timeout(
    client: PlasmaClient,
) -> None:
    held = client.create(some_id(0), 90_000_000)
    start = time.monotonic()
    with pytest.raises(plasma.PlasmaStoreFull, match="40000000"):
        client.create(some_id(1), 40_000_000, timeout_ms=100)
    assert time.monotonic() - start >= 0.1
    assert list(client.list()) == [some_id(0)]
    assert len(held) == 90_000_000


def test_a_create_that_can_never_fit_does_not_wait(client: PlasmaClient) -> None:
    # With this timeout the test would not end.
    with pytest.raises(plasma.PlasmaStoreFull):
        client.create(some_id(1), 100_000_001, timeout_ms=-1)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_nothing_is_evicted_if_it_may_not_be(
    client: PlasmaClient, write: Callable[..., Any]
) -> None:
    client.put_raw_buffer(np.zeros(90_000_000, np.uint8), some_id(0))
    with pytest.raises(plasma.PlasmaStoreFull):
        write(client, some_id(1), evict=False)
    assert list(client.list()) == [some_id(0)]
    kept = write(client, some_id(1))
    assert list(client.list()) == [some_id(1)]
    del kept
