"""The ground of a simulation: one clock, one thread, processes that take turns, and wires that carry what they say.

Invariant: everything that happens is drawn from one `Random(seed)` and happens in the order of one queue, so a seed
is a whole history, and the same seed is the same history again.

Theory of operation. An `Actor` is a process. It runs when something arrives (`deliver`) or when the time has come
that it waits for, and never otherwise; a frozen one (SIGSTOP) runs nothing, and finds all that has arrived when it
goes on. A pause of the machine moves the clock and runs nothing: all that was due is then late, for everybody.
A `Wire` is one direction of a connection. It keeps the order and loses nothing until it is cut, unless `Chaos` says
otherwise for its kind: that is what sockets do, and queues that are full.
"""

import heapq
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct
from msgspec.structs import fields

from zcluster.core.fleet_settings import FleetSettings
from zcluster.core.ledger import Ledger

if TYPE_CHECKING:
    from zcluster.testing.sim_launcher import Launcher, Service, Zygote
    from zcluster.testing.sim_master import Master
    from zcluster.testing.sim_peer import Peer
    from zcluster.testing.sim_witness import Witness
    from zcluster.testing.sim_worker import Worker

# A tenth of the defaults, and hang timeouts that leave two ledger ticks before a third of them has passed.
SETTINGS: Final = FleetSettings(
    workers=3, boot_timeout_s=5.0, graceful_timeout_s=2.0, quick_timeout_s=0.5, hang_timeout_s=3.0, dump_grace_s=0.2,
    restart_cap_s=2.0, healthy_after_s=8.0, orphan_timeout_s=1.0, lanes=12,
)  # fmt: skip
HEARTBEAT_S: Final = 0.5
LEDGER_TICK_S: Final = 0.4
MASTER_TIMEOUT_S: Final = 5.0
COUNTER: Final = "n"
TURN_MIN_S: Final = 0.001  # nobody's clock is finer; and no bug makes the simulated time stand still
EVENTS_MAX: Final = 60_000  # some 50 times what a seed takes: two that answer each other for ever end here


def shown(thing: object) -> str:
    """A short text: of a struct only what is not as it is by default."""
    if isinstance(thing, Struct):
        said = [
            shown(value) if field.required else f"{field.name}={shown(value)}"
            for field in fields(thing)
            if (value := getattr(thing, field.name)) != field.default
        ]
        return f"{type(thing).__name__}({', '.join(said)})"
    if isinstance(thing, tuple):
        return f"({', '.join(shown(part) for part in thing)})"
    return str(thing)


class Broken(AssertionError):
    """An invariant does not hold. `history` is what had happened."""

    def __init__(self, seed: int, text: str, history: list[str]) -> None:
        super().__init__(f"seed {seed}: {text}")
        self.seed, self.text, self.history = seed, text, history


class Chaos:
    """What the bus does to single frames while it is bad; probabilities. A wire of a kind not named is sound."""

    def __init__(self, since: float = 0.0) -> None:
        self.changed_at = since
        self.lose: dict[str, float] = {}
        self.repeat: dict[str, float] = {}
        self.reorder: dict[str, float] = {}
        self.delay_s = 0.003  # at most, each way


class Wire:
    """One direction of a connection, to somebody's `deliver`."""

    __slots__ = ("_last", "carried", "cut_at", "kind", "on_way", "to", "world")

    def __init__(self, world: "World", kind: str, to: Callable[[Any], None]) -> None:
        self.world, self.kind, self.to = world, kind, to
        self._last = 0.0
        self.on_way = 0  # frames
        self.carried = 0
        self.cut_at = float("inf")  # what arrives later never does

    def send(self, item: object) -> bool:
        """Carry something; false when it is lost. A socket whose queue is full says that, too; PUB does not."""
        world, chaos = self.world, self.world.chaos
        random = world.random.random
        at = world.now + random() * chaos.delay_s
        if self.kind in chaos.lose and random() < chaos.lose[self.kind]:
            world.note("bus", "loses on", self.kind, *(item[2:] if isinstance(item, tuple) else ()))
            return False
        if self.kind in chaos.repeat and random() < chaos.repeat[self.kind]:
            self.on_way += 1
            world.at(at + random() * 0.05, self._arrive, item)
        if self.kind not in chaos.reorder or random() >= chaos.reorder[self.kind]:
            at = self._last = max(self._last, at)
        self.on_way += 1
        world.at(at, self._arrive, item)
        return True

    def cut(self, grace_s: float = 0.0) -> None:
        """Nothing that would arrive after `grace_s` seconds does."""
        self.cut_at = min(self.cut_at, self.world.now + grace_s)

    def _arrive(self, item: object) -> None:
        self.on_way -= 1
        if self.world.now <= self.cut_at:
            self.carried += 1
            self.to(item)


class Actor(ABC):
    """A process. Whoever derives from it says what a `turn` is, and when the next one is `due`."""

    def __init__(self, world: "World", name: str) -> None:
        self.world, self.name = world, name
        self.pid = world.new_pid()
        self.start = self.pid * 7
        self.alive, self.frozen = True, False
        self.inbox: list[Any] = []
        self.since = world.now
        self._wake_at = float("inf")
        self._missed = False
        self._frozen_at = 0.0
        self.stopped: list[tuple[float, float]] = []  # when it was frozen

    @abstractmethod
    def turn(self, items: list[Any]) -> None:
        """Take what has arrived, and do what the time has come for."""

    @abstractmethod
    def due(self) -> float:
        """When to run although nothing arrives."""

    def deliver(self, item: object) -> None:
        """Something arrives."""
        if self.alive:
            self.inbox.append(item)
            if not self.frozen:
                self._run()

    def die(self, code: int | None, signal: int | None) -> None:
        """End; whoever has to notice does, after a moment."""
        if self.alive:
            self.alive = False
            self.world.note(self.name, "dies,", f"exit code {code}" if signal is None else f"signal {signal}")
            self.ended(code, signal)

    def ended(self, code: int | None, signal: int | None) -> None:
        """What the kernel does for a child of the launcher that has ended."""
        self.world.launcher.reap(self, code, signal)

    def freeze(self) -> None:
        """SIGSTOP."""
        self.frozen, self._frozen_at = True, self.world.now
        self.world.note(self.name, "is stopped")

    def thaw(self) -> None:
        """SIGCONT."""
        if self.alive and self.frozen:
            self.frozen = False
            self.stopped.append((self._frozen_at, self.world.now))
            self.world.note(self.name, "goes on")
            self.world.reconnect()
            if self.inbox or self._missed:
                self._run()

    def begin(self, delay_s: float = 0.0) -> None:
        """Have the first turn."""
        self._sleep(self.world.now + delay_s)

    def _run(self) -> None:
        self._missed = False
        items, self.inbox = self.inbox, []
        self.turn(items)
        if self.alive:
            self._sleep(max(self.due(), self.world.now + TURN_MIN_S))

    def _sleep(self, until: float) -> None:
        if until != self._wake_at and until != float("inf"):
            self.world.at(until, self._wake, until)
        self._wake_at = until

    def _wake(self, at: float) -> None:
        if at != self._wake_at or not self.alive:
            return  # it has run since, and waits for another time
        self._wake_at = float("inf")
        if self.frozen:
            self._missed = True
        else:
            self._run()


class Gone:
    """A zygote that had ended before its master heard of it."""

    def __init__(self, pid: int, start: int) -> None:
        self.pid, self.start = pid, start
        self.unread: list[Any] = []

    def deliver(self, order: object) -> None:
        """Nobody is there."""

    def die(self, code: int | None, signal: int | None) -> None:
        """It is dead."""


class World:
    """Everything there is: the clock, the processes, the ledger and who holds the locks of its lanes."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.now = 0.0
        self.chaos = Chaos()
        self.settings = SETTINGS
        self._queue: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._order = count()
        self._pids = count(100)
        self._history: list[tuple[float, str, str, tuple[Any, ...]]] = []
        self.events = 0
        self.buffer = bytearray(Ledger.size_bytes(SETTINGS.lanes, 1))
        self.ledger = Ledger.format(
            self.buffer, lanes=SETTINGS.lanes, counters=1, ledger_id=b"l" * 16, boot_id=b"b" * 16
        )
        self.ledger.register(COUNTER)
        self.locks: dict[int, Worker] = {}  # lane -> who holds its lock
        self.peers: dict[int, Peer] = {}  # by pid: workers and handles that live
        self.workers: dict[int, Worker] = {}  # by pid, those that live
        self.zygotes: dict[int, Zygote] = {}  # by pid, those that live
        self.services: dict[int, Service] = {}
        self.ends: list[tuple[float, float]] = []  # when nobody ran: the machine was paused
        self.code = "good"  # what is on the disk: good | broken | dying | slow | crashing
        self.bad_starts = 0  # so many workers more end before they are ready
        self.can_fork = True
        self.quiet = False  # all faults are over
        self.exited: int | None = None  # of the launcher
        self.launcher: Launcher
        self.master: Master | None = None
        self.witness: Witness

    # ---- time ------------------------------------------------------------------------------------------------------
    def at(self, when: float, what: Callable[[Any], None], argument: object = None) -> None:
        """Have something happen."""
        heapq.heappush(self._queue, (when, next(self._order), what, argument))

    def after(self, delay_s: float, what: Callable[[Any], None], argument: object = None) -> None:
        """The same, `delay_s` seconds from now."""
        self.at(self.now + delay_s, what, argument)

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass; true as soon as `until` holds (looked at after everything that happens)."""
        end, queue, check = self.now + seconds, self._queue, self.witness.check
        while queue and queue[0][0] <= end:
            when, _, what, argument = heapq.heappop(queue)
            if when > self.now:
                self.now = when
            what(argument)
            self.events += 1
            check()
            if until is not None and until():
                return True
            if self.events > EVENTS_MAX:
                self.fail(f"more than {EVENTS_MAX} events: somebody is busy for ever")
        self.now = max(self.now, end)
        return until is not None and until()

    def pause(self, seconds: float) -> None:
        """The machine does not run: the clock goes on, and nothing else does."""
        self.note("machine", f"is paused for {seconds:.2f} s")
        self.ends.append((self.now, self.now + seconds))
        self.now += seconds

    @property
    def now_ns(self) -> int:
        """The clock as the ledger has it."""
        return int(self.now * 1e9)

    def new_pid(self) -> int:
        """A number no process has had."""
        return next(self._pids)

    # ---- what is there ---------------------------------------------------------------------------------------------
    def process(self, pid: int, start: int) -> Actor | None:
        """The living process with this number and start."""
        there: list[dict[int, Any]] = [self.workers, self.peers, self.zygotes, self.services]
        for some in there:
            if pid in some:
                found: Actor = some[pid]
                return found if found.start == start else None
        if self.master is not None and self.master.pid == pid:
            return self.master
        return None

    def reconnect(self) -> None:
        """Somebody can be connected who could not before: a master has bound its sockets, or goes on."""
        for peer in list(self.peers.values()):
            if peer.conn is None and not peer.connecting:
                peer.connect_soon(self.random.uniform(0.001, 0.03))

    def end_orphans(self) -> None:
        """Launcher and master are dead: the leash ends every worker, whatever it does."""
        for worker in list(self.workers.values()):
            worker.die(None, 9)

    # ---- what happened ---------------------------------------------------------------------------------------------
    def note(self, who: str, what: str, *more: object) -> None:
        """One line of the history. What is given is only written out when somebody reads it."""
        self._history.append((self.now, who, what, more))

    def history(self) -> list[str]:
        """All that has happened: when, who, what."""
        return [
            f"{when:9.4f}  {who:<14} {what} {' '.join(shown(part) for part in more)}".rstrip()
            for when, who, what, more in self._history
        ]

    def fail(self, text: str) -> None:
        """An invariant does not hold."""
        self.note("WITNESS", text)
        raise Broken(self.seed, text, self.history())
