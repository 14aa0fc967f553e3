"""Sections about the cluster itself: starting, counting, and the bus."""

import http.client
import statistics
import subprocess
import sys
import time

import msgspec
from bench_load import Stream, load
from bench_machine import ROOT
from bench_processes import BenchError, Program, Server, running
from bench_report import ratio
from bench_requests import compare
from bench_servers import Bench, node, zcluster

from zcluster import Cluster
from zcluster.core.messages import Snapshot

EXAMPLES = ROOT / "examples"
CHANGES = 100
PROPAGATION = "an increment until another worker is told"
IDLE_S = 0.06  # longer than the pause between two publications of totals

INCR = """
import tempfile, timeit
from pathlib import Path
from zcluster import Counter, current
from zcluster.unix import ledgerfile, locks
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


def start(rounds: int) -> list[float]:
    """Seconds of a cold start of 2 workers to the ready line, interpreter included."""
    times = []
    for _ in range(rounds):
        with running(zcluster("app:app", cwd=EXAMPLES / "hello")) as server:
            times.append(server.start_s)
    return times


def incr(lanes: int) -> float:
    """Nanoseconds of `Counter.incr()` in a worker with so many lanes in use."""
    done = subprocess.run([sys.executable, "-c", INCR.format(lanes=lanes)], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise BenchError(f"incr() could not be timed: {done.stderr.strip()}")
    return float(done.stdout)


def on_change(program: Program) -> list[float]:
    """Seconds from an increment in one idle worker until the other is told of the total."""
    with running(program) as server:
        connections: dict[str, http.client.HTTPConnection] = {}
        for _ in range(1000):
            if len(connections) == 2:
                break
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
            connections.setdefault(server.get("/", connection), connection)
        else:
            raise BenchError("1,000 connections, and one worker took them all")
        one, other = connections.values()
        times = []
        for _ in range(CHANGES):
            total, started = map(int, server.get("/incr", one).split())
            deadline = time.monotonic() + 5
            while not (seen := int(server.get(f"/seen?{total}", other))):
                if time.monotonic() > deadline:
                    raise BenchError(f"on_change of {total} did not come in 5 s")
            times.append((seen - started) / 1e9)
            time.sleep(IDLE_S)
    return times


def traffic(server: Server) -> tuple[int, int]:
    """Bus messages so far: received by the master, and published to each worker."""
    # The public `snapshot()` has what `ps` shows, and traffic is not in it.
    with Cluster.attach(run_dir=str(server.folder)) as cluster:
        state = msgspec.msgpack.decode(cluster._ask("snapshot", None, 5.0), type=Snapshot)
    return sum(state.received.values()), sum(state.heads.values())


def messages(server: Server, seconds: float) -> float:
    """Bus messages per request at full load, every delivery of a publication to a worker counted."""
    received, published = traffic(server)
    (answers,) = load(server, seconds)
    received_then, published_then = traffic(server)
    return ((received_then - received) + 2 * (published_then - published)) / answers.requests


def cluster(bench: Bench) -> None:
    """The cluster itself: starting, counting, and how soon a total is known elsewhere (beside Node)."""
    row = bench.report.row

    row("cluster", "cold start until all 2 workers serve, ms", {"zcluster": [s * 1e3 for s in start(bench.rounds)]})
    for lanes in (4, 64):
        row("cluster", f"incr() with {lanes} lanes, ns", {"zcluster": [incr(lanes)]})
    programs = [zcluster("bench_app:app", cwd=ROOT / "scripts"), node(bench.tools, "propagate.js")]
    told = {program.name: sorted(s * 1e3 for s in on_change(program)) for program in filter(None, programs)}
    row("cluster", f"{PROPAGATION}, median, ms", {name: [statistics.median(ms)] for name, ms in told.items()})
    row("cluster", f"{PROPAGATION}, p95, ms", {name: [ms[int(len(ms) * 0.95)]] for name, ms in told.items()})


def examples(bench: Bench) -> None:
    """The two examples (Werkzeug) against each other, and the bus messages that counting costs."""
    programs = [
        zcluster("app:app", cwd=EXAMPLES / "hello", name="hello"),
        zcluster("app:app", cwd=EXAMPLES / "counter", name="counter"),
    ]
    with bench.all_running(programs) as servers:
        cpu, _ = compare(bench, "examples", servers, Stream(), "")
        per_request = messages(servers["counter"], bench.seconds)
    # In thousandths: it is a small number, and tends to zero as the load grows.
    bench.report.row("examples", "bus messages per 1,000 requests", {"counter": [per_request * 1000]})
    extra = ratio(cpu, "counter", "hello")
    bench.report.row("examples", "CPU per request, counter / hello", {"counter": [extra] if extra else []})
