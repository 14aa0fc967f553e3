"""scripts/bench can be asked, is stopped without leaving anything behind, and computes what it says."""

import json
import math
import os
import re
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from left_behind import living, run_clean
from sources import ROOT, Source
from test_sizes import too_long

SCRIPTS = ROOT / "scripts"
PROGRAM = SCRIPTS / "bench.py"


@pytest.fixture(autouse=True)
def _modules_of_the_scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The benchmark's modules are siblings in a folder of programs, found the way Python finds them for a program."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield
    for name in set(sys.modules) - before:
        if name.startswith("bench_"):
            del sys.modules[name]


def within(limit_s: float, condition: Callable[[], object]) -> bool:
    """Whether it became true in time."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        select.select([], [], [], 0.01)
    return True


def test_help_names_every_section(tmp_path):
    """--help ends at once and lists what can be measured."""
    done = run_clean([PROGRAM, "--help"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    listed = re.findall(r"(?m)^  (\w+) +\S", done.stdout.partition("sections:")[2])
    assert set(listed) == {
        "hello",
        "counter",
        "werkzeug",
        "mixed",
        "balance",
        "idle",
        "log",
        "examples",
        "cluster",
        "messages",
        "where",
        "recovery",
        "growth",
        "connections",
        "lines",
    }


@pytest.mark.parametrize("words", [["--only", "hello,helo"], ["--rounds", "0"], ["--seconds", "x"]], ids=str)
def test_a_wrong_argument_is_named(tmp_path, words):
    """What cannot be measured is refused before anything is started or installed."""
    done = run_clean([PROGRAM, *words], cwd=tmp_path)
    assert done.returncode == 2
    assert repr(words[1].rpartition(",")[2]) in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_benchmark_that_is_stopped_ends_its_servers(tmp_path, number):
    """Interrupted, terminated or killed: no process that it started is left."""
    value = secrets.token_hex(8)
    mark = f"ZC_HOUSE_MARK={value}"
    told = tmp_path / "told"
    with told.open("wb") as out:
        bench = subprocess.Popen(
            [sys.executable, PROGRAM, "--only=cluster", "--no-install"],
            env={**os.environ, "ZC_HOUSE_MARK": value}, stdout=out, stderr=out, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            # Itself, a launcher and at least one process of its cluster.
            assert within(40, lambda: len(living(mark)) >= 3), told.read_text()
            bench.send_signal(number)
            code = bench.wait(30)
        finally:
            bench.kill()
            bench.wait()
    assert within(30, lambda: not living(mark)), living(mark)
    assert code == (-number if number == signal.SIGKILL else 128 + number)
    import bench_processes

    bench_processes.sweep()  # what the next benchmark does; only one that was killed leaves something to it
    assert not [*bench_processes.FOLDERS.glob(f"zcb-{bench.pid}-*")]


def test_a_server_that_will_not_end_is_killed(tmp_path, monkeypatch):
    """A tree of processes that ignore SIGTERM is gone when its block is left."""
    import bench_processes
    from bench_processes import Program, running

    monkeypatch.setattr(bench_processes, "STOP_LIMIT_S", 0.2)
    deaf = "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    inner = f"{deaf} print('on http://127.0.0.1:80 ', flush=True); signal.pause()"
    outer = f"{deaf} subprocess.Popen([sys.executable, '-c', {inner!r}]); signal.pause()"
    program = Program("deaf", [sys.executable, "-c", outer], tmp_path, ready=re.compile(r":(\d+) "))
    seen: list[int] = []
    with running(program) as server:
        seen += server.family()
        assert server.port == 80
    assert len(seen) == 2
    assert not [pid for pid in seen if bench_processes._born(pid)]


def test_a_server_that_does_not_start_says_why(tmp_path):
    """The error carries the exit status and the last lines of its output."""
    from bench_processes import BenchError, Program, running

    program = Program("dead", [sys.executable, "-c", "import sys; sys.exit('no such option')"], tmp_path)
    with (
        pytest.raises(BenchError, match=r"(?s)dead did not start: exit status 1\n.*no such option"),
        running(program),
    ):
        raise AssertionError("it was taken for a running server")


def test_a_missing_program_is_left_out_and_named():
    """What is absent and may not be installed is a problem with the way to mend it, never an error."""
    import bench_machine

    tools = bench_machine.Tools()
    bench_machine._from_debian(tools, [], install=False)
    assert tools == bench_machine.Tools()
    bench_machine.DEBIAN["zc-no-such-program"] = "no-such-package"
    tools = bench_machine.find(["zc-no-such-program"], install=False)
    assert "zc-no-such-program" not in tools
    assert "apt-get install no-such-package" in tools.problems[0]


def test_rounds_are_taken_in_turn():
    """A B A B, so that what drifts meets both, each round kept in its place."""
    from bench_report import in_turn

    order: list[str] = []
    results = in_turn({name: lambda name=name: order.append(name) or len(order) for name in "ab"}, 3)
    assert order == list("ababab")
    assert results == {"a": [1, 3, 5], "b": [2, 4, 6]}


def test_a_ratio_is_the_median_of_the_rounds():
    """Each round is compared with itself; what was not measured has no ratio, nothing has an infinite one."""
    from bench_report import ratio

    figures = {"a": [2.0, 9.0, 4.0], "b": [1.0, 3.0, 4.0], "zero": [0.0, 0.0, 0.0]}
    assert ratio(figures, "a", "b") == 2.0
    assert ratio(figures, "a", "zero") == math.inf
    assert ratio(figures, "a", "absent") is None


def test_goals_are_judged_and_written(tmp_path):
    """Either direction of a goal, one without a figure, and JSON that any reader takes."""
    from bench_report import Report

    report = Report({"cores": "2"})
    report.row("s", "time, us", {"one": [3.0, 1.0, 2.0], "other": [math.inf]})
    report.goal("s", "least", 1.9, 1.9)
    report.goal("s", "too much", 2.0, 1.9)
    report.goal("s", "enough", 2.0, 2.0, at_most=False)
    report.goal("s", "too little", 1.99, 2.0, at_most=False)
    report.goal("s", "unknown", None, 2.0)
    assert [goal.verdict for goal in report.goals] == ["met", "MISSED", "met", "MISSED", "not measured"]
    assert re.search(r"time, us +2\.00 +inf", report.table("s"))
    report.write(tmp_path / "figures.json")
    written = json.loads((tmp_path / "figures.json").read_text(), parse_constant=pytest.fail)
    assert written["rows"][0]["values"] == {"one": [3.0, 1.0, 2.0], "other": [None]}
    assert written["goals"][1]["verdict"] == "MISSED"


def test_the_modules_of_the_benchmark_are_short():
    """The limits of the package hold for the benchmark."""
    files = [*SCRIPTS.glob("bench*.py"), *(SCRIPTS / "peers").glob("*.py")]
    assert len(files) > 5
    wrong = [text for path in files for text in too_long(Source(path, path.stem, path.read_text(encoding="utf-8")))]
    assert not wrong, "\n".join(wrong)
