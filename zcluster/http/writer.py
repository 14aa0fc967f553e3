"""The sending half of a connection: what leaves at once, what waits, who waits for it.

Invariant: bytes leave in order, and nothing here closes anything: when the client is gone, `broken` says so, and
whoever owns the connection ends it.

Theory of operation. A write goes to the socket; what does not fit goes into the outbox, which the loop empties once
the request is over. Of a response that is made piece by piece the outbox takes a limited number of bytes. Beyond it
the thread waits for the client, if it may (the exchange decides: not the leader, and not too many at once), else an
unnamed file takes the rest.
"""

import select
import socket
import time
from typing import TYPE_CHECKING

from .outbox import Outbox, ShortFile, SpoolError

if TYPE_CHECKING:
    from .exchange import Exchange
    from .shared import Shared


class Writer:
    """Used by the connection's owner only: the leader, or the thread that runs its request."""

    __slots__ = ("_shared", "broken", "cut", "exchange", "out", "sock", "taken_bytes", "tls", "waiting")

    def __init__(self, sock: socket.socket, shared: "Shared", *, tls: bool) -> None:
        self.sock = sock
        self.tls = tls
        self.exchange: Exchange | None = None  # the request that runs
        self.out: Outbox | None = None
        self.broken = False  # nothing can be written any more
        self.cut = False  # the connection must end with a reset: no client may take what it got for a whole response
        self.waiting = False  # a thread that runs the application waits for the client
        self.taken_bytes = 0  # of bodies that were streamed
        self._shared = shared

    @property
    def wants_write(self) -> bool:
        """TLS has to write before it can read on: a handshake, a new key."""
        return self.tls and bool(self.sock.wants_write)  # type: ignore[attr-defined]

    def write(self, data: bytes, more: bytes = b"", *, whole: bool = False) -> None:
        """Send, or keep for later, both in order; BrokenPipeError when the client is gone.

        `whole`: the response is complete with this, and stays in memory however large it is: it is there already.
        """
        if self.broken:
            raise BrokenPipeError("the client has gone")
        out = self.out
        try:
            if out is None:
                size = len(data)
                try:
                    # a large body is not copied behind its head
                    sent = self.sock.sendmsg((data, more)) if more else self.sock.send(data)
                except BlockingIOError:
                    sent = 0
                if (sent == size and not more) or sent == size + len(more):
                    return
                out = self.out = Outbox(tls=self.tls)
                if sent >= size:
                    out.add(memoryview(more)[sent - size :])
                    return
                out.add(memoryview(data)[sent:])
                out.add(more)
                return
            if not whole:
                self._make_room(out)
            if out.has_file:
                out.spool(data)
                out.spool(more)
            else:
                out.add(data)
                out.add(more)
            out.flush(self.sock)  # a jam may have cleared: nothing waits for the next block (PEP 3333)
            if out.empty:
                self.out = None
        except (OSError, SpoolError, ShortFile) as error:
            self._fail(error)

    def write_file(self, fd: int, offset: int, count: int) -> None:
        """Send a part of a file behind what was written, as the last of the response; `fd` is ours from here on."""
        if self.out is None:
            self.out = Outbox(tls=self.tls)
        self.out.add_file(fd, offset, count)
        try:
            self.out.flush(self.sock)
        except (OSError, ShortFile) as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """For the thread that writes a response: it learns of it as PEP 3333's applications do."""
        self.lose(error)
        if isinstance(error, SpoolError):
            raise BrokenPipeError("the response could not be kept") from None
        if isinstance(error, ShortFile):
            raise BrokenPipeError("the file became shorter while it was sent") from None
        raise BrokenPipeError("the client has gone") from None

    def lose(self, error: Exception) -> None:
        """Nothing more can be written, because of this; if it is on our side, the operator is told."""
        self.broken = True
        log = self._shared.log
        if isinstance(error, SpoolError):
            self.cut = True
            log.error("a response cannot be spooled to a temporary file: %s; free space in TMPDIR", error)
        elif isinstance(error, ShortFile):
            self.cut = True
            log.error("a file became shorter while it was sent; the connection is cut")
        # else reset, timed out, unreachable: all the same to us

    def _make_room(self, out: Outbox) -> None:
        """Before another block is added: the client has taken enough, or the rest goes to a file."""
        limits = self._shared.limits
        if out.memory_bytes <= limits.response_memory_bytes and out.file_bytes <= limits.response_file_bytes:
            return
        out.flush(self.sock)
        if out.memory_bytes <= limits.response_memory_bytes and not out.has_file:
            return
        exchange = self.exchange
        if exchange is not None and exchange.may_wait():
            self._wait(out, limits.response_memory_bytes // 2)
        elif not out.has_file:
            out.spool(b"")  # from here on there is one, and everything goes there
        elif out.file_bytes > limits.response_file_bytes:
            # Nothing is left for an endless response but to wait all the same; and when too many do that, to end it.
            if exchange is not None and exchange.may_wait(last_resort=True):
                self._wait(out, 0)
            else:
                self._shared.stats.refuse("client too far behind")
                self.cut = True
                raise ConnectionAbortedError

    def _wait(self, out: Outbox, down_to_bytes: int) -> None:
        """For the client to take that much; each step within the write time-out."""
        limits, sock = self._shared.limits, self.sock
        poll = select.poll()
        poll.register(sock.fileno(), select.POLLOUT)
        moved, deadline = 0, time.monotonic() + limits.write_timeout_s
        while out.has_file or out.memory_bytes > down_to_bytes:
            now = time.monotonic()
            self.waiting = True
            late = now >= deadline or not poll.poll((deadline - now) * 1000)
            self.waiting = False
            if late:
                self._shared.stats.refuse("client stopped reading")
                self.cut = True
                raise ConnectionAbortedError
            moved += out.flush(sock)
            if moved >= limits.progress_bytes:
                moved, deadline = 0, time.monotonic() + limits.write_timeout_s
