"""Where the CPU of a request goes, line by line: py-spy looks at a worker under load, again and again.

It reads the worker's memory from outside, so nothing is slower for being looked at, and a system call counts to the
line that makes it. What a line costs is its share of the samples times the worker's CPU per request. Samples are of
time, not of CPU: so the worker has a core of its own, with more to do than it can, and everything else has another.
"""

import linecache
import os
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench_load import BROWSER, Stream, background
from bench_machine import ROOT
from bench_processes import TICKS, BenchError, Server, running
from bench_requests import WARM_S
from bench_servers import PEERS, Bench, ps, zcluster

SECONDS = 10  # of one kind of request: some 5,000 samples
SAMPLES_A_SECOND = 500  # py-spy shares its core with wrk
SHOWN = 30  # lines; those below them are under a hundredth each
LOOP = "Engine._rounds "  # in the stacks of the thread that has the loop; the others wait
WORKER, KERNEL = "a worker's CPU per request", "of that in the kernel"
BUSY, BUSY_ENOUGH = "how busy its core was, %", 90.0
OWN = ("zcluster/", "scripts/")
KINDS = {"1 header": (), "12 headers": BROWSER}


def times(pid: int) -> tuple[float, float]:
    """User and system seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / TICKS, int(fields[12]) / TICKS


def served(server: Server, pid: int) -> int:
    """Requests of this worker so far."""
    return next(int(worker["requests"]) for worker in ps(server)["workers"] if worker["pid"] == pid)


def pin(pid: int, cores: set[int]) -> None:
    """Let all threads of a process run there only."""
    for task in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(task), cores)


def sample(spy: str, pid: int, cores: set[int]) -> Counter[str]:
    """How often each line was the innermost, as `path:line function`."""
    with tempfile.NamedTemporaryFile(prefix="zcb-", suffix=".txt") as out:
        words = [
            spy,
            "record",
            f"--pid={pid}",
            f"--rate={SAMPLES_A_SECOND}",
            f"--duration={SECONDS}",
            "--nonblocking",
        ]
        words += ["--format=raw", "--full-filenames", f"--output={out.name}"]
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=SECONDS + 30,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )  # fmt: skip
        stacks = Path(out.name).read_text()
    if not stacks:
        raise BenchError(f"py-spy saw nothing: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return innermost(stack for stack in stacks.splitlines() if LOOP in stack)


def innermost(stacks: Iterable[str]) -> Counter[str]:
    """Of py-spy's `outer (file:line);inner (file:line) count`, the count of each `file:line function`."""
    found: Counter[str] = Counter()
    for line in stacks:
        stack, _, count = line.rpartition(" ")
        function, _, place = stack.rpartition(";")[2].rstrip(")").rpartition(" (")
        path, _, number = place.rpartition(":")
        if number.isdecimal() and count.isdecimal():
            found[f"{short(path)}:{number} {function}"] += int(count)
    return found


def short(path: str) -> str:
    """A path of ours from the root, another one from site-packages or the standard library."""
    for mark in ("/site-packages/", "/lib/python"):
        if mark in path:
            return path.rpartition(mark)[2]
    return path.removeprefix(f"{ROOT}/")


def label(place: str) -> str:
    """`path:line function: what stands there`."""
    where, _, function = place.partition(" ")
    path, _, number = where.rpartition(":")
    text = linecache.getline(str(ROOT / path), int(number)).strip() if path.startswith(OWN) else ""
    return f"{path}:{number} {function}: {text}".rstrip(": ")


@dataclass(frozen=True)
class Watched:
    """What was seen of the only worker."""

    whole_us: float  # of CPU, for a request
    kernel_us: float
    busy: float  # of its core, in hundredths
    places: Counter[str]


def watched(bench: Bench, server: Server, headers: Sequence[str]) -> Watched:
    """Look at the worker while it has more to do than it can."""
    first, *others = sorted(os.sched_getaffinity(0))
    with background(server, WARM_S + SECONDS + 60, Stream(headers=headers)) as wrk:
        pid = int(ps(server)["workers"][0]["pid"])
        time.sleep(WARM_S)
        pin(pid, {first})
        pin(wrk.pid, set(others) or {first})
        requests, (user, system), started = served(server, pid), times(pid), time.monotonic()
        counted = sample(bench.tools["py-spy"], pid, set(others) or {first})
        (user_then, system_then), ended = times(pid), time.monotonic()
        requests = served(server, pid) - requests
    if not requests:
        raise BenchError(f"worker {pid} answered nobody while it was looked at")
    user, system = user_then - user, system_then - system
    busy = 100 * (user + system) / (ended - started)
    return Watched((user + system) / requests * 1e6, system / requests * 1e6, busy, counted)


def lines(bench: Bench) -> None:
    """Where the CPU of a request goes, line by line, in us (py-spy on a worker under load, raw hello world)."""
    if "py-spy" not in bench.tools:
        raise BenchError("py-spy is missing")
    with running(zcluster("apps:raw", cwd=PEERS, workers=1)) as server:
        seen = {kind: watched(bench, server, headers) for kind, headers in KINDS.items()}
    row = bench.report.row
    row("lines", WORKER, {kind: [one.whole_us] for kind, one in seen.items()})
    row("lines", KERNEL, {kind: [one.kernel_us] for kind, one in seen.items()})
    row("lines", BUSY, {kind: [one.busy] for kind, one in seen.items()})
    if min(one.busy for one in seen.values()) < BUSY_ENOUGH:
        bench.report.note("the worker had to wait for its core: too much is said of the line that waits, `poll`")
    per_line: dict[str, dict[str, list[float]]] = {}
    for kind, one in seen.items():
        for place, count in one.places.items():
            per_line.setdefault(place, {})[kind] = [count / one.places.total() * one.whole_us]
    ordered = sorted(per_line, key=lambda place: -sum(values[0] for values in per_line[place].values()))
    for place in ordered[:SHOWN]:
        row("lines", label(place), per_line[place])
    rest = {kind: [sum(per_line[place].get(kind, [0.0])[0] for place in ordered[SHOWN:])] for kind in KINDS}
    row("lines", f"{max(0, len(ordered) - SHOWN)} lines more", rest)
