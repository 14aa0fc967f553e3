"""Servers as trees of processes: started, waited for, weighed and ended.

Invariant: what `running` started is gone when its block is left, whatever the way out; the kernel ends the first
process of each tree when the benchmark itself is killed (PR_SET_PDEATHSIG), and that one ends the rest.
"""

import ctypes
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
FOLDERS = Path("/dev/shm")  # a run directory has to be on tmpfs
START_LIMIT_S = 30.0  # the slowest peer needs two seconds on an idle machine
LOG_LINES = 12  # of a server that did not start: enough for the end of a traceback
STOP_LIMIT_S = 10.0  # for connections that are still closing; then KILL
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class BenchError(Exception):
    """A figure cannot be had: a program is missing, did not start or answered wrongly. The text says which."""


@dataclass(frozen=True)
class Program:
    """A server that can be started: `command` may name {port} and {folder} (a temporary one, its own)."""

    name: str
    command: Sequence[str]
    cwd: Path
    environ: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(
        default_factory=dict
    )  # written into {folder} first, {port} and {folder} filled in
    workers: int = 2
    setting: str = ""  # what of the command is a choice among several
    path: str = "/"  # answers 200 when the server is ready
    ready: re.Pattern[str] | None = None  # a line on stdout with the port; else the port is ours and is asked


@dataclass
class Server:
    """One that runs. Its processes are the descendants of the first one: no server here leaves that tree."""

    name: str
    process: "subprocess.Popen[bytes]"
    port: int
    folder: Path
    start_s: float

    def family(self) -> list[int]:
        """All its processes."""
        children: dict[int, list[int]] = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit() and (fields := _stat(int(entry))):
                children.setdefault(int(fields[1]), []).append(int(entry))
        found = [self.process.pid]
        for pid in found:  # grows while it is walked
            found.extend(children.get(pid, []))
        return found

    def cpu_s(self) -> float:
        """User and system time of all its living processes so far."""
        return sum((int(fields[11]) + int(fields[12])) / TICKS for pid in self.family() if (fields := _stat(pid)))

    def pss_bytes(self) -> int:
        """Memory of all its processes, a shared page counted once."""
        total = 0
        for pid in self.family():
            found = re.search(r"(?m)^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text())
            total += int(found[1]) * 1024 if found else 0
        return total

    def get(self, path: str, connection: http.client.HTTPConnection | None = None) -> str:
        """The body at `path`, on this connection or a new one; BenchError unless it is a 200."""
        connection = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read().decode()
        if answer.status != 200:
            raise BenchError(f"{self.name}: GET {path} was answered {answer.status}: {body[:200]!r}")
        return body


def _stat(pid: int) -> list[str]:
    """The fields after the name, the state first; none when there is no such process (any more)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _born(pid: int) -> str:
    fields = _stat(pid)
    return fields[19] if fields and fields[0] not in "ZX" else ""


def sweep() -> None:
    """Remove the folders of benchmarks that were killed: nothing of them runs any more (see PR_SET_PDEATHSIG)."""
    for folder in FOLDERS.glob("zcb-*-*"):
        owner = folder.name.split("-")[1]
        if owner.isdecimal() and not _stat(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    """A port nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def end_with_parent() -> None:
    """Runs between fork and exec; there are no other threads in the benchmark."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def running(program: Program) -> Iterator[Server]:
    """Start it, wait until all its workers serve, end it; BenchError with the end of its log when it does not."""
    with tempfile.TemporaryDirectory(prefix=f"zcb-{os.getpid()}-", dir=FOLDERS) as name:
        folder = Path(name)
        port = 0 if program.ready else free_port()

        def fill(text: str) -> str:
            return text.replace("{port}", str(port)).replace("{folder}", name)

        for file, text in program.files.items():
            (folder / file).write_text(fill(text))
        environ = {**os.environ, **{key: fill(value) for key, value in program.environ.items()}}
        started = time.monotonic()
        with (folder / "bench-log").open("wb") as log:
            process = subprocess.Popen(
                [fill(word) for word in program.command], cwd=program.cwd, env=environ, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=end_with_parent,
            )  # fmt: skip
        server = Server(program.name, process, port, folder, 0.0)
        try:
            _wait_ready(program, server)
            server.start_s = time.monotonic() - started
            yield server
        finally:
            stop(server)


def _wait_ready(program: Program, server: Server) -> None:
    log = server.folder / "bench-log"
    deadline = time.monotonic() + START_LIMIT_S
    wrong = "no sign of life"
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            wrong = f"exit status {server.process.returncode}"
            break
        if program.ready:
            if found := program.ready.search(log.read_text(errors="replace")):
                server.port = int(found[1])
                return
        else:
            try:
                server.get(program.path)
            except (OSError, http.client.HTTPException, BenchError) as error:
                wrong = str(error)
            else:
                if len(server.family()) > program.workers:
                    return
                wrong = f"fewer than {program.workers} workers"
        time.sleep(0.002)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
    raise BenchError(f"{program.name} did not start: {wrong}\n{tail}")


def stop(server: Server) -> None:
    """Ask it to end, and end what is left after STOP_LIMIT_S: exactly the processes that were its own."""
    born = {pid: _born(pid) for pid in server.family()}
    server.process.terminate()
    try:
        server.process.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        pass  # told below in the only language it understands

    def left() -> list[int]:
        return [pid for pid, start in born.items() if start and _born(pid) == start]

    until(lambda: not left(), 1.0)  # descendants may need a moment after the first process
    for pid in left():
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it ended just now
    server.process.wait()
    until(lambda: not left(), 1.0)  # a killed process takes a moment to go


def until(condition: Callable[[], object], limit_s: float, pause_s: float = 0.01) -> bool:
    """Wait until `condition()` is true; false when it was not within `limit_s`."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
    return True
