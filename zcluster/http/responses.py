"""Response heads: what an application may say, and what is the server's to say.

Invariant: nothing an application gives can add a line to a head. Names are tokens, values hold no CR, LF or NUL.
"""

import re
import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING

from .head import CLOSE, OLD
from .shared import SERVER

if TYPE_CHECKING:
    from .shared import Shared

_ORDINARY, DATE_GIVEN, SERVER_GIVEN, _LENGTH, _CONNECTION, _CODING, _DROP = range(7)  # 1 and 2 serve as bits too
_SPECIAL = {
    "content-length": _LENGTH, "date": DATE_GIVEN, "server": SERVER_GIVEN, "connection": _CONNECTION,
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
_ends_line = re.compile(r"[\r\n\0]").search
_is_token = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_is_status = re.compile(r"[2-5][0-9]{2}(?: [\t -~\x80-\xff]*)?").fullmatch
LINES = {  # of responses that have a body
    f"{status} {status.phrase}": f"HTTP/1.1 {status} {status.phrase}\r\n"
    for status in HTTPStatus
    if status >= 200 and status not in (204, 304)
}


def plain_response(shared: "Shared", status: int, flags: int, reason: str = "", head_only: bool = False) -> bytes:
    """A short text response of our own, head and body; `flags` as from the head parser."""
    phrase = HTTPStatus(status).phrase
    body = f"{phrase}: {reason}\n" if reason else f"{phrase}\n"
    shared.refresh_date(time.monotonic())
    return (
        f"HTTP/1.1 {status} {phrase}\r\nServer: {SERVER}\r\n{shared.date}Content-Type: text/plain\r\n"
        f"Content-Length: {len(body)}\r\n{connection_field(flags)}\r\n{'' if head_only else body}"
    ).encode("ascii")


def connection_field(flags: int) -> str:
    """What the response says about its connection."""
    if flags & CLOSE:
        return "Connection: close\r\n"
    return "Connection: keep-alive\r\n" if flags & OLD else ""


def _kind(name: str) -> int:
    """What a response field is to us, for a spelling that `_KINDS` does not hold."""
    if not _is_token(name):
        raise ValueError(f"{name!r} is not a header field name")
    return _SPECIAL.get(name.lower(), _ORDINARY)


def status_line(status: str) -> str:
    """The first line for a WSGI status; ValueError when it is none."""
    if not _is_status(status):
        raise ValueError(f"{status!r} is not a response status such as '200 OK'")
    return f"HTTP/1.1 {status:<4}\r\n"  # the blank stays when there is no phrase


def take_fields(headers: Iterable[tuple[str, str]]) -> tuple[str, int, int, bool]:
    """Check the header fields of an application; ValueError, TypeError.

    Returns those that go out as they are, each with its CR LF; the length of the body it gave, or -1; DATE_GIVEN and
    SERVER_GIVEN as bits; and whether it wants the connection closed.
    """
    text = ""
    length, given, close = -1, 0, False
    for name, value in headers:
        kind = _KINDS.get(name)
        if kind is None:
            kind = _kind(name)
        if kind:
            if kind == _LENGTH:
                if not (value.isascii() and value.isdigit()) or length >= 0:
                    raise ValueError(f"{value!r} is not a Content-Length, or it is the second one")
                length = int(value)
                continue
            if kind == _CONNECTION:
                close = close or "close" in value.lower()
                continue
            if kind == _CODING:
                raise ValueError("Transfer-Encoding is the server's business, not the application's (PEP 3333)")
            if kind == _DROP:
                continue
            given |= kind
        try:
            if not value.isprintable() and _ends_line(
                value
            ):  # nearly every one is, and this costs a tenth of a search
                raise ValueError("a response header value contains CR, LF or NUL")
        except AttributeError:
            raise TypeError(f"the value of {name} is {value!r:.200}, not a str") from None
        text = f"{text}{name}: {value}\r\n"
    return text, length, given, close
