"""What the master sees of its workers without asking them: their ticks in the ledger, and what the kernel says.

Invariant: reads only, and only what cannot block: shared memory and proc(5).
"""

import os
from collections.abc import Iterable
from typing import Protocol

from zcluster.core import fleet_events as f
from zcluster.core.ledger import Ledger
from zcluster.unix import lanes, process

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Worker(lanes.Owner, Protocol):
    """A worker as the fleet knows it."""

    start: int


def vanished(workers: Iterable[Worker]) -> list[int]:
    """The ids of those whose process is gone. The launcher tells deaths, but may have been stopped, or be dead."""
    return [worker.id for worker in workers if worker.pid and not process.is_alive(worker.pid, worker.start)]


def ticked(ledger: Ledger, workers: Iterable[Worker], hang_timeout_s: float) -> f.Ticked:
    """The regular look at all of them; at the process only where the bus tick is late."""
    there = list(workers)
    ages = lanes.ages(ledger, there)
    late = {id_ for id_, age in ages.items() if age.bus_tick_age_s > hang_timeout_s / 6}
    found = {worker.id: _facts(worker) for worker in there if worker.id in late}
    return f.Ticked(ages, {id_: facts for id_, facts in found.items() if facts is not None})


def _facts(worker: Worker) -> f.ProcessFacts | None:
    found = process.stat(worker.pid)
    if found is None or found.start != worker.start:
        return None
    state = found.state
    if state not in "Tt" and "D" in process.thread_states(worker.pid):
        state = "D"  # whichever thread it is: it does not give the interpreter away where it waits
    return f.ProcessFacts(state, found.cpu_ticks / TICKS_PER_S)
