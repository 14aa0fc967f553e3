"""Figures of this machine, printed as a table; nothing is asserted, for a benchmark is not a test.

CPU is user + system time of all the cluster's processes, divided by the requests answered. Where two programs are
compared they run in turn, several rounds, and the median of the rounds' ratios is what counts: machines are noisy.
"""

import argparse
import http.client
import json
import os
import platform
import re
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import timeit
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ZCLUSTER = [sys.executable, "-m", "zcluster"]
TICKS = os.sysconf("SC_CLK_TCK")


class Server:
    """`zcluster run` in a run directory of its own."""

    def __init__(self, base: Path, app: str, folder: Path, workers: int, *options: str) -> None:
        self.base = base
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [*ZCLUSTER, "run", app, "--bind=127.0.0.1:0", f"--workers={workers}", f"--run-dir={base}",
             "--log-level=critical", *options],
            stdout=subprocess.PIPE, cwd=folder,
        )  # fmt: skip
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], 30)
        line = self.process.stdout.readline().decode() if ready else ""
        self.start_s = time.monotonic() - self.started
        found = re.search(r"http://127.0.0.1:(\d+)", line)
        if not found:
            raise RuntimeError(f"{app} did not start: {line!r}")
        self.port = int(found[1])

    def ps(self) -> dict:
        out = subprocess.run([*ZCLUSTER, "ps", "--json", f"--run-dir={self.base}"], capture_output=True, check=True)
        return json.loads(out.stdout)

    def traffic(self) -> dict[str, int]:
        """Bus messages so far: received by the master, and published to each worker."""
        import msgspec

        from zcluster import Cluster
        from zcluster.core.messages import Snapshot

        with Cluster.attach(
            run_dir=str(self.base)
        ) as cluster:  # `snapshot()` has what `ps` shows: traffic is not in it
            state = msgspec.msgpack.decode(cluster._ask("snapshot", None, 5.0), type=Snapshot)
        return {"received": sum(state.received.values()), "published": sum(state.heads.values())}

    def cpu_s(self) -> float:
        state = self.ps()
        pids = [
            state["launcher_pid"],
            state["master_pid"],
            state["zygote_pid"],
            *(w["pid"] for w in state["workers"]),
        ]
        return sum(cpu_s(pid) for pid in pids)

    def get(self, path: str, connection: http.client.HTTPConnection | None = None) -> str:
        connection = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("GET", path)
        return connection.getresponse().read().decode()


@contextmanager
def server(app: str, folder: Path, workers: int = 2, *options: str) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="zcb-", dir="/dev/shm") as base:
        running = Server(Path(base), app, folder, workers, *options)
        try:
            yield running
        finally:
            running.process.terminate()
            running.process.wait(30)


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def load(port: int, seconds: float) -> int:
    """Requests answered under full load: wrk when it is installed, else Python clients (slower, so less load)."""
    wrk = shutil.which("wrk")
    if wrk:
        out = subprocess.run(
            [wrk, "-t1", "-c64", f"-d{seconds:g}s", f"http://127.0.0.1:{port}/"], capture_output=True, check=True
        ).stdout.decode()
        if "Non-2xx" in out or "Socket errors" in out:
            raise RuntimeError(out)
        return int(re.search(r"(\d+) requests in", out)[1])
    counts = [0] * 8
    until = time.monotonic() + seconds

    def client(index: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        while time.monotonic() < until:
            connection.request("GET", "/")
            connection.getresponse().read()
            counts[index] += 1

    threads = [threading.Thread(target=client, args=(index,)) for index in range(len(counts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts)


def ms(values: list[float]) -> str:
    ordered = sorted(values)
    return f"median {statistics.median(ordered) * 1e3:.1f} ms, p95 {ordered[int(len(ordered) * 0.95)] * 1e3:.1f} ms"


# ---- the measurements ----------------------------------------------------------------------------------------------
def bench_start(rounds: int) -> str:
    """Cold start of 2 workers to the ready line, interpreter included."""
    times = []
    for _ in range(rounds):
        with server("app:app", ROOT / "examples/hello") as running:
            times.append(running.start_s)
    return ms(times)


def bench_kill(rounds: int) -> str:
    """SIGKILL of the only worker until its replacement has answered a request that waited meanwhile."""
    times = []
    with server("bench_app:app", ROOT / "scripts", 1) as running:
        pid = int(running.get("/"))
        for _ in range(rounds):
            # A minute of health between crashes is what a real cluster has; here the restart policy must not count
            # a benchmark as a crash loop, so it goes to a fresh worker only after that one has answered.
            killed = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            while True:
                try:
                    answer = int(running.get("/"))
                except OSError:  # accepted by the dying worker
                    continue
                if answer != pid:
                    break
            times.append(time.monotonic() - killed)
            pid = answer
    return ms(times)


def bench_incr(lanes: int) -> str:
    """`Counter.incr()` in a worker with so many lanes in use."""
    code = f"""
import os, timeit
from pathlib import Path
from zcluster import Counter, current
from zcluster.unix import ledgerfile, locks
import tempfile
with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
    file = ledgerfile.create(Path(folder) / "ledger", ledger_id=bytes(16), boot_id=bytes(16))
    lock = locks.LockFile(Path(folder) / "locks")
    lock.try_lock({lanes} - 1)
    file.ledger.use_lane({lanes} - 1)
    current.ledger, current.locks, current.lane, current.role = file.ledger, lock, {lanes} - 1, "worker"
    counter = Counter("x")
    counter.incr()
    print(min(timeit.repeat(counter.incr, number=200_000, repeat=5)) / 200_000 * 1e9)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=ROOT)
    return f"{float(out.stdout):.0f} ns"


def bench_on_change(rounds: int) -> str:
    """An increment in one idle worker until `on_change` runs in the other."""
    with server("bench_app:app", ROOT / "scripts", 2) as running:
        connections: dict[str, http.client.HTTPConnection] = {}
        while len(connections) < 2:
            connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
            connections.setdefault(running.get("/", connection), connection)
        one, other = connections.values()
        times = []
        for _ in range(rounds):
            total, started = map(int, running.get("/incr", one).split())
            deadline = time.monotonic() + 5
            while not (seen := int(running.get(f"/seen?{total}", other))) and time.monotonic() < deadline:
                pass
            times.append((seen - started) / 1e9)
            time.sleep(0.06)  # idle: longer than the pause between two publications of totals
    return ms(times)


def bench_messages(seconds: float) -> str:
    """Bus messages per request at full load of the counter example, every delivery of a publication counted."""
    with server("app:app", ROOT / "examples/counter") as running:
        load(running.port, 1)
        before = running.traffic()
        requests = load(running.port, seconds)
        after = running.traffic()
    received = after["received"] - before["received"]
    delivered = (after["published"] - before["published"]) * 2
    return f"{(received + delivered) / requests:.4f} ({received} up, {delivered} down, {requests} requests)"


def bench_cpu(rounds: int, seconds: float) -> list[tuple[str, str]]:
    """CPU per request of the counter example and of the hello example, in turn."""
    figures: dict[str, list[float]] = {"hello": [], "counter": []}
    rates: dict[str, list[float]] = {"hello": [], "counter": []}
    with server("app:app", ROOT / "examples/hello") as hello, server("app:app", ROOT / "examples/counter") as counter:
        for running in (hello, counter):
            load(running.port, 1)
        for _ in range(rounds):
            for name, running in (("hello", hello), ("counter", counter)):
                before = running.cpu_s()
                requests = load(running.port, seconds)
                figures[name].append((running.cpu_s() - before) / requests)
                rates[name].append(requests / seconds)
    ratios = [c / h for h, c in zip(figures["hello"], figures["counter"], strict=True)]
    rows = [
        (f"CPU per request, {name}", f"{statistics.median(figures[name]) * 1e6:.1f} us"
         f" ({statistics.median(rates[name]):,.0f} requests/s)") for name in figures
    ]  # fmt: skip
    return [*rows, ("counter / hello, CPU per request", f"{statistics.median(ratios):.3f}")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a look, not a measurement")
    quick = parser.parse_args().quick
    rounds = 3 if quick else 5
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    by = "wrk -t1 -c64" if shutil.which("wrk") else "Python clients (install wrk for a real load)"
    print(f"{os.cpu_count()} cores, {model[1] if model else platform.machine()}, Linux {platform.release()}")
    print(f"Python {platform.python_version()}, load by {by}")
    loop_ns = min(timeit.repeat("pass", number=1_000_000, repeat=3)) * 1e3
    print(f"timeit of 'pass': {loop_ns:.1f} ns (how fast is this core)")
    rows = [
        ("cold start, 2 workers", lambda: bench_start(rounds)),
        ("SIGKILL -> replacement answers", lambda: bench_kill(5 if quick else 10)),
        ("incr(), 4 lanes", lambda: bench_incr(4)),
        ("incr(), 64 lanes", lambda: bench_incr(64)),
        ("incr -> on_change elsewhere, idle", lambda: bench_on_change(20 if quick else 100)),
        ("bus messages per request", lambda: bench_messages(2 if quick else 5)),
    ]
    for label, measure in rows:
        print(f"  {label:<36}{measure()}", flush=True)
    for label, figure in bench_cpu(rounds, 1 if quick else 4):
        print(f"  {label:<36}{figure}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
