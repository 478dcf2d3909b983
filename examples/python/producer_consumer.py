"""A producer and its consumers, who learn from notifications what there is to do.

The producer makes frames; each consumer follows the notifications of the store, takes the frames
that are its own, computes, and deletes them. The store is smaller than all frames together: when it
is full the producer waits until a consumer has deleted something (back-pressure).

    python examples/python/producer_consumer.py
    python examples/python/producer_consumer.py --frames 1000 --consumers 3 --socket /tmp/plasma

Without `--socket` it starts a store of its own, with room for about eight frames.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

import plasma

FRAME = b"frame"
END = plasma.ObjectID(b"all frames were put.")

#: How long a producer waits for room, in milliseconds, before it says that nobody consumes.
PATIENCE_MS = 30_000


def frame_id(number: int) -> plasma.ObjectID:
    return plasma.ObjectID(FRAME + number.to_bytes(15, "big"))


def frame_number(object_id: plasma.ObjectID) -> int | None:
    """The number of a frame, `None` for anything else that is in the store."""
    name = object_id.binary()
    return int.from_bytes(name[len(FRAME) :], "big") if name.startswith(FRAME) else None


def produce(path: str, frames: int, side: int) -> None:
    with plasma.connect(path, name="producer") as client:
        try:
            for number in range(frames):
                # An object that nobody holds may be evicted to make room, which is right for a
                # cache and wrong for work that is yet to be done: `evict=False` waits instead.
                with client.create_array(
                    (side, side), "f8", frame_id(number), evict=False, timeout_ms=PATIENCE_MS
                ) as frame:
                    frame[:] = number  # written where consumers will read it
        finally:
            # Also if the above has failed, so that no consumer waits for ever.
            client.put(None, END, evict=False, timeout_ms=PATIENCE_MS)


def consume(path: str, index: int, consumers: int) -> tuple[int, float]:
    """Consumes each frame whose turn is this consumer's; returns how many, and their sum."""
    count, total = 0, 0.0
    has_snapshot = has_ended = False
    with plasma.connect(path, name=f"consumer {index}") as client:
        # First come the objects that are there already, in no particular order, up to `snapshot
        # end`; then what happens, in the order in which it does.
        for notification in client.notifications():
            object_id = notification.object_id
            if notification.kind == "lagged":
                raise RuntimeError("a million events behind: some were dropped")
            if notification.kind == "snapshot end":
                has_snapshot = True
            elif notification.kind == "sealed" and object_id is not None:
                has_ended = has_ended or object_id == END
                number = frame_number(object_id)
                if number is not None and number % consumers == index:
                    total += float(client.get(object_id).sum())
                    client.delete([object_id])
                    count += 1
            if has_ended and has_snapshot:
                break
    return count, total


def main() -> int:
    parser = argparse.ArgumentParser(description="a producer and consumers with notifications")
    parser.add_argument("--socket", help="of a running store; one is started if it is not given")
    parser.add_argument("--frames", type=int, default=100, help="to be produced, default 100")
    parser.add_argument("--side", type=int, default=512, help="of a frame, in numbers of 8 bytes")
    parser.add_argument("--consumers", type=int, default=2, help="processes, default 2")
    options = parser.parse_args()
    frame_bytes = 8 * options.side**2

    with contextlib.ExitStack() as stack:
        path = options.socket
        if path is None:
            path, _ = stack.enter_context(plasma.start_plasma_store(8 * frame_bytes + 10**6))
        client = stack.enter_context(plasma.connect(path))
        client.delete([END])  # of an earlier run
        pool = stack.enter_context(
            ProcessPoolExecutor(options.consumers + 1, multiprocessing.get_context("spawn"))
        )
        producing = pool.submit(produce, path, options.frames, options.side)
        consuming = [
            pool.submit(consume, path, index, options.consumers)
            for index in range(options.consumers)
        ]
        producing.result()
        results = [future.result() for future in consuming]
        client.delete([END])
        capacity = client.store_capacity()

    for index, (count, total) in enumerate(results):
        print(f"consumer {index}: {count} frames, sum {total:.0f}")
    consumed = sum(count for count, _ in results)
    print(
        f"{consumed} frames, {consumed * frame_bytes / 1e6:.1f} MB, went through a store of "
        f"{capacity / 1e6:.1f} MB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
