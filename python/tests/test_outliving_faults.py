"""What a process reads stays what it was, also when the store has ended its connection for a fault;
and the memory comes back when nobody has it any more.

The process with the buffers is a child that is told what to do, line by line. Another client fills
the store several times over meanwhile. `PLASMA_TEST_FAULTS` is how often each kind of fault is
made.
"""

from __future__ import annotations

import gc
import os
import random
import socket
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from children import Child, hear, say
from support import wait_until

import plasma
from plasma import ObjectID, PlasmaClient

FAULTS = int(os.environ.get("PLASMA_TEST_FAULTS", "10"))
CAPACITY = 1_000_000
#: Objects that are held, and their size: a part of the store, in pieces.
HELD = 100
BYTES = 4000
#: How many objects the store is filled with after each fault: three times its size.
FILLING = range(10_000, 10_000 + 3 * CAPACITY // BYTES)
#: Objects that are never sealed, and their size.
UNSEALED = range(20_000, 20_008)
UNSEALED_BYTES = 50_000
#: Connections of one process that may have ended and be used all the same.
ENDED_CONNECTIONS = 16

KINDS = ["rubbish", "shutdown", "close"]


def numbered(number: int) -> ObjectID:
    return ObjectID(number.to_bytes(20, "little"))


def contents(number: int) -> bytes:
    return random.Random(number).randbytes(BYTES)


def get(client: PlasmaClient, numbers: range) -> dict[int, pa.Buffer]:
    """Those of the objects that are there."""
    found = client.get_buffers([numbered(number) for number in numbers], 0)
    pairs = zip(numbers, found, strict=True)
    return {number: buffer for number, buffer in pairs if buffer is not None}


def count_changed(held: dict[int, pa.Buffer]) -> int:
    return sum(buffer.to_pybytes() != contents(number) for number, buffer in held.items())


# -- the one who holds buffers --------------------------------------------------------------------


def hold(path: str) -> None:
    clients: list[PlasmaClient] = []
    held: list[dict[int, pa.Buffer]] = []
    writers: list[pa.Buffer] = []
    while (order := hear()) != "end":
        answer: object = "done"
        match order.split():
            case ["hold", count]:
                clients.append(plasma.connect(path))
                held.append(get(clients[-1], range(int(count))))
                assert len(held[-1]) == int(count)
            case ["write"]:
                clients.append(plasma.connect(path))
                writers += [clients[-1].create(numbered(n), UNSEALED_BYTES) for n in UNSEALED]
            case ["rubbish" | "shutdown" as fault]:
                break_connections(clients, fault)
            case ["close"]:
                os.closerange(3, 256)
            case ["scribble"]:
                scribble(writers)
            case ["check"]:
                answer = sum(map(count_changed, held))
            case ["drop"]:
                for container in (held, writers, clients):
                    container.clear()
                gc.collect()
            case ["connect"]:
                answer = connect(path)
            case ["fork"]:
                # The child goes on; this process stays until it is killed, or the child has ended.
                if child := os.fork():
                    os.waitpid(child, 0)
                    os._exit(0)
        say(answer)
    os._exit(0)


def break_connections(clients: list[PlasmaClient], fault: str) -> None:
    for client in clients:
        with socket.socket(fileno=client._core.descriptor()) as duplicate:
            try:
                if fault == "rubbish":
                    duplicate.send(64 * b"\xff")
                else:
                    duplicate.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # It has ended already.


def scribble(writers: list[pa.Buffer]) -> None:
    for writer in writers:
        np.frombuffer(writer, np.uint8)[:] = 7


def connect(path: str) -> str:
    try:
        plasma.connect(path, 0).disconnect()
    except OSError as error:
        return str(error)
    return "connected"


# -- the others -----------------------------------------------------------------------------------


@pytest.fixture
def store(make_store: Callable[..., str]) -> str:
    path = make_store(CAPACITY)
    with plasma.connect(path) as client:
        for number in range(HELD):
            put(client, number)
    return path


def put(client: PlasmaClient, number: int) -> None:
    try:
        client.create_and_seal(numbered(number), contents(number))
    except (plasma.PlasmaStoreFull, plasma.PlasmaObjectExists):
        pass


def order(holder: Child, line: str) -> None:
    holder.say(line)
    assert holder.hear() == "done"


def answer(holder: Child, question: str) -> str:
    holder.say(question)
    return holder.hear()


def settle(client: PlasmaClient) -> None:
    """Waits until the store has noticed what has become of the other connections: it looks at them
    in the order in which they have something for it."""
    for _ in range(4):
        client.stats()


def fill(client: PlasmaClient) -> None:
    """Takes all the memory that it can get, several times over."""
    settle(client)
    client.evict(CAPACITY)
    for number in FILLING:
        put(client, number)


def assert_all_free(client: PlasmaClient) -> None:
    """Waits until all memory can be had again, as at the start."""

    def is_free() -> bool:
        client.evict(CAPACITY)
        stats = client.stats()
        in_use = sum(stats[name] for name in ("used", "pinned", "evictable", "objects"))
        return in_use == 0 and stats["largest_free_run"] == stats["capacity"]

    wait_until(is_free)


@pytest.mark.parametrize("fault", KINDS)
def test_bytes_stay_after_a_fault(store: str, client: PlasmaClient, fault: str) -> None:
    changed = 0
    for _ in range(FAULTS):
        for number in range(HELD):
            put(client, number)
        # What is behind the other descriptors of one that closes them is gone as well.
        with Child(hold, store) as holder:
            order(holder, f"hold {HELD}")
            order(holder, fault)
            fill(client)
            changed += int(answer(holder, "check"))
            order(holder, "drop")
            assert_all_free(client)
    assert changed == 0, f"{changed} of {FAULTS * HELD} buffers"


@pytest.mark.parametrize("fault", [None, *KINDS])
def test_the_memory_comes_back_when_the_holder_is_killed(
    store: str, client: PlasmaClient, fault: str | None
) -> None:
    with Child(hold, store) as holder:
        order(holder, f"hold {HELD}")
        order(holder, "write")
        if fault:
            order(holder, fault)
        fill(client)
        assert answer(holder, "check") == "0"
    assert_all_free(client)


@pytest.mark.parametrize("orders", ["fork", "fork close", "rubbish fork", "close fork"])
def test_a_child_that_outlives_the_holder_keeps_the_bytes(
    store: str, client: PlasmaClient, orders: str
) -> None:
    with Child(hold, store) as holder:
        order(holder, f"hold {HELD}")
        for line in orders.split():
            order(holder, line)
        holder.process.kill()
        holder.ended()
        fill(client)
        assert answer(holder, "check") == "0"
        holder.say("end")
        assert_all_free(client)


@pytest.mark.parametrize("fault", KINDS)
def test_a_writer_whose_connection_has_ended_harms_nobody(
    store: str, client: PlasmaClient, fault: str
) -> None:
    with Child(hold, store) as holder:
        order(holder, "write")
        order(holder, fault)
        fill(client)
        sealed = get(client, FILLING)
        assert len(sealed) >= 100
        order(holder, "scribble")
        assert count_changed(sealed) == 0, f"of {len(sealed)} sealed objects"
        sealed.clear()
        order(holder, "drop")
        assert_all_free(client)


def test_a_process_with_many_ended_connections_is_refused_another_one(
    store: str, client: PlasmaClient
) -> None:
    with Child(hold, store) as holder:
        for _ in range(ENDED_CONNECTIONS):
            order(holder, "hold 1")
            order(holder, "shutdown")
            settle(client)
        assert str(ENDED_CONNECTIONS) in answer(holder, "connect")
        # Others may.
        plasma.connect(store, 0).disconnect()
        order(holder, "drop")
        wait_until(lambda: answer(holder, "connect") == "connected")
    assert_all_free(client)
