"""What the kernel says about a process and its memory, read from /proc."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

KIB = 1024
MIB = 1024 * KIB


class Mapping(NamedTuple):
    """One line of /proc/PID/maps."""

    begin: int
    end: int
    #: For example "r--s": readable, not writable, not executable, shared.
    permissions: str
    name: str


def mappings(pid: int | str = "self") -> list[Mapping]:
    """All mappings of a process."""
    found = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        addresses, permissions, _, _, _, *name = line.split(maxsplit=5)
        begin, end = (int(address, 16) for address in addresses.split("-"))
        found.append(Mapping(begin, end, permissions, name[0] if name else ""))
    return found


def mapping_of(address: int) -> Mapping:
    """The mapping of this process that an address lies in."""
    for mapping in mappings():
        if mapping.begin <= address < mapping.end:
            return mapping
    raise AssertionError(f"nothing is mapped at {address:#x}")


def descriptors(pid: int | str = "self") -> int:
    """How many descriptors a process has open, files of the system aside: looking at our own opens
    one for a moment, and the store looks now and then how much memory there is."""
    folder = Path(f"/proc/{pid}/fd")
    return sum(not _is_of_the_system(entry) for entry in folder.iterdir())


def _is_of_the_system(descriptor: Path) -> bool:
    try:
        return os.readlink(descriptor).startswith(("/proc/", "/sys/"))
    except FileNotFoundError:  # It has been closed meanwhile.
        return True


def status_bytes(field: str, pid: int | str = "self") -> int:
    """A size in /proc/PID/status, in bytes: `RssAnon` is the memory that a process has taken and
    that is no part of a file or of shared memory."""
    return _kib_in(Path(f"/proc/{pid}/status"), field) * KIB


def available_bytes() -> int:
    """Memory that can be had without swapping."""
    return _kib_in(Path("/proc/meminfo"), "MemAvailable") * KIB


def _kib_in(file: Path, field: str) -> int:
    for line in file.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0])
    raise AssertionError(f"{file} has no {field}")
