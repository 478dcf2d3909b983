"""`PlasmaClient`: the calls of `pyarrow.plasma`, and what they lacked.

Names, argument order, defaults and exceptions are those of pyarrow 11, as its last users know
them; where the original misbehaved, this does what its documentation said. What waits for the
store is done in Rust (`plasma._core`) without the interpreter lock; this file turns arguments and
results into what Python users expect and knows nothing of sockets and memory.
"""

from __future__ import annotations

import builtins
import errno
import operator
import os
import socket
import warnings
from collections.abc import Iterable, Sequence
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import pyarrow as pa

from plasma import _core, serialization, writing
from plasma._core import ObjectID
from plasma.errors import InvalidObjectError, PlasmaObjectNotFound
from plasma.notifications import NotificationChannel, Notifications, decode_notifications

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from plasma.serialization import SerializationContext

State = Literal["absent", "created", "sealed"]
DeleteOutcome = Literal["deleted", "in use", "not sealed", "not found"]

#: Attempts to connect after the first one, 100 ms apart, if the user does not say.
RETRIES_DEFAULT = 80

#: Most microseconds that a call can be told to look for its reply before it sleeps.
POLL_US_MAX = 1000

#: Seconds that a call waits for a store that does not answer, if the user does not say.
PATIENCE_DEFAULT = 30.0

#: Most seconds of patience: a year.
PATIENCE_MAX = 365 * 86_400

#: Threads that copy a large object, if the user does not say: the original's number. More than the
#: machine has are not used.
MEMCOPY_THREADS = 6


class ConnectOptions(NamedTuple):
    """How to connect: see `connect`."""

    name: str | None = None
    poll_us: int | None = None
    directory: bool = True
    patience: float = PATIENCE_DEFAULT
    read_only: bool = False

    def connect(self, path: str, retries: int) -> _core.Client:
        patience = timedelta(seconds=self.patience)
        return _core.Client.connect(path, retries, **{**self._asdict(), "patience": patience})


class ObjectNotAvailable:
    """What `PlasmaClient.get` gives for an object that was not there in time.

    The class itself is the value: compare with `is`.
    """


class _AnyBuffer(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, pa.Buffer)


class PlasmaBuffer(metaclass=_AnyBuffer):
    """The original's name for its buffers. Here they are plain `pyarrow.Buffer` objects, and
    `isinstance(buffer, PlasmaBuffer)` accepts those."""

    def __init__(self) -> None:
        raise TypeError("buffers are made by PlasmaClient.create and PlasmaClient.get_buffers")


class PlasmaClient:
    """A connection to a store, made by `plasma.connect`.

    Threads: may be used by many at once. One that waits in `get` holds up no other, and holds no
    lock that dropping a buffer needs. Ctrl-C ends a call that waits for the store.

    Processes: a forked child may use its copy; its first call connects anew. A client can be
    pickled and connects again where it is unpickled.

    As a context manager it disconnects at the end of the block.

    Every call can raise `OSError`: the store is gone (the text has its socket and the cause), it is
    stopped (`TimeoutError`, see `connect`), or this client was disconnected. One that changes which
    objects there are raises `PermissionError` if this client only reads. One that stores something
    raises `OSError` with `errno.EFAULT` if memory of the store is not there any more, because
    another process has taken it away; nothing of the object is stored then.
    """

    def __init__(
        self,
        socket_path: str,
        retries: int,
        options: ConnectOptions,
    ) -> None:
        self._socket_path = socket_path
        self._retries = retries
        self._options = options
        self._core = options.connect(socket_path, retries)
        self._capacity = self._core.capacity()
        self._channel: NotificationChannel | None = None

    # -- the session ------------------------------------------------------------------------------

    @property
    def store_socket_name(self) -> str:
        """The path of the store's socket."""
        return self._socket_path

    def store_capacity(self) -> int:
        """Bytes that the store was given for objects. Known without asking, so it can also be asked
        when the store is gone."""
        return self._capacity

    @property
    def read_only(self) -> bool:
        """Whether this client only reads: it said so, or the store gives its group nothing else
        (`plasma_store --read-only-group`)."""
        return self._core.is_read_only()

    def disconnect(self) -> None:
        """Ends the use of this client. Buffers, arrays and tables that came from it stay valid, and
        their objects stay in the store until the last of them is gone. An object that this client
        has not sealed can be sealed no more; it goes with its buffer."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
        self._core.disconnect()

    def set_client_options(self, client_name: str, limit_output_memory: int) -> None:
        """Names this client in the store's lists, and limits its objects to so many bytes (a quota;
        -1 for none, as in the original, where it could not be left out).

        Raises `PlasmaStoreFull` if there is a quota already, or quotas would take more than 70 % of
        the store.
        """
        if limit_output_memory >= 0:
            self._core.set_quota(limit_output_memory)
        self._core.set_name(client_name)

    def to_capsule(self) -> Any:
        """The original's C++ client for C++ code. There is none here."""
        raise NotImplementedError("there is no C++ client in this package, so no capsule of one")

    def __enter__(self) -> PlasmaClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.disconnect()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._socket_path, self._retries, self._options)

    def __repr__(self) -> str:
        return f"<plasma client of {self._socket_path}>"

    # -- any Python object ------------------------------------------------------------------------

    def put(
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
        """Stores any Python object that can be pickled, and returns its id.

        Arrays, data frames and tables in it are written once, straight into the store, by several
        threads if they are large; readers use them there without a copy. `plasma.serialization`
        says what is treated how.

        :param object_id: a random one if it is not given
        :param metadata: bytes of your own, see `get_metadata`
        :param evict: whether idle objects may be evicted to make room
        :param timeout_ms: how long to wait for room: 0 not at all, -1 for ever
        :raises PlasmaObjectExists: there is an object of this id, sealed or not
        :raises PlasmaStoreFull: there is no room (in time); the text has the numbers
        """
        if object_id is None:
            object_id = ObjectID.from_random()
        serialized = serialization.serialize(value, serialization_context)
        self._core.put(
            object_id,
            serialized.total_bytes,
            serialized.parts(),
            metadata,
            max(memcopy_threads, 1),
            evict,
            timeout_ms,
        )
        return object_id

    @overload
    def get(
        self,
        object_ids: ObjectID,
        timeout_ms: int = -1,
        serialization_context: SerializationContext | None = None,
    ) -> Any: ...

    @overload
    def get(
        self,
        object_ids: Iterable[ObjectID],
        timeout_ms: int = -1,
        serialization_context: SerializationContext | None = None,
    ) -> builtins.list[Any]: ...

    def get(
        self,
        object_ids: ObjectID | Iterable[ObjectID],
        timeout_ms: int = -1,
        serialization_context: SerializationContext | None = None,
    ) -> Any:
        """The object of one id, or a list of objects for many ids, which `put` has stored.

        Waits until they are sealed: `timeout_ms` milliseconds, 0 not at all, -1 for ever. What is
        not there in time is `ObjectNotAvailable`. Arrays lie in the store's memory: they are
        read-only, and keep their object from being evicted as long as they live.

        :raises InvalidObjectError: the object is damaged, or was not stored by `put`
        """
        if isinstance(object_ids, ObjectID):
            return self._load(self._core.get((object_ids,), timeout_ms)[0], serialization_context)
        found = self._core.get(object_ids, timeout_ms)
        return [self._load(data, serialization_context) for data in found]

    @staticmethod
    def _load(data: _core.Buffer | None, context: SerializationContext | None) -> Any:
        if data is None:
            return ObjectNotAvailable
        try:
            return serialization.deserialize(data, context)
        except InvalidObjectError as error:
            raise InvalidObjectError(f"object {data.object_id.hex()}: {error}") from error

    # -- bytes ------------------------------------------------------------------------------------

    def create(
        self,
        object_id: ObjectID,
        data_size: int,
        metadata: bytes = b"",
        *,
        evict: bool = True,
        timeout_ms: int = 0,
    ) -> pa.Buffer:
        """Starts an object of `data_size` bytes. Write into the buffer, then `seal` it.

        The buffer is writable until then. Afterwards it can be read, and a write to it through a
        view that was made before ends this process with a segmentation fault, instead of changing
        what others read. What lay in the memory before may be seen in it, unless the store was
        started with `--clear-new-objects`.

        :param evict: whether idle objects may be evicted to make room
        :param timeout_ms: how long to wait for room: 0 not at all, -1 for ever
        :raises PlasmaObjectExists: there is an object of this id, sealed or not
        :raises PlasmaStoreFull: there is no room (in time); the text has the numbers
        :raises ValueError: a negative size
        """
        return pa.py_buffer(self._core.create(object_id, data_size, metadata, evict, timeout_ms))

    def create_and_seal(
        self,
        object_id: ObjectID,
        data: Any,
        metadata: bytes = b"",
        *,
        evict: bool = True,
        timeout_ms: int = 0,
    ) -> None:
        """Stores `data` (anything with the buffer protocol) as it is. Raises as `create`."""
        self._put_bytes(object_id, data, metadata, MEMCOPY_THREADS, evict, timeout_ms)

    def create_and_seal_batch(
        self,
        object_ids: Sequence[ObjectID],
        data: Sequence[Any],
        metadata: Sequence[Any] | None = None,
        *,
        evict: bool = True,
        timeout_ms: int = 0,
    ) -> None:
        """Stores many small objects in one message: all of them, or none.

        :raises ValueError: more than 4096 objects or 1 MiB, or sequences of different lengths
        :raises PlasmaObjectExists, PlasmaStoreFull: as `create`; nothing is stored then
        """
        if metadata is None:
            metadata = [b""] * len(object_ids)
        if not len(object_ids) == len(data) == len(metadata):
            raise ValueError(
                f"{len(object_ids)} ids, {len(data)} data and {len(metadata)} metadata: there "
                "must be as many of each"
            )
        self._core.put_batch(list(zip(object_ids, data, metadata, strict=True)), evict, timeout_ms)

    def put_raw_buffer(
        self,
        value: Any,
        object_id: ObjectID | None = None,
        metadata: bytes = b"",
        memcopy_threads: int = MEMCOPY_THREADS,
        *,
        evict: bool = True,
        timeout_ms: int = 0,
    ) -> ObjectID:
        """Stores the bytes of `value` (anything with the buffer protocol, arrays of any type too)
        as they are, and returns the id, a random one if none is given. Raises as `create`."""
        if object_id is None:
            object_id = ObjectID.from_random()
        self._put_bytes(object_id, value, metadata, memcopy_threads, evict, timeout_ms)
        return object_id

    def _put_bytes(
        self,
        object_id: ObjectID,
        data: Any,
        metadata: bytes,
        threads: int,
        evict: bool,
        timeout_ms: int,
    ) -> None:
        view = memoryview(data)
        if not view.c_contiguous:
            view = memoryview(view.tobytes())
        pieces = [(0, view)]
        threads = max(threads, 1)
        self._core.put(object_id, view.nbytes, pieces, metadata, threads, evict, timeout_ms)

    def seal(self, object_id: ObjectID) -> None:
        """Makes an object that this client has created immutable and visible to everyone.

        :raises PlasmaObjectNotFound: this client is not creating such an object
        :raises TypeError: it is sealed already
        """
        self._core.seal(object_id)

    def abort(self, object_id: ObjectID) -> None:
        """Removes an object that this client is creating, as if it had never been created. Its
        buffer shows zeros from then on. Raises as `seal`."""
        self._core.abort(object_id)

    def _release(self, object_id: ObjectID) -> None:
        """Gives up the client's own hold of an object that it is creating: if its buffer goes
        before it is sealed, the object is aborted. For sealed objects nothing is to be done, their
        buffers release them."""
        self._core.release(object_id)

    @overload
    def get_buffers(
        self,
        object_ids: Iterable[ObjectID],
        timeout_ms: int = -1,
        with_meta: Literal[False] = False,
    ) -> builtins.list[pa.Buffer | None]: ...

    @overload
    def get_buffers(
        self, object_ids: Iterable[ObjectID], timeout_ms: int = -1, *, with_meta: Literal[True]
    ) -> builtins.list[tuple[bytes, pa.Buffer] | tuple[None, None]]: ...

    @overload
    def get_buffers(
        self, object_ids: Iterable[ObjectID], timeout_ms: int, with_meta: Literal[True]
    ) -> builtins.list[tuple[bytes, pa.Buffer] | tuple[None, None]]: ...

    def get_buffers(
        self, object_ids: Iterable[ObjectID], timeout_ms: int = -1, with_meta: bool = False
    ) -> builtins.list[Any]:
        """The bytes of objects, in place and read-only, in the order of the ids; `None` for what
        was not there in time. With `with_meta` pairs of (metadata, data), or (None, None).

        The objects stay in the store as long as the buffers, or views of them, live.
        """
        found = self._core.get(object_ids, timeout_ms)
        if with_meta:
            return [
                (None, None) if data is None else (data.metadata(), pa.py_buffer(data))
                for data in found
            ]
        return [None if data is None else pa.py_buffer(data) for data in found]

    def get_metadata(
        self, object_ids: Iterable[ObjectID], timeout_ms: int = -1
    ) -> builtins.list[pa.Buffer | None]:
        """As `get_buffers`, for the objects' metadata."""
        found = self._core.get(object_ids, timeout_ms)
        return [None if data is None else pa.py_buffer(data.metadata_buffer()) for data in found]

    def hash(self, object_id: ObjectID) -> bytes:
        """The 8 bytes of the original's digest of data and metadata (XXH64, little-endian).

        :raises PlasmaObjectNotFound: there is no such object, or it is not sealed
        """
        data = self._core.get((object_id,), 0)[0]
        if data is None:
            raise PlasmaObjectNotFound(f"object {object_id.hex()} is not there, or not sealed")
        return data.digest()

    # -- in place ---------------------------------------------------------------------------------

    def create_array(
        self,
        shape: int | tuple[int, ...],
        dtype: DTypeLike = float,
        object_id: ObjectID | None = None,
        *,
        order: Literal["C", "F"] = "C",
        metadata: bytes = b"",
        evict: bool = True,
        timeout_ms: int = 0,
    ) -> writing.ArrayInPlace:
        """A numpy array in the store's memory, to be filled in within a `with` block:

            with client.create_array((1000, 3)) as array:
                array[:] = compute()

        It becomes an object at the end of the block, for `get`, and is aborted if the block raises.
        The id is `object_id` of what this call returns. What lay in the memory before may be seen
        in the array until it is filled in, unless the store was started with
        `--clear-new-objects`. Entering the block raises as `create`.
        """
        options = writing.Options(metadata, evict, timeout_ms)
        return writing.ArrayInPlace(self._core, shape, dtype, order, object_id, options)

    def create_buffer(
        self,
        data_size: int,
        object_id: ObjectID | None = None,
        *,
        metadata: bytes = b"",
        evict: bool = True,
        timeout_ms: int = 0,
    ) -> writing.BufferInPlace:
        """As `create_array`, for bytes: a writable `pyarrow.Buffer` of `data_size` bytes, which
        becomes an object for `get_buffers`."""
        options = writing.Options(metadata, evict, timeout_ms)
        return writing.BufferInPlace(self._core, data_size, object_id, options)

    def put_arrow(
        self,
        data: Any,
        object_id: ObjectID | None = None,
        *,
        memcopy_threads: int = MEMCOPY_THREADS,
        metadata: bytes = b"",
        evict: bool = True,
        timeout_ms: int = 0,
    ) -> ObjectID:
        """Writes a table, a record batch, a `RecordBatchReader` or anything else with an Arrow
        stream (`__arrow_c_stream__`: polars, DuckDB …) into the store as an Arrow IPC stream, of
        which the exact size is found out first. Every language that has Arrow can read it; in
        Python `get_arrow`, in Rust `ObjectBuffer::record_batches`. Raises as `create`."""
        if object_id is None:
            object_id = ObjectID.from_random()
        options = writing.Options(metadata, evict, timeout_ms)
        writing.write_arrow(self._core, data, object_id, max(memcopy_threads, 1), options)
        return object_id

    def get_arrow(self, object_id: ObjectID, timeout_ms: int = -1) -> Any:
        """The table of an object that is an Arrow IPC stream, its columns in the store's memory;
        `ObjectNotAvailable` if it is not there in time.

        :raises pyarrow.ArrowInvalid: it is something else
        """
        reader = self.open_arrow(object_id, timeout_ms)
        return reader if reader is ObjectNotAvailable else reader.read_all()

    def open_arrow(self, object_id: ObjectID, timeout_ms: int = -1) -> Any:
        """As `get_arrow`, but a `pyarrow.ipc.RecordBatchStreamReader`: one batch at a time."""
        data = self._core.get((object_id,), timeout_ms)[0]
        if data is None:
            return ObjectNotAvailable
        try:
            return pa.ipc.open_stream(pa.py_buffer(data))
        except (pa.ArrowInvalid, OSError) as error:
            text = f"object {object_id.hex()} of {len(data)} bytes is no Arrow stream: {error}"
            if serialization.is_serialized(data):
                text = f"object {object_id.hex()} was stored by put: use get"
            raise pa.ArrowInvalid(text) from error

    # -- waiting and removing ---------------------------------------------------------------------

    def wait(
        self,
        object_ids: Iterable[ObjectID],
        num_returns: int = 1,
        timeout: float | None = None,
    ) -> tuple[builtins.list[ObjectID], builtins.list[ObjectID]]:
        """Waits until `num_returns` of the objects have been seen sealed: `timeout` seconds, for
        ever if it is `None`. Returns those that are, and those that are not, in the order given.

        Nothing is held: an object may be evicted before it is got.

        :raises ValueError: more returns than ids, or more than 8192 ids
        """
        object_ids = builtins.list(object_ids)
        timeout_ms = -1 if timeout is None else max(0, round(timeout * 1000))
        if num_returns < 0:
            raise ValueError(f"num_returns must not be negative: {num_returns}")
        ready = self._core.wait(object_ids, num_returns, timeout_ms)
        pairs = list(zip(object_ids, ready, strict=True))
        return [id for id, is_ready in pairs if is_ready], [id for id, is_in in pairs if not is_in]

    def contains(self, object_id: ObjectID) -> bool:
        """Whether the object is there and sealed. (The original also said yes to the creator of an
        unsealed object. `state` tells more.)"""
        return self._core.contains(object_id)

    def state(self, object_id: ObjectID) -> State:
        """Where the life of an object stands."""
        return self._core.states((object_id,))[0]

    def states(self, object_ids: Iterable[ObjectID]) -> builtins.list[State]:
        """Where the lives of many objects stand, in the order of the ids."""
        return self._core.states(object_ids)

    def delete(self, object_ids: Iterable[ObjectID]) -> builtins.list[DeleteOutcome]:
        """Deletes objects. Unknown ones are ignored; one that somebody holds goes when the last
        holder lets go. Says what became of each."""
        return self._core.delete(object_ids)

    def evict(self, num_bytes: int) -> int:
        """Removes idle objects, the least recently used first, until so many bytes have become free
        or there are none left. Returns the bytes."""
        return self._core.evict(num_bytes)[0]

    def refresh(self, object_ids: Iterable[ObjectID]) -> int:
        """Makes idle objects the most recently used ones, the last one most of all. Returns how
        many of the ids were idle objects."""
        return self._core.refresh(object_ids)

    # -- looking ----------------------------------------------------------------------------------

    def list(self) -> dict[ObjectID, dict[str, Any]]:
        """All objects, sealed or not: `data_size` and `metadata_size` in bytes, `ref_count` in
        clients, `create_time` in seconds since 1970, `construct_duration` in seconds (-1 if it is
        not sealed), `state`; and beyond the original `delete_pending`, and `creator`, the number of
        the client that is writing it."""
        return self._core.objects()

    def stats(self) -> dict[str, Any]:
        """The store in numbers, bytes unless the name says otherwise; what only counts up is under
        `counters`."""
        return self._core.stats()

    def clients(self, holding: ObjectID | None = None) -> builtins.list[dict[str, Any]]:
        """The store's clients, or those that hold an object: number, name, pid, what they hold."""
        return self._core.clients(holding)

    def debug_string(self) -> str:
        """The state of the store's memory as text for people."""
        return self._core.debug_text()

    # -- notifications ----------------------------------------------------------------------------

    def subscribe(self) -> None:
        """Starts the stream of notifications of this client, the original's. It begins with one for
        each sealed object. A second call does nothing. See `notifications` for a better one."""
        if self._channel is not None and not self._channel.is_inherited():
            return
        inherited, channel = self._channel, NotificationChannel(self._core)
        if self._channel is inherited:
            self._channel = channel
        else:
            # Another thread was quicker.
            channel.close()

    def get_next_notification(self) -> tuple[ObjectID, int, int]:
        """Waits for the next notification: id, bytes of data, bytes of metadata; the sizes are -1
        if the object was deleted or evicted.

        :raises OSError: not subscribed
        """
        return self._subscribed().next()

    def get_notification_socket(self) -> socket.socket:
        """A socket that is readable when there are notifications, for `select` and asyncio. Each
        message is 8 bytes of length, little-endian, and so many bytes for `decode_notifications`.
        It is the same one each time, unless the caller closed it; it goes with this client.

        :raises OSError: not subscribed
        """
        return self._subscribed().socket()

    def decode_notifications(
        self, buf: bytes
    ) -> tuple[builtins.list[ObjectID], builtins.list[int], builtins.list[int]]:
        """Ids, data sizes and metadata sizes in one message from the notification socket.

        :raises ValueError: this is no such message
        """
        return decode_notifications(buf)

    def _subscribed(self) -> NotificationChannel:
        if self._channel is None:
            raise OSError(errno.ENOTCONN, "this client is not subscribed, call subscribe() first")
        return self._channel

    def notifications(self) -> Notifications:
        """A stream of what happens to the objects of the store, on a connection of its own, which
        outlives this client."""
        return Notifications(self._core)


def connect(
    store_socket_name: str | bytes | os.PathLike[str] | os.PathLike[bytes],
    num_retries: int | str | None = -1,
    *legacy: int | None,
    name: str | None = None,
    poll_us: int | None = None,
    directory: bool = True,
    patience: float = PATIENCE_DEFAULT,
    read_only: bool = False,
) -> PlasmaClient:
    """Connects to the store that listens at a socket, the `-s` of `plasma_store`.

    :param num_retries: how often to try again, every 100 ms, if there is no store yet; -1 means 80
    :param name: what the store shows for this client in its lists; the process id if not given
    :param poll_us: microseconds that a call looks for its reply before it sleeps, while replies
        come quickly, without the interpreter lock; 0 sleeps at once. 100 if not given, 1000 at
        most
    :param directory: whether to find objects in the store's directory, without asking the store,
        if it has one; the answers are the same
    :param patience: seconds that a call waits for a store that does not answer because it is
        stopped or stuck, beyond the timeout that the call may have; then it raises `TimeoutError`.
        A call that waits for other clients without a timeout waits on. Ctrl-C ends every call
    :param read_only: this client only reads: it never gets memory that it could write objects to,
        and what changes which objects there are raises `PermissionError`
    :raises OSError: there is no store; the text has the path and the cause
    :raises ValueError: `poll_us` or `patience` is out of range

    The older forms `connect(path, "", release_delay)` and `connect(path, None, release_delay,
    num_retries)`, with the socket of a manager that no longer exists, still work.
    """
    if isinstance(num_retries, str) or num_retries is None or legacy:
        num_retries = _legacy_retries(num_retries, legacy)
    num_retries = operator.index(num_retries)
    retries = RETRIES_DEFAULT if num_retries < 0 else num_retries
    if poll_us is not None:
        poll_us = operator.index(poll_us)
        if not 0 <= poll_us <= POLL_US_MAX:
            raise ValueError(f"poll_us={poll_us} is not from 0 to {POLL_US_MAX}")
    if not 0 <= patience <= PATIENCE_MAX:
        raise ValueError(f"patience={patience} is not from 0 to {PATIENCE_MAX} seconds")
    options = ConnectOptions(name, poll_us, bool(directory), float(patience), bool(read_only))
    return PlasmaClient(os.fsdecode(store_socket_name), retries, options)


def _legacy_retries(manager: object, legacy: tuple[int | None, ...]) -> int:
    """The number of retries in `manager_socket_name, release_delay=0, num_retries=-1`."""
    if manager:
        raise NotImplementedError(
            f"there is no plasma manager to connect to at {manager!r}; leave its socket empty"
        )
    if len(legacy) > 2:
        raise TypeError(f"connect takes at most 4 positional arguments, {2 + len(legacy)} given")
    release_delay, num_retries = (*legacy, None, None)[:2]
    if release_delay:
        warnings.warn("release_delay has no effect any more", FutureWarning, stacklevel=3)
    return -1 if num_retries is None else num_retries
