"""Every block of Python in the two READMEs runs, in order, against a real store."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
PROJECT_README = Path(__file__).parents[2] / "README.md"

#: Runs the blocks in one namespace, with the line numbers of the README in tracebacks. It is run by
#: `python -c`, so that processes which are spawned by a block do not run it again.
RUNNER = """
import sys
from pathlib import Path

readme, path, *begins = sys.argv[1:]
lines = Path(readme).read_text().splitlines()
names = {"__name__": "__main__"}
for begin in map(int, begins):
    end = lines.index("```", begin)
    block = "\\n" * begin + "\\n".join(lines[begin:end]).replace("/tmp/plasma", path)
    exec(compile(block, readme, "exec"), names)
    print("ran line", begin, flush=True)
"""


def blocks(readme: Path) -> list[int]:
    """Numbers of the lines, from 1, that open a block of Python."""
    lines = readme.read_text().splitlines()
    return [number for number, line in enumerate(lines, 1) if line == "```python"]


@pytest.mark.parametrize(("readme", "at_least"), [(README, 15), (PROJECT_README, 1)])
def test_every_block_runs(store: str, readme: Path, at_least: int) -> None:
    begins = [str(number) for number in blocks(readme)]
    command = [sys.executable, "-X", "dev", "-c", RUNNER, str(readme), store, *begins]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    ran = re.findall(r"^ran line (\d+)$", ended.stdout, re.M)
    assert ran == begins and len(begins) >= at_least


def test_no_block_escapes_by_its_name() -> None:
    fences = re.findall(r"^```(.*)$", README.read_text(), re.M)
    assert set(fences[::2]) == {"python", "sh"}
    assert set(fences[1::2]) == {""}


def test_the_numbers_of_the_first_screen() -> None:
    """Three commands and ten lines are what a newcomer types."""
    text = README.read_text()
    [commands] = re.findall(r"```sh\n(.*?)```", text, re.S)
    assert len(commands.splitlines()) == 3
    first, second = re.findall(r"```python\n(.*?)```", text, re.S)[:2]
    lines = [line for line in (first + second).splitlines() if line]
    assert len(lines) <= 10
