"""What the tests of this folder share: clusters of the app `conforming`, and what happened to their workers."""

import http.client
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from zcluster import Cluster

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
LIMIT_S = 20.0  # longer than anything takes on a machine that runs ten tests at once
# Every period at a tenth or less of its default; but nobody is judged for what a busy machine does to it.
FAST = {
    "bind": "127.0.0.1:0",
    "workers": 2,
    "graceful_timeout_s": 10.0,
    "quick_timeout_s": 0.2,
    "hang_timeout_s": 15.0,
    "heartbeat_s": 0.1,
    "ledger_tick_s": 0.05,
    "boot_timeout_s": 20.0,
}
STAGES = ("fork", "online", "listening", "disconnect", "exit")


def until(condition, timeout_s=LIMIT_S):
    """Wait for a condition that another process or thread brings about; returns its value."""
    end, pause = time.monotonic() + timeout_s, threading.Event()
    while not (value := condition()):
        assert time.monotonic() < end, "the condition did not come true"
        pause.wait(0.005)
    return value


@contextmanager
def base_folder():
    """A base for run directories on tmpfs, in which no file is left in the end."""
    base = Path(tempfile.mkdtemp(prefix="zn-", dir="/dev/shm"))
    try:
        yield base
        until(lambda: not [entry for entry in base.rglob("*") if entry.is_file() and entry.name != "lock"])
    finally:
        shutil.rmtree(base, ignore_errors=True)


@contextmanager
def cluster_of(app="conforming:app", **options):
    """A running cluster in a run directory of its own, of which nothing is left afterwards."""
    with base_folder() as base, Cluster(app, **{**FAST, "run_dir": str(base), **options}) as cluster:
        yield cluster


def whole(cluster, slots):
    """Bring a cluster that tests share back to one ready worker in each of the first so many slots."""
    for worker in cluster.workers.values():
        if worker.slot >= slots:
            worker.disconnect()
    cluster.wait_for(lambda: all(worker.slot < slots for worker in cluster.workers.values()), LIMIT_S)
    cluster.scale(slots)

    def is_whole():
        there = sorted((worker.slot, worker.state) for worker in cluster.workers.values())
        return there == [(slot, "ready") for slot in range(slots)]

    cluster.wait_for(is_whole, LIMIT_S)
    return cluster


def in_slot(cluster, slot):
    """The worker of a slot."""
    return next(worker for worker in cluster.workers.values() if worker.slot == slot)


def end_of(cluster, worker):
    """Wait for the exit of a worker; returns its code and signal."""
    cluster.wait_for(worker.is_dead, LIMIT_S)
    return worker.exitcode, worker.signal


def get(cluster, path="/", url=None):
    """The text of an answer, on a connection of its own."""
    with urllib.request.urlopen((url or cluster.url) + path, timeout=LIMIT_S) as response:
        return response.read().decode()


def address_of(url):
    """Host and port of a URL."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    return host.strip("[]"), int(port)


def connection(cluster, url=None):
    """A connection of http.client's."""
    return http.client.HTTPConnection(*address_of(url or cluster.url), timeout=LIMIT_S)


class Begun:
    """A request to a path that begins its answer with the worker's id, and is in no hurry to end it."""

    def __init__(self, cluster, path):
        self.connection = connection(cluster)
        self.connection.request("GET", path)
        self.response = self.connection.getresponse()
        self.worker = cluster.workers[int(self.response.read(8))]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.connection.close()


class Gate(Begun):
    """A request to /held: it has begun when its first bytes are here, and ends when `open` is called."""

    def __init__(self, cluster, folder):
        self.path = Path(folder) / f"gate-{id(self):x}"
        os.mkfifo(self.path)
        # Both ends, so that neither this nor the app waits for the other to open.
        self.fd = os.open(self.path, os.O_RDWR)
        super().__init__(cluster, f"/held?{self.path}")

    def open(self):
        """Let the request end; returns the rest of its body."""
        os.write(self.fd, b"x")
        return self.response.read()

    def __exit__(self, *error):
        os.write(self.fd, b"x")
        super().__exit__(*error)
        os.close(self.fd)
        self.path.unlink()


class Told:
    """Everything that the callbacks of a cluster are told, in order."""

    def __init__(self, cluster):
        self.all = []
        for event in (*STAGES, "error"):
            cluster.on(event, lambda worker, event=event: self.all.append((event, worker)))

    def listen_to(self, worker):
        """Have the events of this worker told by its own callbacks, too."""
        for event in STAGES[1:]:
            worker.on(event, lambda event=event: self.all.append((f"worker {event}", worker)))

    def of(self, worker):
        """What was told of this worker, in order."""
        return [event for event, other in list(self.all) if other is not None and other.id == worker.id]

    def await_exit(self, worker):
        """Wait until the last callback of this worker has been called; returns what all of them were told."""
        until(lambda: "exit" in self.of(worker))
        return self.of(worker)

    def errors(self):
        """The workers of all errors."""
        return [worker for event, worker in list(self.all) if event == "error"]


class Load:
    """Clients that ask all the time; `failed` says what they got instead of an answer."""

    def __init__(self, cluster, clients=2, path="/"):
        self.address, self.path = address_of(cluster.url), path
        self.answered, self.failed = 0, []
        self._ends = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def _ask(self):
        while not self._ends.is_set():
            client = http.client.HTTPConnection(*self.address, timeout=LIMIT_S)
            try:
                client.request("GET", self.path)
                response = client.getresponse()
                body = response.read()
                with self._lock:
                    self.answered += 1
                    if response.status != 200:
                        self.failed.append((response.status, body))
            except (OSError, http.client.HTTPException) as error:
                with self._lock:
                    self.failed.append(error)
            finally:
                client.close()

    def more(self, count=20):
        """Wait for so many further answers."""
        before = self.answered
        until(lambda: self.answered >= before + count or self.failed)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        self.more(1)
        return self

    def __exit__(self, *error):
        self._ends.set()
        for thread in self._threads:
            thread.join()


def stop(worker):
    """SIGSTOP, and wait until the last of its threads has stopped: until then some may go on."""
    assert worker.kill(signal.SIGSTOP)
    tasks = Path(f"/proc/{worker.pid}/task")
    until(lambda: {state_of(task / "stat") for task in tasks.iterdir()} == {"T"})


def state_of(path):
    """The letter that a file named stat of /proc has for the state of a process or thread."""
    return path.read_text().rpartition(")")[2].split()[0]


def is_alive(pid):
    """Whether there is a process of this number that has not ended."""
    try:
        return state_of(Path(f"/proc/{pid}/stat")) not in "ZX"
    except OSError:
        return False


def program(code, *arguments):
    """Run a program, of some lines or in a file, with our package and apps on its path, to its end."""
    started = subprocess.Popen(
        [sys.executable, *([code] if isinstance(code, Path) else ["-c", code]), *map(str, arguments)],
        cwd=HERE,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{HERE}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, errors = started.communicate(timeout=3 * LIMIT_S)
    except subprocess.TimeoutExpired:
        started.send_signal(signal.SIGKILL)
        started.communicate()
        raise
    return subprocess.CompletedProcess(started.args, started.returncode, out, errors)
