"""The life of workers, as Node's users know it: T01 to T14 on one cluster."""

import os
import signal

import pytest
from conformance_rig import STAGES, Gate, Load, Told, cluster_of, end_of, get, in_slot, is_alive, until, whole

from zcluster import Counter

SLOTS = 3


@pytest.fixture(scope="module")
def shared():
    """One cluster for all, and what is told of it from its first worker on."""
    with cluster_of(workers=SLOTS) as cluster:
        cluster.told = Told(cluster)
        yield cluster


@pytest.fixture
def three(shared):
    """The cluster, with three ready workers."""
    return whole(shared, SLOTS)


def leave_by(three, path):
    """Have some worker answer a request that ends it; returns it, and waits for its replacement."""
    before = dict(three.workers)
    try:
        get(three, path)
    except OSError:
        pass  # those that take the connection with them
    three.wait_for(lambda: set(before) - set(three.workers), 20)
    (gone,) = set(before) - set(three.workers)
    return before[gone]


def test_t01_each_event_once_and_in_order(three):
    """fork, online, listening, disconnect, exit: each once, for the same Worker, whose own callbacks come first."""
    worker = three.fork()
    three.told.listen_to(worker)
    worker.wait_for("listening", 20)
    until(lambda: "worker listening" in three.told.of(worker))
    worker.disconnect()
    told = three.told.await_exit(worker)
    assert [event for event in told if event in STAGES] == list(STAGES)
    assert [event for event in told if event not in STAGES] == [f"worker {event}" for event in STAGES[1:]]
    assert told[-4:] == ["worker disconnect", "disconnect", "worker exit", "exit"]
    assert all(other is worker for _, other in three.told.all if other.id == worker.id)


def test_t02_an_id_is_never_used_again(three):
    """A replacement has a new id and the old slot, a fork the next of both; `workers` has the living."""
    before = dict(three.workers)
    last = max([*before, *(worker.id for _, worker in three.told.all)])
    victim = in_slot(three, 1)
    victim.kill(signal.SIGKILL)
    three.wait_for(lambda: victim.is_dead() and any(w.slot == 1 for w in three.workers.values()), 20)
    replacement = in_slot(three, 1)
    forked = three.fork()
    assert replacement.id == last + 1
    assert (forked.id, forked.slot) == (replacement.id + 1, SLOTS)
    assert sorted(three.workers) == sorted({*before, replacement.id, forked.id} - {victim.id})


def test_t05_a_worker_is_disconnected(three):
    """It exits with code 0 and its flag set, its process is gone, and of the requests meanwhile none fails."""
    worker = in_slot(three, 2)
    with Load(three) as load:
        worker.disconnect()
        assert end_of(three, worker) == (0, None)
        load.more()
    assert load.failed == []
    assert worker.exited_after_disconnect is True
    assert worker.reason
    assert not is_alive(worker.pid)
    assert sorted(w.slot for w in three.workers.values()) == [0, 1]


def test_t06_a_worker_disconnects_itself(three):
    """The request in which it does so is answered; it exits with code 0 and its flag set, and is replaced."""
    before = dict(three.workers)
    assert get(three, "/leave") == "leaving"
    three.wait_for(lambda: set(before) - set(three.workers), 20)
    (gone,) = set(before) - set(three.workers)
    assert end_of(three, before[gone]) == (0, None)
    assert before[gone].exited_after_disconnect is True
    three.wait_for(lambda: len(three.workers) == SLOTS, 20)


def test_t07_an_exit_code_is_told(three):
    """`os._exit(42)`: (42, None), disconnect and exit once, the flag not set, the process gone."""
    worker = leave_by(three, "/os_exit?42")
    assert (worker.exitcode, worker.signal) == (42, None)
    assert worker.exited_after_disconnect is False
    assert "42" in worker.reason
    assert [event for event in three.told.await_exit(worker) if event in STAGES[3:]] == ["disconnect", "exit"]
    assert not is_alive(worker.pid)


@pytest.mark.parametrize("by_handle", [True, False])
def test_t08_sigkill_is_told(three, by_handle):
    """By the handle or by anybody: (None, 9), the flag not set, not in `workers` when its exit is told."""
    worker = in_slot(three, 0)
    listed = []
    worker.on("exit", lambda: listed.append(worker.id in three.workers))
    if by_handle:
        assert worker.kill(signal.SIGKILL)
    else:
        os.kill(worker.pid, signal.SIGKILL)
    assert end_of(three, worker) == (None, signal.SIGKILL)
    assert worker.exited_after_disconnect is False
    assert until(lambda: listed) == [False]


def test_t10_the_flags_of_a_worker(three):
    """Connected from its fork until its disconnect; dead in its exit and not before."""
    flags = []
    worker = three.fork()
    assert (worker.is_connected(), worker.is_dead(), worker.exited_after_disconnect) == (True, False, None)
    worker.wait_for("listening", 20)
    assert (worker.is_connected(), worker.is_dead(), worker.exited_after_disconnect) == (True, False, None)
    worker.on("disconnect", lambda: flags.append(worker.is_connected()))
    worker.on("exit", lambda: flags.append(worker.is_dead()))
    worker.disconnect()
    until(lambda: len(flags) == 2)
    assert flags == [False, True]


def test_t11_who_left_voluntarily(three):
    """Set by disconnect from either side and by a TERM, which means "drain" here; not by an exit code or a KILL."""
    asked = in_slot(three, 2)
    asked.disconnect()
    termed, killed = in_slot(three, 0), in_slot(three, 1)
    termed.kill()
    killed.kill(signal.SIGKILL)
    ends = [end_of(three, worker) for worker in (asked, termed, killed)]
    assert ends == [(0, None), (0, None), (None, signal.SIGKILL)]
    assert [w.exited_after_disconnect for w in (asked, termed, killed)] == [True, True, False]
    whole(three, SLOTS)
    itself = leave_by(three, "/terminate")
    assert (itself.exitcode, itself.exited_after_disconnect) == (0, True)
    whole(three, SLOTS)
    exited = leave_by(three, "/os_exit?1")
    assert (exited.exitcode, exited.exited_after_disconnect) == (1, False)


def test_t13_a_worker_decides_its_exit_code(three):
    """Its own disconnect callback runs before it leaves; SystemExit there is the exit code."""
    worker = in_slot(three, 1)
    worker.send({"do": "exit code", "code": 42}).result(20)
    worker.disconnect()
    assert end_of(three, worker) == (42, None)


def test_t14_a_leaving_worker_is_listed_until_it_exits(three, tmp_path):
    """While it finishes a request it stands in `workers` as draining; afterwards it does not."""
    with Gate(three, tmp_path) as gate:
        worker = gate.worker
        worker.disconnect()
        three.wait_for(lambda: worker.state == "draining", 20)
        assert three.workers[worker.id] is worker
        assert gate.open() == b"whole"
    assert end_of(three, worker) == (0, None)
    assert worker.id not in three.workers


def test_t18_storms(three):
    """Everybody is told to leave, some twice, some while they start or are killed: all exit, nothing is an error."""
    for _ in range(2):
        three.fork()
    young = three.fork()
    victims = list(three.workers.values())
    for worker in victims:
        if worker.id % 2 and worker is not young:
            worker.kill(signal.SIGKILL)
        worker.disconnect()
        worker.disconnect()
    ends = {end_of(three, worker) for worker in victims}
    assert ends <= {(0, None), (None, signal.SIGKILL)}
    three.disconnect()  # who had died before it was told to leave has been replaced
    assert three.workers == {}
    assert three.told.errors() == []


def test_t19_disconnect_of_all_in_a_disconnect(three, caplog):
    """From the callback of the first that leaves: who has gone already is no error, and the end of all is told."""
    done = []
    first = in_slot(three, 0)
    first.on("disconnect", lambda: three.disconnect(lambda: done.append(dict(three.workers))))
    first.disconnect()
    assert until(lambda: done) == [{}]
    assert not [record for record in caplog.records if record.exc_info]


def test_the_total_is_whole_after_all_that(three):
    """What these tests did to workers cost no increment."""
    with pytest.raises(Exception, match="counters"):
        Counter("requests").incr()  # a handle is no part of the cluster
    before = int(get(three, "/value"))
    assert [int(get(three, "/count")) for _ in range(5)] == list(range(before + 1, before + 6))
