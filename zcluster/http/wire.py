"""A connection as the loop holds it: its state, its place in epoll and in the table, and its ends.

Invariant: only the thread that leads uses what is here, and nothing else closes a client's socket.
"""

import contextlib
import select
import socket
import struct
import time
from typing import TYPE_CHECKING

from .body import Intake
from .writer import Writer

if TYPE_CHECKING:
    from .shared import Shared

IDLE, HEAD, BODY, WORK, FLUSH, LINGER, CLOSED = range(7)  # what they mean is told in `connection`
NO_LINGER = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset
IN, OUT = select.EPOLLIN, select.EPOLLOUT


class Wire(Writer):
    """What `Connection` is made of."""

    __slots__ = ("_fd", "_intake", "_watched", "buffer", "deadline", "state")

    def __init__(self, sock: socket.socket, shared: "Shared", *, tls: bool) -> None:
        super().__init__(sock, shared, tls=tls)
        self.state = IDLE
        self.buffer = b""
        self.deadline = time.monotonic() + shared.limits.header_timeout_s
        self._fd = sock.fileno()
        self._watched = 0  # what epoll looks for
        self._intake: Intake | None = None

    def has_unread(self) -> bool:
        """Whether bytes (not an end) wait in the socket."""
        if self.tls:
            return self.sock.has_unread()  # type: ignore[attr-defined, no-any-return]
        try:
            return bool(self.sock.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def _watch(self, mask: int) -> None:
        """Tell epoll what to look for; 0 takes the connection out."""
        if mask == self._watched:
            return
        if not self._watched:
            self._shared.epoll.register(self._fd, mask)
        elif mask:
            self._shared.epoll.modify(self._fd, mask)
        else:
            self._shared.epoll.unregister(self._fd)
        self._watched = mask

    # ---- ends ------------------------------------------------------------------------------------------------------
    def _finish(self, linger: bool) -> None:
        """Everything is said: close, or first wait for the client to do so (RFC 9112, 9.6)."""
        if not linger:
            self.close()
            return
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        self.buffer = b""
        self.state = LINGER
        self.deadline = time.monotonic() + self._shared.limits.linger_s
        self._watch(IN | OUT if self.wants_write else IN)  # the end of TLS may not have fitted; the next recv says it

    def end(self) -> None:
        """Close; with a reset if what was sent must not be taken for a whole response."""
        if self.cut:
            self.abort()
        else:
            self.close()

    def abort(self) -> None:
        """Cut: a reset, so that no client can take a broken response for a whole one."""
        if self.state != CLOSED:
            self.cut = True
            self.no_linger()
            self.close()

    def no_linger(self) -> None:
        """Have the socket's end, whenever it comes, be a reset. Any thread may call this."""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)

    def close(self) -> None:
        """End now; idempotent."""
        if self.state == CLOSED:
            return
        self.state = CLOSED
        self.buffer = b""
        self._drop_body()
        whole = self.out is None and not (self.cut or self.broken)
        if self.out is not None:
            self.out.close()
            self.out = None
        # Explicitly, because a child that the application forked may hold the same description: it would go on
        # reporting.
        self._watch(0)
        if self.tls and whole:
            # Its end is a record of its own: without it a client must suspect that something is missing.
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_WR)
        shared = self._shared
        del shared.connections[self._fd]
        shared.stats.connections -= 1
        if shared.crowd is not None:
            shared.crowd.settle(shared.stats.connections)
        self.sock.close()

    def _drop_body(self) -> None:
        if self._intake is not None:
            self._intake.close()
            self._intake = None
