"""The loop: listeners, epoll, connections, time-outs, and the orders of other threads.

Invariant: only the loop's thread touches epoll and connections. Other threads give orders through flags and an
eventfd, with one exception: listeners stand under a lock, because `close_listeners` must work while an application
blocks the loop.

Theory of operation. One thread waits in epoll, reads, parses and runs the application itself. Every worker has its
own epoll over the same listening sockets, level-triggered and without EPOLLEXCLUSIVE: all idle workers are told of a
new connection, the first to accept gets it, the others get EAGAIN; a wake-up that one does not use is therefore never
lost. Draining takes three steps: leave the listeners (DEL, accept until EAGAIN, close), answer with `Connection:
close` from then on, and end when the last connection has gone. Idle connections go at their ordinary time-out,
because a client may be writing into one at this moment; a quick drain closes those in which nothing waits.
"""

import errno
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from wsgiref.types import WSGIApplication, WSGIEnvironment

from .connection import CLOSED, HEAD, IDLE, Connection
from .exchange import base_environ
from .limits import Limits
from .shared import Shared
from .stats import Stats

TICK_S = 0.2  # at most this between two ticks of an idle loop; under load no oftener
EVENTS = 128  # per round: few enough that a round of fast requests does not delay a tick
ADDRESSES = 256  # local ones remembered; a host may own a whole IPv6 prefix
# accept() fails for want of something that time may bring
_SCARCE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Engine:
    """Serves `app` on `listeners` from the thread that calls `run`.

    The engine owns the listeners: they are closed when it leaves them, at the latest when `run` returns. `tick` is
    called by the loop about five times a second while it comes round; `on_exit` once, with the exit code, when the
    application raised SystemExit in a request (the engine then drains by itself). `environ` is added to every
    request's. `drain`, `close_listeners` and `stats` may be used from any thread, before, during and after `run`.
    """

    def __init__(
        self,
        app: WSGIApplication,
        listeners: Sequence[socket.socket],
        *,
        limits: Limits | None = None,
        tick: Callable[[], None] | None = None,
        on_exit: Callable[[int], None] | None = None,
        log: logging.Logger | None = None,
        environ: Mapping[str, object] | None = None,
    ) -> None:
        self.stats = Stats()
        self._limits = limits or Limits()
        self._tick = tick
        self._on_exit = on_exit
        self._log = log or logging.getLogger("zcluster.http")
        self._shared = Shared(app, self._limits, self._log, self._app_exits, self.stats)
        self._extra = tuple((environ or {}).items())
        # over _listeners, their registration, and _wake_fd; reentrant, so that a signal handler may order a drain
        self._lock = threading.RLock()
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._bases: dict[tuple[int, str], WSGIEnvironment] = {}  # by listener and local address
        self._listening = False  # they are in epoll
        self._resume_at = 0.0  # when accepting may be tried again
        self._scarcity_logged = False
        self._wake_fd = -1
        self._quick_ordered = False
        self._left = False  # the listeners, for good
        self._exiting = False
        for listener in listeners:
            listener.setblocking(False)
            if listener.family != socket.AF_UNIX:
                # accepted sockets inherit it: one system call for all connections instead of one for each
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    # ---- for other threads -----------------------------------------------------------------------------------------
    def drain(self, quick: bool = False) -> None:
        """Finish and let `run` return; `quick` also closes idle connections at once. Idempotent, does not wait."""
        self._quick_ordered = self._quick_ordered or quick
        self._shared.draining = True  # the request that runs now already answers with `Connection: close`
        with self._lock:
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)

    def close_listeners(self) -> None:
        """Accept nothing more from this moment on, whatever waits in the queues; connections go on."""
        with self._lock:
            self._stop_listening()
            for listener in self._listeners.values():
                listener.close()
            self._listeners.clear()

    def close_in_child(self) -> None:
        """In a process forked by the application: close our descriptors, and answer nobody any more.

        No lock is taken (its holder may not exist here) and epoll is not told (its table is shared with the parent).
        """
        self._shared.forked = True
        for listener in list(self._listeners.values()):
            listener.close()
        if self._wake_fd >= 0:
            os.close(self._wake_fd)
            self._wake_fd = -1
            self._shared.epoll.close()
            for connection in list(self._shared.connections.values()):
                connection.state = CLOSED
                connection.sock.close()

    # ---- the loop --------------------------------------------------------------------------------------------------
    def run(self) -> None:
        """Serve until drained. Whatever happens, every descriptor is closed when it returns or raises."""
        epoll = self._shared.epoll = select.epoll()
        try:
            with self._lock:
                self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            epoll.register(self._wake_fd, select.EPOLLIN)
            self._listen()
            if self._shared.draining:  # ordered before there was an eventfd to tell
                self._obey()
            self._loop(epoll)
        finally:
            self.close_listeners()
            for connection in list(self._shared.connections.values()):
                connection.close()
            with self._lock:
                if self._wake_fd >= 0:
                    os.close(self._wake_fd)
                self._wake_fd = -1
            epoll.close()

    def _loop(self, epoll: select.epoll) -> None:
        shared, stats = self._shared, self.stats
        poll = epoll.poll
        find = shared.connections.get
        next_tick = 0.0
        while not self._left or shared.connections:
            turns, shared.again = shared.again, []  # of earlier rounds, so that others come in between
            events = poll(0.0 if turns else max(0.0, next_tick - time.monotonic()), EVENTS)
            now = time.monotonic()
            for fd, _ in events:
                connection = find(fd)
                if connection is None:
                    self._other_event(fd)
                    continue
                try:
                    connection.ready()
                except Exception:  # a bug of ours must cost one connection, not the worker; logged and counted
                    self._failed(connection)
            for connection in turns:
                self._guarded(connection, connection.take_turn)
            stats.loop_tick = now
            if now >= next_tick:
                next_tick = now + TICK_S
                self._look_around(now)

    def _other_event(self, fd: int) -> None:
        if fd == self._wake_fd:
            os.eventfd_read(fd)
            self._obey()
        else:
            for _ in range(self._limits.accept_at_once):
                if not self._accept(fd):
                    break

    def _guarded(self, connection: Connection, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception:  # as in the loop
            self._failed(connection)

    def _failed(self, connection: Connection) -> None:
        self.stats.failures += 1
        self._log.exception("internal error in the HTTP engine; this connection is cut. Please report it")
        connection.abort()

    def _look_around(self, now: float) -> None:
        """A few times a second: the tick, accepting again, time-outs.

        `now` is from before this round's requests, and what had arrived by then has been read: a client is never
        timed out for the time an application took.
        """
        if self._tick is not None:
            self._tick()
        if self._resume_at and now >= self._resume_at:
            self._resume_at = 0.0
            self._listen()
        for connection in list(self._shared.connections.values()):
            if connection.deadline < now:
                self._guarded(connection, connection.expire)

    # ---- listeners -------------------------------------------------------------------------------------------------
    def _listen(self) -> None:
        with self._lock:
            if not self._listening and not self._shared.draining:
                for fd in self._listeners:
                    self._shared.epoll.register(fd, select.EPOLLIN)
                self._listening = True

    def _stop_listening(self) -> None:
        """Under the lock, before any close: others hold the same sockets, so epoll would keep reporting them."""
        if self._listening:
            for fd in self._listeners:
                self._shared.epoll.unregister(fd)
            self._listening = False

    def _pause(self, why: str) -> None:
        with self._lock:
            self._stop_listening()
        self._resume_at = time.monotonic() + self._limits.accept_pause_s
        if not self._scarcity_logged:
            self._scarcity_logged = True
            self._log.warning("cannot accept connections: %s; trying again until it works", why)

    def _accept(self, fd: int) -> bool:
        """Take one connection from a listener; False when there is none to take."""
        if len(self._shared.connections) >= self._limits.connections and not self._shared.draining:
            self._pause(f"{self._limits.connections} are open, which is this worker's limit")
            return False
        try:
            with self._lock:
                listener = self._listeners.get(fd)
                if listener is None:  # closed since epoll reported it
                    return False
                sock, peer = listener.accept()
        except BlockingIOError:  # another worker was faster
            return False
        except OSError as error:
            if error.errno in _SCARCE:
                self._pause(f"{error.strerror}; raise the limit on open files (ulimit -n)")
                return False
            return True  # the client had gone before it was accepted (ECONNABORTED and its like)
        self._scarcity_logged = False
        self._welcome(fd, sock, peer)
        return True

    def _welcome(self, fd: int, sock: socket.socket, peer: object) -> None:
        sock.setblocking(False)
        host = port = ""
        if isinstance(peer, tuple):  # a unix peer has no address
            host, port = str(peer[0]).removeprefix("::ffff:"), str(peer[1])
        try:
            base = self._base(fd, sock)
        except OSError:  # reset between accept and the question for its address
            sock.close()
            return
        self._shared.connections[sock.fileno()] = Connection(sock, base, host, port, self._shared)
        self._shared.epoll.register(sock.fileno(), select.EPOLLIN)
        self.stats.connections += 1

    def _base(self, fd: int, sock: socket.socket) -> WSGIEnvironment:
        """The environ of the address the client connected to; a wildcard listener has several."""
        if sock.family == socket.AF_UNIX:
            host, port = "localhost", "80"  # PEP 3333: never empty; nobody else knows better
        else:
            host, port = str(sock.getsockname()[0]).removeprefix("::ffff:"), str(sock.getsockname()[1])
        base = self._bases.get((fd, host))
        if base is None:
            if len(self._bases) >= ADDRESSES:
                self._bases.clear()
            base = self._bases[fd, host] = base_environ(host, port, self._extra)
        return base

    # ---- orders ----------------------------------------------------------------------------------------------------
    def _obey(self) -> None:
        """Begin to drain, or drain quicker."""
        if not self._left:
            self._left = True
            with self._lock:
                self._stop_listening()
            for fd in list(self._listeners):
                for _ in range(self._limits.drain_accepts):
                    if not self._accept(fd):
                        break
            self.close_listeners()
        if self._quick_ordered:
            for connection in list(self._shared.connections.values()):
                if connection.state in (IDLE, HEAD) and not connection.waiting_turn and not connection.has_unread():
                    connection.close()

    def _app_exits(self, code: int) -> None:
        """The application raised SystemExit; the first one counts."""
        if not self._exiting:
            self._exiting = True
            self.drain()
            if self._on_exit is not None:
                self._on_exit(code)
