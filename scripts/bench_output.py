"""What scripts/bench leaves behind: a document, drawings, and the page of the documentation."""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import bench_markdown
import bench_page
import bench_plots
from bench_report import Report


class OutputError(Exception):
    """Figures cannot be read or written; the text says which, and what to do."""


def read(path: Path) -> Report:
    """A report that was written with --json."""
    try:
        return Report.read(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{path} is no file that --json wrote: {type(error).__name__}: {error}") from error


def write(report: Report, options: argparse.Namespace, order: Sequence[str]) -> None:
    """All that was asked for."""
    if options.markdown:
        options.markdown.write_text(bench_markdown.document(report), encoding="utf-8")
    if options.plots:
        options.plots.mkdir(parents=True, exist_ok=True)
        bench_plots.draw(report, options.plots)
    if options.page:
        page(report, order)


def page(report: Report, order: Sequence[str]) -> None:
    """The figures of the documentation, and all that is made of them; sections not measured now stay as they are."""
    if bench_page.FIGURES.exists():
        report = report.with_others_of(read(bench_page.FIGURES), order)
    report.write(bench_page.FIGURES)
    drawn = bench_plots.draw(report, bench_page.DOCS)
    for path in set(bench_page.DOCS.glob(f"{bench_plots.PREFIX}*.svg")) - set(drawn):
        path.unlink()
    # A program of its own: it imports the product's modules, and all of the documentation depends on it.
    done = subprocess.run([sys.executable, str(Path(__file__).parent / "docs.py")])
    if done.returncode:
        raise OutputError(f"docs/performance.json is written, but scripts/docs ended with {done.returncode}")
