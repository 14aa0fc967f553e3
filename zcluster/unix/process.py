"""Processes: births, deaths and identities, from kernel facts only.

Invariant: a process is named by (pid, start), `start` being its start time in clock ticks since boot (proc(5) stat,
field 22): a pid alone may be somebody else by the time it is used.
"""

import ctypes
import fcntl
import os
import select
import signal
import struct
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from zcluster.errors import SpawnError

PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 15, 36  # linux/prctl.h
_BIRTH = struct.Struct("qq")
BIRTH_TIMEOUT_MS = 5000
DUMP_SIGNAL = signal.SIGRTMIN + 5  # a worker's faulthandler writes all stacks; far from what apps and libraries use

# Signals the launcher interprets; blocked around every birth until the newborn's handlers stand.
BLOCKED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGCHLD,
)
# What zygotes and workers let in of these; whatever the app executes inherits the rest. They are background processes
# of the terminal: TTIN and TTOU would stop them (a read from /dev/tty, a print under `stty tostop`), and a stopped
# worker is a hung one. While these are blocked, a read fails with EIO and a write goes through (termios(3)).
LET_IN = tuple(number for number in BLOCKED if number not in (signal.SIGTTIN, signal.SIGTTOU))

# What the child runs: sys.path as its starter had it (argv[1], removed), then an entry point of zcluster.start. It
# imports nothing before that: with -c the working directory comes first, and the app may have a json.py of its own.
_EXEC = "import sys; sys.path[:] = eval(sys.argv.pop(1)); from zcluster.start import main; main()"


@dataclass(frozen=True)
class Stat:
    """The fields of /proc/PID/stat we use."""

    pid: int
    state: str  # R S D T t Z X
    ppid: int
    pgrp: int
    start: int
    threads: int
    cpu_ticks: int = 0  # user and system time of all threads, in clock ticks

    @property
    def is_dead(self) -> bool:
        """Has all of it ended? Z is the first thread alone: as long as another runs, all their files are open."""
        return self.state in "ZX" and self.threads <= 1


@dataclass(frozen=True)
class Death:
    """One waitid result: exactly one of `code` and `signal` is set."""

    pid: int
    start: int
    pgrp: int
    code: int | None
    signal: int | None


def stat(pid: int) -> Stat | None:
    """What the kernel says of `pid`, zombies included; None when there is none, or none that we may see."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # the last: proc mounted with hidepid=1
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name may hold blanks and parentheses
    cpu_ticks = int(fields[11]) + int(fields[12])
    return Stat(pid, fields[0], int(fields[1]), int(fields[2]), int(fields[19]), int(fields[17]), cpu_ticks)


def thread_states(pid: int) -> str:
    """The states of all threads of a process, one letter each; empty when there is none, or none that we may see."""
    found = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            text = Path(f"/proc/{pid}/task/{task}/stat").read_text(encoding="ascii", errors="replace")
            found.append(text[text.rindex(")") + 2])
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # it, or a thread of it, has just ended
        pass
    return "".join(found)


def start_time(pid: int) -> int:
    """Start time of `pid` in clock ticks since boot; 0 when there is no such process."""
    found = stat(pid)
    return found.start if found else 0


def is_alive(pid: int, start: int) -> bool:
    """Does this very process still run? (A zombie does not.)"""
    found = stat(pid)
    return found is not None and found.start == start and not found.is_dead


def processes() -> Iterator[Stat]:
    """Every process we can see."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (found := stat(int(entry))) is not None:
            yield found


def has_ended(pidfd: int) -> bool:
    """Has the process behind this pidfd ended? (pidfd_open(2): it becomes readable.)"""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))


def send_signal(pid: int, start: int, number: int) -> bool:
    """Signal exactly this process, by pidfd; False when it is gone, or not ours to signal (a sudo of the app)."""
    if pid <= 0:
        return False  # how the kernel names a process of another PID namespace
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if start_time(pid) != start:
            return False
        signal.pidfd_send_signal(fd, number)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(fd)
    return True


def become_subreaper() -> None:
    """Make orphaned descendants our children (PR_SET_CHILD_SUBREAPER(2const))."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise SpawnError(f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(ctypes.get_errno())}")


def leave_at_once(code: int) -> NoReturn:
    """End this process although threads of it do not come back: all of an interpreter's exit but the wait for them.

    The app's exit functions run once, as ever. If one of them waits for such a thread, whoever set a deadline kills.
    """
    import atexit

    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, nobody reads, or None: as at any exit
            stream.flush()
    os._exit(code)


def set_title(title: str) -> None:
    """Name this process in `ps -o comm` and `top` (at most 15 bytes; the kernel cuts the rest)."""
    ctypes.CDLL(None).prctl(PR_SET_NAME, title.encode()[:15], 0, 0, 0)


def reap() -> Iterator[Death]:
    """Collect every child that has died. Only the launcher calls this: it is the only reaper.

    WNOWAIT first: while the zombie stands, its pid cannot be taken by another process, so its start time and group
    are still to be read.
    """
    while True:
        try:
            seen = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if seen is None:
            return
        found = stat(seen.si_pid)
        killed = seen.si_code in (os.CLD_KILLED, os.CLD_DUMPED)
        death = Death(
            pid=seen.si_pid,
            start=found.start if found else 0,
            pgrp=found.pgrp if found else 0,
            code=None if killed else seen.si_status,
            signal=seen.si_status if killed else None,
        )
        yield death  # the caller acts on it while the pid is still taken
        os.waitid(os.P_PID, seen.si_pid, os.WEXITED | os.WNOHANG)


def kill_children(timeout_s: float) -> bool:
    """SIGKILL every child, adopted ones included, until the kernel says there is none; False when time runs out."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        children = [found for found in processes() if found.ppid == os.getpid()]
        if not children:
            return True
        for child in children:
            if not child.is_dead:
                send_signal(child.pid, child.start, signal.SIGKILL)
        for _death in reap():
            pass
        time.sleep(0.002)  # a kill takes effect within microseconds; the loop is only for children of children
    return False


def thread_count() -> int:
    """Threads of this process as the kernel counts them, libraries' threads included."""
    return len(os.listdir("/proc/self/task"))


def close_fds_but(kept: Iterable[int]) -> None:
    """Close every other descriptor: in a fork, what belongs to the parent. Only in a process of one thread."""
    # Not by counting up to the limit: that can be 10^9, and descriptors above a lowered limit stay open.
    for fd in {int(entry) for entry in os.listdir("/proc/self/fd")}.difference(kept):
        try:
            os.close(fd)
        except OSError:
            pass  # the descriptor of the listing itself


def spawn(role: str, fds: Sequence[int], *, name: str, output_fd: int = -1) -> tuple[int, int]:
    """Exec a fresh interpreter as `role`, with `fds` inherited (under their own numbers from 3 on); (pid, start).

    It starts in a process group of its own (a terminal's Ctrl-C is the launcher's to interpret) and with our signals
    blocked until its handlers stand. Its stdout and stderr are ours, or `output_fd` (3 or higher) when that is given.
    Raises SpawnError when the machine refuses.
    """
    import subprocess  # only for the interpreter flags that multiprocessing passes on too

    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    path = [entry for entry in sys.path if isinstance(entry, str)]  # the import system ignores anything else
    argv = [sys.executable, *flags, "-c", _EXEC, repr(path), f"zcluster-{role}", role, name]
    # A program that has closed its standard streams: their numbers are files of ours here, and must be streams there.
    moved = {fd: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in fds if fd <= 2}
    numbers = [moved.get(fd, fd) for fd in fds]
    argv += [str(fd) for fd in numbers]
    # A background process that reads the terminal would be stopped for it (termios(3)), and taken for hung.
    closed = [fd for fd in (1, 2) if output_fd < 0 and not _is_passed_on(fd)]
    opened = [(0, os.O_RDONLY), *((fd, os.O_WRONLY) for fd in closed)]
    actions: list[Any] = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, flag, 0) for fd, flag in opened]
    actions += [(os.POSIX_SPAWN_DUP2, output_fd, fd) for fd in (1, 2) if output_fd >= 0]
    actions += [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in numbers]  # onto itself: clears close-on-exec (posix_spawn(3))
    try:
        pid = os.posix_spawn(sys.executable, argv, os.environ, file_actions=actions, setpgroup=0, setsigmask=BLOCKED)
    except OSError as error:
        raise SpawnError(f"cannot start the {role} process: {error.strerror}") from error
    finally:
        for fd in moved.values():
            os.close(fd)
    return pid, start_time(pid)


def _is_passed_on(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


def fork_orphan() -> tuple[int, int] | None:
    """Fork a child whose parent becomes the subreaper (double fork). None in the child, (pid, start) in the caller.

    The child leads a process group of its own, and writes its identity into the pipe itself: a reported birth is a
    living process, whatever was killed in between. Raises SpawnError when the kernel refuses (EAGAIN, ENOMEM).
    """
    with _reaping():
        return _fork_orphan()


@contextmanager
def _reaping() -> Iterator[None]:
    """While the app ignores SIGCHLD the kernel reaps by itself: a pid we are about to signal could be another's."""
    ignored = signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN
    if ignored:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        if ignored:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def _fork_orphan() -> tuple[int, int] | None:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        middle = os.fork()
    except OSError as error:
        os.close(reader)
        os.close(writer)
        raise SpawnError(f"cannot fork a worker: {error.strerror}") from error
    if middle == 0:
        _be_born(reader, writer)
        return None
    os.close(writer)
    try:
        poller = select.poll()
        poller.register(reader, select.POLLIN)
        # Two forks take milliseconds; a newborn stopped at this very instant must not hold up the others for ever.
        poller.poll(BIRTH_TIMEOUT_MS)
        os.kill(middle, signal.SIGKILL)  # it may be stopped too; not yet waited for, its pid is still its own
        os.waitpid(middle, 0)
        birth = os.read(reader, _BIRTH.size) if poller.poll(0) else b""
    finally:
        os.close(reader)  # one that comes to life after this finds nobody to report to, and ends
    if len(birth) != _BIRTH.size:
        raise SpawnError("cannot fork a worker: it ended, or was stopped, before it was born")
    pid, start = _BIRTH.unpack(birth)
    return int(pid), int(start)


def _be_born(reader: int, writer: int) -> None:
    """The two steps of the new side: the intermediate ends here, the orphan returns."""
    try:
        if os.fork():
            os._exit(0)
        os.setpgid(0, 0)  # before it is known: what the death of the zygote leaves in *its* group is ended
        os.close(reader)
        os.write(writer, _BIRTH.pack(os.getpid(), start_time(os.getpid())))
        os.close(writer)
    except OSError:  # no process left, or the caller has given us up: nobody may go on as a second zygote
        os._exit(os.EX_OSERR)
