"""Which hooks of the cluster are to be called for what was heard of it.

Invariant: every worker that was known to live has one `child_exit`, heard of or missed; `on_starting` and
`when_ready` are called once in the life of a cluster, whoever is replaced meanwhile.
"""

import re
from collections.abc import Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from zcluster.core.fleet_worker import HUNG
from zcluster.core.joining import Joined, Refreshed
from zcluster.core.messages import Event, Snapshot, WorkerInfo

# A hook, and its arguments after the cluster.
Call = tuple[str, tuple[object, ...]]
_SIZES: Final = re.compile(r"from (\d+) to (\d+) ")  # how the fleet words a change of size


class ClusterInfo(Struct, frozen=True):
    """The cluster as a hook sees it: as last heard of."""

    name: str
    urls: tuple[str, ...]
    epoch: int
    generation: int
    launcher_pid: int
    master_pid: int
    size: int  # how many workers are wanted
    workers: tuple[WorkerInfo, ...]  # those that live

    @property
    def url(self) -> str:
        """The first of `urls`."""
        return self.urls[0] if self.urls else ""


class HookCalls:
    """Used by one thread. `began`, `was_ready`: on_starting, when_ready were called by a process before this one."""

    def __init__(self, *, began: bool = False, was_ready: bool = False) -> None:
        self._began, self._was_ready = began, was_ready
        self._seen: Snapshot | None = None
        self._living: dict[int, WorkerInfo] = {}
        self._size = 0
        self._generation = 0

    @property
    def cluster(self) -> ClusterInfo | None:
        """What is known; None before anything is."""
        if (seen := self._seen) is None:
            return None
        workers = tuple(sorted(self._living.values(), key=lambda worker: (worker.slot, worker.id)))
        pids = (seen.launcher_pid, seen.master_pid)
        return ClusterInfo(seen.name, seen.urls, seen.epoch, self._generation, *pids, self._size, workers)

    def take(self, batch: Sequence[object]) -> list[Call]:
        """Take what the link has delivered."""
        calls: list[Call] = []
        for item in batch:
            match item:
                case Joined(snapshot=snapshot, again=again):
                    calls += self._joined(snapshot, again=again)
                case Refreshed(snapshot=snapshot):
                    self._seen = snapshot
                case Event():
                    calls += self._on_event(item)
        if any(isinstance(item, Joined | Refreshed) for item in batch):
            calls += self._missing()  # the events that explain the difference have come with the snapshot
        return calls

    def _joined(self, snapshot: Snapshot, *, again: bool) -> list[Call]:
        self._seen, self._generation = snapshot, snapshot.generation
        calls: list[Call] = []
        if not self._began:
            self._began = True
            calls.append(("on_starting", ()))
        if not again:
            self._size = len(snapshot.slots)
            self._living = {worker.id: worker for worker in snapshot.workers}
            if snapshot.state in ("running", "degraded"):
                calls += self._ready()
        return calls

    def _ready(self) -> list[Call]:
        is_first, self._was_ready = not self._was_ready, True
        return [("when_ready", ())] if is_first else []

    def _on_event(self, event: Event) -> list[Call]:
        worker = event.worker
        if worker is not None:
            return self._of_worker(event.kind, worker)
        if event.kind == "running":
            return self._ready()
        if event.kind == "reload":
            self._generation = max([self._generation, *(there.generation for there in self._living.values())])
            return [("on_reload", ())]
        if event.kind == "scale" and (sizes := _SIZES.search(event.text)):
            old, self._size = int(sizes[1]), int(sizes[2])
            return [("nworkers_changed", (self._size, old))]
        return []

    def _of_worker(self, kind: str, worker: WorkerInfo) -> list[Call]:
        if kind == "exit":
            known = self._living.pop(worker.id, None)
            return [("child_exit", (worker,))] if known is not None else []
        if kind != "disconnect" or worker.id in self._living:
            self._living[worker.id] = worker
        return [("worker_abort", (worker,))] if kind == "error" and worker.state == HUNG else []

    def end(self) -> list[Call]:
        """The cluster has ended as it should: whoever's exit was not heard of is gone, too, and that is all."""
        return [*self._lose(list(self._living.values())), ("on_exit", ())]

    def _missing(self) -> list[Call]:
        """Those that a snapshot does not have any more have ended, and nobody told us how."""
        there = {worker.id for worker in self._seen.workers} if self._seen is not None else set()
        if not there:
            return []  # a master that has just begun does not know its workers yet; if they are gone, it will tell
        return self._lose([worker for id_, worker in sorted(self._living.items()) if id_ not in there])

    def _lose(self, gone: Sequence[WorkerInfo]) -> list[Call]:
        for worker in gone:
            del self._living[worker.id]
        missed = "its exit was missed"
        return [("child_exit", (replace(worker, state="dead", reason=missed),)) for worker in gone]
