"""The two programs of Node's cluster documentation, and the ways to say where and how wide to start them."""

import os
import re
import signal
import socket
import sys
from collections import Counter as Tally
from pathlib import Path

import pytest
from anatomy import ready
from harness import READY, answers_until, free_port, running, wait_for
from load import Load

from zcluster.unix import rundir
from zcluster.unix.cpus import available_cpus

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
HELLO = re.compile(r"I am a worker running in process (\d+)\n")
COUNTER = re.compile(rb"Worker in process (\d+) says cluster has responded to (\d+) requests\.\n")
DIED = r"Worker {pid} died\. signal SIGKILL; replacing it in slot {slot} now"


def count(body):
    """The total in an answer of the counter example."""
    found = COUNTER.fullmatch(body)
    assert found, body
    return int(found[2])


def answer_on(sock):
    """GET / on a connected socket, until the server closes."""
    with sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        parts = []
        while part := sock.recv(4096):
            parts.append(part)
    head, _, body = b"".join(parts).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n"), head
    return body


def kill_and_see_replaced(cluster, victim):
    """SIGKILL one worker of `ps`: what is logged, and who takes its slot. Returns the replacement."""
    before = {worker["pid"]: worker for worker in cluster.ps()["workers"]}
    os.kill(victim["pid"], signal.SIGKILL)
    cluster.wait_log(DIED.format(**victim))
    wait_for(lambda: ready(cluster).get(victim["slot"], victim["pid"]) != victim["pid"])
    (new,) = wait_for(lambda: [worker for worker in cluster.workers() if worker["pid"] not in before])
    assert new["slot"] == victim["slot"]
    assert new["id"] > max(worker["id"] for worker in before.values())
    assert new["restarts"] == victim["restarts"] + 1
    return new


# ---- the two programs ----------------------------------------------------------------------------------------------
def test_hello():
    """Every worker answers on the one port; one that is killed is named in the log and its slot is filled again."""
    with running("app:app", workers=3, cwd=EXAMPLES / "hello") as cluster:
        pids = {worker["pid"] for worker in cluster.workers()}
        assert len(pids) == 3
        seen = Tally()

        def all_seen(body):
            seen[int(HELLO.fullmatch(body.decode())[1])] += 1
            return set(seen) == pids

        answers_until(cluster.address, all_seen)
        victim = next(worker for worker in cluster.workers() if worker["slot"] == 1)
        new = kill_and_see_replaced(cluster, victim)
        assert {worker["pid"] for worker in cluster.workers()} == pids - {victim["pid"]} | {new["pid"]}
        answers_until(cluster.address, lambda body: int(HELLO.fullmatch(body.decode())[1]) == new["pid"])
        assert cluster.log.count(f"Worker {victim['pid']} died.") == 1
        cluster.end()


def test_counter_is_exact():
    """Each answer is one more than the one before, whoever gives it and whoever dies in between."""
    with running("app:app", cwd=EXAMPLES / "counter") as cluster:
        assert [count(cluster.get().encode()) for _ in range(20)] == list(range(1, 21))
        victim = cluster.workers()[0]
        kill_and_see_replaced(cluster, victim)
        assert cluster.counters() == {"requests": 20}
        assert [count(cluster.get().encode()) for _ in range(20)] == list(range(21, 41))
        assert cluster.counters() == {"requests": 40}
        cluster.end()


def test_counter_under_load():
    """The counter rule holds while workers are killed under load, and nobody is refused."""
    with running("app:app", cwd=EXAMPLES / "counter") as cluster:
        with Load(cluster.address, parse=count) as load:
            wait_for(lambda: load.acknowledged > 100)
            for _ in range(3):
                victim = cluster.workers()[0]
                done = load.acknowledged
                kill_and_see_replaced(cluster, victim)
                wait_for(lambda done=done: load.acknowledged > done + 100)
        total = cluster.counters()["requests"]
        load.check(total, kills=3)
        assert len(load.broken) <= 3 * load.clients, load.broken
        assert count(cluster.get().encode()) == total + 1
        cluster.end()


# ---- names ---------------------------------------------------------------------------------------------------------
def test_default_names_get_a_number():
    """A second and a third cluster of the same app are called -2 and -3; a free name is taken again."""
    with (
        running("hello:app", workers=1) as first,
        running("hello:app", workers=1, base=first.base) as second,
        running("hello:app", workers=1, base=first.base) as third,
    ):

        def names():
            return {found.name: found.launcher_pid for found in rundir.clusters(first.base)}

        pids = [cluster.process.pid for cluster in (first, second, third)]
        assert names() == dict(zip(("hello", "hello-2", "hello-3"), pids, strict=True))
        assert second.stop() == 0
        assert set(names()) == {"hello", "hello-3"}
        with running("hello:app", workers=1, base=first.base) as again:
            assert names()["hello-2"] == again.process.pid
            assert again.ps("--name", "hello-2")["name"] == "hello-2"
            assert again.stop() == 0
        assert third.stop() == 0
        first.end()


# ---- addresses -----------------------------------------------------------------------------------------------------
def test_several_addresses(tmp_path):
    """--bind may be repeated, for IPv4, IPv6 and a unix socket; the ready line names the first, ps all of them."""
    path = tmp_path / "s"
    with running("counting:app", "--bind=[::1]:0", f"--bind=unix:{path}") as cluster:
        urls = cluster.ps()["urls"]
        assert urls[0] == cluster.url
        assert re.fullmatch(r"http://127\.0\.0\.1:[1-9]\d*", urls[0])
        assert re.fullmatch(r"http://\[::1\]:[1-9]\d*", urls[1])
        assert urls[2] == f"unix:{path}"
        assert cluster.get() == "1"
        assert answer_on(socket.create_connection(("::1", int(urls[1].rpartition(":")[2])), 10)) == b"2"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(str(path))
            assert answer_on(sock) == b"3"
        cluster.end()
        assert not path.exists()


def test_an_inherited_socket():
    """fd://N serves on a socket that was bound by somebody else, and that stays his."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd = listener.fileno()
        with running("counting:app", bind=f"fd://{fd}", popen={"pass_fds": [fd]}) as cluster:
            assert cluster.address == listener.getsockname()
            assert cluster.get() == "1"
            cluster.end()
        with socket.create_connection(listener.getsockname(), 10):  # it still listens: it is ours
            pass


def test_a_unix_socket_left_by_a_killed_server(tmp_path):
    """A socket file nobody listens on is taken over; one that is served is an error that names it."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with running("counting:app", bind=f"unix:{path}", workers=1) as cluster:
        assert cluster.url == f"unix:{path}"
        with running("counting:app", bind=f"unix:{path}", workers=1, wait=False) as second:
            log = second.ended(code=4)
            assert f"zcluster: error: cannot listen on unix:{path}: address already in use" in log
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(str(path))
            assert answer_on(sock) == b"1"
        cluster.end()


# ---- how wide ------------------------------------------------------------------------------------------------------
def ready_line(cluster):
    """What a cluster started with wait=False prints: the URL and the number of workers."""
    found = READY.match(cluster.process.stdout.readline().decode())
    assert found, cluster.log
    cluster.url = found[1]
    return found[1], int(found[2])


def test_variables_of_hosting_services():
    """WEB_CONCURRENCY and PORT stand in for options that are not given."""
    port = free_port()
    env = {"WEB_CONCURRENCY": "3", "PORT": str(port)}
    with running("hello:app", workers=None, bind="", env=env, wait=False) as cluster:
        assert ready_line(cluster) == (f"http://0.0.0.0:{port}", 3)
        assert len(cluster.workers()) == 3
        cluster.end()


def test_options_win_over_variables():
    """What is given on the command line counts."""
    with running("hello:app", workers=1, env={"WEB_CONCURRENCY": "3", "PORT": "1"}, wait=False) as cluster:
        url, workers = ready_line(cluster)
        assert url.startswith("http://127.0.0.1:")
        assert workers == 1
        cluster.end()


AFFINITY = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])}); os.execv(sys.argv[2], sys.argv[2:])"


@pytest.mark.parametrize("given", [["--workers=auto"], []], ids=["auto", "default"])
def test_auto_honours_affinity(given):
    """On one of the machine's CPUs --workers auto, the default, means one worker."""
    cpu = min(os.sched_getaffinity(0))
    prefix = [sys.executable, "-c", AFFINITY, str(cpu)]
    with running("hello:app", *given, workers=None, prefix=prefix, wait=False) as cluster:
        assert ready_line(cluster)[1] == 1
        assert len(cluster.workers()) == 1
        cluster.end()


def test_auto_is_one_per_cpu():
    """Without a limit there is a worker for each CPU of the affinity mask, unless a cgroup gives less."""
    with running("hello:app", "-w", "auto", workers=None, wait=False) as cluster:
        assert ready_line(cluster)[1] == available_cpus() <= len(os.sched_getaffinity(0))
        cluster.end()


# ---- the command line beside it ------------------------------------------------------------------------------------
def test_commands_among_several():
    """`ps`, `counters` and `stop` act on the cluster that is named, and want a name when there are several."""
    with running("counting:app", "--name=one") as one, running("counting:app", "--name=two", base=one.base) as two:
        assert [one.get(), one.get(), two.get()] == ["1", "2", "1"]
        asked = one.command_line("stop", code=2)
        assert asked.stderr == "zcluster: error: several clusters are running: one, two; choose one with --name\n"
        assert one.command_line("counters", "--name", "one").stdout == "requests  2\n"
        assert one.command_line("counters", "--name", "two").stdout == "requests  1\n"
        assert two.url in one.command_line("ps", "--name", "two").stdout
        one.command_line("stop", "--name", "one", "--wait")
        assert one.wait() == 0
        assert "stop was asked for on the bus" in one.log
        assert one.command_line("counters").stdout == "requests  1\n"  # the only one now
        assert "no cluster named 'one' is running" in one.command_line("stop", "--name", "one", code=4).stderr
        two.command_line("stop")
        two.ended()
        assert "zcluster: error: no cluster is running" in one.command_line("ps", code=4).stderr


def test_the_installed_command():
    """`zcluster` is the same program as `python -m zcluster`."""
    with running("hello:app", workers=1, program=[str(Path(sys.executable).with_name("zcluster"))]) as cluster:
        assert cluster.ps()["launcher_pid"] == cluster.process.pid
        cluster.end()
