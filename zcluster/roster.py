"""What a handle knows of its cluster: the workers, the totals, the state, and what has happened to them.

Theory of operation. The link delivers snapshots, events and totals; a roster turns them into happenings, in the order
of Node's cluster module: fork, online, listening, disconnect, exit. A worker only moves forward through these stages,
so whatever is told twice, late, or by a snapshot instead of an event, happens once. What a snapshot no longer has,
and whose exit was missed, is gone: it exits with neither code nor signal known.

Invariant: after `take`, `workers` holds exactly the living workers as last heard of, and every stage of each has been
returned once. Written by one thread; others read, and see either the state before or after.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from signal import SIGRTMAX, SIGRTMIN, SIGTERM, Signals
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, Self
from urllib.parse import urlsplit

import msgspec

from zcluster.callbacks import Callback
from zcluster.core.joining import Joined, Missed, Refreshed
from zcluster.core.messages import Event, Snapshot, Totals, WorkerInfo
from zcluster.errors import ClusterError
from zcluster.unix.process import is_alive, send_signal

if TYPE_CHECKING:
    from zcluster.bus.mailbox import Delivery

log = logging.getLogger("zcluster.handle")

STAGES: Final = {"fork": 1, "online": 2, "listening": 3, "disconnect": 4, "exit": 5}
_STAGE_OF_STATE: Final = {"asked": 0, "forked": 1, "online": 2, "dead": 5}  # all others have listened
EXITED_MAX: Final = 4096  # ids remembered as gone; a snapshot that is older than so many deaths cannot arrive

_WORKER_KEYS: Final = (
    *("id", "slot", "lane", "pid", "state", "generation", "requests", "inflight"),
    *("connections", "threads", "rss_bytes", "uptime_s", "restarts", "oldest_request_s", "note"),
)
_CLUSTER_KEYS: Final = (
    *("urls", "epoch", "generation", "state", "launcher_pid", "master_pid", "zygote_pid", "counters"),
)


class Bound(NamedTuple):
    """Where a worker listens: what Node's `listening` event tells."""

    address: str  # an IP address, or the path of a Unix socket
    port: int | None  # the real one, also where port 0 was asked for; None for a Unix socket
    family: str  # tcp4 | tcp6 | unix
    fd: int | None = None  # as in Node: never a number, workers inherit the launcher's sockets


def bound(url: str) -> Bound:
    """Return where a url of a snapshot points."""
    if url.startswith("unix:"):
        return Bound(url.removeprefix("unix:"), None, "unix")
    parts = urlsplit(url)
    host = parts.hostname or ""
    return Bound(host, parts.port, "tcp6" if ":" in host else "tcp4")


def signal_number(signal: int | str) -> int:
    """Return the number of a signal that is named ("SIGTERM", "term") or numbered (15, "15").

    Raises `ClusterError` when there is no such signal.
    """
    text = str(signal).upper()
    try:
        number = (
            int(signal) if isinstance(signal, int) or text.isdecimal() else Signals[f"SIG{text.removeprefix('SIG')}"]
        )
        return int(Signals(number) if number < SIGRTMIN or number > SIGRTMAX else number)
    except (KeyError, ValueError):
        raise ClusterError(f"there is no signal {signal!r}; give a number, or a name such as 'SIGTERM'") from None


class Owner(Protocol):
    """What a worker asks of the handle it belongs to."""

    def listen_to(self, worker: "Worker", event: str, fn: Callback) -> None:
        """Call `fn` at an event of this worker."""

    def send_to(self, worker: "Worker", payload: Any) -> "Delivery":
        """Send it a message."""

    def dismiss(self, worker: "Worker") -> None:
        """Have it disconnected."""

    def await_worker(self, worker: "Worker", what: "str | Callable[[], object]", timeout_s: float) -> None:
        """Wait for an event of it, or for a condition."""


class Worker:
    """One worker, as the handle last heard of it. Safe from any thread."""

    __slots__ = ("_info", "_owner", "_stage", "_urls", "was_dismissed")

    def __init__(self, info: WorkerInfo, owner: Callable[[], Owner] | None = None) -> None:
        self._info, self._owner = info, owner
        self._stage = 0
        self._urls: tuple[str, ...] = ()
        self.was_dismissed = False  # by this handle: its slot was closed, so nobody replaces it

    def __repr__(self) -> str:
        return f"<Worker {self.id} slot={self.slot} pid={self.pid} {self.state}>"

    # ---- what is known ---------------------------------------------------------------------------------------------
    @property
    def id(self) -> int:
        """Number of the worker; grows for ever, never reused."""
        return self._info.id

    @property
    def slot(self) -> int:
        """Its role, 0..N-1, which its replacement takes over."""
        return self._info.slot

    @property
    def generation(self) -> int:
        """Generation of the code it runs."""
        return self._info.generation

    @property
    def pid(self) -> int:
        """Its process id; 0 before it was forked."""
        return self._info.pid

    @property
    def state(self) -> str:
        """One of asked forked online ready suspect hung draining dead."""
        return "dead" if self.is_dead() else self._info.state

    @property
    def addresses(self) -> tuple[Bound, ...]:
        """Where it listens, in the order of `bind`; empty before its `listening` event. All workers share them."""
        return tuple(bound(url) for url in self._urls)

    @property
    def address(self) -> Bound | None:
        """The first of `addresses`, or None."""
        return bound(self._urls[0]) if self._urls else None

    @property
    def exitcode(self) -> int | None:
        """How it exited; None while it lives, after a signal, or when nobody could learn it."""
        return self._info.exitcode

    @property
    def signal(self) -> int | None:
        """The signal that killed it, or None."""
        return self._info.signal

    @property
    def exited_after_disconnect(self) -> bool | None:
        """Whether it left voluntarily; None before its disconnect or exit was heard of."""
        if self.is_dead():
            return self._info.exited_after_disconnect
        return self._info.state == "draining" if self._stage == STAGES["disconnect"] else None

    @property
    def reason(self) -> str:
        """Why it ended, or what is wrong with it; empty while nothing is."""
        return self._info.reason

    def is_connected(self) -> bool:
        """Whether it was forked and has neither disconnected nor died."""
        return STAGES["fork"] <= self._stage < STAGES["disconnect"]

    def is_dead(self) -> bool:
        """Whether its exit has been heard of."""
        return self._stage >= STAGES["exit"]

    def has_reached(self, event: str) -> bool:
        """Whether its fork, online, listening, disconnect or exit has been heard of."""
        return self._stage >= STAGES[event]

    # ---- what can be done ------------------------------------------------------------------------------------------
    def on(self, event: str, fn: Callback) -> Callback:
        """Have `fn` called at an event of this worker, before those registered for the whole cluster; returns `fn`.

        Events and arguments: fork(), online(), listening(address), message(payload), disconnect(),
        exit(exitcode, signal), error(text); a function may take fewer. What happens once in a life and has happened
        already (all but message and error) is told at once: in the thread of callbacks, as everything.
        """
        self._its().listen_to(self, event, fn)
        return fn

    def wait_for(self, what: "str | Callable[[], object]", timeout_s: float = 30.0) -> Self:
        """Wait until its fork, online, listening, disconnect or exit has happened, or a function is true.

        Returns the worker. Raises `ClusterError` after `timeout_s` seconds, or when it cannot happen any more.
        """
        self._its().await_worker(self, what, timeout_s)
        return self

    def send(self, payload: Any) -> "Delivery":
        """Send it a message: its `worker.on("message")` gets it. The future resolves when it has been *received*.

        Messages to one worker arrive in order, and wait until it listens. Raises `TypeError` for what msgspec cannot
        encode, `TooLarge`, and `QueueFull` when too much waits to be received; when the worker is gone, now or before
        it has received the message, the future fails with `PeerGone`.
        """
        return self._its().send_to(self, payload)

    def disconnect(self) -> Self:
        """Let it receive what was sent to it, finish its requests and leave, for good; returns the worker at once.

        Its slot is closed: nobody takes its place until `fork` or `scale` opens it again. Nothing happens when it is
        leaving or gone already.
        """
        self._its().dismiss(self)
        return self

    def kill(self, signal: int | str = SIGTERM) -> bool:
        """Send it a signal, by number or name: TERM lets it finish. False when that process no longer exists.

        It is not the cluster's way to scale down or stop: the worker is replaced. Raises `ClusterError` when it has
        no process yet, or there is no such signal.
        """
        number = signal_number(signal) if isinstance(signal, str) else signal
        if not self.pid:
            raise ClusterError(
                f"worker {self.id} has not been forked yet; wait for its 'fork' event before you kill it"
            )
        if not is_alive(self._info.pid, self._info.start):
            return False
        return send_signal(self._info.pid, self._info.start, number)

    def _its(self) -> Owner:
        if self._owner is None:
            raise ClusterError(f"worker {self.id} belongs to no handle")
        return self._owner()


@dataclass(frozen=True, slots=True)
class Happening:
    """Something to tell callbacks: setup, a stage of a worker, error, or running."""

    kind: str
    worker: Worker | None = None
    text: str = ""


class Roster:
    """The state of a followed cluster."""

    def __init__(self, owner: Callable[[], Owner] | None = None) -> None:
        self.workers: dict[int, Worker] = {}  # replaced, never changed: a reader may iterate over what it got
        self.totals: dict[str, int] = {}  # the same
        self.snapshot: Snapshot | None = None
        self.running = False  # all workers have been ready once
        self._owner = owner
        self._exited: dict[int, Worker] = {}  # in order of exit

    def take(self, batch: Sequence[object]) -> list[Happening]:
        """Apply what the link delivered; return what has happened, in order."""
        happened: list[Happening] = []
        stale: tuple[Snapshot, frozenset[int]] | None = None
        for item in batch:
            match item:
                case Joined(snapshot=snapshot, again=False):
                    happened.append(Happening("setup"))
                    happened += self._adopt(snapshot)
                case Joined(snapshot=snapshot) | Refreshed(snapshot=snapshot):
                    # The events that explain the difference follow in this batch: compare after them.
                    stale = (snapshot, frozenset(self.workers))
                    self._look_at(snapshot)
                case Event():
                    happened += self._on_event(item)
                case Totals(totals=totals):
                    self.totals = {**self.totals, **totals}
                case Missed(first=first, last=last):
                    log.warning("%d events were missed; the workers' states are right again", last - first + 1)
        if stale is not None:
            happened += self._reconcile(*stale)
        return happened

    def find(self, id_: int) -> Worker | None:
        """The worker with this id, living or gone, if it has been heard of."""
        return self.workers.get(id_) or self._exited.get(id_)

    def latest(self, slot: int, after: int) -> Worker | None:
        """The first worker in this slot whose id is higher than `after`, living or gone."""
        known = [*self.workers.values(), *self._exited.values()]
        there = [worker for worker in known if worker.slot == slot and worker.id > after]
        return min(there, key=lambda worker: worker.id, default=None)

    def adopt(self, snapshot: Snapshot) -> list[Happening]:
        """Take note of the workers in a snapshot that was asked for: their events may still be on their way."""
        return self._adopt(snapshot)

    def _look_at(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.running = self.running or snapshot.state in ("running", "degraded")
        higher = {name: max(total, self.totals.get(name, 0)) for name, total in snapshot.counters.items()}
        self.totals = {**self.totals, **higher}

    def _adopt(self, snapshot: Snapshot) -> list[Happening]:
        """Replay the workers that were there before us."""
        self._look_at(snapshot)
        happened = []
        for info in sorted(snapshot.workers, key=lambda info: info.id):
            happened += self._reach(info, _STAGE_OF_STATE.get(info.state, STAGES["listening"]))
        return happened

    def _on_event(self, event: Event) -> list[Happening]:
        if event.kind == "running":
            self.running = True
            return [Happening("running")]
        if event.worker is None:
            return [Happening(event.kind, None, event.text)]
        if event.kind in STAGES:
            return self._reach(event.worker, STAGES[event.kind], event.text)
        happened = self._reach(event.worker, STAGES["fork"])  # "error" of one we had not heard of
        worker = self.workers.get(event.worker.id)
        return [*happened, Happening(event.kind, worker, event.text)]

    def _reconcile(self, snapshot: Snapshot, before: frozenset[int]) -> list[Happening]:
        """Let those exit that were known before this snapshot and are not in it; adopt those it adds."""
        happened = self._adopt(snapshot)
        there = {info.id for info in snapshot.workers}
        return happened + self._lose(sorted(before - there))

    def end(self) -> list[Happening]:
        """The cluster has ended: whoever's exit was not heard of is gone, too."""
        return self._lose(sorted(self.workers))

    def _lose(self, ids: Sequence[int]) -> list[Happening]:
        happened = []
        for worker in [self.workers[id_] for id_ in ids if id_ in self.workers]:
            voluntary = worker.has_reached("disconnect")
            info = msgspec.structs.replace(
                worker._info, state="dead", reason="its exit was missed", exited_after_disconnect=voluntary
            )
            happened += self._reach(info, STAGES["exit"])
        return happened

    def _reach(self, info: WorkerInfo, stage: int, text: str = "") -> list[Happening]:
        """Move a worker forward to a stage; what lies between has happened too, if it must have."""
        if info.id in self._exited:
            return []
        worker = self.workers.get(info.id)
        if worker is None:
            if stage == 0:
                return []  # asked for, but no process yet: its fork will be told
            worker = Worker(info, self._owner)
            self.workers = {**self.workers, info.id: worker}
        if stage < worker._stage:
            return []  # an older story than the one we know
        worker._info = info
        happened = []
        for kind, number in STAGES.items():
            if worker._stage < number <= stage and (number == stage or _is_implied(kind, worker._stage, stage)):
                worker._stage = number
                if kind == "listening" and self.snapshot is not None:
                    worker._urls = self.snapshot.urls
                happened.append(Happening(kind, worker, text if number == stage else ""))
        if stage == STAGES["exit"]:
            self.workers = {id_: other for id_, other in self.workers.items() if id_ != info.id}
            self._exited[info.id] = worker
            while len(self._exited) > EXITED_MAX:
                del self._exited[next(iter(self._exited))]
        return happened


def _is_implied(kind: str, reached: int, target: int) -> bool:
    """Whether a worker on its way to `target` must have passed through `kind`.

    Whoever listens was online, whoever was online was forked. But one that exits need never have been online; if it
    was, it is disconnected now.
    """
    if target <= STAGES["listening"] or kind == "fork":
        return True
    if kind == "disconnect":
        return reached >= STAGES["online"]
    return kind == "online" and target == STAGES["disconnect"]


def ps_form(snapshot: Snapshot) -> dict[str, Any]:
    """Return a snapshot as `ps --json` prints it: these keys are the contract."""
    form: dict[str, Any] = {"name": snapshot.name, "url": snapshot.urls[0] if snapshot.urls else ""}
    form |= {key: getattr(snapshot, key) for key in _CLUSTER_KEYS}
    form["urls"] = list(snapshot.urls)
    form["refused"] = snapshot.refused
    form["slots"], form["vacant"] = list(snapshot.slots), {str(slot): why for slot, why in snapshot.vacant.items()}
    form["workers"] = [
        {key: getattr(worker, key) for key in _WORKER_KEYS}
        | {"slow": [msgspec.structs.asdict(request) for request in snapshot.slow.get(worker.id, ())]}
        for worker in snapshot.workers
    ]
    return form
