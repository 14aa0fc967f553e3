"""The fixtures in use: clusters that are killed, stopped and looked at, and of which nothing is left."""

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from zcluster import AppError, ClusterError, Counter
from zcluster.testing import RunningCluster, leftovers, running
from zcluster.unix import process

pytestmark = pytest.mark.zcluster("wire_app:app")
hits = Counter("hits")


@pytest.mark.zcluster(hang_timeout_s=60.0)
def test_workers_are_killed_and_stopped(zcluster):
    """kill -9 returns when the process is gone; nobody is refused, nothing counted is lost, the log tells.

    One that is stopped and continued in time is the same.
    """
    client = zcluster.client
    for _ in range(10):
        assert client.get("/").status_code == 200
    assert zcluster.counters["requests"] == 10
    victims = [zcluster.kill(slot) for slot in (0, 1)]
    assert all((found := process.stat(victim.pid)) is None or found.is_dead for victim in victims)
    assert client.get("/").status_code == 200
    heirs = [zcluster.wait_replaced(victim) for victim in victims]
    assert [heir.slot for heir in heirs] == [0, 1]
    assert zcluster.in_slot(1).id == heirs[1].id
    assert zcluster.counters == {"requests": 11}
    assert victims[0].reason == "killed by signal SIGKILL"
    zcluster.wait_for_log(rf"Worker {victims[1].pid} died\. signal SIGKILL")
    client.get("/print")
    assert "printed by the app\n" in zcluster.log
    with pytest.raises(ClusterError, match="there is no slot 2; this cluster has slots 0 to 1"):
        zcluster.kill(2)
    with pytest.raises(ClusterError, match=r"waited 0\.05 s for 'unheard of' in the log, which is:\n"):
        zcluster.wait_for_log("unheard of", timeout_s=0.05)
    with pytest.raises(ClusterError, match=r"take zcluster\.Cluster\.attach"):
        RunningCluster.attach(zcluster.name)
    same = zcluster.stop_worker(1)
    assert process.stat(same.pid).state == "T"
    assert zcluster.continue_worker(1) is same
    zcluster.wait_for(lambda: process.stat(same.pid).state != "T")
    with pytest.raises(ClusterError, match=r"no worker is stopped in slot 1; stop_worker\(1\) comes first"):
        zcluster.continue_worker(1)
    assert same.id == heirs[1].id
    again = [zcluster.kill(0).id, zcluster.kill(0).id]  # the second kill waits for the replacement
    assert again == [heirs[0].id, max(again)]


@pytest.mark.zcluster(hang_timeout_s=2.0, heartbeat_s=0.05, ledger_tick_s=0.02)
def test_a_stopped_worker_hangs(zcluster):
    """One that is not continued in time is found, killed and replaced."""
    hung = zcluster.stop_worker(1)
    heir = zcluster.wait_replaced(hung)
    assert (heir.slot, hung.is_dead(), "hung" in hung.reason) == (1, True, True)
    assert zcluster.continue_worker(1) is hung


def test_closures_and_several_clusters(zcluster, zcluster_factory):
    """An app that exists in the test only runs in a cluster of its own, beside the one of the marker."""
    word = "closed over"

    def app(environ, start_response):
        hits.incr()
        start_response("200 OK", [])
        return [word.encode()]

    other = zcluster_factory(app, workers=1, name="other", keep_alive_s=60.0, graceful_timeout_s=60.0)
    assert other.client.get("/").text == word
    assert (other.name, next(iter(other.workers.values())).slot, len(zcluster.workers)) == ("other", 0, 2)
    assert other.url != zcluster.url
    assert (other.counters["hits"], dict(zcluster.counters)) == (1, {"requests": 0})
    other.stop()  # in order, and at once: what the client has open is idle
    assert "drain timeout" not in other.log
    assert other.counters["hits"] == 1
    with pytest.raises(ClusterError, match="this handle is not open"):
        other.raw()
    with pytest.raises(AppError, match="no_such_module"):
        zcluster_factory("no_such_module:app")
    zcluster.close()  # a test may let go of it; the fixture ends it all the same


@pytest.mark.zcluster(hang_timeout_s=60.0)
def test_the_end_leaves_nothing(zcluster):
    """Also when the launcher was killed, one worker stands still and another one is in the middle of a request."""
    sock = zcluster.raw()
    sock.sendall(b"GET /sleep HTTP/1.1\r\nHost: x\r\n\r\n")
    zcluster.wait_for(lambda: any(worker["inflight"] for worker in zcluster.snapshot()["workers"]))
    zcluster.stop_worker(0)
    pids = [worker.pid for worker in zcluster.workers.values()]
    found = zcluster.snapshot()
    pids += [found[f"{role}_pid"] for role in ("launcher", "master", "zygote")]
    log, sockets = zcluster.log_path.stat(), leftovers.listening_of(found["launcher_pid"])
    assert zcluster.processes() == sorted(pids)
    assert len(sockets) == 1
    os.kill(found["launcher_pid"], signal.SIGKILL)
    zcluster.end()
    assert not list(leftovers.holders(log, sockets))
    assert not leftovers.listening() & sockets
    assert not Path(zcluster.run_dir).exists()
    assert sock.fileno() == -1
    zcluster.end()


def test_what_is_left_is_named_and_killed(zcluster, monkeypatch):
    """A process that holds the log open for writing is of the cluster; whoever only reads the log is left alone."""
    monkeypatch.setattr(running, "LEAVE_TIMEOUT_S", 1.0)
    with zcluster.log_path.open("ab") as log:
        left = subprocess.Popen(["sleep", "60"], stdout=log)
    with zcluster.log_path.open("rb") as log, subprocess.Popen(["sleep", "60"], stdin=log) as reader:
        with pytest.raises(ClusterError) as raised:
            zcluster.end()
        assert reader.poll() is None
        reader.kill()
    assert left.wait(10) == -signal.SIGKILL
    told = f"process {left.pid} still has the cluster's log open: sleep 60"
    assert str(raised.value) == f"cluster 'wire_app' has not ended as it should: {told}"


def test_who_keeps_a_port_open_is_found(tmp_path):
    """A listening socket is known by its inode, wherever it has been passed on."""
    (tmp_path / "log").touch()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        inode = os.fstat(listener.fileno()).st_ino
        assert inode in leftovers.listening()
        holder = subprocess.Popen(["sleep", "60"], pass_fds=[listener.fileno()])
    (left,) = leftovers.holders((tmp_path / "log").stat(), frozenset([inode]))
    assert str(left) == f"process {holder.pid} still has the cluster's port open: sleep 60"
    assert inode in leftovers.listening()
    holder.kill()
    holder.wait()
    assert inode not in leftovers.listening()
