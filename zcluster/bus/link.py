"""A peer's end of the bus: DEALER, SUB and PUSH, driven by `core.joining`, opened again when their master is gone.

Invariant: the owner sees one unbroken stream (totals that only rise, events in order and once, one Answer per Ask)
however often the sockets behind it are replaced.

One thread uses a link: the main thread of a worker, the one link thread of a handle. It is made after the last fork
of its process: a context that crosses a fork is broken on both sides. Other threads wake its owner through an fd of
theirs, given to `register`; so does `signal.set_wakeup_fd`. Only `post_at_once` is for them, too.
"""

import logging
import os
import select
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import zmq

from zcluster.bus.endpoints import EVT_MAX_BYTES, WAIT_MAX_S
from zcluster.bus.masterfd import MasterFd
from zcluster.bus.sockets import LINGER_MS, Sockets
from zcluster.core.codec import decode, decode_pub, encode
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

# What a master sent before it ended is in a socket's buffer already: the library's thread has it within microseconds
# of being scheduled. The pause is that, on a busy machine; the limit is for a flood.
LAST_WORDS_PAUSE_MS: Final = 10
LAST_WORDS_S: Final = 0.05
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
        self._hello = hello
        self._pid = os.getpid()
        self._closed = False
        self._joining = Joining(topics=topics, heartbeat_s=heartbeat_s, tick_timeout_s=tick_timeout_s)
        self._sockets = Sockets(run_dir)
        self._master = MasterFd(self._sockets.poller)
        self._delivered: list[Delivered] = []
        self._full = False  # a frame of mail did not fit
        self._perform(self._open())

    def _open(self) -> list[Action]:
        self._sockets.open((*self._joining.topics, TICK))
        return self._joining.opened(self._sockets.name, time.monotonic())

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
        self._sockets.poller.register(fd, select.POLLIN)

    def unregister(self, fd: int) -> None:
        """Stop waiting for this fd; to be called before it is closed."""
        self._sockets.poller.unregister(fd)

    def poll(self, timeout_s: float) -> tuple[list[Delivered], list[int]]:
        """Wait at most `timeout_s` seconds for something to deliver or for a registered fd to become readable."""
        self._check()
        now = time.monotonic()
        end = now + timeout_s
        joining, outbox = self._joining, self.outbox
        while True:
            if outbox.unsent:
                self._flush()
            writing = bool(self._full or outbox.unsent) if joining.joined else joining.blocked_at_hello
            wait_s = 0.0 if self._delivered else min(max(0.0, min(end, joining.deadline) - now), WAIT_MAX_S)
            room, ready = self._wait(wait_s, writing=writing)
            now = time.monotonic()
            self._perform(joining.tick(now))
            outbox.repeat(now)
            if self._delivered or ready or now >= end or (room and self._full):
                if room:
                    self._full = False  # told once: the owner may have nothing more to say
                delivered, self._delivered = self._delivered, []
                if outbox.unsent:
                    self._flush()
                return delivered, ready

    def _wait(self, timeout_s: float, *, writing: bool) -> tuple[bool, list[int]]:
        """Wait, and take what came; returns whether there is room to send, and the owner's fds that are ready."""
        master_fd = self._master.fd  # what is received may replace it, and the number may come back
        news, ready = self._sockets.wait(timeout_s, writing=writing)
        gone = master_fd in ready
        if gone:
            ready.remove(master_fd)
        room = news and writing and self._sockets.has_room()
        if room:
            self._perform(self._joining.writable(time.monotonic()))
        if news:
            self._sockets.receive(self._take_ctl, self._take_pub)
        if gone and master_fd == self._master.fd:
            self._master.close()  # it stays readable, and the new sockets may have to wait for their turn
            self._sockets.receive_all(self._take_ctl, self._take_pub, LAST_WORDS_S, LAST_WORDS_PAUSE_MS)
            self._perform(self._joining.master_gone(time.monotonic()))
        return room, ready

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
        if not self._joining.joined:
            self._full = False
            return False
        self._full = not self._sockets.send(encode(message))
        return not self._full

    def post_at_once(self, message: Mail) -> bool | None:
        """Send mail now; any thread may call this. False when it cannot leave now: leave it to the owner.

        None: it has left, and the owner must be woken, because something else has come that it cannot see.
        """
        return self._joining.joined and self._sockets.send_at_once(encode(message))

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
        return self._sockets.push(frame)

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
        self._master.close()
        self._sockets.close(linger_ms)

    def _check(self) -> None:
        if self._closed or os.getpid() != self._pid:
            raise BusError("this link is closed, or belongs to the process that forked this one; make a new one here")

    # ---- what comes -----------------------------------------------------------------------------------------------
    def _take_ctl(self, frame: zmq.Frame) -> None:
        """Judge one frame of the DEALER."""
        try:
            message = decode(frame.bytes)
        except BadFrame:
            self.dropped["ctl:bad-frame"] += 1
            return
        if isinstance(message, Mail | Got) and not frame.more:  # as `Joining` has it, without a word
            self._delivered.append(message)
        elif frame.more or not isinstance(message, _DOWN):
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
        expected = self._sockets.probe if isinstance(message, Probe) else _TOPICS.get(type(message))
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
                    if not self._sockets.send(encode(self._hello(self._sockets.name))):
                        self._joining.blocked()
                case SendResync():
                    self._sockets.send(encode(Resync()))  # when it cannot leave, `Joining` asks again
                case Watch(pid, start):
                    if not self._master.watch(pid, start):
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
                    self._sockets.shut()
                    self._perform(self._open())
                    return

    def _flush(self) -> None:
        """Hand the outbox to the socket, as far as it goes."""
        while self._joining.joined and (frame := self.outbox.head()) is not None and self._sockets.send(frame):
            self.outbox.sent()
