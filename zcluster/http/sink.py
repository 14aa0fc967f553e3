"""Where a log's lines go: a file that several processes append to, a pipe, a terminal, a socket.

Invariant: a line is never mixed with another process's, and a write never waits for longer than whoever calls allows.
What a file takes in one call it takes as a whole (O_APPEND); of a pipe that holds for PIPE_BUF bytes (pipe(7)), so
whatever is no file is given no more at once, when it says it has room. A pipe is written through a description of our
own that does not block; O_NONBLOCK on stdout itself would hit all who share it, the operator's shell included.
"""

import logging
import os
import select
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from zcluster import current

LINE_MAX_BYTES: Final = 4096  # PIPE_BUF
FILE_BYTES: Final = 1 << 16  # in one call to a file
SLICE_S: Final = 0.1  # between two questions whether to go on waiting; only while a reader has stopped reading

_STREAMS: Final = {"-": 1, "/dev/stdout": 1, "/dev/stderr": 2}


class Sink:
    """An open log; used by one thread at a time. Errors are logged when they begin and when they end."""

    def __init__(self, target: str, log: logging.Logger) -> None:
        self._stream = _STREAMS.get(target, -1)
        self.name = target if self._stream >= 0 else str(Path(target).absolute())  # an application may chdir
        self.in_trouble = False
        self._log = log
        self._fd = -1
        self._is_file = False
        self._torn = False  # the last line stands there in part
        self._poller = select.poll()

    def open(self) -> bool:
        """Open it, or open it again: a file that was moved away is made anew. False, and logged, if that fails."""
        try:
            fd = self._opened()
            self._is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        except OSError as error:  # what was open stays open
            self._failed(error)
            return False
        self.close()
        self._fd, self._torn = fd, False
        self._poller.register(fd, select.POLLOUT)
        return True

    def reopen(self) -> None:
        """Follow the name, not the file, as after log rotation; stdout stays what it is."""
        if self._stream < 0:
            self.open()

    def close(self) -> None:
        """Close it; a later write opens it again."""
        if self._fd >= 0:
            self._poller.unregister(self._fd)
            os.close(self._fd)
            self._fd = -1

    def write(self, lines: bytes, go_on: Callable[[], bool]) -> int:
        """Write whole lines, each of at most LINE_MAX_BYTES; returns how many did not get there.

        `go_on` is asked while there is no room: False ends the waiting.
        """
        most = FILE_BYTES if self._is_file else LINE_MAX_BYTES
        lost = start = 0
        while start < len(lines):
            end = lines.rfind(b"\n", start, start + most) + 1 or lines.index(b"\n", start) + 1
            if not self._put(lines[start:end], go_on):
                if not go_on():
                    return lost + lines.count(b"\n", start)
                lost += lines.count(b"\n", start, end)
            start = end
        return lost

    def _opened(self) -> int:
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
        if self._stream < 0:
            return os.open(self.name, flags | os.O_APPEND | os.O_CREAT, 0o666)
        kept = current.streams[self._stream - 1]
        stream = kept if kept >= 0 else self._stream  # the app's output may be captured, ours is not
        if stat.S_ISFIFO(os.fstat(stream).st_mode):
            try:
                return os.open(f"/proc/self/fd/{stream}", flags)
            except PermissionError:  # another user's: it may block us, who write when there is room, and are a thread
                return os.dup(stream)
        # The same description, for its offset: a file that a shell opened for `>` is not open for appending. It keeps
        # its place also when the application redirects the stream.
        return os.dup(stream)  # closed by an exec

    def _put(self, piece: bytes, go_on: Callable[[], bool]) -> bool:
        """Write one piece; False when it, or its end, is lost."""
        if self._fd < 0 and not self.open():
            return False
        if self._torn:
            piece = b"\n" + piece
        while piece:
            if not self._is_file:
                while not self._poller.poll(SLICE_S * 1000):
                    if not go_on():
                        return False
            try:
                written = os.write(self._fd, piece)
            except BlockingIOError:  # another process took the room between our look and our write
                continue
            except OSError as error:
                self._failed(error)
                return False
            self._torn = piece[written - 1 : written] != b"\n"
            piece = piece[written:]
        self._worked()
        return True

    def _failed(self, error: OSError) -> None:
        if not self.in_trouble:
            self.in_trouble = True
            why = error.strerror or error
            self._log.error("cannot write the log %s: %s; its lines are lost until it can be written", self.name, why)

    def _worked(self) -> None:
        if self.in_trouble:
            self.in_trouble = False
            self._log.warning("the log %s is written again", self.name)
