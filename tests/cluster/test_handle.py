"""What a handle can do to a cluster and hear of it, in Node's order and with its arguments, on real clusters."""

import contextlib
import os
import signal
import threading

import pytest
from handle_rig import KINDS, get, ready, record, until

from zcluster import BusError, Cluster, ClusterError, ConfigError, PeerGone, ReloadFailed


def test_the_life_of_one_worker(talking):
    """Its own callbacks come before the cluster's, with Node's arguments; ids grow, slots are taken over."""
    told = []
    record(talking, told)
    with talking as cluster:
        worker = cluster.fork()
        assert (worker.id, worker.slot, worker.is_connected(), worker.is_dead()) == (3, 2, True, False)
        assert worker.exited_after_disconnect is None
        for kind in (*KINDS, "message"):
            worker.on(kind, lambda *given, kind=kind: told.append((f"own {kind}", *given)))
        worker.wait_for("listening")
        port = int(cluster.url.rpartition(":")[2])
        address = ("127.0.0.1", port, "tcp4", None)
        assert (worker.address, worker.addresses) == (address, (address,))
        assert worker.send("echo").result(10) is None
        until(lambda: ("message", worker, "echo") in told)
        worker.send({"say": 0, "then": "die"})
        worker.wait_for("exit")
        assert (worker.exitcode, worker.signal, worker.exited_after_disconnect) == (42, None, False)
        assert worker.reason == "exited code 42"
        cluster.wait_for(lambda: 2 in ready(cluster))
        assert (ready(cluster)[2].id, worker.id in cluster.workers) == (4, False)
        late = []
        worker.on("exit", lambda code, sig: late.append((code, sig)))
        until(lambda: late == [(42, None)])
        with pytest.raises(PeerGone, match="worker 3 has ended: exited code 42"):
            worker.send("too late").result(0)
        with pytest.raises(ClusterError, match="a worker has no event 'reload'"):
            worker.on("reload", print)
        with pytest.raises(ClusterError, match="there is no signal 'SIGNOPE'"):
            cluster.workers[1].kill("SIGNOPE")
    of_it = [entry for entry in told if entry[0].startswith("own") or entry[1] is worker]
    levels = [entry[0] for entry in of_it if entry[0].removeprefix("own ") not in ("fork", "online")]
    assert levels == [
        *("own listening", "listening", "own message", "message"),
        *("own disconnect", "disconnect", "own exit", "exit"),
    ]
    assert ("own listening", address) in of_it
    assert ("listening", worker, address) in of_it
    assert ("own message", "echo") in of_it
    assert of_it[-2:] == [("own exit", 42, None), ("exit", worker, 42, None)]
    assert sorted(entry[0] for entry in of_it if entry[0].startswith("own")) == sorted(
        f"own {kind}" for kind in (*KINDS, "message")
    )


def test_functions_take_as_much_as_they_want(talking):
    """As in JavaScript; what has a default is the function's own."""
    told = []
    talking.on("exit")(lambda: told.append("none"))
    talking.on("exit", lambda worker: told.append(worker.id))
    talking.on("exit", lambda worker, code: told.append((worker.id, code)))
    talking.on("exit", lambda worker, code, sig, note="mine": told.append((worker.id, code, sig, note)))
    with talking as cluster:
        cluster.workers[1].kill("SIGKILL")
        until(lambda: len(told) >= 4)
        assert told[:4] == ["none", 1, (1, None), (1, None, signal.SIGKILL, "mine")]


def test_settings_accumulate_until_the_start(options):
    """Each `setup` changes what it names and is told with what it made; later only forks' `env` can change."""
    told = []
    main = threading.get_ident()
    cluster = Cluster("talking_app:app", **options)
    cluster.on("setup", lambda settings: told.append((settings["threads"], settings["env"], threading.get_ident())))
    assert (cluster.settings["threads"], cluster.settings["env"]) == (8, {})
    cluster.setup(threads=3)
    cluster.setup(workers=1, env={"COLOR": "red"})
    assert (cluster.settings["threads"], cluster.settings["workers"]) == (3, 1)
    with pytest.raises(ConfigError, match="'threads' is 0"):
        cluster.setup(threads=0, workers=7)
    with pytest.raises(ClusterError, match="both are strings without NUL"):
        cluster.setup(env={"A=B": "c"})
    with pytest.raises(TypeError):
        cluster.settings["threads"] = 5
    until(lambda: len(told) == 2)
    assert [entry[:2] for entry in told] == [(3, {}), (3, {"COLOR": "red"})]
    assert main not in {entry[2] for entry in told}
    said = []
    with cluster:
        cluster.on("message", lambda worker, payload: said.append((worker.slot, payload)))
        with pytest.raises(ConfigError, match="'threads' cannot be changed after the start"):
            cluster.setup(threads=4, env={})
        cluster.setup(env={"COLOR": "blue"})
        third = cluster.fork(env={"SHAPE": "round"})
        fourth = cluster.fork(env={"COLOR": "green"})
        assert (third.slot, fourth.slot) == (1, 2)
        os.kill(fourth.wait_for("listening").pid, signal.SIGKILL)
        cluster.wait_for(lambda: set(ready(cluster)) == {0, 1, 2} and fourth.is_dead())
        assert set(cluster.broadcast("environment")) == set(cluster.workers)
        until(lambda: len(said) == 3)
        answers = sorted(said)
    assert answers == [(0, ["red", None]), (1, ["blue", "round"]), (2, ["green", None])]
    assert os.environ.get("COLOR") is None


@contextlib.contextmanager
def slow_request(cluster):
    """A request that lasts until the end of the block; gives the worker it is in."""
    busy, held = [], threading.Event()
    cluster.on("message", lambda worker, payload: payload == "slow" and (busy.append(worker), held.set()))
    answers = []
    client = threading.Thread(target=lambda: answers.append(get(f"{cluster.url}/slow")))
    client.start()
    assert held.wait(20)
    yield busy[0]
    busy[0].send("release")
    client.join()
    assert answers == ["ok"]


def test_disconnect_means_all(options):
    """It comes back, or calls back, when the last worker has exited, not the first; then the cluster can go on."""
    told = []
    with Cluster("talking_app:app", **{**options, "graceful_timeout_s": 20}) as cluster:
        record(cluster, told, "exit")
        done = threading.Event()
        with slow_request(cluster) as slow:
            cluster.disconnect(lambda: told.append("done") or done.set())
            cluster.wait_for(lambda: list(cluster.workers.values()) == [slow])
            with pytest.raises(ClusterError, match=r"waited for all workers to be gone, but 0\.05 s are over"):
                cluster.disconnect(timeout_s=0.05)
            assert not done.is_set()
        assert done.wait(20)
        assert [entry if entry == "done" else entry[0] for entry in told] == ["exit", "exit", "done"]
        assert cluster.workers == {}
        cluster.disconnect()
        again = threading.Event()
        with cluster._news.changed:  # nothing can be told now, so what is called at once would not have been told
            cluster.disconnect(again.set)
            assert not again.is_set()
        assert again.wait(20)
        worker = cluster.fork()
        assert (worker.id, worker.slot) == (3, 0)
        echoed = []
        worker.on("message", echoed.append)
        for number in range(200):  # it is not online yet
            worker.send(number)
        until(lambda: echoed == list(range(200)))
        assert get(cluster.url) == "ok"


def test_disconnect_of_one_worker(talking):
    """It receives all that was sent before, says its last words, exits voluntarily, and nobody takes its place."""
    with talking as cluster:
        told = []
        record(cluster, told, "message", "disconnect", "exit")
        worker, other = cluster.workers[1], cluster.workers[2]
        for _ in range(50):
            worker.send(bytes(64 << 10))
        assert worker.disconnect() is worker
        worker.disconnect()
        worker.wait_for("exit")
        worker.disconnect()
        assert (worker.exited_after_disconnect, worker.exitcode, worker.reason) == (True, 0, "voluntary")
        assert list(cluster.workers.values()) == [other]
        until(lambda: not os.path.exists(f"/proc/{worker.pid}"))  # told by the launcher right before it reaps
        until(lambda: told and told[-1] == ("exit", worker, 0, None))
        last_words = {"received": 50, "connected": False, "pid": worker.pid}
        assert [entry for entry in told if entry[0] == "message"] == [("message", worker, last_words)]
        assert cluster.fork().slot == worker.slot


def test_a_storm_of_orders(options):
    """Disconnects and kills from all sides, from callbacks too: everybody leaves as asked, nothing is raised."""
    told, errors = [], []
    with Cluster("talking_app:app", **{**options, "workers": 4}) as cluster:
        record(cluster, told, "exit")
        cluster.on("error", errors.append)
        cluster.on("disconnect", lambda worker: worker.kill())
        cluster.on("disconnect", lambda worker: cluster.disconnect(lambda: None))
        for worker in list(cluster.workers.values()):
            worker.on("disconnect", lambda: [one.disconnect() for one in cluster.workers.values()])
        late = cluster.fork()
        for number, worker in enumerate(list(cluster.workers.values())):
            (worker.disconnect if number % 2 else worker.kill)()
        cluster.disconnect()
        until(lambda: late.id in [entry[1].id for entry in told])
        cluster.wait_for(lambda: not cluster.workers)
        assert {(code, sig) for _kind, _worker, code, sig in told} <= {(0, None), (None, signal.SIGTERM)}
        assert errors == []


def test_a_callback_may_fork(options):
    """`fork` in a callback for `exit`: each death brings its replacement and one worker more."""
    with Cluster("talking_app:app", **{**options, "workers": 1}) as cluster:
        forked = []
        cluster.on("exit", lambda worker: forked.append(cluster.fork()))
        for wanted in (2, 3, 4):
            ready(cluster)[0].kill(signal.SIGKILL)
            cluster.wait_for(lambda wanted=wanted: set(ready(cluster)) == set(range(wanted)))
        assert [worker.slot for worker in forked] == [1, 2, 3]
        cluster._functions = None
        cluster.disconnect(lambda: None)


def test_scale(talking):
    """To a number or by a change, up and down, to nothing and back; what cannot be is refused, with the reason."""
    with talking as cluster:
        assert cluster.scale(4) == 4
        assert set(ready(cluster)) == {0, 1, 2, 3}
        assert cluster.scale("-1") == 3
        assert set(ready(cluster)) == {worker.slot for worker in cluster.workers.values()} == {0, 1, 2}
        assert cluster.scale("+2", wait=False) == 5
        assert cluster.scale(0) == 0
        assert cluster.workers == {}
        assert cluster.scale(1) == 1
        assert get(cluster.url) == "ok"
        for nonsense in (-1, "1", "+", 1.5, True, None):
            with pytest.raises(ClusterError, match="scale to"):
                cluster.scale(nonsense)
        with pytest.raises(BusError, match=r"refused 'scale': .*lanes"):
            cluster.scale(100_000)
        with pytest.raises(BusError, match=r"refused 'scale': .*less than none"):
            cluster.scale("-2")


def test_a_scale_that_is_overtaken_comes_back(options):
    """Who waits for fewer workers does not wait for ever when somebody else asks for more meanwhile."""
    with (
        Cluster("talking_app:app", **{**options, "graceful_timeout_s": 20}) as cluster,
        slow_request(cluster) as slow,
    ):
        outcome = []
        waiting = threading.Thread(target=lambda: outcome.append(cluster.scale(0)))
        waiting.start()
        cluster.wait_for(lambda: list(cluster.workers.values()) == [slow])
        assert outcome == []
        assert cluster.scale(1, wait=False) == 1
        waiting.join(20)
        assert outcome == [0]


def test_reload(options, tmp_path, monkeypatch):
    """New code is served by a new generation; broken code is refused with its traceback and changes nothing."""
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "shop_app.py"
    code = "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'%s']\n"
    module.write_text(code % "old")
    told = []
    with Cluster("shop_app:app", **options) as cluster:
        cluster.on("reload", lambda generation: told.append(generation))
        cluster.on("error", lambda worker, text: told.append((worker, text)))
        assert get(cluster.url) == "old"
        module.write_text(code % "newer")
        generation = cluster.reload()
        assert get(cluster.url) == "newer"
        until(lambda: told == [generation])
        assert {worker.generation for worker in ready(cluster).values()} == {generation}
        module.write_text("raise RuntimeError('the shop is on fire')\n")
        with pytest.raises(ReloadFailed, match="the shop is on fire"):
            cluster.reload()
        until(lambda: len(told) == 2)
        assert told[1][0] is None
        assert "the shop is on fire" in told[1][1]
        assert get(cluster.url) == "newer"
        assert cluster.reload(wait=False) == 0
        until(lambda: len(told) == 3)
        assert "the shop is on fire" in told[2][1]


def test_functions_of_a_worker_are_called_first(options):
    """Also when a slow callback of its fork registers them after it has long been listening."""
    told = []
    cluster = Cluster("talking_app:app", **{**options, "workers": 1})

    @cluster.on("fork")
    def forked(worker):
        until(lambda: worker.has_reached("listening"))
        for event in ("online", "listening", "exit"):
            worker.on(event, lambda event=event: told.append(f"own {event}"))

    for event in ("online", "listening", "exit"):
        cluster.on(event, lambda worker, event=event: told.append(event))
    with cluster:
        until(lambda: "listening" in told)
        cluster.disconnect()
        until(lambda: "exit" in told)
    assert told == ["own online", "online", "own listening", "listening", "own exit", "exit"]


def test_a_forked_child_ends_nothing(talking):
    """Neither by stop() nor by close(), which wait for nothing there: another thread of ours may have held a lock."""
    release, held = threading.Event(), threading.Event()

    def hold():
        with cluster._news.changed:
            held.set()
            release.wait(20)

    with talking as cluster:
        holder = threading.Thread(target=hold)
        holder.start()
        assert held.wait(20)
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # should it wait for that lock
            with contextlib.suppress(BaseException):
                try:
                    cluster.stop()
                except ClusterError:
                    cluster.close()
                    os._exit(0)
            os._exit(1)
        release.set()
        holder.join()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert get(cluster.url) == "ok"


def test_what_was_true_once_is_enough(talking):
    """`wait_for` returns the value of the evaluation that was true; it does not ask again."""
    with talking as cluster:
        answers = iter([0, 17, 0, 0])
        assert cluster.wait_for(lambda: next(answers)) == 17
