"""Listening sockets: bound once, by the launcher, inherited by every worker.

Invariant: they stay open as long as the cluster runs, so no death, replacement or scaling refuses a connection.

A socket file belongs to whoever listens on it. Its owner was killed when nobody does, and the next start takes the
path over: looking and binding are one step, under a lock on the directory, or two starts at once would both find the
file stale and the second remove the first one's. Nobody finds ours stale while we listen, so removing it comes before
closing.
"""

import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from zcluster.addresses import Address, parse_address
from zcluster.errors import SpawnError

SYSTEMD_FIRST_FD: Final = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)
# Two starts on one path: the first is done within milliseconds. Longer is somebody else's lock.
LOCK_TIMEOUT_S: Final = 5.0
_LOCK_POLL_S: Final = 0.01

_WHY: Final = {
    errno.EADDRINUSE: "address already in use; stop what listens there, or give another with --bind",
    errno.EADDRNOTAVAIL: "this machine has no such address",
    errno.EBADF: "there is no such descriptor (Bad file descriptor); did whoever started this pass it on?",
    errno.ENOTSOCK: "it is no socket (Socket operation on non-socket)",
}
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)


@dataclass(frozen=True)
class Listener:
    """A bound, listening, non-blocking socket and what to call it."""

    sock: socket.socket
    url: str
    unlink: Path | None = None  # the socket file we made
    inode: tuple[int, int] | None = None  # its device and inode: by now the path may be another server's

    def close(self) -> None:
        """Remove its file, if it is still the one we made, and close it. A second call does nothing."""
        # In this order: while the socket is open no other file gets its inode, and nobody finds it stale.
        if self.sock.fileno() >= 0 and self.unlink is not None and _inode(self.unlink) == self.inode:
            with suppress(PermissionError):  # bound by root, in a directory that is not of the --user it became
                self.unlink.unlink(missing_ok=True)
        self.sock.close()

    def give_to(self, uid: int, gid: int) -> None:
        """Make the socket file this user's, who is to remove it; nothing for a socket that we did not make."""
        if self.unlink is not None:
            os.chown(self.unlink, uid, gid, follow_symlinks=False)


def bind(
    addresses: Sequence[str],
    backlog: int,
    *,
    unix_mode: int | None = None,
    tls: bool = False,
    passed: Sequence[Listener] = (),
) -> list[Listener]:
    """Bind all or none. Raises SpawnError naming the address that was refused and why.

    `unix_mode`: permissions of socket files; None leaves it to the umask. `tls` only changes the urls. An address
    that one of the `passed` listeners has is served there already, and left out.
    """
    listeners: list[Listener] = []
    taken = [listener.sock.getsockname() for listener in passed]
    try:
        for text in addresses:
            try:
                listener = _bind_one(parse_address(text), backlog, unix_mode, tls, taken)
            except OSError as error:
                raise SpawnError(f"cannot listen on {text}: {_why(text, error)}") from error
            if listener is not None:
                listeners.append(listener)
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def from_systemd(environ: MutableMapping[str, str], pid: int, *, tls: bool = False) -> list[Listener]:
    """Take over the sockets that a socket unit has passed to process `pid`; the variables that say so are removed.

    Empty when there are none. Raises SpawnError naming the descriptor that cannot be served, and why.
    """
    # Removed also when they are for another process: one that we start might be given its number.
    found = {name: environ.pop(f"LISTEN_{name}", "") for name in ("PID", "FDS", "FDNAMES", "PIDFDID")}
    if found["PID"] != str(pid):
        return []
    count = found["FDS"]
    if not (count.isascii() and count.isdigit() and len(count) <= 9):
        raise SpawnError(f"LISTEN_FDS is {count!r:.200}, but should be the number of sockets that systemd passes")
    listeners: list[Listener] = []
    names = found["FDNAMES"].split(":")
    for number in range(int(count)):
        fd = SYSTEMD_FIRST_FD + number
        try:
            sock = _take_over(fd, backlog=0)
        except OSError as error:
            for listener in listeners:
                listener.close()
            name = f" ({names[number]})" if number < len(names) and names[number] else ""
            raise SpawnError(f"cannot listen on descriptor {fd}{name} from systemd: {_why('', error)}") from error
        listeners.append(Listener(sock, _url(sock, tls)))
    return listeners


def _bind_one(
    address: Address, backlog: int, unix_mode: int | None, tls: bool, taken: Sequence[Any]
) -> Listener | None:
    """Bind one address; None when it is among those taken. OSError as it comes."""
    if address.kind == "fd":
        sock = _take_over(address.fd, backlog)
        return Listener(sock, _url(sock, tls))
    if address.kind == "unix":
        return None if address.path in taken else _bind_unix(Path(address.path), backlog, unix_mode, tls)
    family, target = _resolve(address, socket.AF_INET6 if ":" in address.host else socket.AF_INET)
    if target in taken:
        return None
    sock = socket.socket(family)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # restart beside old TIME_WAIT connections
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # [::] and 0.0.0.0 are two addresses
        sock.bind(target)
        sock.listen(backlog)
        sock.setblocking(False)  # all workers share this file description: who loses the race must not block
        return Listener(sock, _url(sock, tls))
    except BaseException:
        sock.close()
        raise


def _resolve(address: Address, wanted: socket.AddressFamily) -> tuple[socket.AddressFamily, Any]:
    try:
        found = socket.getaddrinfo(address.host, address.port, 0, socket.SOCK_STREAM, 0, socket.AI_PASSIVE)
    except UnicodeError:  # a label that no name may have: too long or empty
        raise OSError(errno.EINVAL, "not a name a machine can have") from None
    family, _kind, _protocol, _name, target = next((f for f in found if f[0] == wanted), found[0])
    return family, target


# ---- socket files --------------------------------------------------------------------------------------------------
def _bind_unix(path: Path, backlog: int, mode: int | None, tls: bool) -> Listener:
    sock = socket.socket(socket.AF_UNIX)
    try:
        with _alone_in(path.parent):
            _clear_stale(path)
            sock.bind(str(path))
            inode = _inode(path)
            try:
                if mode is not None:
                    path.chmod(mode)  # before listen(): until then nobody can connect
                sock.listen(backlog)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
        sock.setblocking(False)
        return Listener(sock, _url(sock, tls), path, inode)
    except BaseException:
        sock.close()
        raise


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other starts out of this directory; OSError when one does not let us in within LOCK_TIMEOUT_S."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:  # ours to write but not to list: then without a lock, as everybody else does it
        yield
        return
    try:
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while not _lock(fd):
            if time.monotonic() >= deadline:
                raise OSError(errno.EAGAIN, f"another program holds a lock (flock) on the directory {folder}")
            time.sleep(_LOCK_POLL_S)
        yield
    finally:
        os.close(fd)


def _lock(fd: int) -> bool:
    """Lock a directory; True also where its file system has no such locks, and nothing can be done about it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


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


# ---- sockets we were started with ----------------------------------------------------------------------------------
def _take_over(fd: int, backlog: int) -> socket.socket:
    """A socket we were started with, moved out of the way of our children, who close only what they know.

    One that does not listen yet does so with `backlog`, 0: is refused. Whoever made one that does has chosen its
    queue. Raises OSError saying what is wrong with it; it is left as it was then.
    """
    copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, SYSTEMD_FIRST_FD)
    try:
        sock = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise
    try:
        if sock.type != socket.SOCK_STREAM or sock.family not in _FAMILIES:
            kind, family = (getattr(value, "name", value) for value in (sock.type, sock.family))
            raise OSError(errno.EINVAL, f"it is {family}, {kind}, and no stream socket of IPv4, IPv6 or Unix")
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            _require_bound(sock, backlog)
            sock.listen(backlog)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    _give_up(fd)
    return sock


def _require_bound(sock: socket.socket, backlog: int) -> None:
    """Raise for what listen(2) would refuse with a number, or accept and listen on a port nobody knows."""
    try:
        sock.getpeername()
    except OSError:
        pass
    else:
        raise OSError(errno.EINVAL, "it is a connection, not a listening socket (in a socket unit: set Accept=no)")
    if not backlog:
        raise OSError(errno.EINVAL, "it does not listen (in a socket unit: set Accept=no)")
    name = sock.getsockname()
    if not name or (isinstance(name, tuple) and name[1] == 0):
        raise OSError(errno.EINVAL, "it is bound to no address")


def _give_up(fd: int) -> None:
    """Close the original: the port must not stay open beside the listener. A standard stream becomes /dev/null."""
    if fd > 2:
        os.close(fd)
        return
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, fd)
    os.close(null)


# ---- texts ---------------------------------------------------------------------------------------------------------
def _why(text: str, error: OSError) -> str:
    """The reason for an operator."""
    if error.errno == errno.EACCES:
        if text.startswith("unix:"):
            return "permission denied; the directory must be writable for this user"
        return "permission denied; ports below 1024 need root or CAP_NET_BIND_SERVICE"
    return _WHY.get(error.errno or 0, error.strerror or str(error))


def _url(sock: socket.socket, tls: bool) -> str:
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        if isinstance(name, bytes):  # the abstract namespace of unix(7), as ss(8) shows it
            name = name.replace(b"\0", b"@").decode(errors="replace")
        return f"unix:{name}"
    host = f"[{name[0]}]" if sock.family == socket.AF_INET6 else name[0]
    return f"{'https' if tls else 'http'}://{host}:{name[1]}"
