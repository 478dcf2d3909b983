"""The package is typed: `mypy --strict` knows what users may do, and what they may not."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy")

TESTS = Path(__file__).parent


def mypy(program: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """Checks a program against the installed package, from elsewhere: not against its sources."""
    options = ["--strict", "--cache-dir", str(cache), "--config-file", ""]
    command = [sys.executable, "-m", "mypy", *options, str(TESTS / program)]
    return subprocess.run(command, cwd=cache, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mypy")


def test_mypy_accepts_a_program(cache: Path) -> None:
    checked = mypy("typed_sample.py", cache)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_program_runs(store: str) -> None:
    command = [sys.executable, str(TESTS / "typed_sample.py"), store]
    subprocess.run(command, check=True, timeout=60)


def test_mypy_finds_the_mistakes_and_nothing_else(cache: Path) -> None:
    checked = mypy("typed_mistakes.py", cache)
    found = re.findall(r"^.*typed_mistakes\.py:(\d+): error: .*\[([\w-]+)\]$", checked.stdout, re.M)
    lines = (TESTS / "typed_mistakes.py").read_text().splitlines()
    mistakes = [number for number, line in enumerate(lines, 1) if "# mistake" in line]
    assert len(mistakes) == 3
    kinds = ["arg-type", "call-arg", "assignment"]
    expected = [(str(number), kind) for number, kind in zip(mistakes, kinds, strict=True)]
    assert found == expected, checked.stdout + checked.stderr
