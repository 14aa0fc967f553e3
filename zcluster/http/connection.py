"""One client: its socket, and what it sent.

Invariant: a connection has exactly one owner. The loop owns it in every state but WORK; in WORK it belongs to the
thread that runs its request, until `come_back`. Only the loop tells epoll about it, and only the loop closes it: a
descriptor closed by anybody else could be another client's by the time the loop looks. A request is only begun when
the response before it has left: nothing is answered out of order.

Theory of operation.

    IDLE   nothing of the next request is here        -> HEAD, BODY, WORK
    HEAD   some bytes of a request head are here      -> BODY, WORK
    BODY   the head is parsed, its body is collected  -> WORK
    WORK   the application runs                       -> IDLE, FLUSH, LINGER, CLOSED
    FLUSH  the response did not fit the socket        -> IDLE, LINGER, CLOSED
    LINGER answered for good; what still comes is read and thrown away, so that a reset does not overtake the answer
    CLOSED

In WORK the connection stays in epoll: most requests are over before anything happens on it. If something does (a
pipelined request, a FIN, a reset) the loop takes it out, and puts it back when it has come back.

`deadline` is the moment the present state ends by time-out (`expire`); the engine looks at all of them a few times a
second. Bytes beyond the present request wait in `buffer`, which never grows beyond one head and one read.
"""

import contextlib
import socket
import time
from io import BufferedReader, BytesIO
from typing import TYPE_CHECKING

from .body import READ_AHEAD_BYTES, Intake, Stream
from .crew import Relieved
from .exchange import Exchange
from .head import CHUNKED, CLOSE, EXPECT, SIZED, Refusal, check_beginning
from .outbox import ShortFile
from .responses import plain_response
from .tls import tls_environ
from .wire import BODY, FLUSH, HEAD, IDLE, IN, LINGER, OUT, WORK, Wire

if TYPE_CHECKING:
    from wsgiref.types import WSGIEnvironment

    from .shared import Shared

END = b"\r\n\r\n"
# A browser's head ten times over, and the largest TLS record; larger reads cost an allocation.
HEAD_READ_BYTES = 16384


class Connection(Wire):
    """One client of one engine."""

    __slots__ = (
        "_base", "_close_after", "_moved_bytes", "_peer_host", "_peer_port", "_scanned", "waiting_turn",
    )  # fmt: skip

    def __init__(
        self, sock: socket.socket, base: "WSGIEnvironment", host: str, port: str, shared: "Shared", *, tls: bool
    ) -> None:
        super().__init__(sock, shared, tls=tls)
        self.waiting_turn = False  # it has had its `pipelined` requests and more are in the buffer
        self._base = base
        self._peer_host = host
        self._peer_port = port
        self._scanned = 0  # of an incomplete head: what was searched for its end
        self._close_after = False  # when FLUSH is over
        self._moved_bytes = 0  # since the deadline of BODY or FLUSH last moved
        self._watch(IN)

    # ---- what epoll reports ----------------------------------------------------------------------------------------
    def ready(self) -> None:
        """Epoll says the socket can be read, or written in FLUSH; errors surface in the calls themselves."""
        state = self.state
        if state >= WORK:
            if state == WORK:
                self._watch(0)
                return
            if state == FLUSH:
                if self._watched & IN:
                    self._throw_away()
                self._flush()
                return
        if self.waiting_turn:
            return  # level-triggered: it will be said again when the buffer is empty
        try:
            intake = self._intake
            data = self.sock.recv(intake.read_bytes if intake is not None else HEAD_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            if self.tls:
                # Not for IN too, where OpenSSL has to write before it reads on: it would be said again and again. But
                # at the end it reads no more, and we do. Once it can write and read, nothing is left, and IN is back.
                self._watch((OUT if state < LINGER else IN | OUT) if self.wants_write else IN)
            return
        except OSError:  # reset by the client
            data = b""
        if not data:
            self.close()
        elif state <= HEAD:
            if self.tls and "SSL_PROTOCOL" not in self._base:
                self._base = {**self._base, **tls_environ(self.sock)}  # type: ignore[arg-type]
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
            self._flush()  # it may have taken something while the application kept the loop busy
            if self.state == FLUSH and self.deadline < time.monotonic():
                self._shared.stats.refuse("client stopped reading")
                self.abort()
        elif state == LINGER:
            self.close()
        elif state == WORK or self.waiting_turn or (self._watched & IN and self.has_unread()):
            pass  # it was not the client who was slow: the application kept the loop busy
        elif state == IDLE:
            self.close()
        else:
            self.refuse(Refusal(408, "head time-out" if state == HEAD else "body time-out"))

    # ---- requests --------------------------------------------------------------------------------------------------
    def advance(self, data: bytes) -> None:
        """Answer what is complete in `data`, keep the rest. Relieved when the loop was lost on the way."""
        shared = self._shared
        if data.endswith(END):
            # Nearly always this is one ordinary request and nothing else. To see so while it is parsed, instead of
            # searching for the head's end before, costs 0.3 us less with a browser's twelve fields.
            self.buffer = b""
            environ = self._base.copy()
            environ["REMOTE_ADDR"] = self._peer_host
            environ["REMOTE_PORT"] = self._peer_port
            try:
                flags = shared.parser.parse_ordinary(data, environ)
            except Refusal as refusal:
                self.refuse(refusal)
                return
            if not flags or (flags > 0 and not flags & (SIZED | CHUNKED)):
                self._scanned = 0
                environ["wsgi.input"] = BytesIO()
                self._start(Exchange(self, shared, environ, flags))
                return
        turns = 1
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
            environ["wsgi.input"] = BytesIO()
            self._start(Exchange(self, shared, environ, flags))
            if self.state > HEAD:
                return
            data = self.buffer
            if not data:
                return
            turns += 1
            if turns > shared.limits.pipelined:
                self._wait_for_turn()
                return

    def _start(self, exchange: Exchange) -> None:
        """Run a request: here, or in another thread when it is believed to block."""
        shared = self._shared
        crew = shared.crew
        self.exchange = exchange
        self.state = WORK
        if (exchange.stream is not None or (shared.predictor.active and exchange.will_block())) and crew.give(
            exchange
        ):
            return
        exchange.tenure = tenure = crew.inline
        tenure.append(exchange)
        if crew.resting:
            crew.wake_monitor()
        exchange.serve()
        try:
            tenure.pop()
        except IndexError:  # the loop was taken away from this thread, and with it the right to go on here
            crew.off_loop.pop(exchange, None)
            shared.come_back(self)
            raise Relieved from None
        if exchange.flags or self.cut or self.broken or self.out is not None or self._watched != IN:
            self.settle()
            return
        # The rule, without the questions of `settle`.
        self.exchange = None
        crew.beat += 1
        self.state = IDLE
        self.deadline = exchange.ended + shared.keep_alive_s

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

    # ---- bodies ----------------------------------------------------------------------------------------------------
    def _begin_body(self, environ: "WSGIEnvironment", flags: int) -> None:
        limits = self._shared.limits
        data, self.buffer = self.buffer, b""
        if data:  # a client that has begun its body no longer waits for our consent (RFC 9110, 10.1.1)
            flags &= ~EXPECT
        self._intake = Intake(environ, flags, limits)
        self._moved_bytes = 0
        self.state = BODY
        self.deadline = time.monotonic() + limits.body_timeout_s
        if data:
            self._collect(data)
        elif flags & EXPECT and not self._stream():
            self._intake.flags &= ~EXPECT  # given here: not again by a stream that follows
            with contextlib.suppress(BrokenPipeError):
                self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if self.broken or self.out is not None:  # a client that does not even take 25 bytes
                self.abort()

    def _collect(self, data: bytes) -> None:
        """More of the body; when it is whole, or too long to be collected, the application runs."""
        intake, limits = self._intake, self._shared.limits
        assert intake is not None
        try:
            self.buffer = intake.take(data)
            if intake.is_too_long and not intake.decoder.done:
                if self._stream():
                    return  # another thread owns it now, the decoder included
                intake.move_to_file()
        except Refusal as refusal:
            self.refuse(refusal)
            return
        except OSError as error:
            text = "a request body cannot be spooled to a temporary file: %s; free space in TMPDIR"
            self._shared.log.error(text, error)
            self.refuse(Refusal(503, "no space for the body"))
            return
        if not intake.decoder.done:
            self._moved(len(data), limits.body_timeout_s)
            return
        self._intake = None
        exchange = Exchange(self, self._shared, intake.environ, intake.flags)
        exchange.body = intake.finish()
        self._start(exchange)
        self._go_on()

    def _stream(self) -> bool:
        """Let the application have the body as it comes, in a thread that may wait; false when none may."""
        intake, shared = self._intake, self._shared
        assert intake is not None
        if not intake.may_stream or not shared.crew.take_patience():
            return False
        self._intake = None
        stream = Stream(self, intake, shared.limits)
        exchange = Exchange(self, shared, intake.environ, intake.flags, stream)
        exchange.body = intake.environ["wsgi.input"] = BufferedReader(stream, READ_AHEAD_BYTES)
        self._start(exchange)
        self._go_on()  # it is over already where no other thread could be had
        return True

    def _moved(self, count: int, timeout_s: float) -> None:
        """Progress postpones the deadline, but not byte by byte."""
        self._moved_bytes += count
        if self._moved_bytes >= self._shared.limits.progress_bytes:
            self._moved_bytes = 0
            self.deadline = time.monotonic() + timeout_s

    # ---- responses -------------------------------------------------------------------------------------------------
    def settle(self) -> None:
        """The exchange is over and the loop owns us again: go on, or end, now or when the client has all of it."""
        exchange, shared = self.exchange, self._shared
        assert exchange is not None
        self.exchange = None
        shared.crew.beat += 1
        if exchange.stream is not None:
            self.buffer = exchange.stream.rest
        if self.broken or self.cut:
            self.end()
        elif self.out is not None:
            close = bool(exchange.flags & CLOSE)
            # A client that is still sending a body nobody reads may not listen before it is through with it.
            self._await_client(IN | OUT if close and exchange.stream is not None else OUT, close=close)
        elif exchange.flags & CLOSE:
            # Unread bytes at close() would be a reset. Looked for here, because of what came meanwhile.
            linger = bool(self.buffer) or shared.draining or exchange.stream is not None or self.has_unread()
            self._finish(linger=linger)
        else:
            self._rest(exchange.ended)

    def come_back(self) -> None:
        """From the thread that ran the request, by way of the loop's queue."""
        self.settle()
        self._go_on()

    def _await_client(self, mask: int, *, close: bool) -> None:
        """What is in the outbox leaves as the client takes it; `close` says what follows."""
        self.state, self._close_after, self._moved_bytes = FLUSH, close, 0
        self.deadline = time.monotonic() + self._shared.limits.write_timeout_s
        self._watch(mask)

    def _rest(self, since: float) -> None:
        """Until the next request comes, or the keep-alive time is over."""
        self.state = IDLE
        self.deadline = since + self._shared.keep_alive_s
        self._watch(IN)

    def _go_on(self) -> None:
        """If the next request is here already, it is taken in turn."""
        if self.state == IDLE and self.buffer:
            self._wait_for_turn()

    def _flush(self) -> None:
        out = self.out
        assert out is not None
        try:
            sent = out.flush(self.sock)
        except (OSError, ShortFile) as error:
            self.lose(error)
            self.end()
            return
        self._moved(sent, self._shared.limits.write_timeout_s)
        if not out.empty:
            return
        self.out = None
        if self._close_after:
            self._watch(IN)
            self._finish(linger=True)
            return
        self._rest(time.monotonic())
        self._go_on()

    def _throw_away(self) -> None:
        """What comes in FLUSH, of a body that nobody reads."""
        try:
            data = self.sock.recv(READ_AHEAD_BYTES)
        except (BlockingIOError, InterruptedError):
            if self.wants_write:  # as in `ready`
                self._watch(OUT)
            return
        except OSError:  # the next write says the same
            data = b""
        if not data:
            self._watch(OUT)

    def refuse(self, refusal: Refusal) -> None:
        """Answer without the application, and end."""
        self._shared.stats.refuse(refusal.reason)
        self._drop_body()
        with contextlib.suppress(BrokenPipeError):
            self.write(plain_response(self._shared, refusal.status, CLOSE, refusal.reason))
        if self.broken:
            self.close()
        elif self.out is None:
            self._finish(linger=True)
        else:
            self._await_client(OUT, close=True)
