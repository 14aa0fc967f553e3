"""Request heads: raw bytes to WSGI environ, or a refusal.

Invariant: a head that is accepted has one meaning only. Whatever two parsers on the way (a proxy's and ours) could
read differently is refused, not repaired: line ends, blanks, framing, the host, the target.

Theory of operation. The connection cuts the head out of the stream (it ends at the first CR LF CR LF) and parses it
in one call, so one parser serves all connections: an idle connection costs no parser, and a body is never llhttp's
business here (see `body`). Two walls stand one behind the other: one compiled pattern for the request line, where
llhttp is lenient (two blanks, HTTP/2.0, fragments, `GET *`), and llhttp in its strict mode for the fields (line ends,
folding, blanks before the colon, control characters, Content-Length against Transfer-Encoding). What neither sees is
checked on the environ: Host, framing, repeated and ambiguous names, sizes.
"""

import re
from collections.abc import Callable
from urllib.parse import unquote_to_bytes
from wsgiref.types import WSGIEnvironment

from httptools import HttpParserError, HttpParserInvalidMethodError, HttpParserUpgrade, HttpRequestParser

from .limits import Limits
from .stats import Stats

# What `HeadParser.parse` found, as bits; zero is the common case: keep-alive, no body.
CLOSE, SIZED, CHUNKED, EXPECT, OLD = 1, 2, 4, 8, 16  # OLD: HTTP/1.0

_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_PATH, _QUERY = r"[!\"$->@-~]*+", r"[!\"$-~]*+"  # visible ASCII without '#', the path without '?' too
_ORIGIN = re.compile(rf"([A-Z-]++) ((/{_PATH})(?:\?({_QUERY}))?+) HTTP/1\.([01])\r\n").match
_ABSOLUTE = re.compile(rf"(?i:https?)://([^/?#\s]++)((?:/{_PATH})?)(?:\?({_QUERY}))?+").fullmatch
_LINE = re.compile(rf"({_TOKEN}++) ([!\"$-~]++) HTTP/([0-9])\.([0-9])").fullmatch
# What the beginning of a request line can look like, before its end has arrived.
_BEGINNING = re.compile(
    rb"(?:\r\n?)?(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++(?: (?:[!\"$-~]++(?: [HTP/0-9.]*+\r?)?)?)?)?"
).fullmatch
_BARE = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)").search
_HOST = re.compile(r"(?:[A-Za-z0-9\-._~!$&'()*+,;=%]++|\[[0-9A-Fa-f:.]++\])(?::[0-9]{0,5})?").fullmatch
_LENGTH = re.compile(r"[0-9]{1,18}").fullmatch  # 18 digits fit 64 bits with room

# Names spelled as clients spell them, looked up instead of computed. Fixed: a table that learned would be a client's
# to fill.
_NAMES = """
Accept Accept-Charset Accept-Encoding Accept-Language Authorization Cache-Control Connection Content-Length
Content-Type Cookie DNT Date Expect Forwarded From Host If-Match If-Modified-Since If-None-Match If-Range
If-Unmodified-Since Keep-Alive Max-Forwards Origin Pragma Priority Proxy-Authorization Range Referer Sec-CH-UA
Sec-CH-UA-Mobile Sec-CH-UA-Platform Sec-Fetch-Dest Sec-Fetch-Mode Sec-Fetch-Site Sec-Fetch-User Sec-GPC TE
Traceparent Trailer Transfer-Encoding Upgrade Upgrade-Insecure-Requests User-Agent Via X-Forwarded-For
X-Forwarded-Host X-Forwarded-Port X-Forwarded-Proto X-Real-IP X-Request-ID X-Requested-With
""".split()  # noqa: SIM905 (sixty quoted strings are no easier to read)


def environ_key(name: str) -> str:
    """The environ's name of a header field."""
    key = name.upper().replace("-", "_")
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else "HTTP_" + key


_KEYS = {spelling.encode(): environ_key(name) for name in _NAMES for spelling in (name, name.lower())}
_NOBODYS: WSGIEnvironment = {}
_ONCE = frozenset({"HTTP_HOST", "CONTENT_LENGTH"})  # llhttp refuses the second Content-Length itself


class Refusal(Exception):
    """This request is answered with `status`, its connection is closed, and the application never sees it."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason  # one of a fixed vocabulary: it is a key of `Stats.refused`


def check_beginning(data: bytes, seen: int, limits: Limits) -> None:
    """Refuse an incomplete head that can no longer become a good one; `seen` bytes were checked before.

    Costs no more than the new bytes do, so that a client that sends its head byte by byte cannot make us look at all
    of it each time.
    """
    newline = data.find(b"\n", 2)  # behind the one empty line that may precede a request
    if newline < 0:
        if len(data) > limits.request_line_bytes + 4:
            raise Refusal(414, "request line too long")
        if not _BEGINNING(data[:64]):
            raise Refusal(400, "malformed request line")
    elif newline >= seen:
        _request_line(data[: newline + 1].decode("latin-1"), limits)
    if _BARE(data, max(0, seen - 1)):
        raise Refusal(400, "bare CR or LF")
    if len(data) > limits.head_bytes:
        raise Refusal(431, "head too large")


def _request_line(text: str, limits: Limits) -> tuple[str, str, str, str, str, str]:
    """The request line at the start of `text`: method, target, path, query, minor version, authority."""
    if text.startswith("\r\n"):  # RFC 9112, 2.2: ignore an empty line, which old clients send behind a body
        text = text[2:]
    line, end, _ = text.partition("\r\n")
    if not end:
        raise Refusal(400, "bare CR or LF")
    if len(line) > limits.request_line_bytes:
        raise Refusal(414, "request line too long")
    match = _LINE(line)
    if match is None:
        raise Refusal(400, "malformed request line")
    method, target, major, minor = match.groups()
    if major != "1" or minor not in "01":
        raise Refusal(505, "HTTP version")
    if method == "CONNECT":
        raise Refusal(501, "CONNECT")
    if target.startswith("/"):
        path, _, query = target.partition("?")
        return method, target, path, query, minor, ""
    if target == "*" and method == "OPTIONS":
        return method, target, "", "", minor, ""  # an empty PATH_INFO: the server as a whole; "*" is no path
    absolute = _ABSOLUTE(target)
    if absolute is None or not _HOST(absolute[1]):
        raise Refusal(400, "malformed target")
    return method, target, absolute[2] or "/", absolute[3] or "", minor, absolute[1]


class HeadParser:
    """Parses one head at a time; belongs to one thread."""

    def __init__(self, limits: Limits, stats: Stats) -> None:
        self._stats = stats
        self._limits = limits
        # In a head of at most this size no line can be too long, and no limit on fields can be broken ("a:\r\n" is
        # 4).
        self._short_bytes = min(limits.request_line_bytes, limits.header_field_bytes, limits.head_bytes)
        self._sparse_bytes = min(self._short_bytes, 4 * limits.header_count)
        self._environ = _NOBODYS
        self._fault: Refusal | None = None
        self._heads = 0
        self._keep = False
        self._renew()

    def _renew(self) -> None:
        """A fresh llhttp: the last one waits for a body, was told to close, or stumbled."""
        parser = HttpRequestParser(self)
        self._feed: Callable[[bytes], None] = parser.feed_data
        self._keep_alive: Callable[[], bool] = parser.should_keep_alive

    def on_header(self, name: bytes, value: bytes) -> None:
        """llhttp: one field; the environ gets it. Exceptions would not survive the C parser: faults are kept."""
        key = _KEYS.get(name)
        if key is None:
            if b"_" in name:
                # `Foo_Bar` and `Foo-Bar` are one environ key: dropped, as nginx does, since a proxy that filters one
                # spelling would let the other through; refusing would break clients that send it in good faith.
                self._stats.headers_dropped += 1
                return
            key = environ_key(name.decode("ascii"))
        environ = self._environ
        if key not in environ:
            environ[key] = value.decode("latin-1")
        elif key in _ONCE:
            self._fault = Refusal(400, "repeated Host")
        else:
            glue = "; " if key == "HTTP_COOKIE" else ", "
            environ[key] = environ[key].rstrip(" \t") + glue + value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """llhttp: the head is whole."""
        self._heads += 1
        self._keep = self._keep_alive()

    def parse(self, head: bytes, environ: WSGIEnvironment) -> int:
        """Complete `environ` from `head` (CR LF CR LF included) and return the bits found; Refusal."""
        text = head.decode("latin-1")
        authority = ""
        match = _ORIGIN(text)
        if match is not None:
            method, target, path, query, minor = match.groups()
        else:
            method, target, path, query, minor, authority = _request_line(text, self._limits)
        if len(head) > self._sparse_bytes:
            self._measure(head)
        environ["REQUEST_METHOD"] = method
        environ["RAW_URI"] = environ["REQUEST_URI"] = target
        environ["PATH_INFO"] = unquote_to_bytes(path).decode("latin-1") if "%" in path else path
        environ["QUERY_STRING"] = query or ""

        self._environ = environ
        self._heads = 0
        fresh = False
        try:
            self._feed(head)
        except HttpParserUpgrade:  # wanted by curl --http2 and others: the request is good, we just do not upgrade
            fresh = True
        except HttpParserError as error:
            self._renew()
            self._fault = None
            raise self._explain(error, environ, minor) from None
        finally:
            self._environ = _NOBODYS  # what an application put into its environ must not live on here
        if " \r\n" in text or "\t\r\n" in text:
            _strip_values(environ)
        flags = 0
        if minor == "0":
            environ["SERVER_PROTOCOL"] = "HTTP/1.0"
            flags = OLD
        if not self._keep:
            flags |= CLOSE
        if "CONTENT_LENGTH" in environ or "HTTP_TRANSFER_ENCODING" in environ:
            fresh = True
        if fresh or flags & CLOSE:
            self._renew()
        self._check(environ, minor, authority)
        if fresh:
            flags |= self._framing(environ, minor)
        if "HTTP_EXPECT" in environ and minor == "1":
            if environ["HTTP_EXPECT"].lower() != "100-continue":
                raise Refusal(417, "unknown expectation")
            flags |= EXPECT
        return flags

    def _check(self, environ: WSGIEnvironment, minor: str, authority: str) -> None:
        """What llhttp does not look at."""
        fault, self._fault = self._fault, None
        if fault is not None:
            raise fault
        if self._heads != 1:  # llhttp saw another end than we did
            self._renew()
            raise Refusal(400, "malformed head")
        host = environ.get("HTTP_HOST")
        if host is None:
            if minor == "1":
                raise Refusal(400, "no Host")
        elif not _HOST(host):  # an empty one too: an http URI must have a host (RFC 9110, 4.2.1)
            raise Refusal(400, "malformed Host")
        if authority:
            environ["HTTP_HOST"] = authority  # RFC 9112, 3.2.2: the target's wins

    def _framing(self, environ: WSGIEnvironment, minor: str) -> int:
        """How the body is delimited: SIZED, CHUNKED or 0; everything ambiguous is refused."""
        length = environ.get("CONTENT_LENGTH")
        coding = environ.get("HTTP_TRANSFER_ENCODING")
        if coding is None:
            if length is None:
                return 0
            if not _LENGTH(length):
                raise Refusal(400, "malformed Content-Length")
            if int(length) > self._limits.body_bytes:
                raise Refusal(413, "body too large")
            return SIZED if int(length) else 0
        if length is not None:
            raise Refusal(400, "Content-Length with Transfer-Encoding")
        if minor == "0":
            raise Refusal(400, "Transfer-Encoding on HTTP/1.0")
        codings = [part.strip(" \t").lower() for part in coding.split(",")]
        if "chunked" in codings[:-1] or "" in codings:
            raise Refusal(400, "malformed Transfer-Encoding")
        if codings != ["chunked"]:
            raise Refusal(501, "unknown Transfer-Encoding")
        return CHUNKED

    def _explain(self, error: HttpParserError, environ: WSGIEnvironment, minor: str) -> Refusal:
        """llhttp stumbled: the status and the reason to give."""
        if isinstance(error, HttpParserInvalidMethodError):
            return Refusal(501, "unknown method")
        text = str(error)
        if "Content-Length" in text or "Transfer-Encoding" in text:
            try:
                self._framing(environ, minor)
            except Refusal as refusal:
                return refusal
            return Refusal(400, "malformed framing")
        return Refusal(400, "malformed header")

    def _measure(self, head: bytes) -> None:
        """The sizes; only called for a head that is long enough to break one."""
        limits = self._limits
        if head.count(b"\n") > limits.header_count + 2:  # the request line and the empty one at the end
            raise Refusal(431, "too many header fields")
        if len(head) <= self._short_bytes:
            return
        if len(head) > limits.head_bytes:
            raise Refusal(431, "head too large")
        lines = head.split(b"\r\n")
        fields = lines[2:-2] if head.startswith(b"\r\n") else lines[1:-2]
        if len(lines[0]) > limits.request_line_bytes:
            raise Refusal(414, "request line too long")
        if fields and max(map(len, fields)) > limits.header_field_bytes:
            raise Refusal(431, "header field too large")


def _strip_values(environ: WSGIEnvironment) -> None:
    """Optional blanks behind a field's value are not part of it; llhttp leaves them."""
    for key, value in environ.items():
        if key.startswith(("HTTP_", "CONTENT_")) and isinstance(value, str):
            environ[key] = value.strip(" \t")
