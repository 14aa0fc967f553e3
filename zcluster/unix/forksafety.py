"""What must not stand in a process that forks: threads, and connections that all its children would share.

A thread does not survive a fork but its locks stay locked; a database connection opened at import would carry the
queries of all workers at once: one user's rows to another.
"""

import os
import socket
import threading
from pathlib import Path


def hazards(known_fds: frozenset[int]) -> list[str]:
    """Name the threads beside this one and the connected sockets not in `known_fds`; empty means safe to fork."""
    return _threads() + _connections(known_fds)


def _threads() -> list[str]:
    python = {thread.native_id: thread.name for thread in threading.enumerate()}
    found = []
    for entry in os.listdir("/proc/self/task"):
        if int(entry) == os.getpid():
            continue
        try:
            name = python.get(int(entry)) or Path(f"/proc/self/task/{entry}/comm").read_text().strip()
        except FileNotFoundError:  # it ended while we looked
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
            with socket.socket(fileno=os.dup(fd)) as sock:
                peer = sock.getpeername()
        except OSError:  # not connected (listening, unbound), or closed by now
            continue
        if peer:  # an unnamed peer is a socketpair within the program: an event loop's self-pipe
            found.append(f"connection to {peer[0]}:{peer[1]}" if isinstance(peer, tuple) else f"connection to {peer}")
    return found
