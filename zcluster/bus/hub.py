"""The master's end of the bus: ROUTER, PUB and PULL, who may use them, and one place to wait for them and other fds.

Invariant: nothing that comes in can block, end or monopolise the master. A frame is either an `Arrival` from a
process the kernel vouches for, or counted in `dropped` and gone.

One poll takes at most 256 messages and about 4 MiB from a socket, so a flood on one delays the others by a
millisecond and not for ever; what is left makes the next poll return at once.
"""

import math
import os
import resource
from collections import Counter
from collections.abc import Callable, Collection
from functools import lru_cache
from typing import Final, Literal, NamedTuple

import zmq

from zcluster.bus.endpoints import (
    CTL_CUT_BYTES,
    CTL_HWM,
    EVT_CUT_BYTES,
    EVT_HWM,
    EVT_MAX_BYTES,
    IN,
    NAMES,
    NOBLOCK,
    PUB_HWM,
    SUBSCRIPTION_CUT_BYTES,
    WAIT_MAX_S,
    configure,
    endpoint,
    receive,
    state_of,
)
from zcluster.core.codec import decode, encode, encode_pub
from zcluster.core.mail import Got, Mail, Missing
from zcluster.core.messages import (
    TICK,
    Ask,
    Beat,
    Hello,
    Increments,
    Leaving,
    Message,
    Probe,
    Ready,
    Resync,
    Tick,
    Welcome,
)
from zcluster.core.outbox import FRAME_MAX_BYTES
from zcluster.errors import BadFrame, SpawnError

TURN_MESSAGES: Final = 256  # about 1 ms of decoding
TURN_BYTES: Final = 4 << 20  # one more frame of any size may follow
LINGER_MS: Final = 250  # at close: a last Drain or Answer reaches a peer that reads; one that does not cannot hold us
BACKLOG: Final = 1024  # all workers of a large machine come to a new master at the same instant
_MORE: Final = int(zmq.SNDMORE) | NOBLOCK
_UP: Final = {"ctl": (Hello, Ready, Beat, Leaving, Resync, Ask, Mail, Got, Missing), "evt": (Increments,)}
_LIMITS: Final = {"ctl": FRAME_MAX_BYTES, "evt": EVT_MAX_BYTES}


class Arrival(NamedTuple):
    """One message and who sent it, as the kernel attests."""

    source: Literal["ctl", "evt"]
    peer: bytes  # the name of its link, to answer with `Hub.send`; empty on evt
    pid: int
    message: Message
    frame: bytes = b""  # as it came, to be forwarded


class Hub:
    """The three bound sockets; made, used and closed by one thread of a process that never forks afterwards.

    Raises `ConfigError` when `run_dir` is too long, `SpawnError` when it cannot be bound. The caller holds the lock
    of the run directory: binding takes the names away from whoever had them.
    """

    def __init__(self, run_dir: str, epoch: int, uids: Collection[int] | None = None) -> None:
        self.epoch = epoch
        self.heads: dict[str, int] = {}  # topic -> number of the last message published
        self.dropped: Counter[str] = Counter()  # "socket:reason" -> how many
        self.received: Counter[str] = Counter()  # socket -> how many messages were admitted
        self._uids = frozenset((os.getuid(), 0) if uids is None else uids)
        addresses = [endpoint(run_dir, name) for name in NAMES]
        _raise_fd_limit()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._ctl = self._context.socket(zmq.ROUTER)
        self._pub = self._context.socket(zmq.PUB)
        self._evt = self._context.socket(zmq.PULL)
        self._poller = zmq.Poller()
        try:
            self._bind(addresses)
        except zmq.ZMQError as error:
            self.close(linger_ms=0)
            raise SpawnError(f"cannot bind the bus in {run_dir}: {error.strerror}; is it writable?") from error

    def _bind(self, addresses: list[str]) -> None:
        self._ctl.set(zmq.ROUTER_HANDOVER, 1)  # a name that comes back is its owner's new connection, not an intruder
        self._ctl.set(zmq.ROUTER_MANDATORY, 1)  # otherwise what cannot be sent is lost without a word
        configure(self._ctl, hwm=CTL_HWM, cut_bytes=CTL_CUT_BYTES, linger_ms=LINGER_MS)
        configure(self._pub, hwm=PUB_HWM, cut_bytes=SUBSCRIPTION_CUT_BYTES, linger_ms=LINGER_MS)
        configure(self._evt, hwm=EVT_HWM, cut_bytes=EVT_CUT_BYTES, linger_ms=0)
        before = os.umask(0o077)  # the directory is 0700 already; this is the second lock on the door
        try:
            for socket, address in zip((self._ctl, self._pub, self._evt), addresses, strict=True):
                socket.set(zmq.BACKLOG, BACKLOG)
                socket.bind(address)
                # PUB never has anything to read, but polling it is what makes it see subscriptions between two sends.
                self._poller.register(socket, zmq.POLLIN)
        finally:
            os.umask(before)

    # ---- waiting --------------------------------------------------------------------------------------------------
    def register(self, fd: int) -> None:
        """Let `poll` wait for this fd to become readable, too."""
        self._poller.register(fd, zmq.POLLIN)

    def unregister(self, fd: int) -> None:
        """Stop waiting for this fd; to be called before it is closed."""
        self._poller.unregister(fd)

    def poll(self, timeout_s: float) -> tuple[list[Arrival], list[int]]:
        """Wait at most `timeout_s` seconds, or a minute; return what arrived and which registered fds are ready."""
        arrivals: list[Arrival] = []
        ready: list[int] = []
        for source, _ in self._poller.poll(math.ceil(min(max(0.0, timeout_s), WAIT_MAX_S) * 1000)):
            if source is self._ctl:
                self._take("ctl", self._ctl, arrivals)
            elif source is self._evt:
                self._take("evt", self._evt, arrivals)
            elif isinstance(source, int):
                ready.append(source)
        return arrivals, ready

    def _take(self, name: Literal["ctl", "evt"], socket: "zmq.Socket[bytes]", arrivals: list[Arrival]) -> None:
        """Receive one turn's worth from a socket."""
        taken_bytes = 0
        for _ in range(TURN_MESSAGES):
            try:
                peer = socket.recv(NOBLOCK) if name == "ctl" else b""
                frame = receive(socket)
            except zmq.Again:
                return
            arrival = self._admit(name, peer, frame)
            if isinstance(arrival, str):
                self.dropped[f"{name}:{arrival}"] += 1
            else:
                arrivals.append(arrival)
                self.received[name] += 1
            taken_bytes += len(frame)
            if taken_bytes > TURN_BYTES or not state_of(socket) & IN:
                return

    def _admit(self, name: Literal["ctl", "evt"], peer: bytes, frame: zmq.Frame) -> Arrival | str:
        """Return the message in a frame and its sender, or the reason why it is dropped."""
        if frame.more:
            return "multipart"
        try:
            uid, pid = _credentials(str(frame.get("Peer-Address")))
        except (zmq.ZMQError, ValueError):
            return "unattested"
        if uid not in self._uids:
            return "foreign-uid"
        if len(frame) > _LIMITS[name]:
            return "oversized"
        raw = frame.bytes
        try:
            message = decode(raw)
        except BadFrame:
            return "bad-frame"
        if not isinstance(message, _UP[name]):
            return "direction"
        if isinstance(message, Hello) and (message.pid != pid or message.link != peer):
            return "wrong-sender"
        return Arrival(name, peer, pid, message, raw)

    # ---- sending --------------------------------------------------------------------------------------------------
    def send(self, peer: bytes, message: Message) -> bool:
        """Send to one link; false (and counted) when it is not connected, its queue full, or the frame too large."""
        frame = encode(message)
        if len(frame) > FRAME_MAX_BYTES:  # the peer's library would cut the connection
            self.dropped["ctl:too-large-to-send"] += 1
            return False
        return self.forward(peer, frame)

    def forward(self, peer: bytes, frame: bytes) -> bool:
        """Send a frame that was checked before; otherwise as `send`."""
        try:
            self._ctl.send(peer, _MORE)
            self._ctl.send(frame, NOBLOCK)
        except zmq.Again:
            self.dropped["ctl:queue-full"] += 1
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self.dropped["ctl:unreachable"] += 1
            return False
        return True

    def welcome(self, peer: bytes, message: Welcome) -> bool:
        """Answer a Hello or a Resync of this link: the snapshot by ctl and, as proof of its SUB, the probe by pub."""
        # Reading the events makes PUB look at its connections; a send alone looks only once per some 3 million ticks
        # of the processor's clock, and the probe would go out before the subscription to it is known.
        self._pub.get(zmq.EVENTS)
        self._pub.send(encode_pub(f"probe:{peer.hex()}", Probe(peer)), zmq.NOBLOCK)
        return self.send(peer, message)

    def publish(self, topic: str, make: Callable[[int], Message]) -> int:
        """Publish the message that `make` makes of its number, the next one of this topic; return the number."""
        number = self.heads[topic] = self.heads.get(topic, 0) + 1
        self._pub.send(encode_pub(topic, make(number)), zmq.NOBLOCK)
        return number

    def tick(self) -> None:
        """Publish that the master lives and what the last number of each topic is; to be called every heartbeat."""
        self.publish(TICK, lambda number: Tick(self.epoch, number, self.heads))

    def close(self, linger_ms: int = LINGER_MS) -> None:
        """Close the sockets, waiting at most `linger_ms` for what was sent to leave.

        Their files stay: nobody can connect to them, and the next bind replaces them.
        """
        self._context.destroy(linger_ms)


@lru_cache(maxsize=4096)  # one entry per connection that is alive; the string is the same for all its frames
def _credentials(address: str) -> tuple[int, int]:
    """Return uid and pid of a Peer-Address, `localhost:uid:gid:pid` (SO_PEERCRED, taken when it connected)."""
    _, uid, _, pid = address.split(":")
    return int(uid), int(pid)


def _raise_fd_limit() -> None:
    """Allow as many fds as the machine lets us: libzmq ends the process when an accept on ipc finds none left."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
