"""What an application does at import and at exit: safe preloading, hopeless starts, ends of its own doing."""

import http.client
import re
import select
import signal
import socket
import time
from contextlib import contextmanager

import pytest
from anatomy import gone, kill, ready, see
from harness import running, wait_for
from observer import Observer


@pytest.fixture
def hazard(tmp_path):
    """Start a cluster whose app does something at import."""

    @contextmanager
    def start(what, *options, env=None, workers=2, **more):
        env = {"HAZARD": what, "HAZARD_DIR": str(tmp_path), **(env or {})}
        with running("hazards:app", *options, env=env, workers=workers, **more) as cluster:
            yield cluster

    return start


@pytest.fixture
def noted(tmp_path):
    """The pids that the app has noted under a name."""

    def read(name):
        path = tmp_path / name
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    return read


@pytest.fixture
def database():
    """A listener that accepts whoever comes, and knows whose client still lives."""

    class Database:
        def __init__(self):
            self.sock = socket.create_server(("127.0.0.1", 0))
            self.sock.setblocking(False)
            self.accepted = []

        @property
        def env(self):
            return {"HAZARD_PORT": str(self.sock.getsockname()[1])}

        def open(self):
            """The addresses of the clients that are there; each is a connection of its own."""
            while True:
                try:
                    self.accepted.append(self.sock.accept()[0])
                except BlockingIOError:
                    break
            gone_ones = select.select(self.accepted, [], [], 0)[0]  # nobody ever sends: readable is the end
            return ["{}:{}".format(*c.getpeername()) for c in self.accepted if c not in gone_ones]

    made = Database()
    yield made
    for connection in [*made.accepted, made.sock]:
        connection.close()


def complaints(cluster):
    """What the log warns of, but for a busy machine."""
    return [
        line
        for line in cluster.log.splitlines()
        if re.search("WARNING|ERROR", line) and "did not run for" not in line
    ]


def test_a_thread_at_import(hazard, noted):
    """The zygote names it and starts again empty; each worker, the replacement too, imports the app for itself."""
    with hazard("thread") as cluster:
        cluster.wait_log(r"not preloaded, each worker imports it: it left thread 'poller'")
        pids = see(cluster).worker_pids
        assert noted("imports") == [see(cluster).zygote, *noted("imports")[1:]]  # execve keeps the pid
        assert sorted(noted("imports")[1:]) == pids
        assert "poller" in cluster.get("/threads")
        kill(pids[0])
        gone(pids[0])
        wait_for(lambda: len(see(cluster).worker_pids) == 2 and len(noted("imports")) == 4)
        assert cluster.log.count("not preloaded") == 1
        assert int(cluster.get("/")) == 1


def test_a_connection_at_import(hazard, noted, database):
    """It is named; the zygote's is closed, each worker has its own, and so has its replacement."""
    with hazard("connection", env=database.env) as cluster:
        port = database.env["HAZARD_PORT"]
        cluster.wait_log(rf"not preloaded, each worker imports it: it left connection to 127\.0\.0\.1:{port}")
        assert len(database.open()) == 2
        assert len(database.accepted) == 3
        assert cluster.get("/name") in database.open()
        kill(*see(cluster).worker_pids)
        wait_for(lambda: len(database.open()) == 2 and len(database.accepted) == 5, what="two new connections")
        assert cluster.get("/name") in database.open()
    wait_for(lambda: not database.open(), what="all are closed with the cluster")


def test_preload_is_forced(hazard, noted, database):
    """--preload: one import and one connection for all, and a warning that says what is shared."""
    with hazard("connection", "--preload", env=database.env) as cluster:
        cluster.wait_log(r"WARNING zygote .*--preload is forced although the app left connection to 127\.0\.0\.1")
        assert noted("imports") == [see(cluster).zygote]
        assert len(database.open()) == len(database.accepted) == 1
        assert {cluster.get("/name") for _ in range(6)} == set(database.open())


def test_preload_is_safe(hazard, noted):
    """An app without hazards is imported once, and no word is lost about it."""
    with hazard("", workers=3) as cluster:
        assert noted("imports") == [see(cluster).zygote]
        assert not complaints(cluster)


def test_no_preload(hazard, noted):
    """--no-preload: each worker imports, the zygote does not, and hazards are nobody's business."""
    with hazard("thread", "--no-preload") as cluster:
        assert sorted(noted("imports")) == see(cluster).worker_pids
        assert not complaints(cluster)


def test_counting_at_import(hazard, noted):
    """In a zygote it would be lost or doubled: exit 3 and what to do; with --no-preload each worker counts."""
    with hazard("count", wait=False) as cluster:
        log = cluster.ended(code=3)
    assert log.count("ClusterError: Counter('requests').incr(): the application is being imported, once for all") == 1
    assert "start with --no-preload" in log
    assert log.count("Traceback") == 1
    with hazard("count", "--no-preload") as cluster:
        assert int(cluster.get("/")) == 3
        assert cluster.counters() == {"requests": 3}


def endless(hazard, *arguments):
    """The log of a start that cannot end, with a boot time-out in which this machine comes as far as the import."""
    for boot_s in (1.5, 8.0):
        with hazard(*arguments, f"--boot-timeout={boot_s}", "--dump-grace=0.1", workers=1, wait=False) as cluster:
            log = cluster.ended(40.0, code=3)
        if log.count("in never_ending_import") == 3:
            break
    return log


@pytest.mark.timeout(120)
def test_an_import_that_never_ends(hazard):
    """Dumped, killed, tried again, and after three attempts exit 3; the log names the line."""
    log = endless(hazard, "endless")
    assert "in never_ending_import" in log, log
    assert len(re.findall(r"zygote .* died\. .* \(its import took longer than the boot timeout\)", log)) == 3, log


@pytest.mark.timeout(120)
def test_an_import_that_never_ends_in_a_worker(hazard):
    """The same without a zygote that imports."""
    log = endless(hazard, "endless-in-worker", "--no-preload")
    assert "in never_ending_import" in log, log
    assert re.search(r"Worker \d+ died\. signal SIGKILL \(boot timeout\); next attempt in 0\.\d s", log), log
    assert len(re.findall(r"Worker .* died\. .* \(boot timeout\)", log)) == 3, log


def test_workers_that_die_at_import(hazard, noted):
    """os._exit at import, in each worker: exit 3 with what is known, after a few attempts."""
    with hazard("dies", "--no-preload", wait=False) as cluster:
        log = cluster.ended(code=3)
    assert 3 <= len(noted("imports")) <= 6
    assert re.search(r"no worker became ready; the last one ended with exit code 9 while starting", log), log
    assert "Traceback" not in log


def test_a_zygote_that_dies_at_import(hazard, noted):
    """os._exit at import, preloading: the same."""
    with hazard("dies", wait=False) as cluster:
        log = cluster.ended(code=3)
    assert len(noted("imports")) == 3
    assert re.search("the process that imports the application ended 3 times: exit code 9", log), log


def test_one_slot_in_a_crash_loop(hazard, noted, tmp_path):
    """It backs off with growing pauses, the others serve; repaired, the cluster is whole at the next attempt."""
    with hazard("slot-1-dies", "--no-preload", wait=False) as cluster:
        pauses = r"Worker \d+ died\. signal SIGKILL while starting; next attempt in (\d+\.\d) s"
        wait_for(lambda: len(re.findall(pauses, cluster.log)) >= 4, what=f"four attempts\n{cluster.log}")
        found = [float(pause) for pause in re.findall(pauses, cluster.log)[:4]]
        for number, pause in enumerate(found):  # 0.1 s doubled each time, less up to a half
            assert 0.1 * 2**number / 2 - 0.06 < pause < 0.1 * 2**number + 0.06, found
        wait_for(lambda: [w["slot"] for w in cluster.workers()] == [0], what="the other slot has a ready worker")
        cluster.url = cluster.ps()["url"]
        assert int(cluster.get("/")) > 0
        (tmp_path / "repaired").touch()
        cluster.wait_ready()
        assert int(cluster.get("/")) > 0


def test_degraded_when_stopped(hazard):
    """A stop while a slot cannot be kept running: orderly, but exit 5 tells the operator."""
    with hazard("slot-1-dies", "--no-preload", wait=False) as cluster:
        cluster.wait_log("while starting; next attempt in 0.[2-9] s")
        wait_for(lambda: 0 in ready(cluster), what="the other slot has a ready worker")
        log = cluster.ended(code=5, number=signal.SIGTERM)
    assert "stopped while not all workers could be kept running" in log


def test_the_restart_limit(hazard):
    """So many deaths are repaired, one more ends the cluster: exit 5, saying why."""
    with hazard("", "--restart-limit=2", workers=2) as cluster, Observer(cluster) as seen:
        there = seen.wait_ready(2)
        for _ in range(2):
            kill(there[0].pid)
            there = seen.wait_ready(2, without=[there[0].pid])
        kill(there[0].pid)
        log = cluster.ended(code=5)
    assert "3 workers have died, more than the restart limit of 2" in log
    assert log.count("zcluster: error:") == 1


def answer_to(cluster, path):
    """The response to one request on a connection of its own, read to its end."""
    connection = http.client.HTTPConnection(*cluster.address, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        response.body = response.read()
        return response
    finally:
        connection.close()


def test_system_exit_in_a_request(hazard, noted):
    """A whole 500 for the client; that worker drains, ends with the code, atexit included, and is replaced."""
    with hazard("") as cluster, Observer(cluster) as seen:
        for number, (argument, code) in enumerate((("7", 7), ("", 0), ("0", 0)), 1):
            before = seen.wait_ready(2)
            answer = answer_to(cluster, f"/exit?{argument}")
            assert (answer.status, answer.headers["Connection"]) == (500, "close")
            assert len(answer.body) == int(answer.headers["Content-Length"])
            pid = noted("asked-to-exit")[-1]
            dead = seen.wait_exit(pid)
            after = seen.wait_ready(2, without=[pid])
            assert (dead.exitcode, dead.signal, dead.exited_after_disconnect) == (code, None, True)
            assert dead.reason == "voluntary"
            assert after[dead.slot].id > max(w.id for w in before.values())
            assert noted("exits") == noted("asked-to-exit")
            assert len(noted("exits")) == number
            cluster.wait_log(rf"Worker {pid} died\. left voluntarily \(the app raised SystemExit\({code}\)\)")


def test_atexit_runs_once_in_each_worker(hazard, noted):
    """On a worker's own TERM, and at the stop: in every worker, once, and in no other process."""
    with hazard("", workers=3) as cluster, Observer(cluster) as seen:
        first = seen.wait_ready(3)
        kill(first[0].pid, number=signal.SIGTERM)
        dead = seen.wait_exit(first[0].pid)
        assert (dead.exitcode, dead.reason) == (0, "voluntary")
        last = seen.wait_ready(3, without=[first[0].pid])
        assert noted("exits") == [first[0].pid]
        cluster.ended(number=signal.SIGTERM)
    assert sorted(noted("exits")) == sorted([first[0].pid, *(w.pid for w in last.values())])


def test_a_thread_that_never_ends(hazard, noted):
    """Not a daemon: the interpreter waits for it at exit, so the worker is killed at the drain deadline; exit 0."""
    with hazard("", "--graceful-timeout=1", workers=1) as cluster:
        cluster.get("/haunt")
        (pid,) = see(cluster).worker_pids
        begun = time.monotonic()
        log = cluster.ended(number=signal.SIGTERM)
        took = time.monotonic() - begun
    assert 0.9 < took < 15, took  # far from the 30 s of the default
    assert re.search(
        rf"Worker {pid} died\. signal SIGKILL \(drain timeout\); not replaced: the cluster is stopping", log
    )
