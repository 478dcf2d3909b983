"""What happens to the objects of a store: the original's notifications, and more telling ones.

`PlasmaClient.subscribe`, `get_next_notification`, `get_notification_socket` and
`decode_notifications` work as they did: one message an event, deletions and evictions alike have
sizes of -1. `PlasmaClient.notifications` tells evictions from deletions, says when all objects that
were there have been named, and when it could not keep up.
"""

from __future__ import annotations

import os
import socket
from types import TracebackType
from typing import Literal, NamedTuple

from plasma import _core
from plasma._core import ObjectID

Kind = Literal["sealed", "deleted", "evicted", "snapshot end", "lagged"]

#: What the original put in place of the sizes of an object that is gone.
GONE = -1


class Notification(NamedTuple):
    """One event. `snapshot end` and `lagged` are about no object: their id is `None`."""

    kind: Kind
    object_id: ObjectID | None
    #: Bytes of data.
    data_size: int
    #: Bytes of metadata.
    metadata_size: int


class NotificationChannel:
    """The original's stream of notifications, behind one client."""

    def __init__(self, core: _core.Client) -> None:
        self._socket: socket.socket | None = None
        self._events = core.subscribe(True)

    def next(self) -> tuple[ObjectID, int, int]:
        """Waits for the next one: id and sizes."""
        entry = self._events.next(-1)
        assert entry is not None, "a wait without end came to its end"
        return _as_original(entry)

    def socket(self) -> socket.socket:
        """A socket to read messages from: 8 bytes of length, little-endian, then so many bytes for
        `decode_notifications`. It is the same one each time, unless the caller closed it."""
        if self._socket is None or self._socket.fileno() < 0:
            self._socket = socket.socket(fileno=os.dup(self._events.fileno()))
        return self._socket

    def is_inherited(self) -> bool:
        """Whether this is the copy of a forked child, which has to subscribe itself."""
        return self._events.is_inherited()

    def close(self) -> None:
        """Ends the stream."""
        if self._socket is not None:
            self._socket.close()
        self._events.close()

    def __del__(self) -> None:
        # Programs of the original never close the socket.
        if self._socket is not None:
            self._socket.close()


def decode_notifications(message: bytes) -> tuple[list[ObjectID], list[int], list[int]]:
    """Ids, data sizes and metadata sizes of the notifications in one message."""
    entries = [_as_original(entry) for entry in _core.Subscription.decode(message)]
    return (
        [object_id for object_id, _, _ in entries],
        [data_size for _, data_size, _ in entries],
        [metadata_size for _, _, metadata_size in entries],
    )


def _as_original(entry: _core.Entry) -> tuple[ObjectID, int, int]:
    kind, object_id, data_size, metadata_size = entry
    if object_id is None:
        raise OSError(f"the stream of notifications has ended: {kind}; subscribe anew")
    if kind == "sealed":
        return object_id, data_size, metadata_size
    return object_id, GONE, GONE


class Notifications:
    """Events of a store, on a connection of their own. Made by `PlasmaClient.notifications`.

    First a `sealed` for each object that is there, then `snapshot end`, then what happens from then
    on, this process's own actions included. As an iterator it waits for the next event. A reader
    that falls a million events behind gets `lagged` as the last one. For event loops: `fileno` is
    readable when events have come; then call `next(0)` until it gives `None`.
    """

    def __init__(self, core: _core.Client) -> None:
        self._events = core.subscribe(False)
        self._has_ended = False

    def next(self, timeout_ms: int = -1) -> Notification | None:
        """The next event, or `None` if there is none within `timeout_ms` milliseconds (-1: waits
        for ever).

        :raises OSError: the store is gone, or the stream has ended
        """
        entry = self._events.next(timeout_ms)
        return None if entry is None else Notification(*entry)

    def fileno(self) -> int:
        """The descriptor, for `select` and event loops."""
        return self._events.fileno()

    def close(self) -> None:
        """Ends the stream."""
        self._events.close()

    def __iter__(self) -> Notifications:
        return self

    def __next__(self) -> Notification:
        if self._has_ended:
            raise StopIteration
        notification = self.next()
        assert notification is not None, "a wait without end came to its end"
        self._has_ended = notification.kind == "lagged"
        return notification

    def __enter__(self) -> Notifications:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
