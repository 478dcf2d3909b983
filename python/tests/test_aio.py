"""`plasma.aio`: many waits on one event loop, and what ends them."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import plasma
import plasma.aio
from plasma import ObjectID

#: Seconds after which a test has failed, whatever it waits for.
DEADLINE = 60


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, DEADLINE))


def number_id(number: int) -> ObjectID:
    return ObjectID(number.to_bytes(20, "big"))


async def until(condition: Callable[[], bool]) -> None:
    """Lets the loop run until the condition holds; the deadline of `run` bounds it."""
    while not condition():
        await asyncio.sleep(0.001)


def waiting_requests(client: plasma.PlasmaClient) -> int:
    count: int = client.stats()["waiting_requests"]
    return count


async def start_waits(
    client: plasma.aio.AsyncPlasmaClient, ids: list[ObjectID]
) -> list[asyncio.Task[Any]]:
    """A get for each id, in the store when this returns."""
    before = waiting_requests(client.blocking)
    tasks = [asyncio.create_task(client.get(id)) for id in ids]
    await until(lambda: waiting_requests(client.blocking) == before + len(ids))
    return tasks


# -- many waits -----------------------------------------------------------------------------------

PUT_SHUFFLED = """
import random, sys, plasma
client = plasma.connect(sys.argv[1])
numbers = list(range(int(sys.argv[2])))
random.Random(7).shuffle(numbers)
for number in numbers:
    client.put(number, plasma.ObjectID(number.to_bytes(20, "big")))
"""


def test_a_thousand_waits_are_answered_in_the_order_of_another_process(store: str) -> None:
    async def main() -> None:
        async with await plasma.aio.connect(store) as client:
            ids = [number_id(number) for number in range(1000)]
            threads = threading.active_count()
            tasks = await start_waits(client, ids)
            assert threading.active_count() == threads
            order: list[int] = []
            for task in tasks:
                task.add_done_callback(lambda task: order.append(task.result()))
            producer = await asyncio.create_subprocess_exec(
                sys.executable, "-c", PUT_SHUFFLED, store, "1000"
            )
            assert await asyncio.gather(*tasks) == list(range(1000))
            assert await producer.wait() == 0
            expected = list(range(1000))
            random.Random(7).shuffle(expected)
            assert order == expected
            assert waiting_requests(client.blocking) == 0

    run(main())


def test_an_answer_is_no_work_for_the_other_waits(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[object] = []
    look = plasma.aio._Wait.look

    def counting(wait: plasma.aio._Wait) -> None:
        looks.append(wait)
        look(wait)

    monkeypatch.setattr(plasma.aio._Wait, "look", counting)

    async def main() -> None:
        async with await plasma.aio.connect(store) as client:
            ids = [number_id(number) for number in range(300)]
            tasks = await start_waits(client, ids)
            for id, task in zip(ids, tasks, strict=True):
                client.blocking.put(None, id)
                await task
            assert len(looks) == 300

    run(main())


def test_two_loops_in_two_threads_have_nothing_in_common(store: str) -> None:
    failures: list[BaseException] = []
    meeting = threading.Barrier(2)

    async def main(own: int) -> None:
        async with await plasma.aio.connect(store) as client:
            ids = [number_id(2 * number + own) for number in range(200)]
            tasks = await start_waits_of_own(client, ids)
            await asyncio.get_running_loop().run_in_executor(None, meeting.wait, DEADLINE)
            others = [number_id(2 * number + 1 - own) for number in range(200)]
            for number, id in enumerate(others):
                await client.put(number, id)
            assert await asyncio.gather(*tasks) == list(range(200))

    async def start_waits_of_own(
        client: plasma.aio.AsyncPlasmaClient, ids: list[ObjectID]
    ) -> list[asyncio.Task[Any]]:
        tasks = [asyncio.create_task(client.get(id)) for id in ids]
        await asyncio.sleep(0)
        return tasks

    def in_thread(own: int) -> None:
        try:
            run(main(own))
        except BaseException as error:
            failures.append(error)
            meeting.abort()

    threads = [threading.Thread(target=in_thread, args=(own,)) for own in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
        assert not thread.is_alive()
    assert failures == []


# -- cancelling -----------------------------------------------------------------------------------

WAITING_CALLS: dict[str, Callable[[plasma.aio.AsyncPlasmaClient], Coroutine[Any, Any, Any]]] = {
    "get": lambda client: client.get(number_id(1)),
    "get of many": lambda client: client.get([number_id(1), number_id(2)]),
    "get with a timeout": lambda client: client.get(number_id(1), timeout_ms=600_000),
    "get_buffers": lambda client: client.get_buffers([number_id(1)]),
    "get_arrow": lambda client: client.get_arrow(number_id(1)),
    "wait": lambda client: client.wait([number_id(1)]),
}


@pytest.mark.parametrize("call", WAITING_CALLS.values(), ids=WAITING_CALLS)
def test_the_store_forgets_a_wait_that_is_cancelled(
    store: str,
    call: Callable[[plasma.aio.AsyncPlasmaClient], Coroutine[Any, Any, Any]],
) -> None:
    async def main() -> None:
        async with await plasma.aio.connect(store) as client:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(call(client), timeout=0.01)
            await until(lambda: waiting_requests(client.blocking) == 0)
            assert client._waits == {}
            # The connection is as good as new.
            await client.put("here", number_id(1))
            assert await client.get(number_id(1)) == "here"

    run(main())


def test_what_comes_for_a_cancelled_wait_is_given_back(store: str) -> None:
    async def main() -> None:
        async with await plasma.aio.connect(store) as client:
            for number in range(50):
                id = number_id(number)
                [task] = await start_waits(client, [id])
                client.blocking.put(np.zeros(1000), id)
                # The answer is in the socket, and in some rounds in the future.
                for _ in range(number % 4):
                    await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    # A task that was done before is not cancelled.
                    await task
                    raise asyncio.CancelledError
            del task
            gc.collect()
            await until(lambda: client.blocking.stats()["pinned"] == 0)
            assert client.blocking.clients(holding=number_id(0)) == []

    run(main())


def test_one_of_many_is_cancelled_and_the_others_go_on(store: str) -> None:
    async def main() -> None:
        async with await plasma.aio.connect(store) as client:
            ids = [number_id(number) for number in range(10)]
            tasks = await start_waits(client, ids)
            for task in tasks[::2]:
                task.cancel()
            await until(lambda: waiting_requests(client.blocking) == 5)
            for id in ids:
                client.blocking.put(id.binary(), id)
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert results[1::2] == [id.binary() for id in ids[1::2]]
            assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])

    run(main())


# -- ends -----------------------------------------------------------------------------------------


def test_the_death_of_the_store_ends_all_waits() -> None:
    async def main() -> None:
        with plasma.start_plasma_store(10**8) as (path, process):
            client = await plasma.aio.connect(path)
            gets = await start_waits(client, [number_id(number) for number in range(100)])
            waiting = asyncio.create_task(client.wait([number_id(1)]))
            events = client.notifications()
            await events.next()
            listening = asyncio.create_task(events.next())
            await asyncio.sleep(0)
            process.kill()
            process.wait()
            tasks = [*gets, waiting, listening]
            for error in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(error, OSError)
                assert path in str(error)
            for call in (client.get(number_id(1)), client.wait([number_id(1)]), client.put(1)):
                with pytest.raises(OSError, match=path):
                    await call
            await client.disconnect()

    run(main())


def test_an_answer_that_came_before_the_store_died_counts() -> None:
    async def main() -> None:
        with plasma.start_plasma_store(10**8) as (path, process):
            client = await plasma.aio.connect(path)
            answered, unanswered = await start_waits(client, [number_id(1), number_id(2)])
            client.blocking.put([1, 2], number_id(1))
            client.blocking.stats()  # the store has written all that it had to say
            process.kill()
            process.wait()
            assert await answered == [1, 2]
            with pytest.raises(OSError, match=path):
                await unanswered
            await client.disconnect()

    run(main())


def test_a_store_that_is_silent_after_the_timeout_is_an_error() -> None:
    async def main() -> None:
        with plasma.start_plasma_store(10**8) as (path, process):
            client = await plasma.aio.connect(path, patience=1)
            process.send_signal(signal.SIGSTOP)
            try:
                with pytest.raises(TimeoutError, match=path):
                    await client.get(number_id(1), timeout_ms=1)
            finally:
                process.send_signal(signal.SIGCONT)
            await client.disconnect()

    run(main())


def test_disconnect_ends_waits_and_leaves_values(store: str) -> None:
    async def main() -> None:
        client = await plasma.aio.connect(store)
        array = await client.get(await client.put(np.arange(100_000)))
        [waiting] = await start_waits(client, [number_id(1)])
        await client.disconnect()
        with pytest.raises(OSError, match="disconnected"):
            await waiting
        for call in (client.get(number_id(1)), client.wait([number_id(1)]), client.put(1)):
            with pytest.raises(OSError):
                await call
        assert array.sum() == sum(range(100_000))
        await client.disconnect()

    run(main())


def test_disconnect_ends_puts_that_wait_for_room_in_every_thread(store: str) -> None:
    async def main() -> None:
        client = await plasma.aio.connect(store)
        capacity = client.blocking.store_capacity()
        full = client.blocking.create(number_id(0), capacity)
        # More than the default executor has threads.
        puts = [asyncio.create_task(client.put(b"", timeout_ms=-1)) for _ in range(40)]
        await until(lambda: client.blocking.stats()["waiting_requests"] > 0)
        await client.disconnect()
        for error in await asyncio.gather(*puts, return_exceptions=True):
            assert isinstance(error, OSError)
        del full

    run(main())


def test_connecting_and_disconnecting_leaves_no_descriptors(store: str) -> None:
    async def main() -> None:
        async def once() -> None:
            async with await plasma.aio.connect(store) as client:
                async with client.notifications() as events:
                    await events.next()
                await client.put(1)

        await once()
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            await once()
        gc.collect()
        # What earlier tests left to the garbage collector may go at any time.
        assert len(os.listdir("/proc/self/fd")) <= before

    run(main())


def test_connecting_to_nothing_is_an_error_with_the_path(tmp_path: Path) -> None:
    path = str(tmp_path / "nobody")

    async def main() -> None:
        with pytest.raises(OSError, match=path):
            await plasma.aio.connect(path, 0)

    run(main())


# -- values ---------------------------------------------------------------------------------------


def test_put_and_get_are_those_of_the_blocking_client(store: str) -> None:
    async def main() -> None:
        async with await plasma.aio.connect(store, name="loop") as client:
            id = await client.put({"a": np.arange(10_000)}, number_id(1), metadata=b"note")
            assert id == number_id(1)
            value = await client.get(id)
            assert value["a"].sum() == sum(range(10_000))
            assert not value["a"].flags.writeable
            [note] = client.blocking.get_metadata([id])
            assert note is not None and note.to_pybytes() == b"note"
            table = pa.table({"x": [1, 2, 3]})
            assert (await client.get_arrow(await client.put_arrow(table))).equals(table)
            with pytest.raises(plasma.PlasmaObjectExists):
                await client.put(1, id)
            names = {entry["name"] for entry in client.blocking.clients()}
            assert {"loop", "loop (waits)"} <= names

    run(main())


def test_get_of_many_is_in_the_order_of_the_ids(store: str) -> None:
    async def main() -> None:
        async with await plasma.aio.connect(store) as client:
            ids = [await client.put(number) for number in range(3)]
            missing = number_id(9)
            found = await client.get([ids[2], missing, ids[0], ids[2]], timeout_ms=10)
            assert found == [2, plasma.ObjectNotAvailable, 0, 2]
            assert await client.get(missing, timeout_ms=0) is plasma.ObjectNotAvailable
            assert await client.get([]) == []
            assert await client.get_buffers([missing], timeout_ms=0) == [None]
            assert await client.get_arrow(missing, timeout_ms=0) is plasma.ObjectNotAvailable

    run(main())


@pytest.mark.parametrize("order", [1, -1], ids=["forwards", "backwards"])
def test_get_of_more_than_fit_into_one_request(store: str, order: int) -> None:
    async def main() -> None:
        async with await plasma.aio.connect(store) as client:
            ids = [number_id(number) for number in range(10_000)]
            getting = asyncio.create_task(client.get_buffers(ids))
            await until(lambda: waiting_requests(client.blocking) == 2)
            # The first request is for 8192.
            for begin in [0, 4096, 8192][::order]:
                part = ids[begin : begin + 4096]
                data = [id.binary() for id in part]
                client.blocking.create_and_seal_batch(part, data)
                await client.put(None)  # turns for what has come
            found = await getting
            assert [bytes(memoryview(data)) for data in found if data is not None] == [
                id.binary() for id in ids
            ]
            assert client._waits == {}

    run(main())


def test_wait_says_which(store: str) -> None:
    async def main() -> None:
        async with await plasma.aio.connect(store) as client:
            ids = [number_id(number) for number in range(3)]
            await client.put(1, ids[1])
            assert await client.wait(ids) == ([ids[1]], [ids[0], ids[2]])
            assert await client.wait(ids, 2, timeout=0.01) == ([ids[1]], [ids[0], ids[2]])
            task = asyncio.create_task(client.wait(ids, 2))
            await until(lambda: waiting_requests(client.blocking) == 1)
            await client.put(2, ids[2])
            assert await task == (ids[1:], ids[:1])
            with pytest.raises(ValueError, match="4 of 3"):
                await client.wait(ids, 4)

    run(main())


def test_an_error_is_for_the_one_who_asked(store: str) -> None:
    async def main() -> None:
        async with await plasma.aio.connect(store) as client:
            foreign, good = await start_waits(client, [number_id(1), number_id(2)])
            client.blocking.put_raw_buffer(b"no value", number_id(1))
            client.blocking.put("a value", number_id(2))
            with pytest.raises(plasma.InvalidObjectError):
                await foreign
            assert await good == "a value"
            with pytest.raises(TypeError, match="str"):
                await client.get(["no id"])  # type: ignore[list-item]
            assert client._waits == {}
            assert waiting_requests(client.blocking) == 0

    run(main())


# -- notifications --------------------------------------------------------------------------------


def test_notifications_begin_with_what_is_there(store: str) -> None:
    async def main() -> None:
        async with await plasma.aio.connect(store) as client:
            first = await client.put(1)
            seen = []
            async for event in client.notifications():
                seen.append((event.kind, event.object_id))
                if event.kind == "snapshot end":
                    await client.put(2, number_id(2))
                    client.blocking.delete([first])
                if event.kind == "deleted":
                    break
            assert seen == [
                ("sealed", first),
                ("snapshot end", None),
                ("sealed", number_id(2)),
                ("deleted", first),
            ]

    run(main())


def test_many_notifications_leave_turns_to_other_tasks(store: str) -> None:
    async def main() -> None:
        async with await plasma.aio.connect(store) as client:
            ids = [number_id(number) for number in range(2000)]
            client.blocking.create_and_seal_batch(ids, [b""] * len(ids))
            turns = 0

            async def other() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            task = asyncio.create_task(other())
            async with client.notifications() as events:
                await until(lambda: turns > 0)
                begin = turns
                async for event in events:
                    if event.kind == "snapshot end":
                        break
            assert turns - begin >= 2000 // 64
            task.cancel()

    run(main())


def test_a_stream_that_is_closed_ends_for_who_waits(store: str) -> None:
    async def main() -> None:
        async with await plasma.aio.connect(store) as client:
            events = client.notifications()
            assert (await events.next()).kind == "snapshot end"
            waiting = asyncio.create_task(events.next())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="another task"):
                await events.next()
            await events.aclose()
            with pytest.raises(OSError):
                await waiting
            assert [event async for event in events] == []
            await until(lambda: client.blocking.stats()["subscribers"] == 0)

    run(main())


def test_a_cancelled_notification_is_not_lost(store: str) -> None:
    async def main() -> None:
        async with await plasma.aio.connect(store) as client:
            async with client.notifications() as events:
                assert (await events.next()).kind == "snapshot end"
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(events.next(), timeout=0.01)
                await client.put(1, number_id(1))
                assert (await events.next()).object_id == number_id(1)

    run(main())


def test_a_program_that_forgets_to_disconnect_ends(store: str) -> None:
    program = (
        "import asyncio, sys, plasma.aio\n"
        "async def main():\n"
        "    client = await plasma.aio.connect(sys.argv[1])\n"
        "    print(await client.get(await client.put('value')))\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", program, store]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=True)
    assert ended.stdout == "value\n"
