"""What a cluster has left behind: processes that hold its log or its listening sockets, and sockets that listen.

Every process of a cluster, and every program that its app starts, inherits the launcher's stdout and stderr. When
these are a file of the cluster's own, whoever has that file open for writing belongs to it: also a forked process,
whose environment tells nothing, and one that has left its parents and its process group.

Invariant: only kernel facts, by inode: neither a pid nor a port number that has got a new owner is ever blamed.
"""

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zcluster.unix import process

_LISTEN = "0A"  # TCP_LISTEN, proc(5) net/tcp
_ACCEPTS = 1 << 16  # __SO_ACCEPTCON, proc(5) net/unix
_SOCKET = re.compile(r"socket:\[(\d+)\]")


@dataclass(frozen=True)
class Left:
    """A process that is still there; `start` tells it from a later one with its number."""

    pid: int
    start: int
    holds: str  # "log" or "port"

    def __str__(self) -> str:
        try:
            words = Path(f"/proc/{self.pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            words = []
        command = " ".join(word.decode(errors="replace") for word in words if word)
        return (
            f"process {self.pid} still has the cluster's {self.holds} open: {command[-200:] or 'it is just ending'}"
        )


def holders(log: os.stat_result, sockets: frozenset[int]) -> Iterator[Left]:
    """Every living process but ours that has this file open for writing, or one of these sockets (by inode)."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        start = process.start_time(int(entry))  # before we look: whoever has this number later is another
        holds = _holds(f"/proc/{entry}/fd", log, sockets)
        if holds:
            yield Left(int(entry), start, holds)


def _holds(folder: str, log: os.stat_result, sockets: frozenset[int]) -> str:
    try:
        paths = [f"{folder}/{number}" for number in os.listdir(folder)]
    except OSError:  # it has ended, or is another user's
        return ""
    for path in paths:
        try:
            found = _SOCKET.fullmatch(os.readlink(path))
            if found:
                if int(found[1]) in sockets:
                    return "port"
            elif os.lstat(path).st_mode & stat.S_IWUSR and os.path.samestat(Path(path).stat(), log):
                return "log"  # whoever only reads it (`tail -f`) is not of the cluster
        except OSError:  # closed while we looked
            continue
    return ""


def listening() -> frozenset[int]:
    """The inodes of all sockets that listen in this network namespace."""
    found = set()
    for name in ("tcp", "tcp6"):
        for fields in _table(name):
            if fields[3] == _LISTEN:
                found.add(int(fields[9]))
    for fields in _table("unix"):
        if int(fields[3], 16) & _ACCEPTS:
            found.add(int(fields[6]))
    return frozenset(found)


def listening_of(pid: int) -> frozenset[int]:
    """Those of them that a process has open; none when it has ended."""
    own = set()
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return frozenset()
    for number in numbers:
        try:
            found = _SOCKET.fullmatch(os.readlink(f"/proc/{pid}/fd/{number}"))
        except OSError:  # closed while we looked
            continue
        if found:
            own.add(int(found[1]))
    return listening() & own


def _table(name: str) -> list[list[str]]:
    try:
        lines = Path(f"/proc/net/{name}").read_text(encoding="ascii", errors="replace").splitlines()
    except FileNotFoundError:  # a kernel without IPv6
        return []
    return [line.split() for line in lines[1:]]
