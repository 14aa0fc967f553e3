"""What must not stand in a process that forks: threads, and connections that all its children would share.

A thread does not survive a fork but its locks stay locked; a database connection opened at import would carry the
queries of all workers at once: one user's rows to another.
"""

import os
import socket
import stat
import threading
import time
from pathlib import Path

# A thread that was joined has left Python but not yet the kernel: one in three is still listed right after join(),
# for as long as a busy machine does not let it run. An app that leaves threads of a C library starts so much later.
ENDING_S = 0.5


def hazards(known_fds: frozenset[int]) -> list[str]:
    """Name the threads beside this one and the connected sockets not in `known_fds`; empty means safe to fork.

    May wait ENDING_S for threads that are about to end.
    """
    deadline = time.monotonic() + ENDING_S
    while (threads := _threads()) and threading.active_count() == 1 and time.monotonic() < deadline:
        time.sleep(0.001)
    return threads + _connections(known_fds)


def _threads() -> list[str]:
    python = {thread.native_id: thread.name for thread in threading.enumerate()}
    found = []
    for entry in os.listdir("/proc/self/task"):
        if int(entry) == os.getpid():
            continue
        try:
            name = python.get(int(entry)) or Path(f"/proc/self/task/{entry}/comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):  # it ended while we looked
            continue
        found.append(f"thread {name!r}")
    return found


def _connections(known_fds: frozenset[int]) -> list[str]:
    found = []
    for entry in os.listdir("/proc/self/fd"):
        fd = int(entry)
        try:
            if fd in known_fds or not os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                continue
            peer = _peer(fd)
        except OSError:  # not connected (listening, unbound), or closed by now
            continue
        if peer:  # an unnamed peer is a socketpair within the program: an event loop's self-pipe
            found.append(f"connection to {_name(peer)}")
    return found


def _peer(fd: int) -> object:
    """Where a socket is connected to; OSError when it is not."""
    copy = os.dup(fd)
    try:
        sock = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise
    with sock:
        return sock.getpeername()


def _name(peer: object) -> str:
    if isinstance(peer, tuple):
        return f"{peer[0]}:{peer[1]}"
    if isinstance(peer, bytes):  # the abstract namespace of unix(7), as ss(8) shows it
        return peer.replace(b"\0", b"@").decode(errors="replace")
    return str(peer)


def is_connected_below(fd: int, directory: str) -> bool:
    """Is this descriptor a connection to a Unix socket in this directory? (libzmq keeps its own to itself.)"""
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            return False
        with socket.socket(fileno=os.dup(fd)) as sock:
            peer = sock.getpeername()
    except OSError:
        return False
    return isinstance(peer, str) and peer.startswith(directory)
