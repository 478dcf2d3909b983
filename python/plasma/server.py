"""The store program that the package brings: where it is, how it is started, how it is ended.

It is the Rust program `plasma_store`, built together with the extension module and installed inside
the package. Nothing here knows the protocol or the client: a store is ready when its socket accepts
a connection.
"""

import operator
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, SupportsIndex

__all__ = [
    "DEFAULT_PLASMA_STORE_MEMORY",
    "main",
    "plasma_store_executable",
    "start_plasma_store",
]

DEFAULT_PLASMA_STORE_MEMORY = 10**9
"""Bytes, for those who have no number of their own."""

_EXECUTABLE = Path(__file__).parent / "bin" / "plasma-store-server"

# A large store that is reserved in full (`plasma_directory`) takes its time, and so does valgrind.
# A store that fails ends at once, so nobody waits this long for an error.
_READY_SECONDS = 120.0
_END_SECONDS = 10.0
_POLL_SECONDS = 0.005
# The last lines of a log are enough to see why a store has ended.
_LOG_TAIL_BYTES = 4096

_VALGRIND = [
    "valgrind",
    "--track-origins=yes",
    "--leak-check=full",
    "--show-leak-kinds=all",
    # What a thread that runs until the end still has is "possibly" lost, and no error.
    "--errors-for-leak-kinds=definite",
    "--error-exitcode=1",
]
_PROFILER = ["valgrind", "--tool=callgrind"]


def plasma_store_executable() -> str:
    """The path of the store program that was installed with this package.

    No other program of that name is looked for: a store and a client of different versions may
    not understand each other.

    Raises:
        FileNotFoundError: the package was not installed, or not completely.
    """
    path = str(_EXECUTABLE)
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"the store program is missing: there is no {path!r}; install the package with "
            "`pip install plasma-store`, or from a checkout with `pip install ./python`"
        )
    return path


def main() -> NoReturn:
    """The commands `plasma_store` and `plasma-store-server`: this process becomes the store.

    Nothing of Python is left afterwards, so signals, exit codes and output are the program's own.
    """
    try:
        executable = plasma_store_executable()
    except FileNotFoundError as error:
        sys.exit(f"plasma_store: {error}")
    os.execv(executable, [sys.argv[0], *sys.argv[1:]])


@contextmanager
def start_plasma_store(
    plasma_store_memory: SupportsIndex | str,
    use_valgrind: bool = False,
    use_profiler: bool = False,
    plasma_directory: str | os.PathLike[str] | None = None,
    use_hugepages: bool = False,
    external_store: str | None = None,
) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Runs a store of its own for the length of a `with` block.

    ```python
    with plasma.start_plasma_store(10**9) as (path, process):
        client = plasma.connect(path)
    ```

    The store is ready when the block begins. Its socket is `plasma.sock` in a new temporary
    directory `test_plasma-XXXXXXXX`, and what it logs goes to `plasma_store.log` beside it
    (`RUST_LOG` says how much). When the block ends, however it does, the store is asked to end, is
    killed if it has not done so after 10 s, and the directory is removed, with the log in it. A
    child that was forked inside the block leaves store and directory alone.

    The store goes on if this process is killed, as the original's did. A Ctrl-C in the terminal
    does not reach it.

    Args:
        plasma_store_memory: bytes, or text that `plasma_store -m` takes, such as `"500M"`.
        use_valgrind: run the store under valgrind's memory checker.
        use_profiler: run it under callgrind, which leaves `callgrind.out.PID` in the working
            directory. Not both.
        plasma_directory: where the file of the store's memory is made. All memory is reserved
            then. By default it is anonymous.
        use_hugepages: take huge pages, from the hugetlbfs that `plasma_directory` names or else
            from the system.
        external_store: this version has no external stores.

    Yields:
        The socket's path, and the process.

    Raises:
        RuntimeError: the store could not start. The text has its exit code and what it said.
        TypeError: the memory is neither a whole number nor text.
        ValueError: valgrind and profiler at the same time.
        NotImplementedError: an external store is wanted.
        FileNotFoundError: the store program is missing.
    """
    if external_store is not None:
        raise NotImplementedError(
            f"external_store={external_store!r}: this version has no external stores; objects "
            "that are evicted are gone"
        )
    prefix = _prefix(use_valgrind, use_profiler)
    command = [plasma_store_executable(), "-m", _memory_argument(plasma_store_memory)]
    if plasma_directory is not None:
        command += ["-d", os.fspath(plasma_directory)]
    if use_hugepages:
        command += ["-h"]

    owner = os.getpid()
    directory = tempfile.mkdtemp(prefix="test_plasma-")
    process: subprocess.Popen[bytes] | None = None
    try:
        socket_path = os.path.join(directory, "plasma.sock")
        log_path = os.path.join(directory, "plasma_store.log")
        # A file takes whatever the store says. A pipe that nobody reads would stop it one day.
        with open(log_path, "wb") as log:
            # In a session of its own, so that Ctrl-C is for this program and not for its store.
            process = subprocess.Popen(
                [*prefix, *command, "-s", socket_path],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        _wait_until_ready(process, socket_path, log_path)
        yield socket_path, process
    finally:
        if os.getpid() == owner:
            if process is not None:
                _end(process)
            shutil.rmtree(directory, ignore_errors=True)


def _prefix(use_valgrind: bool, use_profiler: bool) -> list[str]:
    if use_valgrind and use_profiler:
        raise ValueError("use_valgrind and use_profiler cannot be used at the same time")
    if not (use_valgrind or use_profiler):
        return []
    if shutil.which("valgrind") is None:
        option = "use_valgrind" if use_valgrind else "use_profiler"
        raise RuntimeError(f"{option}=True: the program valgrind is not installed")
    return _VALGRIND if use_valgrind else _PROFILER


def _memory_argument(memory: SupportsIndex | str) -> str:
    if isinstance(memory, str):
        return memory
    try:
        return str(operator.index(memory))
    except TypeError:
        # The program would cut 1.5 to one byte.
        raise TypeError(
            f"plasma_store_memory={memory!r}: it is a whole number of bytes, or text like '500M'"
        ) from None


def _wait_until_ready(process: "subprocess.Popen[bytes]", socket_path: str, log_path: str) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while not _accepts_connections(socket_path):
        code = process.poll()
        if code is not None:
            raise RuntimeError(
                f"plasma_store exited unexpectedly with code {code}: {_tail(log_path)}"
            )
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"plasma_store (pid {process.pid}) does not accept connections on "
                f"{socket_path!r} after {_READY_SECONDS:.0f} s: {_tail(log_path)}"
            )
        time.sleep(_POLL_SECONDS)


def _accepts_connections(socket_path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(socket_path)
        except OSError as error:
            if "too long" in str(error):
                raise RuntimeError(
                    f"the socket {socket_path!r} has more than 107 bytes, which no unix socket "
                    "can have; choose a shorter directory with TMPDIR"
                ) from None
            return False
    return True


def _tail(log_path: str) -> str:
    with open(log_path, "rb") as log:
        log.seek(0, os.SEEK_END)
        log.seek(max(0, log.tell() - _LOG_TAIL_BYTES))
        text = log.read().decode(errors="replace").strip()
    return text or "it said nothing"


def _end(process: "subprocess.Popen[bytes]") -> None:
    # Popen sends nothing to a process that it has already seen end.
    process.terminate()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
