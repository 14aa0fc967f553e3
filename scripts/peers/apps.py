"""The WSGI programs that every Python server of the benchmark runs: the same code for all of them."""

import os
import time
from collections.abc import Callable
from typing import Any

from werkzeug import Request, Response

BODY = b"Hello, world!\n"
HEADERS = [("Content-Type", "text/plain"), ("Content-Length", str(len(BODY)))]
SLOW_S = 0.050
BURN_S = 0.030


def raw(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """The least a WSGI application can do."""
    start_response("200 OK", HEADERS)
    return [BODY]


def pid(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Who answers."""
    body = f"{os.getpid()}\n".encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


@Request.application
def hello(request: Request) -> Response:
    """The same with Werkzeug's objects."""
    return Response(BODY, mimetype="text/plain")


def mixed(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """/slow... sleeps, /burn... computes, anything else answers at once."""
    path = environ["PATH_INFO"]
    if path.startswith("/slow"):
        time.sleep(SLOW_S)
    elif path.startswith("/burn"):
        # Of this thread's own CPU time, so that it is the same work however many threads compete for the GIL.
        until = time.thread_time() + BURN_S
        while time.thread_time() < until:
            for _ in range(500):
                pass
    start_response("200 OK", HEADERS)
    return [BODY]
