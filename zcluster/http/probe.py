"""The health check of a worker that starts: one GET, through an engine and the app, before anybody is accepted.

Theory of operation. The request goes through a socket pair. One end is the only connection of an engine that has no
listeners and drains from the beginning, so it answers this one request and is over; a second thread holds the other
end. It is an engine of its own: what the worker's counts (requests, the access log, what its predictor learns) is of
clients only. There is no time-out here: who waits for the worker has one, and can end an app that holds the GIL.

Invariant: when `on_end` is called, nothing of the check runs any more, and `failure` says what came of it.
"""

import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from typing import Final
from wsgiref.types import WSGIApplication

from .engine import Engine
from .limits import Limits

log = logging.getLogger("zcluster.http")

ANSWER_MAX_BYTES: Final = 1 << 20  # what is read of it; the app sees the client of a longer one go
TOLD_CHARS: Final = 500  # of its body, for the operator: what is wrong stands in the first lines
OK: Final = 200


class _Kept(logging.Handler):
    """What the engine has to say of the app, which is never good: it belongs to the failure."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))


class Probe:
    """One check of one app; the app sees a GET without a body, as from a client of a Unix socket."""

    def __init__(
        self,
        app: WSGIApplication,
        path: str,
        on_end: Callable[[], None],
        on_exit: Callable[[int], None],
        limits: Limits,
        *,
        threads: int,
        tls: bool,
    ) -> None:
        self.path = path
        self.pending = (
            f"the health check failed: GET {path} was not answered before the boot timeout; the log has its stack"
        )
        self.begun = self.ended = False
        self.failure = ""
        self._kept = _Kept()
        self._on_end = on_end
        self._sock, theirs = socket.socketpair()
        kept = logging.Logger("zcluster.http")  # the name, without the handlers
        kept.addHandler(self._kept)
        https = {"wsgi.url_scheme": "https", "HTTPS": "on", "SERVER_PORT": "443"} if tls else {}
        self.engine = Engine(
            app, (), clients=(theirs,), limits=limits, on_exit=on_exit, log=kept, environ=https, threads=threads
        )
        self.engine.drain()
        # No daemons: threads that the app starts in this request inherit that, and would be cut off at the exit.
        self._engine_thread = threading.Thread(target=self._serve, name="zcluster-http-health")
        self._thread = threading.Thread(target=self._check, name="zcluster-health")

    def start(self) -> None:
        """Begin; `on_end` is called in another thread when the check has ended."""
        self.begun = True
        self._thread.start()

    def close_in_child(self) -> None:
        """In a process that the app forked meanwhile."""
        self.engine.close_in_child()
        self._sock.close()

    def _serve(self) -> None:
        try:
            self.engine.run()
        except BaseException:  # a bug of the engine; the other end sees the connection closed
            log.exception("the HTTP engine failed in the health check")

    def _check(self) -> None:
        with self._sock as sock:
            request = f"GET {self.path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: zcluster-health\r\n"
            sock.sendall(f"{request}Connection: close\r\n\r\n".encode())  # a socket pair has room for more
            self._engine_thread.start()
            answer = bytearray()
            with contextlib.suppress(ConnectionResetError):
                while len(answer) < ANSWER_MAX_BYTES and (part := sock.recv(65536)):
                    answer += part
        self._engine_thread.join()
        self.failure = self._judge(bytes(answer))
        self.ended = True
        self._on_end()

    def _judge(self, answer: bytes) -> str:
        """What is wrong with the answer; empty when it is what was wanted."""
        head, _, body = answer.partition(b"\r\n\r\n")
        status = head.partition(b"\r\n")[0].decode("latin-1").partition(" ")[2]
        is_ok = status.partition(" ")[0] == str(OK)
        if is_ok and not self._kept.texts:
            return ""
        what = f"was answered {status!r}, {'but went wrong' if is_ok else f'not {OK}'}" if status else "got no answer"
        text = f"the health check failed: GET {self.path} (Host: localhost) {what}"
        if self._kept.texts:
            return "\n".join([text, *self._kept.texts])
        said = body[: 4 * TOLD_CHARS].decode("utf-8", errors="replace")[:TOLD_CHARS].strip()
        return f"{text}: {said!r}" if said else text
