"""`start_plasma_store`: ready when it yields, an error that says why, and nothing left behind."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import wait_until

import plasma.server
from plasma.server import plasma_store_executable, start_plasma_store

MB = 1_000_000


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What `tempfile` uses during the test. Short, because of the limit of socket paths."""
    with tempfile.TemporaryDirectory(prefix="pt-") as directory:
        monkeypatch.setattr(tempfile, "tempdir", directory)
        yield Path(directory)


def accepts(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(path) == 0


def test_a_store_is_ready_when_the_block_begins_and_gone_after_it(temporary: Path) -> None:
    with start_plasma_store(10 * MB) as (path, process):
        assert accepts(path)
        assert isinstance(process, subprocess.Popen)
        assert process.poll() is None
        directory = Path(path).parent
        assert directory.parent == temporary
        assert directory.name.startswith("test_plasma-")
        assert Path(path).name == "plasma.sock"
        # A thread of the store writes its log, so lines come soon after what they tell.
        wait_until(lambda: "ready" in (directory / "plasma_store.log").read_text())
    assert process.returncode == 0, "it was asked to end and did"
    assert list(temporary.iterdir()) == []


def test_it_can_be_driven_by_hand(temporary: Path) -> None:
    manager = start_plasma_store(plasma_store_memory=plasma.server.DEFAULT_PLASMA_STORE_MEMORY)
    path, process = manager.__enter__()
    assert accepts(path)
    manager.__exit__(None, None, None)
    assert process.returncode == 0
    assert list(temporary.iterdir()) == []


def test_an_exception_in_the_block_passes_and_the_store_is_gone(temporary: Path) -> None:
    with pytest.raises(LookupError, match="mine"), start_plasma_store(10 * MB) as (_, process):
        raise LookupError("mine")
    assert process.returncode == 0
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("reap", [True, False])
def test_a_store_that_was_killed_meanwhile_is_no_error(temporary: Path, reap: bool) -> None:
    with start_plasma_store(10 * MB) as (path, process):
        process.kill()
        if reap:
            process.wait(10)
        wait_until(lambda: not accepts(path))
    assert process.returncode == -signal.SIGKILL
    assert list(temporary.iterdir()) == []


def test_a_store_that_does_not_end_is_killed(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plasma.server, "_END_SECONDS", 0.05)
    with start_plasma_store(10 * MB) as (_, process):
        # A stopped process gets no SIGTERM.
        process.send_signal(signal.SIGSTOP)
    assert process.returncode == -signal.SIGKILL
    assert list(temporary.iterdir()) == []


def test_a_directory_that_the_block_removed_is_no_error(temporary: Path) -> None:
    with start_plasma_store(10 * MB) as (path, process):
        shutil.rmtree(Path(path).parent)
    assert process.returncode is not None
    assert list(temporary.iterdir()) == []


def test_a_forked_child_leaves_the_store_alone(temporary: Path) -> None:
    with start_plasma_store(10 * MB) as (path, _):
        script = f"""
import os, sys
sys.path[:] = {sys.path!r}
from plasma.server import start_plasma_store
with start_plasma_store({10 * MB}) as (path, process):
    child = os.fork()
    if child == 0:
        sys.exit(7)
    assert os.waitpid(child, 0)[1] >> 8 == 7
    assert os.path.exists(path), "the child removed the directory"
    assert process.poll() is None, "the child ended the store"
"""
        subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
        assert accepts(path), "other stores are not concerned"


@pytest.mark.parametrize(
    ("memory", "text"),
    [
        (-1, r'-m "-1": it is negative'),
        ("abc", r'-m "abc": it does not start with a number'),
        (0, r'-m "0": out of range'),
        (10**30, "it is too large"),
    ],
)
def test_what_the_program_refuses_is_told_in_its_words(
    temporary: Path, memory: int | str, text: str
) -> None:
    with pytest.raises(RuntimeError, match=f"exited unexpectedly with code 2: .*{text}"):
        start_plasma_store(memory).__enter__()
    assert list(temporary.iterdir()) == []


def test_what_the_machine_refuses_has_its_exit_code(temporary: Path) -> None:
    missing = temporary / "missing"
    with pytest.raises(RuntimeError, match=f"with code 1: .*{missing}.*ENOENT"):
        start_plasma_store(10 * MB, plasma_directory=missing).__enter__()
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("memory", [1.5, 1e9, None, b"500M"])
def test_memory_that_is_no_whole_number_of_bytes_is_a_type_error(memory: object) -> None:
    with pytest.raises(TypeError, match="plasma_store_memory="):
        start_plasma_store(memory).__enter__()  # type: ignore[arg-type]


def test_memory_with_a_suffix_and_a_directory(temporary: Path) -> None:
    with start_plasma_store("10M", plasma_directory=str(temporary)) as (path, process):
        log = Path(path).parent / "plasma_store.log"
        wait_until(lambda: "10000000 bytes" in log.read_text())
        assert f"'-d', '{temporary}'" in str(process.args)


def test_a_path_that_no_socket_can_have_is_told(temporary: Path) -> None:
    deep = temporary / ("d" * 120)
    deep.mkdir()
    tempfile.tempdir = str(deep)
    with pytest.raises(RuntimeError, match="107 bytes"):
        start_plasma_store(10 * MB).__enter__()
    assert list(deep.iterdir()) == []


def test_external_stores_are_refused_with_a_reason() -> None:
    with pytest.raises(NotImplementedError, match="no external stores"):
        start_plasma_store(10 * MB, external_store="hashtable://test").__enter__()


def test_valgrind_and_profiler_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="at the same time"):
        start_plasma_store(10 * MB, use_valgrind=True, use_profiler=True).__enter__()


@pytest.mark.parametrize("option", ["use_valgrind", "use_profiler"])
def test_without_valgrind_it_says_so(monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match=f"{option}=True: .*valgrind is not installed"):
        start_plasma_store(10 * MB, **{option: True}).__enter__()  # type: ignore[arg-type]


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
@pytest.mark.parametrize("option", ["use_valgrind", "use_profiler"])
def test_a_store_runs_under_valgrind(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    work = temporary / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(plasma.server, "_END_SECONDS", 60.0)
    with start_plasma_store(10 * MB, **{option: True}) as (path, process):  # type: ignore[arg-type]
        assert accepts(path)
        assert "'valgrind'" in str(process.args)
    assert process.returncode == 0
    profiles = [file.name for file in work.iterdir()]
    assert profiles == ([f"callgrind.out.{process.pid}"] if option == "use_profiler" else [])


def test_a_store_that_logs_a_lot_is_never_blocked(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUST_LOG", "debug")
    with start_plasma_store(10 * MB) as (path, _):
        log = Path(path).parent / "plasma_store.log"
        pipe_bytes = 65536
        for _ in range(10_000):
            assert accepts(path)
            if log.stat().st_size > 2 * pipe_bytes:
                break
        wait_until(lambda: log.stat().st_size > 2 * pipe_bytes)
        assert accepts(path)


def test_a_missing_program_is_told(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert os.access(plasma_store_executable(), os.X_OK)
    monkeypatch.setattr(plasma.server, "_EXECUTABLE", temporary / "nothing")
    with pytest.raises(FileNotFoundError, match="pip install"):
        plasma_store_executable()
    with pytest.raises(FileNotFoundError, match="nothing"):
        start_plasma_store(10 * MB).__enter__()
    assert list(temporary.iterdir()) == []
