"""Programs that talk outside of the store: one seals objects and tells another one, through a pipe.

Whoever was told finds the object, whatever else both do. `PLASMA_TEST_SEALS` is how many objects
are told of in each test.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import numpy as np
import pytest
from children import PATIENCE_SECONDS, Child, say
from support import HAS_DIRECTORY, wait_until

import plasma
from plasma import ObjectID, PlasmaClient

SEALS = int(os.environ.get("PLASMA_TEST_SEALS", "1500"))
#: Most time that one of them may take.
SEAL_SECONDS = 0.02
#: Tellers that die.
DEATHS = 5
#: How long the store is stopped, now and then.
STOP_SECONDS = 0.001
BETWEEN_STOPS_SECONDS = 0.025

UNSEALED = ObjectID(20 * b"u")
ABORTED = ObjectID(20 * b"a")


def numbered(number: int) -> ObjectID:
    return ObjectID(number.to_bytes(20, "little"))


@contextmanager
def meanwhile(*actions: Callable[[], object]) -> Iterator[None]:
    """Does these again and again, each in a thread of its own, until the block ends."""
    is_over = threading.Event()

    def repeat(action: Callable[[], object]) -> None:
        while not is_over.is_set():
            action()

    threads = [threading.Thread(target=repeat, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


# -- the one who tells ----------------------------------------------------------------------------


def make(client: PlasmaClient, number: int) -> None:
    """An object that is written in place, in one of the ways that there are."""
    match number % 3:
        case 0:
            memoryview(client.create(numbered(number), 8)).cast("B")[:] = b"the data"
            client.seal(numbered(number))
        case 1:
            with client.create_array(8, np.uint8, numbered(number)) as values:
                values[:] = 7
        case _:
            client.put(np.full(8000, 7, np.uint8), numbered(number))


def tell_one_by_one(
    path: str, directory: bool, tell: Connection, go_on: Connection, *others: Connection
) -> None:
    """Goes on when the one who was told has looked. `others` are the other ends, for him."""
    for other in others:
        other.close()
    client = plasma.connect(path, directory=directory)
    with meanwhile(client.stats, client.clients, lambda: client.evict(0)):
        for number in range(SEALS):
            make(client, number)
            tell.send_bytes(b"sealed")
            go_on.recv_bytes()


# -- the one who is told --------------------------------------------------------------------------


def is_found(client: PlasmaClient, number: int) -> bool:
    """Looks for it by another call for each number."""
    object_id = numbered(number)
    match number % 5:
        case 0:
            return client.contains(object_id)
        case 1:
            return client.state(object_id) == "sealed"
        case 2:
            return client.get_buffers([object_id], 0)[0] is not None
        case 3:
            return client.wait([object_id], 1, 0) == ([object_id], [])
        case _:
            return client.list().get(object_id, {}).get("state") == "sealed"


def ask_one_by_one(path: str, method: str, directory: str) -> None:
    context = multiprocessing.get_context(method)
    told, tell = context.Pipe(duplex=False)
    may_go_on, go_on = context.Pipe(duplex=False)
    arguments = (path, directory == "True", tell, may_go_on, told, go_on)
    teller = context.Process(target=tell_one_by_one, args=arguments, daemon=True)
    # Before this process has threads.
    teller.start()
    tell.close()
    may_go_on.close()

    askers = [plasma.connect(path), plasma.connect(path, directory=False)]
    creator = plasma.connect(path)
    unsealed = creator.create(UNSEALED, 8)
    store = creator._core.server_pid()

    def create_and_abort() -> None:
        creator.create(ABORTED, 8)
        creator.abort(ABORTED)

    pause = threading.Event()

    def stop_the_store() -> None:
        pause.wait(BETWEEN_STOPS_SECONDS)
        os.kill(store, signal.SIGSTOP)
        pause.wait(STOP_SECONDS)
        os.kill(store, signal.SIGCONT)

    questions = denials = 0
    with meanwhile(create_and_abort, stop_the_store):
        for number in range(SEALS):
            assert told.recv_bytes() == b"sealed"
            client = askers[number % 2]
            if number % 6:
                questions += 1
                denials += not is_found(client, number)
            questions += 1
            denials += client.delete([numbered(number)]) != ["deleted"]
            go_on.send_bytes(b"go on")
    del unsealed
    teller.join()
    assert teller.exitcode == 0
    # In a form that `scripts/soak.sh` understands.
    say(f"{SEALS} seals told, {questions} questions asked, {denials} denied")


@pytest.mark.timeout(2 * PATIENCE_SECONDS + SEALS * SEAL_SECONDS)
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("directory", [True, False] if HAS_DIRECTORY else [False])
def test_who_is_told_by_a_busy_program_finds_the_object(
    store: str, method: str, directory: bool
) -> None:
    limit = PATIENCE_SECONDS + SEALS * SEAL_SECONDS
    with Child(ask_one_by_one, store, method, str(directory), seconds=limit) as asker:
        result = asker.hear()
        print(result)
        asker.process.wait(limit)
    assert result.endswith(" 0 denied"), result


# -- those who die --------------------------------------------------------------------------------


def seal_and_die(path: str, number: str, is_sealed: str) -> None:
    client = plasma.connect(path)
    with meanwhile(client.stats, client.clients):
        buffer = client.create(numbered(int(number)), 8)
        if is_sealed == "True":
            client.seal(numbered(int(number)))
        say("sealed")
        os.kill(os.getpid(), signal.SIGKILL)
    del buffer


@pytest.mark.parametrize("is_sealed", [True, False])
def test_what_was_told_of_stays_though_its_creator_dies_at_once(
    store: str, client: PlasmaClient, is_sealed: bool
) -> None:
    for number in range(DEATHS):
        with Child(seal_and_die, store, str(number), str(is_sealed)) as teller:
            assert teller.hear() == "sealed"
            if is_sealed:
                assert is_found(client, number)
            assert teller.ended() == -signal.SIGKILL
    if is_sealed:
        wait_until(lambda: client.stats()["clients"] == 1)
        assert all(client.contains(numbered(number)) for number in range(DEATHS))
        assert client.stats()["evictable"] == client.stats()["used"] == 8 * DEATHS
    else:
        wait_until(lambda: client.stats()["objects"] == client.stats()["used"] == 0)
