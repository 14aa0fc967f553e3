"""Signals as events: a handler that does nothing, and a file descriptor that says which signal came.

Invariant: no decision is made inside a signal handler. (unicorn's HACKING: as little time as possible in there.)
SIG_IGN is not used before the very end: children of the app would inherit it.
"""

import os
import select
import signal
import threading
from collections.abc import Iterable
from types import FrameType

# What masters, zygotes, workers and services hear of without being ended by it: only the launcher interprets signals
# (a worker's own TERM excepted).
HEARD = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """Python writes the signal's number to the wake-up descriptor before it calls this."""


class Signals:
    """The signals of this process; make it in the main thread, once per process (a fork needs a new one)."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._numbers = tuple(numbers)
        # Whoever started us wanted these not to come: nohup(1) for SIGHUP.
        self.ignored = frozenset(n for n in self._numbers if signal.getsignal(n) is signal.SIG_IGN)
        for number in self._numbers:
            signal.signal(number, _do_nothing)
            signal.siginterrupt(number, False)

    def unblock(self, more: Iterable[int] = ()) -> None:
        """The handlers stand: let what was kept pending since before the fork or exec come in, and `more`."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*self._numbers, *more})

    def rearm(self) -> None:
        """Take the wake-up descriptor back: the app may have had an event loop of its own while it was imported."""
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in self._numbers:
            signal.signal(number, _do_nothing)

    def fileno(self) -> int:
        """Readable when a signal has come."""
        return self._reader

    def wait(self, timeout_s: float) -> None:
        """Return when a signal has come, or after `timeout_s`; what came is forgotten."""
        poller = select.poll()
        poller.register(self._reader, select.POLLIN)
        poller.poll(timeout_s * 1000)
        self.take()

    def take(self) -> list[int]:
        """The numbers of the signals that came, in order."""
        try:
            return [number for number in os.read(self._reader, 4096) if number in self._numbers]
        except BlockingIOError:
            return []

    def reset_in_forks(self) -> None:
        """Give every process that the application forks the default actions; to be called once.

        The signals are blocked over the fork: one that is sent to the child before its actions are reset would be
        swallowed by our handler, and written into the pipe it shares with us, as if it had been sent to us.
        """
        owner = os.getpid()
        forking = threading.local()  # several threads may fork at once

        def block() -> None:
            if os.getpid() == owner:  # a fork of a fork has handlers of its own
                forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers)

        def restore() -> None:
            mask = forking.__dict__.pop("mask", None)
            if mask is not None:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)

        def reset() -> None:
            if "mask" in forking.__dict__:
                self.close()
                for number in self._numbers:
                    signal.signal(number, signal.SIG_DFL)
                restore()

        os.register_at_fork(before=block, after_in_parent=restore, after_in_child=reset)

    def ignore(self) -> None:
        """The exit code stands: nothing that comes now may change it.

        A Python that exits gives signals their default action back, and ends by one that comes then: a clean stop
        would look like a death. This is process-wide; a mask is not, and the app may have threads. A child that one
        of the app's atexit functions starts does inherit it, and is ended by SIGKILL instead.
        """
        for number in self._numbers:
            signal.signal(number, signal.SIG_IGN)

    def close(self) -> None:
        """Give the descriptors back; the handlers stay."""
        signal.set_wakeup_fd(-1)
        os.close(self._reader)
        os.close(self._writer)


def forget_inherited() -> None:
    """In a fork: the parent's wake-up pipe is not ours; closing the descriptors is the caller's business."""
    signal.set_wakeup_fd(-1)


def name_of(number: int) -> str:
    """`SIGKILL`, or `signal 40` for a real-time one."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def has_terminal() -> bool:
    """Is there a controlling terminal, whose end SIGHUP announces (tty(4))?"""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
