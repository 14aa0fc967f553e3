"""Who is there: the living workers by id and by process, their lanes, and the dead that may yet be heard of.

Invariant (`check`): a lane belongs to at most one living worker; ids are unique, grow, and are never used again; a
slot never gets a third worker.
"""

from collections.abc import Iterable, Iterator

from zcluster.core.fleet_worker import HOLDS_SLOT, Worker
from zcluster.core.messages import WorkerInfo

# A death may be told before the birth (two sockets). What we never hear a birth of is a stranger: a child of the app.
# 1024 deaths between a fork and its answer, which takes milliseconds, is more than one zygote can fork.
DEATHS_MAX = 1024
PER_SLOT_MAX = 2  # one that leaves and its replacement


class Roster:
    """The living workers of one cluster."""

    def __init__(self, next_id: int, lanes: int) -> None:
        self.next_id = next_id
        self.lanes = lanes
        self.workers: dict[int, Worker] = {}
        self.processes: dict[tuple[int, int], Worker] = {}
        self.foreign: set[int] = set()  # lanes locked by a process that is no worker of ours
        self.doubtful: dict[int, float] = {}  # lanes of forks given up, which may yet turn out to exist -> until
        self.deaths: dict[tuple[int, int], tuple[int | None, int | None]] = {}
        self.departed: dict[tuple[int, int], WorkerInfo] = {}  # dead before this master began, perhaps untold

    def __iter__(self) -> Iterator[Worker]:
        """Over a copy: whoever iterates may remove."""
        return iter(list(self.workers.values()))

    def add(self, worker: Worker) -> None:
        """A worker with an id and a lane nobody else has."""
        self.workers[worker.id] = worker
        if worker.pid:
            self.processes[worker.pid, worker.start] = worker

    def born(self, worker: Worker, pid: int, start: int) -> None:
        """The process of a worker that was asked for is known."""
        worker.pid, worker.start = pid, start
        self.processes[pid, start] = worker

    def remove(self, worker: Worker) -> None:
        """It is dead, or was never born."""
        del self.workers[worker.id]
        self.processes.pop((worker.pid, worker.start), None)

    def died(self, pid: int, start: int, code: int | None, signal: int | None) -> None:
        """Keep a death: it may have been told before the birth, and a Hello of the dead may still lie in a queue."""
        self.deaths[pid, start] = (code, signal)
        if len(self.deaths) > DEATHS_MAX:
            del self.deaths[next(iter(self.deaths))]

    def is_free(self, slot: int) -> bool:
        """Nobody is, or will be, this slot's worker, and there is room beside those who are leaving."""
        there = [worker for worker in self.workers.values() if worker.slot == slot]
        return len(there) < PER_SLOT_MAX and not any(worker.state in HOLDS_SLOT for worker in there)

    def vacant(self, slots: Iterable[int]) -> list[int]:
        """Those of the slots that are free."""
        full: set[int] = set()
        leaving: dict[int, int] = {}
        for worker in self.workers.values():
            leaving[worker.slot] = leaving.get(worker.slot, 0) + 1
            if worker.state in HOLDS_SLOT or leaving[worker.slot] >= PER_SLOT_MAX:
                full.add(worker.slot)
        return [slot for slot in slots if slot not in full]

    def owner(self, lane: int) -> Worker | None:
        """The living worker of a lane."""
        return next((worker for worker in self.workers.values() if worker.lane == lane), None)

    def free_lane(self, now: float) -> int | None:
        """The lowest lane that nobody has; None when there is none.

        Foreign and doubtful are hints: the truth is the lock, which the worker takes itself. When nothing else is
        left they are forgotten, and a worker that finds its lane locked says so.
        """
        self.doubtful = {lane: until for lane, until in self.doubtful.items() if until > now}
        used = {worker.lane for worker in self.workers.values()}
        hinted = self.foreign | self.doubtful.keys()
        lane = next((lane for lane in range(self.lanes) if lane not in used and lane not in hinted), None)
        if lane is None and hinted:
            self.foreign.clear()
            self.doubtful.clear()
            lane = next((lane for lane in range(self.lanes) if lane not in used), None)
        return lane

    def new_id(self) -> int:
        """An id that was never used; whoever uses it saves `next_id` first."""
        self.next_id += 1
        return self.next_id - 1

    def objection(self, info: WorkerInfo) -> str:
        """Why a worker that was not asked for cannot be taken in; empty when it can."""
        if info.id < 1 or info.pid < 1:
            return f"worker id {info.id}, process {info.pid}: there is no such thing"
        if (info.pid, info.start) in self.processes:
            return f"its process is worker id {self.processes[info.pid, info.start].id}"
        if info.id in self.workers:
            return f"worker id {info.id} is process {self.workers[info.id].pid}"
        other = self.owner(info.lane)
        if other is not None:
            return f"lane {info.lane} belongs to worker id {other.id}"
        if not 0 <= info.lane < self.lanes:
            return f"there is no lane {info.lane}"
        return ""

    def check(self) -> None:
        """Raise AssertionError when the invariant does not hold."""
        lanes = [worker.lane for worker in self.workers.values()]
        assert len(lanes) == len(set(lanes)), f"a lane with two workers: {sorted(lanes)}"
        assert all(0 <= lane < self.lanes for lane in lanes), f"a lane that does not exist: {sorted(lanes)}"
        assert all(0 < id_ < self.next_id for id_ in self.workers), f"ids {sorted(self.workers)} of {self.next_id}"
        asked_for: dict[int, int] = {}
        for worker in self.workers.values():
            if not worker.adopted:
                asked_for[worker.slot] = asked_for.get(worker.slot, 0) + 1
        assert all(number <= PER_SLOT_MAX for number in asked_for.values()), f"workers by slot: {asked_for}"
