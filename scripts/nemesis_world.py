"""The cluster that the nemesis hurts: how it is started, what of it lives, and whether it is whole again."""

import argparse
import os
import re
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zcluster import Cluster
from zcluster.errors import BusError, ClusterError

ZCLUSTER = [sys.executable, "-m", "zcluster"]
START_S = 60.0
ORDER_S = 60.0
LOOK_S = 0.01
KILL_S = 1.0  # a process that has been killed ends in milliseconds, unless a disk or a debugger holds it
ROLES = {"master": "zc-master", "zygote": "zc-zygote", "checkpoint writer": "zc-checkpoint"}  # as ps(1) shows them
# Scaled: a hang is found out in seconds. Not less: on a busy machine a healthy process may not run for a second.
HANG_S = 4.0
PERIODS = ("--heartbeat=0.2", f"--hang-timeout={HANG_S:g}", "--ledger-tick=0.1", f"--master-timeout={HANG_S:g}",
           "--dump-grace=0.2", "--orphan-timeout=1", "--graceful-timeout=10", "--checkpoint=0.25")  # fmt: skip

APP = """
import os
import time
from zcluster import Counter, subscribe
VERSION = {version}
requests = Counter("requests")
{broken}
subscribe("ping")(lambda _: os.getpid())

def app(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        time.sleep(0.03)
    body = b"%d\\n" % requests.incr()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
# {padding}
"""


@dataclass
class World:
    """One cluster after the other, in the same folders and with the same state."""

    folder: Path  # the app and the log
    shm: Path  # the run directory, and with it all that must be on tmpfs
    options: argparse.Namespace
    periods: tuple[str, ...] = PERIODS
    version: int = 0
    port: int = 0
    log: list[str] = field(default_factory=list)  # of those that have ended

    def __post_init__(self) -> None:
        self.write()
        (self.shm / "run").mkdir(0o700, exist_ok=True)

    @property
    def size(self) -> int:
        return int(self.options.workers)

    def write(self, broken: str = "") -> None:
        """Replace the app. Its length tells versions apart: bytecode is taken for fresh by second and size."""
        self.version += 1
        text = APP.format(version=self.version, broken=broken, padding="x" * (self.version % 4096))
        (self.folder / "new").write_text(text)
        (self.folder / "new").replace(self.folder / "app.py")

    def start(self) -> None:
        """Start it and wait until it is ready. Raises `ClusterError`."""
        words = [*ZCLUSTER, "run", "app:app", "--bind=127.0.0.1:0", f"--workers={self.size}", *self.periods]
        words += [f"--run-dir={self.shm / 'run'}", f"--state={self.shm / 'state'}"]
        with (self.folder / "log").open("ab") as log:
            # A group of its own: ^C is ours alone, and the cluster is ended in order.
            self.launcher = subprocess.Popen(
                words, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, cwd=self.folder, process_group=0
            )
        assert self.launcher.stdout is not None
        ready, _, _ = select.select([self.launcher.stdout], [], [], START_S)
        line = self.launcher.stdout.readline().decode() if ready else ""
        self.launcher.stdout.close()
        found = re.search(r"ready on http://127\.0\.0\.1:(\d+) ", line)
        if not found:
            raise ClusterError(f"the cluster did not start: {line!r}, and the end of its log is\n{self.tail()}")
        self.port = int(found[1])
        self.handle = Cluster.attach(run_dir=str(self.shm / "run"))
        current = next((self.shm / "run").glob("zcluster-*/*/current"))
        self.run_dir = current.with_name(current.read_text().strip())

    def end(self) -> None:
        """Let go of it, and end what is left of it; does nothing when it has never been started."""
        if hasattr(self, "handle"):
            self.handle.close()
        if hasattr(self, "launcher"):
            if self.launcher.poll() is None:
                self.launcher.terminate()
            try:
                self.launcher.wait(ORDER_S)
            except subprocess.TimeoutExpired:
                self.launcher.kill()
                self.launcher.wait()

    def tail(self, lines: int = 20) -> str:
        return "\n".join((self.folder / "log").read_text(errors="replace").splitlines()[-lines:])

    # ---- what lives ------------------------------------------------------------------------------------------------
    def snapshot(self) -> dict[str, Any]:
        """What `zcluster ps --json` prints; empty while no master answers."""
        try:
            return self.handle.snapshot(timeout_s=1.0)
        except BusError:
            return {}

    def processes(self) -> dict[int, str]:
        """pid -> name of each process whose parent is the launcher, without the stopped: they are as good as gone."""
        found = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    name, _, rest = Path(f"/proc/{entry}/stat").read_text().partition("(")[2].rpartition(")")
                except OSError:
                    continue
                state, parent = rest.split()[:2]
                if int(parent) == self.launcher.pid and state not in "TZX":
                    found[int(entry)] = name
        return found

    def members(self) -> list[int]:
        """Every process with our folder as its working directory, the launcher too, whoever its parent is."""
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != os.getpid():
                try:
                    state = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0]
                    if state not in "ZX" and os.readlink(f"/proc/{entry}/cwd") == str(self.folder):
                        found.append(int(entry))
                except OSError:
                    continue
        return found

    def workers(self) -> list[int]:
        """The pids of the workers that are ready; waits until there are as many as there should be."""
        self.whole(frozenset(), ORDER_S)
        return [int(worker["pid"]) for worker in self.snapshot().get("workers", []) if worker["state"] == "ready"]

    def of_role(self, role: str) -> int:
        """The pid of the master, the zygote or a service; waits until there is one. Raises `ClusterError`."""
        deadline = time.monotonic() + ORDER_S
        while time.monotonic() < deadline:
            for pid, name in self.processes().items():
                if name == ROLES[role]:
                    return pid
            time.sleep(LOOK_S)
        raise ClusterError(f"there is no {role} for {ORDER_S:g} s:\n{self.tail()}")

    def is_whole(self, without: frozenset[int]) -> bool:
        """Whether every slot has one ready worker and every role its process, none of them in `without`."""
        state = self.snapshot()
        if not state or state["state"] != "running" or state["slots"] != list(range(self.size)):
            return False
        there = [(worker["slot"], worker["state"]) for worker in state["workers"]]
        if sorted(there) != [(slot, "ready") for slot in range(self.size)]:
            return False
        alive = self.processes()
        wanted = {worker["pid"] for worker in state["workers"]} | {state["master_pid"], state["zygote_pid"]}
        names = set(alive.values())
        return (
            wanted <= alive.keys()
            and not wanted & without
            and {*ROLES.values()} <= names
            and self.all_answer({worker["pid"] for worker in state["workers"]})
        )

    def all_answer(self, pids: set[int]) -> bool:
        """Whether these workers, and no others, answer a question to all of them: both ways of the bus are open."""
        try:
            replies, missing = self.handle.gather("ping", timeout=0.5)
        except BusError:
            return False
        return not missing and set(replies.values()) == pids

    def whole(self, without: frozenset[int], timeout_s: float) -> bool:
        """Wait until it is; False when it is not within `timeout_s` seconds."""
        deadline = time.monotonic() + timeout_s
        while not self.is_whole(without):
            if time.monotonic() > deadline:
                return False
            time.sleep(LOOK_S)
        return True


def kill(*pids: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to each that is still there.

    Whom SIGKILL was sent to is gone on return, or holds out for KILL_S: a fault beside this one does not mistake it
    for the one that has taken its place.
    """
    assert all(pid > 0 for pid in pids), "0 and -1 would be everybody"
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
    deadline = time.monotonic() + KILL_S
    while number == signal.SIGKILL and not all(map(gone, pids)) and time.monotonic() < deadline:
        time.sleep(0.001)


def gone(pid: int) -> bool:
    """Whether this process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True
