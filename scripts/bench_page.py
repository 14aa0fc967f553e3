"""The generated parts of docs/PERFORMANCE.md and README.md: computed from docs/performance.json and nothing else."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import bench_markdown
from bench_markdown import table
from bench_plots import DRAWINGS, PREFIX
from bench_report import Goal, Report, number

DOCS = Path(__file__).resolve().parent.parent / "docs"
FIGURES = DOCS / "performance.json"

# Why a goal is missed, by its section and a word in its text. Only those that are missed are shown.
WHY = {
    ("hello", "/ nginx"): (
        "nginx is C that parses in place and makes the same system calls. A Python program that does nothing but "
        "those calls costs as much as nginx whole; the environ that WSGI demands, a split of the head without any "
        "check and the application's call already cost more than the goal allows "
        "([the floor](HTTP.md#where-a-requests-time-goes)). What remains above that floor are the checks, and "
        "[what was tried](DECISIONS.md) did not bring it down."
    ),
    ("counter", "/ Node"): (
        "The counter example is a Werkzeug program: Werkzeug's request and response objects cost more than engine "
        "and kernel together, and the same program on Node has no such layer. Counting itself is cheap: see what it "
        "adds to a request in [examples](#examples)."
    ),
    ("werkzeug", "/ granian"): (
        "An earlier run on this machine gave 0.76 (29.5 and 38.4 us): zcluster costs the same in both, granian's "
        "best setting does not. Two thirds of zcluster's figure are Werkzeug itself, which both pay: the difference "
        "to the raw hello."
    ),
    ("mixed", "fast p99, / granian"): (
        "A difference that the rounds of one run have among themselves, with more fast requests answered meanwhile."
    ),
    ("messages", "request and reply"): (
        "Between question and reply a message passes the master twice, and some fourteen threads are woken one after "
        "the other, libzmq's among them; a bare echo from DEALER over ROUTER to DEALER and back takes 0.22 ms in "
        "Python on this machine. It was 0.31 in faster phases of the machine, and between 0.41 and 0.66 in others."
    ),
}

PROPAGATION = "an increment until another worker is told"
PEER_ROWS = [
    ("werkzeug", "CPU per request, us", "Werkzeug hello: CPU per request, us"),
    ("werkzeug", "requests/s", "requests/s"),
    ("werkzeug", "latency p50, ms", "latency p50, ms"),
    ("werkzeug", "latency p99, ms", "latency p99, ms"),
    ("werkzeug", "latency p99.9, ms", "latency p99.9, ms"),
    ("hello", "1 header: CPU per request, us", "raw hello: CPU per request, us"),
    ("hello", "1 header: requests/s", "requests/s"),
    ("hello", "1 header: latency p50, ms", "latency p50, ms"),
    ("hello", "1 header: latency p99, ms", "latency p99, ms"),
    ("hello", "1 header: latency p99.9, ms", "latency p99.9, ms"),
    ("counter", "requests/s", "counter program: requests/s"),
    ("cluster", f"{PROPAGATION}, median, ms", f"{PROPAGATION}, ms"),
]
README_ROWS = [
    ("hello", "1 header: CPU per request, us", "CPU per raw WSGI hello, us"),
    ("werkzeug", "CPU per request, us", "CPU per Werkzeug hello, us"),
    ("counter", "requests/s", "counter program, requests/s"),
    ("recovery", "start until the first answer, ms", "start until the first answer, ms"),
    ("recovery", "SIGKILL of the only worker until an answer, ms", "SIGKILL of the only worker until an answer, ms"),
    ("recovery", "failed requests in 2 reloads, keep-alive", "failed requests in 2 reloads under full load"),
    ("idle", "memory for each connection, KiB", "memory for each idle connection, KiB"),
]


@cache
def report() -> Report:
    """The committed figures."""
    return Report.read(FIGURES)


def chosen(rows: list[tuple[str, str, str]], told: Report) -> str:
    """These rows, each with a name of its own, and a column for each server."""
    by_name = {(row.section, row.measure): row.values for row in told.rows}
    found = [(label, by_name[section, measure]) for section, measure, label in rows if (section, measure) in by_name]
    names = list(dict.fromkeys(name for _, values in found for name in values))
    return table(["", *names], ([label, *(number(values.get(n, ())) for n in names)] for label, values in found))


def peers(told: Report) -> str:
    """Everything that was measured of several servers, in one table."""
    recovery = [("recovery", row.measure, row.measure) for row in told.rows if row.section == "recovery"]
    return chosen([*PEER_ROWS, *recovery], told)


def goals(told: Report) -> str:
    """All goals, then what there is to say of those that are missed."""
    missed = [goal for goal in told.goals if goal.verdict == "MISSED"]
    text = f"{_count(told, 'met')} of {len(told.goals)} goals are met, {len(missed)} missed"
    unknown = _count(told, "not measured")
    text += f", {unknown} not measured.\n\n" if unknown else ".\n\n"
    if any(taken.quick for taken in told.sections.values()):
        text += "**Of a quick look (`--quick`), not of a measurement: noise can miss a goal, or meet it.**\n\n"
    text += bench_markdown.goals(told, told.sections)
    for goal in missed:
        value = "" if goal.value is None else f": {number([goal.value])}, not {number([goal.bound])}"
        text += f"\n**Missed: {goal.section}, {goal.text}{value}.** {why(goal)}\n"
    return text


def _count(told: Report, verdict: str) -> int:
    return sum(goal.verdict == verdict for goal in told.goals)


def why(goal: Goal) -> str:
    """What is known about a goal that is missed."""
    reasons = [text for (section, word), text in WHY.items() if goal.section == section and word in goal.text]
    return reasons[0] if reasons else "The reason is not known yet."


def drawings(told: Report) -> str:
    """The plots that there are."""
    return "".join(
        f"![{(drawing.__doc__ or '').strip()}]({PREFIX}{name}.svg)\n\n"
        for name, (drawing, sections) in DRAWINGS.items()
        if all(section in told.sections for section in sections)
    )


def details(told: Report) -> str:
    """All sections but those that have a place of their own on the page."""
    return "\n".join(bench_markdown.section(told, name) for name in told.sections if name != "lines")


def lines(told: Report) -> str:
    """The profile."""
    rows = [row for row in told.rows if row.section == "lines"]
    kinds = bench_markdown.servers(rows)
    shown = [[_code(row.measure), *(number(row.values.get(kind, ())) for kind in kinds)] for row in rows]
    return table(["Line, and what stands there", *(f"{kind}, us" for kind in kinds)], shown)


def _code(text: str) -> str:
    place, colon, source = text.partition(": ")
    return f"{place}<br>`{source}`" if colon and ".py:" in place else text


def readme(told: Report) -> str:
    """The few that matter most, and the machine in one line."""
    machine, taken = told.machine, told.sections.get("hello")
    python = machine.get("Python", "?").partition(",")[0]
    which = f"{machine.get('cores', '?')}, {machine.get('kernel', '?')}, Python {python}"
    how = bench_markdown.how(taken) if taken else ""
    return chosen(README_ROWS, told) + f"\n{how} The machine: cores {which}.\n"


PARTS: dict[str, Callable[[], str]] = {
    "performance-machine": lambda: bench_markdown.machine(report()),
    "performance-goals": lambda: goals(report()),
    "performance-peers": lambda: peers(report()),
    "performance-drawings": lambda: drawings(report()),
    "performance-details": lambda: details(report()),
    "performance-lines": lambda: lines(report()),
    "performance-readme": lambda: readme(report()),
}
