"""The bus fails and the processes do not: cut connections, deaf and slow peers, late joiners. Rows 7, 15, 17."""

import ctypes
import os
import signal
import socket
import statistics
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from anatomy import PATIENCE_S, instance, kill, see
from harness import running, wait_for
from load import Load
from observer import Observer

HANG_S = 3.0  # SUSPECT at a third of it; a busy machine must not keep anybody from running for so long
OPTIONS = (f"--hang-timeout={HANG_S}", "--heartbeat=0.05", "--ledger-tick=0.02")
WORKERS = 3
PIDFD_GETFD = 438  # the same number on every architecture since Linux 5.6


@pytest.fixture(scope="module")
def seen_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("seen")


@pytest.fixture(scope="module")
def cluster(seen_dir):
    with running("listening:app", *OPTIONS, workers=WORKERS, env={"SEEN_DIR": str(seen_dir)}) as running_cluster:
        yield running_cluster


@pytest.fixture
def seen(cluster):
    with Observer(cluster) as observer:
        observer.wait_ready(WORKERS)
        yield observer


@pytest.fixture
def told(seen_dir):
    """pid -> the totals that its on_change was told, in order."""

    def read(pid):
        path = seen_dir / str(pid)
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    return read


def taken_from(pid, fd):
    """A duplicate of another process's socket (pidfd_getfd(2)); None when that is none, or is gone."""
    pidfd = os.pidfd_open(pid)
    try:
        copy = ctypes.CDLL(None, use_errno=True).syscall(PIDFD_GETFD, pidfd, fd, 0)
        if copy < 0:
            return None
        try:
            return socket.socket(fileno=copy)
        except OSError:  # a file, not a socket
            os.close(copy)
            return None
    finally:
        os.close(pidfd)


def connections(pid, run_dir):
    """name -> how many connections to that socket of the bus this process has."""
    found = {"ctl": [], "pub": [], "evt": []}
    for entry in os.listdir(f"/proc/{pid}/fd"):
        sock = taken_from(pid, int(entry))
        if sock is None:
            continue
        try:
            peer = sock.getpeername()
        except OSError:
            peer = ""
        name = Path(peer).name if isinstance(peer, str) and peer.startswith(str(run_dir)) else ""
        if name in found:
            found[name].append(sock)
        else:
            sock.close()
    return found


def cut(pid, run_dir, names=("ctl", "pub", "evt")):
    """Shut this process's connections to the bus down under its feet."""
    for name, socks in connections(pid, run_dir).items():
        for sock in socks:
            if name in names:
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


@contextmanager
def unreachable(run_dir, *names):
    """Nobody can connect to these sockets of the bus; who is connected stays so."""
    for name in names:
        (run_dir / name).rename(run_dir / f"{name}-away")
    try:
        yield
    finally:
        for name in names:
            (run_dir / f"{name}-away").rename(run_dir / name)


def is_connected(pid, run_dir):
    found = connections(pid, run_dir)
    counts = {name: len(socks) for name, socks in found.items()}
    for socks in found.values():
        for sock in socks:
            sock.close()
    return counts == {"ctl": 1, "pub": 1, "evt": 1}


def untouched(seen, before):
    """The same workers as before, all ready, and nobody was given up meanwhile."""
    after = seen.wait_ready(WORKERS)
    assert {s: (w.id, w.pid) for s, w in after.items()} == {s: (w.id, w.pid) for s, w in before.items()}
    assert not [e for e in seen.events if e.kind in ("exit", "error")], seen.events


def stay(seen, seconds):
    """Look on for a while in which something must not happen."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        seen.look(0.02)


@pytest.mark.parametrize("names", [("ctl",), ("pub",), ("evt",), ("ctl", "pub", "evt")], ids="-".join)
def test_cut_connections_heal(cluster, seen, told, names):
    """Shut down while the process lives: reconnected, nobody killed, and no total is missed for good."""
    run_dir = instance(cluster)
    before = seen.wait_ready(WORKERS)
    base = cluster.counters().get("requests", 0)
    with Load(cluster.address, clients=2) as load:
        for worker in before.values():
            cut(worker.pid, run_dir, names)
        seen.wait(lambda: all(is_connected(w.pid, run_dir) for w in before.values()), "all are connected again")
    total = cluster.counters()["requests"]
    load.check(total, base=base)
    for worker in before.values():
        seen.wait(lambda: told(worker.pid)[-1:] == [total], f"worker {worker.pid} has heard of the total {total}")  # noqa: B023
        assert told(worker.pid) == sorted(set(told(worker.pid)))
    untouched(seen, before)


def test_a_worker_without_a_bus_is_not_killed(cluster, seen, told):
    """Unheard for longer than the hang limit while its ledger tick is fresh: suspect, told to reconnect, alive."""
    run_dir = instance(cluster)
    before = seen.wait_ready(WORKERS)
    lonely = before[1]
    base = cluster.counters().get("requests", 0)
    with Load(cluster.address, clients=2) as load:
        with unreachable(run_dir, "ctl", "pub", "evt"):
            cut(lonely.pid, run_dir)
            seen.wait_state(lonely.pid, "suspect")
            stay(seen, HANG_S + 0.3)
            assert seen.workers()[lonely.pid].state == "suspect"
        seen.wait_state(lonely.pid, "ready")
    total = cluster.counters()["requests"]
    load.check(total, base=base)  # it has served all the time, and not one of its increments is lost
    cluster.wait_log(
        rf"Worker {lonely.pid} \(id {lonely.id}, slot 1\) lives but is not heard: told to open its sockets"
    )
    seen.wait(lambda: told(lonely.pid)[-1:] == [total], "it has heard of the total again")
    untouched(seen, before)


def test_a_worker_that_hears_but_is_not_heard(cluster, seen):
    """Only its way up is cut: the ledger tells it to open new sockets, and with them it is heard again."""
    run_dir = instance(cluster)
    before = seen.wait_ready(WORKERS)
    mute = before[2]
    with unreachable(run_dir, "ctl"):
        cut(mute.pid, run_dir, ("ctl",))
        seen.wait_state(mute.pid, "suspect")
    seen.wait_state(mute.pid, "ready")
    wait_for(lambda: is_connected(mute.pid, run_dir), PATIENCE_S, "it has its three connections")
    untouched(seen, before)


def test_a_stopped_subscriber_converges(seen_dir, told):
    """It missed many broadcasts; continued, it is told the newest total in a moment, and never a lower one."""
    options = ("--hang-timeout=60", "--master-timeout=60")  # nobody is to be judged here
    with running("listening:app", *options, env={"SEEN_DIR": str(seen_dir)}) as cluster, Observer(cluster) as seen:
        slow, other = seen.wait_ready(2).values()
        head = seen.snapshot().heads.get("totals", 0)
        kill(slow.pid, number=signal.SIGSTOP)
        with Load(cluster.address, clients=2) as load:
            seen.wait(lambda: seen.snapshot().heads.get("totals", 0) >= head + 20, "twenty broadcasts")
        total = seen.snapshot().counters["requests"]
        load.check(total)
        seen.wait(lambda: told(other.pid)[-1:] == [total], f"worker {other.pid} is told {total}")
        assert not told(slow.pid)
        kill(slow.pid, number=signal.SIGCONT)
        seen.wait(lambda: told(slow.pid)[-1:] == [total], f"worker {slow.pid} is told {total}")
        assert told(slow.pid) == sorted(set(told(slow.pid)))
        assert [w.pid for w in seen.wait_ready(2).values()] == [slow.pid, other.pid]


def test_late_joiners(seen_dir, told):
    """56 joins, eight at once: every new worker is told of the first total after it is READY, and of no other."""
    width, rounds = 8, 7
    env = {"SEEN_DIR": str(seen_dir)}
    with running("listening:app", workers=width, env=env) as cluster, Observer(cluster) as seen:
        there = seen.wait_ready(width)
        took = []
        for _ in range(rounds):
            kill(*(w.pid for w in there.values()))
            begun = time.monotonic()
            there = seen.wait_ready(width, without=[w.pid for w in there.values()])
            took.append(time.monotonic() - begun)
            total = int(cluster.get("/"))  # every one of them is READY: nobody may miss this
            for worker in there.values():
                seen.wait(lambda: told(worker.pid)[-1:] == [total], f"{worker.pid} is told {total}")  # noqa: B023
                assert told(worker.pid) == [total]
        assert cluster.counters()["requests"] == rounds

        def deaths():  # told on another socket than what we were asking meanwhile
            return len([e for e in seen.events if e.kind == "exit"])

        seen.wait(lambda: deaths() >= width * rounds, "every death is told")
        assert deaths() == width * rounds
        print(f"{width} replacements ready after {statistics.median(took) * 1000:.0f} ms (median of {rounds})")


def test_on_change_in_the_others(cluster, seen, told):
    """One request, and every worker is told the total it made: within a moment, each total at most once."""
    workers = seen.wait_ready(WORKERS).values()
    took = []
    for _ in range(20):
        stay(seen, 0.06)  # the bus is idle: what changes now is told at once, not with the next change
        total = int(cluster.get("/"))
        begun = time.monotonic()
        wait_for(lambda: all(told(w.pid)[-1:] == [total] for w in workers), what=f"all are told {total}")  # noqa: B023
        took.append(time.monotonic() - begun)
    for worker in workers:
        assert told(worker.pid) == sorted(set(told(worker.pid)))
    before = {w.pid: told(w.pid) for w in workers}
    cluster.get("/others")  # another counter's change is no news of this one
    seen.wait(lambda: seen.link.totals.get("others", 0) > 0, "the other counter's total is published")
    stay(seen, 0.1)
    assert {w.pid: told(w.pid) for w in workers} == before
    print(f"all {len(workers)} workers told within {statistics.median(took) * 1000:.1f} ms (median)")
    assert see(cluster).worker_pids == sorted(w.pid for w in workers)
