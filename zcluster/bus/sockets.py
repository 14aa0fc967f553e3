"""The three sockets of a peer: made, waited for, and given up together.

Invariant: no two threads are in the DEALER at once, and no news on it is slept over.

One thread owns the sockets; any other may only `send_at_once`, which saves a message the way to the owner and the
owner's turn, a fifth of the time of a request. zmq_socket(3) lets a socket change threads behind a full fence: hence
the lock, and a wait for bare descriptors, because zmq_poll(3) would look into the socket without it. Such a
descriptor says that something has happened, once: whoever uses the socket next makes it silent. So the owner looks
at the sockets themselves before it sleeps if they were used since (`_touched`), and a thread that has taken the news
away from under it tells it.
"""

import os
import random
import select
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

import zmq

from zcluster.bus.endpoints import (
    CTL_CUT_BYTES,
    CTL_HWM,
    EVT_CUT_BYTES,
    EVT_HWM,
    IN,
    NAMES,
    NOBLOCK,
    OUT,
    PUB_HWM,
    configure,
    endpoint,
    receive,
    state_of,
)
from zcluster.core.codec import subscription

LINGER_MS: Final = 250  # at close: a last Leaving reaches a master that reads; one that does not cannot hold us
TURN_MESSAGES: Final = 256  # per socket and poll, so that updates cannot starve commands or the owner's own fds
# How often a socket without a master tries to connect. A connect that is refused costs some 20 us, and 20 to 50 ms
# bound what the bus adds to the restart of a master; each link draws its own, so that 64 do not come in one instant.
RECONNECT_MS: Final = (20, 50)

Take = Callable[[zmq.Frame], None]


class Sockets:
    """DEALER, SUB and PUSH to the master of a run directory, and the owner's poller.

    Raises `ConfigError` when `run_dir` is too long.
    """

    def __init__(self, run_dir: str) -> None:
        self.name = b""  # of the link
        self.poller = select.poll()  # the owner's own descriptors are registered here, too
        self._addresses = [endpoint(run_dir, name) for name in NAMES]
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._pid = os.getpid()
        self._lock = threading.Lock()  # guards the DEALER: which one it is, and what it does
        self._is_open = False
        self._touched = True
        self._fds: set[int] = set()

    def open(self, topics: Sequence[str]) -> None:
        """Make them under a new name, subscribed to `topics` and to `probe:NAME`, and connect them."""
        self.name = b"\x01" + os.urandom(15)  # a routing id must not begin with NUL: those are the library's own
        interval_ms = random.randint(*RECONNECT_MS)
        ctl = self._context.socket(zmq.DEALER)
        self._pub = self._context.socket(zmq.SUB)
        self._evt = self._context.socket(zmq.PUSH)
        configure(ctl, hwm=CTL_HWM, cut_bytes=CTL_CUT_BYTES, linger_ms=LINGER_MS)
        configure(self._pub, hwm=PUB_HWM, cut_bytes=CTL_CUT_BYTES, linger_ms=0)
        configure(self._evt, hwm=EVT_HWM, cut_bytes=EVT_CUT_BYTES, linger_ms=0)
        ctl.set(zmq.ROUTING_ID, self.name)
        for topic in (*topics, self.probe):  # the probe last: it proves those before it
            self._pub.set(zmq.SUBSCRIBE, subscription(topic))
        for socket in (ctl, self._evt):
            socket.set(zmq.IMMEDIATE, 1)  # without a connection a send fails, instead of queueing for later
        for socket, address in zip((ctl, self._pub, self._evt), self._addresses, strict=True):
            socket.set(zmq.RECONNECT_IVL, interval_ms)
            socket.set(zmq.RECONNECT_IVL_MAX, 0)
            socket.connect(address)
        self._fds = {int(socket.get(zmq.FD)) for socket in (ctl, self._pub)}
        for fd in self._fds:
            self.poller.register(fd, select.POLLIN)
        with self._lock:
            self._ctl, self._is_open = ctl, True
        self._touched = True

    @property
    def probe(self) -> str:
        """The topic of the message that proves the subscriptions of this name."""
        return f"probe:{self.name.hex()}"

    def shut(self) -> None:
        """Give up the sockets of this name, with all that is still in them."""
        for fd in self._fds:
            self.poller.unregister(fd)
        with self._lock:
            self._is_open = False
            self._ctl.close(linger=0)
        self._pub.close(linger=0)
        self._evt.close(linger=0)

    def close(self, linger_ms: int) -> None:
        """Close everything for good, waiting at most `linger_ms` for what was sent to leave."""
        with self._lock:
            self._is_open = False
        self._context.destroy(linger_ms)

    # ---- waiting and receiving, by the owner -----------------------------------------------------------------------
    def wait(self, timeout_s: float, *, writing: bool) -> tuple[bool, list[int]]:
        """Wait for news, or (`writing`) room; returns whether there may be some, and the other fds that are ready."""
        if self._touched and self._has_news(writing=writing):
            timeout_s = 0.0
        ready: list[int] = []
        look = False
        for fd, _ in self.poller.poll(timeout_s * 1000):
            if fd in self._fds:
                look = True
            else:
                ready.append(fd)
        return look or self._touched, ready

    def _has_news(self, *, writing: bool) -> bool:
        with self._lock:
            ctl = state_of(self._ctl)
        return bool(ctl & IN or (writing and ctl & OUT) or state_of(self._pub) & IN)

    def has_room(self) -> bool:
        """Whether the DEALER takes a message."""
        with self._lock:
            return bool(state_of(self._ctl) & OUT)

    def receive(self, take_ctl: Take, take_pub: Take) -> None:
        """Take one turn's worth of frames from both sockets; stop when they have been replaced on the way."""
        self._touched = False
        ctl = self._ctl
        for _ in range(TURN_MESSAGES):
            with self._lock:
                if ctl.closed or not state_of(ctl) & IN:
                    break
                frame = receive(ctl)
            take_ctl(frame)
        else:
            self._touched = True
        self.receive_pub(take_pub)

    def receive_pub(self, take: Take) -> None:
        """The same of the SUB alone."""
        pub = self._pub
        for _ in range(TURN_MESSAGES):
            if pub.closed or not state_of(pub) & IN:
                return
            take(receive(pub))
        self._touched = True

    def receive_all(self, take_ctl: Take, take_pub: Take, limit_s: float, pause_ms: int) -> None:
        """What a dead master has sent may still be on its way through the library's thread: wait for it, a moment."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end and self._pub.poll(pause_ms):
            self.receive_pub(take_pub)
        self.receive(take_ctl, take_pub)

    # ---- sending ---------------------------------------------------------------------------------------------------
    def send(self, frame: bytes) -> bool:
        """Send by the DEALER, as the owner; false when it has no room."""
        self._touched = True
        try:
            with self._lock:
                self._ctl.send(frame, NOBLOCK)
        except zmq.Again:
            return False
        return True

    def send_at_once(self, frame: bytes) -> bool | None:
        """Send by the DEALER, from any thread; false when it cannot leave now: leave it to the owner.

        None: it has left, and the owner must be woken, because something else has come that it cannot see.
        """
        if os.getpid() != self._pid:
            return False  # a fork of the owner: also the lock is not ours
        with self._lock:
            if not self._is_open:
                return False
            try:
                self._ctl.send(frame, NOBLOCK)
            except zmq.Again:
                return False
            if not state_of(self._ctl) & IN:
                return True
            self._touched = True
            return None

    def push(self, frame: bytes) -> bool:
        """Send by PUSH, as the owner; false when it has no room."""
        try:
            self._evt.send(frame, NOBLOCK)
        except zmq.Again:
            return False
        return True
