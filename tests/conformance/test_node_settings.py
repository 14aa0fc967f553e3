"""Settings: T40, T41, T58, T60, and Node's names in `zcluster.compat`."""

import os

import pytest
from conformance_rig import FAST, cluster_of, end_of, get, program, until, whole

from zcluster import Cluster, ClusterError, ConfigError


@pytest.fixture(scope="module")
def one():
    """One cluster for all."""
    with cluster_of(workers=1) as cluster:
        yield cluster


def alone(cluster, worker):
    """Have this worker be the only one, so that it answers."""
    for other in list(cluster.workers.values()):
        if other is not worker:
            other.disconnect()
    cluster.wait_for(lambda: list(cluster.workers.values()) == [worker] and worker.state == "ready", 20)
    return worker


def test_t40_the_environment_of_a_fork(one, monkeypatch):
    """fork(env) adds and overrides for that worker and its replacement, and changes nothing for anybody else."""
    before = get(one, "/environ_of?HOME")
    worker = alone(one, one.fork({"HOME": "/new", "Z_ONLY": "1"}))
    assert [get(one, f"/environ_of?{name}") for name in ("HOME", "Z_ONLY")] == ["/new", "1"]
    worker.kill(9)
    one.wait_for(lambda: worker.is_dead() and [w.state for w in one.workers.values()] == ["ready"], 20)
    assert get(one, "/environ_of?HOME") == "/new"
    assert "Z_ONLY" not in os.environ
    alone(one, one.fork())
    assert [get(one, f"/environ_of?{name}") for name in ("HOME", "Z_ONLY")] == [before, "-"]
    assert get(one, "/environ_of_subprocess") == "False"


def test_t60_the_app_is_imported_once(one):
    """Before the fork: its module was imported by the zygote, and by no worker."""
    whole(one, 2)
    zygote = one.snapshot()["zygote_pid"]
    assert get(one, "/imported_by") == str(zygote)
    assert get(one, "/pid") != str(zygote)


def test_t41_settings_are_cumulative(private_base):
    """What a call does not name stays; each call is told once; nonsense is refused by name."""
    cluster = Cluster("conforming:app", **{**FAST, "run_dir": str(private_base)})
    told = []
    cluster.on("setup", told.append)
    cluster.setup(workers=1)
    cluster.setup(threads=2)
    assert (cluster.settings["workers"], cluster.settings["threads"]) == (1, 2)
    assert cluster.settings["bind"] in (FAST["bind"], (FAST["bind"],), [FAST["bind"]])
    with pytest.raises(ConfigError, match="no_such_thing"):
        cluster.setup(no_such_thing=1)
    with cluster:
        assert len(cluster.workers) == 1
        with pytest.raises(ClusterError, match="bind"):
            cluster.setup(bind="127.0.0.1:1")
        cluster.setup(env={"Z_LATER": "1"})
        assert get(cluster, "/environ_of?Z_LATER") == "-"
        alone(cluster, cluster.fork())
        assert get(cluster, "/environ_of?Z_LATER") == "1"
    until(lambda: len(told) == 4)  # two calls, the start, and the call after it
    assert [(settings["workers"], settings["threads"]) for settings in told[1:]] == [(1, 2)] * 3
    assert told[0]["workers"] == 1
    assert [settings["env"] for settings in told] == [{}, {}, {}, {"Z_LATER": "1"}]


PROGRAM = f"""
import sys
from zcluster import Cluster
def hook(*error):
    sys.__excepthook__(*error)
    sys.stdout.flush()
    import os
    os._exit(42)
sys.excepthook = hook
cluster = Cluster("conforming:app", **{{**{FAST!r}, "graceful_timeout_s": 0.5, "run_dir": sys.argv[1]}}).start()
raise RuntimeError("the program's own")
"""


def test_t58_the_programs_own_hook_decides(private_base):
    """An exception that nobody catches, while workers live: the exit code is what the program's hook says."""
    done = program(PROGRAM, private_base)
    assert done.returncode == 42, done.stderr
    assert "the program's own" in done.stderr


NODE_SHAPED = f"""
import sys
from zcluster import compat as cluster

if cluster.is_primary:
    assert cluster.settings == {{}} and cluster.workers == {{}} and not cluster.is_worker and not cluster.worker
    told = []

    def on_message(worker, message):
        told.append((worker.id, message))
        if len(told) <= 2:
            worker.send("again")
        elif len(told) == 4:
            assert [worker.id for worker in workers] == sorted(cluster.workers) == [1, 2]
            cluster.disconnect(lambda: print(len(told), exits, cluster.workers))

    def on_exit(worker, code, signal):
        exits.append((code, signal, worker.exited_after_disconnect))

    exits = []
    cluster.on("message", on_message)
    cluster.on("exit", on_exit)
    cluster.setup_primary(**{{**{FAST!r}, "run_dir": sys.argv[1]}})
    workers = [cluster.fork({{"Z_N": str(number)}}) for number in range(2)]
    for worker in workers:
        worker.send("begin")
else:
    import os

    @cluster.worker.on("message")
    def on_message(message):
        cluster.worker.send([message, os.environ["Z_N"], cluster.is_worker, cluster.is_primary])

    def app(environ, start_response):
        start_response("204 No Content", [])
        return []
"""


def test_the_shape_of_a_node_program(private_base, tmp_path):
    """One file for both kinds of process, with Node's names from `zcluster.compat`; it ends when its workers have."""
    path = tmp_path / "node_shaped.py"
    path.write_text(NODE_SHAPED)
    done = program(path, private_base)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "4 [(0, None, True), (0, None, True)] {}\n"


def test_a_slot_that_was_closed_stays_closed(one):
    """Its worker has left for good: the others serve, nothing is degraded, and only fork or scale open it again."""
    whole(one, 2)
    worker = max(one.workers.values(), key=lambda worker: worker.slot)
    worker.disconnect()
    assert end_of(one, worker) == (0, None)
    assert [w.slot for w in one.workers.values()] == [0]
    assert {get(one) for _ in range(5)} == {str(next(iter(one.workers)))}
    assert one.snapshot()["state"] == "running"
