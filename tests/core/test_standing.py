"""The one line that a service manager shows."""

from fleet_stories import Story

from zcluster.core import fleet_events as f
from zcluster.core import messages as m
from zcluster.core.fleet import Fleet
from zcluster.core.fleet_settings import FleetSettings
from zcluster.core.masterwatch import CHECK_S, REPAIR_S, MasterWatch
from zcluster.core.standing import Standing, standing


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


def test_what_is_said():
    """How many of how many are ready, whether something is lacking, and which code serves or is about to."""
    story = Story(workers=2)
    story.run_up()
    assert standing(story.fleet) == "running: 2 workers, generation 1"
    story.step(f.Reload((1, 1, 1), "a"), 1.0)
    assert standing(story.fleet) == "running: 2 workers, generation 1, generation 2 is being introduced"
    for event in (f.ZygoteUp(2), f.ImportFailed(2, "SyntaxError"), f.ZygoteDied(2, 3)):
        story.step(event, 1.1)
    story.step(f.Died(101, 1001, 1, None), 8.0)
    assert standing(story.fleet) == "running: 1 of 2 workers, generation 1"
    story.become(3, "forked", 8.0)
    story.step(f.Died(103, 1003, 1, None), 8.1)
    assert standing(story.fleet) == "degraded: 1 of 2 workers, generation 1"


def test_it_is_for_the_launcher():
    """No number of workers stands in it: that would be the line that says the cluster is ready."""
    said = []
    Standing().tell(Story(workers=2).fleet, said.append)
    assert said == [m.Running(0, "starting: 0 of 2 workers, generation 1")]


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
