"""The ledger's file: made whole on tmpfs, mapped, never truncated, a new inode for every start.

Invariant: every page of the file exists before anybody can map it (fallocate), and the file never shrinks: a store
into a mapping can therefore not end in SIGBUS.
"""

import ctypes
import errno
import mmap
import os
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from zcluster.core.ledger import COUNTERS_DEFAULT, LANES_DEFAULT, PAGE, Ledger, LedgerError
from zcluster.errors import SpawnError

_MEMORY_FILESYSTEMS: Final = ("tmpfs", "ramfs")


class LedgerFile:
    """A mapped ledger. `fds` are the descriptors it keeps open, for whoever must close them after a fork."""

    def __init__(self, path: Path, mapping: mmap.mmap, fds: tuple[int, ...]) -> None:
        """Takes over `mapping`; LedgerError when it does not hold a ledger."""
        self.path = path
        self.fds = fds
        self._mapping = mapping
        self._kept = False
        self.ledger = Ledger(mapping)

    def keep_for_life(self) -> None:
        """For a worker: children forked by the application do not get the mapping, and it is never unmapped here.

        Never unmapped, because the child inherits the Python object but not the memory: its destructor would unmap
        whatever the child has at that address by then.
        """
        if not self._kept:
            self._kept = True
            self._mapping.madvise(mmap.MADV_DONTFORK)
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._mapping))

    def close(self) -> None:
        """Unmap. Somebody's view of the cells keeps the mapping until the process ends; so does `keep_for_life`."""
        if self._kept:
            return
        self.ledger.release()
        try:
            self._mapping.close()
        except BufferError:
            pass  # a Counter still holds a view: better a mapping too many than a crash in its next read


def boot_id() -> bytes:
    """16 bytes that change with every boot of the machine."""
    return uuid.UUID(Path("/proc/sys/kernel/random/boot_id").read_text().strip()).bytes


def create(
    path: str | Path,
    *,
    ledger_id: bytes,
    boot_id: bytes,
    state_id: bytes = bytes(16),
    base: Mapping[str, int] | None = None,
    lanes: int = LANES_DEFAULT,
    counters: int = COUNTERS_DEFAULT,
) -> LedgerFile:
    """Make, fill and map a new ledger file (0600).

    SpawnError: the file exists, or the filesystem has no room. LedgerError: `base` does not fit; nothing was made.
    """
    path = Path(path)
    block = bytearray(Ledger.size_bytes(lanes, counters))
    Ledger.format(
        block, lanes=lanes, counters=counters, ledger_id=ledger_id, boot_id=boot_id, state_id=state_id, base=base
    ).release()
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise SpawnError(f"cannot create the ledger {path}: {error.strerror}") from error
    try:
        _allocate(fd, path, len(block))
        # The first page, which holds the magic, goes last: until then the file is no ledger.
        for start, end in ((PAGE, len(block)), (0, PAGE)):
            while start < end:
                start += os.pwrite(fd, memoryview(block)[start:end], start)
        return _map(fd, path, writable=True)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def open_ledger(path: str | Path, *, writable: bool = True) -> LedgerFile:
    """Map an existing ledger. OSError: no such file, no right; LedgerError: not a complete ledger."""
    flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(path, flags)
    try:
        return _map(fd, Path(path), writable)
    finally:
        os.close(fd)


def filesystem_of(path: str | Path) -> str:
    """Type of the filesystem that holds `path` ("tmpfs", "ext4"...), "unknown" when the kernel does not list it."""
    device = os.stat(path).st_dev  # noqa: PTH116 - accepts str and Path alike
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields = line.split()
        if fields[2] == wanted:
            return fields[fields.index("-") + 1]
    return "unknown"


def require_tmpfs(path: str | Path) -> None:
    """SpawnError unless `path` lies in memory: elsewhere a store can stall for 100s of ms while pages are written."""
    try:
        kind = filesystem_of(path)
    except OSError as error:
        raise SpawnError(f"cannot look at {path}: {error.strerror}; give --run-dir on a tmpfs") from error
    if kind not in _MEMORY_FILESYSTEMS:
        raise SpawnError(
            f"{path} lies on {kind}; the ledger must live in memory: give --run-dir on a tmpfs such as /dev/shm"
        )


def _allocate(fd: int, path: Path, size: int) -> None:
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise SpawnError(f"cannot allocate the ledger {path}: {error.strerror}") from error
        room = os.fstatvfs(fd)
        raise SpawnError(
            f"no room for the ledger: {path.parent} has {room.f_bavail * room.f_frsize} bytes free and"
            f" {size} are needed ({error.strerror}); make it larger (docker: --shm-size),"
            " give another tmpfs with --run-dir, or fewer lanes or counters (--lanes, --counters)"
        ) from error


def _map(fd: int, path: Path, writable: bool) -> LedgerFile:
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    size = os.fstat(fd).st_size
    if size == 0:
        raise LedgerError(f"{path} is empty: its maker died before it was allocated")
    if sys.version_info >= (3, 13):
        return LedgerFile(path, mmap.mmap(fd, size, prot=protection, trackfd=False), ())
    before = _descriptors_of(fd)
    mapping = mmap.mmap(fd, size, prot=protection)
    return LedgerFile(path, mapping, tuple(_descriptors_of(fd) - before))


def _descriptors_of(fd: int) -> set[int]:
    """This process's descriptors of the same file: before 3.13 a mapping opens one of its own and hides it."""
    wanted = os.fstat(fd)
    found = set()
    for entry in os.listdir("/proc/self/fd"):
        try:
            stat = os.fstat(int(entry))
        except OSError:
            continue  # the descriptor of this very listing
        if (stat.st_dev, stat.st_ino) == (wanted.st_dev, wanted.st_ino):
            found.add(int(entry))
    return found
