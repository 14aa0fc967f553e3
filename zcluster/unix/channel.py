"""A control channel: one SOCK_SEQPACKET socket, one datagram a message, file descriptors inside messages.

Invariant: neither side ever blocks on it. What the kernel does not take now waits in our own bounded queue.
"""

import array
import errno
import os
import select
import socket
from collections import deque
from collections.abc import Iterable, Sequence

from zcluster.core.codec import decode_control, encode_control
from zcluster.core.messages import Boot, Control
from zcluster.errors import BusError

# A datagram must fit into the send buffer (net.core.wmem_default, 208 KiB); a traceback is the largest thing sent.
MESSAGE_MAX_BYTES = 128 * 1024
# A master that is stopped while every worker of a large cluster dies a few times over; beyond that it is lost anyway.
WAITING_MAX = 10_000
FDS_MAX = 8
_LATER = (errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS)  # the kernel is short of something: not for ever
FIRST_MESSAGE_MS = 10_000  # it is sent right after the start; a starved machine needs a moment


class Channel:
    """One end. Used by one thread."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._waiting: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._is_unheard = False  # nobody reads any more what we send; what was sent to us is still to be read
        self.closed = False  # all that the other end ever sent has been received, or we closed ours

    def __repr__(self) -> str:
        return f"<Channel fd={self.fileno()} waiting={len(self._waiting)}{' closed' if self.closed else ''}>"

    @classmethod
    def pair(cls) -> "tuple[Channel, socket.socket]":
        """Our end, and the socket for the other process."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), theirs

    @classmethod
    def of_fd(cls, fd: int) -> "Channel":
        """Take over an inherited (or received) file descriptor."""
        os.set_inheritable(fd, False)
        return cls(socket.socket(fileno=fd))

    def fileno(self) -> int:
        """For a poller; -1 once closed."""
        return self._sock.fileno()

    @property
    def backlog(self) -> int:
        """Messages that wait for the kernel; poll for writing while it is not zero."""
        return len(self._waiting)

    @property
    def needs_care(self) -> bool:
        """Whether there is something to do although the socket is not readable: what waits, or its end."""
        return self.closed or bool(self._waiting)

    def send(self, message: Control, fds: Sequence[int] = ()) -> None:
        """Send, or queue when the socket is full; silently nothing once the other end is gone: `receive` tells.

        Raises BusError when WAITING_MAX messages wait: the other end has been stopped for too long; and for a message
        or a number of descriptors that can never be sent.
        """
        if self.closed or self._is_unheard:
            return
        if len(fds) > FDS_MAX:
            raise BusError(f"a control message with {len(fds)} descriptors; the limit is {FDS_MAX}")
        if len(self._waiting) >= WAITING_MAX:
            raise BusError(f"{WAITING_MAX} control messages wait for a process that does not read them")
        frame = encode_control(message)
        if len(frame) > MESSAGE_MAX_BYTES:
            raise BusError(f"a control message of {len(frame)} bytes; the limit is {MESSAGE_MAX_BYTES}")
        # Descriptors are duplicated while they wait, so the caller may close its own at once.
        self._waiting.append((frame, tuple(os.dup(fd) for fd in fds)))
        self.flush()

    def flush(self) -> None:
        """Hand to the kernel what it takes."""
        while self._waiting:
            frame, fds = self._waiting[0]
            try:
                if fds:
                    socket.send_fds(self._sock, [frame], list(fds), socket.MSG_NOSIGNAL)
                else:
                    self._sock.send(frame, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            except ConnectionError:  # EPIPE, ECONNRESET: the other process ended
                self._is_unheard = True
                self._drop_waiting()
                return
            except OSError as error:
                if error.errno in _LATER:
                    return
                self._drop_first()
                raise BusError(f"cannot send a control message of {len(frame)} bytes: {error.strerror}") from error
            self._drop_first()

    def receive(self) -> list[tuple[Control, list[int]]]:
        """Everything that has arrived, with its descriptors (the caller owns them). Sets `closed` at the end of file.

        The last words of a process that has died are among it. Raises BadFrame for what is not one of our messages:
        both ends are ours, so that is a bug. Nothing is returned then, and no descriptor is left open: a launcher
        outlives a master that is beside itself.
        """
        arrived: list[tuple[Control, list[int]]] = []
        try:
            self._receive_all(arrived)
        except BusError:
            for _message, fds in arrived:
                _close(fds)
            raise
        return arrived

    def _receive_all(self, arrived: list[tuple[Control, list[int]]]) -> None:
        while not self.closed:
            try:
                frame, fds = self._receive_one()
            except BlockingIOError:
                break
            except ConnectionResetError:
                continue  # told once, when it died with messages of ours unread; what it had sent comes after that
            if not frame:  # the end of file, or an empty datagram, which nobody of ours sends
                _close(fds)
                self._is_unheard = self.closed = True
                self._drop_waiting()
                break
            try:
                arrived.append((decode_control(frame), fds))
            except BusError:
                _close(fds)
                raise

    def first_message(self) -> Control:
        """Wait for the message every child gets right after its start. Raises BusError when it does not come."""
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        if not poller.poll(FIRST_MESSAGE_MS):
            raise BusError(f"the starter of this process sent no first message within {FIRST_MESSAGE_MS / 1000:g} s")
        try:
            frame, fds = self._receive_one()
        except OSError as error:
            raise BusError(f"the starter of this process sent no first message: {error}") from error
        _close(fds)  # none is sent with it
        if not frame:
            raise BusError("the starter of this process went away before it sent the first message")
        return decode_control(frame)

    def _receive_one(self) -> tuple[bytes, list[int]]:
        item_bytes = array.array("i").itemsize
        frame, ancillary, flags, _address = self._sock.recvmsg(
            MESSAGE_MAX_BYTES, socket.CMSG_SPACE(FDS_MAX * item_bytes), socket.MSG_CMSG_CLOEXEC
        )
        fds = array.array("i")
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(data[: len(data) - len(data) % item_bytes])
        if flags & socket.MSG_CTRUNC:  # recvmsg(2): the table of descriptors is full
            _close(fds)
            raise BusError(
                "the descriptors of a control message were lost; raise the limit of open files (ulimit -n)"
            )
        return frame, list(fds)

    def _drop_first(self) -> None:
        _close(self._waiting.popleft()[1])

    def _drop_waiting(self) -> None:
        while self._waiting:
            self._drop_first()

    def dup(self) -> int:
        """A duplicate of the socket, to hand to another process."""
        return os.dup(self._sock.fileno())

    def close(self) -> None:
        """Idempotent."""
        self._is_unheard = self.closed = True
        self._drop_waiting()
        self._sock.close()


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def boot_of(message: Control, role: str) -> Boot:
    """Return the Boot that the first message to a process in this role is; raises BusError when it is another."""
    if not isinstance(message, Boot):
        raise BusError(f"the first message to a {role} was {type(message).__name__}, not Boot")
    return message
