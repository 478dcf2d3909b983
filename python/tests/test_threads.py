"""Many threads with one client, and a store that does not answer: who may wait for whom.

The number asserted about time is the one that the project promises: no thread stalls the
interpreter for more than 50 ms, see `ticker`.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from children import PATIENCE_SECONDS
from support import HAS_DIRECTORY, wait_until
from ticker import never_stalls

import plasma
from plasma import ObjectID, PlasmaClient

MB = 1_000_000
A = ObjectID(20 * b"a")
MISSING = ObjectID(20 * b"m")


@pytest.fixture
def other(store: str) -> Iterator[PlasmaClient]:
    """A second client of the same store."""
    with plasma.connect(store) as other:
        yield other


def in_threads(count: int, job: Callable[[int], object]) -> list[Any]:
    """Runs a job in so many threads at once: what each has given, or the first exception."""
    together = threading.Barrier(count)

    def run(number: int) -> object:
        together.wait(PATIENCE_SECONDS)
        return job(number)

    with ThreadPoolExecutor(count) as executor:
        return list(executor.map(run, range(count), timeout=PATIENCE_SECONDS))


@contextmanager
def stopped(client: PlasmaClient) -> Iterator[None]:
    """Stops the store of a client, as SIGSTOP does: it answers nothing, its socket stays open."""
    pid = client._core.server_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: ") T " in Path(f"/proc/{pid}/stat").read_text())
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


# -- one client -----------------------------------------------------------------------------------


def test_threads_put_get_and_drop_on_one_client(client: PlasmaClient, other: PlasmaClient) -> None:
    def job(number: int) -> int:
        for round in range(100):
            small = client.put((number, round))
            large = client.put(np.full(20_000, number * 1000 + round))
            found_small, found_large = client.get([small, large])
            assert found_small == (number, round)
            assert (found_large == number * 1000 + round).all()
            ready, _ = client.wait([small, large], 2)
            assert ready == [small, large]
            [buffer] = client.get_buffers([large])
            assert buffer is not None and client.contains(large)
            del found_large, buffer
            client.delete([small, large])
        return number

    assert in_threads(8, job) == list(range(8))
    wait_until(lambda: other.stats()["pinned"] == 0)
    wait_until(lambda: client.list() == {})


def test_threads_hand_objects_to_each_other(client: PlasmaClient) -> None:
    # In a ring: each waits for what the one before it makes of what it has got itself.
    ids = [ObjectID.from_random() for _ in range(9)]

    def job(number: int) -> int:
        for round in range(20):
            names = [ObjectID(bytes([round]) + id.binary()[1:]) for id in ids]
            if number == 0:
                client.put(0, names[0])
            else:
                client.put(client.get(names[number - 1]) + 1, names[number])
        return int(client.get(names[8], 10_000)) if number == 8 else 0

    assert in_threads(9, job)[8] == 8


def test_all_threads_that_wait_for_an_object_get_it(
    client: PlasmaClient, other: PlasmaClient
) -> None:
    def job(number: int) -> Any:
        if number == 0:
            wait_until(lambda: other.stats()["waiting_requests"] > 0)
            return client.put("the awaited one", A) and "the awaited one"
        if number % 2:
            return client.get(A)
        ready, _ = client.wait([MISSING, A])
        return client.get(ready[0])

    assert in_threads(12, job) == 12 * ["the awaited one"]
    wait_until(lambda: other.stats()["waiting_requests"] == 0)


def test_of_threads_that_make_the_same_object_one_does(client: PlasmaClient) -> None:
    def job(number: int) -> int:
        made = 0
        for round in range(50):
            try:
                client.put(number, ObjectID(bytes(19) + bytes([round])))
                made += 1
            except plasma.PlasmaObjectExists:
                pass
        return made

    assert sum(in_threads(6, job)) == 50


def test_threads_make_objects_in_place_side_by_side(client: PlasmaClient) -> None:
    def job(number: int) -> ObjectID:
        for _ in range(30):
            array = client.create_array(10_000, np.int64)
            with array as values:
                values[:] = number
            view = memoryview(client.create(ObjectID.from_random(), 100)).cast("B")
            view[:] = bytes(100)
        return array.object_id

    found = client.get(in_threads(6, job))
    assert [int(value[-1]) for value in found] == list(range(6))
    assert client.stats()["unsealed_objects"] == 6 * 30, "nobody has sealed these"


def test_a_disconnect_ends_the_waits_of_other_threads(store: str, other: PlasmaClient) -> None:
    client = plasma.connect(store)
    [held] = client.get_buffers([client.put_raw_buffer(b"held")])

    def job(number: int) -> str:
        if number == 0:
            wait_until(lambda: other.stats()["waiting_requests"] == 3)
            client.disconnect()
            return "disconnected"
        with pytest.raises(OSError, match="disconnected") as caught:
            client.get(MISSING) if number < 3 else client.wait([MISSING])
        return str(caught.value)

    assert all("disconnected" in text for text in in_threads(4, job))
    assert held is not None and held.to_pybytes() == b"held"
    wait_until(lambda: other.stats()["waiting_requests"] == 0)


# -- the interpreter ------------------------------------------------------------------------------


def test_the_interpreter_never_stalls_while_threads_wait_put_and_drop(
    client: PlasmaClient, other: PlasmaClient
) -> None:
    large = np.ones(10 * MB, np.uint8)
    table = pa.table({"x": np.arange(MB // 4)})

    def waits(end: ObjectID) -> None:
        client.get([MISSING, end], 50)
        client.get(end)

    def puts(end: ObjectID) -> None:
        for _ in range(5):
            client.delete([client.put(large), client.put_arrow(table)])

    def drops(end: ObjectID) -> None:
        ids = [client.put(number) for number in range(200)]
        ids.append(client.put(large))
        for _ in range(5):
            buffers = client.get_buffers(ids)
            del buffers
        client.delete(ids)

    def scene() -> None:
        end = ObjectID.from_random()
        waiters = [threading.Thread(target=waits, args=(end,)) for _ in range(4)]
        workers = [threading.Thread(target=work, args=(end,)) for work in (puts, drops)]
        for thread in waiters + workers:
            thread.start()
        for thread in workers:
            thread.join(PATIENCE_SECONDS)
        client.put("the end", end)
        for thread in waiters:
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive()

    never_stalls(scene)
    wait_until(lambda: other.stats()["pinned"] == 0)


def test_dropping_buffers_does_not_wait_for_a_stopped_store(
    client: PlasmaClient, other: PlasmaClient
) -> None:
    # More messages than a socket takes in without being read.
    ids = [ObjectID(number.to_bytes(20, "big")) for number in range(10_000)]
    for start in range(0, len(ids), 4000):
        part = ids[start : start + 4000]
        client.create_and_seal_batch(part, [b"data"] * len(part))

    def scene() -> None:
        buffers = client.get_buffers(ids)
        assert all(buffer is not None for buffer in buffers)
        value = client.get(client.put(np.ones(MB)))
        writer = client.create(ObjectID.from_random(), 100)
        client._release(next(id for id, entry in other.list().items() if entry["creator"]))
        with stopped(client):
            buffers.clear()
            del value, writer
        wait_until(lambda: other.stats()["pinned"] == 0)
        assert other.stats()["unsealed_objects"] == 0

    never_stalls(scene)
    assert client.contains(ids[0])


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.get(A),
        lambda client: client.put(1),
        lambda client: client.put(np.ones(MB)),
        lambda client: client.contains(A),
        lambda client: client.list(),
        lambda client: client.delete([MISSING]),
        lambda client: client.create(ObjectID.from_random(), 10),
        lambda client: client.evict(1),
        lambda client: client.hash(A),
        lambda client: plasma.connect(client.store_socket_name).disconnect(),
    ],
)
def test_calls_that_wait_for_a_stopped_store_stall_only_their_thread(
    store: str, call: Callable[[PlasmaClient], object]
) -> None:
    # What is in the directory needs no store.
    client = plasma.connect(store, directory=False)
    client.put("here", A)

    def scene() -> None:
        done = threading.Event()

        def calls() -> None:
            call(client)
            done.set()

        caller = threading.Thread(target=calls)
        with stopped(client):
            caller.start()
            # The others run: this one, and the ticker.
            assert not done.wait(0.1)
        caller.join(PATIENCE_SECONDS)
        assert done.is_set(), "it has worked after all"

    never_stalls(scene)


@pytest.mark.skipif(not HAS_DIRECTORY, reason="these stores have no directory")
def test_what_is_in_the_directory_is_read_while_the_store_is_stopped(client: PlasmaClient) -> None:
    client.put("here", A)
    client.get(A)
    with stopped(client):
        assert client.get(A) == "here"
        assert client.contains(A)


def test_a_client_can_go_while_the_store_is_stopped(store: str, other: PlasmaClient) -> None:
    def scene() -> None:
        client = plasma.connect(store)
        held = client.get(client.put(np.ones(MB)))
        client.create(ObjectID.from_random(), 100)
        with stopped(other):
            del held, client
        wait_until(lambda: other.stats()["clients"] == 1)
        wait_until(lambda: (other.stats()["pinned"], other.stats()["unsealed_objects"]) == (0, 0))

    never_stalls(scene)
