"""Clients and their buffers in programs of several processes: fork, spawn, pools, workers.

Everything here happens in a child with an interpreter of its own, which then has children of its
own. What the weakness B7 was is tested in `test_weaknesses`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
from children import PATIENCE_SECONDS, Child, hear, say
from support import wait_until

import plasma
from plasma import ObjectID, PlasmaClient

MB = 1_000_000
A = ObjectID(20 * b"a")
B = ObjectID(20 * b"b")
EVERYTHING = 10**12

METHODS = ["fork", "spawn", "forkserver"]


def squares(length: int = 100_000) -> np.ndarray[Any, Any]:
    return np.arange(length) ** 2


@pytest.fixture
def other(store: str) -> Iterator[PlasmaClient]:
    """A second client of the same store."""
    with plasma.connect(store) as other:
        yield other


def in_fork(function: Callable[[], object]) -> int:
    """Runs a function in a forked process, which ends as Python processes do: its exit code."""
    child = os.fork()
    if child == 0:
        try:
            function()
        except SystemExit:
            raise  # The end of a child that this one has forked, which is here as well.
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        sys.exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# -- fork -----------------------------------------------------------------------------------------


def fork_and_use(path: str) -> None:
    client = plasma.connect(path)
    parents_id = client._core.client_id()
    value = client.get(A)

    def in_child() -> None:
        assert (value == squares()).all(), "what was inherited can be read"
        assert client.get(A)[-1] == value[-1]
        client.put("from the child", B)
        assert client._core.client_id() != parents_id

    assert in_fork(in_child) == 0
    assert client.get(B) == "from the child"
    assert client._core.client_id() == parents_id, "the parent's connection is as it was"

    def with_a_child_of_its_own() -> None:
        assert in_fork(in_child_of_child) == 0

    def in_child_of_child() -> None:
        assert client.get(B) == "from the child"

    assert in_fork(with_a_child_of_its_own) == 0
    assert (value == squares()).all()


def test_a_forked_child_uses_its_copy_of_the_client(store: str, client: PlasmaClient) -> None:
    client.put(squares(), A)
    with Child(fork_and_use, store) as child:
        child.succeeds()
    wait_until(lambda: client.stats()["clients"] == 1)
    assert client.stats()["pinned"] == 0


def fork_a_creator(path: str) -> None:
    client = plasma.connect(path)
    view = memoryview(client.create(A, 10)).cast("B")
    with client.create_array(10, np.int64, B) as values:

        def in_child() -> None:
            # It is the parent's to seal, and what the child drops stays.
            for end in (client.seal, client.abort):
                try:
                    end(A)
                except (OSError, plasma.PlasmaObjectNotFound) as error:
                    assert "parent" in str(error) or "another client" in str(error), error
                else:
                    raise AssertionError("the child has ended what its parent makes")

        # The end of the child passes through this block as well, and leaves B to the parent.
        assert in_fork(in_child) == 0
        assert client.states([A, B]) == ["created", "created"]
        values[:] = 7
    view[:] = b"0123456789"
    client.seal(A)


def write_in_fork(path: str) -> None:
    client = plasma.connect(path)
    view = memoryview(client.create(A, 10)).cast("B")
    view[:] = b"0123456789"
    [to_child, from_parent] = socket.socketpair()
    child = os.fork()
    if child == 0:
        from_parent.recv(1)  # the parent has sealed
        view[0] = 0
        os._exit(0)
    client.seal(A)
    to_child.send(b"!")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGSEGV
    assert in_fork(lambda: bytes(view) == b"0123456789" or sys.exit(1)) == 0


def test_a_child_that_was_forked_before_the_seal_cannot_write(
    store: str, client: PlasmaClient
) -> None:
    with Child(write_in_fork, store) as child:
        child.succeeds()
    [buffer] = client.get_buffers([A])
    assert buffer is not None and buffer.to_pybytes() == b"0123456789"


def subscribe_in_fork(path: str) -> None:
    client = plasma.connect(path)
    client.subscribe()
    client.put("seen by both", A)

    def in_child() -> None:
        try:
            client.get_next_notification()
        except OSError as error:
            assert "parent" in str(error)
        else:
            raise AssertionError("the child has read its parent's stream")
        client.subscribe()
        assert client.get_next_notification()[0] == A
        client.disconnect()

    assert in_fork(in_child) == 0
    assert client.get_next_notification()[0] == A, "the parent's stream is as it was"


def test_a_forked_child_has_notifications_of_its_own(store: str) -> None:
    with Child(subscribe_in_fork, store) as child:
        child.succeeds()


def test_a_forked_child_cannot_end_what_its_parent_is_making(
    store: str, client: PlasmaClient
) -> None:
    with Child(fork_a_creator, store) as child:
        child.succeeds()
    [buffer] = client.get_buffers([A])
    assert buffer is not None and buffer.to_pybytes() == b"0123456789"
    assert client.get(B).tolist() == [7] * 10


def fork_while_waiting(path: str) -> None:
    client = plasma.connect(path)
    found: list[object] = []
    waiter = threading.Thread(target=lambda: found.append(client.get(B)))
    waiter.start()
    with plasma.connect(path) as observer:
        wait_until(lambda: observer.stats()["waiting_requests"] == 1)
    # Whatever that thread holds at this moment, nobody in the child will ever let go of.
    for _ in range(20):
        assert in_fork(lambda: client.get(A)) == 0
    assert in_fork(lambda: client.put("the awaited one", B)) == 0
    waiter.join(PATIENCE_SECONDS)
    assert found == ["the awaited one"]


def test_a_fork_while_a_thread_waits(store: str, client: PlasmaClient) -> None:
    client.put(squares(), A)
    with Child(fork_while_waiting, store) as child:
        child.succeeds()


def leave_an_orphan(path: str) -> None:
    value = plasma.connect(path).get(A)
    if os.fork() == 0:
        say("orphan")
        say(os.getpid())
        hear()
        say(int(value.sum()))
        del value
        hear()
        os._exit(0)
    signal.pause()


def test_buffers_that_a_child_inherited_stay_valid_when_its_parent_is_killed(
    store: str, client: PlasmaClient
) -> None:
    client.put(squares(), A)
    with Child(leave_an_orphan, store) as child:
        assert child.hear() == "orphan"
        orphan = int(child.hear())
        try:
            os.kill(child.pid, signal.SIGKILL)
            assert child.ended() == -signal.SIGKILL
            assert client.evict(EVERYTHING) == 0, "the orphan holds it"
            for _ in range(12):
                client.put(np.ones(MB))
            child.say()
            assert int(child.hear()) == int(squares().sum())
            # It was the only one left of all that had this connection.
            wait_until(lambda: client.stats()["pinned"] == 0)
            child.say()
        finally:
            # It is not ours to wait for.
            try:
                os.kill(orphan, signal.SIGKILL)
            except ProcessLookupError:
                pass


def hold_and_make(path: str) -> None:
    client = plasma.connect(path)
    value = client.get(A)
    client.create(B, MB)
    say(len(value))
    hear()


def test_what_a_killed_process_held_and_made_is_released(store: str, client: PlasmaClient) -> None:
    client.put(squares(), A)
    with Child(hold_and_make, store) as child:
        child.hear()
        assert client.stats()["pinned"] > 0 and client.state(B) == "created"
        os.kill(child.pid, signal.SIGKILL)
        wait_until(lambda: (client.stats()["pinned"], client.state(B)) == (0, "absent"))
    assert client.evict(EVERYTHING) > 0


# -- multiprocessing ------------------------------------------------------------------------------


def double(client: PlasmaClient, object_id: ObjectID) -> ObjectID:
    """A worker's job: its arguments and its result are ids, the data stays in the store."""
    value = client.get(object_id, 60_000)
    assert not value.flags.writeable
    return client.put(value * 2)


def run_a_process(path: str, method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    client = plasma.connect(path, name="parent")
    results = context.Queue()
    process = context.Process(target=put_doubled, args=(client, A, results))
    process.start()
    doubled = results.get(timeout=PATIENCE_SECONDS)
    process.join(PATIENCE_SECONDS)
    assert process.exitcode == 0
    assert (client.get(doubled) == 2 * squares()).all()


def put_doubled(client: PlasmaClient, object_id: ObjectID, results: Any) -> None:
    results.put(double(client, object_id))


def run_a_pool(path: str, method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    client = plasma.connect(path)
    inputs = [client.put(np.full(50_000, number)) for number in range(20)]
    with context.Pool(2) as pool:
        doubled = pool.map(partial(double, client), inputs)
        pool.close()
        pool.join()
    for number, value in enumerate(client.get(doubled)):
        assert (value == 2 * number).all()


def run_an_executor(path: str, method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    client = plasma.connect(path)
    with ProcessPoolExecutor(2, mp_context=context) as executor:
        [future] = [executor.submit(double, client, A)]
        assert (client.get(future.result(PATIENCE_SECONDS)) == 2 * squares()).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("program", [run_a_process, run_a_pool, run_an_executor])
def test_workers_get_the_client_as_an_argument(
    store: str, client: PlasmaClient, program: Callable[[str, str], None], method: str
) -> None:
    client.put(squares(), A)
    with Child(program, store, method) as child:
        child.succeeds()
    # All of them have gone, and held nothing back.
    wait_until(lambda: client.stats()["clients"] == 1)
    assert client.stats()["pinned"] == 0


class Dataset:
    """As data loaders take them: made once, copied into each worker, asked by index."""

    def __init__(self, client: PlasmaClient, object_ids: list[ObjectID]) -> None:
        self.client = client
        self.object_ids = object_ids

    def __len__(self) -> int:
        return len(self.object_ids)

    def __getitem__(self, index: int) -> np.ndarray[Any, Any]:
        value: np.ndarray[Any, Any] = self.client.get(self.object_ids[index])
        return value


def load(dataset: Dataset, indices: Any, results: Any) -> None:
    """A worker of a data loader: indices in, batches out, until there is no index."""
    for batch in iter(indices.get, None):
        values = [dataset[index] for index in batch]
        results.put((batch, float(np.stack(values).sum())))
        del values


def run_a_loader(path: str, method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    client = plasma.connect(path)
    ids = [client.put(np.full(20_000, number, float)) for number in range(32)]
    dataset = Dataset(client, ids)
    first = dataset[0]  # Used before the workers are started, as by whoever looks at the shape.
    indices, results = context.Queue(), context.Queue()
    workers = [
        context.Process(target=load, args=(dataset, indices, results), daemon=True)
        for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for _ in range(2):  # Epochs.
        batches = [list(range(start, start + 4)) for start in range(0, len(dataset), 4)]
        for batch in batches:
            indices.put(batch)
        for _ in batches:
            batch, total = results.get(timeout=PATIENCE_SECONDS)
            assert total == 20_000 * sum(batch)
    for _ in workers:
        indices.put(None)
    for worker in workers:
        worker.join(PATIENCE_SECONDS)
        assert worker.exitcode == 0
    assert not first.any() and len(dataset[31]) == 20_000


@pytest.mark.parametrize("method", METHODS)
def test_the_workers_of_a_data_loader(store: str, client: PlasmaClient, method: str) -> None:
    with Child(run_a_loader, store, method) as child:
        child.succeeds()
    wait_until(lambda: client.stats()["clients"] == 1)
    assert client.stats()["pinned"] == 0


def test_a_worker_that_is_killed_takes_nothing_with_it(
    store: str, client: PlasmaClient, other: PlasmaClient
) -> None:
    ids = [client.put(squares()) for _ in range(10)]
    for id in ids[:5]:
        with Child(hold_one, store, id.hex()) as child:
            child.hear()
            assert client.list()[id]["ref_count"] == 1
            os.kill(child.pid, signal.SIGKILL)
            assert child.ended() == -signal.SIGKILL
            wait_until(lambda: client.stats()["pinned"] == 0)
    for value in other.get(ids):
        assert (value == squares()).all()


def hold_one(path: str, digits: str) -> None:
    value = plasma.connect(path).get(ObjectID(bytes.fromhex(digits)))
    say(len(value))
    hear()
