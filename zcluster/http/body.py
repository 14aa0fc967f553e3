"""Request bodies: bytes as they arrive in, a file for `wsgi.input` out.

Invariant: a body knows its own end to the byte. What follows it in the buffer belongs to the next request and is
handed back untouched; that is what keeps a smuggled request from hiding behind a body.

Theory of operation. The loop collects a whole body before the application runs (the only thread must not wait for a
client inside the application), in memory up to a limit and in an unnamed file beyond it. A Content-Length body is
counted. A chunked one is decoded by llhttp, which has no way to tell where in a buffer a message ended, so it is fed
in pieces that stop behind every CR LF CR LF, because a chunked message always ends with these four bytes: when it
completes, it has completed exactly at the end of a piece.
"""

import io
import tempfile
from typing import BinaryIO

from httptools import HttpParserError, HttpRequestParser

from .head import Refusal
from .limits import Limits

END = b"\r\n\r\n"
# llhttp decodes the chunks of *a* message; a request head of our own, so that nothing of the client's (Upgrade,
# Connection, a method) changes how.
OUR_HEAD = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
# Bytes on the wire per byte of data. The smallest honest chunk is 1 byte in 6; extensions and trailers fit into the
# allowance. Without a bound a client could send extensions for ever (CVE-2024-22019 in Node).
OVERHEAD, OVERHEAD_ALLOWANCE_BYTES = 16, 65536


class Spool:
    """A body in memory, moved to an unnamed temporary file when it grows."""

    __slots__ = ("_file", "_limit_bytes", "size")

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._file: BinaryIO = io.BytesIO()
        self.size = 0

    def add(self, data: bytes) -> None:
        """Append; OSError when the temporary file cannot take it."""
        before = self.size
        self.size += len(data)
        if before <= self._limit_bytes < self.size:
            memory = self._file
            assert isinstance(memory, io.BytesIO)
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (the request's end closes it)
            self._file.write(memory.getbuffer())
        self._file.write(data)

    def open(self) -> BinaryIO:
        """The whole body as a file, from its first byte."""
        self._file.seek(0)
        return self._file

    def close(self) -> None:
        """Give the file back."""
        self._file.close()


class LengthBody:
    """A body of a known number of bytes."""

    __slots__ = ("_left", "done", "spool")

    def __init__(self, length: int, limits: Limits) -> None:
        self._left = length
        self.done = False
        self.spool = Spool(limits.body_memory_bytes)

    def feed(self, data: bytes) -> bytes:
        """Take what belongs to this body and return the rest; OSError when it cannot be spooled."""
        mine, rest = data[: self._left], data[self._left :]
        self.spool.add(mine)
        self._left -= len(mine)
        self.done = not self._left
        return rest


class ChunkedBody:
    """A body in chunks. Extensions and trailers are checked for syntax and forgotten: they never reach an environ."""

    __slots__ = ("_fault", "_limit_bytes", "_parser", "_tail", "_wire", "done", "spool")

    def __init__(self, limits: Limits) -> None:
        self.done = False
        self.spool = Spool(limits.body_memory_bytes)
        self._limit_bytes = limits.body_bytes
        self._fault: Exception | None = None
        self._tail = b""  # the last bytes fed: the end may straddle two reads
        self._wire = 0
        self._parser = HttpRequestParser(self)
        self._parser.feed_data(OUR_HEAD)

    def on_body(self, data: bytes) -> None:
        """llhttp: data of a chunk."""
        if self.spool.size + len(data) > self._limit_bytes:
            self._fault = Refusal(413, "body too large")
        elif self._fault is None:
            try:
                self.spool.add(data)
            except OSError as error:  # an exception would not survive the C parser as itself
                self._fault = error

    def on_message_complete(self) -> None:
        """llhttp: the last chunk and its trailers are in."""
        self.done = True

    def feed(self, data: bytes) -> bytes:
        """Take what belongs to this body and return the rest; Refusal, or OSError when it cannot be spooled."""
        window = self._tail + data
        start = len(self._tail)
        view = memoryview(window)
        while start < len(window) and not self.done:
            # from three bytes back: the four may begin in what was already fed
            found = window.find(END, max(0, start - 3))
            stop = found + len(END) if found >= 0 else len(window)
            try:
                self._parser.feed_data(view[start:stop])
            except HttpParserError:
                raise Refusal(400, "malformed chunk") from None
            if self._fault is not None:
                raise self._fault
            self._wire += stop - start
            start = stop
        if self._wire > OVERHEAD * self.spool.size + OVERHEAD_ALLOWANCE_BYTES:
            raise Refusal(400, "chunk overhead")
        self._tail = window[max(0, start - 3) : start]
        return window[start:]


Body = LengthBody | ChunkedBody
