"""What scripts/bench writes is computed from its figures alone, and the documentation shows the committed ones."""

import math
import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator

import pytest
from sources import ROOT

SCRIPTS = ROOT / "scripts"
DOCS = ROOT / "docs"
DRAWING_MAX_BYTES = 100_000


@pytest.fixture(autouse=True)
def _modules_of_the_scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The benchmark's modules are siblings in a folder of programs."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield
    for name in set(sys.modules) - before:
        if name.startswith("bench"):
            del sys.modules[name]


def figures(section: str = "recovery", value: float = 2.0):
    """A small report."""
    from bench_report import Report, Taken

    report = Report({"cores": "2 | 3"}, {section: Taken("Of it.", "2026-11-22", 5, 4.0, False)}, current=section)
    report.row(section, "start until the first answer, ms", {"zcluster": [300.0, 310.0], "Node": [value]})
    report.row(section, "SIGKILL of the only worker until an answer, ms", {"zcluster": [12.0], "Node": [math.inf]})
    report.goal(section, "CPU, zcluster / nginx", value, 1.9)
    report.note("left out")
    return report


def test_figures_are_read_as_they_were_written(tmp_path):
    """Rows, goals, notes and infinities survive the JSON."""
    from bench_report import Report

    report = figures()
    report.write(tmp_path / "f.json")
    again = Report.read(tmp_path / "f.json")
    assert (again.rows, again.goals, again.notes, again.sections) == (
        report.rows,
        report.goals,
        report.notes,
        report.sections,
    )


def test_sections_that_were_not_measured_stay(tmp_path):
    """A run of some sections takes the place of these and of nothing else."""
    old = figures("hello", 2.0)
    old.rows += figures("idle", 3.0).rows
    old.sections |= figures("idle").sections
    both = figures("hello", 1.5).with_others_of(old, ["idle", "hello", "log"])
    assert list(both.sections) == ["idle", "hello"]
    assert [row.values["Node"] for row in both.rows if "start" in row.measure] == [[3.0], [1.5]]
    assert [goal.value for goal in both.goals] == [1.5]


def test_a_table_has_medians_and_says_what_is_missed():
    """Columns are servers, cells medians, a bar in a cell does not break the table."""
    import bench_markdown

    text = bench_markdown.document(figures())
    assert "| start until the first answer, ms | 305 | 2.00 |\n" in text
    assert "| cores | 2 \\| 3 |\n" in text
    assert "| recovery | CPU, zcluster / nginx | at most 1.90 | 2.00 | **missed** |" in text
    assert "- left out\n" in text
    assert "not a measurement" not in text


def test_a_goal_that_is_missed_has_its_reason_on_the_page():
    """One that is met has none, so that the text cannot outlive what it explains."""
    import bench_page

    missed = bench_page.goals(figures("hello", 2.5))
    assert "**Missed: hello, CPU, zcluster / nginx: 2.50, not 1.90.** nginx is C" in missed
    assert missed.startswith("0 of 1 goals are met, 1 missed.\n")
    assert "nginx is C" not in bench_page.goals(figures("hello", 1.5))
    assert "not known yet" in bench_page.goals(figures("log", 2.5))


def test_drawings_depend_on_the_figures_alone(tmp_path):
    """Drawn twice they are the same bytes, they are small, and they name their figures."""
    import bench_plots

    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (path,) = bench_plots.draw(figures(), tmp_path / folder)
    data = path.read_bytes()
    assert data == (tmp_path / "one" / path.name).read_bytes()
    assert bench_plots.digest(figures()) in data.decode()
    assert bench_plots.digest(figures(value=3.0)) != bench_plots.digest(figures())
    assert len(data) < DRAWING_MAX_BYTES


def test_the_committed_drawings_are_of_the_committed_figures():
    """Each drawing on the page is there, small, well-formed and made from docs/performance.json as it is."""
    import bench_page
    import bench_plots

    shown = re.findall(r"\]\((performance-\w+\.svg)\)", (DOCS / "PERFORMANCE.md").read_text(encoding="utf-8"))
    assert sorted(shown) == sorted(path.name for path in DOCS.glob("performance-*.svg"))
    assert len(shown) == len(bench_plots.DRAWINGS)
    for name in shown:
        data = (DOCS / name).read_bytes()
        assert len(data) < DRAWING_MAX_BYTES, name
        assert ET.fromstring(data).tag.endswith("svg")
        assert bench_plots.digest(bench_page.report()) in data.decode(), f"{name}: scripts/bench --page --from ..."


def test_the_page_has_every_section():
    """What can be measured has figures, and none of it failed."""
    import bench
    import bench_page

    report = bench_page.report()
    assert list(report.sections) == list(bench.SECTIONS)
    assert {row.section for row in report.rows} == set(bench.SECTIONS)
    assert not report.failures


def test_samples_are_counted_by_their_innermost_line():
    """Of a profile's stacks the last frame counts, with paths that are the same on every machine."""
    import bench_lines

    loop = f"run ({ROOT}/zcluster/http/engine.py:10);Engine._rounds ({ROOT}/zcluster/http/engine.py:20)"
    stacks = [
        f"{loop} 3",
        f"{loop};loads (/usr/lib/python3.11/json/__init__.py:30) 4",
        f"{loop};app (/x/site-packages/werkzeug/wrappers.py:7) 1",
        f"{loop} 2",
        "torn",
    ]
    assert bench_lines.innermost(stacks) == {
        "zcluster/http/engine.py:20 Engine._rounds": 5,
        "3.11/json/__init__.py:30 loads": 4,
        "werkzeug/wrappers.py:7 app": 1,
    }
    line = bench_lines.label("scripts/bench_lines.py:1 <module>")
    assert line.startswith('scripts/bench_lines.py:1 <module>: """Where the CPU of a request goes')


def test_a_peer_that_fails_is_left_out():
    """The others have all their rounds; of zcluster it is a failure, of a peer a note."""
    from bench_machine import Tools
    from bench_processes import BenchError
    from bench_servers import Bench

    report = figures()
    bench = Bench(report, Tools(), 1, 2)

    def fail() -> int:
        raise BenchError("no answer\n")

    assert bench.in_turn({"good": lambda: 1, "bad": fail, "zcluster": fail}, 3) == {"good": [1, 1, 1]}
    assert [note.text for note in report.notes] == ["left out", "no answer"]
    assert [note.text for note in report.failures] == ["no answer"]
