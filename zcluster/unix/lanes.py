"""What the lanes of a ledger say about the workers: who holds them, and how long ago each gave a sign of life.

Invariant: a lane's owner is who holds its lock; the words in the lane only add what the lock cannot say.
"""

import time
from collections.abc import Iterable
from typing import Protocol

from zcluster.core.fleet_events import LaneAges
from zcluster.core.ledger import Ledger
from zcluster.core.messages import WorkerInfo
from zcluster.unix.locks import LockFile


class Owner(Protocol):
    """A worker as the fleet knows it."""

    id: int
    lane: int
    pid: int


def holders(ledger: Ledger, locks: LockFile) -> tuple[tuple[WorkerInfo, ...], frozenset[int]]:
    """The workers that hold lanes, and the lanes held by a process that has not written its name there."""
    adopted, foreign = [], set()
    for lane, pid in sorted(locks.owners(0, ledger.used_lanes).items()):
        info = ledger.lane(lane).info()
        if info is not None and info.pid == pid:
            adopted.append(info)
        else:
            foreign.add(lane)
    return tuple(adopted), frozenset(foreign)


def ages(ledger: Ledger, workers: Iterable[Owner]) -> dict[int, LaneAges]:
    """How old the ticks of these workers are, by id; a worker that has not taken its lane yet is left out."""
    now_ns = time.monotonic_ns()
    found = {}
    for worker in workers:
        lane = ledger.lane(worker.lane)
        if lane.worker_id == worker.id and lane.pid == worker.pid:
            found[worker.id] = LaneAges(
                bus_tick_age_s=max(0, now_ns - lane.bus_tick_ns) / 1e9,
                loop_tick_age_s=max(0, now_ns - lane.loop_tick_ns) / 1e9,
                in_app=lane.inflight > 0,
            )
    return found
