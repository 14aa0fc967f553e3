"""The figures of scripts/bench as SVG, drawn by matplotlib (of the dev extra) from a report alone.

The same figures give the same bytes with the same matplotlib: no date, no random ids. Each drawing names the digest
of the figures it was made from, so that a test can tell a drawing that is out of date.
"""

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench_report import Report, finite

COLOURS = {
    "zcluster": "#c4451c", "nginx": "#3a7d44", "Node": "#9db33c", "granian": "#35618f", "gunicorn": "#7a5195",
    "uWSGI": "#b8860b", "waitress": "#20808d",
}  # fmt: skip
OTHER = "#888888"
PREFIX = "performance-"
Figure = Mapping[str, float]


class PlotsUnavailable(Exception):
    """matplotlib is missing; the text says how to get it."""


def digest(report: Report) -> str:
    """Of the figures, as they stand in the JSON."""
    rows = [{**asdict(row), "values": {k: [*map(finite, v)] for k, v in row.values.items()}} for row in report.rows]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]


def medians(report: Report, section: str, measure: str) -> dict[str, float]:
    """One row, by server; what is infinite cannot be drawn."""
    rows = [row for row in report.rows if (row.section, row.measure) == (section, measure)]
    found = {name: statistics.median(values) for row in rows for name, values in row.values.items() if values}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def by_size(report: Report, section: str, measure: str) -> tuple[list[int], list[float]]:
    """A row whose columns are sizes."""
    found = medians(report, section, measure)
    return [int(size.replace(",", "")) for size in found], list(found.values())


def logarithmic(axis: Any) -> None:
    """A scale with 1, 10, 100 on it and nothing between them."""
    from matplotlib import ticker

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(ticker.NullFormatter())


def bars(axes: Any, title: str, values: Figure, log: bool = False) -> None:
    """A bar for each server, its figure beside it."""
    names = list(values)
    axes.barh(names, [values[name] for name in names], color=[COLOURS.get(name, OTHER) for name in names])
    axes.bar_label(axes.containers[0], fmt="{:,.4g}", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_title(title, fontsize=10)
    if log:
        logarithmic(axes.xaxis)
    axes.margins(x=0.18)


def cpu(report: Report, axes: Sequence[Any]) -> None:
    """CPU per request by server."""
    bars(axes[0], "CPU per raw hello, us", medians(report, "hello", "1 header: CPU per request, us"))
    bars(axes[1], "CPU per Werkzeug hello, us", medians(report, "werkzeug", "CPU per request, us"))


def latency(report: Report, axes: Sequence[Any]) -> None:
    """Percentiles of latency by server, of 64 clients that ask as fast as they are answered."""
    for axis, (section, what, title) in zip(
        axes, (("hello", "1 header: ", "raw hello"), ("werkzeug", "", "Werkzeug hello")), strict=True
    ):
        parts = {p: medians(report, section, f"{what}latency {p}, ms") for p in ("p50", "p99", "p99.9")}
        names = list(parts["p50"])
        for index, (name, shade) in enumerate(zip(parts, ("#9db8d2", "#35618f", "#152a44"), strict=True)):
            places = [row + (index - 1) * 0.27 for row in range(len(names))]
            axis.barh(places, [parts[name].get(server, 0.0) for server in names], 0.25, color=shade, label=name)
        axis.set_yticks(range(len(names)), names)
        axis.invert_yaxis()
        logarithmic(axis.xaxis)
        axis.set_title(f"latency, ms: {title}", fontsize=10)
        axis.legend(fontsize=8)


def workers(report: Report, axes: Sequence[Any]) -> None:
    """What one more worker costs."""
    for axis, title, measures in (
        (
            axes[0],
            "CPU per request, us",
            ["CPU per request, us", *(f"raw hello, {name}: CPU per request, us" for name in ("zcluster", "Node"))],
        ),
        (
            axes[1],
            "memory per worker (MiB), master's CPU (%)",
            ["memory (PSS) per worker, MiB", "the master's CPU under load, % of a core"],
        ),
    ):
        for index, measure in enumerate(measures):
            sizes, values = by_size(report, "growth", measure)
            label = measure.removesuffix(": CPU per request, us").replace("CPU per request, us", "counter, zcluster")
            axis.plot(sizes, values, marker="o", label=label, color=("#c4451c", "#35618f", "#9db33c")[index])
            axis.set_xscale("log", base=2)
            axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.set_ylim(bottom=0)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("workers")
        axis.legend(fontsize=7)


def connections(report: Report, axes: Sequence[Any]) -> None:
    """What one more connection costs."""
    for axis, measure in zip(axes, ("CPU per request, us", "latency p99, ms"), strict=True):
        rows = [row.measure for row in report.rows if row.section == "connections" and row.measure.endswith(measure)]
        for row in rows:
            name = row.partition(":")[0]
            sizes, values = by_size(report, "connections", row)
            axis.plot(sizes, values, marker="o", label=name, color=COLOURS.get(name, OTHER))
        logarithmic(axis.xaxis)
        if measure.startswith("latency"):
            logarithmic(axis.yaxis)
        else:
            axis.set_ylim(bottom=0)
        axis.set_title(f"raw hello: {measure}", fontsize=10)
        axis.set_xlabel("busy keep-alive connections")
        axis.legend(fontsize=8)


def recovery(report: Report, axes: Sequence[Any]) -> None:
    """How soon there is an answer."""
    bars(axes[0], "start until the first answer, ms", medians(report, "recovery", "start until the first answer, ms"))
    after = medians(report, "recovery", "SIGKILL of the only worker until an answer, ms")
    bars(axes[1], "SIGKILL of the only worker until an answer, ms", after, log=True)


DRAWINGS: dict[str, tuple[Callable[[Report, Sequence[Any]], None], tuple[str, ...]]] = {
    "cpu": (cpu, ("hello", "werkzeug")),
    "latency": (latency, ("hello", "werkzeug")),
    "recovery": (recovery, ("recovery",)),
    "workers": (workers, ("growth",)),
    "connections": (connections, ("connections",)),
}


def check() -> None:
    """Raise PlotsUnavailable when nothing can be drawn; to be asked before an hour of measuring, not after it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        wanted = "matplotlib, of the dev extra: scripts/install '.[dev]'"
        raise PlotsUnavailable(f"drawings need {wanted} ({error})") from error


def draw(report: Report, folder: Path) -> list[Path]:
    """Write those drawings whose sections are in the report; their paths."""
    check()
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    settings = {"svg.hashsalt": "zcluster", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
    written = []
    for name, (drawing, sections) in DRAWINGS.items():
        if not all(section in report.sections for section in sections):
            continue
        with mpl.rc_context(settings):
            figure, axes = pyplot.subplots(1, 2, figsize=(9.5, 3.2), layout="constrained")
            drawing(report, axes)
            for axis in axes:
                axis.spines[["top", "right"]].set_visible(False)
            told = {"Date": None, "Creator": None, "Description": f"figures {digest(report)}"}
            path = folder / f"{PREFIX}{name}.svg"
            figure.savefig(path, format="svg", metadata=told)
            pyplot.close(figure)
        written.append(path)
    return written
