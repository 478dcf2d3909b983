"""Connecting, disconnecting, and what a client says when there is no store.

The forms of `connect` are those of pyarrow 11 and of the versions before 0.15, whose programs are
still alive.
"""

from __future__ import annotations

import os
import pickle
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import kill_store
from support import wait_until

import plasma
from plasma import ObjectID, PlasmaClient

MakeStore = Callable[..., str]


@pytest.mark.parametrize("retries", [0, 1, -1, -5, 300])
def test_retries_as_the_second_argument_or_by_name(store: str, retries: int) -> None:
    assert plasma.connect(store, retries).store_capacity() > 0
    assert plasma.connect(store, num_retries=retries).store_capacity() > 0
    assert plasma.connect(store_socket_name=store, num_retries=retries).store_capacity() > 0


@pytest.mark.parametrize(
    "arguments", [("",), (None,), ("", 0), (None, 0), ("", 0, 300), (None, 0, 300), ("", 0, -1)]
)
def test_the_older_positional_forms(store: str, arguments: tuple[Any, ...]) -> None:
    with plasma.connect(store, *arguments) as client:
        assert client.get(client.put(1)) == 1


def test_a_release_delay_is_accepted_with_a_warning(store: str) -> None:
    with pytest.warns(FutureWarning, match="release_delay"):
        plasma.connect(store, "", 64)


def test_a_plasma_manager_is_not_implemented(store: str) -> None:
    with pytest.raises(NotImplementedError, match="/tmp/manager"):
        plasma.connect(store, "/tmp/manager", 0)


def test_too_many_arguments_are_a_type_error(store: str) -> None:
    with pytest.raises(TypeError, match="at most 4"):
        plasma.connect(store, "", 0, 5, 6)


@pytest.mark.parametrize("wrong", [None, 5, [], object()])
def test_a_path_of_the_wrong_type_is_a_type_error(wrong: Any) -> None:
    with pytest.raises(TypeError):
        plasma.connect(wrong, 0)


def test_a_wrong_keyword_is_a_type_error(store: str) -> None:
    with pytest.raises(TypeError, match="retries"):
        plasma.connect(store, retries=5)  # type: ignore[call-arg]


def test_a_path_may_be_a_path_or_bytes(store: str) -> None:
    for path in (Path(store), os.fsencode(store)):
        client = plasma.connect(path, 0)
        assert client.store_socket_name == store
        assert client.get(client.put(1)) == 1


def test_where_there_is_no_socket_it_is_an_os_error_with_path_and_cause(tmp_path: Path) -> None:
    path = str(tmp_path / "nobody")
    with pytest.raises(OSError, match="No such file") as caught:
        plasma.connect(path, 0)
    assert path in str(caught.value)


def test_a_socket_where_nobody_listens_is_an_os_error_with_path_and_cause(tmp_path: Path) -> None:
    path = str(tmp_path / "stale")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
    with pytest.raises(OSError, match="refused") as caught:
        plasma.connect(path, 0)
    assert path in str(caught.value)


@pytest.mark.parametrize("path", ["/tmp", "", "/" + 200 * "x"], ids=["directory", "empty", "long"])
def test_a_path_that_can_be_no_socket_is_an_os_error(path: str) -> None:
    with pytest.raises(OSError, match="cannot connect") as caught:
        plasma.connect(path, 0)
    assert path in str(caught.value)


def test_retries_wait_for_a_store_that_is_not_there_yet(store: str, tmp_path: Path) -> None:
    # A store whose socket appears late is the same to a client as one that is moved there late.
    late = tmp_path / "late"
    appearing = threading.Timer(0.15, lambda: os.symlink(store, late))
    appearing.start()
    try:
        client = plasma.connect(str(late), num_retries=100)
        assert client.get(client.put("late")) == "late"
    finally:
        appearing.join()


@pytest.mark.parametrize("memory", [10_000, 100_000_000])
def test_the_capacity_is_what_the_store_was_given(make_store: MakeStore, memory: int) -> None:
    assert plasma.connect(make_store(memory=memory)).store_capacity() == memory


def test_the_name_of_the_socket_can_be_read_but_not_set(store: str, client: PlasmaClient) -> None:
    assert client.store_socket_name == store
    with pytest.raises(AttributeError):
        client.store_socket_name = "elsewhere"  # type: ignore[misc]


CALLS: dict[str, Callable[[PlasmaClient], object]] = {
    "abort": lambda client: client.abort(ObjectID(20 * b"x")),
    "clients": lambda client: client.clients(),
    "contains": lambda client: client.contains(ObjectID(20 * b"x")),
    "create": lambda client: client.create(ObjectID(20 * b"x"), 5),
    "create_and_seal": lambda client: client.create_and_seal(ObjectID(20 * b"x"), b"x"),
    "debug_string": lambda client: client.debug_string(),
    "delete": lambda client: client.delete([ObjectID(20 * b"x")]),
    "evict": lambda client: client.evict(5),
    "get": lambda client: client.get(ObjectID(20 * b"x")),
    "get_buffers": lambda client: client.get_buffers([ObjectID(20 * b"x")], 1000),
    "get_metadata": lambda client: client.get_metadata([ObjectID(20 * b"x")], 0),
    "hash": lambda client: client.hash(ObjectID(20 * b"x")),
    "list": lambda client: client.list(),
    "put": lambda client: client.put(5),
    "put_arrow": lambda client: client.put_arrow(__import__("pyarrow").table({"a": [1]})),
    "put_raw_buffer": lambda client: client.put_raw_buffer(b"x"),
    "refresh": lambda client: client.refresh([ObjectID(20 * b"x")]),
    "seal": lambda client: client.seal(ObjectID(20 * b"x")),
    "set_client_options": lambda client: client.set_client_options("name", 5),
    "state": lambda client: client.state(ObjectID(20 * b"x")),
    "stats": lambda client: client.stats(),
    "subscribe": lambda client: client.subscribe(),
    "wait": lambda client: client.wait([ObjectID(20 * b"x")]),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_after_disconnect_every_call_is_an_os_error(
    client: PlasmaClient, call: Callable[[PlasmaClient], object]
) -> None:
    client.disconnect()
    with pytest.raises(OSError, match="disconnected"):
        call(client)


def test_when_the_store_is_gone_every_call_is_an_os_error_with_the_path(
    client: PlasmaClient, store: str
) -> None:
    kill_store(client)
    for name, call in CALLS.items():
        with pytest.raises(OSError) as caught:
            call(client)
        assert store in str(caught.value), name


def test_a_waiting_get_ends_with_an_os_error_when_the_store_dies(
    client: PlasmaClient, store: str
) -> None:
    errors: list[OSError] = []

    def wait_for_ever() -> None:
        try:
            client.get(ObjectID.from_random())
        except OSError as error:
            errors.append(error)

    waiting = threading.Thread(target=wait_for_ever, daemon=True)
    other = plasma.connect(store)
    waiting.start()
    wait_until(lambda: other.stats()["waiting_requests"] == 1)
    kill_store(other)
    waiting.join(10)
    assert not waiting.is_alive()
    assert len(errors) == 1 and store in str(errors[0])


def test_disconnecting_twice_is_no_error(client: PlasmaClient) -> None:
    client.disconnect()
    client.disconnect()


def test_what_the_client_knows_by_itself_can_be_asked_after_disconnect(
    client: PlasmaClient, store: str
) -> None:
    client.disconnect()
    assert client.store_socket_name == store
    assert client.store_capacity() == 100_000_000


def test_a_client_disconnects_at_the_end_of_its_block(store: str) -> None:
    with plasma.connect(store) as client:
        object_id = client.put("kept")
    with pytest.raises(OSError, match="disconnected"):
        client.get(object_id)
    assert plasma.connect(store).get(object_id) == "kept"


def test_an_exception_leaves_the_block_of_a_client(store: str) -> None:
    with pytest.raises(KeyError, match="mine"), plasma.connect(store) as client:
        raise KeyError("mine")
    with pytest.raises(OSError, match="disconnected"):
        client.list()


def test_a_pickled_client_connects_again(client: PlasmaClient) -> None:
    object_id = client.put([1, 2, 3])
    again = pickle.loads(pickle.dumps(client))
    assert again is not client
    assert again.get(object_id) == [1, 2, 3]
    assert len(client.clients()) == 2


def test_a_client_that_leaves_takes_its_unsealed_objects_along(
    store: str, client: PlasmaClient
) -> None:
    leaving = plasma.connect(store)
    without_buffer, with_buffer, sealed = (ObjectID(20 * name) for name in (b"a", b"b", b"s"))
    leaving.create(without_buffer, 100)
    buffer = leaving.create(with_buffer, 100)
    leaving.create_and_seal(sealed, b"stays")
    assert client.states([without_buffer, with_buffer]) == ["created", "created"]
    leaving.disconnect()
    wait_until(lambda: client.state(without_buffer) == "absent")
    # A buffer stays valid after `disconnect`, so its object goes with it.
    assert len(memoryview(buffer)) == 100
    del buffer
    wait_until(lambda: client.state(with_buffer) == "absent")
    assert client.contains(sealed)


def test_there_is_no_capsule_of_a_c_plus_plus_client(client: PlasmaClient) -> None:
    with pytest.raises(NotImplementedError, match="capsule"):
        client.to_capsule()


def test_how_long_to_look_before_sleeping(store: str) -> None:
    for poll_us in (0, 7, 1000):
        with plasma.connect(store, poll_us=poll_us) as client:
            object_id = client.put(poll_us)
            assert pickle.loads(pickle.dumps(client)).get(object_id) == poll_us
    for poll_us in (-1, 1001):
        with pytest.raises(ValueError, match=f"poll_us={poll_us}"):
            plasma.connect(store, poll_us=poll_us)
    with pytest.raises(TypeError):
        plasma.connect(store, poll_us=1.5)  # type: ignore[arg-type]
