"""What a handle knows of its cluster: the workers, the totals, the state, and what has happened to them.

Theory of operation. The link delivers snapshots, events and totals; a roster turns them into happenings, in the order
of Node's cluster module: fork, online, listening, disconnect, exit. A worker only moves forward through these stages,
so whatever is told twice, late, or by a snapshot instead of an event, happens once. What a snapshot no longer has,
and whose exit was missed, is gone: it exits with neither code nor signal known.

Invariant: after `take`, `workers` holds exactly the living workers as last heard of, and every stage of each has been
returned once. Written by one thread; others read, and see either the state before or after.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from signal import SIGTERM
from typing import Any, Final

import msgspec

from zcluster.core.joining import Joined, Missed, Refreshed
from zcluster.core.messages import Event, Snapshot, Totals, WorkerInfo
from zcluster.errors import ClusterError
from zcluster.unix.process import is_alive, send_signal

log = logging.getLogger("zcluster.handle")

STAGES: Final = {"fork": 1, "online": 2, "listening": 3, "disconnect": 4, "exit": 5}
_STAGE_OF_STATE: Final = {"asked": 0, "forked": 1, "online": 2, "dead": 5}  # all others have listened
EXITED_MAX: Final = 4096  # ids remembered as gone; a snapshot that is older than so many deaths cannot arrive

_WORKER_KEYS: Final = (
    *("id", "slot", "lane", "pid", "state", "generation", "requests", "inflight"),
    *("connections", "threads", "rss_bytes", "uptime_s", "restarts", "oldest_request_s"),
)
_CLUSTER_KEYS: Final = (
    *("urls", "epoch", "generation", "state", "launcher_pid", "master_pid", "zygote_pid", "counters"),
)


class Worker:
    """One worker, as the handle last heard of it. Safe from any thread."""

    __slots__ = ("_info", "_stage")

    def __init__(self, info: WorkerInfo) -> None:
        self._info = info
        self._stage = 0

    def __repr__(self) -> str:
        return f"<Worker {self.id} slot={self.slot} pid={self.pid} {self.state}>"

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
    def exitcode(self) -> int | None:
        """How it exited; None while it lives, after a signal, or when nobody could learn it."""
        return self._info.exitcode

    @property
    def signal(self) -> int | None:
        """The signal that killed it, or None."""
        return self._info.signal

    @property
    def exited_after_disconnect(self) -> bool:
        """Whether it left voluntarily."""
        return self._info.exited_after_disconnect

    @property
    def reason(self) -> str:
        """Why it ended, or what is wrong with it; empty while nothing is."""
        return self._info.reason

    def is_connected(self) -> bool:
        """Whether it is online and has neither disconnected nor died."""
        return STAGES["online"] <= self._stage < STAGES["disconnect"]

    def is_dead(self) -> bool:
        """Whether its exit has been heard of."""
        return self._stage >= STAGES["exit"]

    def has_reached(self, event: str) -> bool:
        """Whether its fork, online, listening, disconnect or exit has been heard of."""
        return self._stage >= STAGES[event]

    def kill(self, signal: int = SIGTERM) -> bool:
        """Send it a signal: TERM lets it finish its requests. False when that process no longer exists.

        It is not the cluster's way to scale down or stop: the worker is replaced. Raises `ClusterError` when it has
        no process yet.
        """
        if not self.pid:
            raise ClusterError(
                f"worker {self.id} has not been forked yet; wait for its 'fork' event before you kill it"
            )
        if not is_alive(self._info.pid, self._info.start):
            return False
        return send_signal(self._info.pid, self._info.start, signal)


@dataclass(frozen=True, slots=True)
class Happening:
    """Something to tell callbacks: setup, a stage of a worker, error, or running."""

    kind: str
    worker: Worker | None = None
    text: str = ""


class Roster:
    """The state of a followed cluster."""

    def __init__(self) -> None:
        self.workers: dict[int, Worker] = {}  # replaced, never changed: a reader may iterate over what it got
        self.totals: dict[str, int] = {}  # the same
        self.snapshot: Snapshot | None = None
        self.running = False  # all workers have been ready once
        self._exited: dict[int, None] = {}  # in order of exit

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
            worker = Worker(info)
            self.workers = {**self.workers, info.id: worker}
        if stage < worker._stage:
            return []  # an older story than the one we know
        worker._info = info
        happened = []
        for kind, number in STAGES.items():
            if worker._stage < number <= stage and (number == stage or _is_implied(kind, worker._stage, stage)):
                worker._stage = number
                happened.append(Happening(kind, worker, text if number == stage else ""))
        if stage == STAGES["exit"]:
            self.workers = {id_: other for id_, other in self.workers.items() if id_ != info.id}
            self._exited[info.id] = None
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
    form["workers"] = [
        {key: getattr(worker, key) for key in _WORKER_KEYS}
        | {"slow": [msgspec.structs.asdict(request) for request in snapshot.slow.get(worker.id, ())]}
        for worker in snapshot.workers
    ]
    return form
