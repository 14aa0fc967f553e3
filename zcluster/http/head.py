"""Request heads: raw bytes to WSGI environ, or a refusal.

Invariant: a head that is accepted has one meaning only. Whatever two parsers on the way (a proxy's and ours) could
read differently is refused, not repaired: line ends, blanks, framing, the host, the target.

Theory of operation. The connection cuts the head out of the stream (it ends at the first CR LF CR LF) and has it
parsed in one call that keeps nothing, so an idle connection costs no parser. The head is cut at every CR LF; one look
through a table finds every byte that no line may hold, a stray CR or LF among them; what then remains of the grammar
of RFC 9112 is one blank-separated request line and lines of `name:value`. There are two ways through it with one
result: the short one takes the ordinary (a usual method, an origin-form target, HTTP/1.1, plain ASCII, no name twice,
none with an underscore), and whatever it cannot take goes the long way, which knows all rules and says which one was
broken.
"""

import re
import socket
from urllib.parse import unquote_to_bytes
from wsgiref.types import WSGIEnvironment

from .limits import Limits
from .stats import Stats

# What `HeadParser.parse` found, as bits; zero is the common case: keep-alive, no body.
CLOSE, SIZED, CHUNKED, EXPECT, OLD = 1, 2, 4, 8, 16  # OLD: HTTP/1.0

LARGEST = 2**64 - 1  # a length beyond it is read as something else by every parser that counts in 64 bits

_TCHAR = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
is_token = re.compile(rf"{_TCHAR}++").fullmatch
# A request line that nothing can be said against. Of the registered methods those that applications serve; the
# others, and the unregistered, go the long way.
_ordinary = re.compile(
    r"(GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH) ((/[!\"$->@-~]*+)(?:\?([!\"$-~]*+))?+) HTTP/1\.1"
).fullmatch
_absolute = re.compile(r"(?i:https?)://([^/?]++)(/[^?]*+)?(?:\?(.*+))?").fullmatch
_is_target = re.compile(r"[!\"$-~]++").fullmatch  # visible ASCII without '#'
_version = re.compile(r"HTTP/([0-9])\.([0-9])").fullmatch
# What the beginning of a request line can look like, before its end has arrived.
_is_beginning = re.compile(
    rb"(?:\r\n?)?(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++(?: (?:[!\"$-~]++(?: [HTP/0-9.]*+\r?)?)?)?)?"
).fullmatch
bare_end = re.compile(rb"(?<!\r)\n|\r(?!\n|\Z)").search
# RFC 3986's host and port, less the comma: it is how two Host fields look when somebody on the way has joined them.
_host = re.compile(
    r"(?:(?:[A-Za-z0-9\-._~!$&'()*+;=]|%[0-9A-Fa-f]{2})++|\[([0-9A-Fa-f:.]++)\])"
    r"(?::(?:[0-5]?[0-9]{0,4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?"
).fullmatch
_plain_host = re.compile(r"[A-Za-z0-9\-.]++(?::[0-9]{1,4})?").fullmatch  # what nearly all of them are
_is_number = re.compile(r"[0-9]++").fullmatch

# By byte: 0 for what no line of a head may hold (control characters but the tab; CR and LF too), 1 for the rest.
TEXT_BYTES = bytes(byte == 9 or 32 <= byte != 127 for byte in range(256))

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


_KEYS = {spelling: environ_key(name) for name in _NAMES for spelling in (name, name.lower())}
# What a Connection field means on HTTP/1.1, for the spellings worth a table.
_CONNECTIONS = {"keep-alive": 0, "Keep-Alive": 0, "close": CLOSE, "Close": CLOSE}


class Refusal(Exception):
    """This request is answered with `status`, its connection is closed, and the application never sees it."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason  # one of a fixed vocabulary: it is a key of `Stats.refused`


def check_beginning(data: bytes, seen: int, limits: Limits) -> None:
    """Refuse an incomplete head that can no longer become a good one; `seen` bytes were checked before.

    Costs no more than the new bytes and one line do, so that a client that sends its head byte by byte cannot make us
    look at all of it each time.
    """
    if bare_end(data, max(0, seen - 1)):
        raise Refusal(400, "bare CR or LF")
    newline = data.find(b"\n", 2)  # behind the one empty line that may precede a request
    if newline < 0:
        if len(data) > limits.request_line_bytes + 4:
            raise Refusal(414, "request line too long")
        if not _is_beginning(data[:64]):
            raise Refusal(400, "malformed request line")
    elif newline >= seen:
        _request_line(data[: newline - 1].decode("latin-1").removeprefix("\r\n"), limits)
    if newline >= 0 and len(data) - data.rfind(b"\n") > limits.header_field_bytes + 2:  # with its line's end
        raise Refusal(431, "header field too large")
    if len(data) > limits.head_bytes:
        raise Refusal(431, "head too large")


def _request_line(line: str, limits: Limits) -> tuple[str, str, str, str, str, str]:
    """The parts of a request line: method, target, path, query, minor version, authority.

    The authority is "" where Host says it, and "*" where nothing needs to.
    """
    if len(line) > limits.request_line_bytes:
        raise Refusal(414, "request line too long")
    if "\r" in line or "\n" in line:
        raise Refusal(400, "bare CR or LF")
    method, blank, rest = line.partition(" ")
    target, _, protocol = rest.partition(" ")
    version = _version(protocol)
    if not blank or version is None or not is_token(method) or not _is_target(target):
        raise Refusal(400, "malformed request line")
    major, minor = version.groups()
    if major != "1" or minor not in "01":  # nobody speaks an HTTP/1.2, so nobody is turned away
        raise Refusal(505, "HTTP version")
    # Any other method is the application's to judge (405). But not one in lower case: methods are case-sensitive, yet
    # Werkzeug and Django raise them to upper case, and a filter before us that knows `DELETE` has let `delete` pass.
    if method != method.upper():
        raise Refusal(501, "method in lower case")
    if method == "CONNECT":  # we are no proxy
        raise Refusal(501, "CONNECT")
    if target.startswith("/"):
        path, _, query = target.partition("?")
        return method, target, path, query, minor, ""
    if target == "*" and method == "OPTIONS":
        return method, target, "", "", minor, "*"  # the server as a whole: no path at all
    absolute = _absolute(target)
    if absolute is None or not _is_host(absolute[1]):
        raise Refusal(400, "malformed target")
    authority, path, query = absolute.groups("")
    if not path and (method != "OPTIONS" or query):  # `OPTIONS http://host` is `OPTIONS *` (RFC 9112, 3.2.4)
        path = "/"
    return method, target, path, query, minor, authority


def _is_host(host: str) -> bool:
    """Whether this is a host with or without a port. An empty host is none (RFC 9110, 4.2.1)."""
    match = _host(host)
    if match is None:
        return False
    if match[1] is not None:  # in brackets
        try:
            socket.inet_pton(socket.AF_INET6, match[1])
        except OSError:
            return False
    return True


class HeadParser:
    """Parses heads. Keeps nothing between two calls, so all threads of an engine may share one."""

    def __init__(self, limits: Limits, stats: Stats) -> None:
        self._stats = stats
        self._limits = limits
        self._most_lines = limits.header_count + 1
        # In a head of at most this size no line can be too long.
        self._short_bytes = min(limits.request_line_bytes, limits.header_field_bytes, limits.head_bytes)

    def parse_ordinary(self, data: bytes, environ: WSGIEnvironment) -> int:
        """As `parse`, the short way, for `data` that ends with CR LF CR LF; -1 unless it is one ordinary head.

        Then `environ` may have been filled in part. Figures are of a browser's twelve fields, Python 3.11.
        """
        if len(data) > self._short_bytes:
            return -1
        try:
            lines = data[:-4].decode("ascii").split("\r\n")
        except UnicodeDecodeError:
            return -1
        match = _ordinary(lines[0])
        if match is None or 0 in "".join(lines).encode("ascii").translate(TEXT_BYTES):
            return -1
        method, target, path, query = match.groups("")
        environ["REQUEST_METHOD"] = method
        environ["RAW_URI"] = environ["REQUEST_URI"] = target
        environ["PATH_INFO"] = unquote_to_bytes(path).decode("latin-1") if "%" in path else path
        environ["QUERY_STRING"] = query

        count = len(lines)
        if count > self._most_lines:
            return -1
        size = len(environ) + count
        keys = _KEYS
        del lines[0]
        for line in lines:
            # Not split(": ", 1): lists cost 0.5 us more. Nor a search for blanks around values before: 0.7 us.
            name, colon, value = line.partition(": ")
            if not colon:  # also the empty line in front of a second head
                return -1
            try:
                # In ASCII without control characters these are the blanks that HTTP means: space and tab.
                environ[keys[name]] = value.strip()
            except KeyError:
                if "_" in name or not is_token(name):
                    return -1
                environ[environ_key(name)] = value.strip()
        if len(environ) + 1 != size:  # a name came twice
            return -1

        if not _plain_host(environ.get("HTTP_HOST", "")):
            _check_host(environ, "1", "")
        if (
            environ.get("HTTP_CONNECTION", "keep-alive") == "keep-alive"
            and "CONTENT_LENGTH" not in environ
            and "HTTP_TRANSFER_ENCODING" not in environ
            and "HTTP_EXPECT" not in environ
        ):
            return 0
        return self._bits(environ, "1")

    def parse(self, head: bytes, environ: WSGIEnvironment) -> int:
        """Complete `environ` from `head` (up to and with its CR LF CR LF) and return the bits found; Refusal."""
        bits = self.parse_ordinary(head, environ)
        if bits >= 0:
            return bits
        lines = head.decode("latin-1").split("\r\n")
        if not lines[0]:  # RFC 9112, 2.2: ignore an empty line, which old clients send behind a body
            del lines[0]
        method, target, path, query, minor, authority = _request_line(lines[0], self._limits)
        self._measure(head, lines)
        if 0 in "".join(lines).encode("latin-1").translate(TEXT_BYTES):
            raise Refusal(400, "bare CR or LF" if bare_end(head) else "control character")
        if len(lines) - 3 > self._limits.header_count:
            raise Refusal(431, "too many header fields")
        environ["REQUEST_METHOD"] = method
        environ["RAW_URI"] = environ["REQUEST_URI"] = target
        environ["PATH_INFO"] = unquote_to_bytes(path).decode("latin-1") if "%" in path else path
        environ["QUERY_STRING"] = query
        self._fields(lines[1:-2], environ)
        if minor == "0":
            environ["SERVER_PROTOCOL"] = "HTTP/1.0"
        _check_host(environ, minor, authority)
        return self._bits(environ, minor)

    def _bits(self, environ: WSGIEnvironment, minor: str) -> int:
        """What the fields say about the connection and the body."""
        flags = 0
        if minor == "0" or "HTTP_CONNECTION" in environ:
            flags = _connection(environ, minor)
        if "CONTENT_LENGTH" in environ or "HTTP_TRANSFER_ENCODING" in environ:
            flags |= self._framing(environ, minor)
        if "HTTP_EXPECT" in environ and minor == "1":  # RFC 9110, 10.1.1: not on HTTP/1.0
            flags |= _expectation(environ)
        return flags

    def _fields(self, lines: list[str], environ: WSGIEnvironment) -> None:
        """The long way through the fields, from the start."""
        for key in [key for key in environ if key.startswith(("HTTP_", "CONTENT_"))]:
            del environ[key]
        for line in lines:
            name, colon, value = line.partition(":")
            key = _KEYS.get(name, "")
            if not colon or not (key or is_token(name)):
                # a line that begins with a blank: folded (RFC 9112, 5.2), or smuggled before the first field (2.2)
                raise Refusal(400, "malformed header")
            if "_" in name:
                # `Foo_Bar` and `Foo-Bar` are one environ key: dropped, as nginx does, since a proxy that filters one
                # spelling would let the other through; refusing would break clients that send it in good faith.
                self._stats.headers_dropped += 1
                continue
            key = key or environ_key(name)
            value = value.strip(" \t")
            if key not in environ:
                environ[key] = value
            elif key == "HTTP_HOST":
                raise Refusal(400, "repeated Host")
            elif key == "CONTENT_LENGTH":
                raise Refusal(400, "repeated Content-Length")
            else:
                environ[key] += ("; " if key == "HTTP_COOKIE" else ", ") + value

    def _framing(self, environ: WSGIEnvironment, minor: str) -> int:
        """How the body is delimited: SIZED, CHUNKED or 0; everything ambiguous is refused."""
        coding = environ.get("HTTP_TRANSFER_ENCODING")
        if coding is None:
            return self._length(environ)
        if "CONTENT_LENGTH" in environ:
            raise Refusal(400, "Content-Length with Transfer-Encoding")
        if minor == "0":
            raise Refusal(400, "Transfer-Encoding on HTTP/1.0")
        codings = [part.strip(" \t").lower() for part in coding.split(",")]
        names = [part.partition(";")[0].rstrip(" \t") for part in codings]
        if "chunked" in names[:-1] or not all(map(is_token, names)):
            raise Refusal(400, "malformed Transfer-Encoding")
        if names != ["chunked"]:
            raise Refusal(501, "unknown Transfer-Encoding")
        if codings != ["chunked"]:  # RFC 9112, 7.1: it has no parameters
            raise Refusal(400, "malformed Transfer-Encoding")
        return CHUNKED

    def _length(self, environ: WSGIEnvironment) -> int:
        """SIZED, or 0 for a length of zero; the environ's is the plain number afterwards, without leading zeros."""
        text = environ["CONTENT_LENGTH"]
        digits = text.lstrip("0") or "0"
        if not _is_number(text) or len(digits) > 20 or int(digits) > LARGEST:
            raise Refusal(400, "malformed Content-Length")
        if int(digits) > self._limits.body_bytes:
            raise Refusal(413, "body too large")
        environ["CONTENT_LENGTH"] = digits
        return SIZED if digits != "0" else 0

    def _measure(self, head: bytes, lines: list[str]) -> None:
        """The sizes; only for a head that is long enough to break one, or was not ordinary anyway."""
        limits = self._limits
        if len(head) > limits.head_bytes:
            raise Refusal(431, "head too large")
        if len(head) > limits.header_field_bytes and max(map(len, lines[1:])) > limits.header_field_bytes:
            raise Refusal(431, "header field too large")


def _check_host(environ: WSGIEnvironment, minor: str, authority: str) -> None:
    """All rules of Host, and the authority of the target, which wins."""
    host = environ.get("HTTP_HOST")
    if host is None:
        if minor == "1":
            raise Refusal(400, "no Host")
    elif not _is_host(host) and (host or not authority):  # needed by none but paths, it may be empty (RFC 9112, 3.2)
        raise Refusal(400, "malformed Host")
    if authority not in ("", "*"):
        environ["HTTP_HOST"] = authority  # RFC 9112, 3.2.2


def _connection(environ: WSGIEnvironment, minor: str) -> int:
    """CLOSE and OLD: whether the connection ends with this exchange."""
    value = environ.get("HTTP_CONNECTION", "")
    if minor == "1":
        flags = _CONNECTIONS.get(value)
        if flags is not None:
            return flags
    options = [option.strip(" \t").lower() for option in value.split(",")]
    if minor == "1":
        return CLOSE if "close" in options else 0
    return OLD if "keep-alive" in options and "close" not in options else OLD | CLOSE


def _expectation(environ: WSGIEnvironment) -> int:
    """EXPECT, or 0 where the field is empty."""
    expectation = environ["HTTP_EXPECT"].lower()
    if not expectation:
        return 0
    if expectation != "100-continue":
        raise Refusal(417, "unknown expectation")
    return EXPECT
