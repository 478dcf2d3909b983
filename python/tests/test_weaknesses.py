"""The weaknesses of the original that reach Python users, each looked for in a real store.

The numbers are those of the list of its weaknesses (B7, B11 …) in the store's own tests; what it
did is said above each group. What ends a process happens in a child.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import probes
import pyarrow as pa
import pytest
from children import Child, hear, running_store, say
from support import wait_until
from ticker import never_stalls

import plasma
from plasma import ObjectID, PlasmaClient

MB = 1_000_000
A = ObjectID(20 * b"a")
B = ObjectID(20 * b"b")
MISSING = ObjectID(20 * b"m")

#: More than any store of these tests has.
EVERYTHING = 10**12


@pytest.fixture
def other(store: str) -> Iterator[PlasmaClient]:
    """A second client of the same store."""
    with plasma.connect(store) as other:
        yield other


def address_of(buffer: Any) -> int:
    return int(np.frombuffer(buffer, np.uint8).ctypes.data)


def array_of(length: int, fill: int = 7) -> np.ndarray[Any, Any]:
    return np.full(length, fill, np.uint8)


# -- B7: a forked child gave up what its parent held ----------------------------------------------


def b07_parent(path: str, how: str) -> None:
    client = plasma.connect(path)
    value = client.get(A)
    [buffer] = client.get_buffers([B])
    assert buffer is not None
    child = os.fork()
    if child == 0:
        if how == "drops":
            del value, buffer
        elif how == "disconnects":
            client.disconnect()
        elif how == "uses":
            assert client.contains(A)
            del value, buffer, client
        elif how == "leaves at once":
            os._exit(0)
        # The end of an interpreter, with everything that is still alive.
        raise SystemExit(0)
    _, status = os.waitpid(child, 0)
    say(os.waitstatus_to_exitcode(status))
    hear()
    say(int(value.sum()) + sum(buffer.to_pybytes()))
    del value, buffer
    client.contains(A)  # What was dropped has reached the store.
    say("dropped")
    hear()


@pytest.mark.parametrize("how", ["drops", "disconnects", "uses", "exits", "leaves at once"])
def test_b07_what_a_forked_child_does_to_its_copies_releases_nothing(
    store: str, client: PlasmaClient, how: str
) -> None:
    client.put(array_of(100_000), A)
    client.put_raw_buffer(array_of(200), B)
    with Child(b07_parent, store, how) as parent:
        assert parent.hear() == "0", "the child went as it should"
        assert client.evict(EVERYTHING) == 0
        assert [client.list()[id]["ref_count"] for id in (A, B)] == [1, 1]
        # Memory that was given up by mistake would be used for this.
        client.put(array_of(50 * MB, 9))
        parent.say()
        assert int(parent.hear()) == 100_000 * 7 + 200 * 7
        assert parent.hear() == "dropped"
        wait_until(lambda: client.stats()["pinned"] == 0)
        assert client.evict(EVERYTHING) > 0
        assert client.list() == {}
        parent.say()
        parent.succeeds()


# -- B11: everybody could write into sealed objects -----------------------------------------------


def b11_reader(path: str) -> None:
    [buffer] = plasma.connect(path).get_buffers([A])
    say()
    ctypes.memset(address_of(buffer), 0xFF, 1)
    say("still alive")


def b11_reader_of_an_array(path: str) -> None:
    value = plasma.connect(path).get(A)
    say()
    ctypes.memset(value.ctypes.data, 0xFF, 1)
    say("still alive")


def b11_late_writer(path: str) -> None:
    client = plasma.connect(path)
    view = memoryview(client.create(A, 1000)).cast("B")
    view[:] = bytes(1000 * [7])
    client.seal(A)
    assert bytes(view[:3]) == b"\7\7\7", "it can still be read"
    say()
    view[0] = 0xFF
    say("still alive")


def b11_late_writer_by_address(path: str) -> None:
    client = plasma.connect(path)
    buffer = client.create(A, 1000)
    address = address_of(buffer)
    ctypes.memset(address, 7, 1000)
    client.seal(A)
    say()
    ctypes.memset(address, 0xFF, 1)
    say("still alive")


def b11_late_writer_of_an_array(path: str) -> None:
    with plasma.connect(path).create_array(1000, np.uint8, A) as values:
        values[:] = 7
        view = values[:]
    with contextlib.suppress(ValueError):
        values[0] = 0xFF  # This one is told in time.
        say("written")
    say()
    view[0] = 0xFF
    say("still alive")


@pytest.mark.parametrize(
    ("culprit", "writes_itself"),
    [
        (b11_reader, False),
        (b11_reader_of_an_array, False),
        (b11_late_writer, True),
        (b11_late_writer_by_address, True),
        (b11_late_writer_of_an_array, True),
    ],
)
def test_b11_a_write_to_a_sealed_object_ends_the_process_that_did_it_and_no_other(
    store: str, client: PlasmaClient, culprit: Callable[[str], None], writes_itself: bool
) -> None:
    if not writes_itself:
        client.put(array_of(100_000), A)
    with Child(culprit, store) as child:
        assert child.hear() == "ready"
        [before] = client.get_buffers([A])
        assert before is not None
        contents, digest = before.to_pybytes(), client.hash(A)
        assert bytes(1000 * [7]) in contents and b"\xff" not in contents
        assert child.ended() == -signal.SIGSEGV, child.errors()
        assert before.to_pybytes() == contents and client.hash(A) == digest
    wait_until(lambda: client.stats()["clients"] == 1)
    assert client.get(client.put("the others go on")) == "the others go on"


def test_b11_what_a_reader_gets_is_read_only_for_python(client: PlasmaClient) -> None:
    client.put(array_of(1000), A)
    [buffer] = client.get_buffers([A])
    assert buffer is not None and not buffer.is_mutable
    assert memoryview(buffer).readonly
    value = client.get(A)
    for values in (value, np.frombuffer(buffer, np.uint8)):
        assert not values.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            values.flags.writeable = True


def test_b11_pages_of_a_reader_cannot_be_made_writable(client: PlasmaClient) -> None:
    client.put(array_of(10_000), A)
    value = client.get(A)
    mapping = probes.mapping_of(value.ctypes.data)
    libc = ctypes.CDLL(None, use_errno=True)
    read_and_write = 1 | 2
    begin, size = ctypes.c_void_p(mapping.begin), ctypes.c_size_t(mapping.end - mapping.begin)
    assert libc.mprotect(begin, size, read_and_write) == -1
    assert ctypes.get_errno() == 13, "EACCES: the descriptor is open for reading only"
    assert probes.mapping_of(value.ctypes.data) == mapping


def b11_overrun(path: str) -> None:
    client = plasma.connect(path)
    address = address_of(client.create(B, 64))
    end = probes.mapping_of(address).end
    say()
    # All that can be reached, and one byte more.
    ctypes.memset(address, 0xFF, end - address + 1)
    say("still alive")


def test_b11_an_overrun_harms_neither_the_store_nor_its_books(
    store: str, client: PlasmaClient
) -> None:
    client.put_raw_buffer(array_of(1000), A)
    with Child(b11_overrun, store) as child:
        assert child.hear() == "ready"
        assert child.ended() == -signal.SIGSEGV, child.errors()
    wait_until(lambda: set(client.list()) == {A})
    [buffer] = client.get_buffers([A])
    assert buffer is not None and buffer.to_pybytes() == bytes(1000 * [7])
    del buffer
    client.delete([A])
    # The whole store can be had again, which a damaged allocator could not give.
    client.create(B, 100 * MB)
    client.abort(B)
    assert client.stats()["used"] == 0


# -- B13: what could never fit emptied the store first --------------------------------------------


def test_b13_an_object_that_cannot_fit_evicts_nothing(client: PlasmaClient) -> None:
    ids = [client.put_raw_buffer(array_of(MB)) for _ in range(10)]
    size = 2 * client.store_capacity()
    with pytest.raises(plasma.PlasmaStoreFull, match=str(size)) as caught:
        client.create(A, size)
    assert A.hex() in str(caught.value)
    assert all(client.contains(id) for id in ids)
    assert client.stats()["counters"]["objects_evicted"] == 0


# -- B15: new objects showed what others had written ----------------------------------------------


def former_contents(client: PlasmaClient) -> None:
    """Leaves bytes behind where the next object of this size will be."""
    id = client.put_raw_buffer(array_of(10_000, 0xAB))
    assert client.delete([id]) == ["deleted"]


@pytest.fixture
def clearing(tmp_path: Path) -> Iterator[PlasmaClient]:
    """A client of a store that was told to have new objects cleared."""
    path = tmp_path / "plasma"
    with (
        running_store("-m", "10000000", "--clear-new-objects", path=path),
        plasma.connect(path) as client,
    ):
        yield client


def test_b15_a_store_that_clears_shows_zeros_in_new_objects(clearing: PlasmaClient) -> None:
    former_contents(clearing)
    assert clearing.create(A, 10_000).to_pybytes() == bytes(10_000)


def test_b15_a_store_that_clears_shows_zeros_in_new_arrays(clearing: PlasmaClient) -> None:
    former_contents(clearing)
    with clearing.create_array(9000, np.uint8, A) as values:
        assert not values.any()
    with clearing.create_buffer(10_000, B) as buffer:
        assert buffer.to_pybytes() == bytes(10_000)


def test_b15_other_stores_do_not_clear_and_say_so(client: PlasmaClient) -> None:
    former_contents(client)
    assert 0xAB in client.create(A, 10_000).to_pybytes()
    for documented in (PlasmaClient.create, PlasmaClient.create_array):
        assert "before" in (documented.__doc__ or "")
        assert "--clear-new-objects" in (documented.__doc__ or "")


# -- B16: views outlived disconnect, their contents did not ---------------------------------------


@pytest.mark.parametrize("end", ["disconnect", "delete the client", "with block"])
def test_b16_views_keep_their_contents_after_the_client_is_gone(
    store: str, other: PlasmaClient, end: str
) -> None:
    client = plasma.connect(store)
    client.put(array_of(10 * MB), A)
    client.put_arrow(pa.table({"x": np.arange(MB)}), B)
    value, table = client.get(A), client.get_arrow(B)
    [buffer] = client.get_buffers([A])
    if end == "disconnect":
        client.disconnect()
    elif end == "with block":
        with client:
            pass
    del client

    assert other.evict(EVERYTHING) == 0, "both are in use"
    for _ in range(30):  # Three times all the room there is.
        other.put(array_of(10 * MB, 9))
    assert (value == 7).all() and table["x"].to_numpy().sum() == MB * (MB - 1) // 2
    assert other.contains(A) and other.contains(B)

    del value
    assert other.contains(A) and other.list()[A]["ref_count"] == 1
    del buffer, table
    wait_until(lambda: other.stats()["pinned"] == 0)


def test_b16_views_keep_their_contents_after_the_store_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "plasma"
    with running_store("-m", "10000000", path=path) as process:
        client = plasma.connect(path)
        value = client.get(client.put(array_of(MB)))
        process.kill()
        process.wait()
    assert (value == 7).all()
    with pytest.raises(OSError, match=re.escape(str(path))):
        client.put(1)
    assert (value == 7).all()


# -- B17: a waiting get held a lock, and the interpreter ------------------------------------------


def test_b17_a_waiting_get_holds_up_neither_drops_nor_puts_nor_the_interpreter(
    client: PlasmaClient, other: PlasmaClient
) -> None:
    client.put(array_of(MB), A)

    def scene() -> None:
        wanted = ObjectID.from_random()
        held = client.get(A)
        found: list[Any] = []
        waiter = threading.Thread(target=lambda: found.append(client.get(wanted, -1)), daemon=True)
        waiter.start()
        wait_until(lambda: other.stats()["waiting_requests"] == 1)
        del held
        wait_until(lambda: other.stats()["pinned"] == 0)
        client.put("the awaited one", wanted)
        waiter.join(10)
        assert found == ["the awaited one"]

    never_stalls(scene)


# -- B18: mistakes ended the process --------------------------------------------------------------


@pytest.mark.parametrize("call", ["get", "get_buffers", "get_metadata", "get_arrow"])
def test_b18_waiting_for_ones_own_unsealed_object_is_an_error(
    client: PlasmaClient, call: str
) -> None:
    client.create(A, 10)
    ids = A if call in ("get", "get_arrow") else [A]
    with pytest.raises(pa.ArrowInvalid, match=A.hex()):
        getattr(client, call)(ids, -1)
    client.seal(A)
    [buffer] = client.get_buffers([A], -1)
    assert buffer is not None and buffer.size == 10


def test_b18_with_a_timeout_it_is_just_not_there(client: PlasmaClient) -> None:
    client.create(A, 10)
    assert client.get_buffers([A, B], 0) == [None, None]
    assert client.get(A, 1) is plasma.ObjectNotAvailable


def test_b18_ids_that_are_not_ones_own(client: PlasmaClient, other: PlasmaClient) -> None:
    other.create(A, 10)
    for call in (client.seal, client.abort, client._release):
        for id in (MISSING, A):
            with pytest.raises(plasma.PlasmaObjectNotFound, match=id.hex()):
                call(id)
    other.seal(A)
    client._release(A)  # Sealed objects are released by their buffers.


def test_b18_seal_and_abort_come_once(client: PlasmaClient) -> None:
    client.create(A, 10)
    client.seal(A)
    for call in (client.seal, client.abort):
        with pytest.raises(TypeError, match=A.hex()):
            call(A)
    client.create(B, 10)
    client.abort(B)
    for call in (client.seal, client.abort):
        with pytest.raises(plasma.PlasmaObjectNotFound, match=B.hex()):
            call(B)


def every_call(client: PlasmaClient) -> dict[str, Callable[[], object]]:
    """A call of each kind that talks to the store."""
    return {
        "put": lambda: client.put(1),
        "put large": lambda: client.put(array_of(MB)),
        "put_arrow": lambda: client.put_arrow(pa.table({"x": [1]})),
        "put_raw_buffer": lambda: client.put_raw_buffer(b"1"),
        "create": lambda: client.create(MISSING, 10),
        "create_and_seal": lambda: client.create_and_seal(MISSING, b"1"),
        "create_and_seal_batch": lambda: client.create_and_seal_batch([MISSING], [b"1"]),
        "create_array": lambda: client.create_array(3).__enter__(),
        "get": lambda: client.get(MISSING, -1),
        "get_buffers": lambda: client.get_buffers([MISSING], -1),
        "get_metadata": lambda: client.get_metadata([MISSING], 10),
        "get_arrow": lambda: client.get_arrow(MISSING),
        "wait": lambda: client.wait([MISSING]),
        "hash": lambda: client.hash(MISSING),
        "contains": lambda: client.contains(MISSING),
        "state": lambda: client.state(MISSING),
        "seal": lambda: client.seal(MISSING),
        "abort": lambda: client.abort(MISSING),
        "_release": lambda: client._release(MISSING),
        "delete": lambda: client.delete([MISSING]),
        "evict": lambda: client.evict(1),
        "refresh": lambda: client.refresh([MISSING]),
        "list": client.list,
        "stats": client.stats,
        "clients": client.clients,
        "debug_string": client.debug_string,
        "set_client_options": lambda: client.set_client_options("name", 10),
        "subscribe": client.subscribe,
        "notifications": client.notifications,
    }


def test_b18_after_the_store_was_killed_every_call_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "plasma"
    with running_store("-m", "10000000", path=path) as process:
        client = plasma.connect(path)
        client.create(A, 10)
        client.subscribe()
        process.kill()
        process.wait()
    for name, call in every_call(client).items():
        if name == "subscribe":
            continue  # It is subscribed.
        with pytest.raises(OSError, match=re.escape(str(path))):
            call()
            raise AssertionError(f"{name} worked")
    with pytest.raises(OSError):
        client.seal(A)
    with pytest.raises(OSError):
        client.get_next_notification()
    client.disconnect()


@pytest.mark.parametrize("call", ["get", "wait", "create", "get_next_notification"])
def test_b18_a_store_that_is_killed_ends_what_waits_for_it(tmp_path: Path, call: str) -> None:
    path = tmp_path / "plasma"
    with running_store("-m", "1000000", path=path) as process:
        client, observer = plasma.connect(path), plasma.connect(path)
        [full] = client.get_buffers([client.put_raw_buffer(bytes(MB))])
        waits: dict[str, Callable[[], object]] = {
            "get": lambda: client.get(MISSING),
            "wait": lambda: client.wait([MISSING]),
            "create": lambda: client.create(A, 10, timeout_ms=-1),
            "get_next_notification": client.get_next_notification,
        }
        if call == "get_next_notification":
            client.subscribe()
            client.get_next_notification()
        outcome: list[BaseException] = []

        def waits_for_ever() -> None:
            try:
                waits[call]()
            except OSError as error:
                outcome.append(error)

        waiter = threading.Thread(target=waits_for_ever, daemon=True)
        waiter.start()
        if call in ("get", "wait"):
            wait_until(lambda: observer.stats()["waiting_requests"] == 1)
        process.kill()
        waiter.join(10)
        assert len(outcome) == 1, "it has ended, with an OSError"
    assert full is not None and full.size == MB


def test_b18_after_disconnect_every_call_is_an_error(client: PlasmaClient) -> None:
    client.create(A, 10)
    client.disconnect()
    client.disconnect()
    for name, call in every_call(client).items():
        with pytest.raises(OSError, match="disconnected"):
            call()
            raise AssertionError(f"{name} worked")
    for call in (client.get_next_notification, client.get_notification_socket):
        with pytest.raises(OSError):
            call()


def test_b18_a_client_that_was_never_connected_talks_to_nobody() -> None:
    with pytest.raises(TypeError):
        PlasmaClient()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        plasma._core.Client()
    hollow = PlasmaClient.__new__(PlasmaClient)
    for call in (hollow.list, hollow.disconnect, lambda: hollow.put(1)):
        with pytest.raises(AttributeError):
            call()


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (ValueError, lambda client: client.create(A, -1)),
        (TypeError, lambda client: client.create(A, "ten")),
        (TypeError, lambda client: client.create(20 * b"a", 10)),
        (TypeError, lambda client: client.create(A, 10, "text")),
        ((ValueError, OverflowError), lambda client: client.create(A, 2**70)),
        (plasma.PlasmaStoreFull, lambda client: client.create(A, 2**62)),
        (TypeError, lambda client: client.get(20 * b"a")),
        (TypeError, lambda client: client.get(None)),
        (TypeError, lambda client: client.get_buffers([A, "b"])),
        (TypeError, lambda client: client.get_buffers(A)),
        (TypeError, lambda client: client.get_buffers([A], with_metadata=True)),
        (TypeError, lambda client: client.put_raw_buffer("text")),
        (TypeError, lambda client: client.delete(A)),
        (TypeError, lambda client: client.put(1, 20 * b"a")),
        (ValueError, lambda client: client.wait([A], 2)),
        (ValueError, lambda client: client.create_and_seal_batch([A, B], [b"1"])),
        (ValueError, lambda client: client.create_array((-1, 2))),
        (TypeError, lambda client: client.create_array(3, object)),
        (OSError, lambda client: client.get_next_notification()),
        (ValueError, lambda client: client.decode_notifications(b"nonsense")),
    ],
)
def test_b18_wrong_arguments_are_errors_and_change_nothing(
    client: PlasmaClient, error: Any, call: Callable[[Any], object]
) -> None:
    with pytest.raises(error):
        call(client)
    assert client.list() == {}
    assert client.get(client.put("it goes on")) == "it goes on"
