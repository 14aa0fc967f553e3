"""Joining: how one peer comes to know the state of its cluster, and keeps knowing it on a bus that loses frames.

Invariant: what is delivered never goes back. Totals only rise, events come in order and once, epochs only rise.

Theory of operation. A link is one set of sockets with one random name. It is in one of three states:

```
        opened()                Welcome and Probe are both here
 LOST -----------> JOINING -------------------------------------> JOINED
  ^                   |                                              |
  '-------------------+---- Parted: master gone, silent, new epoch --'
```
JOINING: the SUB is subscribed (our own probe *last*, and subscriptions travel in order, so the probe proves them
all), then Hello goes out until the Welcome has come by DEALER and the Probe by SUB. Updates that arrive meanwhile
wait; when both are here, those newer than the snapshot are applied. Nothing here waits for time to pass, only for
messages.
JOINED: every topic has numbers. Old ones are dropped, the next one is delivered, a hole makes us ask for the Welcome
again (Resync). A Tick names the last number of each topic, so a hole at the end is noticed too. Totals are absolute:
one that comes after a hole is delivered at once. Events are not: those after a hole are held until the snapshot's
`recent` has filled it; what it no longer has is reported as Missed.
Any sign of a later epoch means that another master speaks: part, open new sockets, join again. A lower epoch is a
master that is gone, and is ignored (fencing).
If a master is replaced between Probe and Welcome we join with a SUB that still reconnects; the first Tick shows what
was missed. Order across sockets is relied on nowhere.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import Final

from zcluster.core.mail import MEMBERS, TOPICS, Members, Publication
from zcluster.core.messages import EVENTS, TOTALS, Event, Message, Probe, Snapshot, Tick, Totals, Welcome

# The first Hello races with our own subscriptions, which take well under 1 ms to arrive: ask again soon, then ever
# more slowly, up to 10 times a second. A master that 64 workers join at once sees 640 Hellos a second at worst.
HELLO_FIRST_S: Final = 0.002
HELLO_MAX_S: Final = 0.1
# New sockets at most 20 times a second, whatever goes wrong: a Welcome that names a dead master makes no hot loop.
REOPEN_MIN_S: Final = 0.05
# Updates that wait for the Welcome, and events that wait behind a hole. 1,000 is 45 s of a busy cluster's updates;
# the rest is left out and then found missing by number, so the limit costs a Resync and no correctness.
WAITING_MAX: Final = 1000
TICKS_MISSED: Final = 5  # silent for so many heartbeats: the link is broken although the master lives


@dataclass(frozen=True, slots=True)
class SendHello:
    """Send Hello with the name of this link; call `blocked` when the socket cannot take it now."""


@dataclass(frozen=True, slots=True)
class SendResync:
    """Send Resync; when it is lost, it is asked for again."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Watch this process: it is the master; call `master_gone` when it ends, or is not there."""

    pid: int
    start: int


@dataclass(frozen=True, slots=True)
class Parted:
    """The link is lost: close its sockets, open new ones, call `opened`."""

    reason: str


@dataclass(frozen=True, slots=True)
class Joined:
    """Joined, for the first time or again; on a rejoin what was missed follows as totals and events."""

    snapshot: Snapshot
    again: bool


@dataclass(frozen=True, slots=True)
class Refreshed:
    """A later snapshot, asked for because of a gap; what was missed follows."""

    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Missed:
    """Events `first` to `last` of this epoch are lost for this peer; the snapshot before it has their outcome."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Deliver:
    """Give this message to the owner of the link."""

    message: Message


Action = SendHello | SendResync | Watch | Parted | Joined | Refreshed | Missed | Deliver


_TOPIC_OF: Final[dict[type, str]] = {Totals: TOTALS, Event: EVENTS, Members: MEMBERS}


class _State(Enum):
    LOST = 0
    JOINING = 1
    JOINED = 2


class Joining:
    """One peer's side of the bus, without sockets and clocks; used by one thread.

    Every input takes `now` (seconds, monotonic) and returns what to do, in order. `topics` are those the SUB is
    subscribed to, of `totals`, `events`, `members` and `topics`; what comes on the last is only passed on, with the
    ticks: `core.topics` looks for holes in it.
    """

    def __init__(
        self,
        *,
        topics: Sequence[str] = (TOTALS, EVENTS),
        heartbeat_s: float = 1.0,
        tick_timeout_s: float | None = None,
    ) -> None:
        self.topics = tuple(topics)
        self._heartbeat_s = heartbeat_s
        self._tick_timeout_s = TICKS_MISSED * heartbeat_s if tick_timeout_s is None else tick_timeout_s
        self._state = _State.LOST
        self.joined = False  # whether the state of the cluster is known and updates flow
        self.epoch = 0  # of the last snapshot; 0: never joined
        self.totals: dict[str, int] = {}  # the highest seen, over all epochs
        self.stale = 0  # updates dropped as old: repeated, reordered, or of a master that is gone
        self._seen: dict[str, int] = {}  # topic -> last number delivered in this epoch
        self._missing: dict[str, int] = {}  # topic -> highest number known to exist and not received
        self._held: dict[int, Event] = {}  # events behind a hole
        self._link = b""
        self._welcome: Welcome | None = None
        self._probed = False
        self._early: deque[Totals | Event | Members | Publication] = deque()
        self._early_epoch = 0  # the highest epoch heard on pub while joining
        self._blocked = False
        self._hello_at = inf
        self._hello_gap_s = HELLO_FIRST_S
        self._opened_at = -inf
        self._reopen_at = inf
        self._reason = ""
        self._resync_at = -inf
        self._heard_at = -inf
        self._ticked_at = inf

    @property
    def deadline(self) -> float:
        """When `tick` must be called at the latest."""
        if self._state is _State.LOST:
            return self._reopen_at
        if self._state is _State.JOINING:
            return inf if self._blocked else self._hello_at
        due = min(self._heard_at + self._tick_timeout_s, self._ticked_at + self._heartbeat_s)
        return min(due, self._resync_at + self._heartbeat_s) if self._missing else due

    @property
    def blocked_at_hello(self) -> bool:
        """Whether a Hello waits for the DEALER to become writable."""
        return self._state is _State.JOINING and self._blocked

    # ---- inputs ---------------------------------------------------------------------------------------------------
    def opened(self, link: bytes, now: float) -> list[Action]:
        """New sockets with this name exist: subscribed and connecting."""
        self._state, self.joined, self._link = _State.JOINING, False, link
        self._welcome, self._probed, self._blocked = None, False, False
        self._early.clear()
        self._early_epoch = 0
        self._opened_at, self._reopen_at = now, inf
        self._hello_gap_s = HELLO_FIRST_S
        return self._hello(now)

    def blocked(self) -> None:
        """The Hello could not be sent: there is no connection yet. Nothing is repeated until `writable`."""
        self._blocked = True

    def writable(self, now: float) -> list[Action]:
        """The DEALER has a connection: say Hello at once, then from the short interval on."""
        if self._state is not _State.JOINING or not self._blocked:
            return []
        self._blocked, self._hello_gap_s = False, HELLO_FIRST_S
        return self._hello(now)

    def ctl(self, message: Message, now: float) -> list[Action]:
        """A message came by DEALER."""
        if not isinstance(message, Welcome):
            return [Deliver(message)]  # an Answer or an order counts, also from a link that is about to be closed
        if self._state is _State.LOST:
            return []
        snapshot = message.snapshot
        if snapshot.epoch < self.epoch:
            self.stale += 1
            return []
        if self._state is _State.JOINING:
            self._welcome = message
            return [Watch(message.master_pid, message.master_start), *self._complete(now)]
        if snapshot.epoch > self.epoch:
            return self.part(f"a master of epoch {snapshot.epoch} answers", now)
        return [Refreshed(snapshot), *self._absorb(snapshot)]

    def pub(self, message: Message, now: float) -> list[Action]:
        """A message came by SUB."""
        self._heard_at = now
        if isinstance(message, Probe):
            if self._state is not _State.JOINING or message.link != self._link:
                return []
            self._probed = True
            return self._complete(now)
        if not isinstance(message, Totals | Event | Tick | Members | Publication) or self._state is _State.LOST:
            return []
        if self._state is _State.JOINING:
            self._early_epoch = max(self._early_epoch, message.epoch)
            if not isinstance(message, Tick) and len(self._early) < WAITING_MAX:
                self._early.append(message)
            return []
        return self._update(message, now)

    def tick(self, now: float) -> list[Action]:
        """Time has passed; call it after the inputs that were waiting, at `deadline` or earlier."""
        # Time in which we did not run ourselves (stopped, starved) is not the master's silence.
        self._heard_at += max(0.0, now - self._ticked_at - self._heartbeat_s)
        self._ticked_at = now
        if self._state is _State.LOST:
            return self._reopen() if now >= self._reopen_at else []
        if self._state is _State.JOINING:
            return self._hello(now) if not self._blocked and now >= self._hello_at else []
        if now >= self._heard_at + self._tick_timeout_s:
            return self.part(f"nothing heard from the master for {now - self._heard_at:.1f} s", now)
        return self._ask(now)

    def master_gone(self, now: float) -> list[Action]:
        """The process that `Watch` named has ended, or was not there."""
        return self.part("the master has ended", now)

    # ---- joining --------------------------------------------------------------------------------------------------
    def _hello(self, now: float) -> list[Action]:
        self._hello_at = now + self._hello_gap_s
        self._hello_gap_s = min(2 * self._hello_gap_s, HELLO_MAX_S)
        return [SendHello()]

    def _complete(self, now: float) -> list[Action]:
        """Become JOINED when both halves are here."""
        if self._welcome is None or not self._probed:
            return []
        snapshot = self._welcome.snapshot
        if self._early_epoch > snapshot.epoch:  # this Welcome is of the master before the one that publishes now
            self._welcome = None
            return []
        again = self.epoch != 0
        if snapshot.epoch > self.epoch:
            self._seen, self._missing, self._held = {}, {}, {}
        self.epoch, self._state, self.joined = snapshot.epoch, _State.JOINED, True
        self._heard_at = self._ticked_at = now
        actions: list[Action] = [Joined(snapshot, again)]
        if again:
            actions += self._absorb(snapshot)
        else:  # what happened before our time is in the snapshot and is no news
            self.totals = dict(snapshot.counters)
            self._seen = {topic: snapshot.heads.get(topic, 0) for topic in self.topics}
        self._welcome = None
        while self._early and self._state is _State.JOINED:
            actions += self._update(self._early.popleft(), now)
        return actions

    def part(self, reason: str, now: float) -> list[Action]:
        """Give this link up and open another one, now or as soon as the limit on new sockets allows."""
        if self._state is _State.LOST:
            return []
        self._state, self.joined = _State.LOST, False
        self._reopen_at = max(now, self._opened_at + REOPEN_MIN_S)
        self._reason = reason
        return self._reopen() if now >= self._reopen_at else []

    def _reopen(self) -> list[Action]:
        self._reopen_at = inf
        return [Parted(self._reason)]

    # ---- joined ---------------------------------------------------------------------------------------------------
    def _update(self, message: Totals | Event | Tick | Members | Publication, now: float) -> list[Action]:
        """Apply one numbered message of pub."""
        if message.epoch > self.epoch:
            return self.part(f"a master of epoch {message.epoch} publishes", now)
        if message.epoch < self.epoch:
            self.stale += 1
            return []
        if isinstance(message, Publication):
            return [Deliver(message)]
        if isinstance(message, Tick):
            actions: list[Action] = [Deliver(message)] if TOPICS in self.topics else []
            return actions + self._check_heads(message.heads, now)
        topic = _TOPIC_OF[type(message)]
        seen, number = self._seen.get(topic, 0), message.number
        if number <= seen or (topic == EVENTS and number in self._held):
            self.stale += 1
            return []
        if number > seen + 1:
            self._missing[topic] = max(self._missing.get(topic, 0), number - 1)
        if isinstance(message, Totals):
            self._seen[topic] = number
            return [*self._raised(message.totals, number), *self._ask(now)]
        if isinstance(message, Members):
            self._seen[topic] = number
            return [Deliver(message), *self._ask(now)]
        if len(self._held) < WAITING_MAX:
            self._held[number] = message
        else:
            self._missing[topic] = max(self._missing.get(topic, 0), number)
        return [*self._release(), *self._ask(now)]

    def _check_heads(self, heads: Mapping[str, int], now: float) -> list[Action]:
        """Compare the master's last numbers with ours: a hole at the end of a topic shows in no other way."""
        for topic in self.topics:
            head = heads.get(topic, 0) if topic != TOPICS else 0
            if head > self._seen.get(topic, 0) and not (topic == EVENTS and head in self._held):
                self._missing[topic] = max(self._missing.get(topic, 0), head)
        return self._ask(now)

    def _ask(self, now: float) -> list[Action]:
        """Ask for a snapshot when something is missing: at once, then once per heartbeat until it has come."""
        if not self._missing or now < self._resync_at + self._heartbeat_s:
            return []
        self._resync_at = now
        return [SendResync()]

    def _absorb(self, snapshot: Snapshot) -> list[Action]:
        """Take what is new to us from a snapshot of this epoch."""
        heads = snapshot.heads
        actions = self._raised(snapshot.counters, heads.get(TOTALS, 0))
        for topic in (TOTALS, MEMBERS):
            self._seen[topic] = max(self._seen.get(topic, 0), heads.get(topic, 0))
        if EVENTS in self.topics:
            actions += self._absorb_events(snapshot.recent, heads.get(EVENTS, 0))
        for topic in [t for t, number in self._missing.items() if number <= heads.get(t, 0)]:
            del self._missing[topic]
        return actions

    def _absorb_events(self, recent: Sequence[Event], head: int) -> list[Action]:
        """Deliver, in order, what we have not seen up to `head`; what neither side has any more is Missed."""
        pool = {e.number: e for e in recent if e.epoch == self.epoch} | self._held
        actions: list[Action] = []
        seen = self._seen.get(EVENTS, 0)
        for number in sorted(n for n in pool if seen < n <= head):
            if number > seen + 1:
                actions.append(Missed(seen + 1, number - 1))
            actions.append(Deliver(pool[number]))
            self._held.pop(number, None)
            seen = number
        if seen < head:
            actions.append(Missed(seen + 1, head))
        self._seen[EVENTS] = max(seen, head)
        return actions + self._release()

    def _release(self) -> list[Action]:
        """Deliver the held events that have become the next ones."""
        actions: list[Action] = []
        number = self._seen.get(EVENTS, 0) + 1
        while number in self._held:
            actions.append(Deliver(self._held.pop(number)))
            self._seen[EVENTS] = number
            number += 1
        return actions

    def _raised(self, totals: Mapping[str, int], number: int) -> list[Action]:
        """Deliver the totals that are higher than what was seen; a total never falls, not even over a new master."""
        news = {name: total for name, total in totals.items() if total > self.totals.get(name, -1)}
        self.totals.update(news)
        return [Deliver(Totals(self.epoch, number, news))] if news else []
