"""The parsers without an engine: what a connection makes of bytes, at the speed of function calls."""

from zcluster.http.chunked import ChunkDecoder
from zcluster.http.head import CHUNKED, SIZED, HeadParser, Refusal, check_beginning
from zcluster.http.limits import Limits
from zcluster.http.stats import Stats

BASE = {"SERVER_PROTOCOL": "HTTP/1.1", "REMOTE_ADDR": "1.2.3.4", "wsgi.version": (1, 0)}


class Sized:
    """A body of known length."""

    def __init__(self, length):
        self.left = length
        self.done = False

    def feed(self, data):
        mine, rest = data[: self.left], data[self.left :]
        self.left -= len(mine)
        self.done = not self.left
        return mine, rest


class Reader:
    """Takes one connection's bytes, in any pieces; `requests` and `refusal` say what became of them."""

    def __init__(self, limits=None):
        self.limits = limits or Limits()
        self.stats = Stats(list)
        self.parser = HeadParser(self.limits, self.stats)
        self.requests = []  # (environ, flags, body)
        self.refusal = None  # (status, reason)
        self._buffer = b""
        self._scanned = 0
        self._body = None
        self._request = None
        self._blocks = []

    def feed(self, data):
        """Take more bytes; those behind a refusal are never looked at."""
        self._buffer += data
        try:
            while self.refusal is None and self._step():
                pass
        except Refusal as refusal:
            self.refusal = (refusal.status, refusal.reason)
        return self

    def _step(self):
        if self._body is not None:
            return self._step_body()
        data = self._buffer
        end = data.find(b"\r\n\r\n", self._scanned) + 4
        if end < 4:
            if data:
                check_beginning(data, self._scanned, self.limits)
            self._scanned = max(0, len(data) - 3)
            return False
        self._scanned = 0
        self._buffer = data[end:]
        environ = BASE.copy()
        flags = self.parser.parse(data[:end], environ)
        if flags & (SIZED | CHUNKED):
            self._body = ChunkDecoder(self.limits) if flags & CHUNKED else Sized(int(environ["CONTENT_LENGTH"]))
            self._request = environ, flags
        else:
            self.requests.append((environ, flags, b""))
        return True

    def _step_body(self):
        if not self._buffer:
            return False
        payload, self._buffer = self._body.feed(self._buffer)
        self._blocks.append(payload)
        if not self._body.done:
            assert not self._buffer
            return False
        self.requests.append((*self._request, b"".join(self._blocks)))
        self._body = None
        self._blocks = []
        return True

    @property
    def outcome(self):
        """Everything that can be compared."""
        return self.requests, self.refusal, self._buffer if self.refusal is None else b""


def read(*pieces, limits=None):
    """What becomes of these pieces."""
    reader = Reader(limits)
    for piece in pieces:
        reader.feed(piece)
    return reader


def bytewise(data):
    """Every byte on its own."""
    return [data[index : index + 1] for index in range(len(data))]
