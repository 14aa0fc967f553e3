"""Byte locks: who owns which lane, which role, and the right to register names.

Invariant: a lock file is open at most once per process. A POSIX lock belongs to the pair (process, inode): closing
*any* descriptor of the file drops all of the process's locks on it, so a second descriptor would be a trap.

Why POSIX locks and not flock: a lock dies with its process whatever kills it, a forked child does not inherit it (an
flock stays held by an orphan), and anybody can ask the kernel for the owner's pid (F_GETLK). Linux, 64 bit.
"""

import errno
import fcntl
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from zcluster.errors import ClusterError, SpawnError

LANES_END: Final = 65_536  # bytes 0..65535: the lanes
ROLE_BASE: Final = 1 << 20
LAUNCHER_BYTE: Final = ROLE_BASE
MASTER_BYTE: Final = ROLE_BASE + 1
CHECKPOINT_BYTE: Final = ROLE_BASE + 16  # services: ROLE_BASE + 16 ..
OUTPUT_BYTE: Final = ROLE_BASE + 17
ZYGOTE_BASE: Final = ROLE_BASE + 4096  # + generation
NAMES_BYTE: Final = 1 << 21

# Registering a name takes microseconds; only a stopped process (SIGSTOP, VM pause) can hold the lock this long.
NAMES_TIMEOUT_S: Final = 10.0
_POLL_FIRST_S, _POLL_LAST_S = 0.0005, 0.02

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux: type, whence, start, len, pid

# (device, inode) -> descriptor. It survives a fork, as descriptors do; a stale entry is recognised by fstat.
_open_files: dict[tuple[int, int], int] = {}
_open_files_lock = threading.Lock()


class LockFile:
    """The lock file of a run directory or a state directory, created if missing (0600).

    A forked child may go on with the object it inherited: the descriptor is shared, the locks are not. Asking and
    locking are safe from any thread; a byte locked by one thread counts as held by all of the process.
    """

    def __init__(self, path: str | Path) -> None:
        """ClusterError when this process has the file open already; SpawnError when it cannot be opened."""
        self.path = Path(path)
        # Re-entrant only to notice a second entry of one thread, where a plain lock would wait for itself.
        self._threads = threading.RLock()
        self._inside = False
        with _open_files_lock:
            # Looking before opening: a descriptor opened only to be closed again would drop the locks.
            self._refuse_second_open()
            try:
                self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except OSError as error:
                raise SpawnError(f"cannot open the lock file {self.path}: {error.strerror}") from error
            _open_files[_identity(os.fstat(self.fd))] = self.fd

    def is_current(self) -> bool:
        """Is the file still the one at its path? A lock on a file that was removed is a lock on nothing."""
        try:
            return _identity(self.path.stat(follow_symlinks=False)) == _identity(os.fstat(self.fd))
        except FileNotFoundError:
            return False

    def try_lock(self, byte: int) -> bool:
        """Lock one byte for this process until unlock or death; False when another process has it."""
        try:
            fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise
        return True

    def unlock(self, byte: int) -> None:
        """Give one byte back; nothing happens when it is not ours."""
        fcntl.lockf(self.fd, fcntl.LOCK_UN, 1, byte)

    def owner(self, byte: int) -> int | None:
        """Pid of the *other* process that holds this byte: our own locks never show (F_GETLK)."""
        found = first_lock(self.fd, byte, byte + 1)
        return None if found is None else found[2]

    def owners(self, start: int = 0, length: int = NAMES_BYTE + 1) -> dict[int, int]:
        """byte -> pid, for every byte of the range (by default of the file) that another process holds."""
        found: dict[int, int] = {}
        ranges = [(start, start + length)]
        while ranges:
            low, high = ranges.pop()
            lock = first_lock(self.fd, low, high) if low < high else None
            if lock is None:
                continue
            # The kernel reports *some* lock of the range, not the lowest: look on both sides of it.
            first, end, pid = max(lock[0], low), min(lock[1], high), lock[2]
            found.update(dict.fromkeys(range(first, end), pid))
            ranges += [(low, first), (end, high)]
        return found

    @contextmanager
    def names(self, timeout_s: float = NAMES_TIMEOUT_S) -> Iterator[None]:
        """The right to raise `used_names` and `used_lanes`; ClusterError when it cannot be had in time."""
        deadline_s = time.monotonic() + timeout_s
        if not self._threads.acquire(timeout=timeout_s):
            raise ClusterError(f"another thread of this process has held the names lock for {timeout_s:g} s")
        try:
            if self._inside:
                raise ClusterError(
                    "a counter was used for the first time by a signal handler or finalizer that interrupted the"
                    " first use of another: declare both at import"
                )
            self._wait_for(NAMES_BYTE, deadline_s, timeout_s)
            self._inside = True
            try:
                yield
            finally:
                self._inside = False
                self.unlock(NAMES_BYTE)
        finally:
            self._threads.release()

    def close(self) -> None:
        """Close the file: every lock this process has on it is gone. A second call does nothing."""
        with _open_files_lock:
            if self.fd >= 0:
                _open_files.pop(_identity(os.fstat(self.fd)), None)
                os.close(self.fd)
                self.fd = -1

    def _refuse_second_open(self) -> None:
        try:
            identity = _identity(self.path.stat(follow_symlinks=False))
        except OSError:
            return  # not there yet: it cannot be open
        fd = _open_files.get(identity)
        if fd is not None and _refers_to(fd, identity):
            raise ClusterError(
                f"{self.path} is open in this process already; a second descriptor would drop its locks"
                " when it is closed: use the LockFile that exists"
            )

    def _wait_for(self, byte: int, deadline_s: float, timeout_s: float) -> None:
        # F_SETLKW has no time-out, hence polling; it also keeps the deadline while a signal storm goes on.
        pause_s = _POLL_FIRST_S
        while not self.try_lock(byte):
            if time.monotonic() >= deadline_s:
                raise ClusterError(
                    f"process {self.owner(byte)} has held the names lock of {self.path} for {timeout_s:g} s;"
                    " it is stopped or hung: continue or end it"
                )
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, _POLL_LAST_S)


def first_lock(fd: int, low: int, high: int) -> tuple[int, int, int] | None:
    """Some lock of another process within [low, high) of an open file: first byte, end, pid."""
    question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, low, high - low, 0)
    kind, _, start, length, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, question))
    if kind == fcntl.F_UNLCK:
        return None
    return start, start + length if length else high, pid  # length 0 means to the end of the file


def zygote_byte(generation: int) -> int:
    """The byte that the zygote of a generation holds."""
    return ZYGOTE_BASE + generation


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino


def _refers_to(fd: int, identity: tuple[int, int]) -> bool:
    try:
        return _identity(os.fstat(fd)) == identity
    except OSError:
        return False  # closed behind our back, as a forked child does with all it does not need
