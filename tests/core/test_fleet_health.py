"""What the signs of a worker say, exactly at the limits; whole histories are in histories/hang.txt."""

import pytest

from zcluster.core.fleet_events import LaneAges, ProcessFacts
from zcluster.core.fleet_health import ASLEEP, GIL, IN_KERNEL, LOOP, STOPPED, Lags, Verdict, ailment, judge
from zcluster.core.fleet_settings import FleetSettings
from zcluster.core.fleet_worker import READY, Worker
from zcluster.core.messages import WorkerInfo

SETTINGS = FleetSettings(workers=1, hang_timeout_s=30.0)


def worker(silent_at=None):
    there = Worker(WorkerInfo(1, 0, 0, 1, 100, 1), 200.0, READY)
    there.silent_at = silent_at
    return there


@pytest.mark.parametrize(
    ("silence_s", "bus_s", "loop_s", "in_app", "verdict"),
    [
        (9.9, 0.0, 0.0, False, Verdict.FINE),
        (10.0, 9.9, 0.0, False, Verdict.RECONNECT),
        (10.0, 10.0, 0.0, False, Verdict.SUSPECT),
        (29.9, 10.0, 0.0, False, Verdict.SUSPECT),
        (30.0, 9.9, 0.0, False, Verdict.RECONNECT),
        (30.0, 10.0, 0.0, False, Verdict.HUNG_SILENT),
        (0.0, 0.0, 30.0, False, Verdict.FINE),
        (0.0, 0.0, 30.1, False, Verdict.HUNG_LOOP),
        (0.0, 0.0, 99.0, True, Verdict.FINE),
    ],
)
def test_the_verdict(silence_s, bus_s, loop_s, in_app, verdict):
    """Silence on the bus, the age of each tick, and whether the loop is in the application."""
    there, ages = worker(), LaneAges(bus_s, loop_s, in_app=in_app)
    assert judge(there, ages, there.last_heard + silence_s, SETTINGS, Lags()) is verdict


@pytest.mark.parametrize(
    ("bus_s", "loop_s", "in_app", "state", "cpu_s", "watched_s", "what"),
    [
        (9.9, 10.0, False, "S", 0.0, 1.0, ""),
        (9.9, 10.1, False, "S", 0.0, 1.0, LOOP),
        (9.9, 10.1, True, "S", 0.0, 1.0, ""),
        (10.0, 10.0, False, "T", 0.0, 0.0, STOPPED),
        (10.0, 10.0, False, "t", 0.0, 0.0, STOPPED),
        (10.0, 10.0, False, "D", 0.0, 0.0, IN_KERNEL),
        (10.0, 9.9, False, "S", 9.0, 1.0, ""),
        (10.0, 10.0, False, "R", 0.25, 1.0, GIL),
        (10.0, 10.0, False, "R", 0.0, 1.0, ""),
        (10.0, 10.0, False, "R", 0.07, 4.0, ""),
        (10.0, 10.0, False, "R", 0.09, 4.0, GIL),
        (10.0, 10.0, False, "S", 0.0, 4.9, ""),
        (10.0, 10.0, False, "S", 0.0, 5.0, ASLEEP),
    ],
)
def test_the_ailment(bus_s, loop_s, in_app, state, cpu_s, watched_s, what):
    """What the kernel says of a process whose ticks are old, and what it has computed since it was found silent."""
    ages, facts, now = LaneAges(bus_s, loop_s, in_app=in_app), ProcessFacts(state, 3.0 + cpu_s), 100.0
    assert ailment(worker((now - watched_s, 3.0)), ages, facts, now, SETTINGS, Lags()) == what


def test_without_facts_nothing_is_said():
    """Nor before it was found silent, nor of a lane that is not its own."""
    ages, facts = LaneAges(20.0, 20.0, in_app=False), ProcessFacts("S", 3.0)
    assert ailment(worker((50.0, 3.0)), ages, None, 100.0, SETTINGS, Lags()) == ""
    assert ailment(worker(), ages, facts, 100.0, SETTINGS, Lags()) == ""
    assert ailment(worker((50.0, 3.0)), None, facts, 100.0, SETTINGS, Lags()) == ""


def test_time_in_which_the_master_did_not_run_is_no_age():
    """Nor is the time before it began."""
    lags = Lags()
    lags.since = 50.0
    lags.add(90.0, 20.0)
    assert lags.net_age_s(100.0, 5.0) == 5.0
    assert lags.net_age_s(100.0, 20.0) == 10.0
    assert lags.net_age_s(100.0, 40.0) == 20.0
    assert lags.net_age_s(100.0, 500.0) == 30.0
