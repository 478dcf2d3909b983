"""Stores and clients that die: for tests of what is left then."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from support import wait_until

import plasma


def is_gone(pid: int) -> bool:
    """Whether the process has ended. It may be a zombie that its parent has not waited for yet."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True
    return status.rpartition(")")[2].split()[0] in "ZX"


def kill_store(client: plasma.PlasmaClient) -> None:
    """Ends the store of a client as a crash would, and waits until it is gone."""
    pid = client._core.server_pid()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_gone(pid))
