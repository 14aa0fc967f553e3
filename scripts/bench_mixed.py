"""Fast requests beside slow ones: what blocking and computing requests cost everybody else."""

import statistics
from dataclasses import dataclass
from functools import partial
from itertools import count

from bench_load import Answers, Stream, load
from bench_processes import BenchError, Server
from bench_report import in_turn, ratio
from bench_servers import Bench, granian, zcluster

CLIENTS = 32
THREADS = 64
WARM_S = 2.0  # at full load, so that thread pools have grown and what learns has learnt
_fresh = count(1)


@dataclass(frozen=True)
class Beside:
    """What the other 32 clients ask for, and how many answers a second they should get."""

    what: str
    path: str
    fresh_paths: bool = False
    goal: float | None = None  # None: is reported, nobody promised anything


VARIANTS = (
    Beside("50 ms sleep", "/slow", goal=560.0),
    Beside("50 ms sleep, new path each", "/slow", fresh_paths=True, goal=560.0),
    Beside("30 ms of CPU", "/burn"),
)


def measure(server: Server, seconds: float, beside: Beside) -> tuple[Answers, Answers]:
    """The fast clients' answers and the slow ones'."""
    # Paths that this server has never seen, in no round.
    path = f"{beside.path}/{next(_fresh)}-" if beside.fresh_paths else beside.path
    slow = Stream(path, CLIENTS, fresh_paths=beside.fresh_paths)
    quick, slow_answers = load(server, seconds, Stream("/fast", CLIENTS), slow)
    return quick, slow_answers


def variant(bench: Bench, beside: Beside) -> None:
    """One kind of slow request, in servers that were started for it, so that nothing is known from another kind."""
    threads = f"--threads={THREADS}"
    programs = [zcluster("apps:mixed", threads), granian(bench.tools, "apps:mixed", f"--blocking-threads={THREADS}")]
    with bench.all_running(programs) as servers:
        for server in servers.values():
            measure(server, WARM_S, beside)
        subjects = {name: partial(measure, server, bench.seconds, beside) for name, server in servers.items()}
        results = in_turn(subjects, bench.rounds)

    def row(measure: str, values: dict[str, list[float]]) -> dict[str, list[float]]:
        bench.report.row("mixed", f"{beside.what}: {measure}", values)
        return values

    rates = row("fast/s", {name: [quick.rate for quick, _ in rounds] for name, rounds in results.items()})
    row("fast p50, ms", {name: [quick.p50_s * 1e3 for quick, _ in rounds] for name, rounds in results.items()})
    p99 = row("fast p99, ms", {name: [quick.p99_s * 1e3 for quick, _ in rounds] for name, rounds in results.items()})
    row("slow p99, ms", {name: [slow.p99_s * 1e3 for _, slow in rounds] for name, rounds in results.items()})
    slow = row("slow/s", {name: [slow.rate for _, slow in rounds] for name, rounds in results.items()})
    if beside.goal is None:
        return
    goal, what = bench.report.goal, beside.what
    goal("mixed", f"{what}: fast/s, / granian", ratio(rates, "zcluster", "granian"), 1.0, at_most=False)
    goal("mixed", f"{what}: fast p99, / granian", ratio(p99, "zcluster", "granian"), 1.0)
    goal("mixed", f"{what}: slow/s", statistics.median(slow["zcluster"]), beside.goal, at_most=False)


def mixed(bench: Bench) -> None:
    """32 clients of a slow endpoint (ideal: 640/s for 50 ms) beside 32 of a fast one, 2 workers with 64 threads."""
    for beside in VARIANTS:
        try:
            variant(bench, beside)
        except BenchError as error:  # the other variants are worth having all the same
            bench.report.fail(str(error))
