"""What a request costs as workers and connections grow. Each size has a column."""

import resource
import time
from functools import partial
from pathlib import Path

from bench_connections import GRANIAN_MANY, SPARE_FILES
from bench_load import Answers, Stream, load
from bench_machine import ROOT
from bench_processes import BenchError, Server, running
from bench_requests import cost
from bench_servers import Bench, granian, nginx, node, ps, zcluster

WORKERS = (1, 2, 4, 8, 16, 32, 64)
CONNECTIONS = (1, 10, 100, 1000, 10_000)
WARM_S = 1.0
IDLE_S = 3.0  # for the cost of doing nothing: some heartbeats
CONNECT_S = 3.0  # for wrk to open 10,000 connections: a shorter measurement would be of that
LONGEST_S, MOST_ROUNDS = 2.0, 2  # of these many figures; the trend is what they are for

CPU_WORKERS = "CPU per request, us"
CPU_RAW = "raw hello, {}: CPU per request, us"  # what of the growth is the processes', what the counter's
MASTER_BUSY, MASTER_IDLE = "the master's CPU under load, % of a core", "the master's CPU without load, % of a core"
ALL_IDLE = "all processes' CPU without load, % of a core"
EACH, WHOLE = "memory (PSS) per worker, MiB", "memory (PSS) of all processes, MiB"
START = "start until all serve, ms"


def cpu_s(pid: int) -> float:
    """CPU time of a process, to the nanosecond: the master uses little, and clock ticks are of 10 ms."""
    return sum(int(task.read_text().split()[0]) for task in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def pss_bytes(pids: list[int]) -> int:
    """Memory of these processes, each with its share of what others map too."""
    lines = (line for pid in pids for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines())
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def with_workers(bench: Bench, workers: int) -> dict[str, list[float]]:
    """All measures of the counter example with so many workers."""
    told: dict[str, list[float]] = {CPU_WORKERS: [], "requests/s": [], MASTER_BUSY: []}
    seconds = min(bench.seconds, LONGEST_S)
    with running(zcluster("app:app", cwd=ROOT / "examples" / "counter", workers=workers)) as server:
        load(server, WARM_S)
        state = ps(server)
        master = int(state["master_pid"])
        for _ in range(min(bench.rounds, MOST_ROUNDS)):
            before, started = cpu_s(master), time.monotonic()
            request_s, answers = cost(server, seconds, Stream())
            told[MASTER_BUSY].append(100 * (cpu_s(master) - before) / (time.monotonic() - started))
            told[CPU_WORKERS].append(request_s * 1e6)
            told["requests/s"].append(answers.rate)
        family = server.family()
        before, all_before, started = cpu_s(master), sum(map(cpu_s, family)), time.monotonic()
        time.sleep(IDLE_S)
        took_s = time.monotonic() - started
        told[MASTER_IDLE] = [100 * (cpu_s(master) - before) / took_s]
        told[ALL_IDLE] = [100 * (sum(map(cpu_s, family)) - all_before) / took_s]
        told[EACH] = [pss_bytes([int(worker["pid"]) for worker in state["workers"]]) / workers / 2**20]
        told[WHOLE] = [server.pss_bytes() / 2**20]
        told[START] = [server.start_s * 1e3]
    return told


def raw_hello(bench: Bench, workers: int) -> dict[str, list[float]]:
    """The least a request can cost with so many processes, here and on Node's cluster; one after the other."""
    told: dict[str, list[float]] = {}
    for program in (zcluster("apps:raw", workers=workers), node(bench.tools, "hello.js", workers)):
        if program:
            with running(program) as server:
                load(server, WARM_S)
                request_s, _ = cost(server, min(bench.seconds, LONGEST_S), Stream())
            told[CPU_RAW.format(program.name)] = [request_s * 1e6]
    return told


def growth(bench: Bench) -> None:
    """The counter example with 1 to 64 workers (a column for each): CPU, memory, the master, 64 connections."""
    rows: dict[str, dict[str, list[float]]] = {}
    for workers in WORKERS:
        for measure, values in {**with_workers(bench, workers), **raw_hello(bench, workers)}.items():
            rows.setdefault(measure, {})[str(workers)] = values
    for measure, figures in rows.items():
        bench.report.row("growth", measure, figures)


def connections(bench: Bench) -> None:
    """Raw hello world with 1 to 10,000 keep-alive connections (a column for each), all of them busy, 2 workers."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    programs = [
        zcluster("apps:raw"), nginx(bench.tools), node(bench.tools, "hello.js"),
        granian(bench.tools, "apps:raw", *GRANIAN_MANY),
    ]  # fmt: skip
    cpu: dict[str, dict[str, list[float]]] = {}
    rate: dict[str, dict[str, list[float]]] = {}
    p99: dict[str, dict[str, list[float]]] = {}
    with bench.all_running(programs) as servers:
        for server in servers.values():
            load(server, WARM_S)
        for wanted in CONNECTIONS:
            number = min(wanted, most - SPARE_FILES)
            stream = Stream(connections=number)
            seconds = min(bench.seconds, LONGEST_S) + CONNECT_S * (number > 1000)
            subjects = {name: partial(with_connections, server, seconds, stream) for name, server in servers.items()}
            for name, rounds in bench.in_turn(subjects, min(bench.rounds, MOST_ROUNDS)).items():
                cpu.setdefault(name, {})[f"{number:,}"] = [cpu_s * 1e6 for cpu_s, _ in rounds]
                rate.setdefault(name, {})[f"{number:,}"] = [got.rate for _, got in rounds]
                p99.setdefault(name, {})[f"{number:,}"] = [got.p99_s * 1e3 for _, got in rounds]
    for what, figures in (("CPU per request, us", cpu), ("requests/s", rate), ("latency p99, ms", p99)):
        for name, values in figures.items():
            bench.report.row("connections", f"{name}: {what}", values)


def with_connections(server: Server, seconds: float, stream: Stream) -> tuple[float, Answers]:
    """The cost of a request of so many clients."""
    try:
        return cost(server, seconds, stream)
    except BenchError:  # wrk that is starved spends all its time on opening 10,000 connections
        return cost(server, 3 * seconds, stream)
