"""The zygote dies: alone, with a worker, with the master, while it forks. Row 13 of the fault matrix."""

import re
import time

import pytest
from anatomy import by_slot, kill, see, whole
from harness import running
from load import Load

WORKERS = 3


@pytest.fixture
def cluster():
    with running("faults:app", workers=WORKERS) as running_cluster:
        yield running_cluster


def test_the_zygote_is_killed_under_load(cluster):
    """Another one is started, no worker and no request notices, and the next dead worker is replaced."""
    before = see(cluster)
    with Load(cluster.address, clients=3) as load:
        kill(before.zygote)
        ps = whole(cluster, WORKERS, without=[before.zygote])
        assert sorted(w["pid"] for w in ps["workers"]) == before.worker_pids
    load.check(cluster.counters()["requests"])
    cluster.wait_log(r"the zygote of generation 1 died\. signal SIGKILL; starting another now")
    assert (ps["generation"], ps["epoch"]) == (1, 1)
    kill(before.workers[0][0])
    heir = by_slot(whole(cluster, WORKERS, without=before.workers[0]))[0]
    assert (heir["restarts"], heir["generation"]) == (1, 1)
    assert int(cluster.get()) == load.acknowledged + 1


@pytest.mark.parametrize("order", ["zygote worker", "worker zygote"])
def test_zygote_and_worker_are_killed_together(cluster, order):
    """Whichever goes first: the worker is replaced by the next zygote, and its death is told once."""
    before = see(cluster)
    victims = {"zygote": before.zygote, "worker": before.workers[1][0]}
    with Load(cluster.address, clients=2) as load:
        kill(*(victims[name] for name in order.split()))
        ps = whole(cluster, WORKERS, without=victims.values())
    load.check(cluster.counters()["requests"], kills=1)
    assert by_slot(ps)[1]["restarts"] == 1
    assert [by_slot(ps)[slot]["pid"] for slot in (0, 2)] == [before.workers[slot][0] for slot in (0, 2)]
    assert len(re.findall(rf"Worker {victims['worker']} died\. signal SIGKILL", cluster.log)) == 1


@pytest.mark.parametrize("order", ["zygote master", "master zygote", "zygote master worker", "worker master zygote"])
def test_zygote_and_master_are_killed_together(cluster, order):
    """The next master finds no zygote, asks for one, and keeps all living workers; no request fails."""
    before = see(cluster)
    victims = {"zygote": before.zygote, "master": before.master, "worker": before.workers[1][0]}
    doomed = [victims[name] for name in order.split()]
    with Load(cluster.address, clients=2) as load:
        kill(*doomed)
        ps = whole(cluster, WORKERS, without=doomed)
    load.check(cluster.counters()["requests"], kills="worker" in order)
    kept = set(before.worker_pids) - set(doomed)
    assert kept <= {w["pid"] for w in ps["workers"]}
    assert ps["epoch"] == 2
    assert by_slot(ps)[1]["restarts"] == ("worker" in order)
    if "worker" in order:
        assert len(re.findall(rf"Worker {victims['worker']} died\. signal SIGKILL", cluster.log)) == 1


@pytest.mark.parametrize("offsets_ms", [(0.0, 0.5), (1.0, 1.5), (2.0, 3.0), (4.0, 6.0), (8.0, 12.0)])
def test_the_zygote_is_killed_while_it_forks(cluster, offsets_ms):
    """A worker dies, the zygote so many milliseconds later: no slot is lost and none gets two workers."""
    for number, offset_ms in enumerate(offsets_ms, 1):
        before = see(cluster)
        victims = [before.workers[0][0], before.zygote]
        kill(victims[0])
        until = time.monotonic() + offset_ms / 1000
        while time.monotonic() < until:  # not a wait for anything: the moment of the second kill is what is varied
            pass
        kill(victims[1])
        ps = whole(cluster, WORKERS, without=victims)
        assert [by_slot(ps)[slot]["pid"] for slot in (1, 2)] == [before.workers[slot][0] for slot in (1, 2)]
        assert by_slot(ps)[0]["restarts"] >= number
    assert not re.search("Traceback|please report", cluster.log)
