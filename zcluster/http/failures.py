"""What becomes of a request that did not end as it should, and in which words it is logged.

Invariant: whatever an application raises ends one request only (SystemExit: this worker, after its drain), is logged
once with the request it happened in, and never becomes a response that looks whole.
"""

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Final, NoReturn

from .body import ClientFault
from .head import CLOSE
from .responses import plain_response

if TYPE_CHECKING:
    from .connection import Connection
    from .exchange import Exchange
    from .shared import Shared

INTERRUPTED: Final = 130  # what a shell reports for Ctrl-C: 128 + SIGINT
LINE_GONE: Final = "HTTP/1.1 499 Client Closed Request\r\n"  # for the access log only; nginx's number


def log(exchange: "Exchange", text: str, *args: object, error: BaseException | None = None) -> None:
    """An error of the application's, with the request it happened in."""
    line = "%s %s: the application " + text
    target = exchange.environ.get("RAW_URI", exchange.path)
    exchange.log.error(line, exchange.method, target, *args, exc_info=error)


def ended_by(exchange: "Exchange", connection: "Connection", shared: "Shared", error: BaseException) -> None:
    """The application, or our writing for it, raised this."""
    if shared.forked:
        end_child(exchange, error)
    if isinstance(error, (SystemExit, KeyboardInterrupt)):
        exchange.flags |= CLOSE
        _fail(exchange, connection, shared, error)
        shared.leave(_exit_code(exchange, error))
    elif isinstance(error, ClientFault):
        exchange.flags |= CLOSE
        shared.stats.refuse(error.refusal.reason)
        if exchange.sent:
            connection.cut = True
        else:
            _answer(exchange, connection, shared, error.refusal.status, error.refusal.reason)
    elif not (isinstance(error, BrokenPipeError) and connection.broken):  # else our client has gone: no error at all
        _fail(exchange, connection, shared, error)


def _fail(exchange: "Exchange", connection: "Connection", shared: "Shared", error: BaseException) -> None:
    """A 500 when nothing was sent, else the end of the connection."""
    outcome = "answered 500" if not exchange.sent else "the connection is cut"
    if exchange.complete:
        outcome = "the response was complete"
    log(exchange, f"raised ({outcome})", error=error)
    if exchange.complete:
        return
    if exchange.sent:
        connection.cut = True
    else:
        _answer(exchange, connection, shared, 500, "")


def _answer(exchange: "Exchange", connection: "Connection", shared: "Shared", status: int, reason: str) -> None:
    """A response of our own instead of the application's."""
    exchange.sent = True
    if shared.draining or (exchange.stream is not None and not exchange.stream.decoder.done):
        exchange.flags |= CLOSE
    head_only = exchange.method == "HEAD"
    response = plain_response(shared, status, exchange.flags, reason, head_only=head_only)
    head, _, body = response.partition(b"\r\n\r\n")
    exchange.status_line, exchange.fields = head.decode().partition("\r")[0] + "\r\n", ""  # for the access log
    exchange.sent_bytes = len(body)
    with contextlib.suppress(BrokenPipeError):  # the client did not wait for its error either
        connection.write(response)


def end_child(exchange: "Exchange", error: BaseException | None) -> NoReturn:
    """A process that the application forked has come back to us: its parent answers, and it is no worker."""
    if isinstance(error, SystemExit):
        code = _exit_code(exchange, error)
    else:
        code = 1
        text = "forked a process that returned from the request; it is ended (os._exit() is how it should end)"
        log(exchange, text, error=error)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed, or nobody reads it
            stream.flush()
    os._exit(code)  # neither our loop nor the worker's atexit functions are for it


def _exit_code(exchange: "Exchange", error: BaseException) -> int:
    """What the interpreter would make of it."""
    code: object = error.code if isinstance(error, SystemExit) else INTERRUPTED
    if code is None:
        return 0
    if isinstance(code, int):
        return code
    exchange.log.error("%s", code)  # as the interpreter prints it at exit
    return 1
