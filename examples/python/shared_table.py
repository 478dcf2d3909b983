"""A pandas table that many processes read and none of them copies.

The table is put into the store once. Each worker process gets it, which takes no memory and no time
whatever its size, and computes with the columns where they lie.

    python examples/python/shared_table.py
    python examples/python/shared_table.py --copies 20000 --workers 4 --socket /tmp/plasma

Without `--socket` it starts a store of its own. The penguins are real; `--copies` says how many
times each of the 344 is counted, so that there is something to share.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import sys
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pandas as pd

import plasma

PENGUINS = Path(__file__).parent.parent / "data" / "penguins.csv"
MEASUREMENTS = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]

#: In a worker: the table, and how much memory the worker had before it got it.
shared: pd.DataFrame
megabytes_before: float


def start_worker(path: str, table_id: plasma.ObjectID, all_started: Barrier) -> None:
    """Runs once in each worker. The table outlives the client that got it."""
    global shared, megabytes_before
    megabytes_before = private_megabytes()
    shared = plasma.connect(path).get(table_id)
    all_started.wait()  # so that the first one does not do all the work


def mean_by_species(measurement: str) -> tuple[str, pd.Series, int, float]:
    """The means, who computed them, and the megabytes that getting and computing have taken."""
    means = shared.groupby("species", observed=True)[measurement].mean()
    return measurement, means, os.getpid(), private_megabytes() - megabytes_before


def private_megabytes() -> float:
    """Memory that this process shares with nobody."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("Private_")]
    return sum(kilobytes) * 1024 / 1e6


def read_table(copies: int) -> pd.DataFrame:
    penguins = pd.read_csv(PENGUINS)
    # Categories are small numbers; texts would have to be compared one by one.
    texts = penguins.select_dtypes(exclude="number").columns
    penguins[texts] = penguins[texts].astype("category")
    return pd.concat([penguins] * copies, ignore_index=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="share a pandas table among processes")
    parser.add_argument("--socket", help="of a running store; one is started if it is not given")
    parser.add_argument("--copies", type=int, default=10_000, help="of the table, default 10,000")
    parser.add_argument("--workers", type=int, default=2, help="processes, default 2")
    options = parser.parse_args()

    table = read_table(options.copies)
    table_bytes = int(table.memory_usage(deep=True).sum())
    print(f"table: {len(table)} rows, {table_bytes / 1e6:.1f} MB")

    with contextlib.ExitStack() as stack:
        path = options.socket
        if path is None:
            path, _ = stack.enter_context(plasma.start_plasma_store(2 * table_bytes + 10**7))
        client = stack.enter_context(plasma.connect(path))
        table_id = client.put(table)
        stack.callback(client.delete, [table_id])

        # Spawned workers begin with nothing: all they get is the id.
        spawn = multiprocessing.get_context("spawn")
        arguments = (path, table_id, spawn.Barrier(options.workers))
        pool = stack.enter_context(spawn.Pool(options.workers, start_worker, arguments))
        results = pool.map(mean_by_species, MEASUREMENTS, chunksize=1)

    print(pd.DataFrame({measurement: means for measurement, means, _, _ in results}).round(2))
    for pid, megabytes in {pid: megabytes for *_, pid, megabytes in results}.items():
        print(f"worker {pid}: took {megabytes:.1f} MB of private memory")
    return 0


if __name__ == "__main__":
    sys.exit(main())
