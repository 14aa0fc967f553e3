"""`--capture-output`: the pipes between what workers print and the service that writes it into our log.

Theory of operation. Each worker has a named pipe of its own in the run directory, so that its lines are known by it
and meet no others. Before a master has a worker forked it tells the launcher, which makes `out-ID` and holds it open
for reading. The worker waits for that name, writes down who it is (`who-ID`), and puts the pipe in the place of 1 and
2; whatever it executes inherits it. The service (`captured`) reads, and removes the name when all has been read and
nobody writes any more; the launcher then lets go.

Invariant: from before the first byte until after the last one somebody beside the service holds the reading end. So
no print() meets EPIPE, and what lies in the pipe outlives worker, service and master.
"""

import fcntl
import logging
import os
import sys
import threading
import time
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import Final

from zcluster import current
from zcluster.unix.process import start_time

log = logging.getLogger("zcluster.launcher")

# What may be printed while nobody reads, before print() waits; the most an unprivileged user may ask for.
PIPE_BYTES: Final = 1 << 20
PIPE_WAIT_S: Final = 1.0  # the launcher needs a millisecond; without it the output goes where ours goes
BEGUN_MAX: Final = 8192  # characters of a line that one thread has begun; as many bytes as Python would gather
_PIPE_POLL_S: Final = 0.002


def pipe_path(run_dir: Path, worker: int) -> Path:
    """Where a worker's pipe lies."""
    return run_dir / f"out-{worker}"


def who_path(run_dir: Path, worker: int) -> Path:
    """Where a worker has written down who it is: its name in the log, pid and start time, one a line."""
    return run_dir / f"who-{worker}"


def widen(fd: int) -> None:
    """Let a pipe hold PIPE_BYTES; one that may not be so large does what it can."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:  # pipe-max-size or pipe-user-pages-soft of pipe(7)
        pass


@dataclass
class Pipes:
    """The reading ends that a launcher holds; used by its thread."""

    _held: list[int] = field(default_factory=list)

    def make(self, run_dir: Path, worker: int) -> None:
        """Make a worker's pipe; it has its name once it is held. The worker says what it means if it has none."""
        path = pipe_path(run_dir, worker)
        if path.exists():  # asked for by a master that died, and again by the next
            return
        draft = path.with_name(f"new-{worker}")
        try:
            os.mkfifo(draft, 0o600)
            fd = os.open(draft, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
            self._held.append(fd)
            widen(fd)
            draft.rename(path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            log.error("cannot make %s: %s", path, error.strerror)

    def look(self) -> None:
        """Let go of those whose name is gone: all that was in them has been read."""
        for fd in [fd for fd in self._held if not os.fstat(fd).st_nlink]:
            self._held.remove(fd)
            os.close(fd)


def begin(run_dir: Path, worker: int, who: str) -> bool:
    """In a newborn worker: have its stdout and stderr go into its pipe. False when there is none."""
    path = pipe_path(run_dir, worker)
    deadline = time.monotonic() + PIPE_WAIT_S
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(_PIPE_POLL_S)
    try:
        # A reading end of our own: should the launcher be killed too, a print() still meets no EPIPE.
        held = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        who_path(run_dir, worker).write_text(f"{who}\n{os.getpid()}\n{start_time(os.getpid())}\n", encoding="utf-8")
        pipe = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        kept = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in (1, 2)]
    except OSError:
        return False
    for fd in (1, 2):
        os.dup2(pipe, fd)
    os.close(pipe)
    current.streams = (kept[0], kept[1])
    current.fds += [held, *kept]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # else the app has put something of its own there
            stream.reconfigure(
                line_buffering=True
            )  # for a pipe Python gathers 8 KiB: lines would come late, or never
            _WholeLines(stream)
    return True


class _WholeLines:
    """Has a stream take whole lines from each thread: print() gives it text, blanks and newline one by one.

    It stands in the place of two methods of the stream, so that it does not matter who has taken the stream where.
    """

    def __init__(self, stream: TextIOWrapper) -> None:
        self._write, self._flush = stream.write, stream.flush
        self._begun: dict[int, str] = {}  # by thread; each touches its own entry only
        self._pid = os.getpid()
        vars(stream).update(write=self.write, flush=self.flush)

    def write(self, text: str, /) -> int:
        """As the stream's own, but for the time at which it is seen."""
        if not isinstance(text, str) or text.endswith("\n"):
            begun = self._begun.pop(threading.get_ident(), "")
            self._write(begun + text if begun else text)
        else:
            thread = threading.get_ident()
            begun = self._begun[thread] = self._begun.get(thread, "") + text
            if len(begun) >= BEGUN_MAX:
                self.flush()
        return len(text)

    def flush(self) -> None:
        """What this thread has begun, and in the main thread what all have: nothing comes after its last flush."""
        if os.getpid() != self._pid:  # in a child: what other threads had begun is their process's
            own = self._begun.pop(threading.get_ident(), "")
            self._begun, self._pid = {threading.get_ident(): own}, os.getpid()
        is_main = threading.current_thread() is threading.main_thread()
        for thread in list(self._begun) if is_main else [threading.get_ident()]:
            if begun := self._begun.pop(thread, ""):
                self._write(begun)
        self._flush()


def end() -> None:
    """The launcher is gone, and with it the service soon: what is printed now goes where it went before."""
    for fd, kept in zip((1, 2), current.streams, strict=True):
        if kept >= 0:
            os.dup2(kept, fd)
