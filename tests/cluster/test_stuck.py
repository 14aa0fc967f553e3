"""Requests that the application does not end (--timeout), and the stacks of workers that hang (`dump`, USR2)."""

import re
import signal
import time

import pytest
from anatomy import kill
from harness import answers_until, running, wait_for
from observer import Observer
from test_hang import answer, request, stacks_of

PERIODS = ("--heartbeat=0.05", "--ledger-tick=0.02", "--hang-timeout=120")
LIMITS = ("--timeout=0.5", "--timeout-grace=0.5")
UPLOAD = 600_000  # more than is collected before the application has it


@pytest.fixture(scope="module")
def cluster():
    with running("hanging:app", *PERIODS, *LIMITS, workers=1) as running_cluster:
        yield running_cluster


@pytest.fixture
def seen(cluster):
    with Observer(cluster) as observer:
        observer.wait_ready(1)
        yield observer


def in_flight(seen, pid, count):
    return seen.wait(lambda: seen.workers()[pid].inflight == count, f"{count} requests are in flight")


def heir_of(seen, victim):
    return next((w for w in seen.workers().values() if w.id > victim.id and w.state == "ready"), None)


def test_a_stuck_request_costs_nobody_else_anything(cluster, seen):
    """Its stack, another worker first, the worker's other request to its end, then the end: reason timeout."""
    victim = seen.wait_ready(1)[0]
    with cluster.connect(60) as upload, request(cluster, "/sleep?600") as stuck:
        upload.sendall(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % UPLOAD)
        upload.sendall(b"x" * (UPLOAD // 2))
        in_flight(seen, victim.pid, 2)
        cluster.wait_log(
            r"GET /sleep has been in the application for .* longer than the limit of 0.5 s, in thread .*:"
        )
        draining = seen.wait_state(victim.pid, "draining")
        assert draining.note == "1 stuck request"
        heir = seen.wait(lambda: heir_of(seen, victim), "another one is ready")
        answers_until(cluster.address, lambda pid: pid == b"%d" % heir.pid, "/pid")
        assert not seen.happened("exit", victim.pid)
        upload.sendall(b"x" * (UPLOAD - UPLOAD // 2))
        assert answer(upload) == b"%d" % UPLOAD
        dead = seen.wait_exit(victim.pid)
        assert answer(stuck) == b""
    assert (dead.exitcode, dead.signal, dead.reason) == (0, None, "timeout")
    assert dead.exited_after_disconnect
    kinds = [(event.kind, event.worker.pid) for event in seen.events if event.worker is not None]
    assert kinds.index(("listening", heir.pid)) < kinds.index(("disconnect", victim.pid))
    story = cluster.log.partition("GET /sleep has been")[2].partition("\n[")[0]
    assert "in sleep_soundly" in story
    assert "in _lead" not in story
    assert cluster.log.count("longer than the limit of") == 1
    assert cluster.log.count(f"exit functions of {victim.pid}\n") == 1
    cluster.wait_log(rf"Worker {victim.pid} \(id 1, slot 0\) has 1 request that does not come back")
    cluster.wait_log(rf"Worker {victim.pid} died\. left as it was told \(timeout\); slot 0 has its replacement")


def test_stacks_of_one_that_hangs_in_c(cluster, seen):
    """The operator sees its line without its help, or the master's; stopped, it stays so and is named."""
    victim = seen.wait_ready(1)[0]
    with request(cluster, "/regex") as sock:
        wait_for(lambda: "in hold_the_interpreter" in cluster.command_line("dump", "0").stdout)
        cluster.signal(signal.SIGUSR2)
        cluster.wait_log(r"stacks of zygote gen=1 pid=\d+:\n")
        label = f"worker[0] gen=1 id={victim.id} pid={victim.pid}"
        cluster.wait_log(rf"stacks of {re.escape(label)}:\n[^\[]*in hold_the_interpreter\n")
        kill(victim.pid, number=signal.SIGSTOP)
        out = cluster.command_line("dump", code=1).stdout
        assert f"{label}\nstopped (state T)" in out
        assert "zygote gen=1" in out
        assert seen.workers()[victim.pid].pid  # it was not continued, nor ended
        kill(victim.pid)
        assert answer(sock) == b""
    seen.wait_ready(1, without=[victim.pid])
    assert not stacks_of(cluster.log, victim.id)  # those are of workers we give up


def test_a_slot_without_a_worker(cluster):
    """One line that says which there are."""
    out = cluster.command_line("dump", "7", code=1)
    assert out.stderr == "zcluster: error: no worker is in slot 7; there are workers in 0\n"


def test_a_stop_does_not_wait_for_what_is_stuck():
    """A drain would last for 30 s; it is over when the limit and its grace are."""
    with running("hanging:app", *PERIODS, *LIMITS, workers=1) as cluster, Observer(cluster) as seen:
        victim = seen.wait_ready(1)[0]
        with request(cluster, "/sleep?600") as stuck:
            in_flight(seen, victim.pid, 1)
            begun = time.monotonic()
            log = cluster.end()
            assert answer(stuck) == b""
        assert time.monotonic() - begun < 20
        assert "it is given up, and its client is cut off" in log
