"""One client: its socket, what it sent and what it has not taken yet.

Invariant: a connection is in exactly one state, and epoll watches it for what that state needs: writing in FLUSH,
reading in all others. A request is only begun when the response before it has left: nothing is answered out of order.

Theory of operation.

    IDLE   nothing of the next request is here        -> HEAD, BODY, or straight through the application
    HEAD   some bytes of a request head are here      -> BODY, or through the application
    BODY   the head is parsed, its body is collected  -> through the application
    FLUSH  the response did not fit the socket        -> IDLE, LINGER, CLOSED
    LINGER answered for good; what still comes is read and thrown away, so that a reset does not overtake the answer
    CLOSED

`deadline` is the moment the present state ends by time-out (`expire`); the engine looks at all of them a few times a
second. Bytes beyond the present request wait in `buffer`, which never grows beyond one head and one read.
"""

import contextlib
import io
import select
import socket
import struct
import time
from typing import TYPE_CHECKING

from .body import END, Body, ChunkedBody, LengthBody
from .exchange import Exchange, plain_response
from .head import CHUNKED, CLOSE, EXPECT, SIZED, Refusal, check_beginning
from .outbox import Outbox, SpoolError

if TYPE_CHECKING:
    from wsgiref.types import WSGIEnvironment

    from .shared import Shared

IDLE, HEAD, BODY, FLUSH, LINGER, CLOSED = range(6)
HEAD_READ_BYTES = 16384  # a browser's head ten times over; larger reads cost an allocation each
BODY_READ_BYTES = 65536
NO_LINGER = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset


class Connection:
    """One client of one engine; used by the engine's thread only."""

    __slots__ = (
        "_base", "_body", "_body_environ", "_body_flags", "_close_after", "_fd", "_moved_bytes", "_out", "_peer_host",
        "_peer_port", "_scanned", "_shared", "buffer", "deadline", "sock", "state", "waiting_turn",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, base: "WSGIEnvironment", host: str, port: str, shared: "Shared") -> None:
        self.sock = sock
        self.state = IDLE
        self.buffer = b""
        self.deadline = time.monotonic() + shared.limits.header_timeout_s
        self.waiting_turn = False  # it has had its `pipelined` requests and more are in the buffer
        self._fd = sock.fileno()
        self._base = base
        self._peer_host = host
        self._peer_port = port
        self._shared = shared
        self._scanned = 0  # of an incomplete head: what was searched for its end
        self._out: Outbox | None = None
        self._body: Body | None = None
        self._body_environ: WSGIEnvironment = base
        self._body_flags = 0
        self._moved_bytes = 0  # since the deadline of BODY or FLUSH last moved
        self._close_after = False

    @property
    def is_open(self) -> bool:
        """Whether anything can still be written."""
        return self.state != CLOSED

    # ---- what epoll reports ----------------------------------------------------------------------------------------
    def ready(self) -> None:
        """Epoll says the socket can be read, or written in FLUSH; errors surface in the calls themselves."""
        state = self.state
        if state == FLUSH:
            self._flush()
            return
        if self.waiting_turn:
            return  # level-triggered: it will be said again when the buffer is empty
        try:
            data = self.sock.recv(HEAD_READ_BYTES if state <= HEAD else BODY_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:  # reset by the client
            data = b""
        if not data:
            self.close()
        elif state <= HEAD:
            self.advance(self.buffer + data if self.buffer else data)
        elif state == BODY:
            self._collect(data)

    def take_turn(self) -> None:
        """Go on with the requests that wait in the buffer."""
        self.waiting_turn = False
        if self.state == IDLE:
            self.advance(self.buffer)

    def expire(self) -> None:
        """The present state has lasted too long."""
        state = self.state
        if state == FLUSH:
            self._shared.stats.refuse("client stopped reading")
            self.abort()
        elif state == LINGER:
            self.close()
        elif self.waiting_turn or self.has_unread():
            pass  # it was not the client who was slow: the application kept the loop busy
        elif state == IDLE:
            self.close()
        else:
            self.refuse(Refusal(408, "head time-out" if state == HEAD else "body time-out"))

    def has_unread(self) -> bool:
        """Whether bytes (not an end) wait in the socket."""
        try:
            return bool(self.sock.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    # ---- requests --------------------------------------------------------------------------------------------------
    def advance(self, data: bytes) -> None:
        """Answer what is complete in `data`, keep the rest."""
        shared = self._shared
        turns = shared.limits.pipelined
        while True:
            end = data.find(END, self._scanned) + 4
            if end < 4:
                self._wait_for_head(data)
                return
            if end == len(data):
                head, self.buffer = data, b""
            else:
                head, self.buffer = data[:end], data[end:]
            self._scanned = 0
            environ = self._base.copy()
            environ["REMOTE_ADDR"] = self._peer_host
            environ["REMOTE_PORT"] = self._peer_port
            try:
                flags = shared.parser.parse(head, environ)
            except Refusal as refusal:
                self.refuse(refusal)
                return
            if flags & (SIZED | CHUNKED):
                self._begin_body(environ, flags)
                return
            environ["wsgi.input"] = io.BytesIO()
            Exchange(self, shared, environ, flags).serve()
            if self.state > HEAD:
                return
            data = self.buffer
            if not data:
                return
            turns -= 1
            if not turns:
                self._wait_for_turn()
                return

    def _wait_for_turn(self) -> None:
        """More is in the buffer, but others want to be served too; nothing is read meanwhile."""
        self.waiting_turn = True
        self._shared.again.append(self)

    def _wait_for_head(self, data: bytes) -> None:
        """`data` begins a request whose head is not complete."""
        try:
            check_beginning(data, self._scanned, self._shared.limits)
        except Refusal as refusal:
            self.refuse(refusal)
            return
        self.buffer = data
        self._scanned = max(0, len(data) - 3)
        if self.state == IDLE:
            self.state = HEAD
            self.deadline = time.monotonic() + self._shared.limits.header_timeout_s

    def _begin_body(self, environ: "WSGIEnvironment", flags: int) -> None:
        limits = self._shared.limits
        if flags & SIZED:
            self._body = LengthBody(int(environ["CONTENT_LENGTH"]), limits)
        else:
            self._body = ChunkedBody(limits)
        self._body_environ = environ
        self._body_flags = flags
        self._moved_bytes = 0
        self.state = BODY
        self.deadline = time.monotonic() + limits.body_timeout_s
        data, self.buffer = self.buffer, b""
        if data:
            self._collect(data)
        elif flags & EXPECT:  # a client that has begun its body no longer waits (RFC 9110, 10.1.1)
            with contextlib.suppress(BrokenPipeError):
                self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                if (
                    self._out is not None
                ):  # 25 bytes did not fit: a client that never reads, not worth a state of its own
                    self.abort()

    def _collect(self, data: bytes) -> None:
        """More of the body; when it is whole, the application runs."""
        body = self._body
        assert body is not None
        try:
            rest = body.feed(data)
        except Refusal as refusal:
            self.refuse(refusal)
            return
        except OSError as error:
            self._shared.log.error(
                "a request body cannot be spooled to a temporary file: %s; free space in TMPDIR", error
            )
            self.refuse(Refusal(503, "no space for the body"))
            return
        if not body.done:
            self._moved(len(data), self._shared.limits.body_timeout_s)
            return
        self.buffer = rest
        self._body = None
        environ, self._body_environ = self._body_environ, self._base
        if self._body_flags & CHUNKED:  # RFC 9112, 7.1.3: a decoded body has a length and no coding
            del environ["HTTP_TRANSFER_ENCODING"]
            environ["CONTENT_LENGTH"] = str(body.spool.size)
        environ["wsgi.input"] = body.spool.open()
        self.state = IDLE
        try:
            Exchange(self, self._shared, environ, self._body_flags).serve()
        finally:
            body.spool.close()
        if self.state == IDLE and self.buffer:
            self._wait_for_turn()  # not `advance`: a pipeline of bodies would recurse

    def _moved(self, count: int, timeout_s: float) -> None:
        """The client made progress; only enough of it moves the deadline."""
        self._moved_bytes += count
        if self._moved_bytes >= self._shared.limits.progress_bytes:
            self._moved_bytes = 0
            self.deadline = time.monotonic() + timeout_s

    # ---- responses -------------------------------------------------------------------------------------------------
    def write(self, data: bytes | memoryview, more: bytes | memoryview = b"") -> None:
        """Send, or keep what the socket does not take; BrokenPipeError when the client is gone."""
        if self.state == CLOSED:
            raise BrokenPipeError("the client has gone")
        try:
            out = self._out
            if out is not None:
                out.flush(self.sock)
                if not out.pending_bytes:  # the client has caught up: what is new goes straight to it again
                    out.close()
                    out = self._out = None
            if out is None:
                try:
                    # a large body is not copied behind its head
                    count = self.sock.sendmsg((data, more)) if more else self.sock.send(data)
                except BlockingIOError:
                    count = 0
                if count == len(data) + len(more):
                    return
                out = self._out = Outbox(self._shared.limits.response_memory_bytes)
                if count >= len(data):
                    data, more = b"", memoryview(more)[count - len(data) :]
                else:
                    data = memoryview(data)[count:]
            out.add(data)
            out.add(more)
            if out.pending_bytes > self._shared.limits.response_file_bytes:
                self._wait_for_client(out)
        except OSError:  # reset, timed out, unreachable: all the same to us
            self.close()
            raise BrokenPipeError("the client has gone") from None
        except SpoolError as error:
            self._shared.log.error(
                "a response cannot be spooled to a temporary file: %s; free space in TMPDIR", error
            )
            self.abort()
            raise BrokenPipeError("the response could not be kept") from None

    def _wait_for_client(self, out: Outbox) -> None:
        """More waits than may be kept: the application waits for its client, each step within the write time-out."""
        limits = self._shared.limits
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        while out.pending_bytes > limits.response_file_bytes:
            if not poll.poll(limits.write_timeout_s * 1000):
                self._shared.stats.refuse("client stopped reading")
                raise ConnectionAbortedError
            out.flush(self.sock)

    def settle(self, close: bool) -> None:
        """The exchange is over: go on, or end, now or when the client has taken everything."""
        if self.state == CLOSED:
            return
        self._close_after = close
        if self._out is not None:
            self.state = FLUSH
            self._moved_bytes = 0
            self.deadline = time.monotonic() + self._shared.limits.write_timeout_s
            self._shared.epoll.modify(self._fd, select.EPOLLOUT)
        elif close:
            self._finish(linger=bool(self.buffer) or self._shared.draining)
        else:
            self.state = IDLE
            self.deadline = time.monotonic() + self._shared.limits.keep_alive_s

    def _flush(self) -> None:
        out = self._out
        assert out is not None
        try:
            sent = out.flush(self.sock)
        except OSError:
            self.close()
            return
        self._moved(sent, self._shared.limits.write_timeout_s)
        if out.pending_bytes:
            return
        out.close()
        self._out = None
        self._shared.epoll.modify(self._fd, select.EPOLLIN)
        if self._close_after:
            self._finish(linger=True)
            return
        self.state = IDLE
        self.deadline = time.monotonic() + self._shared.limits.keep_alive_s
        if self.buffer:
            self._wait_for_turn()

    def refuse(self, refusal: Refusal) -> None:
        """Answer without the application, and end."""
        self._shared.stats.refuse(refusal.reason)
        self._drop_body()
        with contextlib.suppress(BrokenPipeError):
            self.write(plain_response(self._shared, refusal.status, CLOSE, refusal.reason))
            if self._out is None:
                self._finish(linger=True)
            else:
                self.settle(close=True)

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

    def abort(self) -> None:
        """Cut: a reset, so that no client can take a broken response for a whole one."""
        if self.state != CLOSED:
            with contextlib.suppress(OSError):
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            self.close()

    def close(self) -> None:
        """End now; idempotent."""
        if self.state == CLOSED:
            return
        self.state = CLOSED
        self.buffer = b""
        self._drop_body()
        if self._out is not None:
            self._out.close()
            self._out = None
        # Explicitly, because a child that the application forked may hold the same description: it would go on
        # reporting.
        self._shared.epoll.unregister(self._fd)
        del self._shared.connections[self._fd]
        self._shared.stats.connections -= 1
        self.sock.close()

    def _drop_body(self) -> None:
        if self._body is not None:
            self._body.spool.close()
            self._body = None
