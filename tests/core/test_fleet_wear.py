"""Limits after which a worker that is well is replaced: when they are reached, and start-first."""

import msgspec
import pytest

from zcluster.core import fleet_events as f
from zcluster.core.fleet import Fleet
from zcluster.core.fleet_settings import FleetSettings
from zcluster.core.fleet_wear import story, wear
from zcluster.core.fleet_worker import READY, Worker
from zcluster.core.messages import Beat, WorkerInfo


def beat(requests=0, rss_bytes=0):
    return Beat(requests, 0, 0, 1, rss_bytes, 0.0, 0.0)


@pytest.mark.parametrize(
    ("limits", "chance", "said", "age_s", "why"),
    [
        ({}, 0.0, beat(10**9, 10**12), 10**9, ""),
        ({"max_requests": 10}, 0.0, beat(9), 1, ""),
        ({"max_requests": 10}, 0.0, beat(10), 1, "max requests"),
        ({"max_requests": 10, "max_requests_jitter": 10}, 0.5, beat(14), 1, ""),
        ({"max_requests": 10, "max_requests_jitter": 10}, 0.5, beat(15), 1, "max requests"),
        ({"max_requests_jitter": 10}, 0.5, beat(10**9), 1, ""),
        ({"max_rss_mib": 100}, 0.0, beat(0, (100 << 20) - 1), 10, ""),
        ({"max_rss_mib": 100}, 0.0, beat(0, 100 << 20), 10, "memory"),
        ({"max_rss_mib": 100}, 0.0, beat(0, 100 << 20), 4.9, ""),
        ({"max_requests": 1, "max_rss_mib": 1}, 0.0, None, 10, ""),
        ({"max_age_s": 100.0}, 0.5, None, 104.9, ""),
        ({"max_age_s": 100.0}, 0.5, None, 105.0, "age"),
    ],
)
def test_when_a_limit_is_reached(limits, chance, said, age_s, why):
    """Exactly at the limit and what chance adds to it, and never without a limit or a heartbeat that tells."""
    worker = Worker(WorkerInfo(1, 0, 0, 1, 100, 1), 50.0, READY)
    worker.beat, worker.chance = said, chance
    assert wear(worker, FleetSettings(workers=1, **limits), 50.0 + age_s) == why


def cluster(**limits):
    """Two ready workers, ids 1 and 2, in slots 0 and 1; and a function that steps and names what was ordered."""
    fleet = Fleet(FleetSettings(workers=2, **limits), 1, 1, lambda: 0.0, strict=True)
    seen = []

    def step(event, now):
        commands = fleet.step(event, now)
        for command in commands:
            match command:
                case f.Fork(worker=worker):
                    seen.append(f"fork {worker.id} slot={worker.slot}")
                case f.SendDrain(id=id_):
                    seen.append(f"drain {id_}")
                case f.Announce(kind="exit", worker=worker):
                    seen.append(f"exit {worker.id}: {worker.reason}")
        told, seen[:] = list(seen), []
        return told

    step(f.Started(), 0.0)
    step(f.ZygoteUp(1), 0.1)
    assert step(f.Imported(1), 0.2) == ["fork 1 slot=0", "fork 2 slot=1"]
    for id_ in (1, 2):
        make_ready(step, id_, id_ - 1, 0.3)
    return fleet, step


def make_ready(step, id_, slot, now):
    info = WorkerInfo(id_, slot, id_ - 1, 1, 100 + id_, 1)
    step(f.Forked(info), now)
    step(f.Hello(info), now)
    return step(f.Ready(id_), now)


def test_a_worn_worker_serves_until_its_replacement_is_ready():
    """One slot after the other, and the reason is told with the exit."""
    fleet, step = cluster(max_requests=10)
    for id_ in (1, 2):
        step(f.Heard(id_, beat(10)), 1.0)
    assert step(f.Ticked(), 1.1) == ["fork 3 slot=0"]
    assert step(f.Ticked(), 1.2) == []
    assert sum(worker.state == READY for worker in fleet.living()) == 2
    assert make_ready(step, 3, 0, 1.3) == ["drain 1", "fork 4 slot=1"]
    assert make_ready(step, 4, 1, 1.4) == ["drain 2"]
    assert step(f.Died(101, 1, 0, None), 1.5) == ["exit 1: max requests"]
    assert step(f.Died(102, 1, 0, None), 1.6) == ["exit 2: max requests"]
    assert step(f.Ticked(), 1.7) == []
    assert fleet.state == "running"


def test_a_replacement_that_cannot_start_costs_nothing():
    """The worn worker goes on serving, and the next attempt is made after a pause."""
    fleet, step = cluster(max_rss_mib=1)
    step(f.Heard(1, beat(0, 2 << 20)), 6.0)
    assert step(f.Ticked(), 6.1) == ["fork 3 slot=0"]
    step(f.Forked(WorkerInfo(3, 0, 2, 1, 103, 1)), 6.2)
    assert step(f.Died(103, 1, 1, None), 6.3) == ["exit 3: exited code 1"]
    assert [worker.state for worker in fleet.living()] == [READY, READY]
    assert step(f.Ticked(), 6.5) == ["fork 4 slot=0"]


@pytest.mark.parametrize(
    ("worn", "given_up", "text"),
    [
        ("max requests", 0, "has reached its limit (max requests): another one is started"),
        ("max requests", 1, "has reached its limit (max requests): another one is started"),
        ("timeout", 1, "has 1 request that does not come back from the application"),
        ("timeout", 2, "has 2 requests that do not come back from the application"),
    ],
)
def test_what_is_logged(worn, given_up, text):
    """Which limit, or how many requests it was given up for."""
    worker = Worker(WorkerInfo(1, 0, 0, 1, 100, 1), 50.0, READY)
    worker.worn, worker.beat = worn, msgspec.structs.replace(beat(10), given_up=given_up)
    assert text in story(worker)
    worker.beat = None  # adopted with a verdict of the master before, and not heard yet
    assert "has reached its limit" in story(worker)


def test_a_worker_that_is_not_heard_is_not_worn():
    """What it said before it fell silent may be old; it is looked at again when it is heard."""
    fleet, step = cluster(max_requests=10)
    step(f.Heard(1, beat(10)), 1.0)
    assert step(f.Ticked(), 12.0) == []
    assert {worker.state for worker in fleet.living()} == {"suspect"}
    step(f.Heard(1), 12.1)
    assert step(f.Ticked(), 12.2) == ["fork 3 slot=0"]
