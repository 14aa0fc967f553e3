"""Signals as events: a handler that does nothing, and a file descriptor that says which signal came.

Invariant: no decision is made inside a signal handler. (unicorn's HACKING: as little time as possible in there.)
SIG_IGN is never used: children of the app would inherit it.
"""

import os
import signal
from collections.abc import Iterable
from types import FrameType


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """Python writes the signal's number to the wake-up descriptor before it calls this."""


class Signals:
    """The signals of this process; make it in the main thread, once per process (a fork needs a new one)."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._numbers = tuple(numbers)
        for number in self._numbers:
            signal.signal(number, _do_nothing)
            signal.siginterrupt(number, False)

    def unblock(self, more: Iterable[int] = ()) -> None:
        """The handlers stand: let what was kept pending since before the fork or exec come in, and `more`."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*self._numbers, *more})

    def fileno(self) -> int:
        """Readable when a signal has come."""
        return self._reader

    def take(self) -> list[int]:
        """The numbers of the signals that came, in order."""
        try:
            return [number for number in os.read(self._reader, 4096) if number in self._numbers]
        except BlockingIOError:
            return []

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
