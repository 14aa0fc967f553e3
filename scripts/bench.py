"""Measure zcluster beside its peers and print the figures with their goals; nothing is asserted.

CPU is user + system time of all the server's processes divided by the requests answered. What is compared runs in
turn in one run, several rounds; medians are shown, and ratios are medians of the rounds' ratios: machines are noisy.
wrk is the load. Programs that are absent are installed: wrk, nginx and Node with apt-get (as root only), the
others with pip into .venv-bench (uWSGI needs a C compiler); what cannot be had is named and left out. All of it takes
some twenty minutes; run it with nothing else on the machine.
"""

import argparse
import http.client
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import bench_output
import bench_plots
from bench_cluster import cluster, examples
from bench_connections import balance, idle
from bench_growth import connections, growth
from bench_lines import lines
from bench_machine import describe, find, raise_file_limit
from bench_messages import messages
from bench_mixed import mixed
from bench_processes import BenchError, sweep
from bench_recovery import recovery
from bench_report import Report, Taken
from bench_requests import access_log, counter, hello, werkzeug
from bench_servers import Bench
from bench_where import where

PEERS = ("granian", "gunicorn", "uwsgi", "waitress")  # that run WSGI


@dataclass(frozen=True)
class Section:
    """A part of the benchmark: what measures it, and the programs it would like to have."""

    measure: Callable[[Bench], None]
    wants: Sequence[str] = ("wrk",)

    @property
    def title(self) -> str:
        return (self.measure.__doc__ or "").strip()


SECTIONS = {
    "hello": Section(hello, ("wrk", "nginx", "node")),
    "counter": Section(counter, ("wrk", "node")),
    "werkzeug": Section(werkzeug, ("wrk", *PEERS)),
    "recovery": Section(recovery, ("wrk", "nginx", "node", *PEERS)),
    "mixed": Section(mixed, ("wrk", "granian")),
    "balance": Section(balance),
    "idle": Section(idle, ("wrk", "nginx", "granian")),
    "log": Section(access_log),
    "examples": Section(examples),
    "cluster": Section(cluster, ("node",)),
    "messages": Section(messages, ()),
    "growth": Section(growth, ("wrk", "node")),
    "connections": Section(connections, ("wrk", "nginx", "node", "granian")),
    "where": Section(where, ()),
    "lines": Section(lines, ("wrk", "py-spy")),
}


def section_names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in SECTIONS]:
        raise argparse.ArgumentTypeError(f"no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    return names


def at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="sections:\n" + "\n".join(f"  {name:<13}{section.title}" for name, section in SECTIONS.items()),
    )  # fmt: skip
    parser.add_argument("--only", type=section_names, default=[*SECTIONS], metavar="NAME,...", help="default: all")
    parser.add_argument("--seconds", type=at_least_one, metavar="N", help="of each measurement (default: 4)")
    parser.add_argument("--rounds", type=at_least_one, metavar="N", help="of everything (default: 5)")
    parser.add_argument("--quick", action="store_true", help="3 rounds of 1 second: a look, not a measurement")
    parser.add_argument("--no-install", action="store_true", help="use what is there")
    parser.add_argument("--from", type=Path, metavar="FILE", dest="source", help="measure nothing: read this JSON")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rounds of all figures there, too")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write tables with the goals there")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw SVG files there (dev extra: matplotlib)")
    parser.add_argument("--page", action="store_true", help="write docs/performance.json and all that is made of it")
    return parser.parse_args(words)


def stop_in_order(number: int, _: FrameType | None) -> None:
    """A signal unwinds the stack, so that every server that was started is ended."""
    raise SystemExit(128 + number)


def run(bench: Bench, name: str) -> None:
    """One section, then its table. What goes wrong in it does not stop the others."""
    section = SECTIONS[name]
    print(f"\n{name}: {section.title}", flush=True)
    if "wrk" in section.wants and "wrk" not in bench.tools:
        bench.report.note(f"{name}: left out, there is no wrk")
        return
    started = time.monotonic()
    try:
        section.measure(bench)
    except (BenchError, OSError, http.client.HTTPException, subprocess.SubprocessError) as error:
        bench.report.fail(f"{name}: {type(error).__name__}: {error}")
    print(bench.report.table(name))
    print(f"  ({time.monotonic() - started:.0f} s)", flush=True)


def measured(options: argparse.Namespace) -> Report:
    """Run the sections; what was measured until an interruption is worth keeping."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop_in_order)
    raise_file_limit()
    sweep()
    tools = find([want for name in options.only for want in SECTIONS[name].wants], not options.no_install)
    report = Report(describe(tools))
    for label, text in report.machine.items():
        print(f"{label:<12}{text}")
    for problem in tools.problems:
        report.note(problem)
    bench = Bench(
        report, tools, options.seconds or (1 if options.quick else 4), options.rounds or (3 if options.quick else 5)
    )
    print(f"{bench.rounds} rounds of {bench.seconds:g} s, in turn; medians")
    try:
        for name in options.only:
            date = time.strftime("%Y-%m-%d", time.gmtime())
            report.sections[name] = Taken(SECTIONS[name].title, date, bench.rounds, bench.seconds, options.quick)
            report.current = name
            run(bench, name)
    finally:
        if options.json:
            report.write(options.json)
    return report


def main() -> int:
    options = arguments(sys.argv[1:])
    try:
        if options.plots or options.page:
            bench_plots.check()
        report = bench_output.read(options.source) if options.source else measured(options)
        bench_output.write(report, options, list(SECTIONS))
    except (bench_plots.PlotsUnavailable, bench_output.OutputError) as error:
        print(f"scripts/bench: {error}", file=sys.stderr)
        return 2
    missed = [goal for goal in report.goals if goal.verdict == "MISSED"]
    print(f"\n{len(report.goals)} goals, {len(missed)} missed, {len(report.failures)} failures")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
