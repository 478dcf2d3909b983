"""Python processes for tests: a function of a test file, run by an interpreter of its own.

The test starts a `Child` and talks with it line by line; the function does so with `say` and
`hear`. An interpreter of its own because what it does ends processes, forks, or takes signals, and
because the test's own process has threads of many libraries, with which forking is not safe.
"""

from __future__ import annotations

import importlib
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from support import wait_until

import plasma

#: Longer than anything takes that does not hang.
PATIENCE_SECONDS = 60.0


class Child:
    """A process that runs `function(*arguments)`; arguments are text. Killed at the end."""

    def __init__(
        self, function: Callable[..., None], *arguments: str, seconds: float = PATIENCE_SECONDS
    ) -> None:
        command = [sys.executable, "-m", "children", function.__module__, function.__name__]
        self.process = subprocess.Popen(
            [*command, *arguments],
            cwd=Path(__file__).parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        # A child that hangs is killed, so that reading from it comes to an end.
        self._alarm = threading.Timer(seconds, self.process.kill)
        self._alarm.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def hear(self) -> str:
        """The next line that it says; fails, with what it wrote to stderr, if it has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"the child ended with {self.ended()}: {self.errors()}")
        return line.rstrip("\n")

    def say(self, line: str = "go on") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def ended(self) -> int:
        """Waits until it has ended: its exit code, or minus the signal that killed it."""
        return self.process.wait(PATIENCE_SECONDS)

    def errors(self) -> str:
        """What it wrote to stderr, once it has ended."""
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def succeeds(self) -> None:
        """Waits until it has ended, which has to be without an error."""
        code = self.ended()
        assert code == 0, f"the child ended with {code}: {self.errors()}"

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._alarm.cancel()
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                pass  # It did not hear everything out.


def say(line: object = "ready") -> None:
    """In the child: a line for the test."""
    print(line, flush=True)


def hear() -> str:
    """In the child: waits for a line of the test."""
    line = sys.stdin.readline()
    assert line, "the test has gone"
    return line.rstrip("\n")


@contextmanager
def running_store(
    *arguments: str, path: str | os.PathLike[str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A store with any arguments, at a socket of the test's, ready; killed at the end."""
    with subprocess.Popen(
        [plasma.plasma_store_executable(), *arguments, "-s", os.fspath(path)],
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            # It is the right one that answers: there may be a stale socket.
            wait_until(lambda: process.poll() is not None or _answers(path, process.pid))
            assert process.poll() is None, f"the store ended with {process.returncode}"
            yield process
        finally:
            process.kill()


def _answers(path: str | os.PathLike[str], pid: int) -> bool:
    try:
        with plasma.connect(path, 0) as client:
            return client._core.server_pid() == pid
    except OSError:
        return False


def main() -> None:
    # Some children are to die of a fault, and nobody wants the core.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    module, function, *arguments = sys.argv[1:]
    getattr(importlib.import_module(module), function)(*arguments)


if __name__ == "__main__":
    main()
