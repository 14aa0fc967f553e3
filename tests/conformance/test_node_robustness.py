"""What Node leaves to its users: T52 to T54."""

import signal
from contextlib import closing, suppress

import pytest
from conformance_rig import LIMIT_S, Begun, Load, cluster_of, connection, end_of, get, is_alive, stop, until

HANG_S = 3.0  # a busy machine must not keep a healthy worker from running for so long


@pytest.fixture(scope="module")
def counted():
    """A cluster whose requests are counted."""
    with cluster_of(workers=3, hang_timeout_s=HANG_S) as cluster:
        yield cluster


def test_t52_a_stopped_worker_costs_one_client(counted):
    """One of three is stopped: 30 of 30 requests are answered, it is replaced, and its client hears of it."""
    with closing(connection(counted)) as client:
        client.request("GET", "/")
        stopped = counted.workers[int(client.getresponse().read())]
        stop(stopped)
        client.request("GET", "/")  # on the connection that the stopped worker holds
        assert str(stopped.id) not in [get(counted) for _ in range(30)]
        counted.wait_for(stopped.is_dead, LIMIT_S)
        assert (stopped.signal, "hung" in stopped.reason) == (signal.SIGKILL, True)
        with suppress(ConnectionError):  # cut off; or answered: it is let run for a moment to dump its stacks
            assert client.getresponse().read().decode() == str(stopped.id)
    counted.wait_for(lambda: any(w.slot == stopped.slot for w in counted.workers.values()), LIMIT_S)


def test_t53_nobody_is_refused_without_workers():
    """The only worker is killed, three times, while clients connect all the time: no connection is refused."""
    with cluster_of(workers=1) as cluster, Load(cluster, clients=3) as load:
        for _ in range(3):
            (worker,) = cluster.workers.values()
            worker.kill(signal.SIGKILL)
            end_of(cluster, worker)
            cluster.wait_for(lambda: [w.state for w in cluster.workers.values()] == ["ready"], LIMIT_S)
            before = load.answered
            until(lambda: load.answered >= before + 20)  # noqa: B023
    assert not [error for error in load.failed if isinstance(error, ConnectionRefusedError)]


def test_t54_counting_over_deaths_and_reloads(counted):
    """Six workers killed, the code reloaded, under load: what was answered is counted, once, and no total falls."""
    before = int(get(counted, "/value"))
    totals = []
    with Load(counted, clients=4, path="/count") as load:
        for number in range(6):
            workers = [w for w in counted.workers.values() if w.state == "ready"]
            victim = workers[number % len(workers)]
            assert victim.kill(signal.SIGKILL)
            counted.wait_for(victim.is_dead, LIMIT_S)
            counted.wait_for(lambda: len([w for w in counted.workers.values() if w.state == "ready"]) == 3, LIMIT_S)
            totals.append(counted.snapshot()["counters"]["requests"])
            if number == 2:
                counted.reload(timeout_s=LIMIT_S)
    total = counted.snapshot()["counters"]["requests"] - before
    assert totals == sorted(totals)
    assert load.answered - len(load.failed) <= total <= load.answered + len(load.failed)
    assert int(get(counted, "/value")) == before + total
    counted.wait_for(lambda: counted.counters["requests"] == before + total, LIMIT_S)


def test_t25_a_worker_in_c_does_not_outlive_the_cluster():
    """One worker holds the interpreter in C when the cluster is stopped: it is gone when stop() returns."""
    with cluster_of(workers=2, graceful_timeout_s=0.5) as cluster, Begun(cluster, "/regex") as request:
        workers = list(cluster.workers.values())
        cluster.stop()
        assert all(worker.is_dead() for worker in workers)
        assert request.worker.signal == signal.SIGKILL
        assert not [worker.pid for worker in workers if is_alive(worker.pid)]
