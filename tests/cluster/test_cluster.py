"""The handle, on real clusters."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
import small_app
from handle_rig import HERE, ROOT, get, own_children, until

import zcluster
from zcluster import AppError, Cluster, ClusterError, ConfigError, Counter, SpawnError, current, owned
from zcluster.unix.process import is_alive, start_time


def local_app():
    """A WSGI app that no other interpreter can import."""

    def app(environ, start_response):
        start_response("200 OK", [("Content-Length", "5")])
        return [b"local"]

    return app


def test_a_cluster_from_start_to_end(options):
    """It serves when the block begins, is gone when it ends, and its events come in order, in one other thread."""
    told, threads = [], set()
    cluster = Cluster("small_app:app", **options)
    for event in ("setup", "fork", "online", "listening", "disconnect", "exit"):

        def tell(subject, event=event):
            told.append((event, getattr(subject, "id", subject)))
            threads.add(threading.current_thread())

        assert cluster.on(event, tell) is tell
    with cluster:
        assert cluster.url.startswith("http://127.0.0.1:")
        assert cluster.urls == (cluster.url,)
        assert cluster.name == "small_app"
        assert sorted(cluster.workers) == [1, 2]
        workers = list(cluster.workers.values())
        assert {worker.slot for worker in workers} == {0, 1}
        assert all(worker.is_connected() and not worker.is_dead() for worker in workers)
        answers = [get(cluster.url).split() for _ in range(10)]
        assert {int(answer[1]) for answer in answers} <= {worker.pid for worker in workers}
        assert [int(answer[2]) for answer in answers] == list(range(1, 11))
        assert cluster.snapshot()["counters"] == {"requests": 10}
        cluster.wait_for(lambda: cluster.counters.get("requests") == 10)
        assert (len(cluster.counters), list(cluster.counters)) == (1, ["requests"])
        launcher = cluster.snapshot()["launcher_pid"]
        url = cluster.url
    assert start_time(launcher) == 0
    assert all(worker.is_dead() and worker.exited_after_disconnect for worker in workers)
    with pytest.raises(OSError, match="refused"):
        get(url)
    assert told[0][0] == "setup"
    assert (told[0][1]["app"], told[0][1]["workers"]) == ("small_app:app", 2)
    for number in (1, 2):
        assert [event for event, id_ in told if id_ == number] == [
            "fork",
            "online",
            "listening",
            "disconnect",
            "exit",
        ]
    assert len(threads) == 1
    assert threads != {threading.main_thread()}


def test_a_killed_worker_is_told_and_replaced(options):
    """`exit` carries the signal, the replacement takes the slot under a new id, nothing counted is lost."""
    exits = []
    with Cluster("small_app:app", **options) as cluster:
        cluster.on("exit")(exits.append)
        before = [int(get(cluster.url).split()[2]) for _ in range(4)][-1]
        victim = cluster.workers[1]
        assert victim.kill(signal.SIGKILL) is True
        cluster.wait_for(victim.is_dead)
        assert (victim.signal, victim.exitcode, victim.state) == (signal.SIGKILL, None, "dead")
        assert not victim.exited_after_disconnect
        assert victim.kill(signal.SIGKILL) is False
        cluster.wait_for(lambda: {w.slot for w in cluster.workers.values() if w.state == "ready"} == {0, 1})
        assert sorted(cluster.workers) == [2, 3]
        assert cluster.workers[3].slot == victim.slot
        assert int(get(cluster.url).split()[2]) == before + 1
        until(lambda: exits == [victim])


def test_wait_for_an_event_gives_its_worker(options):
    """By name it is the next such event, and its worker comes back; an unknown name is refused."""
    with Cluster("small_app:app", **options) as cluster:
        first = cluster.workers[1]
        first.kill(signal.SIGKILL)
        cluster.wait_for(first.is_dead)  # its exit has been: no wait for the next one ends with it
        heard = threading.Event()

        def kill_until_heard():  # nobody can see from outside that somebody waits: one exit may come too early
            while not heard.wait(0.2):
                for worker in cluster.workers.values():
                    worker.kill(signal.SIGKILL)

        killer = threading.Thread(target=kill_until_heard)
        killer.start()
        try:
            dead = cluster.wait_for("exit")
        finally:
            heard.set()
            killer.join()
        assert dead.id != first.id
        assert (dead.is_dead(), dead.signal) == (True, signal.SIGKILL)
        with pytest.raises(ClusterError, match="no event 'exti'; events are setup, fork"):
            cluster.wait_for("exti")
        with pytest.raises(ClusterError, match="no event 'exti'"):
            cluster.on("exti", print)
        with pytest.raises(ClusterError, match=r"0\.05 s are over"):
            cluster.wait_for(lambda: False, timeout_s=0.05)


def test_a_killed_master_is_no_event(options):
    """The handle follows the next master: epoch + 1, the same workers, totals unchanged, nobody told of anything."""
    with Cluster("small_app:app", **options) as cluster:
        told = []
        for event in ("fork", "online", "listening", "disconnect", "exit"):
            cluster.on(event, told.append)
        get(cluster.url)
        before = cluster.snapshot()
        os.kill(before["master_pid"], signal.SIGKILL)
        after = until(lambda: (seen := snapshot_or_none(cluster)) and seen["epoch"] == 2 and seen)
        assert after["master_pid"] != before["master_pid"]
        assert [w["id"] for w in after["workers"]] == [w["id"] for w in before["workers"]]
        assert after["counters"] == before["counters"]
        assert told == []
        cluster.workers[1].kill(signal.SIGKILL)
        assert cluster.wait_for(lambda: 1 not in cluster.workers)


def snapshot_or_none(cluster):
    """The state of a cluster whose master may be away."""
    with contextlib.suppress(ClusterError):
        return cluster.snapshot(timeout_s=1)
    return None


def test_attach_replays_and_does_not_end(options, run_dir):
    """A second handle sees the present workers as if it had been there, and leaves the cluster alone when closed."""
    with Cluster("small_app:app", **options) as cluster:
        get(cluster.url)
        with Cluster.attach("small_app", run_dir=str(run_dir)) as other:
            assert (other.url, other.name, sorted(other.workers)) == (cluster.url, "small_app", [1, 2])
            told = []
            other.on("setup", lambda settings: told.append(("setup", dict(settings))))
            for event in ("fork", "online", "listening", "exit"):
                other.on(event, lambda worker, event=event: told.append((event, worker.id)))
            until(lambda: len(told) == 7)
            assert told == [
                ("setup", {}),
                *((event, id_) for event in ("fork", "online", "listening") for id_ in (1, 2)),
            ]
            other.wait_for(lambda: other.counters.get("requests") == 1)
        assert get(cluster.url)
        with Cluster.attach(run_dir=str(run_dir)) as other:
            other.request_stop()
            assert other.wait(20) == 0
        assert cluster.wait(20) == 0


@pytest.mark.parametrize(
    ("app", "kind", "reason"),
    [
        ("no_such_module:app", AppError, "no module 'no_such_module'"),
        ("small_app:nothing", AppError, "no attribute 'nothing'"),
        ("small_app:broken()", AppError, "the database is on fire"),
        ("small_app:__doc__", AppError, "not callable"),
    ],
)
def test_a_start_that_fails_says_why(options, app, kind, reason):
    """The application's fault is an AppError with the reason, and nothing is left."""
    with pytest.raises(kind, match=reason):
        Cluster(app, **options).start()
    assert own_children() == []


def test_a_taken_port_is_the_machines_fault(options):
    """SpawnError names the address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(SpawnError, match=address), Cluster("small_app:app", **{**options, "bind": address}):
            pass


def test_a_taken_name_is_refused_and_the_first_untouched(options):
    """An explicit name that is taken is an error; a default one gets a number."""
    with Cluster("small_app:app", **options, name="mine") as first:
        with pytest.raises(SpawnError, match="'mine' is already running"):
            Cluster("small_app:app", **options, name="mine").start()
        assert get(first.url)
    with Cluster("small_app:app", **options) as one, Cluster("small_app:app", **options) as two:
        assert (one.name, two.name) == ("small_app", "small_app-2")
        with pytest.raises(ConfigError, match="several clusters are running: small_app, small_app-2"):
            Cluster.attach(run_dir=options["run_dir"])
        assert Cluster.attach("small_app-2", run_dir=options["run_dir"]).stop() == 0
        assert get(one.url)
        assert two.wait(20) == 0


def test_nonsense_is_refused_before_anything_is_started():
    """Options and apps are checked by the constructor."""
    with pytest.raises(ConfigError, match="unknown option 'worker'"):
        Cluster("a:b", worker=2)
    with pytest.raises(ConfigError, match="the app is 3, but should be"):
        Cluster(3)


def test_no_cluster_to_attach_to(run_dir):
    """The text says where it looked."""
    with pytest.raises(SpawnError, match=rf"no cluster named 'x' is running \(looked in {run_dir}"):
        Cluster.attach("x", run_dir=str(run_dir))


def test_which_callables_can_be_imported():
    """Functions and static methods of modules go by name; closures, lambdas, instances and __main__ do not."""
    assert owned.import_name(small_app.app) == "small_app:app"
    assert owned.import_name(small_app.Factory.nested) == "small_app:Factory.nested"
    assert owned.import_name(local_app()) == ""
    assert owned.import_name(lambda environ, start_response: []) == ""
    assert owned.import_name(contextlib.nullcontext()) == ""
    fake = type("app", (), {"__module__": "__main__", "__qualname__": "app", "__call__": print})
    assert owned.import_name(fake) == ""


def test_a_callable_that_can_be_imported(options):
    """It is served as if it had been named."""
    with Cluster(small_app.app, **options) as cluster:
        assert get(cluster.url).split()[2] == "1"


def test_a_callable_that_lives_in_memory_only(options, caplog):
    """Launcher and zygote are forked, threads are named in a warning, deaths are handled as ever."""
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="busy-bee")
    thread.start()
    owned._warned.clear()
    try:
        with caplog.at_level(logging.WARNING, "zcluster.handle"), Cluster(local_app(), **options) as cluster:
            assert get(cluster.url) == "local"
            victim = cluster.workers[1]
            victim.kill(signal.SIGKILL)
            cluster.wait_for(lambda: victim.is_dead() and len(cluster.workers) == 2)
            assert get(cluster.url) == "local"
            with Cluster(local_app(), **options) as second:
                assert get(second.url) == "local"
    finally:
        release.set()
        thread.join()
    assert len([record for record in caplog.records if "busy-bee" in record.getMessage()]) == 1


def test_an_app_in_memory_cannot_reach_the_programs_files(options, tmp_path):
    """What the app writes to an open file of the program reaches neither that file nor anything of ours."""
    with open(tmp_path / "log", "w", buffering=1) as log:
        log.write("before\n")
        hits = Counter("hits")

        def app(environ, start_response):
            log.write("x" * 5000 + "\n")
            start_response("200 OK", [])
            return [str(hits.incr()).encode()]

        with Cluster(app, **options) as cluster:
            assert [get(cluster.url) for _ in range(20)] == [str(n) for n in range(1, 21)]
            assert cluster.snapshot()["counters"]["hits"] == 20
    assert (tmp_path / "log").read_text() == "before\n"


def test_the_cluster_ends_with_the_program_that_started_it(run_dir):
    """SIGKILL the program: its launcher notices and everything is gone."""
    code = (
        "from zcluster import Cluster\n"
        f"cluster = Cluster('small_app:app', bind='127.0.0.1:0', workers=2, run_dir={str(run_dir)!r}, "
        "graceful_timeout_s=1).start()\n"
        "print(cluster.snapshot()['launcher_pid'], flush=True)\n"
        "cluster.wait()\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=HERE, env=env, stdout=subprocess.PIPE, text=True
    ) as program:
        launcher = int(program.stdout.readline())
        started = start_time(launcher)
        assert started
        program.kill()
    until(lambda: start_time(launcher) != started)


def test_a_program_that_just_ends_leaves_nothing(run_dir):
    """No stop, no with: the interpreter exits without hanging, and the cluster follows."""
    code = (
        "from zcluster import Cluster\n"
        f"cluster = Cluster('small_app:app', bind='127.0.0.1:0', workers=2, run_dir={str(run_dir)!r}, "
        "graceful_timeout_s=1).start()\n"
        "print(cluster.snapshot()['launcher_pid'], flush=True)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=HERE, env=env, stdout=subprocess.PIPE, text=True, timeout=30, check=True
    )
    until(lambda: start_time(int(done.stdout)) == 0)


def test_a_handle_is_no_part_of_the_cluster(options):
    """While it is open a Counter of this process raises; afterwards it counts for this process again."""
    counter = Counter("handle-test")
    assert counter.incr() == 1
    with Cluster("small_app:app", **options):
        assert current.role == "handle"
        with pytest.raises(ClusterError, match="counters"):
            counter.incr()
        assert not zcluster.worker
    assert counter.incr() == 2


def test_a_forked_child_leaves_the_handle_alone(options):
    """In a child the handle refuses, and leaving the block there ends nothing."""
    with Cluster("small_app:app", **options) as cluster:
        child = os.fork()
        if child == 0:
            refused = False
            with contextlib.suppress(BaseException):
                try:
                    with cluster:
                        cluster.snapshot()
                except ClusterError as error:
                    refused = "belongs to the process that made it" in str(error) and current.mailbox is None
            os._exit(0 if refused else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert get(cluster.url)


def test_a_handle_is_used_once(options):
    """Before the start and after the end it says so."""
    cluster = Cluster("small_app:app", **options)
    assert (cluster.url, cluster.urls, cluster.name, cluster.workers) == ("", (), "", {})
    with pytest.raises(ClusterError, match="not open"):
        cluster.snapshot()
    assert cluster.stop() == 0
    with cluster:
        assert "open" in repr(cluster)
        with pytest.raises(ClusterError, match="used already"):
            cluster.start()
        with pytest.raises(ClusterError, match=r"has not ended within 0\.01 s"):
            cluster.wait(0.01)
    assert "closed" in repr(cluster)
    assert cluster.stop() == 0
    with pytest.raises(ClusterError, match="not open"):
        cluster.wait()
    with pytest.raises(ClusterError, match="used already"):
        cluster.start()


def test_what_could_not_start_can_be_started_again(options):
    """The port is somebody else's: SpawnError; it is given back: the same object starts, with its callbacks."""
    listening = []
    with socket.create_server(("127.0.0.1", 0)) as holder:
        cluster = Cluster("small_app:app", **{**options, "bind": f"127.0.0.1:{holder.getsockname()[1]}"})
        cluster.on("listening", listening.append)
        with pytest.raises(SpawnError, match="in use"):
            cluster.start()
        assert "not started" in repr(cluster)
    with cluster:
        assert get(cluster.url)
        cluster.wait_for(lambda: len(listening) == len(cluster.workers))


def test_a_callback_may_stop_the_cluster(options):
    """`stop` in a callback neither deadlocks nor loses the end."""
    stopped = []
    cluster = Cluster("small_app:app", **options)
    cluster.on("exit", lambda worker: stopped.append(cluster.stop(quick=True)))
    cluster.start()
    cluster.workers[1].kill(signal.SIGKILL)
    until(lambda: stopped)
    assert stopped[0] == 0


def test_a_launcher_that_is_killed_ends_the_handle(options, run_dir):
    """wait() reports the signal as a shell does; the next start of the same name succeeds."""
    cluster = Cluster("small_app:app", **options, name="again").start()
    workers = [(worker.pid, start_time(worker.pid)) for worker in cluster.workers.values()]
    os.kill(cluster.snapshot()["launcher_pid"], signal.SIGKILL)
    assert cluster.wait(20) == 128 + signal.SIGKILL
    with pytest.raises(ClusterError, match="the cluster has ended"):
        cluster.wait_for(lambda: False, timeout_s=5)
    cluster.close()
    with Cluster("small_app:app", **options, name="again") as next_one:
        assert get(next_one.url).split()[2] == "1"
        assert not any(is_alive(pid, start) for pid, start in workers)
