"""What a dead worker leaves behind: its children, now ours. They get SIGTERM, 5 s, SIGKILL.

Invariant: only processes that provably came from that worker are touched: members of its process group, and children
of the launcher that carry its pid in their environment (a child that made a session of its own).
"""

import os
import signal
from pathlib import Path

from .process import Death, Stat, processes, send_signal

MARK = "ZCLUSTER_WORKER_PID"  # set in a worker's environment, hence in that of everything it executes
GRACE_S = 5.0  # enough to flush a file and remove a temporary; the operator waits for it at a stop


class Strays:
    """The left-over descendants being ended."""

    def __init__(self) -> None:
        self._due: dict[tuple[int, int], float] = {}  # (pid, start) -> when it is killed

    def __len__(self) -> int:
        return len(self._due)

    def left_by(self, dead: Death, now: float) -> None:
        """Call while `dead` is still a zombie, or right after: its pid must not have been taken by another."""
        if dead.pgrp != dead.pid:
            return  # not a worker: every worker leads a group of its own
        for found in processes():
            if found.pid == dead.pid or found.state in "ZX" or (found.pid, found.start) in self._due:
                continue
            if (found.pgrp == dead.pid or _is_marked(found, dead.pid)) and send_signal(
                found.pid, found.start, signal.SIGTERM
            ):
                self._due[found.pid, found.start] = now + GRACE_S

    def reaped(self, pid: int, start: int) -> None:
        """One of them is gone."""
        self._due.pop((pid, start), None)

    def sweep(self, now: float) -> None:
        """Kill those whose time is up; forget those that went by themselves."""
        for (pid, start), due in list(self._due.items()):
            if now >= due:
                send_signal(pid, start, signal.SIGKILL)
                del self._due[pid, start]

    def kill_now(self) -> None:
        """The second, forced stop."""
        for pid, start in self._due:
            send_signal(pid, start, signal.SIGKILL)
        self._due.clear()


def _is_marked(found: Stat, worker_pid: int) -> bool:
    if found.ppid != os.getpid():
        return False
    try:
        environment = Path(f"/proc/{found.pid}/environ").read_bytes()
    except OSError:  # gone meanwhile, or another user's (the app may change its uid)
        return False
    return f"{MARK}={worker_pid}".encode() in environment.split(b"\0")
