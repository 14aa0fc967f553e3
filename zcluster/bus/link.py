"""A peer's end of the bus: DEALER, SUB and PUSH, driven by `core.joining`, opened again when their master is gone.

Invariant: the owner sees one unbroken stream (totals that only rise, events in order and once, one Answer per Ask)
however often the sockets behind it are replaced.

One thread uses a link: the main thread of a worker, the one link thread of a handle. It is made after the last fork
of its process: a context that crosses a fork is broken on both sides. Other threads wake its owner through an fd of
theirs, given to `register`; so does `signal.set_wakeup_fd`.
"""

import logging
import math
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import zmq

from zcluster.bus.endpoints import (
    CTL_CUT_BYTES,
    CTL_HWM,
    EVT_CUT_BYTES,
    EVT_HWM,
    EVT_MAX_BYTES,
    NAMES,
    PUB_HWM,
    WAIT_MAX_S,
    configure,
    endpoint,
    receive,
)
from zcluster.core.codec import decode, decode_pub, encode, subscription
from zcluster.core.joining import (
    Action,
    Deliver,
    Joined,
    Joining,
    Missed,
    Parted,
    Refreshed,
    SendHello,
    SendResync,
    Watch,
)
from zcluster.core.mail import MEMBERS, TOPICS, Got, Mail, Members, Missing, Publication, Replayed
from zcluster.core.messages import (
    EVENTS,
    TICK,
    TOTALS,
    Answer,
    Drain,
    Event,
    Hello,
    Increments,
    Message,
    Probe,
    Refused,
    Resync,
    Tick,
    Totals,
    Welcome,
)
from zcluster.core.outbox import Outbox
from zcluster.errors import BadFrame, BusError

Delivered = Message | Joined | Refreshed | Missed | Parted

LINGER_MS: Final = 250  # at close: a last Leaving reaches a master that reads; one that does not cannot hold us
TURN_MESSAGES: Final = 256  # per socket and poll, so that updates cannot starve commands or the owner's own fds
# How often a socket without a master tries to connect. A connect that is refused costs some 20 us, and 20 to 50 ms
# bound what the bus adds to the restart of a master; each link draws its own, so that 64 do not come in one instant.
RECONNECT_MS: Final = (20, 50)
# What a master sent before it ended is in a socket's buffer already: the library's thread has it within microseconds
# of being scheduled. The pause is that, on a busy machine; the limit is for a flood.
LAST_WORDS_PAUSE_MS: Final = 10
LAST_WORDS_S: Final = 0.05
_IN, _OUT = int(zmq.POLLIN), int(zmq.POLLOUT)  # arithmetic on the library's enums costs a microsecond each time
_DOWN: Final = (Welcome, Refused, Drain, Answer, Mail, Got, Publication, Replayed)
_TOPICS: Final[dict[type, str]] = {
    Totals: TOTALS, Tick: TICK, Event: EVENTS, Members: MEMBERS, Publication: TOPICS,
}  # fmt: skip
_log = logging.getLogger(__name__)


class Link:
    """One peer's connection to the master of a run directory.

    `hello` makes the Hello for a link's name (16 bytes), with the peer's role and present state; it is called for
    each Hello. `topics` are the numbered topics to follow. Raises `ConfigError` when `run_dir` is too long.
    """

    def __init__(
        self,
        run_dir: str,
        hello: Callable[[bytes], Hello],
        *,
        topics: Sequence[str] = (TOTALS, EVENTS),
        heartbeat_s: float = 1.0,
        tick_timeout_s: float | None = None,
        outbox: Outbox | None = None,
    ) -> None:
        self.dropped: Counter[str] = Counter()  # "socket:reason" -> how many
        self.outbox = Outbox() if outbox is None else outbox
        self._addresses = [endpoint(run_dir, name) for name in NAMES]
        self._hello = hello
        self._pid = os.getpid()
        self._closed = False
        self._joining = Joining(topics=topics, heartbeat_s=heartbeat_s, tick_timeout_s=tick_timeout_s)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._poller = zmq.Poller()
        self._master: tuple[int, int] | None = None
        self._master_fd = -1
        self._delivered: list[Delivered] = []
        self._full = False  # a frame of mail did not fit
        self._writing = False  # waiting for room at ctl, too
        self._perform(self._open())

    # ---- what the owner sees --------------------------------------------------------------------------------------
    @property
    def joined(self) -> bool:
        """Whether the state of the cluster is known and updates flow."""
        return self._joining.joined

    @property
    def epoch(self) -> int:
        """The epoch of the last master joined; 0 before the first."""
        return self._joining.epoch

    @property
    def totals(self) -> dict[str, int]:
        """The highest totals seen; not to be changed."""
        return self._joining.totals

    def register(self, fd: int) -> None:
        """Let `poll` wait for this fd to become readable, too."""
        self._poller.register(fd, zmq.POLLIN)

    def unregister(self, fd: int) -> None:
        """Stop waiting for this fd; to be called before it is closed."""
        self._poller.unregister(fd)

    def poll(self, timeout_s: float) -> tuple[list[Delivered], list[int]]:
        """Wait at most `timeout_s` seconds for something to deliver or for a registered fd to become readable."""
        self._check()
        end = time.monotonic() + timeout_s
        while True:
            self._flush()
            waiting = self._full or self.outbox.head() is not None
            writing = self._joining.blocked_at_hello or (self.joined and waiting)
            if writing != self._writing:
                self._writing = writing
                self._poller.register(self._ctl, _IN | _OUT if writing else _IN)
            wait_s = min(end, self._joining.deadline) - time.monotonic()
            wait_s = 0.0 if self._delivered else min(max(0.0, wait_s), WAIT_MAX_S)
            master_fd = self._master_fd  # what is received may replace it, and the number may come back
            events = dict(self._poller.poll(math.ceil(wait_s * 1000)))
            ctl = events.get(self._ctl, 0)
            room = bool(ctl & _OUT)
            if room:
                self._perform(self._joining.writable(time.monotonic()))
            if ctl & _IN or self._pub in events:
                self._receive()
            ready = [fd for fd in events if isinstance(fd, int) and fd != master_fd]
            if master_fd in events and master_fd == self._master_fd:
                self._unwatch()  # it stays readable, and the new sockets may have to wait for their turn
                self._take_last_words()
                self._perform(self._joining.master_gone(time.monotonic()))
            now = time.monotonic()
            self._perform(self._joining.tick(now))
            self.outbox.repeat(now)
            if self._delivered or ready or now >= end or (room and self._full):
                if room:
                    self._full = False  # told once: the owner may have nothing more to say
                delivered, self._delivered = self._delivered, []
                self._flush()
                return delivered, ready

    def send(self, message: Message) -> None:
        """Queue a message for the master; raises `QueueFull`, and `BusError` when it is larger than a frame may be.

        An Ask is kept until its Answer is delivered and sent again after each rejoin, so the master tells repetitions
        by (pid, number). Of other kinds only the latest is kept until it could be sent: after `Joined` an owner says
        again what must be known.
        """
        self._check()
        self.outbox.put(message)
        self._flush()

    def post(self, message: Mail | Got | Missing) -> bool:
        """Send mail now; false when it cannot leave now: `poll` then returns as soon as it can."""
        self._check()
        self._full = self.joined and not self._try_send(encode(message))
        return self.joined and not self._full

    def follow(self, topic: str) -> None:
        """Subscribe to one more of the numbered topics; nothing when it is followed already.

        Only what is published from now on will come. The sockets are replaced: joining is what proves a subscription.
        """
        if topic not in self._joining.topics:
            self._check()
            self._joining.topics += (topic,)
            self._perform(self._joining.part(f"following {topic}", time.monotonic()))

    def push(self, message: Increments) -> bool:
        """Send an increment event now; false when it cannot leave now: keep the dirty bit and try again later."""
        self._check()
        if not self.joined:
            return False
        frame = encode(message)
        if len(frame) > EVT_MAX_BYTES:
            raise BusError(f"an increment event of {len(frame)} bytes; evt carries {EVT_MAX_BYTES}: send fewer cells")
        try:
            self._evt.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def reopen(self) -> None:
        """Close the sockets and join again with new ones: the master says that it does not hear us."""
        self._check()
        self._perform(self._joining.part("reconnect ordered", time.monotonic()))

    def close(self, linger_ms: int = LINGER_MS) -> None:
        """Close everything, waiting at most `linger_ms` for what was sent to leave; a second call does nothing.

        In a forked copy of this process it does nothing either: the sockets belong to the original.
        """
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        self._unwatch()
        self._context.destroy(linger_ms)

    def _check(self) -> None:
        if self._closed or os.getpid() != self._pid:
            raise BusError("this link is closed, or belongs to the process that forked this one; make a new one here")

    # ---- sockets --------------------------------------------------------------------------------------------------
    def _open(self) -> list[Action]:
        """Make the sockets under a new name and connect them."""
        self._name = b"\x01" + os.urandom(15)  # a routing id must not begin with NUL: those are the library's own
        interval_ms = random.randint(*RECONNECT_MS)
        self._ctl = self._context.socket(zmq.DEALER)
        self._pub = self._context.socket(zmq.SUB)
        self._evt = self._context.socket(zmq.PUSH)
        configure(self._ctl, hwm=CTL_HWM, cut_bytes=CTL_CUT_BYTES, linger_ms=LINGER_MS)
        configure(self._pub, hwm=PUB_HWM, cut_bytes=CTL_CUT_BYTES, linger_ms=0)
        configure(self._evt, hwm=EVT_HWM, cut_bytes=EVT_CUT_BYTES, linger_ms=0)
        self._ctl.set(zmq.ROUTING_ID, self._name)
        probe = f"probe:{self._name.hex()}"  # the last one: it proves those before it
        for topic in (*self._joining.topics, TICK, probe):
            self._pub.set(zmq.SUBSCRIBE, subscription(topic))
        for socket in (self._ctl, self._evt):
            socket.set(zmq.IMMEDIATE, 1)  # without a connection a send fails, instead of queueing for later
        for socket, address in zip((self._ctl, self._pub, self._evt), self._addresses, strict=True):
            socket.set(zmq.RECONNECT_IVL, interval_ms)
            socket.set(zmq.RECONNECT_IVL_MAX, 0)
            socket.connect(address)
        self._poller.register(self._ctl, zmq.POLLIN)
        self._poller.register(self._pub, zmq.POLLIN)
        self._writing = False
        return self._joining.opened(self._name, time.monotonic())

    def _shut(self) -> None:
        """Give up the sockets of this name, with all that is still in them."""
        self._poller.unregister(self._ctl)
        self._poller.unregister(self._pub)
        for socket in (self._ctl, self._pub, self._evt):
            socket.close(linger=0)
        self._unwatch()

    def _receive(self) -> None:
        """Take one turn's worth of frames from both sockets; stop when they have been replaced on the way."""
        for take, socket in ((self._take_ctl, self._ctl), (self._take_pub, self._pub)):
            for _ in range(TURN_MESSAGES):
                if socket.closed:
                    return
                try:
                    frame = receive(socket)
                except zmq.Again:
                    break
                take(frame)

    def _take_last_words(self) -> None:
        """What a dead master has sent may still be on its way through the library's thread: wait for it, a moment."""
        end = time.monotonic() + LAST_WORDS_S
        while time.monotonic() < end and self._pub.poll(LAST_WORDS_PAUSE_MS):
            self._receive()
        self._receive()

    def _take_ctl(self, frame: zmq.Frame) -> None:
        """Judge one frame of the DEALER."""
        try:
            message = decode(frame.bytes)
        except BadFrame:
            self.dropped["ctl:bad-frame"] += 1
            return
        if frame.more or not isinstance(message, _DOWN):
            self.dropped["ctl:direction"] += 1
        elif isinstance(message, Answer) and not self.outbox.answered(message.number):
            self.dropped["ctl:unasked"] += 1  # repeated, or nobody waits for it any more
        else:
            self._perform(self._joining.ctl(message, time.monotonic()))

    def _take_pub(self, frame: zmq.Frame) -> None:
        """Judge one frame of the SUB."""
        try:
            topic, message = decode_pub(frame.bytes)
        except BadFrame:
            self.dropped["pub:bad-frame"] += 1
            return
        expected = f"probe:{self._name.hex()}" if isinstance(message, Probe) else _TOPICS.get(type(message))
        if frame.more or topic != expected:
            self.dropped["pub:direction"] += 1
        else:
            self._perform(self._joining.pub(message, time.monotonic()))

    # ---- doing what `Joining` decides -----------------------------------------------------------------------------
    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Deliver(message):
                    self._delivered.append(message)
                case SendHello():
                    if not self._try_send(encode(self._hello(self._name))):
                        self._joining.blocked()
                case SendResync():
                    self._try_send(encode(Resync()))  # when it cannot leave, `Joining` asks again
                case Watch(pid, start):
                    if not self._watch(pid, start):
                        self._perform(self._joining.master_gone(time.monotonic()))
                        return  # what was decided before this was known is void
                case Joined():
                    self.outbox.rewind()
                    self._delivered.append(action)
                case Refreshed() | Missed():
                    self._delivered.append(action)
                case Parted(reason):
                    _log.info("bus link lost: %s; opening another one", reason)
                    self._delivered.append(action)
                    self._shut()
                    self._perform(self._open())
                    return

    def _try_send(self, frame: bytes) -> bool:
        try:
            self._ctl.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def _flush(self) -> None:
        """Hand the outbox to the socket, as far as it goes."""
        while self._joining.joined and (frame := self.outbox.head()) is not None and self._try_send(frame):
            self.outbox.sent()

    def _watch(self, pid: int, start: int) -> bool:
        """Watch the master; false when this process does not exist (any more)."""
        if self._master == (pid, start):
            return True
        self._unwatch()
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        except OSError as error:  # no fd left: the silence of PUB will still tell, only later
            _log.warning("cannot watch the master (process %d): %s; raise the limit of open files", pid, error)
            return True
        if _start_time(pid) != start:  # after the open: the number cannot be re-used while the fd is held
            os.close(fd)
            return False
        self._master, self._master_fd = (pid, start), fd
        self._poller.register(fd, zmq.POLLIN)
        return True

    def _unwatch(self) -> None:
        if self._master_fd >= 0:
            self._poller.unregister(self._master_fd)
            os.close(self._master_fd)
        self._master, self._master_fd = None, -1


def _start_time(pid: int) -> int | None:
    """Return the start time of a process in clock ticks since boot (field 22 of proc(5) stat), None if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(stat[stat.rindex(b")") + 2 :].split()[19])  # the name before it may contain anything
