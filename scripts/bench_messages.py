"""Messages: how long a request, a publication and a large message take, and what they cost the master."""

import http.client
import json
import statistics
import threading
import time
from pathlib import Path
from typing import Any

from bench_machine import ROOT
from bench_processes import TICKS, BenchError, Server, running
from bench_servers import Bench, ps, zcluster

REQUESTS, PUBLICATIONS, GAP_S = 500, 200, 0.005
RATE = 1000  # publications a second
LARGE_MIB = 32
MANY = 64  # workers


def get(server: Server, path: str) -> Any:
    """The JSON that a worker answers."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    if response.status != 200:
        raise BenchError(f"{path}: status {response.status}")
    return json.loads(body)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def talking(workers: int) -> Any:
    return running(zcluster("bench_talk:app", cwd=ROOT / "scripts", workers=workers))


def messages(bench: Bench) -> None:
    """Messages between workers: request and reply, publications, a large one, 64 workers."""
    row, goal = bench.report.row, bench.report.goal

    def times(what: str, values: list[float]) -> None:
        row("messages", f"{what}, p50, ms", {"zcluster": [statistics.median(values)]})
        row("messages", f"{what}, p99, ms", {"zcluster": [percentile(values, 0.99)]})

    with talking(2) as server:
        get(server, "/ask?n=50")
        asked = get(server, f"/ask?n={REQUESTS}")
    times("request and reply, worker to worker", asked)
    goal("messages", "request and reply p50, ms", statistics.median(asked), 0.5)

    with talking(8) as server:
        get(server, f"/tell?n=50&gap={GAP_S}")
        told = get(server, f"/tell?n={PUBLICATIONS}&gap={GAP_S}")
    times("publish until the last of 8 workers has it", told["lags"])
    goal("messages", "publish until the last of 8 has it, p50, ms", statistics.median(told["lags"]), 1.0)
    row("messages", "copies that did not come, 8 workers", {"zcluster": [told["missing"]]})

    large(bench)
    many(bench)


def large(bench: Bench) -> None:
    """A message of 32 MiB again and again, beside small requests between workers and of HTTP clients."""
    row, goal = bench.report.row, bench.report.goal
    with talking(4) as server:
        quiet = get(server, f"/ask_for?s={bench.seconds}")
        web_quiet = _web(server, bench.seconds)
        took: list[float] = []
        stop = threading.Event()

        def send() -> None:
            while not stop.is_set():
                took.append(get(server, f"/large?mib={LARGE_MIB}"))

        sender = threading.Thread(target=send)
        sender.start()
        beside = get(server, f"/ask_for?s={bench.seconds}")
        web = _web(server, bench.seconds)
        stop.set()
        sender.join()
    row("messages", f"{LARGE_MIB} MiB and its reply, ms", {"zcluster": took})
    for what, alone, loaded in (("small requests", quiet, beside), ("HTTP requests", web_quiet, web)):
        row("messages", f"{what} p99 alone, ms", {"zcluster": [percentile(alone, 0.99)]})
        row("messages", f"{what} p99 beside it, ms", {"zcluster": [percentile(loaded, 0.99)]})
        goal("messages", f"{what} p99 beside {LARGE_MIB} MiB, ms", percentile(loaded, 0.99), 50.0)


def _web(server: Server, seconds: float) -> list[float]:
    """Milliseconds of HTTP requests of one client for a while, each on a connection of its own."""
    end, out = time.monotonic() + seconds, []
    while time.monotonic() < end:
        started = time.perf_counter()
        get(server, "/")
        out.append((time.perf_counter() - started) * 1e3)
    return out


def many(bench: Bench) -> None:
    """64 workers: whether a publication reaches all, and what 1,000 a second cost the master."""
    row = bench.report.row
    for workers in (2, MANY):
        with talking(workers) as server:
            get(server, f"/tell?n=20&gap={GAP_S}")
            told = get(server, f"/tell?n={PUBLICATIONS}&gap={GAP_S * 4}")
            row("messages", f"publish until the last of {workers} has it, ms", {"zcluster": told["lags"]})
            if told["workers"] != workers:
                raise BenchError(f"{told['workers']} of {workers} workers answered")
            master = ps(server)["master_pid"]
            before, started = cpu_s(master), time.monotonic()
            flood = get(server, f"/flood?s={bench.seconds}&rate={RATE}")
            used, took = cpu_s(master) - before, time.monotonic() - started
        rate = flood["published"] / flood["seconds"]
        row("messages", f"publications/s, {workers} workers", {"zcluster": [rate]})
        row("messages", f"master's CPU at that rate, {workers} workers, %", {"zcluster": [100 * used / took]})
        row("messages", f"copies that did not come, {workers} workers", {"zcluster": [flood["missing"]]})
