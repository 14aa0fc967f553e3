"""Listening sockets: bound once, by the launcher, inherited by every worker.

Invariant: they stay open as long as the cluster runs, so no death, replacement or scaling refuses a connection.
"""

import errno
import os
import socket
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zcluster.addresses import Address, parse_address
from zcluster.errors import SpawnError

_WHY = {
    errno.EADDRINUSE: "address already in use; stop what listens there, or give another with --bind",
    errno.EACCES: "permission denied; ports below 1024 need root or CAP_NET_BIND_SERVICE",
    errno.EADDRNOTAVAIL: "this machine has no such address",
}


@dataclass(frozen=True)
class Listener:
    """A bound, listening, non-blocking socket and what to call it."""

    sock: socket.socket
    url: str
    unlink: Path | None = None  # the socket file we made
    inode: tuple[int, int] | None = None  # its device and inode: by now the path may be another server's

    def close(self) -> None:
        """Close it and remove its file, if it is still the one we made."""
        self.sock.close()
        if self.unlink is not None and _inode(self.unlink) == self.inode:
            self.unlink.unlink(missing_ok=True)


def bind(addresses: Sequence[str], backlog: int) -> list[Listener]:
    """Bind all or none. Raises SpawnError naming the address that was refused and why."""
    listeners: list[Listener] = []
    try:
        for text in addresses:
            listeners.append(_bind_one(text, parse_address(text), backlog))
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _bind_one(text: str, address: Address, backlog: int) -> Listener:
    sock: socket.socket | None = None
    try:
        if address.kind == "fd":
            sock = _inherited(address.fd)
        elif address.kind == "unix":
            _clear_stale(Path(address.path))
            sock = socket.socket(socket.AF_UNIX)
            sock.bind(address.path)
        else:
            family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
            family, target = _resolve(address, family)
            sock = socket.socket(family)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # restart beside old TIME_WAIT connections
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # [::] and 0.0.0.0 are two addresses
            sock.bind(target)
        sock.listen(backlog)
    except OSError as error:
        if sock is not None:
            sock.close()
        why = _WHY.get(error.errno or 0, error.strerror or str(error))
        raise SpawnError(f"cannot listen on {text}: {why}") from error
    sock.setblocking(False)  # all workers share this file description: one that loses the race must not block
    path = Path(address.path) if address.kind == "unix" else None
    return Listener(sock, _url(sock), path, _inode(path) if path else None)


def _resolve(address: Address, wanted: socket.AddressFamily) -> tuple[socket.AddressFamily, Any]:
    try:
        found = socket.getaddrinfo(address.host, address.port, 0, socket.SOCK_STREAM, 0, socket.AI_PASSIVE)
    except UnicodeError:  # a label that no name may have: too long or empty
        raise OSError(errno.EINVAL, "not a name a machine can have") from None
    family, _kind, _protocol, _name, target = next((f for f in found if f[0] == wanted), found[0])
    return family, target


def _inherited(fd: int) -> socket.socket:
    """A socket we were started with. The number itself must not reach our children, who close only what they know."""
    copy = os.dup(fd)
    try:
        sock = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise
    os.set_inheritable(fd, False)
    return sock


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _clear_stale(path: Path) -> None:
    """Remove a socket file nobody listens on (its owner was killed); anything else stays and makes bind fail."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # the queue of a busy server is full
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except OSError:
            return  # somebody's, whatever it is: bind says so


def _url(sock: socket.socket) -> str:
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix:{name}"
    host = f"[{name[0]}]" if sock.family == socket.AF_INET6 else name[0]
    return f"http://{host}:{name[1]}"
