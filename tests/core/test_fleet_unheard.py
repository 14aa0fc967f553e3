"""What a link lost without anybody noticing, and a heartbeat shows: Ready, Leaving and Drain."""

import pytest
from fleet_stories import Story, shown, worker

from zcluster.core import fleet_events as f
from zcluster.core.fleet_worker import unheard
from zcluster.core.messages import Beat


def beat(state):
    return Beat(0, 0, 0, 1, 0, 0.0, 0.0, state=state)


def story_with(last):
    """One worker, brought into this state of its start."""
    story = Story(workers=1)
    for event in (f.Started(), f.ZygoteUp(1), f.Imported(1)):
        story.step(event, 0.0)
    story.become(1, last, 0.0)
    return story, story.fleet.roster.workers[1]


def test_a_lost_ready_shows_in_the_next_heartbeat():
    """A worker that serves is READY, although its Ready never came, and is not killed at the boot timeout."""
    story, worker = story_with("online")
    story.step(f.Heard(1, beat("online")), 1.0)
    assert worker.state == "online"
    commands = story.step(f.Heard(1, beat("ready")), 2.0)
    assert (worker.state, worker.deadline) == ("ready", None)
    assert f.Running(1) in commands


def test_a_lost_leaving_shows_in_the_next_heartbeat():
    """A worker that drains is replaced at once, although its Leaving never came, and its exit is no crash."""
    story, worker = story_with("ready")
    commands = story.step(f.Heard(1, beat("draining")), 1.0)
    assert worker.state == "draining"
    assert any(isinstance(command, f.Fork) for command in commands)
    story.step(f.Died(worker.pid, worker.start, 0, None), 2.0)
    assert story.fleet.crashes == 0


def test_a_lost_drain_is_sent_again():
    """A worker that was told to leave and says that it serves is told again, with the time that is left."""
    story, worker = story_with("ready")
    story.step(f.Stop(quick=False), 1.0)
    limit_s = story.fleet.settings.graceful_timeout_s
    assert story.step(f.Heard(1, beat("ready")), 2.0) == [f.SendDrain(1, limit_s - 1.0, False)]
    assert story.step(f.Heard(1, beat("draining")), 3.0) == []
    story.step(f.Ticked(), 1.0 + limit_s)
    assert worker.killed_at is not None
    assert story.step(f.Heard(1, beat("ready")), 1.1 + limit_s) == []


@pytest.mark.parametrize("says", ["", "forked", "online", "ready", "draining", "dead"])
@pytest.mark.parametrize("state", ["hung", "ready", "suspect"])
def test_nothing_else_was_lost(state, says):
    """What is as it should be, and what a verdict stands on, is left alone."""
    _, worker = story_with("ready")
    worker.state = state
    expected = "leaving" if says == "draining" and state != "hung" else ""
    assert unheard(worker, says) == expected


@pytest.mark.parametrize(
    ("workers", "go"),
    [
        ([(9, 1, "ready"), (5, 2, "online")], []),
        ([(5, 1, "ready"), (9, 2, "online")], []),
        ([(5, 2, "ready"), (9, 1, "online")], ["terminate 9"]),
        ([(5, 2, "ready"), (9, 1, "ready")], ["drain 9 within 30.0 s"]),
        ([(5, 2, "ready"), (9, 2, "online")], []),
        ([(9, 2, "ready"), (5, 2, "online")], ["terminate 5"]),
        ([(9, 2, "online"), (5, 2, "online")], ["terminate 5"]),
        ([(9, 2, "online"), (5, 1, "online")], ["terminate 5"]),
    ],
)
def test_of_several_in_one_slot_one_serves_and_one_may_follow(workers, go):
    """A new master finds them (id, generation, state): the code that is taken counts before the age of a worker."""
    story = Story(workers=1)
    story.step(f.Committed(2), 0.0)
    adopted = (worker(id_, 0, id_, generation=code, state=state) for id_, code, state in workers)
    commands = story.step(f.Started(tuple(adopted), frozenset(), (2,)), 0.1)
    assert [shown(one) for one in commands if isinstance(one, f.Terminate | f.SendDrain)] == go
