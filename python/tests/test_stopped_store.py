"""Calls to a store that is stopped: the table in the README. Those to a store that was killed are
in `test_weaknesses`, B18."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

import pytest
from children import running_store
from support import HAS_DIRECTORY, wait_until
from test_weaknesses import MISSING, A, B, every_call

import plasma
from plasma import PlasmaClient

#: Seconds: enough to connect, and little for a test.
IMPATIENCE = 2

#: They wait for other clients, for ever.
WITHOUT_TIMEOUT = ("get", "get_buffers", "get_arrow", "wait")


class Stopped:
    """A store that is stopped, and clients that were connected before."""

    def __init__(self, path: Path, process: subprocess.Popen[bytes]) -> None:
        self.path = path
        self.client = plasma.connect(path, patience=IMPATIENCE)
        self.observer = plasma.connect(path)
        self.client.put("here", A)
        self.client.get(A)
        self.client.create(B, 10)
        process.send_signal(signal.SIGSTOP)
        stat = Path(f"/proc/{process.pid}/stat")
        wait_until(lambda: ") T " in stat.read_text())
        self._process = process

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def calls(self) -> dict[str, Callable[[], object]]:
        return {
            **every_call(self.client),
            "abort": lambda: self.client.abort(B),
            "connect": lambda: plasma.connect(self.path, patience=IMPATIENCE),
        }

    def check(self) -> None:
        """All is as good as before, and nothing is left of what was given up."""
        # What comes late is taken in with the answer to a later call.
        self.client.states([MISSING])
        wait_until(lambda: self.observer.stats()["unsealed_objects"] == 0)
        wait_until(lambda: self.observer.stats()["waiting_requests"] == 0)
        wait_until(lambda: len(self.observer.clients()) == 2)


@pytest.fixture
def stopped(tmp_path: Path) -> Iterator[Stopped]:
    path = tmp_path / "plasma"
    with running_store("-m", "10000000", path=path) as process:
        stopped = Stopped(path, process)
        try:
            yield stopped
        finally:
            stopped.resume()


def test_calls_that_have_an_end_are_timeouts(stopped: Stopped) -> None:
    calls = {name: call for name, call in stopped.calls().items() if name not in WITHOUT_TIMEOUT}
    with ThreadPoolExecutor(len(calls)) as threads:
        outcomes = {name: threads.submit(call) for name, call in calls.items()}
        for name, outcome in outcomes.items():
            error = outcome.exception()
            assert isinstance(error, TimeoutError), f"{name}: {error!r}"
            assert str(stopped.path) in str(error), name
    stopped.resume()
    stopped.check()


class Interrupted(Exception):
    pass


def interrupts(_number: int, _frame: FrameType | None) -> None:
    raise Interrupted


def test_a_signal_handler_ends_every_call(stopped: Stopped) -> None:
    before = signal.signal(signal.SIGALRM, interrupts)
    try:
        for name, call in stopped.calls().items():
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(Interrupted):
                call()
                raise AssertionError(f"{name} worked")
    finally:
        signal.signal(signal.SIGALRM, before)
    stopped.resume()
    stopped.check()


def test_a_signal_handler_ends_a_disconnect(stopped: Stopped) -> None:
    before = signal.signal(signal.SIGALRM, interrupts)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Interrupted):
            stopped.observer.disconnect()
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not HAS_DIRECTORY, reason="these stores have no directory")
def test_what_is_at_hand_works(stopped: Stopped) -> None:
    client: PlasmaClient = stopped.client
    assert client.get(A) == "here"
    assert client.contains(A)
    assert client.state(A) == "sealed"
    assert client.store_capacity() == 10_000_000
    client.seal(B)


@pytest.mark.parametrize("patience", [-1, float("nan"), 10**9])
def test_patience_has_a_range(store: str, patience: float) -> None:
    with pytest.raises(ValueError, match="patience"):
        plasma.connect(store, patience=patience)


def test_a_pickled_client_is_as_patient(stopped: Stopped) -> None:
    _type, arguments = stopped.client.__reduce__()
    assert arguments[2].patience == IMPATIENCE
