"""The snapshot of a fleet, and the state of the cluster in it."""

from fleet_stories import Story, worker

from zcluster.config import Config
from zcluster.core import fleet_events as f
from zcluster.core.fleet_settings import FleetSettings
from zcluster.core.mail import Members
from zcluster.core.messages import Beat, Event, SlowRequest
from zcluster.core.snapshot import fleet_snapshot, who_is_there


def snapshot(story, now, **more):
    return fleet_snapshot(
        story.fleet, now, name="demo", urls=("http://127.0.0.1:80",), launcher_pid=10, master_pid=11, zygote_pid=12,
        counters={"requests": 7}, heads={"totals": 3}, dropped={"ctl:stranger": 1}, received={"ctl": 9},
        recent=(Event(1, 1, "fork"),), **more,
    )  # fmt: skip


def test_a_snapshot_says_everything():
    """What was given, and each worker by slot with its last heartbeat and its age."""
    story = Story()
    story.run_up(5.0)
    slow = (SlowRequest("GET", "/report", 2.5),)
    story.step(f.Heard(2, Beat(100, 1, 5, 3, 4096, 0.5, 0.01, slow)), 6.0)
    story.step(f.Heard(2), 6.5)
    shot = snapshot(story, 8.0)
    assert (shot.name, shot.urls, shot.epoch, shot.generation) == ("demo", ("http://127.0.0.1:80",), 1, 1)
    assert (shot.launcher_pid, shot.master_pid, shot.zygote_pid) == (10, 11, 12)
    assert (shot.counters, shot.heads, shot.dropped) == ({"requests": 7}, {"totals": 3}, {"ctl:stranger": 1})
    assert shot.received == {"ctl": 9}
    assert [event.kind for event in shot.recent] == ["fork"]
    first, second = shot.workers
    assert (first.id, first.slot, first.pid, first.start, first.state) == (1, 0, 101, 1001, "ready")
    assert (first.lane, first.generation, first.uptime_s, first.note) == (0, 1, 3.0, "")
    unheard = (first.requests, first.inflight, first.connections, first.threads, first.rss_bytes)
    assert (*unheard, first.oldest_request_s) == (0, 0, 0, 0, 0, 0.0)
    assert snapshot(story, 8.45649).workers[0].uptime_s == 3.456
    assert second.note == ""
    assert (second.requests, second.inflight, second.connections, second.threads) == (100, 1, 5, 3)
    assert (second.rss_bytes, second.oldest_request_s) == (4096, 0.5)
    assert shot.slow == {2: slow}
    story.step(f.Died(102, 1002, None, 9), 8.0)
    assert snapshot(story, 8.0).slow == {}


def test_the_state_of_the_cluster():
    """starting, running, degraded while a slot cannot be filled, running again, stopping."""
    story = Story(workers=1)
    assert snapshot(story, 0.0).state == "starting"
    story.run_up()
    assert snapshot(story, 0.0).state == "running"
    story.step(f.Died(101, 1001, None, 9), 8.0)
    assert snapshot(story, 8.0).state == "running"
    assert snapshot(story, 8.0).workers == ()  # the replacement was only asked for
    story.become(2, "online", 8.0)
    story.step(f.Died(102, 1002, 1, None), 9.0)
    assert snapshot(story, 9.0).state == "degraded"
    story.step(f.Ticked(), 10.0)
    story.become(3, "ready", 10.0)
    assert snapshot(story, 10.0).state == "running"
    assert snapshot(story, 10.0).workers[0].restarts == 2
    story.step(f.Stop(quick=False), 11.0)
    assert snapshot(story, 11.0).state == "stopping"


def test_a_new_master_knows_of_it_as_well():
    """Of a cluster that is not whole: starting, as long as nothing has failed; then degraded, and whole at last."""
    story = Story(workers=2)
    story.step(f.Started((worker(1, state="ready"),), frozenset(), (1,)), 0.0)
    story.step(f.Synced((), True), 0.0)
    assert snapshot(story, 0.0).state == "starting"
    story.become(2, "online", 1.0)
    story.step(f.Died(102, 1002, 1, None), 1.0)
    assert snapshot(story, 1.0).state == "degraded"
    story.step(f.Ticked(), 10.0)
    story.become(1, "ready", 10.0)
    story.become(3, "ready", 10.0)
    assert snapshot(story, 10.0).state == "running"


def test_the_size_of_the_cluster_before_does_not_count():
    """Crashes in a slot that is no more do not make the cluster degraded."""
    story = Story(workers=1)
    story.step(f.Started((worker(1, state="ready"), worker(2, state="online")), frozenset(), (1,)), 0.0)
    story.step(f.Died(102, 1002, 1, None), 1.0)
    assert snapshot(story, 1.0).state == "running"


def test_a_worker_before_its_first_second_is_not_older_than_nothing():
    """An age is never below zero, even when the clock read before the fork was told is used."""
    story = Story(workers=1)
    story.run_up(5.0)
    assert snapshot(story, 4.9).workers[0].uptime_s == 0.0


def test_the_settings_come_from_the_options():
    """Every option the fleet knows by name is taken over; what is no option keeps its default."""
    config = Config("app:app", workers=5, hang_timeout_s=7.0, restart_limit=3)
    settings = FleetSettings.of(config)
    assert (settings.workers, settings.hang_timeout_s, settings.restart_limit) == (5, 7.0, 3)
    assert settings.crash_loop_limit == FleetSettings(workers=5).crash_loop_limit


def test_who_is_there():
    """Each worker with its slot and whether it serves, one that was only asked for too; and the id of the next."""
    story = Story(workers=2)
    story.run_up()
    story.step(f.Died(101, 1001, None, 9), 8.0)
    assert who_is_there(story.fleet) == ({2: (1, True), 3: (0, False)}, 4)


def test_why_a_slot_is_empty():
    """The code cannot be imported any more, so there is no worker for it."""
    story = Story(workers=1)
    story.run_up()
    story.step(f.ZygoteDied(1, None, 9), 8.0)
    story.step(f.ZygoteUp(1), 8.0)
    story.step(f.ImportFailed(1, "SyntaxError"), 8.0)
    assert snapshot(story, 8.0).vacant == {}
    story.step(f.Died(101, 1001, None, 9), 9.0)
    assert snapshot(story, 9.0).vacant == {0: "the application cannot be imported any more"}


def test_stuck_requests_are_noted():
    """One, and more than one, in words."""
    story = Story(workers=2)
    story.run_up()
    for id_, stuck in ((1, 1), (2, 3)):
        story.step(f.Heard(id_, Beat(100, 1, 5, 3, 4096, 0.5, 0.01, stuck=stuck)), 1.0)
    assert [worker.note for worker in snapshot(story, 1.0).workers] == ["1 stuck request", "3 stuck requests"]


def test_what_was_refused_is_summed_over_the_workers():
    """By reason; what a worker says it is, is never more than a message can carry, nor less than nothing."""
    story = Story(workers=2)
    story.run_up()
    assert snapshot(story, 1.0).refused == {}
    for id_, refused in ((1, {"slow": 2, "below": -7, "large": 2**63 - 1}), (2, {"slow": 3, "large": 2**63 - 1})):
        story.step(f.Heard(id_, Beat(100, 1, 5, 3, 4096, 0.5, 0.01, refused=refused)), 1.0)
    assert snapshot(story, 1.0).refused == {"slow": 5, "below": 0, "large": 2**63 - 1}


def test_slots_and_members_are_told():
    """Which slots are open, and who can be written to, where that was asked for."""
    story = Story(workers=3)
    members = Members(1, 1, {1: (0, True)}, {"handle:1-a": True}, 2)
    assert snapshot(story, 0.0).members is None
    shot = snapshot(story, 0.0, members=members)
    assert (shot.slots, shot.members) == ((0, 1, 2), members)


def test_what_an_empty_slot_waits_for():
    """For the import, or for the end of a pause, and how often its workers have failed."""
    story = Story(workers=1)
    story.run_up()
    story.step(f.ZygoteDied(1, None, 9), 8.0)
    story.step(f.ZygoteUp(1), 8.0)
    story.step(f.Died(101, 1001, None, 9), 9.0)
    assert story.fleet.vacancies(9.0) == {0: "the application is being imported"}
    story.step(f.Imported(1), 9.5)
    for id_, failed in ((2, ""), (3, " after 2 failures in a row"), (4, " after 3 failures in a row")):
        assert story.fleet.vacancies(10.0) == {}
        story.become(id_, "forked", 10.0 * id_)
        story.step(f.Died(100 + id_, 1000 + id_, 1, None), 10.0 * id_)
        wait_s = 0.1 * 2 ** (id_ - 2)
        assert story.fleet.vacancies(10.0 * id_) == {0: f"next attempt in {wait_s:.1f} s{failed}"}
        assert story.fleet.vacancies(10.0 * id_ + 9.0) == {0: f"next attempt in 0.0 s{failed}"}
        story.step(f.Ticked(), 10.0 * id_ + 9.0)
