"""The journal: the last lines of everybody's log, in the run directory, for `zcluster logs`.

Theory of operation. It is one file on tmpfs that all processes append to, each event with one write(2), which the
kernel does whole and in some order. It only grows at its end; whoever writes across a boundary of STEP_BYTES frees
what lies more than KEPT_BYTES before it (fallocate(2), FALLOC_FL_PUNCH_HOLE). So there is no other file to change to:
nobody has to be told, no process that has not written for long keeps an old one, a reader's place stays what it is,
and two who free at once free the same. It has no master, no lock and no state.

Invariant: of the memory it takes, KEPT_BYTES and a step are all, and no write to it ever waits or raises.
"""

import ctypes
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from zcluster.unix.loglines import speaker

KEPT_BYTES: Final = 4 << 20  # some 30,000 lines; containers give /dev/shm 64 MiB
STEP_BYTES: Final = 1 << 20
READ_BYTES: Final = 1 << 18

_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # linux/falloc.h


def path_in(run_dir: Path) -> Path:
    """Where it lies."""
    return run_dir / "log"


def make(run_dir: Path) -> None:
    """Create it, for the launcher; writers never do: none must come back after the cluster has ended."""
    os.close(os.open(path_in(run_dir), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))


class Journal:
    """The writing end; used by one thread at a time. Make a new one after a fork."""

    def __init__(self, run_dir: Path) -> None:
        self.path = path_in(run_dir)
        try:
            self.fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
            self._identity = os.fstat(self.fd)
        except OSError:  # the run directory is gone, no descriptor is left: there are other places for our lines
            self.fd = -1

    def write(self, lines: bytes) -> None:
        """Append whole lines; what the memory has no room for is not kept."""
        try:
            if not self._is_ours():
                return
            os.write(self.fd, lines := lines.replace(b"\0", b"\\x00"))
            end = os.lseek(self.fd, 0, os.SEEK_CUR)
        except OSError:
            return
        if end // STEP_BYTES != (end - len(lines)) // STEP_BYTES:
            _free(self.fd, end // STEP_BYTES * STEP_BYTES - KEPT_BYTES)

    def close(self) -> None:
        """Idempotent."""
        try:
            if self._is_ours():
                os.close(self.fd)
        except OSError:
            pass
        self.fd = -1

    def _is_ours(self) -> bool:
        """Whether the number still means our file: an application, or a fork of ours, may have closed it."""
        return self.fd >= 0 and os.path.samestat(os.fstat(self.fd), self._identity)


def _free(fd: int, before: int) -> None:
    """Give back the memory of what lies before this place."""
    if before <= 0:
        return
    fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, 0, before) != 0:
        os.ftruncate(fd, 0)  # a kernel that is none (gVisor): begin again


class Reader:
    """The reading end, from the oldest line that is kept. It reads on when the file has no name any more."""

    def __init__(self, run_dir: Path) -> None:
        """FileNotFoundError when the cluster has ended."""
        self._fd = os.open(path_in(run_dir), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._at = 0
        self._rest = b""
        self._is_torn = False  # we are inside a line whose beginning is gone

    def lines(self) -> Iterator[str]:
        """Give the lines that have come since the last call."""
        if os.fstat(self._fd).st_size < self._at:
            self._at, self._rest = 0, b""
        while piece := self._next():
            head, newline, tail = piece.rpartition(b"\n")
            if not newline:
                self._rest += tail
                continue
            whole, self._rest = self._rest + head, tail
            found = whole.split(b"\n")
            if self._is_torn:
                del found[0]
                self._is_torn = False
            for line in found:
                yield line.decode(errors="backslashreplace")

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._fd)

    def _next(self) -> bytes:
        try:
            start = os.lseek(self._fd, self._at, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing after this place
            return b""
        if start > self._at:
            self._jump()
        piece = os.pread(self._fd, READ_BYTES, start)
        self._at = start + len(piece)
        if b"\0" in piece:  # it was freed while we read; no line has a NUL in it
            self._jump()
            piece = piece.rpartition(b"\0")[2]
        return piece

    def _jump(self) -> None:
        self._rest, self._is_torn = b"", True


def told_by(slot: int | None) -> Callable[[str], bool]:
    """Make a filter for lines in their order: those of the workers of a slot; None: of everybody."""
    if slot is None:
        return lambda _: True
    wanted = re.compile(rf"worker\[{slot}\] ")
    is_in = False

    def choose(line: str) -> bool:
        nonlocal is_in
        who = speaker(line)
        if who is not None:  # else it goes on with the event before: those of one event stand together
            is_in = wanted.match(who) is not None
        return is_in

    return choose
