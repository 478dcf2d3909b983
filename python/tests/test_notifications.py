"""Notifications: through the calls of the original, its raw socket, and the newer stream."""

from __future__ import annotations

import asyncio
import select
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from children import Child
from processes import kill_store
from support import wait_until

import plasma
from plasma import Notification, ObjectID, PlasmaClient

Entry = tuple[ObjectID, int, int]


def some_id(number: int) -> ObjectID:
    return ObjectID(number.to_bytes(20, "big"))


def received(stream: socket.socket, size: int) -> bytes:
    message = b""
    while len(message) < size:
        part = stream.recv(size - len(message))
        if not part:
            raise EOFError("the stream of notifications has ended")
        message += part
    return message


def next_message(stream: socket.socket) -> bytes:
    """A message as programs of the original read it: 8 bytes of length, then so many bytes."""
    return received(stream, int.from_bytes(received(stream, 8), "little"))


def from_call(client: PlasmaClient) -> Callable[[], Entry]:
    return client.get_next_notification


def from_socket(client: PlasmaClient) -> Callable[[], Entry]:
    def read() -> Entry:
        # Every socket that is asked for goes on where the one before has stopped.
        with client.get_notification_socket() as stream:
            message = next_message(stream)
        ids, data_sizes, metadata_sizes = client.decode_notifications(message)
        assert len(ids) == len(data_sizes) == len(metadata_sizes) == 1
        return ids[0], data_sizes[0], metadata_sizes[0]

    return read


Reader = Callable[[PlasmaClient], Callable[[], Entry]]
both_ways = pytest.mark.parametrize("reader", [from_call, from_socket], ids=["call", "socket"])


@both_ways
@pytest.mark.parametrize("count", [1, 10, 100, 1000, 10_000])
def test_every_object_is_told_in_order(
    client: PlasmaClient, store: str, reader: Reader, count: int
) -> None:
    client.subscribe()
    read = reader(client)
    writer = plasma.connect(store)
    for number in range(count):
        writer.create_and_seal(some_id(number), bytes(number % 100), bytes(number % 7))
    for number in range(count):
        assert read() == (some_id(number), number % 100, number % 7)


@both_ways
def test_what_create_and_seal_make_is_told_when_it_is_sealed(
    client: PlasmaClient, reader: Reader
) -> None:
    client.subscribe()
    read = reader(client)
    client.create(some_id(1), 1000, b"meta")
    client.create(some_id(2), 500)
    client.create(some_id(3), 100)
    client.abort(some_id(3))
    client.seal(some_id(2))
    client.seal(some_id(1))
    assert [read(), read()] == [(some_id(2), 500, 0), (some_id(1), 1000, 4)]


@both_ways
def test_what_was_there_before_is_told_first(client: PlasmaClient, reader: Reader) -> None:
    for number in range(50):
        client.create_and_seal(some_id(number), bytes(number))
    client.create(some_id(99), 5)
    client.subscribe()
    read = reader(client)
    assert {read() for _ in range(50)} == {(some_id(number), number, 0) for number in range(50)}
    client.create_and_seal(some_id(100), b"")
    assert read() == (some_id(100), 0, 0)


@both_ways
def test_deletions_have_sizes_of_minus_one(client: PlasmaClient, reader: Reader) -> None:
    client.subscribe()
    read = reader(client)
    for number, size in enumerate([2, 3, 0]):
        client.create_and_seal(some_id(number), bytes(size), bytes(size))
        assert read() == (some_id(number), size, size)
    client.delete([some_id(1), some_id(99), some_id(0)])
    assert [read(), read()] == [(some_id(1), -1, -1), (some_id(0), -1, -1)]
    client.delete([some_id(2)])
    assert read() == (some_id(2), -1, -1)


@both_ways
def test_one_evict_sweeps_the_empty_objects_before_its_bytes(
    client: PlasmaClient, reader: Reader
) -> None:
    client.subscribe()
    read = reader(client)
    # Nine without a byte are older than the one that has the byte asked for.
    for number in range(10):
        client.create_and_seal(some_id(number), bytes(number // 9))
        assert read() == (some_id(number), number // 9, 0)
    assert client.evict(1) == 1
    assert [read() for _ in range(10)] == [(some_id(number), -1, -1) for number in range(10)]
    assert client.list() == {}


@both_ways
def test_what_makes_room_is_told_before_what_it_makes_room_for(
    client: PlasmaClient, reader: Reader
) -> None:
    client.subscribe()
    read = reader(client)
    for number in range(2):
        client.create(some_id(number), 60_000_000)
        client.seal(some_id(number))
    assert [read() for _ in range(3)] == [
        (some_id(0), 60_000_000, 0),
        (some_id(0), -1, -1),
        (some_id(1), 60_000_000, 0),
    ]


@both_ways
def test_a_batch_is_told_one_by_one(client: PlasmaClient, reader: Reader) -> None:
    client.subscribe()
    read = reader(client)
    ids = [some_id(number) for number in range(100)]
    client.create_and_seal_batch(ids, [bytes(number) for number in range(100)])
    assert [read() for _ in range(100)] == [(id, size, 0) for size, id in enumerate(ids)]


def test_subscribing_twice_changes_nothing(client: PlasmaClient) -> None:
    client.subscribe()
    client.subscribe()
    client.create_and_seal(some_id(1), b"abc")
    client.create_and_seal(some_id(2), b"de")
    assert client.get_next_notification() == (some_id(1), 3, 0)
    assert client.get_next_notification() == (some_id(2), 2, 0)


def test_without_subscribing_it_is_an_os_error(client: PlasmaClient) -> None:
    for call in (client.get_next_notification, client.get_notification_socket):
        with pytest.raises(OSError, match="subscribe"):
            call()


def test_the_types_are_those_of_the_original(client: PlasmaClient) -> None:
    client.subscribe()
    client.create_and_seal(some_id(1), b"abc", b"m")
    client.create_and_seal(some_id(2), b"abc", b"m")
    with client.get_notification_socket() as stream:
        assert isinstance(stream, socket.socket)
        assert (stream.family, stream.type) == (socket.AF_UNIX, socket.SOCK_STREAM)
        decoded = client.decode_notifications(next_message(stream))
    assert decoded == ([some_id(1)], [3], [1])
    assert type(decoded) is tuple and all(type(part) is list for part in decoded)
    told = client.get_next_notification()
    assert told == (some_id(2), 3, 1) and type(told) is tuple
    assert type(told[1]) is int


def test_every_socket_is_its_own_and_closing_it_closes_no_other(client: PlasmaClient) -> None:
    # The original gave the same descriptor to each, so the second to go closed a stranger's.
    client.subscribe()
    for number in range(5):
        stream = client.get_notification_socket()
        client.create_and_seal(some_id(number), b"")
        assert client.decode_notifications(next_message(stream))[0] == [some_id(number)]
        stream.close()
    client.create_and_seal(some_id(9), b"x")
    assert client.get_next_notification() == (some_id(9), 1, 0)
    client.disconnect()


def test_the_socket_is_readable_when_there_are_notifications(client: PlasmaClient) -> None:
    client.subscribe()
    with client.get_notification_socket() as stream:
        assert select.select([stream], [], [], 0) == ([], [], [])
        client.create_and_seal(some_id(1), b"abc")
        assert select.select([stream], [], [], 30) == ([stream], [], [])
        next_message(stream)
        assert select.select([stream], [], [], 0) == ([], [], [])


def test_the_socket_can_be_watched_by_asyncio(client: PlasmaClient, store: str) -> None:
    async def watch() -> list[ObjectID]:
        client.subscribe()
        seen: list[ObjectID] = []
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        stream = client.get_notification_socket()

        def readable() -> None:
            seen.extend(client.decode_notifications(next_message(stream))[0])
            if len(seen) == 20:
                done.set_result(None)

        loop.add_reader(stream, readable)
        try:
            writer = plasma.connect(store)
            for number in range(20):
                writer.create_and_seal(some_id(number), b"x")
                await asyncio.sleep(0)
            await asyncio.wait_for(done, 30)
        finally:
            loop.remove_reader(stream)
            stream.close()
        return seen

    assert asyncio.run(watch()) == [some_id(number) for number in range(20)]


def test_who_waits_for_a_notification_holds_up_nobody(client: PlasmaClient) -> None:
    client.subscribe()
    told: list[Entry] = []
    waiting = threading.Thread(target=lambda: told.append(client.get_next_notification()))
    waiting.start()
    try:
        assert client.list() == {}
    finally:
        client.create_and_seal(some_id(1), b"abc")
        waiting.join(30)
    assert told == [(some_id(1), 3, 0)]


def test_each_client_has_its_own_stream(store: str) -> None:
    readers = [plasma.connect(store) for _ in range(5)]
    for reader in readers:
        reader.subscribe()
    readers[0].create_and_seal(some_id(1), b"abc")
    readers[1].disconnect()
    readers[0].create_and_seal(some_id(2), b"")
    for reader in (readers[0], *readers[2:]):
        assert reader.get_next_notification() == (some_id(1), 3, 0)
        assert reader.get_next_notification() == (some_id(2), 0, 0)


@pytest.mark.parametrize(
    "message",
    [b"", b"x", bytes(7), bytes(100), 64 * b"\xff", b"\x08" * 1000],
    ids=["empty", "letter", "few", "zeros", "ones", "eights"],
)
def test_what_is_no_message_is_a_value_error(client: PlasmaClient, message: bytes) -> None:
    # The original's process died of some of these.
    with pytest.raises(ValueError, match="notification"):
        client.decode_notifications(message)


@pytest.mark.parametrize("message", ["text", None, 5])
def test_what_is_not_bytes_is_a_type_error(client: PlasmaClient, message: Any) -> None:
    with pytest.raises(TypeError):
        client.decode_notifications(message)


def message_about(client: PlasmaClient, object_id: ObjectID) -> bytes:
    client.subscribe()
    client.create_and_seal(object_id, b"abc", b"m")
    with client.get_notification_socket() as stream:
        return next_message(stream)


def test_part_of_a_message_is_a_value_error(client: PlasmaClient) -> None:
    message = message_about(client, some_id(1))
    for length in range(len(message)):
        with pytest.raises(ValueError, match="notification"):
            client.decode_notifications(message[:length])
    assert client.decode_notifications(message) == ([some_id(1)], [3], [1])


def test_messages_can_be_decoded_without_subscribing(client: PlasmaClient, store: str) -> None:
    message = message_about(client, some_id(1))
    assert plasma.connect(store).decode_notifications(message) == ([some_id(1)], [3], [1])


def test_subscribing_does_not_wait_for_a_store_that_is_gone(store: str) -> None:
    # With so many attempts of 100 ms each the thread would not end.
    client = plasma.connect(store, num_retries=10**6)
    kill_store(client)
    errors: list[OSError] = []

    def subscribe() -> None:
        for call in (client.subscribe, client.notifications):
            try:
                call()
            except OSError as error:
                errors.append(error)

    subscribing = threading.Thread(target=subscribe, daemon=True)
    subscribing.start()
    subscribing.join(10)
    assert not subscribing.is_alive()
    assert len(errors) == 2 and all(store in str(error) for error in errors)


def test_the_end_of_the_store_is_the_end_of_the_stream(client: PlasmaClient) -> None:
    client.subscribe()
    client.create_and_seal(some_id(1), b"abc")
    with client.get_notification_socket() as stream, client.notifications() as events:
        kill_store(client)
        next_message(stream)
        with pytest.raises((EOFError, ConnectionError)):
            next_message(stream)
        with pytest.raises(OSError):
            client.get_next_notification()
        with pytest.raises(OSError):
            while True:
                events.next(10_000)


# -- the newer stream -----------------------------------------------------------------------------


def test_the_stream_tells_when_all_that_was_there_has_been_named(client: PlasmaClient) -> None:
    for number in range(3):
        client.create_and_seal(some_id(number), bytes(number), b"m")
    with client.notifications() as events:
        first = {events.next(30_000) for _ in range(3)}
        assert first == {Notification("sealed", some_id(number), number, 1) for number in range(3)}
        assert events.next(30_000) == Notification("snapshot end", None, 0, 0)
        assert events.next(0) is None
        assert events.next(timeout_ms=20) is None


def test_the_stream_tells_evictions_from_deletions(client: PlasmaClient) -> None:
    with client.notifications() as events:
        assert next(events).kind == "snapshot end"
        client.create_and_seal(some_id(1), b"abc", b"m")
        client.create_and_seal(some_id(2), b"de", b"")
        client.delete([some_id(1)])
        client.evict(1)
        kinds = [(event.kind, event.object_id) for _, event in zip(range(4), events, strict=False)]
        assert kinds == [
            ("sealed", some_id(1)),
            ("sealed", some_id(2)),
            ("deleted", some_id(1)),
            ("evicted", some_id(2)),
        ]


def test_the_stream_can_be_watched_by_its_descriptor(client: PlasmaClient) -> None:
    with client.notifications() as events:
        assert next(events).kind == "snapshot end"
        client.create_and_seal(some_id(1), b"abc")
        assert select.select([events], [], [], 30) == ([events], [], [])
        assert events.next(0) == Notification("sealed", some_id(1), 3, 0)
        assert events.next(0) is None


def test_the_stream_outlives_its_client(store: str) -> None:
    client = plasma.connect(store)
    events = client.notifications()
    client.disconnect()
    del client
    plasma.connect(store).create_and_seal(some_id(1), b"abc")
    assert [next(events).kind, next(events).object_id] == ["snapshot end", some_id(1)]


def test_a_closed_stream_is_an_os_error(client: PlasmaClient) -> None:
    events = client.notifications()
    events.close()
    with pytest.raises(OSError):
        events.next(1000)
    events.close()


def disconnect_in_a_handler(path: str) -> None:
    client = plasma.connect(path)
    client.subscribe()
    signal.signal(signal.SIGALRM, lambda *_: client.disconnect())
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    with pytest.raises(OSError):
        client.get_next_notification()


def test_a_signal_handler_may_end_the_stream_that_is_waited_for(store: str) -> None:
    with Child(disconnect_in_a_handler, store) as child:
        child.succeeds()


def test_a_thread_that_waits_does_not_hold_up_one_that_looks(client: PlasmaClient) -> None:
    with client.notifications() as events:
        assert next(events).kind == "snapshot end"
        seen: list[plasma.Notification | None] = []
        waiter = threading.Thread(target=lambda: seen.append(events.next()))
        waiter.start()
        assert events.next(10) is None
        assert not seen
        client.create_and_seal(some_id(1), b"")
        waiter.join(60)
        assert [event.object_id for event in seen if event is not None] == [some_id(1)]


def test_many_threads_subscribe_once(client: PlasmaClient) -> None:
    start = threading.Barrier(4)

    def subscribe() -> None:
        start.wait(60)
        client.subscribe()

    threads = [threading.Thread(target=subscribe) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    wait_until(lambda: client.stats()["subscribers"] == 1)
