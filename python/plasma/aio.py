"""The client for asyncio: `await` what is not there yet, and iterate over notifications.

    async with await plasma.aio.connect("/tmp/plasma") as client:
        table = await client.get(object_id)
        async for notification in client.notifications(): ...

One event loop can have any number of waits. They share a connection whose replies the loop itself
takes in when they have come, so a wait costs a dictionary entry and no thread, and an answer costs
the same however many others wait. What moves bytes (`put`) runs in the loop's default executor,
on a connection of its own, and holds up nobody.

A client belongs to the loop in which it was connected and is not to be used from other threads.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

import pyarrow as pa

from plasma import _core, serialization
from plasma._core import ObjectID
from plasma.client import (
    MEMCOPY_THREADS,
    PATIENCE_DEFAULT,
    ConnectOptions,
    ObjectNotAvailable,
    PlasmaClient,
)
from plasma.client import connect as connect_blocking
from plasma.notifications import Notification, Notifications

if TYPE_CHECKING:
    from plasma.serialization import SerializationContext

__all__ = ["AsyncNotifications", "AsyncPlasmaClient", "connect"]

_Result = TypeVar("_Result")
_Answer = TypeVar("_Answer", covariant=True)

#: How much longer than the patience of the Rust client, which has the last word, to wait until it
#: is asked whether the store is silent.
_SILENCE_SECONDS = 0.5

#: Notifications that are given out before other tasks of the loop get a turn.
_NOTIFICATIONS_PER_TURN = 64


class _Pending(Protocol[_Answer]):
    """`_core.PendingGet` and `_core.PendingWait`."""

    def requests(self) -> list[int]: ...
    def try_take(self) -> _Answer | None: ...
    def cancel(self) -> None: ...


class _Wait:
    """A request, and the future of the task that waits for its answer."""

    __slots__ = ("_future", "_pending")

    def __init__(self, pending: _Pending[Any], future: asyncio.Future[Any]) -> None:
        self._pending = pending
        self._future = future

    def look(self) -> None:
        """Completes the future if the answer is there."""
        if self._future.done():
            return
        try:
            answer = self._pending.try_take()
        except Exception as error:  # what it is, is for the task to find out
            self._future.set_exception(error)
        else:
            if answer is not None:
                self._future.set_result(answer)

    def fail(self, error: OSError) -> None:
        """Completes the future with an error, unless the answer has come before."""
        self.look()
        if not self._future.done():
            self._future.set_exception(error)


class AsyncPlasmaClient:
    """A client for one event loop, made by `plasma.aio.connect`.

    As an asynchronous context manager it disconnects at the end of the block.

    Every call can raise `OSError`: the store is gone (the text has its socket and the cause), or
    this client was disconnected.
    """

    def __init__(self, client: PlasmaClient, waits: _core.Client, patience: float) -> None:
        self._client = client
        self._core = waits
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        #: By the numbers of requests that have no answer yet.
        self._waits: dict[int, _Wait] = {}
        self._socket = socket.socket(fileno=waits.descriptor())
        self._loop.add_reader(self._socket, self._take_in)

    @property
    def blocking(self) -> PlasmaClient:
        """The blocking client, for the calls that need not wait: `contains`, `delete`, `stats` …"""
        return self._client

    def __repr__(self) -> str:
        return f"<asynchronous plasma client of {self._client.store_socket_name}>"

    # -- waiting ----------------------------------------------------------------------------------

    @overload
    async def get(
        self,
        object_ids: ObjectID,
        timeout_ms: int = -1,
        serialization_context: SerializationContext | None = None,
    ) -> Any: ...

    @overload
    async def get(
        self,
        object_ids: Iterable[ObjectID],
        timeout_ms: int = -1,
        serialization_context: SerializationContext | None = None,
    ) -> list[Any]: ...

    async def get(
        self,
        object_ids: ObjectID | Iterable[ObjectID],
        timeout_ms: int = -1,
        serialization_context: SerializationContext | None = None,
    ) -> Any:
        """As `PlasmaClient.get`. Cancelling it makes the store forget the request."""
        if isinstance(object_ids, ObjectID):
            [value] = await self.get((object_ids,), timeout_ms, serialization_context)
            return value
        found = await self._answer(self._core.start_get(object_ids, timeout_ms), timeout_ms)
        return [
            ObjectNotAvailable
            if data is None
            else serialization.deserialize(data, serialization_context)
            for data in found
        ]

    async def get_buffers(
        self, object_ids: Iterable[ObjectID], timeout_ms: int = -1
    ) -> list[pa.Buffer | None]:
        """As `PlasmaClient.get_buffers`. Cancelling it makes the store forget the request."""
        found = await self._answer(self._core.start_get(object_ids, timeout_ms), timeout_ms)
        return [None if data is None else pa.py_buffer(data) for data in found]

    async def get_arrow(self, object_id: ObjectID, timeout_ms: int = -1) -> Any:
        """As `PlasmaClient.get_arrow`. Cancelling it makes the store forget the request."""
        [data] = await self.get_buffers((object_id,), timeout_ms)
        return ObjectNotAvailable if data is None else pa.ipc.open_stream(data).read_all()

    async def wait(
        self,
        object_ids: Sequence[ObjectID],
        num_returns: int = 1,
        timeout: float | None = None,
    ) -> tuple[list[ObjectID], list[ObjectID]]:
        """As `PlasmaClient.wait`. Cancelling it makes the store forget the request."""
        timeout_ms = -1 if timeout is None else max(0, round(timeout * 1000))
        pending = self._core.start_wait(object_ids, num_returns, timeout_ms)
        ready = await self._answer(pending, timeout_ms)
        pairs = list(zip(object_ids, ready, strict=True))
        return [id for id, is_ready in pairs if is_ready], [id for id, is_in in pairs if not is_in]

    async def _answer(self, pending: _Pending[_Result], timeout_ms: int) -> _Result:
        """The answer to a request. Whatever ends the wait, nothing of it remains."""
        answer = pending.try_take()
        if answer is not None:
            return answer
        future: asyncio.Future[_Result] = self._loop.create_future()
        wait = _Wait(pending, future)
        requests = pending.requests()
        self._waits.update(dict.fromkeys(requests, wait))
        silence = None
        if timeout_ms != -1:
            seconds = max(timeout_ms, 0) / 1000 + self._patience + _SILENCE_SECONDS
            silence = self._loop.call_later(seconds, wait.look)
        try:
            return await future
        finally:
            if silence is not None:
                silence.cancel()
            for request in requests:
                self._waits.pop(request, None)
            pending.cancel()

    def _take_in(self) -> None:
        """Replies have come, or the store has gone."""
        try:
            answered = self._core.receive_ready()
        except OSError as error:
            self._stop(error)
            return
        for request in answered:
            # None if it was cancelled while the answer was on its way.
            wait = self._waits.get(request)
            if wait is not None:
                wait.look()

    def _stop(self, error: OSError) -> None:
        """There will be no more replies."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._socket.close()
        for wait in list(self._waits.values()):
            wait.fail(error)

    # -- storing ----------------------------------------------------------------------------------

    async def put(
        self,
        value: object,
        object_id: ObjectID | None = None,
        memcopy_threads: int = MEMCOPY_THREADS,
        serialization_context: SerializationContext | None = None,
        *,
        metadata: bytes = b"",
        evict: bool = True,
        timeout_ms: int = 0,
    ) -> ObjectID:
        """As `PlasmaClient.put`, in a thread of the loop's default executor. If it is cancelled,
        the object may come into being all the same."""
        call = partial(self._client.put, metadata=metadata, evict=evict, timeout_ms=timeout_ms)
        return await self._in_thread(
            partial(call, value, object_id, memcopy_threads, serialization_context)
        )

    async def put_arrow(
        self,
        data: Any,
        object_id: ObjectID | None = None,
        *,
        memcopy_threads: int = MEMCOPY_THREADS,
        metadata: bytes = b"",
        evict: bool = True,
        timeout_ms: int = 0,
    ) -> ObjectID:
        """As `PlasmaClient.put_arrow`, in a thread as `put`."""
        call = partial(self._client.put_arrow, metadata=metadata, evict=evict)
        options = {"memcopy_threads": memcopy_threads, "timeout_ms": timeout_ms}
        return await self._in_thread(partial(call, data, object_id, **options))

    async def _in_thread(self, call: Callable[[], _Result]) -> _Result:
        return await self._loop.run_in_executor(None, call)

    # -- notifications ----------------------------------------------------------------------------

    def notifications(self) -> AsyncNotifications:
        """What happens to the objects of the store, as `PlasmaClient.notifications`: to be iterated
        over with `async for`, and closed by `async with` if that ends early."""
        return AsyncNotifications(self._client)

    # -- the session ------------------------------------------------------------------------------

    async def disconnect(self) -> None:
        """Ends the use of this client; those that wait get `OSError`. What came from it stays."""
        self._stop(OSError(errno.EBADF, f"{self!r} was disconnected"))
        # Not in the default executor: all its threads may be waiting for room in `put`, and it is
        # this that ends their waits.
        executor = ThreadPoolExecutor(1, "plasma disconnect")
        try:
            await self._loop.run_in_executor(executor, self._disconnect_both)
        finally:
            executor.shutdown(wait=False)

    def _disconnect_both(self) -> None:
        self._core.disconnect()
        self._client.disconnect()

    async def __aenter__(self) -> AsyncPlasmaClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.disconnect()


class AsyncNotifications:
    """Events of a store, made by `AsyncPlasmaClient.notifications`: see `plasma.notifications`.

    The stream begins with the `async with` block, or with the first notification that is asked for.
    It is for one task at a time.
    """

    def __init__(self, client: PlasmaClient) -> None:
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._stream: Notifications | None = None
        self._is_waiting = False
        self._has_ended = False
        self._given_out = 0

    async def next(self) -> Notification:
        """The next event; waits for it.

        :raises OSError: the store is gone, or the stream was closed
        """
        stream = await self._open()
        self._given_out += 1
        if self._given_out % _NOTIFICATIONS_PER_TURN == 0:
            await asyncio.sleep(0)
        notification = stream.next(0)
        while notification is None:
            await self._until_readable(stream)
            notification = stream.next(0)
        return notification

    async def aclose(self) -> None:
        """Ends the stream. A task that waits for an event gets `OSError`."""
        self._has_ended = True
        if self._stream is not None:
            self._stream.close()

    async def _open(self) -> Notifications:
        if self._stream is None:
            if self._has_ended:
                raise OSError(errno.EBADF, "this stream of notifications was closed")
            self._stream = await self._loop.run_in_executor(None, self._client.notifications)
        return self._stream

    async def _until_readable(self, stream: Notifications) -> None:
        if self._is_waiting:
            raise RuntimeError("another task is waiting for this stream's next notification")
        is_readable = self._loop.create_future()
        self._is_waiting = True
        self._loop.add_reader(stream.fileno(), _set_done, is_readable)
        try:
            await is_readable
        finally:
            self._loop.remove_reader(stream.fileno())
            self._is_waiting = False

    def __aiter__(self) -> AsyncNotifications:
        return self

    async def __anext__(self) -> Notification:
        if self._has_ended:
            raise StopAsyncIteration
        notification = await self.next()
        self._has_ended = notification.kind == "lagged"
        return notification

    async def __aenter__(self) -> AsyncNotifications:
        await self._open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


async def connect(
    store_socket_name: str | os.PathLike[str],
    num_retries: int = -1,
    *,
    name: str | None = None,
    patience: float = PATIENCE_DEFAULT,
    read_only: bool = False,
) -> AsyncPlasmaClient:
    """As `plasma.connect`, without holding up the loop. Two connections are made: the store shows
    the second one with " (waits)" behind its name."""
    path = os.fspath(store_socket_name)
    name = f"pid {os.getpid()}" if name is None else name
    loop = asyncio.get_running_loop()
    options = ConnectOptions(name, patience=patience, read_only=read_only)
    connecting = partial(_connect_both, path, num_retries, options)
    return AsyncPlasmaClient(*await loop.run_in_executor(None, connecting), patience)


def _connect_both(
    path: str, num_retries: int, options: ConnectOptions
) -> tuple[PlasmaClient, _core.Client]:
    client = connect_blocking(path, num_retries, **options._asdict())
    try:
        return client, options._replace(name=f"{options.name} (waits)").connect(path, 0)
    except BaseException:
        client.disconnect()
        raise


def _set_done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
