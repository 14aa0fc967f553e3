"""What can be done to a process of another from outside: cut its sockets, hold one of its threads, take descriptors.

A proxy between the peers of the bus is not possible: the master believes a hello only when the kernel says that the
process which connected is the one named in it, and a proxy would have connected itself. So the chaos is done to the
ends: their sockets are shut down (reset), their addresses are taken away (loss), their ZeroMQ I/O thread is held
with ptrace(2) while the connection stays open (half-open, delay). All of it needs the right to trace the process.
"""

import ctypes
import os
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PIDFD_GETFD = 438  # the same number on every architecture since Linux 5.6
SEIZE, INTERRUPT, DETACH = 0x4206, 0x4207, 17  # ptrace(2)
WALL = 0x40000000  # waitpid(2): threads too
NAMES = ("ctl", "pub", "evt")
STOP_S = 5.0  # a thread that is interrupted stops at once, unless it waits for a disk

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def _taken_from(pidfd: int, fd: int) -> socket.socket | None:
    """A duplicate of another process's socket; None when that is none, or is gone."""
    copy = _libc.syscall(PIDFD_GETFD, pidfd, fd, 0)
    if copy < 0:
        return None
    try:
        return socket.socket(fileno=copy)
    except OSError:  # a file, not a socket
        os.close(copy)
        return None


def cut(pid: int, run_dir: Path, names: tuple[str, ...] = NAMES) -> int:
    """Shut this process's connections to these sockets of the bus down; returns how many there were."""
    number = 0
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return 0
    try:
        for entry in os.listdir(f"/proc/{pid}/fd"):
            sock = _taken_from(pidfd, int(entry))
            if sock is None:
                continue
            with sock:
                try:
                    peer = sock.getpeername()
                except OSError:  # it listens, or is cut already
                    continue
                if isinstance(peer, str) and peer.startswith(str(run_dir)) and Path(peer).name in names:
                    sock.shutdown(socket.SHUT_RDWR)
                    number += 1
    except (FileNotFoundError, ProcessLookupError):
        pass  # it has ended
    finally:
        os.close(pidfd)
    return number


@contextmanager
def unreachable(run_dir: Path, names: tuple[str, ...] = NAMES) -> Iterator[None]:
    """Nobody can connect to these sockets of the bus; who is connected stays so."""
    for name in names:
        (run_dir / name).rename(run_dir / f"{name}-away")
    try:
        yield
    finally:
        for name in names:
            away = run_dir / f"{name}-away"
            if (run_dir / name).exists():  # of a master that has begun meanwhile: what is away is a dead one's
                away.unlink()
            else:
                away.rename(run_dir / name)


def may_trace(pid: int) -> bool:
    """Whether this process may be traced by us (Yama, containers)."""
    try:
        with held(pid, lambda _name: True):
            return True
    except OSError:
        return False


@contextmanager
def held(pid: int, wanted: Callable[[str], bool]) -> Iterator[int]:
    """The first thread whose name is wanted stands still; all others run. One thread of ours must do all of it."""
    tid = next((tid for tid in map(int, os.listdir(f"/proc/{pid}/task")) if wanted(_name(pid, tid))), 0)
    if not tid:
        raise ProcessLookupError(f"process {pid} has no such thread")
    if _libc.ptrace(SEIZE, tid, None, None) < 0:
        raise OSError(ctypes.get_errno(), f"ptrace of thread {tid} of process {pid} is not allowed")
    try:
        _libc.ptrace(INTERRUPT, tid, None, None)
        _wait(tid)
        yield tid
    finally:
        # Killed meanwhile, it is a zombie that keeps its whole process from being reaped until we have waited.
        if _libc.ptrace(DETACH, tid, None, None) < 0:
            _wait(tid)


def _name(pid: int, tid: int) -> str:
    try:
        return Path(f"/proc/{pid}/task/{tid}/comm").read_text().strip()
    except OSError:
        return ""


def _wait(tid: int) -> None:
    """Wait until a traced thread has stopped or ended."""
    deadline = time.monotonic() + STOP_S
    while time.monotonic() < deadline:
        try:
            if os.waitpid(tid, WALL | os.WNOHANG)[0]:
                return
        except ChildProcessError:
            return
        time.sleep(0.001)


@contextmanager
def without_descriptors(pid: int) -> Iterator[int]:
    """This process can open nothing more, except in the place of what it closes; yields the limit."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    limit = max(map(int, os.listdir(f"/proc/{pid}/fd"))) + 1
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield limit
    finally:
        try:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        except ProcessLookupError:
            pass  # it did not survive, and its successor was never limited


@contextmanager
def full(folder: Path) -> Iterator[int]:
    """No room is left in this file system; yields the bytes that it took."""
    path, written = folder / "nemesis-fills-this", 0
    try:
        with path.open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                try:
                    while True:
                        written += file.write(bytes(size))
                except OSError:
                    continue
        yield written
    finally:
        path.unlink(missing_ok=True)
