"""What both ends of the bus must agree on: where its three sockets stand and how large and how many frames may be.

Invariant: every option is set before bind or connect and never changed after: libzmq 4.3.5 can crash when a
high-water mark changes at run time.
"""

import os
from typing import Final, Literal

import zmq

from zcluster.core.outbox import FRAME_MAX_BYTES
from zcluster.errors import ConfigError

Name = Literal["ctl", "pub", "evt"]
NAMES: Final[tuple[Name, ...]] = ("ctl", "pub", "evt")

# As numbers: the library's enums cost a microsecond at each use.
NOBLOCK, IN, OUT, _EVENTS = int(zmq.NOBLOCK), int(zmq.POLLIN), int(zmq.POLLOUT), int(zmq.EVENTS)
EVT_MAX_BYTES: Final = 64 << 10  # 256 cells of a lane take 3 KiB
# libzmq cuts the connection of whoever sends more than its MAXMSGSIZE and tells nobody. Its limit stands above ours,
# so that a peer which is a little wrong is seen and counted, and only one that is far off loses its connection.
CTL_CUT_BYTES: Final = FRAME_MAX_BYTES + (1 << 20)
EVT_CUT_BYTES: Final = 2 * EVT_MAX_BYTES
# All that ever comes in on `pub` is the name of a topic, 257 bytes at most. Names make a tree in the library as deep
# as they are long, and 4.3.5 frees some of its trees by recursion (1 MiB of name: segmentation fault).
SUBSCRIPTION_CUT_BYTES: Final = 1 << 10

# High-water marks are per connection and count messages, so the bytes behind one peer are at most mark * frame size.
CTL_HWM: Final = 4096  # 64 senders of mail with a full window of 32 pieces each, and as many bigger ones as few have
# 20 totals, a tick and some events a second: 45 s of silence of a peer before anything is lost; of publications as
# much as 64 MiB, the largest message twice. What does not fit is found missing by its number.
PUB_HWM: Final = 1000
EVT_HWM: Final = 100  # running totals: the newest says it all, so a long queue would only be old news
HANDSHAKE_MS: Final = 5000  # who has not even greeted by then never will; the library's default is 30 s
WAIT_MAX_S: Final = 60.0  # an endless time-out is many of these: poll(2) counts in milliseconds and in an int
PATH_MAX_BYTES: Final = 107  # sun_path of unix(7), without its NUL


def endpoint(run_dir: str, name: Name) -> str:
    """Return the address of one of the bus's sockets; raises `ConfigError` when its path is too long."""
    path = f"{run_dir}/{name}"
    length = len(os.fsencode(path))
    if length > PATH_MAX_BYTES:
        raise ConfigError(
            f"the run directory is too long: {path} has {length} bytes and a unix socket's path at most"
            f" {PATH_MAX_BYTES}; give a shorter one with --run-dir"
        )
    return f"ipc://{path}"


def configure(socket: "zmq.Socket[bytes]", *, hwm: int, cut_bytes: int, linger_ms: int) -> None:
    """Set the options every socket of the bus has, in both directions."""
    socket.set(zmq.SNDHWM, hwm)
    socket.set(zmq.RCVHWM, hwm)
    socket.set(zmq.MAXMSGSIZE, cut_bytes)
    socket.set(zmq.LINGER, linger_ms)
    socket.set(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)


def state_of(socket: "zmq.Socket[bytes]") -> int:
    """Return what is possible now: IN, OUT, both or nothing. Cheaper by far than an attempt that fails."""
    return socket.get(_EVENTS)  # type: ignore[return-value]  # bytes are for other options


def receive(socket: "zmq.Socket[bytes]") -> zmq.Frame:
    """Receive the next message without waiting; raises `zmq.Again` when there is none.

    Ours have one frame. Of a longer one, which only a stranger sends, the first is returned with `more` set and the
    others are thrown away: the library hands over whole messages only, so they are here already.
    """
    frame = socket.recv(NOBLOCK, copy=False)
    more = frame.more
    while more:
        more = socket.recv(NOBLOCK, copy=False).more
    return frame
