"""The whole cluster at one moment, as `ps --json`, a Welcome and every handle see it.

Invariant: it is built from what is known without asking anybody, so that it can be given at any time.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Final

from zcluster.core.fleet import Fleet
from zcluster.core.fleet_worker import SERVING
from zcluster.core.mail import Members
from zcluster.core.messages import Event, Snapshot
from zcluster.core.slow import slowest

# Workers say what they like in a heartbeat; a sum that msgpack cannot carry would end the master that encodes it.
COUNT_MAX: Final = 2**63 - 1


def fleet_snapshot(
    fleet: Fleet,
    now: float,
    *,
    name: str,
    urls: tuple[str, ...],
    launcher_pid: int,
    master_pid: int,
    zygote_pid: int,
    counters: Mapping[str, int],
    heads: Mapping[str, int],
    dropped: Mapping[str, int],
    received: Mapping[str, int],
    recent: tuple[Event, ...] = (),
    members: Members | None = None,
) -> Snapshot:
    """Put a Snapshot together; `now` (seconds) is of the clock the fleet is stepped with. `zygote_pid` 0: none."""
    refused: Counter[str] = Counter()
    for worker in fleet.living():
        if worker.beat:
            refused.update(worker.beat.refused)
    return Snapshot(
        name=name,
        urls=urls,
        epoch=fleet.epoch,
        generation=fleet.generation,
        state=fleet.state,
        launcher_pid=launcher_pid,
        master_pid=master_pid,
        zygote_pid=zygote_pid,
        counters=dict(counters),
        workers=fleet.infos(now),
        heads=dict(heads),
        dropped=dict(dropped),
        received=dict(received),
        recent=recent,
        slow=slowest({worker.id: worker.beat.slow for worker in fleet.living() if worker.pid and worker.beat}),
        refused={reason: min(max(0, count), COUNT_MAX) for reason, count in refused.items()},
        members=members,
        slots=tuple(fleet.wanted),
        vacant=fleet.vacancies(now),
    )


def who_is_there(fleet: Fleet) -> tuple[dict[int, tuple[int, bool]], int]:
    """Every worker that lives or was asked for, with its slot and whether it serves; and the next id."""
    there = {worker.id: (worker.slot, worker.state in SERVING) for worker in fleet.living()}
    return there, fleet.roster.next_id
