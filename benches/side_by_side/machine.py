"""What the machine is, as far as results depend on it. Nothing that names it."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any


def describe() -> dict[str, Any]:
    """The machine's kind, for the results."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "is_virtual": "hypervisor" in _read("/proc/cpuinfo"),
        "memory_gb": round(_meminfo("MemTotal") / 1e9),
        "kernel": platform.release(),
        "system": _system(),
        "python": platform.python_version(),
        "huge_pages": _chosen("/sys/kernel/mm/transparent_hugepage/enabled"),
        "huge_pages_of_shared_memory": _chosen("/sys/kernel/mm/transparent_hugepage/shmem_enabled"),
    }


def kind(machine: dict[str, Any]) -> str:
    """A short name of such machines, for a file."""
    words = f"{machine['processor']} {machine['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def available_bytes() -> int:
    """Memory that can be used without driving anything out."""
    return _meminfo("MemAvailable")


def heap_bytes(pid: int) -> int:
    """Memory of a process that is its own: neither files nor shared memory."""
    found = re.search(r"^RssAnon:\s+(\d+) kB", _read(f"/proc/{pid}/status"), re.M)
    return int(found[1]) * 1024 if found else 0


def cpu_ns(pid: int) -> int:
    """Processor time of all threads of a process so far."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


def _processor() -> str:
    found = re.search(r"^model name\s*:\s*(.*)$", _read("/proc/cpuinfo"), re.M)
    return found[1].strip() if found else platform.machine()


def _system() -> str:
    found = re.search(r'^PRETTY_NAME="?([^"\n]*)', _read("/etc/os-release"), re.M)
    return found[1] if found else platform.system()


def _meminfo(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", _read("/proc/meminfo"), re.M)
    return int(found[1]) * 1024 if found else 0


def _chosen(path: str) -> str:
    found = re.search(r"\[(\w+)\]", _read(path))
    return found[1] if found else "unknown"


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
