"""Clients that must not notice anything: first continuous reloads, then workers that come and go all the time.

Four kinds of clients, each with threads of its own: a fresh connection for each request, keep-alive, keep-alive with
pauses that come near the time-out, and bodies of 16 KiB. Every error counts: refused, reset, closed without an
answer, another status than 200, a body that is not what it should be, an answer that took longer than ANSWER_S. One
is excused, because no server can prevent it: a connection that was idle for longer than the keep-alive time-out.

Exit code 1 when there was an error, when responses and the counter differ, or when nothing was reloaded or replaced.
"""

import argparse
import os
import random
import re
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from zcluster import Cluster
from zcluster.errors import ClusterError

ZCLUSTER = [sys.executable, "-m", "zcluster"]
START_TIMEOUT_S = 30.0
ANSWER_S = 20.0  # a request here takes no time: who waits for so long was forgotten
ORDER_TIMEOUT_S = 60.0
BODY_BYTES = 16384
SHOWN = 5  # errors of each kind of client that are told in full
LOG_LINES = 20  # and of the log
SIZES = (1, 4)  # workers, fewest and most, of the second part

APP = """
import zlib
from zcluster import Counter
VERSION = {version}
requests = Counter("requests")

def app(environ, start_response):
    body = b"%d" % zlib.crc32(environ["wsgi.input"].read())
    requests.incr()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
# {padding}
"""


@dataclass
class Tally:
    """What the clients of one kind have seen; written under the lock."""

    requests: int = 0
    connections: int = 0
    late: int = 0  # closed after it had been idle for longer than the keep-alive time-out
    slowest_s: float = 0.0
    errors: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Client:
    """One thread's connection; a new one is opened when there is none."""

    def __init__(self, port: int, tally: Tally, keep_alive_s: float) -> None:
        self.port, self.tally, self.keep_alive_s = port, tally, keep_alive_s
        self.sock: socket.socket | None = None
        self.asked = 0.0  # when the request before was begun, on this connection
        self.sent = 0.0  # when this one had left

    def ask(self, body: bytes, *, keep: bool) -> None:
        """One request; whatever goes wrong is counted."""
        begun = time.monotonic()
        try:
            if self.sock is None:
                self.sock = socket.create_connection(("127.0.0.1", self.port), ANSWER_S)
                with self.tally.lock:
                    self.tally.connections += 1
            crc, stays = self._exchange(self.sock, body, keep=keep)
            if crc != zlib.crc32(body):
                raise ConnectionError(f"the checksum of {len(body)} bytes is wrong")
        except OSError as error:
            with self.tally.lock:
                # A thread may be kept from running between any two lines, and what counts is how long the *server*
                # has heard nothing: at most from the beginning of the request before to the end of this one.
                if self.asked and self.sent - self.asked > self.keep_alive_s:
                    self.tally.late += 1
                else:
                    where = (
                        f"a connection that was asked {begun - self.asked:.3f} s ago" if self.asked else "a new one"
                    )
                    self.tally.errors.append(f"{begun:.3f} on {where}: {error!r}")
            self.close()
            return
        self.asked = begun
        if not stays:
            self.close()
        with self.tally.lock:
            self.tally.requests += 1
            self.tally.slowest_s = max(self.tally.slowest_s, time.monotonic() - begun)

    def _exchange(self, sock: socket.socket, body: bytes, *, keep: bool) -> tuple[int, bool]:
        """Returns the checksum of the body, and whether the connection stays."""
        method = f"POST / HTTP/1.1\r\nContent-Length: {len(body)}" if body else "GET / HTTP/1.1"
        close = "" if keep else "Connection: close\r\n"
        sock.sendall(f"{method}\r\nHost: x\r\n{close}\r\n".encode() + body)
        self.sent = time.monotonic()
        data = b""
        while not (found := re.search(rb"(?i)\r\nContent-Length: (\d+)\r\n(?:.*\r\n)*?\r\n", data)) or len(data) < (
            found.end() + int(found[1])
        ):
            part = sock.recv(4096)
            if not part:
                raise ConnectionError(f"closed after {data!r}")
            data += part
        if not data.startswith(b"HTTP/1.1 200 "):
            raise ConnectionError(f"answered {data[:100]!r}")
        stays = keep and b"\r\nconnection: close\r\n" not in data[: found.end()].lower()
        return int(data[found.end() :]), stays

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()
        self.sock, self.asked = None, 0.0


def fresh(client: Client, rest: Callable[[float], bool]) -> None:
    """Half of them let the server close, half close themselves."""
    while not rest(0.004 * random.random()):
        client.ask(b"", keep=random.random() < 0.5)
        client.close()


def kept(client: Client, rest: Callable[[float], bool]) -> None:
    while not rest(0.004 * random.random()):
        client.ask(b"", keep=True)


def lazy(client: Client, rest: Callable[[float], bool]) -> None:
    """The next request comes when the connection has nearly, but not quite, timed out."""
    while not rest(client.keep_alive_s * random.uniform(0.3, 0.9)):
        client.ask(b"", keep=True)


def bodies(client: Client, rest: Callable[[float], bool]) -> None:
    while not rest(0.008 * random.random()):
        client.ask(random.randbytes(BODY_BYTES), keep=random.random() < 0.8)


KINDS = {"fresh": fresh, "keep-alive": kept, "keep-alive, idle": lazy, "16 KiB bodies": bodies}


class Clients:
    """All of them, as long as the block lasts."""

    def __init__(self, port: int, number: int, keep_alive_s: float) -> None:
        self.tallies = {kind: Tally() for kind in KINDS}
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=act, args=(Client(port, self.tallies[kind], keep_alive_s), self._over.wait))
            for kind, act in KINDS.items()
            for _ in range(number)
        ]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def write(folder: Path, version: int) -> None:
    """Replace the app. Its length tells versions apart: bytecode is taken for fresh by second and size."""
    (folder / "new").write_text(APP.format(version=version, padding="x" * (version % 4096)))
    (folder / "new").replace(folder / "app.py")


@contextmanager
def serving(folder: Path, options: argparse.Namespace, *more: str) -> Iterator[Cluster]:
    """A cluster of the app in this folder, and a handle on it."""
    write(folder, 1)
    run_dir = folder / "run"
    run_dir.mkdir(0o700)
    given = ("--bind=127.0.0.1:0", f"--workers={options.workers}", f"--keep-alive={options.keep_alive}")
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [*ZCLUSTER, "run", "app:app", f"--run-dir={run_dir}", "--heartbeat=0.2", *given, *more],
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=folder,
        )
    assert server.stdout is not None
    try:
        ready, _, _ = select.select([server.stdout], [], [], START_TIMEOUT_S)
        if not ready or b"ready on" not in server.stdout.readline():
            raise ClusterError(f"the cluster did not start:\n{(folder / 'log').read_text()}")
        cluster = Cluster.attach(run_dir=str(run_dir))
        try:
            yield cluster
        finally:
            cluster.close()
    finally:
        server.terminate()
        server.wait(60)
        server.stdout.close()


def reload_again_and_again(cluster: Cluster, folder: Path, seconds: float) -> int:
    """Returns how often; each reload begins when the last worker of the generation before has gone."""
    version, until = 1, time.monotonic() + seconds
    while time.monotonic() < until or version == 1:
        version += 1
        write(folder, version)
        cluster.reload(timeout_s=ORDER_TIMEOUT_S)
    return version - 1


def come_and_go(cluster: Cluster, _folder: Path, seconds: float) -> int:
    """Returns how many workers have left; beside what is done here they are recycled."""
    left: Counter[str] = Counter()
    lock = threading.Lock()

    def note(worker) -> None:
        with lock:
            left[worker.reason or "?"] += 1

    cluster.on("exit", note)
    until, low = time.monotonic() + seconds, False
    while time.monotonic() < until or not left:
        low = not low
        cluster.scale(random.randint(*SIZES) if not low else SIZES[0], timeout_s=ORDER_TIMEOUT_S)
    return left.total()


def part(title: str, options: argparse.Namespace, act: Callable[..., int], *more: str) -> list[str]:
    """One part: its table is printed, its faults are returned."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # the run directory has to be on tmpfs
    with tempfile.TemporaryDirectory(prefix="zcr-", dir=base) as name, serving(Path(name), options, *more) as cluster:
        port = int(cluster.url.rpartition(":")[2])
        begun = time.monotonic()
        with Clients(port, options.clients, options.keep_alive) as clients:
            number = act(cluster, Path(name), options.seconds / 2)
        seconds = time.monotonic() - begun
        total = int(cluster.snapshot()["counters"]["requests"])
        log = (Path(name) / "log").read_text()
    print(f"{title}: {number} in {seconds:.1f} s")
    print(f"  {'clients':<18}{'requests':>10}{'connections':>13}{'errors':>8}{'idle too long':>15}{'slowest':>10}")
    for kind, tally in clients.tallies.items():
        figures = f"{tally.requests:>10,}{tally.connections:>13,}{len(tally.errors):>8}{tally.late:>15}"
        print(f"  {kind:<18}{figures}{tally.slowest_s:>8.3f} s")
    responses = sum(tally.requests for tally in clients.tallies.values())
    print(f"  {responses:,} responses, {total:,} counted\n", flush=True)
    faults = []
    for kind, tally in clients.tallies.items():
        faults += [f"{title}, {kind}: {error}" for error in tally.errors[:SHOWN]]
        if len(tally.errors) > SHOWN:
            faults.append(f"{title}, {kind}: and {len(tally.errors) - SHOWN} more")
    if total != responses and not faults:
        faults.append(f"{title}: {responses} responses, but {total} were counted")
    if faults or "ERROR" in log or "CRITICAL" in log:
        faults.append(f"{title}: the end of the log is\n" + "\n".join(log.splitlines()[-LOG_LINES:]))
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="of both parts together (default 30)")
    parser.add_argument("--workers", type=int, default=2, help="of the first part (default 2)")
    parser.add_argument("--clients", type=int, default=2, help="of each kind (default 2)")
    parser.add_argument("--keep-alive", type=float, default=1.0, help="the time-out in seconds (default 1)")
    parser.add_argument("--max-requests", type=int, default=50, help="of a worker in the second part (default 50)")
    options = parser.parse_args()
    faults = part("reloads", options, reload_again_and_again)
    recycling = (f"--max-requests={options.max_requests}", f"--max-requests-jitter={options.max_requests // 5}")
    faults += part("workers replaced, added and removed", options, come_and_go, *recycling)
    for fault in faults:
        print(fault)
    print("verdict: " + (f"{len(faults)} faults" if faults else "no client has noticed anything"))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
