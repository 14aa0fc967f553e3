"""What a handle and its workers say to each other; handles beside each other; threads beside each other."""

import contextlib
import os
import subprocess
import sys
import threading

import pytest
from handle_rig import HERE, ROOT, get, ready, record, until

import zcluster
from zcluster import BusError, Cluster, ClusterError


def test_all_messages_come_before_the_exit(talking):
    """A thousand small ones before sys.exit, and before worker.disconnect: all, in order, then the exit."""
    told = []
    with talking as cluster:
        record(cluster, told, "message", "exit")
        workers = {"exit": cluster.workers[1], "disconnect": cluster.workers[2]}
        for end, worker in workers.items():
            worker.send({"say": 1000, "then": end})
        for worker in workers.values():
            worker.wait_for("exit")
            assert (worker.exited_after_disconnect, worker.exitcode) == (True, 0)
        until(lambda: sum(entry[0] == "exit" for entry in told) == 2)
        for worker in workers.values():
            its = [entry for entry in told if entry[1] is worker]
            assert [entry[2] for entry in its[:1000]] == list(range(1000))
            assert [entry[0] for entry in its[1000:]] == ["message", "exit"]
        cluster.wait_for(lambda: set(ready(cluster)) == {0, 1})
        assert cluster.dropped == {}


def test_what_is_said_before_anybody_listens_is_kept(talking):
    """A handle that started its cluster reads it when it begins to listen; a worker's own function gets its own."""
    with talking as cluster:
        one, two = cluster.workers[1], cluster.workers[2]
        for number in range(10):
            one.send(f"one {number}").result(10)
            two.send(f"two {number}").result(10)
        cluster.wait_for(lambda: cluster._news.count("message") == 20)
        own, all_ = [], []
        two.on("message", own.append)
        until(lambda: own == [f"two {number}" for number in range(10)])
        cluster.on("message", lambda worker, payload: all_.append((worker.id, payload)))
        until(lambda: all_ == [(1, f"one {number}") for number in range(10)])
        with Cluster.attach(run_dir=cluster.settings["run_dir"]) as other:
            heard = []
            other.on("message", lambda worker, payload: heard.append((worker.id, payload)))
            two.send("to both").result(10)
            until(lambda: heard == [(2, "to both")] and all_[-1] == (2, "to both") and own[-1] == "to both")


def test_requests_and_topics(talking):
    """The handle asks and is asked, publishes and subscribes; and so do the functions of the package."""
    with talking as cluster:
        cluster.on("message", lambda worker, payload: worker and [worker.id, payload])
        assert cluster.request(1, {"ask": "master-handle", "about": "you"}, 10) == [1, "you"]
        replies, missing = cluster.gather("roll call", "here?", 10)
        assert (replies, missing) == ({1: ["here?", 0], 2: ["here?", 1]}, {})
        heard, also_heard = [], []
        assert cluster.subscribe("news", heard.append) == heard.append

        @zcluster.subscribe("news")
        def note(payload):
            also_heard.append(payload)

        try:

            def published():
                zcluster.publish("news", "extra").result(10)
                return heard and also_heard

            until(published)  # what was published before our socket had subscribed is not for us
        finally:
            zcluster.current.subscriptions.unsubscribe("news", note)
        assert zcluster.gather("roll call", 1, 10).missing == {}
        with pytest.raises(zcluster.NoReply):
            cluster.request("slot:9", "anybody?", 0.05)
        with pytest.raises(BusError, match="topic"):
            cluster.subscribe("")
        with Cluster.attach(run_dir=cluster.settings["run_dir"], messages=False) as silent:
            with pytest.raises(ClusterError, match="without messages"):
                silent.publish("news", 1)
            with pytest.raises(ClusterError, match="without messages"):
                silent.workers[1].send(1)
            with pytest.raises(ClusterError, match=r"use cluster\.publish"):
                zcluster.publish("news", "by whom?")
    with pytest.raises(ClusterError, match="not open"):
        cluster.publish("news", 1)


def test_a_handle_that_is_killed_takes_nothing_with_it(options):
    """The workers go on, talk to the handles that are left, and leave in an orderly way without waiting for it."""
    with Cluster("talking_app:app", **{**options, "graceful_timeout_s": 20}) as cluster:
        heard = []
        cluster.on("message", lambda worker, payload: heard.append(payload))
        code = (
            "from zcluster import Cluster\n"
            f"cluster = Cluster.attach(run_dir={options['run_dir']!r})\n"
            "cluster.on('message', lambda worker, payload: print(payload, flush=True))\n"
            "print('ready', flush=True)\n"
            "cluster.wait()\n"
        )
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(
            [sys.executable, "-c", code], cwd=HERE, env=environ, stdout=subprocess.PIPE, text=True
        ) as program:
            assert program.stdout.readline() == "ready\n"
            cluster.workers[1].send("hello")
            assert program.stdout.readline() == "hello\n"
            program.kill()
        cluster.workers[2].send("still there?")
        until(lambda: heard == ["hello", "still there?"])
        assert get(cluster.url) == "ok"
        cluster.disconnect()
        assert cluster.fork().wait_for("listening").slot == 0


def test_many_threads_use_one_handle(talking):
    """Forks, messages, snapshots, disconnects from ten threads: each gets its own, all is as asked in the end."""
    with talking as cluster:
        failures, workers = [], []

        def use(number):
            try:
                worker = cluster.fork({"COLOR": str(number)})
                workers.append(worker)
                assert worker.wait_for("listening").send(bytes(number)).result(20) is None
                assert any(one["id"] == worker.id for one in cluster.snapshot()["workers"])
                if number % 2:
                    worker.disconnect().wait_for("exit")
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=use, args=(number,)) for number in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert len({worker.id for worker in workers}) == len(workers) == 10
        assert len(cluster.workers) == 2 + 5
        with contextlib.suppress(ClusterError):
            cluster.workers[1].wait_for("exit", timeout_s=0.01)
