"""One request through the application: PEP 3333, and the response on the wire.

Invariant: a client never gets a response that looks whole and is not. What the application does wrong before the
first byte left becomes a 500; what it does wrong afterwards cuts the connection with a reset.

The head leaves together with the first bytes of the body, so `start_response` may be called again with `exc_info`
until then. Nothing of the application's output is delayed: each block goes to the socket, or into the outbox, before
the next one is asked for.

An exchange runs in one thread: inline in the one that leads the loop, or in another. It tells the predictor how long
the application took, so that the next request of its kind runs where it should.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterable
from time import monotonic, thread_time
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO
from wsgiref.types import WSGIEnvironment

from . import failures
from .body import Stream
from .crew import Job
from .files import FileWrapper, part_of
from .head import CLOSE, OLD
from .predictor import HOG_S, LONG_S, SURELY_SLOW, UNSURE, is_slow
from .responses import DATE_GIVEN, LINES, SERVER_GIVEN, connection_field, status_line, take_fields
from .shared import SERVER

if TYPE_CHECKING:
    from .connection import Connection
    from .shared import Shared

ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]

_BODILESS = frozenset({"204", "304"})
PATIENT, LAST_RESORT = 1, 2  # may wait for the client; may, because nothing else is left
JOIN_BYTES = 16384  # up to here copying the body behind its head is cheaper than a second buffer in the call


class Exchange:
    """One request and its response; lives in one thread."""

    __slots__ = (
        "_chunked", "_connection", "_cpu_s", "_given", "_left", "_patience", "_shared", "_trimmed",
        "bodiless", "body", "complete", "done", "ended", "environ", "fields", "flags", "method", "path", "sent",
        "sent_bytes", "started", "status_line", "stream", "tenure",
    )  # fmt: skip

    def __init__(
        self, connection: "Connection", shared: "Shared", environ: WSGIEnvironment, flags: int,
        stream: Stream | None = None,
    ) -> None:  # fmt: skip
        self.environ = environ
        # Kept apart: an application may do with its environ what it likes, shift_path_info for one does.
        self.method = environ["REQUEST_METHOD"]
        self.path = environ["PATH_INFO"]
        self.flags = flags
        self.stream = stream  # the body, when it is still on its way
        self.tenure: list[Job] | None = None  # the list that says whether our thread still leads; None: it never did
        self.body: BinaryIO | None = None  # wsgi.input, when it must be closed
        self.started = 0.0
        self.ended = 0.0
        self.sent = False  # the head has left
        self.sent_bytes = 0  # of the body
        self.complete = False
        self.done = False
        self._connection = connection
        self._shared = shared
        self.status_line = ""
        self._patience = 0 if stream is None else PATIENT
        self._cpu_s = 0.0

    @property
    def log(self) -> logging.Logger:
        """Where errors of the application go."""
        return self._shared.log

    def progress(self) -> int:
        """What moves between the application and its client, in bytes; -1 while a thread waits for the client."""
        return -1 if self._connection.waiting else self.sent_bytes + self._connection.taken_bytes

    # ---- what the application sees ---------------------------------------------------------------------------------
    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None, /
    ) -> Callable[[bytes], None]:
        """PEP 3333. TypeError or ValueError for what cannot be a response."""
        if exc_info is not None:
            try:
                if self.sent and exc_info[1] is not None:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # a cycle through the traceback otherwise
        elif self.status_line:
            raise RuntimeError("start_response was called twice; the second time needs exc_info")
        line = LINES.get(status)
        bodiless = self.method == "HEAD"
        if line is None:  # 204, 304, or none of the registered ones
            line = status_line(status)
            bodiless = bodiless or status[:3] in _BODILESS
        self.fields, self._left, self._given, close = take_fields(headers)
        if close:
            self.flags |= CLOSE
        self.bodiless = bodiless
        if bodiless and status[:3] == "204":
            self._left = -1  # RFC 9110, 8.6: a 204 has no Content-Length
        self.status_line = line
        return self.write

    def write(self, data: bytes, /) -> None:
        """Send one block, with the head in front of the first; BrokenPipeError when the client is gone."""
        if (
            self.status_line and not (self.sent or self.done or self.bodiless) and type(data) is bytes
            and 0 < len(data) == self._left
        ):  # fmt: skip
            # The rule of frameworks: the first block is all of it. What follows would do the same.
            head = self._head(-1)
            self._left, self.sent_bytes = 0, len(data)
            if len(data) <= JOIN_BYTES:
                self._connection.write(head + data)
            else:
                self._connection.write(head, data)
            return
        if not isinstance(data, bytes):
            raise TypeError(f"a response body is made of bytes, not {type(data).__name__}")
        if self.complete or self.done:  # it would be taken for the beginning of the next response
            raise RuntimeError("write() was called for a response that is over")
        if not data:
            return
        head = b"" if self.sent else self._head(-1)
        if self.bodiless:
            if head:
                self._connection.write(head)
            return
        size = len(data)
        if self._left >= 0:
            if size > self._left:
                self._trimmed = True
                data, size = data[: self._left], self._left
            self._left -= size
        self.sent_bytes += size
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (size, data)
        if size <= JOIN_BYTES:
            data = head + data
            if data:
                self._connection.write(data)
        else:
            self._connection.write(head, data)

    # ---- the response ----------------------------------------------------------------------------------------------
    def _head(self, length: int) -> bytes:
        """The head; `length` of the body when it is known though the application did not say it, else -1."""
        if not self.status_line:
            raise RuntimeError("the application gave a body before it called start_response")
        shared, stream = self._shared, self.stream
        if shared.draining or (stream is not None and not stream.decoder.done):
            # What is left of a body nobody reads would be taken for the next request; and who knows how much it is?
            self.flags |= CLOSE
        self._chunked = self._trimmed = False
        now = self.ended or monotonic()
        if now >= shared.date_until:
            shared.refresh_date(now)
        if self._left >= 0 and not (self.flags or self._given):  # the rule: what follows would write the same
            text = f"{self.status_line}{shared.date_and_server}{self.fields}Content-Length: {self._left}\r\n\r\n"
            head = text.encode("latin-1")
            self.sent = True
            return head
        framing = ""
        if self._left >= 0:
            framing = f"Content-Length: {self._left}\r\n"
        elif length >= 0:
            # To HEAD an empty list says nothing (frameworks strip the body); a 204 or 304 has no length.
            if not self.bodiless or (length and self.status_line[9:12] not in _BODILESS):
                framing = f"Content-Length: {length}\r\n"
        elif self.bodiless:
            pass
        elif self.flags & OLD:
            self.flags |= CLOSE  # the end of the connection is the end of the body
        else:
            self._chunked = True
            framing = "Transfer-Encoding: chunked\r\n"
        if not self._given:
            ours = shared.date_and_server
        else:
            ours = shared.date if not self._given & DATE_GIVEN else ""
            if not self._given & SERVER_GIVEN:
                ours += f"Server: {SERVER}\r\n"
        connection = connection_field(self.flags) if self.flags else ""
        head = f"{self.status_line}{ours}{self.fields}{framing}{connection}\r\n".encode("latin-1")
        self.sent = True  # only now: what cannot be encoded is still answered with a 500
        return head

    def _send_whole(self, body: bytes) -> None:
        """The response is complete in memory: one head with the right length, one send."""
        shared, length = self._shared, len(body)
        if (
            self.status_line
            and not (self.flags or self.bodiless or self._given or shared.draining)
            and (self._left < 0 or self._left == length)
            and self.stream is None
        ):  # the rule: what `_head` would write, without its questions
            if self.ended >= shared.date_until:
                shared.refresh_date(self.ended)
            text = f"{self.status_line}{shared.date_and_server}{self.fields}Content-Length: {length}\r\n\r\n"
            head = text.encode("latin-1")
            self.sent = True
        elif self.status_line and 0 <= self._left != length and not self.bodiless:
            self.write(body)
            self._finish()
            return
        else:
            head = self._head(length)
            if self.bodiless:
                body = b""
        self.sent_bytes = len(body)
        if length <= JOIN_BYTES:
            self._connection.write(head + body)
        else:
            self._connection.write(head, body, whole=True)
        self.complete = True

    def _send_pieces(self, result: Iterable[bytes]) -> None:
        """The response comes block by block."""
        try:
            if self.sent or not isinstance(result, FileWrapper) or not self._send_file(result):
                for data in result:
                    if data or type(data) is not bytes:  # what is empty and no bytes is an error all the same
                        self.write(data)
                        if self.bodiless:
                            break  # the head is all there is to send
                if self.sent and not (self._left or self._chunked or self._trimmed):
                    self.complete = True  # as `_finish` would find
                else:
                    self._finish()
        finally:
            close = getattr(result, "close", None)
            if close is not None:
                close()
            self.ended = now = monotonic()
            if now - self.started >= LONG_S or self._cpu_s:
                self._learn(now)

    def _send_file(self, wrapper: FileWrapper) -> bool:
        """Leave a file to the loop; false when it has to be read like everything else."""
        part = part_of(wrapper)
        if part is None:
            return False
        try:
            if 0 <= self._left < part.size:
                part = part._replace(size=self._left)  # a file may be longer than what the application wants of it
            if self._left > part.size or self.bodiless:
                return False  # too short: said and cut like everything else
            self._connection.write(self._head(part.size))
            self.sent_bytes = part.size
            self._connection.write_file(os.dup(part.fd), part.offset, part.size)
        finally:
            os.close(part.fd)
        self.complete = True
        return True

    def _finish(self) -> None:
        """The application has given all: end the body, or cut what it left open."""
        if not self.sent:
            self._connection.write(self._head(0))
        if self.bodiless:
            pass
        elif self._chunked:
            self._connection.write(b"0\r\n\r\n", whole=True)
        elif self._left > 0:
            failures.log(self, "gave %d bytes less than its Content-Length; the connection is cut", self._left)
            self._connection.cut = True
        self.complete = True
        if self._trimmed:
            failures.log(self, "gave more bytes than its Content-Length; they were left out")

    # ---- running ---------------------------------------------------------------------------------------------------
    def will_block(self) -> bool:
        """Does the predictor believe so? If it is not sure, the request runs here, and is measured."""
        shared = self._shared
        guess = shared.predictor.guess(self.method, self.path)
        if guess == UNSURE:
            self._cpu_s = thread_time()
        return guess == SURELY_SLOW and shared.crew.many

    def may_wait(self, *, last_resort: bool = False) -> bool:
        """The client is slow: whether this thread may wait for it, instead of leaving the rest to a file."""
        crew = self._shared.crew
        if not self._patience and crew.take_patience(last_resort=last_resort):
            if not crew.many or crew.step_down(self.tenure):
                self._patience = LAST_RESORT if last_resort else PATIENT
            else:
                crew.give_patience(last_resort=last_resort)
        return bool(self._patience)

    def perform(self) -> None:
        """Run in a thread that does not lead, and give the connection back to the loop."""
        self._cpu_s = thread_time()
        self.serve()
        self._shared.come_back(self._connection)

    def serve(self) -> None:
        """Run the application. Raises nothing of the user's, and leaves the end of the connection to the loop."""
        shared = self._shared
        self.started = started = monotonic()
        try:
            try:
                result = shared.app(self.environ, self.start_response)
                if (type(result) is list or type(result) is tuple) and not self.sent:
                    self.ended = now = monotonic()
                    if now - started >= LONG_S or self._cpu_s:
                        self._learn(now)
                    whole = len(result) == 1 and type(result[0]) is bytes  # the rule; join() says what is wrong
                    self._send_whole(result[0] if whole else b"".join(result))
                else:
                    self._send_pieces(result)
            except BaseException as error:  # user code was called: whatever it is, it ends this request only
                failures.ended_by(self, self._connection, shared, error)
                self.ended = self.ended or monotonic()
            if shared.forked:
                failures.end_child(self, None)
            if shared.access is not None:
                if not self.status_line:  # it never came so far, and its client has gone
                    self.status_line, self.fields = failures.LINE_GONE, ""
                duration_s = self.ended - self.started
                shared.access.note(self.environ, self.status_line, self.fields, self.sent_bytes, duration_s)
        except BaseException:  # a bug of ours, or a log handler's, must cost one connection, not the thread
            shared.stats.failures += 1
            self._connection.cut = True
            with contextlib.suppress(BaseException):  # from such a handler, again
                self.log.exception("internal error in the HTTP engine; this connection is cut. Please report it")
        if self.body is not None:
            # Views of its memory are in use, or it was detached: the application's to keep, and no error. What is
            # unwritten, where the application wrote into it, is nobody's.
            with contextlib.suppress(BufferError, ValueError, OSError):
                self.body.close()
            if self.stream is not None:
                self.stream.close()  # itself too: detached, it would read on in a socket that is the loop's again
        # Werkzeug's request and its environ refer to each other: without this only the garbage collector would free
        # them, and with them uploaded files. 1.3 us of CPU per request less.
        self.environ.pop("werkzeug.request", None)
        if self._patience:
            shared.crew.give_patience(last_resort=self._patience == LAST_RESORT)
        self.done = True

    def _learn(self, now: float) -> None:
        """Tell the predictor what the application has just shown."""
        predictor = self._shared.predictor
        elapsed_s = now - self.started
        if elapsed_s < LONG_S:
            slow = False
        elif self.tenure is not None and not self.tenure:
            slow = True  # the loop was taken away from it
        elif self._cpu_s or elapsed_s >= HOG_S:
            slow = is_slow(elapsed_s, thread_time() - self._cpu_s)
        else:
            predictor.suspect(self.method, self.path, now)  # did it wait or compute? The next one of its kind tells
            return
        if slow or predictor.active:
            predictor.learn(self.method, self.path, now, slow=slow)


def base_environ(
    host: str, port: str, extra: Iterable[tuple[str, object]], *, threads: bool, tls: bool
) -> WSGIEnvironment:
    """What every request that comes in at one address has in common. The order of keys is of no meaning.

    Keys that every request sets stand here too: a dict copied with room for them is not resized when they are set.
    """
    return {
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "https" if tls else "http",
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": threads,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
        "wsgi.input": None,
        "wsgi.file_wrapper": FileWrapper,
        "SERVER_SOFTWARE": SERVER,
        "GATEWAY_INTERFACE": "CGI/1.1",
        "SERVER_NAME": host,
        "SERVER_PORT": port,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SCRIPT_NAME": "",
        "REMOTE_ADDR": "",
        "REMOTE_PORT": "",
        "REQUEST_METHOD": "",
        "RAW_URI": "",
        "REQUEST_URI": "",
        "PATH_INFO": "",
        "QUERY_STRING": "",
        **({"HTTPS": "on"} if tls else {}),
        **dict(extra),
    }
