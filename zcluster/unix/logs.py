"""Our log: one line per event on stderr, each begun with who says it.

Invariant: logging never stops a process. A line is one write of at most 4096 bytes, which a pipe takes whole or not
at all (PIPE_BUF of pipe(7)), so lines of several processes never mix; and it is only written when it can be taken.
When whoever reads our stderr has stopped reading, lines are dropped and counted, and the count is told later.
Only the logger "zcluster" is configured; the app's logging is its own.
"""

import logging
import os
import select
import signal
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

LINE_MAX_BYTES = 4096
# How long a line may wait for its reader. Launcher and master, who must never stand still, wait PATIENCE_SHORT_S.
PATIENCE_S = 5.0
PATIENCE_SHORT_S = 0.1


class _OneWrite(logging.Handler):
    def __init__(self, patience_s: float) -> None:
        super().__init__()
        self._patience_s = patience_s
        self._lost = 0
        self._poller = select.poll()
        self._poller.register(2, select.POLLOUT)

    def emit(self, record: logging.LogRecord) -> None:
        lines = [self.format(record)]
        if self._lost and self._is_writable(0.0):
            note = logging.LogRecord(
                record.name, logging.WARNING, "", 0, "%d log lines were lost", (self._lost,), None
            )
            lines.insert(0, self.format(note))
            self._lost = 0
        for line in lines:
            for piece in _pieces(line, whole=record.exc_info is not None):
                self._write(piece)

    def _write(self, piece: bytes) -> None:
        # After the first lost line nobody waits again, until the reader is back.
        if not self._is_writable(0.0 if self._lost else self._patience_s):
            self._lost += 1
            return
        try:
            with _unstoppable():
                os.write(_descriptor(), piece)
        except BlockingIOError:  # another process took the room between our look and our write
            self._lost += 1
        except OSError:  # stderr is closed or its reader is gone: there is nowhere to say so
            pass

    def _is_writable(self, timeout_s: float) -> bool:
        """Can 4096 bytes be written without waiting? An error counts as yes: the write will tell."""
        return bool(self._poller.poll(timeout_s * 1000))


_own_pipe = -1  # our own description of the pipe that stderr is


def _descriptor() -> int:
    """Where to write: stderr, or when that is a pipe, a description of our own of it that never blocks.

    O_NONBLOCK on stderr itself would hit all who share it, the operator's shell included. Looked at anew for every
    line, because the app may redirect 2, and a fork may close what it does not know.
    """
    global _own_pipe
    stderr = os.fstat(2)
    if not stat.S_ISFIFO(stderr.st_mode):
        return 2
    try:
        if os.path.samestat(stderr, os.fstat(_own_pipe)):
            return _own_pipe
    except OSError:
        pass  # not opened yet, or closed by somebody
    try:
        _own_pipe = os.open("/proc/self/fd/2", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # no reader (ENXIO), no /proc, no descriptor left
        return 2
    return _own_pipe


@contextmanager
def _unstoppable() -> Iterator[None]:
    """Write although `stty tostop` forbids it to a background job, as daemons do (termios(3)).

    The launcher has a handler for SIGTTOU, so the kernel would restart the write, send the signal again, and so on.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTTOU,))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _pieces(text: str, *, whole: bool) -> Iterator[bytes]:
    """The writes that make up an event: one, cut if it is too long; as many as it takes for a traceback."""
    data = (text + "\n").encode(errors="backslashreplace")
    if len(data) > LINE_MAX_BYTES and not whole and b"\n" not in data[:-1]:
        data = data[: LINE_MAX_BYTES - 5] + b" ...\n"
    for start in range(0, len(data), LINE_MAX_BYTES):
        yield data[start : start + LINE_MAX_BYTES]


def log_to_stderr(who: str, level: str, patience_s: float = PATIENCE_S) -> None:
    """Send the "zcluster" loggers of this process to stderr as `who`; call it again after a fork."""
    handler = _OneWrite(patience_s)
    handler.setFormatter(logging.Formatter(f"[%(asctime)s] %(levelname)s {who} pid={os.getpid()}: %(message)s"))
    ours = logging.getLogger("zcluster")
    ours.handlers[:] = [handler]
    ours.propagate = False
    ours.setLevel(level.upper())


def say(line: str) -> None:
    """One line on stdout, now. A stdout that is closed, or that nobody reads any more, is not our failure."""
    _speak(sys.stdout, 1, line)


def complain(text: str) -> None:
    """The last words of a command on stderr, under the same terms: the exit code says it all once more."""
    _speak(sys.stderr, 2, text)


def _speak(stream: TextIO | None, fd: int, text: str) -> None:
    if stream is None:  # its descriptor was closed when the interpreter started
        return
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    if not poller.poll(PATIENCE_S * 1000):
        return  # a full pipe: writing would stop us for as long as nobody reads it
    try:
        with _unstoppable():
            stream.write(text + "\n")
            stream.flush()
    except ValueError:  # closed by somebody
        return
    except OSError:
        # The line is still buffered: the interpreter would try again at its end, fail, and exit with code 120.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
