"""An engine in a thread on a real socket, and clients that speak raw bytes to it."""

import contextlib
import itertools
import logging
import os
import socket
import threading
import time
from dataclasses import dataclass, field

from zcluster.http import Engine, Limits

DEADLINE_S = 20.0
GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
HEAD_REQUEST = GET.replace(b"GET", b"HEAD")
OLD = b"GET / HTTP/1.0\r\n\r\n"
OLD_KEEP = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
GET_CLOSE = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"


def until(condition, what="the condition", deadline_s=DEADLINE_S):
    """Poll until `condition()` is true and return its value; AssertionError at the deadline."""
    end = time.monotonic() + deadline_s
    pause = threading.Event()
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"{what} did not come true within {deadline_s} s"
        pause.wait(0.005)


def in_time(run, limit_s):
    """Run `run(step)`, a client that promises to call `step` again and again, each time within `limit_s`.

    When it fails and has not kept its promise, because the machine did not run it, that says nothing: once more.
    """
    for _ in range(5):
        steps = [time.monotonic()]
        try:
            return run(lambda steps=steps: steps.append(time.monotonic()))
        except (AssertionError, OSError, EOFError):
            steps.append(time.monotonic())
            if max(after - before for before, after in itertools.pairwise(steps)) < limit_s:
                raise
    raise AssertionError(f"this client was late by {limit_s} s each time")


def open_fds():
    """The open descriptors of this process, by number, with what they are."""
    fds = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            fds[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return fds


class Records(logging.Handler):
    """Keeps what was logged."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(logging.Formatter("%(levelname)s %(message)s").format(record))

    def __str__(self):
        return "\n".join(self.lines)


@dataclass
class Response:
    """One response as a client reads it."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes = b""
    version: str = "HTTP/1.1"

    def get(self, name):
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(values) <= 1, f"{name} came {len(values)} times"
        return values[0] if values else None


class Client:
    """A raw connection to the engine."""

    def __init__(self, address, family):
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.settimeout(DEADLINE_S)
        self.sock.connect(address)
        self._buffer = bytearray()  # grows without being copied: bodies are large

    def send(self, data):
        self.sock.sendall(data)
        return self

    def _more(self):
        data = self.sock.recv(65536)
        if not data:
            raise EOFError
        self._buffer += data

    def _line(self):
        while b"\r\n" not in self._buffer:
            self._more()
        return self._exactly(self._buffer.index(b"\r\n") + 2)[:-2]

    def _exactly(self, count):
        while len(self._buffer) < count:
            self._more()
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    def _chunks(self):
        while True:
            size = int(self._line(), 16)
            data = self._exactly(size)
            assert self._line() == b""
            if not size:
                return
            yield data

    def receive(self, head_only=False):
        """The next response; EOFError when the connection ended before or in it."""
        version, status, *_ = self._line().decode("latin-1").split(" ", 2)
        response = Response(int(status), [], version=version)
        while line := self._line().decode("latin-1"):
            name, _, value = line.partition(": ")
            response.headers.append((name, value))
        if head_only or response.status in (100, 204, 304):
            return response
        if response.get("Transfer-Encoding") == "chunked":
            assert response.get("Content-Length") is None
            response.body = b"".join(self._chunks())
        elif response.get("Content-Length") is not None:
            response.body = self._exactly(int(response.get("Content-Length")))
        else:
            response.body = self.rest()
        return response

    def request(self, data, head_only=False):
        return self.send(data).receive(head_only)

    def rest(self):
        """Everything up to the end of the connection."""
        with contextlib.suppress(EOFError):
            while True:
                self._more()
        return self._exactly(len(self._buffer))

    def at_end(self):
        """Whether the server has ended the connection with nothing more said."""
        try:
            return not self._buffer and self.sock.recv(1) == b""
        except ConnectionResetError:
            return True

    def close(self):
        self.sock.close()


@dataclass
class Rig:
    """One running engine; ends it and checks that it left nothing behind."""

    app: object
    family: int = socket.AF_INET
    address: object = ("127.0.0.1", 0)
    options: dict = field(default_factory=dict)

    def __enter__(self):
        self.fds_before = open_fds()
        self.listener = listener = socket.socket(self.family, socket.SOCK_STREAM)
        listener.bind(self.address)
        listener.listen(512)
        self.address = listener.getsockname()
        self.log = Records()
        logger = logging.Logger("engine")
        logger.addHandler(self.log)
        self.calls = 0
        self.clients = []
        self.engine = Engine(self._counted, [listener], log=logger, **self.options)
        self.stats = self.engine.stats
        self.thread = threading.Thread(target=self.engine.run, name="engine")
        self.thread.start()
        until(lambda: self.stats.loop_tick, "the loop's first round")
        return self

    def _counted(self, environ, start_response):
        self.calls += 1
        return self.app(environ, start_response)

    def client(self):
        client = Client(self.address, self.family)
        self.clients.append(client)
        return client

    def join(self):
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive(), "the engine did not end"

    def __exit__(self, kind, *_):
        for client in self.clients:
            client.close()
        self.engine.drain(quick=True)
        self.join()
        if kind is None:
            assert self.stats.failures == 0, str(self.log)
            assert self.stats.connections == 0
            assert self.stats.inflight == 0
            left = open_fds().items() - self.fds_before.items()
            assert not left, f"descriptors were left open: {left}"


def serve(app, *, family=socket.AF_INET, address=("127.0.0.1", 0), limits=None, **options):
    """Start an engine; `limits` as keyword arguments of Limits."""
    if limits:
        options["limits"] = Limits(**limits)
    return Rig(app, family, address, options)


def plain(body=b"ok", status="200 OK", headers=()):
    """An application that always answers the same."""

    def app(environ, start_response):
        start_response(status, [("Content-Type", "text/plain"), *headers])
        return [body]

    return app


def echo(environ, start_response):
    """Answers with method, path, and the request's body."""
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("X-Path", environ["PATH_INFO"]), ("X-Method", environ["REQUEST_METHOD"])])
    return [body]


class Blocks:
    """An iterable of blocks that knows whether it was closed; an exception among them is raised."""

    def __init__(self, *blocks):
        self.blocks = blocks
        self.closed = 0

    def __iter__(self):
        for block in self.blocks:
            if isinstance(block, BaseException):
                raise block
            yield block

    def close(self):
        self.closed += 1


def giving(result, status="200 OK", headers=()):
    """An application that returns `result` itself."""

    def app(environ, start_response):
        start_response(status, list(headers))
        return result

    return app
