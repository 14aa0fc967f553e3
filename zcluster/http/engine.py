"""The loop: epoll, connections, time-outs, and the orders of other threads.

Invariant: only the thread that leads touches epoll and connections. Other threads give orders through flags, a queue
and an eventfd, with one exception: listeners stand under a lock (see `door`), because `close_listeners` must work
while an application blocks the loop.

Theory of operation. The leader waits in epoll, reads, parses, and runs the application itself, or gives the request
to another thread (see `crew`). When the loop is taken away from it inside the application, it unwinds with Relieved
and touches nothing more: all that the loop knows lies in this object, and what epoll had reported is reported again.
Draining takes three steps: leave the listeners (DEL, accept until EAGAIN, close), answer with `Connection: close`
from then on, and end when the last connection has gone. Idle connections go at their ordinary time-out, because a
client may be writing into one at this moment; a quick drain closes those in which nothing waits.
"""

import logging
import os
import select
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from wsgiref.types import WSGIApplication

from .connection import Connection
from .crew import Crew, Relieved
from .door import Door
from .limits import Limits
from .shared import Access, Crowd, Shared
from .stats import Stats
from .wire import CLOSED, FLUSH, HEAD, IDLE, WORK

TICK_S = 0.2  # at most this between two ticks of an idle loop; under load no oftener
EVENTS = 128  # per round: few enough that a round of fast requests does not delay a tick


class Engine:
    """Serves `app` on `listeners` from the thread that calls `run`, and up to `threads` - 1 others.

    The engine owns the listeners: they are closed when it leaves them, at the latest when `run` returns. `tick` is
    called by the loop about five times a second while it comes round; `on_exit` once, with the exit code, when the
    application raised SystemExit in a request (the engine then drains by itself). `environ` is added to every
    request's. With `crowd` it shares new connections fairly with other engines; `access` is told of every request;
    with `tls` it speaks TLS. `clients` are connections that are open already. `drain`, `close_listeners` and `stats`
    may be used from any thread, before, during and after `run`.
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
        threads: int = 1,
        crowd: Crowd | None = None,
        access: Access | None = None,
        tls: ssl.SSLContext | None = None,
        clients: Sequence[socket.socket] = (),
    ) -> None:
        limits = limits or Limits()
        self._crew = crew = Crew(threads, self._lead, "zcluster-http")
        self.stats = Stats(crew.running, lambda: crew.beat, crew.threads)
        self._tick = tick
        self._on_exit = on_exit
        self._log = log or logging.getLogger("zcluster.http")
        self._shared = Shared(app, limits, self._log, self._app_exits, crew, self.stats, crowd, access)
        self._door = Door(listeners, self._shared, tuple((environ or {}).items()), tls)
        self._clients = clients
        self._next_look = 0.0
        self._stale = False  # when something is due, or whether the loop is over, has changed in this round
        self._quick_ordered = False
        self._left = False  # the listeners, for good
        self._exiting = False

    # ---- for other threads -----------------------------------------------------------------------------------------
    def drain(self, quick: bool = False) -> None:
        """Finish and let `run` return; `quick` also closes idle connections at once. Idempotent, does not wait."""
        self._quick_ordered = self._quick_ordered or quick
        self._shared.draining = True  # the request that runs now already answers with `Connection: close`
        with self._door.lock:
            if self._shared.wake_fd >= 0:
                os.eventfd_write(self._shared.wake_fd, 1)

    def close_listeners(self) -> None:
        """Accept nothing more from this moment on, whatever waits in the queues; connections go on."""
        self._door.close()

    def cut(self) -> None:
        """The process ends with requests in it: connections whose response is not over will end with a reset."""
        for connection in list(self._shared.connections.values()):
            if connection.state in (WORK, FLUSH):
                connection.no_linger()

    def close_in_child(self) -> None:
        """In a process forked by the application: close our descriptors, and answer nobody any more.

        No lock is taken (its holder may not exist here) and epoll is not told (its table is shared with the parent).
        """
        shared = self._shared
        shared.forked = True
        self._door.close_in_child()
        if shared.wake_fd >= 0:
            os.close(shared.wake_fd)
            shared.wake_fd = -1
            shared.epoll.close()
            for connection in list(shared.connections.values()):
                connection.state = CLOSED
                connection.sock.close()

    # ---- the loop --------------------------------------------------------------------------------------------------
    def run(self) -> None:
        """Serve until drained. Whatever happens, every descriptor is closed when it returns or raises."""
        shared = self._shared
        epoll = shared.epoll = select.epoll()
        try:
            with self._door.lock:
                shared.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            epoll.register(shared.wake_fd, select.EPOLLIN)
            self._door.open()
            for client in self._clients:
                self._door.admit(client)
            if shared.draining:  # ordered before there was an eventfd to tell
                self._obey()
            self._crew.run()
        finally:
            self._door.close()
            for connection in list(shared.connections.values()):
                connection.close()
            with self._door.lock:
                if shared.wake_fd >= 0:
                    os.close(shared.wake_fd)
                shared.wake_fd = -1
            epoll.close()

    def _lead(self) -> bool:
        """Lead the loop: true when it is over, false when this thread has lost it."""
        try:
            while not self._left or self._shared.connections:
                self._rounds()
        except Relieved:
            return False
        return True

    def _rounds(self) -> None:
        """Round after round, until something beside requests is due. Every line here is paid for by each round."""
        shared, stats = self._shared, self.stats
        poll, find, monotonic = shared.epoll.poll, shared.connections.get, time.monotonic
        again, returned = shared.again, shared.returned
        due = min(self._next_look, self._door.due)
        now = 0.0
        while now < due and not self._stale:
            turns = len(again)  # of earlier rounds, so that others come in between
            shared.sleeping = True
            # In this order, against the one in `come_back`: whoever comes second sees what the other did.
            events = poll(0.0 if turns or returned else max(0.0, due - monotonic()), EVENTS)
            shared.sleeping = False
            stats.loop_tick = now = monotonic()
            for fd, _ in events:
                connection = find(fd)
                if connection is None:
                    self._other_event(fd, len(events))
                    continue
                try:
                    connection.ready()
                except Exception:  # a bug of ours must cost one connection, not the worker; logged and counted
                    self._failed(connection)
            while returned:
                connection = returned.popleft()
                self._guarded(connection, connection.come_back)
            for _ in range(turns):
                connection = again.popleft()
                self._guarded(connection, connection.take_turn)
            if self._left:
                break  # each connection that goes may be the last
        self._stale = False
        if now >= self._door.due:
            self._door.look_again()
        if now >= self._next_look:
            self._next_look = now + TICK_S
            self._look_around(now)

    def _other_event(self, fd: int, ready: int) -> None:
        if fd == self._shared.wake_fd:
            os.eventfd_read(fd)
            if self._shared.draining:
                self._obey()
            self._stale = True
        elif not self._door.knock(fd, ready):
            self._stale = True

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
        """A few times a second: the tick, and time-outs.

        `now` is from before this round's requests, and what had arrived by then has been read: a client is never
        timed out for the time an application took.
        """
        if self._tick is not None:
            self._tick()
        for connection in list(self._shared.connections.values()):
            if connection.deadline < now:
                self._guarded(connection, connection.expire)
        if self._quick_ordered:  # a response that ended since had perhaps promised to keep its connection
            self._close_idle()

    # ---- orders ----------------------------------------------------------------------------------------------------
    def _obey(self) -> None:
        """Begin to drain, or drain quicker."""
        if not self._left:
            self._left = True
            self._door.leave()
        if self._quick_ordered:
            self._close_idle()

    def _close_idle(self) -> None:
        """Those in which nothing waits."""
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
