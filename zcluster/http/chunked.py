"""Chunked bodies: the bytes of a message in, its payload out.

Invariant: the end of the body is known to the byte, and there is one way to read it. What follows the last line is
handed back untouched; a line that another parser could end elsewhere, or read as another number, is refused.

Theory of operation. A body is chunks (a line with the size, the data, an empty line), the last of size 0, and trailer
fields up to an empty line.

    SIZE     at the line with a chunk's size    -> DATA, or TRAILER when it is 0
    DATA     inside a chunk                     -> END
    END      at the line end behind its data    -> SIZE
    TRAILER  at a trailer field                 -> DONE at the empty line
    DONE

Chunks that lie whole in one read are taken by one pattern. Everything else goes line by line: the beginning of a line
waits in `_line` for its end and is checked as it grows, so nonsense is refused when it comes and not when a line end
does. A read costs its own bytes and at most one line's, however the message is split.
"""

import re

from .head import TEXT_BYTES, Refusal, bare_end, is_token
from .limits import Limits

SIZE, DATA, END, TRAILER, DONE = range(5)
_FAULTS = {SIZE: "malformed chunk size", END: "malformed chunk end", TRAILER: "malformed trailer"}

EXTENSION_BYTES = 4096  # of one line with a chunk's size; Go's bound, and no extension is in use anywhere
# Bytes of lines per byte of data. The smallest honest chunk has 5 for its only byte; some extensions fit into the
# allowance. Without a bound a client could send extensions for ever (CVE-2024-22019 in Node). A plain line with up to
# 8 digits and the one behind the data are 12 bytes, so nothing made of such alone can break it.
OVERHEAD, OVERHEAD_ALLOWANCE_BYTES = 15, 65536

_chunk = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n").match
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*+"'
# RFC 9112, 7.1.1, with the blanks that its grammar tolerates but for those right behind the size: other parsers take
# them for the end of the number.
_is_size_line = re.compile(
    rb"(0*+[0-9A-Fa-f]{0,16})(?:;[ \t]*+%b[ \t]*+(?:=[ \t]*+(?:%b|%b)[ \t]*+)?)*+\r\n" % (_TOKEN, _TOKEN, _QUOTED)
).fullmatch
_BEGINNINGS = {
    SIZE: re.compile(rb"0*+[0-9A-Fa-f]{0,16}(?:(?<=[0-9A-Fa-f])(?:\r|;.*))?", re.DOTALL).fullmatch,
    END: re.compile(rb"\r?").fullmatch,
    TRAILER: re.compile(rb"\r|%b(?::.*)?" % _TOKEN, re.DOTALL).fullmatch,
}
_LOOK_BYTES = 64  # of a beginning: a client that sends byte by byte must not make us look at all of it each time

# Fields that must not come behind the body (RFC 9110, 6.5.1), because something on the way may have acted, or will
# act, on them as if they had come before it: framing and the connection, routing, authentication, request modifiers,
# what the content is. Harmless ones (checksums, signatures, timings) are dropped: an environ is complete when the
# application is called.
FORBIDDEN_TRAILERS = frozenset("""
authorization cache-control connection content-encoding content-length content-range content-type cookie expect
forwarded host keep-alive max-forwards pragma proxy-authenticate proxy-authorization proxy-connection range te trailer
transfer-encoding upgrade via x-real-ip
""".split())  # fmt: skip # noqa: SIM905
FORBIDDEN_PREFIXES = ("if-", "x-forwarded-")


class ChunkDecoder:
    """Decodes one chunked body; used by one thread at a time."""

    __slots__ = (
        "_left",
        "_limits",
        "_line",
        "_overhead",
        "_payload",
        "_state",
        "_trailer_bytes",
        "_trailers",
        "done",
    )

    def __init__(self, limits: Limits) -> None:
        self.done = False
        self._limits = limits
        self._state = SIZE
        self._left = 0  # of the chunk we are in
        self._line = b""  # the beginning of a line
        self._payload = 0  # bytes of data announced so far
        self._overhead = 0  # bytes of the lines around it; plain short ones are not worth counting
        self._trailers = 0
        self._trailer_bytes = 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """The payload these bytes hold, and what lies behind the end of the message (b"" until `done`); Refusal."""
        if self._state == DATA and len(data) <= self._left:  # the middle of a large chunk: not copied at all
            self._left -= len(data)
            if not self._left:
                self._state = END
            return data, b""
        pieces: list[memoryview] = []
        view = memoryview(data)
        position, size = 0, len(data)
        while position < size and self._state != DONE:
            if self._state == DATA:
                stop = min(position + self._left, size)
                pieces.append(view[position:stop])
                self._left -= stop - position
                position = stop
                if not self._left:
                    self._state = END
                continue
            if self._state == SIZE and not self._line:
                position = self._whole_chunks(data, view, position, pieces)
                if position == size:
                    break
            newline = data.find(b"\n", position) + 1
            self._line += data[position : newline or size]
            position = newline or size
            if newline:
                line, self._line = self._line, b""
                self._take(line)
            else:
                self._check_beginning(data)
        return b"".join(pieces), data[position:]

    def _whole_chunks(self, data: bytes, view: memoryview, position: int, pieces: list[memoryview]) -> int:
        """Take the chunks that lie whole and plain at `position`; return where the first other thing is."""
        while match := _chunk(data, position):
            count = int(match[1], 16)
            start = match.end()
            stop = start + count
            if not count or data[stop : stop + 2] != b"\r\n":
                break
            self._announce(count)
            pieces.append(view[start:stop])
            position = stop + 2
        return position

    def _announce(self, count: int) -> None:
        """A chunk of `count` bytes begins."""
        self._payload += count
        if self._payload > self._limits.body_bytes:
            raise Refusal(413, "body too large")

    def _take(self, line: bytes) -> None:
        """A whole line, its end included, in SIZE, END or TRAILER."""
        if self._state == END:
            if line != b"\r\n":
                raise Refusal(400, _FAULTS[END])
            self._state = SIZE
        elif self._state == TRAILER:
            self._take_trailer(line)
        else:
            match = _is_size_line(line)
            if match is None or not match[1] or len(line) > EXTENSION_BYTES:
                raise Refusal(400, _FAULTS[SIZE])
            self._overhead += len(line)
            if self._overhead > OVERHEAD * self._payload + OVERHEAD_ALLOWANCE_BYTES:
                raise Refusal(400, "chunk overhead")
            count = int(match[1], 16)
            self._announce(count)
            self._left = count
            self._state = DATA if count else TRAILER

    def _take_trailer(self, line: bytes) -> None:
        """A whole trailer line: checked and forgotten."""
        if line == b"\r\n":
            self._state = DONE
            self.done = True
            return
        limits = self._limits
        self._trailers += 1
        self._trailer_bytes += len(line)
        if self._trailers > limits.header_count or self._trailer_bytes > limits.head_bytes:
            raise Refusal(431, "too many trailer fields")
        if len(line) > limits.header_field_bytes + 2:
            raise Refusal(431, "trailer field too large")
        name, colon, _ = line[:-2].decode("latin-1").partition(":")
        if not line.endswith(b"\r\n") or not colon or not is_token(name) or 0 in line[:-2].translate(TEXT_BYTES):
            raise Refusal(400, _FAULTS[TRAILER])
        name = name.lower().replace("_", "-")  # what WSGI would make one key
        if name in FORBIDDEN_TRAILERS or name.startswith(FORBIDDEN_PREFIXES):
            raise Refusal(400, "forbidden trailer")

    def _check_beginning(self, data: bytes) -> None:
        """Refuse the beginning of a line, to which `data` was the last addition, when it can become no good one."""
        line, state = self._line, self._state
        if (
            not _BEGINNINGS[state](line[:_LOOK_BYTES])
            or bare_end(line, max(0, len(line) - len(data) - 1))
            or (state == SIZE and len(line) >= EXTENSION_BYTES)
        ):
            raise Refusal(400, _FAULTS[state])
        if state == TRAILER and len(line) > self._limits.header_field_bytes + 2:
            raise Refusal(431, "trailer field too large")
