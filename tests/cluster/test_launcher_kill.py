"""The launcher dies, or the program for which it runs: nothing of the cluster is left, the next start succeeds."""

import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress

import pytest
from anatomy import address_of, kill, ledger, ready, see, service, start_again
from harness import APPS, lonely_host, marked, running, wait_for

# DESIGN promises 5 s for the default time-outs; the rest is for a machine that is busy elsewhere. What they took is
# printed, and what must not be waited for, such as the 30 s of a graceful stop, is longer.
GONE_S = 20.0
MOVES = (
    10  # a worker whose tick stands still while the others' have moved so often is stuck, however busy the machine
)


@contextmanager
def asking(cluster, path):
    """A client whose request is in flight, and may never be answered."""

    def ask():
        connection = http.client.HTTPConnection(*cluster.address, timeout=20)
        with suppress(OSError, http.client.HTTPException):
            connection.request("GET", path)
            answers.append(connection.getresponse().read())
        connection.close()

    answers = []
    client = threading.Thread(target=ask)
    client.start()
    yield answers
    client.join(20)
    assert not client.is_alive()


def ticks(cluster):
    """pid -> the last tick of each ready worker's main thread."""
    with ledger(cluster) as seen:
        lanes = [seen.lane(number) for number in range(seen.used_lanes)]
        return {lane.pid: lane.bus_tick_ns for lane in lanes if lane.pid in ready(cluster).values()}


def stuck(cluster):
    """Wait for the one worker whose Python does not run any more; returns its pid."""
    last = ticks(cluster)
    moves = {pid: dict.fromkeys(last.keys() - {pid}, 0) for pid in last}  # of each other one since this one's last

    def look():
        for pid, now in ticks(cluster).items():
            if now != last[pid]:
                last[pid] = now
                moves[pid] = dict.fromkeys(moves[pid], 0)
                for other in moves[pid]:
                    moves[other][pid] += 1
        return next((pid for pid in moves if min(moves[pid].values()) >= MOVES), None)

    return wait_for(look, what="a worker is stuck")


def start_same(cluster, name, *options, **more):
    """The next start of the same name on the same port, which is free: the first one's host is its alone."""
    return start_again(cluster, "faults:app", f"--name={name}", *options, bind=address_of(cluster), **more)


def test_the_launcher_is_killed():
    """An idle cluster is gone at once; its name and port are free."""
    with running("faults:app", "--name=idle", workers=2, bind=f"{lonely_host()}:0") as cluster:
        cluster.get("/many?7")
        kill(cluster.process.pid)
        died_at = time.monotonic()
        assert cluster.wait() == -signal.SIGKILL
        wait_for(lambda: not cluster.processes(), GONE_S, "nothing is left")
        print(f"idle cluster gone after {time.monotonic() - died_at:.3f} s")
        again = start_same(cluster, "idle", workers=2)
        try:
            assert again.wait_ready() == cluster.url
            assert again.get() == "1"
            assert len(list((cluster.base / f"zcluster-{os.getuid()}" / "idle").glob("*/ledger"))) == 1
        finally:
            again.close()


@pytest.mark.parametrize("wait_first", [True, False], ids=["after 5 s", "right after"])
def test_the_launcher_is_killed_over_stuck_workers(tmp_path, wait_first):
    """One worker in C code, one stopped, a checkpoint service: gone after 5 s, or the next start sees to it."""
    state = f"--state={tmp_path / 'state'}"
    with (
        running(
            "faults:app", "--name=stuck", state, "--hang-timeout=60", workers=3, bind=f"{lonely_host()}:0"
        ) as cluster,
        asking(cluster, "/regex"),
    ):
        in_regex = stuck(cluster)
        total = int(cluster.get("/many?7"))
        seen = see(cluster)
        stopped = next(pid for pid in seen.worker_pids if pid != in_regex)
        kill(stopped, number=signal.SIGSTOP)
        service(cluster)
        kill(cluster.process.pid)
        died_at = time.monotonic()
        if wait_first:
            wait_for(lambda: not cluster.processes(), GONE_S, "nothing is left")
            print(f"stuck cluster gone after {time.monotonic() - died_at:.3f} s")
        again = start_same(cluster, "stuck", state, workers=3)
        try:
            assert again.wait_ready() == cluster.url
            assert not cluster.processes()
            assert int(again.get()) == total + 1
        finally:
            again.close()


def test_launcher_and_master_are_killed_together():
    """The leash: workers in C code and stopped ones are gone at once, without anybody to kill them."""
    with (
        running("faults:app", "--hang-timeout=60", workers=3, bind=f"{lonely_host()}:0") as cluster,
        asking(cluster, "/regex"),
    ):
        in_regex = stuck(cluster)
        seen = see(cluster)
        kill(*(pid for pid in seen.worker_pids if pid != in_regex), seen.zygote, number=signal.SIGSTOP)
        kill(cluster.process.pid, seen.master)
        died_at = time.monotonic()
        wait_for(lambda: not cluster.processes(), GONE_S, "nothing is left")  # nobody else could end them
        print(f"gone {time.monotonic() - died_at:.3f} s after launcher and master")
        again = start_same(cluster, "faults", workers=1)
        try:
            assert again.wait_ready() == cluster.url
        finally:
            again.close()


def test_what_nobody_could_end_is_killed_by_the_next_start():
    """A stopped master holds the leash of a stuck worker: the next start waits 5 s for both, kills them, says so."""
    with (
        running("faults:app", "--name=halted", "--hang-timeout=60", workers=2, bind=f"{lonely_host()}:0") as cluster,
        asking(cluster, "/regex"),
    ):
        in_regex, seen = stuck(cluster), see(cluster)
        kill(cluster.process.pid)
        cluster.wait()
        # Only now: a stopped group whose last relative in the session dies is continued by the kernel (setpgid(2)).
        kill(seen.master, number=signal.SIGSTOP)
        wait_for(
            lambda: sorted(cluster.processes()) == sorted([seen.master, in_regex]), GONE_S, "the others are gone"
        )
        again = start_same(cluster, "halted", workers=2)
        try:
            assert again.wait_ready() == cluster.url
            assert not cluster.processes()
            again.wait_log("killed 2 processes that an earlier instance of 'halted' had left")
        finally:
            again.close()


OWNER = """
import subprocess, sys, threading
from zcluster import Cluster

if __name__ == "__main__":
    with Cluster("faults:app", bind="127.0.0.1:0", workers=2, run_dir=sys.argv[1], ledger_tick_s=0.05) as cluster:
        # A child that outlives the program and has inherited all that can be inherited.
        heir = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], close_fds=False)
        print(cluster.url, cluster.snapshot()["launcher_pid"], heir.pid, flush=True)
        threading.Event().wait()
"""


def test_the_program_that_owns_the_cluster_is_killed(tmp_path):
    """The cluster drains: a request in flight is answered, then all of it is gone; the program's children live on."""
    with running("faults:app", wait=False) as cluster:  # only for its run directory, log and the check at the end
        cluster.wait_ready()
        assert cluster.stop() == 0
        script = tmp_path / "owner.py"
        script.write_text(OWNER)
        with cluster.log_path.open("ab") as log:
            owner = subprocess.Popen(
                [sys.executable, str(script), str(cluster.base)],
                stdout=subprocess.PIPE,
                stderr=log,
                env={
                    **os.environ,
                    "PYTHONPATH": f"{APPS}:{APPS.parent.parent}",
                    "ZCT_MARK": cluster.mark.partition("=")[2],
                },
            )
        try:
            cluster.url, launcher, heir = owner.stdout.readline().decode().split()
            launcher, heir = int(launcher), int(heir)
            with asking(cluster, "/slow?2") as answers, ledger(cluster) as seen:
                lanes = [seen.lane(number) for number in range(seen.used_lanes)]
                wait_for(lambda: any(lane.inflight for lane in lanes), what="the request is in flight")
                kill(owner.pid)
                died_at = time.monotonic()
                assert owner.wait(5) == -signal.SIGKILL
                cluster.wait_log("stopping: the process that started it has ended")
            assert answers == [b"1"]
            wait_for(lambda: set(cluster.processes()) <= {heir}, GONE_S, "the cluster is gone")
            print(f"gone {time.monotonic() - died_at:.3f} s after its owner")
            assert set(marked(cluster.mark)) == {heir}, "the program's child was not ours to end"
            assert list(cluster.base.rglob("ledger")) == []
        finally:
            owner.kill()
            owner.wait()
            owner.stdout.close()
            kill(*cluster.processes())
