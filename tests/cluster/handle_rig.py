"""Real clusters in a run directory of their own, and a check that nothing of them is left."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from zcluster import Cluster, current
from zcluster.unix.process import processes

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
# Every period at a tenth or less of its default.
FAST = {
    "bind": "127.0.0.1:0",
    "workers": 2,
    "graceful_timeout_s": 2.0,
    "quick_timeout_s": 0.2,
    "hang_timeout_s": 6.0,
    "heartbeat_s": 0.1,
    "ledger_tick_s": 0.05,
    "orphan_timeout_s": 0.3,
    "boot_timeout_s": 20.0,
}


def until(condition, timeout_s=20.0):
    """Wait for a condition that another process or thread brings about; returns its value."""
    end, pause = time.monotonic() + timeout_s, threading.Event()
    while not (value := condition()):
        assert time.monotonic() < end, "the condition did not come true"
        pause.wait(0.01)
    return value


def get(url):
    """The text of an answer."""
    with urllib.request.urlopen(url, timeout=10) as response:
        return response.read().decode()


def own_children():
    """Our children that are not pytest's own helpers."""
    return [found.pid for found in processes() if found.ppid == os.getpid()]


def ours():
    """The descriptors, threads and children of this process."""
    gc.collect()  # what an earlier test has left to it goes now, and not in the middle of this one
    return {*map(int, os.listdir("/proc/self/fd")), *threading.enumerate(), *(("child", p) for p in own_children())}


@pytest.fixture
def run_dir():
    """A base for run directories on tmpfs; afterwards no cluster, child, thread or descriptor of ours is left."""
    before = ours()
    path = Path(tempfile.mkdtemp(prefix="zt-", dir="/dev/shm"))
    try:
        yield path
        left = [str(entry) for entry in path.rglob("*") if entry.is_file() and entry.name != "lock"]
        assert left == [], f"files are left: {left}"
        assert not ours() - before
        assert current.role == "none"
    finally:
        shutil.rmtree(path)


@pytest.fixture
def options(run_dir):
    """The options of a fast, private cluster."""
    return {**FAST, "run_dir": str(run_dir)}


@pytest.fixture
def command_line(run_dir):
    """Run a command of the command line to its end; `command_line("ps", code=4)` also checks the exit code."""

    def run(*arguments, code=0, timeout_s=30, environ=None, stdout=subprocess.PIPE):
        done = subprocess.run(
            [sys.executable, "-m", "zcluster", *arguments],
            cwd=HERE,
            env={**os.environ, "PYTHONPATH": str(ROOT), "ZCLUSTER_RUN_DIR": str(run_dir), **(environ or {})},
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout_s,
        )
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done

    return run


@pytest.fixture
def launch(run_dir):
    """Start `zcluster run` and wait for its ready line; ended with KILL if the test did not end it."""
    started = []

    def run(*arguments, app="small_app:app"):
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "zcluster", "run", app, "--bind", "127.0.0.1:0", "--workers", "2"),
                *("--graceful-timeout", "2", "--quick-timeout", "0.2", "--orphan-timeout", "0.3", *arguments),
            ],
            cwd=HERE,
            env={**os.environ, "PYTHONPATH": str(ROOT), "ZCLUSTER_RUN_DIR": str(run_dir)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        started.append(process)
        process.ready = process.stdout.readline()
        assert process.ready.startswith("zcluster: ready on http://127.0.0.1:"), process.communicate(timeout=10)
        process.url = process.ready.split()[3]
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise


# ---- handles and what they hear ------------------------------------------------------------------------------------
KINDS = ("fork", "online", "listening", "disconnect", "exit")


@pytest.fixture
def talking(options):
    """A handle on a cluster of two workers that talk, not started yet."""
    return Cluster("talking_app:app", **options)


def record(cluster, told, *kinds):
    """Note every event of the cluster as (kind, worker, further arguments)."""
    for kind in kinds or (*KINDS, "message"):
        cluster.on(kind, lambda *given, kind=kind: told.append((kind, *given)))


def ready(cluster):
    """The workers that listen, by slot."""
    return {w.slot: w for w in cluster.workers.values() if w.has_reached("listening") and w.is_connected()}
