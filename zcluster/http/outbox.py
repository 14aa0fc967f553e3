"""What a client has not taken yet of its response: blocks in memory, then a file.

Invariant: bytes leave in the order in which they came. The blocks precede the file; once there is a file, whatever
comes goes behind it (a spool grows at its end; nothing comes behind a file of the application's).
"""

import os
import tempfile
from collections import deque
from itertools import islice
from typing import Final, Protocol

SEND_BYTES: Final = 1 << 18  # per call: more than any default socket buffer takes at once
SEND_BLOCKS: Final = 16  # per call, for a client that gets many small ones
TLS_BYTES: Final = 1 << 16  # read and encrypted per call: four records
BLOCK_BYTES: Final = 350  # what a block costs beside its bytes (view, buffer, header); measured
ROUNDS: Final = 8  # calls per visit: a client on loopback that keeps up must not own the loop


class Sender(Protocol):
    """A non-blocking stream socket, or TLS over one."""

    def send(self, data: memoryview, /) -> int:
        """As socket.send."""

    def sendmsg(self, data: "list[memoryview]", /) -> int:
        """As socket.sendmsg."""

    def fileno(self) -> int:
        """As socket.fileno."""


class SpoolError(Exception):
    """The temporary file cannot take any more; an OSError would look like one of the socket's."""


class ShortFile(Exception):
    """A file of the application's became shorter while it was sent."""


class Outbox:
    """Bytes waiting for the socket. Not thread-safe: its connection's owner uses it."""

    __slots__ = ("_blocks", "_fd", "_file_at", "_file_end", "_tls", "memory_bytes")

    def __init__(self, *, tls: bool) -> None:
        self._tls = tls
        self._blocks: deque[memoryview] = deque()
        self.memory_bytes = 0
        self._fd = -1  # ours to close
        self._file_at = self._file_end = 0

    @property
    def file_bytes(self) -> int:
        """How long the file has become; what was sent of it is given back only with the rest."""
        return self._file_end

    @property
    def has_file(self) -> bool:
        """Whether there is one."""
        return self._fd >= 0

    @property
    def empty(self) -> bool:
        """Whether the client has taken everything."""
        return not self._blocks and self._fd < 0

    def add(self, data: bytes | memoryview) -> None:
        """Append a block; it is kept, not copied."""
        if data:
            if self._fd >= 0:
                self.spool(data)
                return
            self._blocks.append(memoryview(data))
            self.memory_bytes += len(data) + BLOCK_BYTES

    def spool(self, data: bytes | memoryview) -> None:
        """Append to the temporary file, which is made if there is none; SpoolError when it cannot take it."""
        try:
            if self._fd < 0:
                with tempfile.TemporaryFile(buffering=0) as file:
                    self._fd = os.dup(file.fileno())
            view = memoryview(data)
            while view:
                count = os.pwrite(self._fd, view, self._file_end)
                self._file_end += count
                view = view[count:]
        except OSError as error:
            raise SpoolError(str(error)) from error

    def add_file(self, fd: int, offset: int, count: int) -> None:
        """Send this part of a file behind the blocks; the descriptor is ours from here on."""
        self._fd, self._file_at, self._file_end = fd, offset, offset + count

    def flush(self, sock: Sender) -> int:
        """Send what the socket takes now and return how many bytes; OSError when the client is gone; ShortFile."""
        sent = 0
        try:
            for _ in range(ROUNDS):
                if self._blocks:
                    count = self._send_blocks(sock)
                elif self._fd >= 0:
                    count = self._send_file(sock)
                else:
                    break
                sent += count
        except BlockingIOError:
            pass  # the ordinary end: the socket is full
        return sent

    def _send_blocks(self, sock: Sender) -> int:
        blocks = self._blocks
        if len(blocks) == 1:
            sent = sock.send(blocks[0][:SEND_BYTES])
        else:
            sent = sock.sendmsg(list(islice(blocks, SEND_BLOCKS)))
        left = sent
        while left:
            block = blocks[0]
            if left < len(block):
                blocks[0] = block[left:]
                break
            left -= len(block)
            blocks.popleft()
            self.memory_bytes -= BLOCK_BYTES
        self.memory_bytes -= sent
        return sent

    def _send_file(self, sock: Sender) -> int:
        """A part of the file. Reading it may wait for a disk, as it does in nginx: a cache miss is a few ms."""
        size = min(self._file_end - self._file_at, SEND_BYTES)
        if self._tls:
            data = os.pread(self._fd, min(size, TLS_BYTES), self._file_at)
            count = sock.send(memoryview(data)) if data else 0
        else:
            count = os.sendfile(sock.fileno(), self._fd, self._file_at, size) if size else 0
        if not count and size:
            raise ShortFile
        self._file_at += count
        if self._file_at == self._file_end:
            self.close()
        return count

    def close(self) -> None:
        """Forget everything and give the file back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._file_at = self._file_end = self.memory_bytes = 0
        self._blocks.clear()
