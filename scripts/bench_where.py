"""Where the microseconds of a request go: the engine's steps one by one, and the system calls they stand between.

Each step is timed by itself in a loop (the least of many repeats, so a busy machine disturbs little), in this
process, with the objects the engine uses. What they do not show is what the steps do to each other's caches.
"""

import logging
import select
import socket
import time
import timeit
from collections.abc import Callable
from typing import Any

from bench_load import BROWSER
from bench_servers import Bench

from zcluster.http import Engine
from zcluster.http.connection import Connection
from zcluster.http.exchange import Exchange, base_environ
from zcluster.http.responses import take_fields

REPEATS, CALLS = 25, 2000
ONE = b"GET / HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n\r\n"
TWELVE = ONE[:-2] + "".join(f"{header}\r\n" for header in BROWSER).encode() + b"\r\n"
FIELDS = [("Content-Type", "text/plain")]


def app(_environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
    start_response("200 OK", FIELDS)
    return [b"hello world"]


class Silent:
    """A socket whose other end always says the same, at no cost."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def fileno(self) -> int:
        return 1000

    def recv(self, _size: int) -> bytes:
        return self.data

    def send(self, data: bytes) -> int:
        return len(data)


class NoEpoll:
    """The engine tells it which descriptors to watch."""

    def register(self, *_: int) -> None:
        """Nothing."""


def least_us(step: Callable[[], object]) -> float:
    """The least time of a call, the loop's own taken off."""
    empty = min(timeit.repeat(lambda: None, number=CALLS, repeat=REPEATS))
    return (min(timeit.repeat(step, number=CALLS, repeat=REPEATS)) - empty) / CALLS * 1e6


def python_steps() -> dict[str, tuple[float, float]]:
    """The engine's own part, for wrk's one header and a browser's twelve."""
    found: dict[str, list[float]] = {}
    for head in (ONE, TWELVE):
        engine = Engine(app, [], threads=8, log=logging.getLogger("bench"))
        shared = engine._shared
        shared.epoll = NoEpoll()  # type: ignore[assignment]
        shared.crew.resting = False
        base = base_environ("127.0.0.1", "8000", (), threads=True, tls=False)
        connection = Connection(Silent(head), base, "127.0.0.1", "1", shared, tls=False)  # type: ignore[arg-type]
        environ = base.copy()
        flags = shared.parser.parse(head, environ)
        exchange = Exchange(connection, shared, environ, flags)
        exchange.start_response("200 OK", FIELDS)

        def request(
            connection: Connection = connection, forget: Callable[[], None] = shared.predictor._forget
        ) -> None:
            connection.ready()
            if shared.predictor.active:  # noqa: B023 (a pause of the machine looks like a slow request)
                forget()

        steps: dict[str, Callable[[], object]] = {
            "all of it, from recv to send": request,
            "  copy the environ": base.copy,
            "  parse the head": lambda: shared.parser.parse(head, base.copy()),  # noqa: B023
            "  make the exchange": lambda: Exchange(connection, shared, environ, flags),  # noqa: B023
            "  check the response's fields": lambda: take_fields(FIELDS),
            "  write the response's head": lambda: exchange._head(11),  # noqa: B023
            "  one reading of the clock": time.monotonic,
        }
        for name, step in steps.items():
            found.setdefault(name, []).append(least_us(step))
    return {name: (one, twelve) for name, (one, twelve) in found.items()}


def system_calls() -> dict[str, float]:
    """recv, send and epoll_wait on TCP over the loopback, this process being both ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        with server, select.epoll() as epoll:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            epoll.register(server, select.EPOLLIN)
            client.setblocking(False)
            answer = b"x" * 130

            def there() -> None:
                client.send(ONE)
                server.recv(16384)

            def with_epoll() -> None:
                client.send(ONE)
                epoll.poll(0)
                server.recv(16384)

            def both() -> None:
                client.send(ONE)
                server.recv(16384)
                server.send(answer)
                client.recv(16384)

            one, polled, two = least_us(there), least_us(with_epoll), least_us(both)
    return {"send + recv, one direction": one, "send + recv, both": two, "epoll_wait with one event": polled - one}


def where(bench: Bench) -> None:
    """Where a request's time goes in the engine: its steps, alone, in microseconds."""
    steps = python_steps()
    for name, (one, twelve) in steps.items():
        bench.report.row("where", name, {"1 header": [one], "12 headers": [twelve]})
    for name, value in system_calls().items():
        bench.report.row("where", name, {"1 header": [value]})
