"""Leaving without harm, and what becomes of workers whose primary ends: T09, T15 to T17, T20 to T25."""

import os
import signal
import threading

import pytest
from conformance_rig import (
    FAST,
    Begun,
    Gate,
    cluster_of,
    connection,
    end_of,
    get,
    is_alive,
    program,
    until,
    whole,
)

SLOTS = 2


@pytest.fixture(scope="module")
def shared():
    """One cluster for the tests that leave it whole."""
    with cluster_of(workers=SLOTS, graceful_timeout_s=1.0, keep_alive_s=5.0) as cluster:
        yield cluster


@pytest.fixture
def two(shared):
    """The cluster, with two ready workers."""
    return whole(shared, SLOTS)


@pytest.mark.parametrize("path", ["/spin", "/regex"])
def test_t09_an_endless_loop_is_ended(two, path):
    """In Python, or in C with the interpreter held: told to leave, it is killed when --graceful-timeout is over."""
    with Begun(two, path) as request:
        request.worker.disconnect()
        assert end_of(two, request.worker) == (None, signal.SIGKILL)
    assert get(two)


def test_t15_all_leave_and_all_come_back(tmp_path):
    """Eight workers with two ports, twice: the callback comes when the last has gone, and nothing is left open."""
    fds = []
    with cluster_of(workers=8, bind=("127.0.0.1:0", "127.0.0.1:0")) as cluster:
        for _ in range(2):
            assert all(get(cluster, url=url).isdigit() for url in cluster.urls)
            workers = list(cluster.workers.values())
            done = []
            with Gate(cluster, tmp_path) as gate:
                cluster.disconnect(lambda: done.append([worker.is_dead() for worker in workers]))  # noqa: B023
                cluster.wait_for(lambda: len(cluster.workers) == 1, 20)
                assert list(cluster.workers.values()) == [gate.worker]
                assert not done
                assert gate.open() == b"whole"
            assert until(lambda: done) == [[True] * 8]  # noqa: B023
            fds.append(len(os.listdir("/proc/self/fd")))
            for _ in range(8):
                cluster.fork()
            whole(cluster, 8)
    assert fds[0] == fds[1]


def test_t16_disconnect_without_workers(two):
    """Returns at once, and calls back from the thread of callbacks, never in the middle of the call."""
    two.disconnect()
    assert two.workers == {}
    threads = []
    two.disconnect(lambda: threads.append(threading.current_thread()))
    assert until(lambda: threads) != [threading.current_thread()]


def test_t17_disconnect_at_once_after_fork(two):
    """A worker that is told to leave before it serves does so, with code 0, and is in no list afterwards."""
    worker = two.fork()
    worker.disconnect()
    assert end_of(two, worker) == (0, None)
    assert worker.exited_after_disconnect
    assert worker.id not in two.workers


def test_t20_a_request_in_flight_is_answered(two, tmp_path):
    """The worker waits for its client, new connections go to the others meanwhile, and then it exits with code 0."""
    with Gate(two, tmp_path) as gate:
        worker = gate.worker
        others = {str(other) for other in two.workers} - {str(worker.id)}
        worker.disconnect()
        two.wait_for(lambda: worker.state == "draining", 20)
        until(lambda: {get(two) for _ in range(10)} <= others)
        assert gate.open() == b"whole"
    assert end_of(two, worker) == (0, None)


def test_t21_an_idle_connection_does_not_hold_up_a_drain(two):
    """Its next request is answered with `Connection: close`: a client that is about to write loses nothing."""
    client = connection(two)

    def ask():
        client.request("GET", "/")
        response = client.getresponse()
        return int(response.read()), response.getheader("Connection")

    worker = two.workers[ask()[0]]
    worker.disconnect()
    answers = []
    until(
        lambda: answers.append(ask()) or answers[-1] == (worker.id, "close")
    )  # until it has heard that it is to leave
    assert set(answers[:-1]) <= {(worker.id, None)}
    client.close()
    assert end_of(two, worker) == (0, None)


PRIMARY = f"""
import os, sys
from zcluster import Cluster
options = {{**{FAST!r}, "graceful_timeout_s": 0.5, "run_dir": sys.argv[1]}}
with Cluster("conforming:app", **options) as cluster:
    print(*(worker.pid for worker in cluster.workers.values()), cluster.snapshot()["launcher_pid"], flush=True)
    END
"""


@pytest.mark.parametrize(
    ("end", "code"), [("os._exit(0)", 0), ("raise RuntimeError('primary')", 1), ("os.kill(os.getpid(), 9)", -9)]
)
def test_t23_workers_end_with_their_primary(private_base, end, code):
    """However the program that started the cluster ends, nothing of the cluster is left."""
    done = program(PRIMARY.replace("END", end), private_base)
    assert done.returncode == code, done.stderr
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == FAST["workers"] + 1
    until(lambda: not [pid for pid in pids if is_alive(pid)])
