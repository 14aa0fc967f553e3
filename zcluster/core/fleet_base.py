"""What the fleet knows: its workers, its slots, its zygotes, and the reload that is under way.

Invariant: what is wanted (which slots are open, which generation all are to have) stands here and nowhere else; the
acts and the events only compare it with what there is.
"""

from collections.abc import Callable, Mapping

from msgspec import Struct

from zcluster.core import fleet_events as f
from zcluster.core.fleet_health import Lags
from zcluster.core.fleet_roster import Roster
from zcluster.core.fleet_settings import FleetSettings
from zcluster.core.fleet_worker import HOLDS_SLOT, READY, Worker
from zcluster.core.fleet_zygote import ABSENT, Zygote
from zcluster.core.fleet_zygote import READY as ZYGOTE_READY
from zcluster.core.messages import WorkerInfo
from zcluster.core.policy import Slot

# SIGKILL takes microseconds, but not for a process in uninterruptible sleep (a dead NFS server): sent again so often,
# in case the first went to nobody, and the second time the cluster does not wait for it to end before it finishes.
KILL_AGAIN_S = 5.0
START_STOP_S = 2.0  # a starting worker serves nobody: SIGTERM, and that long for its atexit
VANISHED_S = 5.0  # the launcher reports within milliseconds; if it does not, the status is lost, but not the slot
ORPHAN_KILL_S = 1.0  # the same without a launcher, when all must be over within 5 s


class Stopping(Struct):
    """The cluster is being stopped."""

    since: float
    deadline: float
    quick: bool
    code: int
    text: str


class Reloading:
    """A reload that has not ended: the candidate, and what became of it."""

    def __init__(self, zygote: Zygote, askers: dict[str, list[f.Asker]]) -> None:
        self.zygote = zygote  # the candidate, of a generation of its own
        self.askers = askers  # by token: who waits for the end; nobody when only the launcher knows of it
        self.rolled: set[int] = set()  # slots that are the candidate's, whatever becomes of their workers
        self.failed_forks = 0
        self.retry_at = 0.0  # no lane was free
        self.before: FleetSettings | None = None  # the settings, when those of the candidate are others
        self.failure = ""  # why the candidate is not taken; once this is said, all are to be as before
        self.deadline: float | None = None  # of the way back, which has begun


class Restarting(Struct):
    """A restart that has not ended."""

    id: int  # of the worker that is to go; 0: the slot had none
    askers: list[f.Asker]
    attempt: Worker | None = None  # the one that starts in its place


class Base:
    """The state of a fleet, and what can be read from it."""

    def __init__(
        self,
        settings: FleetSettings,
        epoch: int,
        next_worker_id: int,
        random: Callable[[], float],
        *,
        strict: bool = False,
    ) -> None:
        self.strict = strict
        self.settings = settings
        self.epoch = epoch
        self.wanted: dict[int, Mapping[str, str]] = {index: {} for index in range(settings.workers)}  # slot -> env
        self.roster = Roster(next_worker_id, settings.lanes)
        self.zygote = Zygote(settings, random)  # of the committed generation
        self.highest = 1  # generation there ever was
        self.reloading: Reloading | None = None
        self.queued: dict[str, list[f.Asker]] = {}  # the reload after it, which all who ask meanwhile share
        self.restarting: dict[int, Restarting] = {}  # by slot
        self.lags = Lags()
        self.stopping: Stopping | None = None
        self.is_leaving = False  # a stop is announced: all is served as before, but nothing is changed any more
        self.started = False  # Started has come: before it nobody may be judged or asked for
        self.early: list[f.Question] = []  # asked before that
        self.ever_ready = False
        self.was_degraded = False  # when the fleet settled last
        self.has_adopted = False  # workers of another master
        self.ran = False  # all were READY at once
        self.launcher_gone = False
        self.finished = False
        self.stepped = True  # what it waits for may be another than when somebody looked last
        self.crashes = 0
        self.boot_text = ""
        self.out: list[f.FleetCommand] = []
        self.random = random
        self._slots: dict[int, Slot] = {}

    def slot(self, index: int) -> Slot:
        """A slot's memory; of one that is not open too, while it has workers."""
        if index not in self._slots:
            self._slots[index] = Slot(index, self.settings, self.random)
        return self._slots[index]

    def say(self, level: str, text: str) -> None:
        """One line for the log."""
        self.out.append(f.Log(level, text))

    def announce(self, kind: str, worker: Worker, now: float, text: str = "") -> None:
        """Tell the handles."""
        self.out.append(f.Announce(kind, worker.info(now), text))

    # ---- generations -----------------------------------------------------------------------------------------------
    @property
    def generation(self) -> int:
        """The generation that serves; a reload that ends well makes it another one."""
        return self.zygote.generation

    @property
    def candidate(self) -> Zygote | None:
        """The zygote of the generation that is being introduced, as long as nothing speaks against it."""
        reloading = self.reloading
        return reloading.zygote if reloading is not None and not reloading.failure else None

    @property
    def target(self) -> int:
        """The generation that all workers are to have; those of another one are outdated."""
        candidate = self.candidate
        return self.zygote.generation if candidate is None else candidate.generation

    def zygotes(self) -> list[Zygote]:
        """Those that may have, or get, workers."""
        candidate = self.candidate
        return [self.zygote] if candidate is None else [self.zygote, candidate]

    def zygote_of(self, generation: int) -> Zygote | None:
        """The one of this generation, if it is wanted (still, or already)."""
        return next((zygote for zygote in self.zygotes() if zygote.generation == generation), None)

    def zygote_for(self, slot: int) -> Zygote:
        """The one that fills this slot when it has no worker."""
        reloading = self.reloading
        if reloading is not None and not reloading.failure and slot in reloading.rolled:
            return reloading.zygote
        return self.zygote

    def outdated(self) -> list[Worker]:
        """Workers that hold an open slot and are of another generation than all are to have."""
        return [
            worker
            for worker in self.roster
            if worker.slot in self.wanted and worker.generation != self.target and worker.state in HOLDS_SLOT
        ]

    def is_any_worn(self) -> bool:
        """Whether a worker has reached one of its limits (`fleet_wear`)."""
        return any(worker.worn for worker in self.roster)

    # ---- questions -------------------------------------------------------------------------------------------------
    @property
    def state(self) -> str:
        """starting | running | degraded | stopping."""
        if self.stopping is not None or self.is_leaving:
            return "stopping"
        if not self.ran and not (self.has_adopted and self.is_degraded()):
            return "starting"
        return "degraded" if self.is_degraded() else "running"

    def living(self) -> list[Worker]:
        """All workers that are not dead, those only asked for included (pid 0)."""
        return list(self.roster)

    def by_process(self, pid: int, start: int) -> Worker | None:
        """The living worker that is this process."""
        return self.roster.processes.get((pid, start))

    def infos(self, now: float) -> tuple[WorkerInfo, ...]:
        """The workers that have a process, by slot, as others see them."""
        there = [worker.info(now) for worker in self.roster if worker.pid]
        return tuple(sorted(there, key=lambda info: (info.slot, info.id)))

    def next_deadline(self, now: float) -> float | None:
        """Seconds until a Ticked is worth while, at least 0; None: nothing is waited for.

        Heartbeats are judged at the regular tick and are not in here.
        """
        waits = []
        for worker in self.roster:
            if worker.gone_at is not None:
                waits.append(worker.gone_at + VANISHED_S)
            elif worker.deadline is not None:
                waits.append(worker.deadline)
        waits += [zygote.deadline for zygote in self.zygotes() if zygote.deadline is not None]
        if self.stopping is not None:
            waits += [at for at in (self.end_of_patience(), self.stopping.since + START_STOP_S) if at > now]
        else:
            waits += self._pauses(now)
        return max(0.0, min(waits) - now) if waits else None

    def _pauses(self, now: float) -> list[float]:
        """When a zygote or a worker is asked for next."""
        waits = []
        if self.zygote.started and self.zygote.state == ABSENT:
            waits.append(self.zygote.retry_at)
        for index in self.roster.vacant(self.wanted):
            if self.zygote_for(index).state == ZYGOTE_READY:
                waits.append(self.slot(index).retry_at)
        if self.reloading is not None:
            deadline, retry_at = self.reloading.deadline, self.reloading.retry_at
            waits += [retry_at] if retry_at > now else []
            waits += [deadline] if deadline is not None else []
        waits += [at for at in (self.slot(worker.slot).retry_at for worker in self.outdated()) if at > now]
        return waits

    def is_degraded(self) -> bool:
        """Less than what was asked for is running, because of crashes.

        A crash that is being repaired at once does not count: it is what a cluster is for.
        """
        return bool(self._lacks())

    def _lacks(self) -> list[str]:
        """What a degraded cluster lacks, in words."""
        serving = {worker.slot for worker in self.roster if worker.state == READY}
        lacks = ["the application cannot be imported any more"] if self.zygote.broken else []
        for index, slot in sorted(self._slots.items()):
            if index not in self.wanted:
                continue
            if slot.looping:
                lacks.append(f"workers of slot {index} crash soon after their start, again and again")
            elif slot.failures > 0 and index not in serving:
                lacks.append(f"slot {index} has no ready worker after failed starts")
        return lacks

    def note_lacks(self) -> None:
        """Say when the cluster becomes degraded, and when it is not any more."""
        lacks = self._lacks() if self.ran or self.has_adopted else []
        if bool(lacks) == self.was_degraded:
            return
        self.was_degraded = bool(lacks)
        if lacks:
            self.say("warning", f"degraded, and serving with the rest: {'; '.join(lacks)}")
        else:
            self.say("info", "not degraded any more: nothing is lacking")

    def end_of_patience(self) -> float:
        """When those that even SIGKILL does not end are left behind; infinite while somebody was not killed yet."""
        patience_s = ORPHAN_KILL_S if self.launcher_gone else KILL_AGAIN_S
        never = float("inf")
        killed = [never if worker.killed_at is None else worker.killed_at for worker in self.roster]
        return max(killed, default=-never) + patience_s
