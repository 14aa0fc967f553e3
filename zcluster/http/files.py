"""`wsgi.file_wrapper` (PEP 3333): files that leave by os.sendfile instead of through the application's thread.

Invariant: what is sent is what iterating over the wrapper would give, from the file's position on.
"""

import inspect
import io
import os
import stat
from collections.abc import Iterator
from typing import Any, NamedTuple

BLOCK_BYTES = 65536  # for files that are none to the kernel
_BUFFERED_READS = (io.BufferedReader.read, io.BufferedRandom.read)


class FileWrapper:
    """What the application makes of a file-like object; iterable, for those that only look like files.

    It is its own iterator, as wsgiref's is: whoever wraps it again (Werkzeug for a range) closes what iter() gave.
    """

    def __init__(self, file: Any, block_size: int = BLOCK_BYTES) -> None:
        self.file = file
        self.block_size = block_size

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        data: bytes = self.file.read(self.block_size)
        if not data:
            raise StopIteration
        return data

    def close(self) -> None:
        """Close the file, if it can be."""
        close = getattr(self.file, "close", None)
        if close is not None:
            close()

    # Werkzeug asks for these, so that a range far behind is not read up to.
    def seekable(self) -> bool:
        """Whether the file can be sought in."""
        seekable = getattr(self.file, "seekable", None)
        return bool(seekable()) if seekable is not None else hasattr(self.file, "seek")

    def seek(self, *where: int) -> None:
        """As the file's."""
        self.file.seek(*where)

    def tell(self) -> int:
        """As the file's."""
        position: int = self.file.tell()
        return position


class Part(NamedTuple):
    """A part of a file: the descriptor is the receiver's to close."""

    fd: int
    offset: int
    size: int


def part_of(wrapper: FileWrapper) -> Part | None:
    """The rest of a regular file behind its position, or None: it has to be read in the ordinary way."""
    try:
        file = _plain(wrapper.file)
        if file is None:
            return None
        fd = file.fileno()
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or not found.st_blocks:
            return None  # a pipe; or one of /proc or /sys, which do not know their size (nor do they own a block)
        offset = file.tell()
        # A descriptor of its own: the application may close the file before its client has all of it.
        return Part(os.dup(fd), offset, max(0, found.st_size - offset))
    except (OSError, ValueError):  # closed; no descriptor left; what it is, reading it will tell
        return None


def _plain(file: Any) -> io.FileIO | io.BufferedReader | io.BufferedRandom | None:
    """The file of the standard library that `file.read` reads and that gives the bytes on the disk, or None.

    To have a descriptor is not enough: gzip's and bz2's readers have one, and give other bytes than are in the file.
    Wrappers that pass `read` on (tempfile's, Django's File) are seen through.
    """
    owner = getattr(inspect.unwrap(getattr(file, "read", None)), "__self__", None)  # type: ignore[arg-type]
    if isinstance(owner, io.FileIO):
        return owner if type(owner).read is io.FileIO.read else None
    if isinstance(owner, (io.BufferedReader, io.BufferedRandom)) and type(owner.raw) is io.FileIO:
        return owner if type(owner).read in _BUFFERED_READS else None
    return None
