"""The tables of states: complete, printable, and what the fleet really does."""

import pytest
from fleet_stories import Story

from zcluster.core import fleet_events as f
from zcluster.core.fleet import Fleet
from zcluster.core.fleet_roster import DEATHS_MAX
from zcluster.core.fleet_settings import FleetSettings
from zcluster.core.fleet_worker import (
    DEAD,
    STATES,
    TRANSITIONS,
    TRIGGERS,
    IllegalTrigger,
    Worker,
    adopted_state,
    deadline_after,
    next_state,
)
from zcluster.core.fleet_zygote import ABSENT, ENDING, READY, ZYGOTE_TRANSITIONS
from zcluster.core.messages import WorkerInfo

PAIRS = [(state, trigger) for state in STATES for trigger in TRIGGERS]
LIVING = [state for state in STATES if state != DEAD]


def story_in(state):
    """A cluster whose only worker, id 1, is in this state at the time 100."""
    story = Story(workers=1)
    story.step(f.Started(), 99)
    story.step(f.ZygoteUp(1), 99)
    story.step(f.Imported(1), 99)
    if state in ("forked", "online", "ready"):
        story.become(1, state, 100)
    elif state != "asked":
        story.become(1, "ready", 70 if state == "hung" else 90)
        last = {"suspect": f.Ticked({}), "hung": f.Ticked({}), "draining": f.Leaving(1, "SIGTERM")}[state]
        story.step(last, 100)
    assert story.fleet.living()[0].state == state
    return story


def event_of(story, trigger):
    """The event that brings this trigger; the master's own judgements and orders have none."""
    return {
        "forked": f.Forked(story.info(1)),
        "hello": f.Hello(story.info(1), b"link"),
        "ready": f.Ready(1),
        "heard": f.Heard(1),
        "leaving": f.Leaving(1, "SIGTERM"),
        "lost": f.ForkFailed(1, "EAGAIN"),
        "died": f.Died(101, 1001, 1, None),
    }.get(trigger)


@pytest.mark.parametrize(("state", "trigger"), PAIRS)
def test_every_pair_is_in_the_table_or_illegal(state, trigger):
    """A worker moves exactly as the table says, and any other trigger raises and changes nothing."""
    worker = Worker(WorkerInfo(1, 0, 0, 1), 0.0, state)
    if (state, trigger) in TRANSITIONS:
        worker.move(trigger)
        assert worker.state == TRANSITIONS[state, trigger]
        assert worker.state in STATES
    else:
        with pytest.raises(IllegalTrigger, match=f"{state} cannot get '{trigger}'"):
            worker.move(trigger)
        assert worker.state == state


@pytest.mark.parametrize("trigger", ["forked", "hello", "ready", "heard", "leaving", "lost"])
@pytest.mark.parametrize("state", LIVING)
def test_events_do_what_the_table_says(state, trigger):
    """An event at a worker in any state: the state of the table, or IllegalTrigger when strict."""
    story = story_in(state)
    worker = story.fleet.living()[0]
    if (state, trigger) in TRANSITIONS:
        story.step(event_of(story, trigger), 100.0)
        assert worker.state == TRANSITIONS[state, trigger]
    else:
        with pytest.raises(IllegalTrigger):
            story.step(event_of(story, trigger), 100.0)
        assert worker.state == state


@pytest.mark.parametrize("state", [state for state in LIVING if state != "asked"])
def test_death_ends_every_state_and_the_slot_is_filled(state):
    """Whatever it was doing: exit is announced, its slot has a worker again, and it is heard of no more."""
    story = story_in(state)
    commands = story.step(event_of(story, "died"), 100.0)
    exits = [command.worker for command in commands if isinstance(command, f.Announce) and command.kind == "exit"]
    assert [(info.id, info.state, info.exitcode) for info in exits] == [(1, DEAD, 1)]
    story.step(f.Ticked(), 101.0)
    assert [(worker.id, worker.slot) for worker in story.fleet.living()] == [(2, 0)]


def test_outside_tests_an_illegal_event_is_logged_and_ignored():
    """One wrong message is no reason to end a cluster."""
    fleet = Fleet(FleetSettings(workers=1), 1, 1, lambda: 0.0)
    for event in (f.Started(), f.ZygoteUp(1), f.Imported(1)):
        fleet.step(event, 0.0)
    (command,) = fleet.step(f.Ready(1), 1.0)
    assert isinstance(command, f.Log)
    assert command.level == "error"
    assert "asked cannot get 'ready'" in command.text
    for event in (f.Forked(WorkerInfo(1, 0, 0, 1, pid=0)), f.Hello(WorkerInfo(1, 0, 0, 1, pid=-1))):
        (command,) = fleet.step(event, 1.0)
        assert "cannot be process" in command.text
    fleet.step(f.Forked(WorkerInfo(1, 0, 0, 1, pid=5, start=5)), 2.0)
    (command,) = fleet.step(f.Hello(WorkerInfo(7, 0, 0, 1, pid=5, start=5)), 2.0)
    assert "worker id 7 cannot be process 5" in command.text


def test_every_state_is_reached_and_left():
    """From `asked` each state is reachable, each leads to `dead`, and nothing leads out of that."""
    reached, found = {"asked"}, {"asked"}
    while found:
        found = {to for (state, _), to in TRANSITIONS.items() if state in reached} - reached
        reached |= found
    assert reached == set(STATES)
    assert {state for (state, _), to in TRANSITIONS.items() if to == DEAD} == set(LIVING)
    assert {trigger for _, trigger in TRANSITIONS} == set(TRIGGERS)
    with pytest.raises(IllegalTrigger):
        next_state(DEAD, "died")


def test_every_state_of_the_zygote_ends():
    """Death leads from each state with a process to `absent`, where the next is asked for; `ready` is reached."""
    states = {state for state, _ in ZYGOTE_TRANSITIONS}
    assert {state for state, trigger in ZYGOTE_TRANSITIONS if trigger == "died"} == states - {ABSENT}
    assert all(to == ABSENT for (_, trigger), to in ZYGOTE_TRANSITIONS.items() if trigger == "died")
    assert {READY, ENDING} <= set(ZYGOTE_TRANSITIONS.values())
    assert set(ZYGOTE_TRANSITIONS.values()) <= states


def test_records_of_the_ledger_are_read_with_care():
    """A judgement of the master before is not taken over; an unknown state is the least that can be."""
    states = ("none", "asked", "forked", "online", "ready", "suspect", "hung", "draining", "dead", "?")
    assert [adopted_state(state) for state in states] == (
        ["forked"] * 3 + ["online"] + ["ready"] * 3 + ["draining"] * 2 + ["forked"]
    )


@pytest.mark.parametrize("state", LIVING)
def test_next_deadline_is_when_something_happens(state):
    """Only READY and SUSPECT wait for nothing but heartbeats; a Ticked at the deadline does something."""
    story = story_in(state)
    waiting_s = story.fleet.next_deadline(100.0)
    if state in ("ready", "suspect"):
        assert waiting_s is None
        return
    assert waiting_s is not None
    assert waiting_s > 0
    assert not story.step(f.Ticked(), 100.0 + waiting_s * 0.999)
    assert story.step(f.Ticked(), 100.0 + waiting_s)


def test_next_deadline_of_what_is_not_a_worker():
    """The pauses of slots and zygotes, the end of a vanished worker's patience, and that of a stop."""
    story = story_in("forked")
    fleet = story.fleet
    story.step(event_of(story, "died"), 100.0)
    assert fleet.next_deadline(100.0) == pytest.approx(0.1)
    assert fleet.next_deadline(200.0) == 0.0
    story.step(f.ZygoteDied(1), 100.0)
    story.step(f.ZygoteDied(1), 100.0)
    assert fleet.next_deadline(100.0) == pytest.approx(0.1)
    story = story_in("ready")
    story.step(f.Vanished(1), 100.0)
    story.step(f.Vanished(1), 100.9)  # told again: no second patience
    assert story.fleet.next_deadline(101.0) == pytest.approx(4.0)
    story = story_in("asked")
    story.step(f.Stop(quick=False), 100.0)
    assert story.fleet.next_deadline(100.0) == pytest.approx(2.0)


def test_next_deadline_when_somebody_cannot_be_killed():
    """Without a launcher a worker that SIGKILL does not end is waited for one second, not five."""
    story = story_in("ready")
    story.step(f.LauncherGone(), 100.0)
    story.step(f.Ticked(), 103.0)
    assert story.fleet.next_deadline(103.0) == pytest.approx(1.0)
    assert story.step(f.Ticked(), 104.0)[-1] == f.Finish(70, "the launcher is gone")


def test_only_the_last_deaths_are_remembered():
    """Strangers die without end; what is kept for births not told yet is bounded, and drops the oldest."""
    story = Story(workers=1)
    for pid in range(5000, 5000 + DEATHS_MAX + 10):
        story.step(f.Died(pid, 1, 0, None), 0.0)
    deaths = story.fleet.roster.deaths
    assert len(deaths) == DEATHS_MAX
    assert (5009, 1) not in deaths
    assert (5010, 1) in deaths


def test_a_second_process_with_the_id_of_a_living_worker_is_not_taken_in():
    """It is said whose the id is."""
    story = Story(workers=1)
    story.run_up()
    other = WorkerInfo(1, 0, 1, 1, pid=999, start=1)
    assert story.fleet.roster.objection(other) == "worker id 1 is process 101"
    for lane, text in ((511, ""), (512, "there is no lane 512")):
        assert story.fleet.roster.objection(WorkerInfo(9, 1, lane, 1, pid=999, start=1)) == text


def test_a_slot_has_room_beside_one_that_leaves_and_no_more():
    """However many workers leave and do not end, they are two at most; and one that serves has it for itself."""
    story = Story(workers=1)
    story.run_up()
    roster = story.fleet.roster
    assert not roster.is_free(0)
    for id_ in (2, 3):
        assert story.fleet.living()[-1].id == id_ - 1
        story.step(f.Leaving(id_ - 1, "SIGTERM"), id_)
        if id_ == 2:
            assert [worker.state for worker in roster] == ["draining", "asked"]
            story.become(2, "ready", id_)
    assert [worker.state for worker in roster] == ["draining", "draining"]
    assert not roster.is_free(0)
    assert roster.vacant([0, 1]) == [1]


def test_when_a_worker_that_is_taken_over_must_have_left_its_state():
    """A start and a drain have their own limits; heartbeats judge the others."""
    settings = FleetSettings(workers=1, boot_timeout_s=60.0, graceful_timeout_s=30.0)
    limits = {state: deadline_after(state, 10.0, settings) for state in ("forked", "online", "ready", "draining")}
    assert limits == {"forked": 70.0, "online": 70.0, "ready": None, "draining": 40.0}


def test_time_in_which_the_master_did_not_run_is_added():
    """To what a worker was heard last, and to its deadline if it has one."""
    worker = Worker(WorkerInfo(1, 0, 0, 1), 100.0)
    worker.postpone(5.0)
    assert (worker.last_heard, worker.deadline) == (105.0, None)
    worker.deadline = 130.0
    worker.postpone(5.0)
    assert (worker.last_heard, worker.deadline) == (110.0, 135.0)
