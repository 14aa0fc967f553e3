"""Whole clusters for tests: `zcluster run` as an operator starts it, on a real port, observed from outside.

A `Running` leaves nothing behind: `close` kills what a test has left and then asserts that no process, run-directory
file or socket of it exists any more.
"""

import http.client
import json
import os
import random
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from signal import SIGTERM  # the class below has a method `signal`

APPS = Path(__file__).parent.parent / "apps"
ZCLUSTER = [sys.executable, "-m", "zcluster"]
READY = re.compile(r"zcluster: ready on (\S+) \((\d+) workers, master (\d+)\)")
KEPT_MAX = 64  # connections that `answers_until` keeps open: far below any limit of descriptors


def wait_for(condition: Callable[[], object], timeout_s: float = 30.0, what: str = "") -> object:
    """Poll until `condition()` is true and return its value; AssertionError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what or condition}")
        select.select([], [], [], 0.005)


def answers_until(address: tuple[str, int], done: Callable[[bytes], bool], path: str = "/") -> None:
    """Ask until `done(body)`, each time on a connection of its own that stays open.

    For tests that want an answer of a certain worker, or of all: nobody promises which idle worker accepts, but one
    that has many connections leaves the next to the others.
    """
    with ExitStack() as kept:
        asked = 0

        def once() -> bool:
            nonlocal asked
            asked += 1
            if asked % KEPT_MAX == 0:
                kept.close()
            connection = kept.enter_context(closing(http.client.HTTPConnection(*address, timeout=15)))
            connection.request("GET", path)
            return done(connection.getresponse().read())

        wait_for(once, what="an answer of the one that is wanted")


def lonely_host() -> str:
    """A loopback address that nobody else uses: a port on it is still free when it has been given back."""
    return f"127.{random.randrange(1, 255)}.{random.randrange(256)}.{random.randrange(1, 255)}"


def free_port() -> int:
    """A TCP port that is free on all addresses, and that the kernel gives to nobody who asks for any port."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(lowest // 2, lowest)
        try:
            socket.create_server(("0.0.0.0", port)).close()
        except OSError:
            continue
        return port


class Running:
    """A cluster started with `zcluster run`, in a run directory of its own."""

    def __init__(self, app: str, *options: str, workers: int | None = 2, fast: bool = True, base: Path | None = None,
                 env: dict[str, str] | None = None, cwd: Path = APPS, wait: bool = True,
                 bind: str = "127.0.0.1:0", prefix: Sequence[str] = (), popen: dict[str, object] | None = None,
                 program: Sequence[str] = ZCLUSTER) -> None:  # fmt: skip
        """`workers` None, `bind` "": not given. `prefix`: a command that execs the rest. `popen`: its keywords."""
        self.own_base = base is None
        self.base = base or Path(tempfile.mkdtemp(prefix="zct-", dir="/dev/shm"))
        # The hang timeout is no tenth of its default: on a machine with ten tests at once a process may not run for
        # a second; whoever tests the judgement of hanging workers says how long it shall take.
        periods = ["--heartbeat=0.1", "--hang-timeout=6", "--ledger-tick=0.05", "--dump-grace=0.2"] if fast else []
        self.log_path = Path(tempfile.mkstemp(prefix="zct-", suffix=".log")[1])
        given = [f"--bind={bind}"] if bind else []
        given += [f"--workers={workers}"] if workers is not None else []
        self.command = [*prefix, *program, "run", app, *given, f"--run-dir={self.base}", *periods, *options]
        # The mark by which leftovers are found: it stands in the environment of every process of the cluster.
        self.mark = f"ZCT_MARK={self.log_path}"
        with self.log_path.open("wb") as log:
            keywords: dict[str, object] = {
                "stdout": subprocess.PIPE, "stderr": log, "stdin": subprocess.DEVNULL, "cwd": cwd,
                "env": {**os.environ, "ZCT_MARK": str(self.log_path), "PYTHONFAULTHANDLER": "1", **(env or {})},
            }  # fmt: skip
            self.process = subprocess.Popen(self.command, **{**keywords, **(popen or {})})
        self.url = ""
        self.name = app.partition(":")[0]
        if wait:
            try:
                self.wait_ready()
            except BaseException:  # nobody else knows of us yet
                self.remove()
                raise

    # ---- what it says ----------------------------------------------------------------------------------------------
    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait_ready(self, timeout_s: float = 40.0) -> str:
        """Wait for the ready line; returns and keeps the URL."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], timeout_s)
        line = self.process.stdout.readline().decode() if ready else ""
        found = READY.search(line)
        assert found, f"no ready line but {line!r}, exit {self.process.poll()}, log:\n{self.log}"
        self.url = found[1]
        return self.url

    def command_line(self, command: str, *options: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run `zcluster COMMAND` on the clusters in this run directory to its end."""
        out = subprocess.run([*ZCLUSTER, command, f"--run-dir={self.base}", *options],
                             capture_output=True, text=True, timeout=40)  # fmt: skip
        assert out.returncode == code, f"{out.returncode}: {out.stdout}{out.stderr}\nlog:\n{self.log}"
        return out

    def ps(self, *options: str) -> dict[str, object]:
        """`zcluster ps --json`."""
        return json.loads(self.command_line("ps", "--json", *options).stdout)

    def workers(self, state: str = "ready") -> list[dict[str, object]]:
        return [w for w in self.ps()["workers"] if w["state"] == state]

    def counters(self) -> dict[str, int]:
        return self.ps()["counters"]

    # ---- what it does ----------------------------------------------------------------------------------------------
    def get(self, path: str = "/", timeout_s: float = 10.0) -> str:
        with urllib.request.urlopen(self.url + path, timeout=timeout_s) as response:
            return response.read().decode()

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    def connect(self, timeout_s: float = 10.0) -> socket.socket:
        return socket.create_connection(self.address, timeout_s)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = 45.0) -> int:
        """Exit code of the launcher."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            there = [described(pid) for pid in self.processes()]
            raise AssertionError(f"still running after {timeout_s} s: {there}, log:\n{self.log}") from None

    def stop(self, number: int = SIGTERM, timeout_s: float = 45.0) -> int:
        if self.process.poll() is None:
            self.signal(number)
        return self.wait(timeout_s)

    def wait_log(self, pattern: str, timeout_s: float = 30.0) -> re.Match[str]:
        try:
            return wait_for(lambda: re.search(pattern, self.log), timeout_s)
        except AssertionError:
            raise AssertionError(f"{pattern!r} is not in the log after {timeout_s} s:\n{self.log}") from None

    def end(self, number: int = SIGTERM, timeout_s: float = 45.0) -> str:
        """Send this signal and see a clean end: exit 0, no process and no file left. Returns the log."""
        return self.ended(timeout_s, number=number)

    def ended(self, timeout_s: float = 45.0, *, code: int = 0, number: int | None = None) -> str:
        """See it end with this code, in time, and leave no process and no file. Returns the log."""
        if number is not None and self.process.poll() is None:
            self.signal(number)
        got = self.wait(timeout_s)
        assert got == code, f"exit code {got}, not {code}, log:\n{self.log}"
        left = self.processes()  # at once: the launcher is the last to go
        assert not left, f"left behind: {left}\nlog:\n{self.log}"
        assert not self.files(), f"left behind: {self.files()}\nlog:\n{self.log}"
        return self.log

    # ---- what is left ----------------------------------------------------------------------------------------------
    def files(self) -> list[str]:
        """Everything there is in the run directory's base, of this cluster and of others there."""
        found = [os.path.join(path, name) for path, folders, names in os.walk(self.base) for name in folders + names]
        return sorted(os.path.relpath(path, self.base) for path in found)

    def processes(self) -> list[int]:
        """Every living process of this cluster, by the mark in its environment."""
        return list(marked(self.mark))

    def close(self) -> None:
        """End it, and assert that nothing is left."""
        try:
            for pid in self.processes():
                send(pid, signal.SIGCONT)  # a test that failed may have left some of it stopped
            if self.process.poll() is None:
                self.signal(signal.SIGTERM)
                try:
                    self.process.wait(15)
                except subprocess.TimeoutExpired:
                    pass
            left = self.left_over()
            assert not left, f"left behind: {left}\nlog:\n{self.log}"
        finally:
            self.remove()

    def remove(self) -> None:
        """Kill what there is of it, and remove its files."""
        try:
            wait_for(lambda: not [send(pid, signal.SIGKILL) for pid in self.processes()], what="all of it is dead")
            self.process.wait(5)
        finally:
            if self.process.stdout is not None:
                self.process.stdout.close()
            if self.own_base:
                shutil.rmtree(self.base, ignore_errors=True)
            self.log_path.unlink(missing_ok=True)

    def left_over(self) -> list[str]:
        try:
            wait_for(lambda: not self.processes(), 6.0)
        except AssertionError:
            return [described(pid) for pid in self.processes()]
        return []


def described(pid: int) -> str:
    """A process, for a failure's text: its name, state, what it waits for and the end of its command line."""
    try:
        folder = Path(f"/proc/{pid}")
        name, _, rest = (folder / "stat").read_text().partition(" (")[2].rpartition(") ")
        return f"{pid} {name} {rest[0]} {(folder / 'wchan').read_text()} {(folder / 'cmdline').read_bytes()[-200:]!r}"
    except OSError:
        return f"{pid} has gone"


def send(pid: int, number: int) -> None:
    """Signal a process that may have gone meanwhile."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def marked(mark: str) -> Iterator[int]:
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                if mark.encode() in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                    state = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0]
                    if state not in "ZX":
                        yield int(entry)
            except OSError:
                continue


@contextmanager
def running(app: str, *options: str, **more: object) -> Iterator[Running]:
    cluster = Running(app, *options, **more)
    try:
        yield cluster
    finally:
        cluster.close()
