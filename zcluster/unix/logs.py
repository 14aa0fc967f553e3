"""Our log: one line per event, each begun with who says it, on stderr or in a file, and in the journal.

Invariant: logging never stops a process. A line is one write of at most 4096 bytes, which a pipe takes whole or not
at all (PIPE_BUF of pipe(7)), so lines of several processes never mix; and it is only written when it can be taken.
When whoever reads our stderr has stopped reading, lines are dropped and counted, and the count is told later.

A log file is opened for each event and closed again: whoever has moved it away finds nobody who holds the old one,
and nothing has to be told to anybody. What cannot be written to it goes to stderr, which is open whatever happens.
Only the logger "zcluster" is configured; the app's logging is its own.
"""

import logging
import os
import select
import signal
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TextIO

from zcluster import current
from zcluster.config import Config
from zcluster.unix.journal import Journal
from zcluster.unix.loglines import LINE_MAX_BYTES, Style, event

# How long a line may wait for its reader. Launcher and master, who must never stand still, wait PATIENCE_SHORT_S.
PATIENCE_S = 5.0
PATIENCE_SHORT_S = 0.1
EARLY_MAX: Final = 100  # events before there is a run directory: what the start has to say

_STREAMS: Final = {"-": 2, "/dev/stderr": 2, "/dev/stdout": 1}


class Log:
    """Where lines go; used by one thread at a time. `target`: a path, or '-' for stderr."""

    def __init__(self, target: str, patience_s: float, journal: Journal | None) -> None:
        self.lost = 0
        self._stream = _STREAMS.get(target, 2)
        self._path = "" if target in _STREAMS else str(Path(target).absolute())  # an application may chdir
        self._patience_s = patience_s
        self._journal = journal
        self._early: list[bytes] = []
        self._failed = 0  # errno of the file's last failure

    def put(self, lines: list[bytes]) -> None:
        """Write the lines of one event, or of several. Neither raises nor waits for longer than its patience."""
        whole = b"".join(lines)
        if self._journal is not None:
            self._journal.write(whole)
        elif len(self._early) < EARLY_MAX:
            self._early.append(whole)
        if not self._path or not self._append(whole):
            for piece in _pieces(lines):
                self._write(piece)

    @property
    def fds(self) -> list[int]:
        """What it holds open."""
        return [] if self._journal is None or self._journal.fd < 0 else [self._journal.fd]

    def keep(self, journal: Journal) -> None:
        """There is a journal from now on; what was said before goes into it too."""
        self._journal = journal
        for whole in self._early:
            journal.write(whole)
        self._early.clear()

    def mend(self) -> None:
        """End the line inside which a process before us was killed: a write of many lines to a file can be cut."""
        if self._path and _is_torn(self._path):
            self._append(b"\n")
        if self._journal is not None and _is_torn(self._journal.path):
            self._journal.write(b"\n")

    def is_writable(self, timeout_s: float = 0.0) -> bool:
        """Can 4096 bytes be written without waiting? An error counts as yes: the write will tell."""
        poller = select.poll()
        poller.register(_original(self._stream), select.POLLOUT)
        return bool(poller.poll(timeout_s * 1000))

    def close(self) -> None:
        """Give back what was opened."""
        if self._journal is not None:
            self._journal.close()

    def _append(self, lines: bytes) -> bool:
        """Append to the file, whoever has that name now; false when that cannot be."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            fd = os.open(self._path, flags, 0o666)
            try:
                while lines:
                    lines = lines[os.write(fd, lines) :]
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno != self._failed:
                self._failed = error.errno or -1
                text = f"zcluster: error: cannot write the log file {self._path}: {error.strerror}; it goes on here\n"
                self._write(text.encode(errors="backslashreplace"))
            return False
        self._failed = 0
        return True

    def _write(self, piece: bytes) -> None:
        # After the first lost line nobody waits again, until the reader is back.
        if not self.is_writable(0.0 if self.lost else self._patience_s):
            self.lost += piece.count(b"\n")
            return
        try:
            with _unstoppable():
                os.write(_descriptor(_original(self._stream)), piece)
        except BlockingIOError:  # another process took the room between our look and our write
            self.lost += piece.count(b"\n")
        except OSError:  # stderr is closed or its reader is gone: there is nowhere to say so
            pass


class _Events(logging.Handler):
    """Ours, of the standard library's kind."""

    def __init__(self, who: str, style: Style, log: Log) -> None:
        super().__init__()
        self.log = log
        self._who, self._style, self._pid = who, style, os.getpid()

    def emit(self, record: logging.LogRecord) -> None:
        if self.log.lost and self.log.is_writable():
            text, lost = "%d log lines were lost", self.log.lost
            note = logging.LogRecord(record.name, logging.WARNING, "", 0, text, (lost,), None)
            self.log.lost = 0
            self.log.put(event(note, self._who, self._pid, self._style))
        self.log.put(event(record, self._who, self._pid, self._style))


def _pieces(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Put as many whole lines into one write as it may have: those of a traceback stay together."""
    piece = b""
    for line in lines:
        if len(piece) + len(line) > LINE_MAX_BYTES:
            yield piece
            piece = b""
        piece += line
    yield piece


def _is_torn(path: str | Path) -> bool:
    """Whether this is a file whose last line has no end."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        found = os.fstat(fd)
        return stat.S_ISREG(found.st_mode) and os.pread(fd, 1, max(0, found.st_size - 1)) not in (b"", b"\n")
    finally:
        os.close(fd)


def _original(stream: int) -> int:
    """Where a stream went before the app's output was captured; the stream itself, if we have lost that."""
    kept = current.streams[stream - 1]
    return kept if kept >= 0 else stream


_own_pipe = -1  # our own description of the pipe that stderr is


def _descriptor(stream: int) -> int:
    """Where to write: this descriptor, or when it is a pipe, a description of our own of it that never blocks.

    O_NONBLOCK on stderr itself would hit all who share it, the operator's shell included. Looked at anew for every
    line, because the app may redirect 2, and a fork may close what it does not know.
    """
    global _own_pipe
    found = os.fstat(stream)
    if not stat.S_ISFIFO(found.st_mode):
        return stream
    try:
        if os.path.samestat(found, os.fstat(_own_pipe)):
            return _own_pipe
    except OSError:
        pass  # not opened yet, or closed by somebody
    try:
        _own_pipe = os.open(f"/proc/self/fd/{stream}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # no reader (ENXIO), no /proc, no descriptor left
        return stream
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


def begin(who: str, config: Config, run_dir: Path | None = None, patience_s: float = PATIENCE_S) -> Log:
    """Send the "zcluster" loggers of this process to the log as `who`; call it again after a fork.

    Without a run directory there is no journal yet: see `Log.keep`.
    """
    ours = logging.getLogger("zcluster")
    for before in ours.handlers:
        if isinstance(before, _Events):
            before.log.close()
    log = Log(config.log_file, patience_s, None if run_dir is None else Journal(run_dir))
    ours.handlers[:] = [_Events(who, config.log_format, log)]
    ours.propagate = False
    ours.setLevel(config.log_level.upper())
    return log


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
