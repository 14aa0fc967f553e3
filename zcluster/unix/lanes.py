"""What the lanes of a ledger say about the workers: who holds them, and how long ago each gave a sign of life.

Invariant: a lane's owner is who holds its lock; the words in the lane only add what the lock cannot say.
"""

import time
from collections.abc import Iterable
from typing import NamedTuple, Protocol

from msgspec.structs import replace

from zcluster.core.fleet_events import LaneAges
from zcluster.core.ledger import Ledger
from zcluster.core.messages import WorkerInfo
from zcluster.unix.locks import LockFile


class Owner(Protocol):
    """A worker as the fleet knows it."""

    id: int
    lane: int
    pid: int


class Holders(NamedTuple):
    """Who has lanes."""

    living: tuple[WorkerInfo, ...]  # workers that hold a lane's lock
    foreign: frozenset[int]  # lanes held by a process that has not written its name there
    departed: tuple[WorkerInfo, ...]  # the last workers of lanes that nobody holds


def holders(ledger: Ledger, locks: LockFile) -> Holders:
    """Look at the lanes that were ever used."""
    living, foreign, departed = [], set(), []
    # Locks first: an owner that ends while we look is then taken for living, and its death is yet to be told.
    owners = locks.owners(0, ledger.used_lanes)
    for lane in range(ledger.used_lanes):
        view = ledger.lane(lane)
        info, pid = view.info(), owners.get(lane)
        if info is not None:
            info = aged(ledger, info)
        if pid is None and info is not None:
            departed.append(info)
        elif info is not None and info.pid == pid:
            living.append(info)
        elif pid is not None:
            foreign.add(lane)
    return Holders(tuple(living), frozenset(foreign), tuple(departed))


def aged(ledger: Ledger, info: WorkerInfo) -> WorkerInfo:
    """The same with the uptime of whoever had its lane last; workers do not say theirs."""
    return replace(info, uptime_s=max(0, time.monotonic_ns() - ledger.lane(info.lane).born_ns) / 1e9)


def is_holder(ledger: Ledger, locks: LockFile, worker: WorkerInfo, pid: int) -> bool:
    """Is this process the worker it says it is? The kernel knows: a worker locks its lane before it says anything."""
    return worker.pid == pid and 0 <= worker.lane < ledger.lanes and locks.owner(worker.lane) == pid


def last_state(ledger: Ledger, worker: Owner) -> str | None:
    """The state this worker wrote into its lane last; None when it never had the lane."""
    info = ledger.lane(worker.lane).info()
    return info.state if info is not None and (info.id, info.pid) == (worker.id, worker.pid) else None


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
