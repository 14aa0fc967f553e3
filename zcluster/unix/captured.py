"""What workers have printed, line by line into our log: the reading side of `capture`, for the output service.

Theory of operation. A pipe is looked into with tee(2), which copies and takes nothing away; whole lines are written
to the log, and only then as many bytes are taken out of the pipe. So the pipe is all the state there is: a service
that is killed has lost nothing, and torn nothing; at worst the next one writes a batch again. The beginning of a line
stays in the pipe until its end has come, the line is as long as one of ours may be, or PARTIAL_S have passed.

A pipe is at its end when tee(2) finds neither bytes nor writers and its worker has ended; then its name is removed,
which tells the launcher. As long as some descendant of the worker has it open, it is read.

Invariant: no byte is taken out of a pipe before its line has been given to the log.
"""

import ctypes
import errno
import logging
import os
import select
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zcluster.unix import process
from zcluster.unix.capture import who_path, widen
from zcluster.unix.loglines import CUT, Style, printed
from zcluster.unix.logs import Log

log = logging.getLogger("zcluster.output")

LOOK_S: Final = 0.25  # between two looks for new pipes: their first line may come so late
PARTIAL_LOOK_S: Final = 0.05  # between two looks whether the end of a line has come
PARTIAL_S: Final = 5.0  # a prompt, or a line whose end was lost, is written after so long
PARTIAL_DEAD_S: Final = 0.5  # when only descendants of its worker could write that end
BATCH_BYTES: Final = 1 << 16  # of one worker, before the next one's turn
PIECE_BYTES: Final = 3840  # of a line whose end is not in sight: with its prefix no longer than one of ours may be
LEAVE_S: Final = 4.0  # of the 5 s that the launcher gives a service to leave
UNBORN_S: Final = 60.0  # and the time to boot: a worker that was not born by then will not be

_SPLICE_F_NONBLOCK: Final = 2  # linux/splice.h; the os module has splice(2) only


@dataclass
class _Pipe:
    """One worker's."""

    fd: int
    path: Path
    who: str = ""
    pid: int = 0
    start: int = 0
    is_quiet: bool = False  # poll(2) would tell it for ever: the beginning of a line is in it, or it has no writers
    waiting: int = 0  # bytes of a line whose end has not come
    since: float = 0.0  # ... which came then


class Captured:
    """Used by the one thread of the service. `unborn_s`: how long a worker may take from its order to its birth."""

    def __init__(self, run_dir: Path, log: Log, style: Style, unborn_s: float = UNBORN_S) -> None:
        self._run_dir, self._log, self._style, self._unborn_s = run_dir, log, style, unborn_s
        self._pipes: dict[int, _Pipe] = {}  # by the worker's id
        self._look_at = 0.0
        self._copy_r, self._copy_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        widen(self._copy_w)
        self._tee = ctypes.CDLL(None, use_errno=True).tee
        self._tee.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint)
        self._tee.restype = ctypes.c_ssize_t

    def run(self, stop_fd: int) -> None:
        """Read until `stop_fd` is readable or closed, and then until all pipes are at their end, or for LEAVE_S."""
        leave_at = float("inf")
        self._log.mend()
        while True:
            now = time.monotonic()
            is_leaving = leave_at < float("inf")
            if now >= self._look_at or is_leaving:
                self._look_at = now + LOOK_S
                self._find()
            for worker in list(self._pipes):
                self._read(worker, now, is_last=now >= leave_at)
            if now >= leave_at or (is_leaving and not self._pipes):
                return
            if self._wait(-1 if is_leaving else stop_fd):
                leave_at = now + LEAVE_S

    def close(self) -> None:
        """Give the descriptors back."""
        for fd in (self._copy_r, self._copy_w, *(pipe.fd for pipe in self._pipes.values())):
            os.close(fd)
        self._pipes.clear()

    def _find(self) -> None:
        """Open the pipes that are new."""
        try:
            names = os.listdir(self._run_dir)
        except FileNotFoundError:  # an operator has removed it under us
            return
        for name in names:
            worker = int(name[4:]) if name.startswith("out-") and name[4:].isdigit() else -1
            if worker >= 0 and worker not in self._pipes:
                path = self._run_dir / name
                try:
                    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
                except OSError as error:
                    log.warning("cannot read %s: %s; trying again", path, error.strerror)
                    continue
                self._pipes[worker] = _Pipe(fd, path)

    def _wait(self, stop_fd: int) -> bool:
        """Until there is something to read, or the next look is due; true when it is time to stop."""
        poller = select.poll()
        if stop_fd >= 0:
            poller.register(stop_fd, select.POLLIN)
        for pipe in self._pipes.values():
            if not pipe.is_quiet:
                poller.register(pipe.fd, select.POLLIN)
        is_soon = stop_fd < 0 or any(pipe.waiting for pipe in self._pipes.values())
        return stop_fd in dict(poller.poll((PARTIAL_LOOK_S if is_soon else LOOK_S) * 1000))

    def _read(self, worker: int, now: float, *, is_last: bool) -> None:
        """Write and take a batch of whole lines, or see that there is none."""
        pipe = self._pipes[worker]
        data = self._copy(pipe.fd)
        if not pipe.pid:  # it is written down before anything can be printed
            self._learn(worker, pipe)
        count, goes_on = self._whole(pipe, data, now, is_last=is_last) if data else (0, False)
        pipe.is_quiet = data is not None and not count
        if data and count:
            self._write(pipe, data[:count], goes_on=goes_on)
            _take(pipe.fd, count)
            pipe.waiting = 0
        elif data == b"" and self._is_over(pipe) and self._copy(pipe.fd) == b"":  # its last words come before its end
            self._forget(worker)

    def _copy(self, fd: int) -> bytes | None:
        """What a pipe holds, left where it is; empty: nothing, and nobody writes; None: nothing at the moment."""
        count = self._tee(fd, self._copy_w, BATCH_BYTES, _SPLICE_F_NONBLOCK)
        if count < 0:
            number = ctypes.get_errno()
            if number in (errno.EAGAIN, errno.EINTR):
                return None
            raise OSError(number, f"tee: {os.strerror(number)}")
        copy = b""
        while len(copy) < count:
            copy += os.read(self._copy_r, count - len(copy))
        return copy

    def _whole(self, pipe: _Pipe, data: bytes, now: float, *, is_last: bool) -> tuple[int, bool]:
        """How many of these bytes are to be written now, and whether their line goes on."""
        whole = data.rfind(b"\n") + 1
        if whole:
            return whole, False
        if len(data) != pipe.waiting:
            pipe.waiting, pipe.since = len(data), now
        if len(data) >= PIECE_BYTES:
            return PIECE_BYTES, True
        if is_last or _has_hung_up(pipe.fd):
            return len(data), False
        # A pipe that was opened after its last writer had gone tells of no hang-up.
        patience_s = PARTIAL_S if process.is_alive(pipe.pid, pipe.start) else PARTIAL_DEAD_S
        return (len(data), True) if now >= pipe.since + patience_s else (0, False)

    def _write(self, pipe: _Pipe, data: bytes, *, goes_on: bool) -> None:
        if self._log.lost and self._log.is_writable():
            log.warning("they were not read in time; among them is output of workers")
        lines = (data + CUT.encode() if goes_on else data.removesuffix(b"\n")).split(b"\n")
        self._log.put(printed(lines, pipe.who or "worker", pipe.pid, self._style, time.time()))

    def _learn(self, worker: int, pipe: _Pipe) -> None:
        try:
            who, pid, start = who_path(self._run_dir, worker).read_text(encoding="utf-8").split("\n")[:3]
            pipe.who, pipe.pid, pipe.start = who, int(pid), int(start)
        except (OSError, ValueError):
            pass  # not born yet, or it is writing this very moment

    def _is_over(self, pipe: _Pipe) -> bool:
        """Whether nobody will write any more."""
        if pipe.pid:
            return not process.is_alive(pipe.pid, pipe.start)
        try:
            return time.time() - pipe.path.stat().st_ctime > self._unborn_s
        except FileNotFoundError:
            return True

    def _forget(self, worker: int) -> None:
        pipe = self._pipes.pop(worker)
        pipe.path.unlink(missing_ok=True)
        who_path(self._run_dir, worker).unlink(missing_ok=True)
        os.close(pipe.fd)


def _has_hung_up(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, 0)
    return bool(poller.poll(0))


def _take(fd: int, count: int) -> None:
    """Take out of the pipe what has been written. Nobody else reads, so it is there."""
    while count:
        count -= len(os.read(fd, count))
