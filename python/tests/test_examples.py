"""The programs in `examples/python/` do what they say: each runs as a user would start it."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import plasma

EXAMPLES = Path(__file__).parents[2] / "examples" / "python"
PROGRAMS = sorted(path.name for path in EXAMPLES.glob("*.py"))

#: Arguments that make each program small.
SMALL = {
    "dataloader.py": ["--samples", "640"],
    "producer_consumer.py": ["--frames", "20", "--side", "64"],
    "shared_table.py": ["--copies", "10"],
}


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def output(program: str, *arguments: str) -> str:
    ended = run(program, *arguments)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def private_megabytes(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"^worker \d+: \D*([\d.]+) MB", text, re.M)]


def test_there_are_three() -> None:
    assert sorted(SMALL) == PROGRAMS


@pytest.mark.parametrize("program", PROGRAMS)
def test_it_says_how_to_run_it(program: str) -> None:
    text = (EXAMPLES / program).read_text()
    assert f"python examples/python/{program}" in text
    assert "--socket" in output(program, "--help")


@pytest.mark.parametrize("program", PROGRAMS)
def test_it_works_with_a_store_that_runs_and_leaves_it_clean(
    program: str, client: plasma.PlasmaClient
) -> None:
    path = client.store_socket_name
    for _ in range(2):
        output(program, "--socket", path, *SMALL[program])
        assert client.list() == {}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_wrong_argument_is_exit_code_2(program: str) -> None:
    assert run(program, "--no-such-option").returncode == 2


def test_they_fail_where_there_is_no_store(tmp_path: Path) -> None:
    """Takes 8 seconds, the patience of `connect`; so they run at the same time."""
    nowhere = str(tmp_path / "nobody")
    running = [
        subprocess.Popen(
            [sys.executable, str(EXAMPLES / program), "--socket", nowhere, *SMALL[program]],
            stderr=subprocess.PIPE,
            text=True,
        )
        for program in PROGRAMS
    ]
    for program in running:
        _, complaint = program.communicate(timeout=120)
        assert program.returncode == 1
        assert nowhere in complaint


def test_shared_table() -> None:
    pd = pytest.importorskip("pandas")
    text = output("shared_table.py", "--copies", "5000", "--workers", "3")
    [table_bytes] = re.findall(r"^table: 1720000 rows, ([\d.]+) MB$", text, re.M)
    penguins = pd.read_csv(EXAMPLES.parent / "data" / "penguins.csv")
    means = penguins.groupby("species")["body_mass_g"].mean()
    for species, mean in means.items():
        assert re.search(rf"^{species} .* {mean:.2f}$", text, re.M), text
    taken = private_megabytes(text)
    assert 1 <= len(taken) <= 3
    # Computing takes some, the table nothing.
    assert max(taken) < float(table_bytes) / 2, text


def test_dataloader() -> None:
    # More than torch itself takes.
    samples = 8_000 if importlib.util.find_spec("torch") is None else 100_000
    text = output("dataloader.py", "--samples", str(samples), "--workers", "2")
    [stored] = re.findall(
        rf"^{samples} samples of 10 classes, ([\d.]+) MB in the store$", text, re.M
    )
    [brightness] = re.findall(r"^mean brightness by class: (.*)$", text, re.M)
    assert brightness.split() == [f"{label}.50" for label in range(10)]
    taken = private_megabytes(text)
    assert len(taken) == 2
    assert max(taken) < float(stored) / 2, text


def test_the_loader_shuffles() -> None:
    import numpy as np

    specification = importlib.util.spec_from_file_location("dataloader", EXAMPLES / "dataloader.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["dataloader"] = module  # workers import it by this name
    sys.path.insert(0, str(EXAMPLES))
    try:
        specification.loader.exec_module(module)
        with plasma.start_plasma_store(10**7) as (path, _), plasma.connect(path) as client:
            dataset = module.StoreDataset(client, *module.store_images(client, 200))
            orders = []
            for _ in range(2):
                labels = [labels for _, labels in module.BatchLoader(dataset, 64, num_workers=1)]
                assert list(map(len, labels)) == [64, 64, 64, 8]
                orders.append(np.concatenate(labels))
            assert (np.sort(orders[0]) == np.sort(np.arange(200) % 10)).all()
            assert (orders[0] != orders[1]).any()
    finally:
        sys.path.remove(str(EXAMPLES))
        del sys.modules["dataloader"]


def test_producer_consumer() -> None:
    text = output("producer_consumer.py", "--frames", "60", "--side", "256", "--consumers", "3")
    counts = re.findall(r"^consumer (\d): (\d+) frames, sum (\d+)$", text, re.M)
    sums = [256 * 256 * sum(range(index, 60, 3)) for index in range(3)]
    assert counts == [(str(index), "20", str(sums[index])) for index in range(3)]
    # More went through than there was room for: the producer has waited.
    [(produced, capacity)] = re.findall(
        r"^60 frames, ([\d.]+) MB, went through a store of ([\d.]+) MB$", text, re.M
    )
    assert float(produced) > 4 * float(capacity)
