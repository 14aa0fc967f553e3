"""Applications with children: they just work, and nothing of the cluster's is theirs."""

import json
import os
import re
import signal

import pytest
from anatomy import gone, instance, kill
from harness import running, wait_for
from load import Load
from observer import Observer

from zcluster.unix.process import processes

WORKERS = 2
# What a child may find open: what it opened itself, and what multiprocessing gives it. Of an os.fork also the
# eventfds in which libzmq's threads of the parent wait for one another, and pidfds: with them it can do no harm.
PROPER = re.compile(r"pipe:|/dev/null|/dev/urandom|/proc/\d+/fd|socket:|anon_inode:\[(eventpoll|eventfd|pidfd)\]")
INTERNAL_SIGNALS = 0b11 << 31  # 32 and 33, glibc's own: its posix_spawn has the first ignored
JOB_CONTROL = 0b11 << 20  # TTIN and TTOU: workers are background processes, and a terminal must not stop them


@pytest.fixture(scope="module")
def cluster():
    with running("children:app", workers=WORKERS) as running_cluster:
        yield running_cluster


@pytest.fixture(scope="module")
def seen(cluster):
    with Observer(cluster) as observer:
        yield observer


@pytest.fixture(autouse=True)
def before(cluster, seen):
    """The workers, by slot; after the test the count is right, no zombie is left, and the engine is whole."""
    yield seen.wait_ready(WORKERS)
    count = seen.snapshot().counters.get("requests", 0)
    assert int(cluster.get("/")) == count + 1
    wait_for(lambda: not zombies(cluster), what="no zombie is left")
    assert "HTTP engine" not in cluster.log, cluster.log


def family(cluster):
    """The launcher and its children."""
    pid = cluster.process.pid
    return {pid, *(found.pid for found in processes() if found.ppid == pid)}


def zombies(cluster):
    return [found for found in processes() if found.ppid == cluster.process.pid and found.state == "Z"]


def ask(cluster, path):
    return json.loads(cluster.get(path, timeout_s=20.0))


def same_workers(seen, before):
    after = seen.wait_ready(WORKERS)
    assert {slot: w.pid for slot, w in after.items()} == {slot: w.pid for slot, w in before.items()}


def sockets_of(pid):
    """The inodes of a process's sockets."""
    found = set()
    try:
        for entry in os.listdir(f"/proc/{pid}/fd"):
            found.add(os.readlink(f"/proc/{pid}/fd/{entry}"))
    except OSError:  # it, or that one, has gone meanwhile
        return sockets_of(pid) if os.path.exists(f"/proc/{pid}") else set()
    return {target for target in found if target.startswith("socket:")}


def not_ours(cluster, fds):
    """Nothing in a child's list is the cluster's: no listener, no bus, no ledger, no lock, no leash, no client."""
    ours = set().union(*map(sockets_of, family(cluster)))
    bad = [target for target in fds if target in ours or str(instance(cluster)) in target or not PROPER.match(target)]
    assert not bad, f"{bad} of {fds}"


@pytest.mark.parametrize("path", ["/fds_of_subprocess?yes", "/fds_of_subprocess", "/fds_of_shell"])
def test_executed_programs_inherit_nothing(cluster, seen, before, path):
    """subprocess with and without close_fds, and posix_spawn: no descriptor of the cluster is inheritable."""
    not_ours(cluster, ask(cluster, path))
    same_workers(seen, before)


def test_subprocess_run(cluster, seen, before):
    """Its output and exit code come back; no signal is ignored in it, and none blocked but those of job control."""
    assert ask(cluster, "/run") == "42"
    masks = ask(cluster, "/signals")
    found = {name: int(masks[name], 16) & ~INTERNAL_SIGNALS for name in ("SigBlk", "SigIgn", "SigCgt")}
    assert found == {"SigBlk": JOB_CONTROL, "SigIgn": 0, "SigCgt": 0}
    same_workers(seen, before)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_process(cluster, seen, before, method):
    """A Process answers through its pipe, exits with 0, and has nothing of ours open."""
    answer = ask(cluster, f"/process?{method}")
    assert answer["exitcode"] == 0
    not_ours(cluster, answer["fds"])
    same_workers(seen, before)


@pytest.mark.parametrize("path", ["/pool?fork", "/executor?spawn"])
def test_pools(cluster, seen, before, path):
    """multiprocessing.Pool and ProcessPoolExecutor: work is done, and they close."""
    assert ask(cluster, path) == [n * n for n in range(10)]
    same_workers(seen, before)


def test_fork_and_exit(cluster, seen, before):
    """os.fork with a child that ends by os._exit: its code comes back, and it had nothing of ours open."""
    answer = ask(cluster, "/fork_and_exit")
    assert answer["code"] == 7
    not_ours(cluster, answer["answer"])
    same_workers(seen, before)


def test_counters_in_a_child(cluster, seen, before):
    """incr() and value raise ClusterError there, for new counters too; `worker` is false; TERM has its default."""
    counters = seen.snapshot().counters
    answer = ask(cluster, "/fork_and_count")["answer"]
    assert [bool(re.match("ClusterError: .*fork", text)) for text in answer[:3]] == [True] * 3, answer
    assert answer[3:] == [False, True]
    assert seen.snapshot().counters == counters
    same_workers(seen, before)


def test_a_child_ended_at_its_birth(cluster, seen, before):
    """TERM right after the fork ends the child, every time, and is not taken for one that was sent to the worker."""
    assert ask(cluster, "/fork_and_end?100") == [-signal.SIGTERM] * 100
    same_workers(seen, before)
    assert not [e for e in seen.events if e.kind in ("disconnect", "exit")], seen.events


def test_a_child_of_a_child(cluster, seen, before):
    """What a child has opened and set up for itself is left alone in the children it forks."""
    assert ask(cluster, "/fork_twice") == {"files": 64, "handler": True}
    same_workers(seen, before)


@pytest.mark.parametrize(("how", "code"), [("", 1), ("raise", 1), ("exit", 5)])
def test_a_child_that_returns_from_the_request(cluster, seen, before, how, code):
    """It ends, without a byte to the client and without running the loop; the parent answers once."""
    base = seen.snapshot().counters.get("requests", 0)
    with Load(cluster.address, clients=2) as load, cluster.connect() as sock:
        sock.sendall(f"GET /fork_and_return?{how} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        data = b""
        while more := sock.recv(65536):
            data += more
    assert data.count(b"HTTP/1.1") == 1, data
    assert data.endswith(b"\r\n\r\n%d" % code), data
    load.check(seen.snapshot().counters["requests"], base=base)
    if how != "exit":  # that is a proper way to end
        cluster.wait_log(
            rf"GET /fork_and_return\?{how}: the application forked a process that returned from the request"
        )
    same_workers(seen, before)


@pytest.mark.parametrize("argument", ["", "written"])
def test_a_child_that_returns_in_the_middle_of_a_response(cluster, seen, before, argument):
    """The response is the parent's alone, and whole."""
    assert cluster.get(f"/generator?{argument}") == "begun,1"
    same_workers(seen, before)


def test_a_child_that_lives_on(cluster, seen, before):
    """The client sees the end of its connection all the same; so do later clients."""
    with cluster.connect(timeout_s=15.0) as sock:
        sock.sendall(b"GET /hold HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        data = b""
        while more := sock.recv(65536):  # socket.timeout if the child kept it open
            data += more
    pid = int(data.rpartition(b"\r\n")[2])
    wait_for(lambda: not sockets_of(pid), what="the child has let go of every socket")  # its hooks may run yet
    for _ in range(10):
        cluster.get("/")
    kill(pid)
    same_workers(seen, before)


def test_what_a_killed_worker_leaves(cluster, seen, before):
    """Its pools, their helpers and a child left running are told to end; none is left, not even as a zombie."""
    running_child = ask(cluster, "/left_running")
    pools = ask(cluster, "/pools_left_running")
    victims = [w.pid for w in before.values()]
    kill(*victims)
    gone(running_child, *pools)
    seen.wait_ready(WORKERS, without=victims)
    wait_for(lambda: set(cluster.processes()) <= family(cluster), what="nothing but the cluster is left")
    wait_for(lambda: not zombies(cluster), what="no zombie is left")


def test_a_graceful_end_takes_the_children_along(cluster):
    """TERM while pools and a child are left running: exit 0, and (the harness looks) nothing is left."""
    with running("children:app", workers=1) as other:
        ask(other, "/left_running")
        ask(other, "/pools_left_running")
        assert other.stop(signal.SIGTERM) == 0
        assert not other.processes()
