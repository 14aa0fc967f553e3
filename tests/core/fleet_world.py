"""A whole cluster on a fake clock: a launcher, zygotes, workers and masters that obey `Fleet`'s commands.

The lane locks are real in it (a worker that finds its lane held exits with 75), messages take a random time on each
channel and keep their order only within one, and everything can be killed, stopped, muted or restarted.
"""

import heapq
from collections.abc import Callable
from itertools import count
from random import Random

from zcluster.core import fleet_events as f
from zcluster.core.fleet import Fleet
from zcluster.core.fleet_settings import FleetSettings
from zcluster.core.messages import WorkerInfo

SETTINGS = FleetSettings(
    workers=3, boot_timeout_s=5.0, graceful_timeout_s=2.0, quick_timeout_s=0.5, hang_timeout_s=3.0, dump_grace_s=0.2,
    restart_cap_s=2.0, healthy_after_s=8.0, orphan_timeout_s=1.0, lanes=12,
)  # fmt: skip
STEP_S = 0.05


class Process:
    """A worker process."""

    def __init__(self, info: WorkerInfo, pid: int, now: float) -> None:
        self.info, self.pid, self.born = info, pid, now
        self.start = pid * 7
        self.alive, self.stopped, self.muted, self.draining = True, False, False, False
        self.hello_epoch = self.ready_epoch = 0
        self.tick = self.beat = now
        self.refused = False

    @property
    def state(self) -> str:
        if self.draining:
            return "draining"
        return "ready" if self.ready_epoch else "online" if self.hello_epoch else "forked"

    def told(self, now: float) -> WorkerInfo:
        i = self.info
        return WorkerInfo(
            i.id, i.slot, i.lane, i.generation, self.pid, self.start, self.state, i.restarts, uptime_s=now - self.born
        )


class Zygote:
    """A zygote process."""

    def __init__(self, pid: int, *, broken: bool) -> None:
        self.pid, self.broken = pid, broken
        self.imported = self.frozen = False
        self.orders: list[WorkerInfo] = []  # what it has not read


class World:
    """Everything around the fleet, and the fleet."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = 0.0
        self.queue: list[tuple[float, int, Callable[[], None]]] = []
        self.order = count()
        self.pids = count(100)
        self.processes: dict[int, Process] = {}
        self.holders: dict[int, Process] = {}  # of lane locks
        self.channels: dict[str, float] = {}
        self.zygotes: dict[int, Zygote] = {}  # by generation
        self.leaving: dict[int, int] = {}  # zygotes the launcher has let go of: generation -> pid
        self.size: tuple[int, ...] = tuple(range(SETTINGS.workers))  # what the launcher keeps
        self.committed, self.tokens = 1, ()
        self.open: dict[f.Asker, f.Reload] = {}  # questions without an answer
        self.replies: dict[f.Asker, f.Reply] = {}
        self.numbers = count(1)  # of questions
        self.broken_code = False  # the next candidates cannot import
        self.dying_code = False  # the workers of the next candidates die before they are ready
        self.dying: set[int] = set()  # generations whose workers do
        self.watch: Callable[[], None] = lambda: None  # called after everything that happens
        self.bad_starts = 0  # so many workers yet to be forked end before they are ready
        self.epoch, self.saved_id, self.frozen_until = 0, 1, 0.0
        self.backlog: list[tuple[str, f.FleetEvent]] = []  # what the master has not read
        self.kept: list[f.FleetEvent] = []  # by the launcher, while there is no master
        self.fleet: Fleet | None = None
        self.finished: f.Finish | None = None
        self.forked_ids: list[int] = []
        self.log: list[str] = []
        self.master_starts()
        self.master_ticks()

    # ---- the clock -------------------------------------------------------------------------------------------------
    def at(self, delay_s: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.queue, (self.now + delay_s, next(self.order), what))

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Let time pass; True as soon as `until` holds."""
        end = self.now + seconds
        while self.queue and self.queue[0][0] <= end:
            if until():
                return True
            self.now, _, what = heapq.heappop(self.queue)
            what()
            self.watch()
        self.now = end
        return until()

    def tell(self, channel: str, event: f.FleetEvent) -> None:
        """Send to the master; what goes to one that dies is lost, but for what the launcher keeps."""
        due = max(self.channels.get(channel, 0.0), self.now + self.random.uniform(0.0, 0.02))
        self.channels[channel] = due
        epoch = self.epoch

        def arrive() -> None:
            if channel == "launcher" and self.fleet is None:
                self.kept.append(event)
            elif channel == "launcher" or epoch == self.epoch:
                self.backlog.append((channel, event))
                self.master_reads()

        self.at(due - self.now, arrive)

    # ---- the master ------------------------------------------------------------------------------------------------
    def master_starts(self) -> None:
        self.epoch += 1
        self.fleet = Fleet(SETTINGS, self.epoch, self.saved_id, self.random.random, strict=True)
        adopted = tuple(process.told(self.now) for process in self.holders.values())
        told = [f.Sized(self.size), f.Committed(self.committed), f.Unfinished(self.tokens), *self.kept]
        self.kept = []
        for event in told:
            self.master_takes(event)
        self.master_takes(f.Started(adopted, frozenset(), tuple(self.zygotes)))
        if self.fleet is not None:
            self.sync(self.fleet.generation)
        for question in self.open.values():  # links repeat what was not answered
            self.tell("handle", question)

    def sync(self, generation: int) -> None:
        zygote = self.zygotes.get(generation)
        if zygote is not None and not zygote.frozen:
            forks = tuple(p.told(self.now) for p in self.living() if p.info.generation == generation)
            self.tell(f"zygote {zygote.pid}", f.Synced(forks, zygote.imported))

    def master_dies(self) -> None:
        if self.fleet is not None and self.finished is None:
            self.fleet, self.frozen_until = None, 0.0
            self.kept += [event for channel, event in self.backlog if channel == "launcher"]
            self.backlog = []
            self.at(self.random.uniform(0.05, 0.5), self.master_starts)

    def master_freezes(self, seconds: float) -> None:
        if self.fleet is None or self.now < self.frozen_until:
            return
        self.frozen_until, epoch = self.now + seconds, self.epoch

        def thaw() -> None:
            if epoch == self.epoch and self.fleet is not None:
                self.master_takes(f.Lagged(seconds))
                self.master_reads()

        self.at(seconds, thaw)

    def master_reads(self) -> None:
        while self.backlog and self.fleet is not None and self.now >= self.frozen_until:
            self.master_takes(self.backlog.pop(0)[1])

    def master_ticks(self) -> None:
        ages = {
            process.info.id: f.LaneAges(self.now - process.tick, self.now - process.tick, in_app=False)
            for process in self.holders.values()
        }
        if self.now >= self.frozen_until:
            self.master_takes(f.Ticked(ages))
        self.at(0.1, self.master_ticks)

    def master_takes(self, event: f.FleetEvent) -> None:
        if self.fleet is None or self.finished is not None:
            return
        self.log.append(f"{self.now:8.3f} {event}")
        for command in self.fleet.step(event, self.now):
            self.log.append(f"         -> {command}")
            self.perform(command)

    def perform(self, command: f.FleetCommand) -> None:
        match command:
            case f.StartZygote(generation):
                self.at(0.01, lambda: self.zygote_starts(generation))
            case f.DumpZygote():
                pass  # its stacks are of no consequence
            case f.KillZygote(generation):
                self.zygote_dies(9, generation)
            case f.EndZygote(generation):
                self.at(0.01, lambda: self.zygote_leaves(generation))
            case f.Resize(slots):
                self.size = slots
            case f.Commit(generation):
                assert generation > self.committed, "generations grow"
                self.committed = generation
                self.dying.discard(generation)  # taken by a cluster that had no workers then: nobody can tell
            case f.KeepReload(tokens):
                self.tokens = tokens
            case f.Reply(asker):
                self.open.pop(asker, None)
                self.replies[asker] = command
            case f.SaveNextId(next_id):
                assert next_id >= self.saved_id, "saved ids grow"
                self.saved_id = next_id
            case f.Fork(info):
                assert info.id < self.saved_id, "an id is saved before it is used"
                assert info.id not in self.forked_ids, "an id is used once, whatever master asks"
                self.forked_ids.append(info.id)
                zygote = self.zygotes.get(info.generation)
                if zygote is not None:
                    zygote.orders.append(info)
                    self.at(0.005, lambda: self.zygote_obeys(zygote))
            case f.SendDrain(id_) | f.Terminate(id_) | f.Refuse(id_):
                for process in self.living():
                    if process.info.id == id_ and not process.muted:
                        self.drain(process, unasked=False)
            case f.Dump(_, pid):
                self.processes[pid].stopped = False
            case f.Kill(_, pid):
                self.dies(pid, None, 9)
            case f.Reconnect(id_):
                for process in self.living():
                    if process.info.id == id_:
                        process.muted, process.hello_epoch = False, 0
            case f.Finish():
                self.finished = command

    # ---- the zygote ------------------------------------------------------------------------------------------------
    def zygote_starts(self, generation: int) -> None:
        if generation not in self.zygotes:
            is_candidate = generation != self.committed
            zygote = self.zygotes[generation] = Zygote(next(self.pids), broken=is_candidate and self.broken_code)
            if is_candidate and self.dying_code:
                self.dying.add(generation)
            self.at(self.random.uniform(0.05, 0.3), lambda: self.zygote_imports(generation, zygote))
        self.tell("launcher", f.ZygoteUp(generation))
        if self.zygotes[generation].imported:
            self.sync(generation)

    def zygote_imports(self, generation: int, zygote: Zygote) -> None:
        if self.zygotes.get(generation) is not zygote:
            return
        if zygote.broken:
            self.tell(f"zygote {zygote.pid}", f.ImportFailed(generation, "SyntaxError"))
            self.at(0.01, lambda: self.zygote_dies(None, generation))
        else:
            zygote.imported = True
            self.tell(f"zygote {zygote.pid}", f.Imported(generation))

    def zygote_dies(self, signal: int | None, generation: int) -> None:
        if generation in self.leaving:
            del self.leaving[generation]
        elif generation in self.zygotes:
            del self.zygotes[generation]
        else:
            return
        self.tell("launcher", f.ZygoteDied(generation, None if signal else 0, signal))

    def zygote_leaves(self, generation: int) -> None:
        zygote = self.zygotes.pop(generation, None)
        if zygote is not None:
            self.leaving[generation] = zygote.pid
            self.at(5.0 if zygote.frozen else 0.01, lambda: self.zygote_dies(None, generation))

    def zygote_obeys(self, zygote: Zygote) -> None:
        if not zygote.imported or zygote.frozen or zygote not in self.zygotes.values():
            return
        for info in zygote.orders:
            pid = next(self.pids)
            process = self.processes[pid] = Process(info, pid, self.now)
            self.tell(f"zygote {zygote.pid}", f.Forked(process.told(self.now)))
            if self.holders.setdefault(info.lane, process) is not process:
                self.at(0.002, lambda pid=pid: self.dies(pid, 75, None))
            elif self.bad_starts or info.generation in self.dying:
                self.bad_starts = max(0, self.bad_starts - 1)
                self.at(self.random.uniform(0.0, 0.1), lambda pid=pid: self.dies(pid, 1, None))
            else:
                self.at(0.01, lambda process=process: self.lives(process))
        zygote.orders = []

    # ---- questions -------------------------------------------------------------------------------------------------
    def asker(self) -> f.Asker:
        return (1, 1, next(self.numbers))

    def reload(self) -> f.Asker:
        """Ask for a reload; its answer will be in `replies`."""
        asker = self.asker()
        question = self.open[asker] = f.Reload(asker, f"token {asker[2]}")
        self.tell("handle", question)
        return asker

    # ---- workers ---------------------------------------------------------------------------------------------------
    def living(self) -> list[Process]:
        return [process for process in self.processes.values() if process.alive]

    def dies(self, pid: int, code: int | None, signal: int | None) -> None:
        process = self.processes[pid]
        if process.alive:
            process.alive = False
            if self.holders.get(process.info.lane) is process:
                del self.holders[process.info.lane]
            if code == f.LANE_TAKEN_CODE:  # as the master does, which knows who was in which lane
                self.tell("launcher", f.LaneTaken(process.info.id))
            self.tell("launcher", f.Died(pid, process.start, code, signal))

    def drain(self, process: Process, *, unasked: bool) -> None:
        if process.draining or process.stopped:
            return
        if unasked and process.hello_epoch == self.epoch and not process.muted:
            self.tell(f"worker {process.pid}", f.Leaving(process.info.id, "SIGTERM"))
        process.draining = True
        self.at(self.random.uniform(0.0, 2.5), lambda: None if process.stopped else self.dies(process.pid, 0, None))

    def lives(self, process: Process) -> None:
        if not process.alive:
            return
        self.at(STEP_S, lambda: self.lives(process))
        if process.stopped:
            return
        process.tick = self.now
        channel = f"worker {process.pid}"
        if process.muted or self.fleet is None:
            return
        if process.hello_epoch != self.epoch:
            process.hello_epoch, process.ready_epoch = self.epoch, 0
            self.tell(channel, f.Hello(process.told(self.now), b"link"))
        elif process.draining:
            return
        elif process.ready_epoch != self.epoch:
            process.ready_epoch = self.epoch
            self.tell(channel, f.Ready(process.info.id))
        elif self.now - process.beat >= 0.5:
            process.beat = self.now
            self.tell(channel, f.Heard(process.info.id))

    # ---- what may be asked -----------------------------------------------------------------------------------------
    def all_ready(self) -> bool:
        """Each slot has a worker that is ready, in truth and in the eyes of the master."""
        if self.fleet is None:
            return False
        serving = {process.info.slot for process in self.living() if process.state == "ready" and not process.stopped}
        believed = {worker.slot for worker in self.fleet.living() if worker.state == "ready"}
        if sorted(self.fleet.wanted) != sorted(self.size):
            return False
        return serving >= set(self.size) and believed >= set(self.size)

    def settled(self) -> bool:
        """The same, and no reload is under way or waits, and there is one generation, with its zygote."""
        if not self.all_ready() or self.fleet is None or self.open or self.tokens or self.fleet.reloading is not None:
            return False
        serving = [process for process in self.living() if process.state == "ready"]
        return {process.info.generation for process in serving} <= {self.committed} and [*self.zygotes] == [
            self.committed
        ]
