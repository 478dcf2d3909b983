"""What `pip install` brought: the module with its types, the program, and the commands."""

import importlib.metadata
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import wait_until

import plasma
from plasma.server import plasma_store_executable

COMMANDS = ["plasma_store", "plasma-store-server"]
SCRIPTS = Path(sys.executable).parent


def run(*command: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def socket_path() -> Iterator[str]:
    """Short, because of the limit of socket paths."""
    with tempfile.TemporaryDirectory(prefix="pt-") as directory:
        yield os.path.join(directory, "s")


def test_the_distribution_says_what_it_is() -> None:
    about = importlib.metadata.metadata("plasma-store")
    assert about["Requires-Python"] == ">=3.10"
    assert about["License-Expression"] == "Apache-2.0"
    requires = importlib.metadata.requires("plasma-store") or []
    assert [name for name in requires if "extra ==" not in name] == ["numpy", "pyarrow>=14"]
    # All versions are one: the distribution's, the module's, the program's.
    version = importlib.metadata.version("plasma-store")
    assert plasma.__version__ == version
    assert run(plasma_store_executable(), "--version").stdout == f"plasma_store {version}\n"


def test_what_is_in_the_package() -> None:
    files = {str(file) for file in importlib.metadata.files("plasma-store") or []}
    if not any(file.startswith("plasma/") for file in files):
        pytest.skip("an editable installation lists no files")
    assert {"plasma/py.typed", "plasma/_core.pyi", "plasma/bin/plasma-store-server"} <= files
    stray = [file for file in files if file.startswith(("tests/", "build_backend/", "src/"))]
    assert stray == []
    assert any(file.endswith("licenses/LICENSE") for file in files)


def test_the_program_is_executable_and_small() -> None:
    program = Path(plasma_store_executable())
    assert program.stat().st_mode & 0o555 == 0o555, "for every user"
    mib = 2**20
    assert program.stat().st_size < 4 * mib, "stripped"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "arguments",
    [["--version"], ["--help"], ["--unknown"], ["-m", "abc"], ["-m", "1MB", "-d", "/missing"]],
)
def test_a_command_is_the_program(command: str, arguments: list[str]) -> None:
    ours, program = run(SCRIPTS / command, *arguments), run(plasma_store_executable(), *arguments)
    assert ours.returncode == program.returncode
    assert ours.stdout == program.stdout
    assert ours.stderr == program.stderr


def test_the_exit_codes_are_those_of_the_program() -> None:
    assert run(SCRIPTS / "plasma_store", "--help").returncode == 0
    assert run(SCRIPTS / "plasma_store", "--unknown").returncode == 2
    assert run(SCRIPTS / "plasma_store", "-m", "1MB", "-d", "/missing").returncode == 1


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_command_ends_the_store(socket_path: str, ending: signal.Signals) -> None:
    command = [str(SCRIPTS / "plasma_store"), "-m", "10MB", "-s", socket_path]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: accepts(socket_path))
            process.send_signal(ending)
            _, log = process.communicate(timeout=10)
        finally:
            process.kill()
    assert process.returncode == 0
    assert f"ended by {ending.name}" in log
    assert not os.path.exists(socket_path)


def accepts(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(path) == 0
