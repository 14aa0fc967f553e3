"""Histories of what a link delivers, and what a handle tells its callbacks about them."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcluster.core.joining import Joined, Missed, Refreshed
from zcluster.core.messages import Event, SlowRequest, Snapshot, Totals, WorkerInfo
from zcluster.errors import ClusterError
from zcluster.roster import EXITED_MAX, STAGES, Roster, ps_form


def info(id_, state="ready", **more):
    """A worker in slot `id_`."""
    return WorkerInfo(id=id_, slot=id_ - 1, lane=id_ - 1, generation=1, pid=1000 + id_, start=1, state=state, **more)


def snapshot(*workers, state="running", counters=None, epoch=1):
    """A cluster with these workers."""
    return Snapshot("app", ("http://a:1", "http://b:2"), epoch, 1, state, 10, 11, 12, counters or {}, workers)


def event(kind, worker=None, text=""):
    """Something the master published; numbers are the link's business."""
    return Event(1, 0, kind, worker, text)


def told(roster, *batch):
    """What happened in one batch, as (kind, worker id) pairs."""
    return [(h.kind, h.worker.id if h.worker else None) for h in roster.take(batch)]


@pytest.fixture
def roster():
    """A roster that has joined a cluster without workers."""
    empty = Roster()
    assert told(empty, Joined(snapshot(state="starting"), False)) == [("setup", None)]
    return empty


def test_present_workers_are_replayed():
    """The first snapshot tells of each worker what must have happened to it."""
    roster = Roster()
    there = snapshot(info(3, "draining"), info(1), info(2, "online"), info(4, "forked"), info(5, "asked"))
    assert told(roster, Joined(there, False)) == [
        ("setup", None),
        *(("fork", 1), ("online", 1), ("listening", 1)),
        *(("fork", 2), ("online", 2)),
        *(("fork", 3), ("online", 3), ("listening", 3)),
        ("fork", 4),
    ]
    assert sorted(roster.workers) == [1, 2, 3, 4]
    assert roster.running


def test_a_whole_life(roster):
    """The order is that of Node's cluster module, and the worker shows how it went."""
    died = info(1, "dead", exitcode=None, signal=9, reason="killed by SIGKILL")
    kinds = ["fork", "online", "listening"]
    assert told(roster, *(event(kind, info(1, kind)) for kind in kinds)) == [(kind, 1) for kind in kinds]
    worker = roster.workers[1]
    assert worker.is_connected()
    assert not worker.is_dead()
    assert told(roster, event("disconnect", info(1))) == [("disconnect", 1)]
    assert not worker.is_connected()
    assert told(roster, event("exit", died)) == [("exit", 1)]
    assert (worker.exitcode, worker.signal, worker.reason) == (None, 9, "killed by SIGKILL")
    assert (worker.is_dead(), worker.state, roster.workers) == (True, "dead", {})


def test_nothing_is_told_twice(roster):
    """Repeated and late events change nothing."""
    told(roster, *(event(kind, info(1)) for kind in ("fork", "online", "listening")))
    assert told(roster, event("online", info(1)), event("listening", info(1))) == []
    told(roster, event("exit", info(1, "dead", exitcode=0)))
    assert told(roster, event("exit", info(1)), event("fork", info(1)), Refreshed(snapshot(info(1)))) == []
    assert roster.workers == {}


def test_what_lies_between_is_told_too(roster):
    """A missed event is made up for by the next one of that worker."""
    assert told(roster, event("listening", info(1))) == [("fork", 1), ("online", 1), ("listening", 1)]
    assert told(roster, event("exit", info(1))) == [("disconnect", 1), ("exit", 1)]


def test_a_worker_that_never_came_online_does_not_disconnect(roster):
    """It failed to boot: fork, then exit."""
    assert told(roster, event("fork", info(1, "forked")), event("exit", info(1, "dead", exitcode=3))) == [
        ("fork", 1),
        ("exit", 1),
    ]


def test_a_gap_is_closed_by_the_snapshot(roster):
    """Workers that are gone exit without a known code, workers that are new are adopted, after the batch's events."""
    told(roster, *(event("listening", info(n)) for n in (1, 2, 3)))
    batch = (
        Refreshed(snapshot(info(3), info(4))),
        Missed(7, 9),
        event("exit", info(2, "dead", signal=15)),
        event("fork", info(5, "forked")),  # newer than the snapshot, so not in it
    )
    worker = roster.workers[1]
    assert told(roster, *batch) == [
        *(("disconnect", 2), ("exit", 2), ("fork", 5)),
        *(("fork", 4), ("online", 4), ("listening", 4)),
        *(("disconnect", 1), ("exit", 1)),
    ]
    assert (worker.is_dead(), worker.exitcode, worker.signal) == (True, None, None)
    assert worker.reason == "its exit was missed"
    assert sorted(roster.workers) == [3, 4, 5]


def test_a_new_master_changes_nothing_for_the_living(roster):
    """Joining again under the next epoch replays nobody."""
    told(roster, *(event("listening", info(n)) for n in (1, 2)))
    assert told(roster, Joined(snapshot(info(1), info(2), epoch=2), True)) == []


def test_the_end_takes_everybody(roster):
    """Who was still there when the cluster ended has exited; a disconnect heard of before makes it voluntary."""
    told(roster, event("listening", info(1)), event("disconnect", info(2)))
    one, two = roster.workers[1], roster.workers[2]
    assert [(h.kind, h.worker) for h in roster.end()] == [("disconnect", one), ("exit", one), ("exit", two)]
    assert (one.exited_after_disconnect, two.exited_after_disconnect) == (False, True)
    assert (roster.workers, roster.end()) == ({}, [])


def test_errors_name_their_worker(roster):
    """An error about a worker never heard of forks it first; one about nobody has no worker."""
    happened = roster.take([event("error", info(1), "hung"), event("error", None, "no zygote")])
    assert [(h.kind, h.text, h.worker.id if h.worker else None) for h in happened] == [
        ("fork", "", 1),
        ("error", "hung", 1),
        ("error", "no zygote", None),
    ]


def test_running_is_remembered(roster):
    """The cluster has been ready once: by event or by snapshot."""
    assert not roster.running
    assert told(roster, event("running")) == [("running", None)]
    assert roster.running


def test_a_snapshot_that_was_asked_for_tells_of_the_newborn(roster):
    """Before their events come, which then say nothing new; who is not in it is no more gone than before."""
    told(roster, event("listening", info(1)))
    born = snapshot(info(2, "forked"), info(3))
    assert [(h.kind, h.worker.id) for h in roster.adopt(born)] == [
        *(("fork", 2), ("fork", 3), ("online", 3), ("listening", 3)),
    ]
    assert told(roster, *(event(kind, info(3)) for kind in ("fork", "online", "listening"))) == []
    assert sorted(roster.workers) == [1, 2, 3]


def test_workers_are_found_by_id_and_by_slot(roster):
    """Also those that are gone; the next one of a slot is the oldest of those that came after."""
    assert (roster.find(1), roster.latest(0, 0)) == (None, None)
    told(roster, event("listening", info(1)), event("exit", info(1, "dead", exitcode=0)))
    again = [msgspec.structs.replace(info(id_), slot=0) for id_ in (5, 7)]
    told(roster, event("listening", again[0]), event("exit", again[0]), event("fork", again[1]))
    assert roster.find(1).exitcode == 0
    assert [roster.latest(0, after).id for after in (0, 1, 4, 5, 6)] == [1, 5, 5, 7, 7]
    assert roster.latest(0, 7) is None


def test_what_is_voluntary_is_known_when_it_disconnects(roster):
    """Nothing before; true for one that drains, false for one that died; the exit has the last word."""
    told(roster, *(event("listening", info(n)) for n in (1, 2)))
    one, two = roster.workers[1], roster.workers[2]
    assert (one.exited_after_disconnect, one.is_connected()) == (None, True)
    told(roster, event("disconnect", info(1, "draining")), event("disconnect", info(2, "dead")))
    assert (one.exited_after_disconnect, two.exited_after_disconnect) == (True, False)
    told(roster, event("exit", info(1, "dead", exitcode=0, exited_after_disconnect=True)))
    assert (one.exited_after_disconnect, one.is_connected()) == (True, False)


def test_a_worker_without_a_handle_says_so(roster):
    """It can be looked at, but neither spoken nor listened to."""
    told(roster, event("listening", info(1)))
    with pytest.raises(ClusterError, match="worker 1 belongs to no handle"):
        roster.workers[1].send("hello")


def test_totals_never_fall(roster):
    """A snapshot that is older than a total it meets does not lower it."""
    told(roster, Totals(1, 1, {"a": 5, "b": 1}), Refreshed(snapshot(counters={"a": 4, "c": 9})))
    assert roster.totals == {"a": 5, "b": 1, "c": 9}


def test_memory_of_the_dead_is_bounded(roster):
    """A cluster that replaces workers for years does not fill the handle."""
    for number in range(1, EXITED_MAX + 10):
        told(roster, event("exit", info(number)))
    assert len(roster._exited) == EXITED_MAX
    assert roster.workers == {}


def test_signals_go_only_to_the_process_that_is_meant(roster):
    """A pid that is somebody else's by now is not signalled, and one not yet born is an error."""
    import os

    told(roster, event("fork", msgspec.structs.replace(info(1), pid=os.getpid(), start=1)))
    assert roster.workers[1].kill(0) is False
    told(roster, event("fork", msgspec.structs.replace(info(2), pid=0)))
    with pytest.raises(ClusterError, match="worker 2 has not been forked yet"):
        roster.workers[2].kill()


def test_ps_json_has_exactly_the_promised_keys():
    """The keys are the contract; a tuple becomes a list, url is the first of urls."""
    form = ps_form(snapshot(info(1), counters={"a": 1}))
    assert set(form) == {
        *("name", "url", "urls", "epoch", "generation", "state", "launcher_pid", "master_pid", "zygote_pid"),
        *("counters", "workers", "refused", "slots", "vacant"),
    }
    assert form["url"] == "http://a:1"
    assert form["urls"] == ["http://a:1", "http://b:2"]
    assert set(form["workers"][0]) == {
        *("id", "slot", "lane", "pid", "state", "generation", "requests", "inflight", "connections", "threads"),
        *("rss_bytes", "uptime_s", "restarts", "oldest_request_s", "note", "slow"),
    }


def test_ps_json_names_slow_requests():
    """With the worker that runs them; of a worker that is gone, nothing."""
    slow = {
        2: (SlowRequest("GET", "/report", 2.5), SlowRequest("POST", "/", 1.1)),
        9: (SlowRequest("GET", "/", 1.0),),
    }
    form = ps_form(msgspec.structs.replace(snapshot(info(1), info(2)), slow=slow))
    assert [worker["slow"] for worker in form["workers"]] == [
        [],
        [{"method": "GET", "path": "/report", "age_s": 2.5}, {"method": "POST", "path": "/", "age_s": 1.1}],
    ]


STATES = st.sampled_from(["asked", "forked", "online", "ready", "suspect", "hung", "draining"])
WORKERS = st.builds(info, st.integers(1, 5), STATES)
ITEMS = st.one_of(
    st.builds(event, st.sampled_from([*STAGES, "error", "running"]), WORKERS),
    st.lists(WORKERS, max_size=4, unique_by=lambda w: w.id).map(lambda ws: Refreshed(snapshot(*ws))),
    st.lists(WORKERS, max_size=4, unique_by=lambda w: w.id).map(lambda ws: Joined(snapshot(*ws), True)),
)


@given(st.lists(st.lists(ITEMS, max_size=5), max_size=20))
def test_every_worker_moves_forward_through_its_stages(batches):
    """Whatever arrives in whatever order: each stage once, in order, exit last, and only the living in `workers`."""
    roster = Roster()
    roster.take([Joined(snapshot(), False)])
    lives = {}
    for batch in batches:
        for happening in roster.take(batch):
            if happening.kind in STAGES:
                lives.setdefault(happening.worker.id, []).append(STAGES[happening.kind])
        for stages in lives.values():
            assert stages == sorted(set(stages))
            assert stages[0] == STAGES["fork"]
        living = {id_ for id_, stages in lives.items() if stages[-1] != STAGES["exit"]}
        assert set(roster.workers) == living
