"""One request through the application: PEP 3333, and the response on the wire.

Invariant: a client never gets a response that looks whole and is not. What the application does wrong before the
first byte left becomes a 500; what it does wrong afterwards cuts the connection with a reset.

The head leaves together with the first bytes of the body, so `start_response` may be called again with `exc_info`
until then. Nothing of the application's output is delayed: each block goes to the socket, or into the outbox, before
the next one is asked for.
"""

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn
from wsgiref.types import WSGIEnvironment

from .head import CLOSE, OLD
from .shared import SERVER, Shared

if TYPE_CHECKING:
    from .connection import Connection

ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]

JOIN_BYTES = 16384  # up to here copying the body behind its head is cheaper than a second buffer in the call
INTERRUPTED = 130  # what a shell reports for Ctrl-C: 128 + SIGINT

_ORDINARY, _DATE, _SERVER, _LENGTH, _CONNECTION, _CODING, _DROP = range(7)  # 1 and 2 serve as bits too
_SPECIAL = {
    "content-length": _LENGTH, "date": _DATE, "server": _SERVER, "connection": _CONNECTION,
    "transfer-encoding": _CODING,
    # PEP 3333 forbids hop-by-hop fields to applications; these are harmless to leave out
    "keep-alive": _DROP, "te": _DROP, "trailer": _DROP, "upgrade": _DROP, "proxy-connection": _DROP,
}  # fmt: skip
_COMMON = """
Accept-Ranges Access-Control-Allow-Origin Age Allow Cache-Control Content-Disposition Content-Encoding
Content-Language Content-Length Content-Location Content-Range Content-Security-Policy Content-Type Date ETag
Expires Last-Modified Link Location Permissions-Policy Pragma Referrer-Policy Retry-After Server Set-Cookie
Strict-Transport-Security Vary WWW-Authenticate X-Content-Type-Options X-Frame-Options X-Request-ID
""".split()  # noqa: SIM905 (thirty quoted strings are no easier to read)
_KINDS = {spelling: _SPECIAL.get(name.lower(), _ORDINARY) for name in _COMMON for spelling in (name, name.lower())}
_is_token = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_is_status = re.compile(r"[2-5][0-9]{2}(?: [\t -~\x80-\xff]*)?").fullmatch
_LINES = {
    f"{status} {status.phrase}": f"HTTP/1.1 {status} {status.phrase}\r\n" for status in HTTPStatus if status >= 200
}


def plain_response(shared: Shared, status: int, flags: int, reason: str = "", head_only: bool = False) -> bytes:
    """A short text response of our own, head and body; `flags` as from the head parser."""
    phrase = HTTPStatus(status).phrase
    body = f"{phrase}: {reason}\n" if reason else f"{phrase}\n"
    shared.refresh_date(time.monotonic())
    return (
        f"HTTP/1.1 {status} {phrase}\r\nServer: {SERVER}\r\n{shared.date}Content-Type: text/plain\r\n"
        f"Content-Length: {len(body)}\r\n{_connection(flags)}\r\n{'' if head_only else body}"
    ).encode("ascii")


def _connection(flags: int) -> str:
    if flags & CLOSE:
        return "Connection: close\r\n"
    return "Connection: keep-alive\r\n" if flags & OLD else ""


def _kind(name: str) -> int:
    """What a response field is to us, for a spelling that `_KINDS` does not hold."""
    if not _is_token(name):
        raise ValueError(f"{name!r} is not a header field name")
    return _SPECIAL.get(name.lower(), _ORDINARY)


class Exchange:
    """One request and its response; lives in one thread."""

    __slots__ = (
        "_bodiless", "_chunked", "_complete", "_connection", "_fields", "_flags", "_given", "_left", "_sent",
        "_shared", "_status_line", "_trimmed", "environ",
    )  # fmt: skip

    def __init__(self, connection: "Connection", shared: Shared, environ: WSGIEnvironment, flags: int) -> None:
        self.environ = environ
        self._connection = connection
        self._shared = shared
        self._flags = flags
        self._status_line = ""
        self._fields = ""
        self._left = -1  # of the Content-Length the application gave; -1: it gave none
        self._given = 0  # which of Date and Server it gave, as bits
        self._sent = False  # the head has left
        self._chunked = False
        self._bodiless = environ["REQUEST_METHOD"] == "HEAD"
        self._trimmed = False
        self._complete = False

    # ---- what the application sees ---------------------------------------------------------------------------------
    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None, /
    ) -> Callable[[bytes], None]:
        """PEP 3333. TypeError or ValueError for what cannot be a response."""
        if exc_info is not None:
            try:
                if self._sent and exc_info[1] is not None:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # a cycle through the traceback otherwise
        elif self._status_line:
            raise RuntimeError("start_response was called twice; the second time needs exc_info")
        line = _LINES.get(status)
        if line is None:
            if not _is_status(status):
                raise ValueError(f"{status!r} is not a response status such as '200 OK'")
            line = f"HTTP/1.1 {status:<4}\r\n"  # the blank stays when there is no phrase
        self._take_headers(headers)
        self._bodiless = self.environ["REQUEST_METHOD"] == "HEAD" or status[:3] in ("204", "304")
        if status[:3] == "204":
            self._left = -1  # RFC 9110, 8.6: a 204 has no Content-Length
        self._status_line = line
        return self.write

    def _take_headers(self, headers: Iterable[tuple[str, str]]) -> None:
        """Check the fields, keep what is ours to write apart, and join the rest."""
        kinds = _KINDS
        lines = []
        self._left, self._given = -1, 0
        for name, value in headers:
            kind = kinds.get(name)
            if kind is None:
                kind = _kind(name)
            if kind:
                if kind == _LENGTH:
                    if not (value.isascii() and value.isdigit()) or self._left >= 0:
                        raise ValueError(f"{value!r} is not a Content-Length, or it is the second one")
                    self._left = int(value)
                    continue
                if kind == _CONNECTION:
                    if "close" in value.lower():
                        self._flags |= CLOSE
                    continue
                if kind == _CODING:
                    raise ValueError("Transfer-Encoding is the server's business, not the application's (PEP 3333)")
                if kind == _DROP:
                    continue
                self._given |= kind
            lines.append(name + ": " + value)  # TypeError for what is no str
        text = "\r\n".join(lines) + "\r\n" if lines else ""
        count = len(lines)
        if text.count("\n") != count or text.count("\r") != count or "\0" in text:
            raise ValueError("a response header value contains CR, LF or NUL")
        self._fields = text

    def write(self, data: bytes, /) -> None:
        """Send one block, with the head in front of the first; BrokenPipeError when the client is gone."""
        if not isinstance(data, bytes):
            raise TypeError(f"a response body is made of bytes, not {type(data).__name__}")
        if not data:
            return
        if self._sent:
            head = b""
        else:
            head = self._head(-1)
        if self._bodiless:
            if head:
                self._connection.write(head)
            return
        if self._left >= 0:
            if len(data) > self._left:
                self._trimmed = True
                data = data[: self._left]
            self._left -= len(data)
        elif self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if len(data) <= JOIN_BYTES:
            data = head + data
            if data:
                self._connection.write(data)
        else:
            self._connection.write(head, data)

    # ---- the response ----------------------------------------------------------------------------------------------
    def _head(self, length: int) -> bytes:
        """The head; `length` of the body when it is known though the application did not say it, else -1."""
        if not self._status_line:
            raise RuntimeError("the application gave a body before it called start_response")
        if self._shared.draining:
            self._flags |= CLOSE
        framing = ""
        if self._left >= 0:
            framing = f"Content-Length: {self._left}\r\n"
        elif length >= 0:
            # To HEAD an empty list says nothing (frameworks strip the body); a 204 or 304 has no length.
            if not self._bodiless or (length and self._status_line[9:12] not in ("204", "304")):
                framing = f"Content-Length: {length}\r\n"
        elif self._bodiless:
            pass
        elif self._flags & OLD:
            self._flags |= CLOSE  # the end of the connection is the end of the body
        else:
            self._chunked = True
            framing = "Transfer-Encoding: chunked\r\n"
        shared = self._shared
        shared.refresh_date(time.monotonic())
        ours = shared.date if not self._given & _DATE else ""
        if not self._given & _SERVER:
            ours += "Server: zcluster\r\n"
        flags = self._flags
        connection = _connection(flags) if flags else ""
        head = f"{self._status_line}{ours}{self._fields}{framing}{connection}\r\n".encode("latin-1")
        self._sent = True  # only now: what cannot be encoded is still answered with a 500
        return head

    def _run(self) -> None:
        """Call the application and send what it returns."""
        result = self._shared.app(self.environ, self.start_response)
        kind = type(result)
        if (kind is list or kind is tuple) and not self._sent:
            self._send_whole(b"".join(result))
            return
        try:
            for data in result:
                if data:
                    self.write(data)
                    if self._bodiless:
                        break  # the head is all there is to send
            self._finish()
        finally:
            close = getattr(result, "close", None)
            if close is not None:
                close()

    def _send_whole(self, body: bytes) -> None:
        """The response is complete in memory: one head with the right length, one send."""
        length = len(body)
        if self._left >= 0 and self._left != length and not self._bodiless:
            self.write(body)
            self._finish()
            return
        head = self._head(length)
        if self._bodiless:
            self._connection.write(head)
        elif length <= JOIN_BYTES:
            self._connection.write(head + body)
        else:
            self._connection.write(head, body)
        self._complete = True

    def _finish(self) -> None:
        """The application has given all: end the body, or cut what it left open."""
        if not self._sent:
            self._connection.write(self._head(0))
        if self._bodiless:
            pass
        elif self._chunked:
            self._connection.write(b"0\r\n\r\n")
        elif self._left > 0:
            self._log("gave %d bytes less than its Content-Length; the connection is cut", self._left)
            self._connection.abort()
        self._complete = True
        if self._trimmed:
            self._log("gave more bytes than its Content-Length; they were left out")

    def serve(self) -> None:
        """Run the application and leave the connection ready for what comes next. Raises nothing of the user's."""
        stats = self._shared.stats
        stats.oldest_started = time.monotonic()
        stats.inflight = 1
        try:
            self._run()
        except BrokenPipeError as error:
            if self._connection.is_open:  # not our client: some pipe of the application's own
                self._failed(error)
        except (SystemExit, KeyboardInterrupt) as error:
            self._leave(error)
        except BaseException as error:  # user code was called: whatever it is, it ends this request only
            self._failed(error)
        finally:
            stats.inflight = 0
            stats.oldest_started = 0.0
            stats.requests += 1
        if self._shared.forked:
            self._end_child(None)
        # A close-delimited response and one that announced it both set CLOSE when the head was made.
        self._connection.settle(bool(self._flags & CLOSE))

    # ---- what goes wrong -------------------------------------------------------------------------------------------
    def _end_child(self, error: BaseException | None) -> NoReturn:
        """A process that the application forked has come back to us: its parent answers, and it is no worker."""
        if isinstance(error, SystemExit):
            code = self._exit_code(error)
        else:
            code = 1
            self._log(
                "forked a process that returned from the request; it is ended (os._exit() is how it should end)",
                exc_info=error,
            )
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # closed, or nobody reads it
                stream.flush()
        os._exit(code)  # neither our loop nor the worker's atexit functions are for it

    def _failed(self, error: BaseException) -> None:
        """The application raised: a 500 when nothing was sent, else the end of the connection; always logged."""
        if self._shared.forked:
            self._end_child(error)
        environ = self.environ
        outcome = "answered 500" if not self._sent else "the connection is cut"
        if self._complete:
            outcome = "the response was complete"
        self._shared.log.error(
            "%s %s: the application raised (%s)",
            environ["REQUEST_METHOD"],
            environ["RAW_URI"],
            outcome,
            exc_info=error,
        )
        if self._complete:
            return
        if self._sent:
            self._connection.abort()
            return
        self._sent = True
        if self._shared.draining:
            self._flags |= CLOSE
        head_only = environ["REQUEST_METHOD"] == "HEAD"
        try:
            self._connection.write(plain_response(self._shared, 500, self._flags, head_only=head_only))
        except BrokenPipeError:
            pass  # the client did not wait for its error either

    def _leave(self, error: BaseException) -> None:
        """SystemExit (or Ctrl-C) in a request: this one fails; the worker drains and ends with the code."""
        if self._shared.forked:
            self._end_child(error)
        code = self._exit_code(error)
        self._flags |= CLOSE
        self._failed(error)
        self._shared.leave(code)

    def _exit_code(self, error: BaseException) -> int:
        """What the interpreter would make of it."""
        code: object = error.code if isinstance(error, SystemExit) else INTERRUPTED
        if code is None:
            return 0
        if isinstance(code, int):
            return code
        self._shared.log.error("%s", code)  # as the interpreter prints it at exit
        return 1

    def _log(self, text: str, *args: object, exc_info: BaseException | None = None) -> None:
        environ = self.environ
        line = "%s %s: the application " + text
        self._shared.log.error(line, environ["REQUEST_METHOD"], environ["RAW_URI"], *args, exc_info=exc_info)


def base_environ(host: str, port: str, extra: Iterable[tuple[str, object]]) -> WSGIEnvironment:
    """What every request that comes in at one address has in common. The order of keys is of no meaning.

    Keys that every request sets stand here too: a dict copied with room for them is not resized when they are set.
    """
    return {
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
        "wsgi.input": None,
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
        **dict(extra),
    }
