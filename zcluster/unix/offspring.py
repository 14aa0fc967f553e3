"""A process the launcher starts, with its control channel: by exec, or by fork when the app is only in memory.

Invariant: the child's first message is its Boot, and no descriptor of the launcher's but the named ones reaches it.
"""

import os
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zcluster.core.messages import Boot
from zcluster.errors import SpawnError
from zcluster.unix import process
from zcluster.unix.channel import Channel


@dataclass
class Child:
    """`since` is the monotonic time of its birth."""

    pid: int
    start: int
    channel: Channel
    since: float


def exec_child(role: str, name: str, boot: Boot, fds: Sequence[int], now: float, output_fd: int = -1) -> Child:
    """Start a fresh interpreter, its output going to `output_fd` (-1: where ours goes).

    Raises SpawnError when the machine refuses.
    """
    ours, theirs = _pair(role)
    try:
        with theirs:
            pid, start = process.spawn(role, [theirs.fileno(), *fds], name=name, output_fd=output_fd)
    except SpawnError:
        ours.close()
        raise
    ours.send(boot)
    return Child(pid, start, ours, now)


def fork_child(main: Callable[[int], int], boot: Boot, fds: Sequence[int], now: float, output_fd: int = -1) -> Child:
    """Fork; the child keeps only `fds` and ends with the result of `main(control fd)`. Raises SpawnError.

    Its output goes to `output_fd` (-1: where ours goes).
    """
    ours, theirs = _pair("forked")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, process.BLOCKED)
    try:
        pid = os.fork()
    except OSError as error:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        ours.close()
        theirs.close()
        raise SpawnError(f"cannot fork the zygote: {error.strerror}") from error
    if pid == 0:
        os.setpgid(0, 0)
        if output_fd >= 0:
            os.dup2(output_fd, 1)
            os.dup2(output_fd, 2)
        control_fd = theirs.detach()
        process.close_fds_but((0, 1, 2, control_fd, *fds))
        os._exit(main(control_fd))
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    ours.send(boot)
    return Child(pid, process.start_time(pid), ours, now)


def _pair(role: str) -> tuple[Channel, socket.socket]:
    try:
        return Channel.pair()
    except OSError as error:
        raise SpawnError(f"cannot make the control channel of the {role} process: {error.strerror}") from error
