"""The door: listening sockets, and which of the waiting connections this engine takes.

Invariant: a connection that waits in the kernel's queue is never forgotten. Listeners are watched level-triggered
and without EPOLLEXCLUSIVE, so every worker is told of it for as long as it waits; who declines it is told again.

Theory of operation. Every worker has its own epoll over the same listening sockets. All idle ones are told of a new
connection, the first to accept gets it, the others get EAGAIN. Left to itself that is unfair: the worker that is
awake gets nearly all. So before it accepts, a worker asks the `crowd` whether another has fewer connections; then it
leaves the listeners for a moment (DEL: level-triggered, they would spin), and comes back to take what the other has
not taken. Nobody declines for longer than that moment, whatever the counts say.
"""

import errno
import select
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from typing import Final
from wsgiref.types import WSGIEnvironment

from .connection import Connection
from .exchange import base_environ
from .shared import Shared
from .tls import wrap

# One connection for so many events of a round: a round is rarely longer than 32 when nobody waits for long, and who
# takes one at a time then is spared the accept that finds nobody.
ROUND_EACH: Final = 16
TAKEN_MAX: Final = 8  # of a round of 128, the most there are: the share of those who wait to be served at all
ADDRESSES: Final = 256  # local ones remembered; a host may own a whole IPv6 prefix
# accept() fails for want of something that an operator can give
_SCARCE: Final = frozenset({errno.EMFILE, errno.ENFILE})
# accept(2): what had happened to the connection before it was taken, of no meaning for the next one
_GONE: Final = frozenset(
    {
        *(errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.ENOPROTOOPT, errno.EHOSTDOWN, errno.ENONET),
        *(errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH, errno.EPERM, errno.EINTR),
    }
)
_EPOLL_FULL: Final = frozenset({errno.ENOSPC, errno.ENOMEM})
_NEVER: Final = float("inf")


class Door:
    """The listeners of one engine."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        shared: Shared,
        extra: tuple[tuple[str, object], ...],
        tls: ssl.SSLContext | None,
    ) -> None:
        # over _listeners, their registration, and the eventfd; reentrant, so that a signal handler may order a drain
        self.lock = threading.RLock()
        self.due = _NEVER  # when to look again at listeners that were left for a while
        self._shared = shared
        self._extra = extra
        self._tls = tls
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._bases: dict[tuple[int, str], WSGIEnvironment] = {}  # by listener and local address
        self._watching = False  # they are in epoll
        self._deferring = False  # they are not, because somebody else is to have the next one
        self._scarcity_logged = False
        for listener in listeners:
            listener.setblocking(False)
            if listener.family != socket.AF_UNIX:
                # accepted sockets inherit it: one system call for all connections instead of one for each
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    # ---- opening and closing ---------------------------------------------------------------------------------------
    def open(self) -> None:
        """Watch the listeners, unless the engine drains."""
        with self.lock:
            if not self._watching and not self._shared.draining:
                for fd in self._listeners:
                    self._shared.epoll.register(fd, select.EPOLLIN)
                self._watching = True
                self._tell_crowd(accepting=True)
        self.due = _NEVER

    def close(self) -> None:
        """Accept nothing more, whatever waits in the queues. From any thread."""
        with self.lock:
            self._look_away()
            for listener in self._listeners.values():
                listener.close()
            self._listeners.clear()

    def leave(self) -> None:
        """Take what waits, and close: the engine drains."""
        self._tell_crowd(accepting=False)
        with self.lock:
            self._look_away()
        self.due = _NEVER
        for fd in list(self._listeners):
            for _ in range(self._shared.limits.drain_accepts):
                if not self._accept(fd):
                    break
        self.close()

    def close_in_child(self) -> None:
        """In a process that the application forked: no lock is taken, its holder may not exist here."""
        for listener in list(self._listeners.values()):
            listener.close()

    def _look_away(self) -> None:
        """Under the lock, before any close: others hold the same sockets, so epoll would keep reporting them."""
        if self._watching:
            for fd in self._listeners:
                self._shared.epoll.unregister(fd)
            self._watching = False

    def _leave_for(self, pause_s: float) -> None:
        with self.lock:
            self._look_away()
        self.due = time.monotonic() + pause_s

    # ---- accepting -------------------------------------------------------------------------------------------------
    def knock(self, fd: int, ready: int) -> bool:
        """Somebody waits at this listener: take one, then look at the counts again. False: they were left.

        `ready`: how many events the round has. In a long one those who wait would be served last of all: more of
        them are taken, for as long as the counts allow.
        """
        crowd = self._shared.crowd
        if crowd is not None and crowd.fuller():
            self._deferring = True
            self._leave_for(self._shared.limits.defer_s)
            return self._watching
        taken = 0
        while self._accept(fd) and (taken := taken + 1) < min(ready // ROUND_EACH, TAKEN_MAX):
            if crowd is not None and crowd.fuller():
                break
        return self._watching

    def look_again(self) -> None:
        """The moment is over: one is taken from each listener if it still waits, and the others in their turn."""
        deferring, self._deferring = self._deferring, False
        self.open()
        if deferring:
            for fd in list(self._listeners):
                if self._accept(fd) and self._shared.crowd is not None:
                    self._shared.crowd.waited()

    def _tell_crowd(self, *, accepting: bool) -> None:
        if self._shared.crowd is not None:
            self._shared.crowd.open(accepting)

    def _pause(self, why: str) -> None:
        self._tell_crowd(accepting=False)
        self._leave_for(self._shared.limits.accept_pause_s)
        if not self._scarcity_logged:
            self._scarcity_logged = True
            self._shared.log.warning("cannot accept connections: %s; trying again until it works", why)

    def _accept(self, fd: int) -> bool:
        """Take one connection from a listener; False when there is none to take."""
        shared = self._shared
        if len(shared.connections) >= shared.limits.connections and not shared.draining:
            self._pause(f"{shared.limits.connections} are open, which is this worker's limit")
            return False
        try:
            with self.lock:
                listener = self._listeners.get(fd)
                if listener is None:  # closed since epoll reported it
                    return False
                sock, peer = listener.accept()
        except BlockingIOError:  # another worker was faster
            return False
        except OSError as error:
            if error.errno in _GONE:
                return True
            advice = "; raise the limit on open files (ulimit -n)" if error.errno in _SCARCE else ""
            self._pause(f"{error.strerror}{advice}")
            return False
        self._scarcity_logged = False
        self._welcome(fd, sock, peer)
        return True

    def admit(self, sock: socket.socket) -> None:
        """Serve a connection that did not come by a listener."""
        self._welcome(-1, sock, None)

    def _welcome(self, fd: int, sock: socket.socket, peer: object) -> None:
        shared = self._shared
        sock.setblocking(False)
        host = port = ""
        if isinstance(peer, tuple):  # a unix peer has no address
            host, port = str(peer[0]).removeprefix("::ffff:"), str(peer[1])
        try:
            base = self._base(fd, sock)
            if self._tls is not None:
                sock = wrap(self._tls, sock)
            connection = Connection(sock, base, host, port, shared, tls=self._tls is not None)
        except OSError as error:
            sock.close()
            if error.errno in _EPOLL_FULL:
                self._pause(f"{error.strerror} (epoll; see fs.epoll.max_user_watches)")
            return  # else reset between accept and the question for its address
        shared.connections[sock.fileno()] = connection
        shared.stats.connections += 1
        if shared.crowd is not None:
            shared.crowd.settle(shared.stats.connections)

    def _base(self, fd: int, sock: socket.socket) -> WSGIEnvironment:
        """The environ of the address the client connected to; a wildcard listener has several."""
        tls = self._tls is not None
        if sock.family == socket.AF_UNIX:
            # PEP 3333: never empty; nobody else knows better
            host, port = "localhost", "443" if tls else "80"
        else:
            host, port = str(sock.getsockname()[0]).removeprefix("::ffff:"), str(sock.getsockname()[1])
        base = self._bases.get((fd, host))
        if base is None:
            if len(self._bases) >= ADDRESSES:
                self._bases.clear()
            base = self._bases[fd, host] = base_environ(
                host, port, self._extra, threads=self._shared.crew.many, tls=tls
            )
        return base
