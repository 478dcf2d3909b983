"""Training samples that lie in the store once, for any number of loader processes.

`StoreDataset` has what a `torch.utils.data.Dataset` needs, `__len__` and `__getitem__`, and can be
pickled: it carries the ids of its arrays and a client, and a client connects anew where it is
unpickled. So every worker of a `torch.utils.data.DataLoader` reads the same memory; with samples in
ordinary memory each of them would have its own copy.

    python examples/python/dataloader.py
    python examples/python/dataloader.py --samples 50000 --workers 4 --socket /tmp/plasma

With torch installed the loader is torch's. Otherwise it is `BatchLoader` below, which does the same
with `multiprocessing`: torch brings gigabytes, too many for an example. Without `--socket` it
starts a store of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import plasma

try:
    from torch.utils.data import DataLoader
except ImportError:
    DataLoader = None

SHAPE = (3, 32, 32)
CLASSES = 10
BATCH_SIZE = 64

Batch = tuple[np.ndarray, np.ndarray]


class StoreDataset:
    """Images and labels, each one array in the store."""

    def __init__(
        self, client: plasma.PlasmaClient, images_id: plasma.ObjectID, labels: Any
    ) -> None:
        self.client = client
        self.images_id = images_id
        self.labels = labels
        self._images: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        # A view of the store's memory: read-only, and not a byte is copied.
        return self.images[index], int(self.labels[index])

    @property
    def images(self) -> np.ndarray:
        if self._images is None:
            self._images = self.client.get(self.images_id)
        return self._images

    def __getstate__(self) -> dict[str, Any]:
        # The array stays here: pickling it would copy it. Whoever unpickles this gets it anew.
        return {**self.__dict__, "_images": None}


def collate(samples: Sequence[tuple[np.ndarray, int]]) -> Batch:
    """One batch out of many samples. This is the one copy, and it is writable."""
    images, labels = zip(*samples, strict=True)
    return np.stack(images), np.array(labels)


class BatchLoader:
    """What this example needs of torch's `DataLoader`."""

    def __init__(self, dataset: StoreDataset, batch_size: int, num_workers: int) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.num_workers = num_workers

    def __iter__(self) -> Iterator[Batch]:
        order = np.random.default_rng().permutation(len(self.dataset))
        batches = [
            order[begin : begin + self.batch_size]
            for begin in range(0, len(order), self.batch_size)
        ]
        spawn = multiprocessing.get_context("spawn")
        with spawn.Pool(self.num_workers, _start_worker, (self.dataset,)) as pool:
            yield from pool.imap(_load_batch, batches)


#: In a worker of `BatchLoader`.
_dataset: StoreDataset


def _start_worker(dataset: StoreDataset) -> None:
    global _dataset
    _dataset = dataset


def _load_batch(indices: np.ndarray) -> Batch:
    return collate([_dataset[index] for index in indices])


def make_loader(dataset: StoreDataset, num_workers: int) -> Iterable[Batch]:
    if DataLoader is None:
        print("torch is not installed: using BatchLoader")
        return BatchLoader(dataset, BATCH_SIZE, num_workers)
    print("using torch's DataLoader")
    loader: Iterable[Batch] = DataLoader(
        dataset,
        batch_size=BATCH_SIZE,
        shuffle=True,
        num_workers=num_workers,
        collate_fn=collate,
        multiprocessing_context="spawn",
    )
    return loader


def store_images(client: plasma.PlasmaClient, samples: int) -> tuple[plasma.ObjectID, np.ndarray]:
    """Noise, brighter the higher its label, written straight into the store."""
    random = np.random.default_rng(seed=1)
    labels = np.arange(samples) % CLASSES
    creating = client.create_array((samples, *SHAPE), "f4")
    with creating as images:
        random.random(out=images, dtype="f4")
        images += labels[:, None, None, None]
    return creating.object_id, labels


def private_megabytes(pid: int) -> float:
    """Memory that a process shares with nobody."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("Private_")]
    return sum(kilobytes) * 1024 / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description="training samples in shared memory")
    parser.add_argument("--socket", help="of a running store; one is started if it is not given")
    parser.add_argument("--samples", type=int, default=10_000, help="default 10,000, 12 kB each")
    parser.add_argument("--workers", type=int, default=2, help="processes, default 2")
    options = parser.parse_args()
    image_bytes = options.samples * int(np.prod(SHAPE)) * 4

    with contextlib.ExitStack() as stack:
        path = options.socket
        if path is None:
            path, _ = stack.enter_context(plasma.start_plasma_store(image_bytes + 10**7))
        client = stack.enter_context(plasma.connect(path))
        images_id, labels = store_images(client, options.samples)
        stack.callback(client.delete, [images_id])

        loader = make_loader(StoreDataset(client, images_id, labels), options.workers)
        brightness = np.zeros(CLASSES)
        seen = np.zeros(CLASSES, dtype=int)
        memory: dict[int, float] = {}
        for images, batch_labels in loader:
            np.add.at(brightness, batch_labels, images.mean(axis=(1, 2, 3)))
            np.add.at(seen, batch_labels, 1)
            # The store knows who has the images: the workers, and nobody holds a second copy.
            for holder in client.clients(holding=images_id):
                memory[holder["pid"]] = private_megabytes(holder["pid"])

    print(f"{seen.sum()} samples of {len(seen)} classes, {image_bytes / 1e6:.1f} MB in the store")
    print("mean brightness by class:", " ".join(f"{value:.2f}" for value in brightness / seen))
    for pid, megabytes in memory.items():
        print(f"worker {pid}: {megabytes:.1f} MB of private memory, numpy itself included")
    return 0


if __name__ == "__main__":
    sys.exit(main())
