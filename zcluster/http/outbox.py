"""What a client has not taken yet of its response.

Invariant: bytes leave in the order in which they came. `memory` precedes `file`; once a file exists everything new
goes to the file, until both are empty.
"""

import os
import socket
import tempfile
from typing import BinaryIO

SEND_BYTES = 1 << 18  # per call: more than any default socket buffer takes at once, little enough to copy
ROUNDS = 8  # calls per visit: a client on loopback that keeps up must not own the loop


class SpoolError(Exception):
    """The temporary file cannot take any more; an OSError would look like one of the socket's."""


class Outbox:
    """Bytes waiting for the socket, in memory up to a limit and in an unnamed temporary file beyond it.

    Not thread-safe: its connection's owner uses it.
    """

    __slots__ = ("_file", "_limit_bytes", "_memory", "_read", "_written")

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._memory = bytearray()
        self._file: BinaryIO | None = None
        self._read = self._written = 0  # offsets in the file

    @property
    def pending_bytes(self) -> int:
        """Bytes that still wait."""
        return len(self._memory) + self._written - self._read

    def add(self, data: bytes | memoryview) -> None:
        """Append; SpoolError when the temporary file cannot take it."""
        try:
            if self._file is None:
                if len(self._memory) + len(data) <= self._limit_bytes:
                    self._memory += data
                    return
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (closed when empty or by close())
            view = memoryview(data)
            while view:  # a raw file may take less than it was given
                count = self._file.write(view)
                self._written += count
                view = view[count:]
        except OSError as error:
            raise SpoolError(str(error)) from error

    def flush(self, sock: socket.socket) -> int:
        """Send what the socket takes now and return how many bytes; OSError when the client is gone."""
        sent = 0
        try:
            for _ in range(ROUNDS):
                if self._memory:
                    count = sock.send(memoryview(self._memory)[:SEND_BYTES])
                    del self._memory[:count]
                elif self._file is not None:
                    count = os.sendfile(sock.fileno(), self._file.fileno(), self._read, SEND_BYTES)
                    self._read += count
                    if self._read == self._written:
                        self.close()
                else:
                    break
                sent += count
        except BlockingIOError:
            pass  # the ordinary end: the socket is full
        return sent

    def close(self) -> None:
        """Forget everything and give the file back."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._read = self._written = 0
        self._memory = bytearray()
