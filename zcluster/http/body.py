"""Request bodies: bytes as they arrive in, a file for `wsgi.input` out.

Invariant: a body knows its own end to the byte. What follows it in the buffer belongs to the next request and is
handed back untouched; that is what keeps a smuggled request from hiding behind a body.

Theory of operation. A body is first collected by the loop, in memory (`Intake`). One that is small is whole before
the application runs. A longer one of known length is then streamed: the application runs on a thread of its own and
reads the rest from the socket (`Stream`). Where no thread may wait for a client, and where the length is unknown
(frameworks that believe only in Content-Length would see an empty body), collecting goes on into an unnamed file.
"""

import contextlib
import io
import select
import tempfile
import time
from typing import TYPE_CHECKING, BinaryIO
from wsgiref.types import WSGIEnvironment

from .chunked import ChunkDecoder
from .head import CHUNKED, EXPECT, SIZED, Refusal
from .limits import Limits

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from .writer import Writer

JOIN_BYTES = 4096  # small pieces of a body are joined up to here: each costs 50 bytes, and clients choose them
CHUNKED_READ_BYTES = 8192
READ_AHEAD_BYTES = 65536  # what a streamed body is read in, so that readline() is no system call


class ClientFault(OSError):
    """The client did not send what it had announced; the request's end, unless the application knows better.

    An OSError, because that is what applications expect of a read that fails.
    """

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal


class LengthDecoder:
    """A body of a known number of bytes: all of them are it."""

    __slots__ = ("_left", "done")

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = not length

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Split off what belongs to this body, and return it and the rest."""
        left = self._left
        if len(data) <= left:
            self._left = left - len(data)
            self.done = not self._left
            return data, b""
        self._left, self.done = 0, True
        return data[:left], data[left:]


Decoder = LengthDecoder | ChunkDecoder


class Intake:
    """The body of one request as the loop collects it; its connection's owner uses it."""

    __slots__ = ("_blocks", "_file", "_limits", "decoder", "environ", "flags", "read_bytes", "size")

    def __init__(self, environ: WSGIEnvironment, flags: int, limits: Limits) -> None:
        self.environ = environ
        self.flags = flags
        # Per read of the loop, which has other clients: chunks of a single byte, 1,400 in 8 KiB, cost it 1.2 ms.
        self.read_bytes = READ_AHEAD_BYTES if flags & SIZED else CHUNKED_READ_BYTES
        self.size = 0
        self.decoder = LengthDecoder(int(environ["CONTENT_LENGTH"])) if flags & SIZED else ChunkDecoder(limits)
        self._limits = limits
        self._blocks: list[bytes] = []
        self._file: BinaryIO | None = None

    def take(self, data: bytes) -> bytes:
        """Keep what belongs to the body, return the rest; Refusal, or OSError when a file cannot take it."""
        payload, rest = self.decoder.feed(data)
        if payload:
            self.size += len(payload)
            if self._file is not None:
                self._file.write(payload)
            elif self._blocks and len(self._blocks[-1]) + len(payload) <= JOIN_BYTES:
                self._blocks[-1] += payload
            else:
                self._blocks.append(payload)
        if self._file is not None and self.decoder.done:
            self._file.flush()  # an error of the disk's comes here, and not where nobody expects it
        return rest

    @property
    def is_too_long(self) -> bool:
        """Whether more is in memory than should be."""
        return self._file is None and self.size > self._limits.body_memory_bytes

    @property
    def may_stream(self) -> bool:
        """Whether the application could have it as it comes: only if it is told how long it will be."""
        return self._file is None and bool(self.flags & SIZED)

    def move_to_file(self) -> None:
        """From here on an unnamed temporary file takes it; OSError."""
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`, or by the request's end)
        self._file.write(self.in_memory())

    def in_memory(self) -> bytes:
        """What is there, taken out."""
        data = b"".join(self._blocks)
        self._blocks.clear()
        return data

    def finish(self) -> BinaryIO:
        """It is whole: as a file from its first byte, which the caller closes; the environ has it too."""
        environ = self.environ
        if self.flags & CHUNKED:  # RFC 9112, 7.1.3: a decoded body has a length and no coding
            del environ["HTTP_TRANSFER_ENCODING"]
            environ["CONTENT_LENGTH"] = str(self.size)
        if self._file is None:
            file: BinaryIO = io.BytesIO(self.in_memory())
        else:
            self._file.seek(0)
            file = self._file
        environ["wsgi.input"] = file
        return file

    def close(self) -> None:
        """Give the file back: the request will never be whole."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # it cannot write the rest: closed all the same
                self._file.close()


class Stream(io.RawIOBase):
    """The rest of a body, read from the socket by the thread that runs the application; one thread at a time."""

    def __init__(self, connection: "Writer", intake: Intake, limits: Limits) -> None:
        self.decoder = intake.decoder
        self.rest = b""  # behind the body's end: the next request
        self._connection = connection
        self._expected = bool(intake.flags & EXPECT)  # the client waits for our consent
        self._ready = memoryview(intake.in_memory())
        self._limits = limits
        self._moved_bytes = 0
        self._left_s = (
            limits.body_timeout_s
        )  # to wait for the next `progress_bytes`; the application's time is not in it
        self._fault: Refusal | None = None  # who reads on must not find an end, or a request, in what follows

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        """As io.RawIOBase; 0 only at the end of the body. ClientFault, and from then on always."""
        if self.closed:
            raise ValueError("read of the body of a request that is over")
        while not self._ready:
            if self._fault is not None:
                raise ClientFault(self._fault)
            if self.decoder.done:
                return 0
            try:
                payload, self.rest = self.decoder.feed(self._receive())
                self._ready = memoryview(payload)
            except Refusal as refusal:
                # a copy, because its traceback would be a cycle
                self._fault = Refusal(refusal.status, refusal.reason)
        target = memoryview(buffer).cast("B")
        count = min(len(target), len(self._ready))
        target[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _receive(self) -> bytes:
        """More bytes from the client, waiting for them; Refusal when none come."""
        connection, sock = self._connection, self._connection.sock
        if self._expected:
            self._expected = False
            if connection.exchange is not None and not connection.exchange.sent:  # else it has its answer
                connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while True:
            try:
                data = sock.recv(READ_AHEAD_BYTES)
            except (BlockingIOError, InterruptedError):
                poll = select.poll()
                poll.register(sock.fileno(), select.POLLOUT if connection.wants_write else select.POLLIN)
                began = time.monotonic()
                connection.waiting = True
                events = poll.poll(max(0.0, self._left_s) * 1000)
                connection.waiting = False
                if not events:
                    raise Refusal(408, "body time-out") from None
                self._left_s -= time.monotonic() - began
                continue
            except OSError:
                data = b""
            if not data:
                connection.broken = True
                raise Refusal(400, "client left in its body")
            connection.taken_bytes += len(data)
            self._moved_bytes += len(data)
            if self._moved_bytes >= self._limits.progress_bytes:
                self._moved_bytes, self._left_s = 0, self._limits.body_timeout_s
            return data
