"""What a dead worker leaves behind: its children, now ours. They get SIGTERM, 5 s, SIGKILL.

Theory of operation. When a worker is reaped, the members of its process group and those of our new children that
carry its pid in their environment are told to end. Whenever one of them has gone we look again, for it may have left
children of its own, or have started some meanwhile.

Invariant: only processes that provably came from that worker are touched. While its zombie stands its pid is nobody
else's. Later a process counts only if it is our child (hence born in this cluster), is in that worker's group or
marked by it, and is older than whoever has that pid by then.
"""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from .process import Death, Stat, is_alive, processes, send_signal, stat

MARK = "ZCLUSTER_WORKER_PID"  # set in a worker's environment, hence in that of everything it executes
GRACE_S = 5.0  # enough to flush a file and remove a temporary; the operator waits for it at a stop


@dataclass
class _Stray:
    due: float  # when it is killed
    worker: int  # pid of the worker it came from


class Strays:
    """The left-over descendants being ended. Times are monotonic seconds, given by the caller."""

    def __init__(self, grace_s: float = GRACE_S) -> None:
        self._grace_s = grace_s
        self._strays: dict[tuple[int, int], _Stray] = {}  # by (pid, start)
        self._bereft: set[int] = set()  # pids of workers of whose strays one has gone: look again

    def __len__(self) -> int:
        return len(self._strays)

    def left_by(self, dead: Death, now: float) -> None:
        """Call while `dead` is still a zombie: its pid must not have been taken by another."""
        if dead.pgrp != dead.pid:
            return  # not a worker: every worker leads a group of its own
        for found in processes():
            if found.pid != dead.pid and (found.pgrp == dead.pid or _is_marked(found, dead.pid)):
                self._end(found, dead.pid, now)

    def reaped(self, pid: int, start: int) -> None:
        """One of them is gone, if it was one."""
        gone = self._strays.pop((pid, start), None)
        if gone is not None:
            self._bereft.add(gone.worker)

    def sweep(self, now: float) -> None:
        """Kill those whose time is up; forget those that went by themselves, and end what they left."""
        for (pid, start), stray in list(self._strays.items()):
            if not is_alive(pid, start):
                self.reaped(pid, start)
            elif now >= stray.due:
                send_signal(pid, start, signal.SIGKILL)
        if self._bereft:
            for found in processes():
                for worker in self._bereft:
                    if _came_from(found, worker):
                        self._end(found, worker, now)
            self._bereft.clear()

    def kill_now(self) -> None:
        """The second, forced stop."""
        for pid, start in self._strays:
            send_signal(pid, start, signal.SIGKILL)
        self._strays.clear()
        self._bereft.clear()

    def _end(self, found: Stat, worker: int, now: float) -> None:
        known = (found.pid, found.start) in self._strays or found.is_dead
        if not known and send_signal(found.pid, found.start, signal.SIGTERM):
            self._strays[found.pid, found.start] = _Stray(now + self._grace_s, worker)


def _came_from(found: Stat, worker: int) -> bool:
    """Is this child of ours left over from the worker that had this pid, and not from one that has it now?"""
    if found.ppid != os.getpid() or not (found.pgrp == worker or _is_marked(found, worker)):
        return False
    successor = stat(worker)
    return successor is None or found.start < successor.start


def _is_marked(found: Stat, worker: int) -> bool:
    if found.ppid != os.getpid():
        return False
    try:
        environment = Path(f"/proc/{found.pid}/environ").read_bytes()
    except OSError:  # gone meanwhile, or another user's (the app may change its uid)
        return False
    return f"{MARK}={worker}".encode() in environment.split(b"\0")
