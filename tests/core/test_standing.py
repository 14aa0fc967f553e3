"""The one line that a service manager shows."""

from zcluster.core import fleet_events as f
from zcluster.core.fleet import Fleet
from zcluster.core.fleet_settings import FleetSettings
from zcluster.core.masterwatch import CHECK_S, REPAIR_S, MasterWatch
from zcluster.core.standing import Standing


def test_it_is_said_when_it_has_changed():
    """Once for each state, and not again."""
    fleet, said, standing = Fleet(FleetSettings(workers=2), 1, 1, lambda: 0.5), [], Standing()

    def tell():
        standing.tell(fleet, lambda message: said.append(message.standing))

    tell()
    fleet.step(f.Started(), 0.0)
    tell()
    fleet.step(f.Stop(False, "SIGTERM"), 1.0)
    tell()
    tell()
    assert said == ["starting: 0 of 2 workers, generation 1", "stopping: 0 workers are left"]


def test_when_a_restart_would_help():
    """A hung master has its timeout and a repair; masters that never tick are not helped by being new."""
    watch, now = MasterWatch(), 0.0

    def wait(seconds, tick):
        nonlocal now
        for _ in range(int(seconds / CHECK_S)):
            now += CHECK_S
            watch.look(tick, now)

    wait(5, 1)
    assert watch.is_well(3.0)
    wait(3 + REPAIR_S - 5, 1)
    assert watch.is_well(3.0)
    wait(1, None)
    watch.begun()
    wait(1, 1)
    assert not watch.is_well(3.0)
    wait(1, 2)
    assert watch.is_well(3.0)
