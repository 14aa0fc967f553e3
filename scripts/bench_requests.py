"""Sections about the cost of a request: hello world, the counter, Werkzeug, the access log."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from bench_load import BROWSER, Answers, Stream, load
from bench_machine import ROOT
from bench_processes import BenchError, Program, Server, running
from bench_report import ratio
from bench_servers import Bench, granian, gunicorn, nginx, node, uwsgi, waitress, zcluster

Figures = dict[str, list[float]]
CPU, RATE = "CPU per request, us", "requests/s"
P50, P99, P999 = "latency p50, ms", "latency p99, ms", "latency p99.9, ms"
MEMORY = "memory (PSS) of all processes, MiB"
WARM_S = 2.0  # caches, JIT and thread pools are full well before
TRIAL_S = 2.0  # to choose among a peer's settings; differences that matter are larger than its noise


def cost(server: Server, seconds: float, stream: Stream) -> tuple[float, Answers]:
    """CPU seconds per request of all the server's processes, and what the clients got."""
    before = server.cpu_s()
    (answers,) = load(server, seconds, stream)
    if not answers.requests:
        raise BenchError(f"{server.name} answered nobody in {seconds:g} s")
    return (server.cpu_s() - before) / answers.requests, answers


def compare(
    bench: Bench, section: str, servers: Mapping[str, Server], stream: Stream, what: str
) -> tuple[Figures, Figures]:
    """Rows of CPU per request, requests per second, latency and, after it all, memory; in turn."""
    warm = bench.in_turn({name: partial(load, server, WARM_S, stream) for name, server in servers.items()}, 1)
    subjects = {name: partial(cost, servers[name], bench.seconds, stream) for name in warm}
    results = bench.in_turn(subjects, bench.rounds)

    def row(measure: str, of: Callable[[float, Answers], float]) -> Figures:
        figures = {name: [of(cpu_s, got) for cpu_s, got in rounds] for name, rounds in results.items()}
        bench.report.row(section, what + measure, figures)
        return figures

    cpu = row(CPU, lambda cpu_s, _: cpu_s * 1e6)
    rates = row(RATE, lambda _, got: got.rate)
    row(P50, lambda _, got: got.p50_s * 1e3)
    row(P99, lambda _, got: got.p99_s * 1e3)
    row(P999, lambda _, got: got.p999_s * 1e3)
    memory = {name: [servers[name].pss_bytes() / 2**20] for name in results}
    bench.report.row(section, what + MEMORY, memory)
    return cpu, rates


def hello(bench: Bench) -> None:
    """Hello world as raw WSGI, 2 workers, 64 keep-alive connections."""
    programs = [zcluster("apps:raw"), nginx(bench.tools), node(bench.tools, "hello.js")]
    with bench.all_running(programs) as servers:
        for what, headers in (("1 header: ", ()), ("12 headers: ", BROWSER)):
            cpu, _ = compare(bench, "hello", servers, Stream(headers=headers), what)
            bench.report.goal("hello", f"{what}CPU, zcluster / nginx", ratio(cpu, "zcluster", "nginx"), 1.9)
            bench.report.goal("hello", f"{what}CPU, zcluster / Node", ratio(cpu, "zcluster", "Node"), 1.0)


def counter(bench: Bench) -> None:
    """examples/counter (Werkzeug) and the same program on Node's cluster, 2 workers, 64 connections."""
    programs = [zcluster("app:app", cwd=ROOT / "examples" / "counter"), node(bench.tools, "counter.js")]
    with bench.all_running(programs) as servers:
        _, rates = compare(bench, "counter", servers, Stream(), "")
    bench.report.goal("counter", "requests/s, zcluster / Node", ratio(rates, "zcluster", "Node"), 2.0, at_most=False)


def best(bench: Bench, programs: Sequence[Program | None]) -> Program | None:
    """The settings with the least CPU per request, each tried alone for a moment."""
    found: list[tuple[float, Program]] = []
    for program in filter(None, programs):
        try:
            with running(program) as server:
                load(server, WARM_S)
                found.append((cost(server, TRIAL_S, Stream())[0], program))
        except BenchError as error:
            bench.report.note(str(error))
    if not found:
        return None
    found.sort(key=lambda one: one[0])
    tried = ", ".join(f"{program.setting} {cpu_s * 1e6:.1f} us" for cpu_s, program in found)
    bench.report.note(f"{found[0][1].name}'s settings by CPU per request, the first is compared: {tried}")
    return found[0][1]


def werkzeug(bench: Bench) -> None:
    """Hello world with Werkzeug, 2 workers (waitress: one process), 64 connections; peers at their best settings."""
    app = "apps:hello"
    granians = [
        granian(bench.tools, app, "--runtime-mode=st", "--blocking-threads=1"),
        granian(bench.tools, app, "--runtime-mode=st", "--blocking-threads=2"),
        granian(bench.tools, app, "--runtime-mode=st", "--blocking-threads=4"),
        granian(bench.tools, app, "--runtime-mode=mt", "--blocking-threads=1", "--runtime-threads=1"),
        granian(bench.tools, app, "--runtime-mode=mt", "--blocking-threads=1", "--runtime-threads=2"),
    ]
    gunicorns = [gunicorn(bench.tools, app, f"--threads={threads}") for threads in (2, 4, 8)]
    uwsgis = [uwsgi(bench.tools, app, f"--threads={threads}") for threads in (1, 2, 4)]
    waitresses = [waitress(bench.tools, app, f"--threads={threads}") for threads in (2, 4, 8)]
    programs = [zcluster(app), *(best(bench, peers) for peers in (granians, gunicorns, uwsgis, waitresses))]
    with bench.all_running(programs) as servers:
        cpu, _ = compare(bench, "werkzeug", servers, Stream(), "")
    bench.report.goal("werkzeug", "CPU, zcluster / granian", ratio(cpu, "zcluster", "granian"), 0.8)
    bench.report.goal("werkzeug", "CPU, zcluster / gunicorn gthread", ratio(cpu, "zcluster", "gunicorn"), 0.2)


def access_log(bench: Bench) -> None:
    """Hello world as raw WSGI with the access log off and on (gunicorn's format, to a file)."""
    # Not into the server's own folder, which is on tmpfs: a log of some hundred megabytes belongs on a disk.
    with tempfile.TemporaryDirectory(prefix="zcb-") as folder:
        log = Path(folder) / "access"
        programs = [
            zcluster("apps:raw", name="off"),
            zcluster("apps:raw", f"--access-logfile={log}", name="on"),
        ]
        with bench.all_running(programs) as servers:
            cpu, _ = compare(bench, "log", servers, Stream(headers=BROWSER), "")
            if not (log.exists() and log.stat().st_size):
                raise BenchError("zcluster wrote no access log, so what it costs is not known")
    bench.report.goal("log", "CPU, on / off", ratio(cpu, "on", "off"), 1.25)
