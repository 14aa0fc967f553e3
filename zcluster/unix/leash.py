"""The leash: how a process is ended when Python in it can no longer run and nobody is left to kill it.

One FIFO per cluster instance. Launcher and master hold it open for reading and writing; every other process opens its
own file description for reading and asks the kernel for SIGKILL on I/O (fcntl(2) F_SETOWN, F_SETSIG, O_ASYNC). When
the last of launcher and master is gone, the writing side closes, the kernel signals every reader, and they end: in C
code, in a stopped state, in an endless regular expression. F_SETOWN belongs to the open file description, hence one
open per wearer and never an inherited one.

Invariant: nobody ever writes into it.
"""

import fcntl
import os
import signal
from pathlib import Path

F_SETSIG = 10  # linux/fcntl.h; the fcntl module exports it only from Python 3.13 on


def make(path: Path) -> None:
    """Create the FIFO."""
    os.mkfifo(path, 0o600)


def hold(path: Path) -> int:
    """Launcher and master: keep everybody who wears it alive. O_RDWR never waits for the other side (fifo(7))."""
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


def wear(path: Path) -> int:
    """Every other process: be killed when no holder is left. Look at the launcher's pidfd *after* this call."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(fd, F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    return fd
