"""Processes: the servers that are compared, and the programs that measure them.

Each has a folder of its own for its socket, which goes with it. Knows no work and no result.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from works import CPP, LIMIT, OURS, PYTHON, RAY, REDIS, SHARED_MEMORY

#: What a measuring program may take for one answer, in seconds.
ANSWER_TIMEOUT = 120.0

#: What a process may take to start, or to end after it was asked to.
START_TIMEOUT = 30.0
END_TIMEOUT = 20.0


class Failed(Exception):
    """A contender cannot do a work, or not any more."""


class Programs:
    """Where the programs are. What is missing is not in `contenders`."""

    def __init__(self) -> None:
        self.store = Path()
        self.measure_ours = Path()
        self.measure_original: Path | None = None
        self.original_store: Path | None = None
        self.ours_python: Path | None = None
        self.original_python: Path | None = None
        self.redis_server: Path | None = None
        self.ray_python: Path | None = None
        #: Why a contender is missing.
        self.missing: dict[str, str] = {}

    def has(self, contender: str, python: bool) -> bool:
        """Whether this contender can be measured."""
        needed = {
            OURS: self.ours_python if python else self.measure_ours,
            CPP: self.measure_original,
            PYTHON: self.original_python,
            REDIS: self.redis_server and self.ours_python,
            SHARED_MEMORY: self.ours_python,
            RAY: self.ray_python,
            LIMIT: self.measure_ours,
        }
        return bool(needed[contender])


_WORKERS = Path(__file__).parent / "workers"


class Process:
    """A child in a session of its own, so that it ends with all that it has started."""

    def __init__(self, command: list[str | Path], folder: Path, pinned: bool) -> None:
        cores = {min(os.sched_getaffinity(0))} if pinned else os.sched_getaffinity(0)
        environment = {**os.environ, "RUST_LOG": "warn", "HOME": str(folder)}
        environment |= {"TMPDIR": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        self.log = folder / f"{Path(command[0]).name}.log"
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,
                preexec_fn=lambda: os.sched_setaffinity(0, cores),
            )

    def last_words(self) -> str:
        """The end of what it has said on standard error."""
        lines = self.log.read_text(errors="replace").split("\n")
        return " | ".join(line for line in lines[-4:] if line)[-400:]

    def end(self, ask: signal.Signals | None) -> None:
        """Ends it: by a signal, or by the end of its input; and by force if that does not help."""
        if self.child.stdin:
            # It may have ended before.
            try:
                self.child.stdin.close()
            except BrokenPipeError:
                pass
        if ask and self.child.poll() is None:
            self.child.send_signal(ask)
        try:
            self.child.wait(END_TIMEOUT)
        except subprocess.TimeoutExpired:
            pass
        # Its session: what it has left behind, or itself.
        try:
            os.killpg(self.child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.child.wait()
        if self.child.stdout:
            self.child.stdout.close()


class Contender:
    """A store, if the contender has a server, and a program that measures it."""

    def __init__(
        self, name: str, programs: Programs, capacity: int, python: bool, pinned: bool
    ) -> None:
        self.name = name
        self._folder = Path(tempfile.mkdtemp(prefix="plasma-bench-"))
        self._socket = self._folder / "s"
        self._unread = b""
        self.server: Process | None = None
        self.program: Process | None = None
        try:
            if command := self._server_command(programs, capacity):
                self.server = Process(command, self._folder, pinned)
                self._wait_for_socket()
            command = self._program_command(programs, capacity, python)
            self.program = Process(command, self._folder, pinned)
        except BaseException:
            self.end()
            raise

    @property
    def server_pid(self) -> int:
        """Of the server, which there has to be."""
        assert self.server
        return self.server.child.pid

    def ask(self, work: str, count: int, size: int, timeout: float = ANSWER_TIMEOUT) -> list[int]:
        """Has a work done: nanoseconds of each operation."""
        assert self.program
        if self.program.child.stdin is None or self.program.child.poll() is not None:
            raise Failed(f"the program has ended: {self.program.last_words()}")
        try:
            self.program.child.stdin.write(f"{work} {count} {size}\n".encode())
            self.program.child.stdin.flush()
        except BrokenPipeError:
            raise Failed(f"the program has ended: {self.program.last_words()}") from None
        answer = self._read_line(time.monotonic() + timeout)
        head, *rest = answer.split(" ")
        if head != "ok":
            raise Failed(answer.removeprefix("no "))
        return [int(word) for word in rest]

    def end(self) -> None:
        """Ends both, and removes their folder."""
        if self.program:
            self.program.end(None)
        if self.server:
            self.server.end(signal.SIGTERM)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _server_command(self, programs: Programs, capacity: int) -> list[str | Path] | None:
        if self.name == OURS:
            return [programs.store, "-m", str(capacity), "-s", self._socket]
        if self.name in (CPP, PYTHON):
            assert programs.original_store
            return [programs.original_store, "-m", str(capacity), "-s", self._socket]
        if self.name == REDIS:
            assert programs.redis_server
            quiet: list[str | Path] = ["--save", "", "--appendonly", "no", "--loglevel", "warning"]
            where: list[str | Path] = [
                "--port",
                "0",
                "--unixsocket",
                self._socket,
                "--dir",
                self._folder,
            ]
            return [programs.redis_server, *where, *quiet]
        return None

    def _program_command(self, programs: Programs, capacity: int, python: bool) -> list[str | Path]:
        if self.name == LIMIT:
            return [programs.measure_ours, "limits"]
        if not python:
            if self.name == OURS:
                return [programs.measure_ours, "store", self._socket]
            assert programs.measure_original
            return [programs.measure_original, self._socket]
        scripts: dict[str, tuple[Path | None, list[str | Path]]] = {
            OURS: (programs.ours_python, [_WORKERS / "store.py", self._socket]),
            PYTHON: (programs.original_python, [_WORKERS / "store.py", self._socket]),
            REDIS: (programs.ours_python, [_WORKERS / "on_redis.py", self._socket]),
            SHARED_MEMORY: (programs.ours_python, [_WORKERS / "on_shared_memory.py"]),
            RAY: (programs.ray_python, [_WORKERS / "on_ray.py", str(capacity), self._folder]),
        }
        interpreter, script = scripts[self.name]
        assert interpreter
        return [interpreter, *script]

    def _wait_for_socket(self) -> None:
        assert self.server
        end = time.monotonic() + START_TIMEOUT
        while not self._socket.exists():
            if self.server.child.poll() is not None or time.monotonic() > end:
                raise Failed(f"the server does not start: {self.server.last_words()}")
            time.sleep(0.01)

    def _read_line(self, end: float) -> str:
        assert self.program and self.program.child.stdout
        descriptor = self.program.child.stdout.fileno()
        while b"\n" not in self._unread:
            left = end - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                # Whatever comes later would be taken for the answer to something else.
                self.program.child.kill()
                raise Failed("no answer in time")
            received = os.read(descriptor, 1 << 20)
            if not received:
                self.program.child.wait(END_TIMEOUT)
                raise Failed(f"the program has ended: {self.program.last_words()}")
            self._unread += received
        line, self._unread = self._unread.split(b"\n", 1)
        return line.decode()
