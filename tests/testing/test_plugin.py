"""The plugin in other people's pytest: what it starts, what it says, what it leaves (nothing)."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from left_behind import run_clean

from zcluster.testing import leftovers, running

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parent.parent.parent
PATIENCE_S = 100.0  # a machine that is busy with ten other tests is slow, and a test may take 120 s in all

COUNTING = """
import os
from zcluster import Counter
requests = Counter("requests")
print("imported", flush=True)
def app(environ, start_response):
    start_response("200 OK", [])
    return [b"%d %d" % (requests.incr(), os.getpid())]
"""

PLAIN = ["-p", "no:cacheprovider", "-p", "no:timeout", "-p", "no:hypothesispytest"]  # half of the start of a pytest


@pytest.fixture
def theirs(pytester):
    """A project of somebody's, with an app; warnings are errors there, and every marker has to be known."""
    pytester.makepyfile(counting=COUNTING)
    ini = f"[pytest]\naddopts = {' '.join(PLAIN)} --strict-markers -W error\n"
    (pytester.path / "pytest.ini").write_text(ini)
    return pytester


def run(project, *arguments, **outcomes):
    """Run their tests in this process; returns what pytest printed, when the outcomes are these."""
    result = project.runpytest_inprocess("-p", "no:xdist", *arguments)
    result.assert_outcomes(**outcomes)
    return result.stdout.str()


def test_markers_options_and_closures(theirs):
    """The nearest marker wins, option by option; the ini options are the defaults; closures are apps, too."""
    with (theirs.path / "pytest.ini").open("a") as ini:
        ini.write("zcluster_app = counting:app\nzcluster_workers = 1\n")
    theirs.makepyfile(
        """
        import pytest

        def test_ini(zcluster):
            assert zcluster.client.get("/").text.startswith("1 ")
            assert (len(zcluster.workers), zcluster.counters) == (1, {"requests": 1})

        @pytest.mark.zcluster("no_such:app", name="outer", workers=7)
        class TestMarked:
            @pytest.mark.zcluster(app="counting:app", workers=2)
            def test_nearest(self, zcluster_factory):
                cluster = zcluster_factory()
                assert (len(cluster.workers), cluster.name) == (2, "outer")
                assert "imported" in cluster.log

        @pytest.mark.zcluster("no_such:app")
        def test_closure(zcluster_factory):
            word = "closed over"
            def app(environ, start_response):
                start_response("200 OK", [])
                return [word.encode()]
            cluster = zcluster_factory(app)
            assert (len(cluster.workers), cluster.client.get("/").text) == (1, word)
        """
    )
    run(theirs, passed=3)


def test_what_a_failed_test_shows(theirs, monkeypatch):
    """The cluster's log in the report; and an error that says so when something of it was left behind."""
    monkeypatch.setattr(running, "LEAVE_TIMEOUT_S", 1.0)
    theirs.makepyfile(
        """
        import subprocess, pytest
        pytestmark = pytest.mark.zcluster("counting:app")

        def test_fails(zcluster):
            victim = zcluster.kill(1)
            zcluster.wait_for(victim.is_dead)
            assert 1 == 2

        def test_leaves(zcluster):
            with zcluster.log_path.open("ab") as log:
                left = subprocess.Popen(["sleep", "61"], stderr=log)
            left.returncode = -9  # nobody reaps it: it is not ours any more
        """
    )
    shown = run(theirs, failed=1, passed=1, errors=1)
    log = re.search(r"- zcluster log \(.*/zcluster0/log0\) -+\n(.*)", shown, re.S)
    assert log
    assert "imported\n" in log[1]
    assert re.search(r"Worker \d+ died\. signal SIGKILL", log[1])
    assert re.search(r"\ncluster 'counting' has not ended as it should: process \d+ still has", shown)
    assert "the cluster's log open: sleep 61" in shown
    assert str(Path(running.__file__).parent) not in shown  # no traceback through our code


def test_what_goes_wrong_before_a_test(theirs):
    """No app, a wrong marker, wrong options, an app that does not import: each is said in the words of its cause."""
    theirs.makepyfile(broken='print("on my way", flush=True)\nraise RuntimeError("the database is on fire")\n')
    theirs.makepyfile(
        """
        import pytest

        def test_none(zcluster): ...

        @pytest.mark.zcluster("a:b", "c:d")
        def test_two(zcluster): ...

        @pytest.mark.zcluster(42)
        def test_number(zcluster): ...

        @pytest.mark.zcluster("counting:app", wokers=3)
        def test_typo(zcluster): ...

        @pytest.mark.zcluster("broken:app")
        def test_broken(zcluster): ...
        """
    )
    shown = run(theirs, errors=5)
    for text in (
        "::test_none: no app is named: write @pytest.mark.zcluster('module:app') at the test, or zcluster_app = ",
        "::test_two: @pytest.mark.zcluster takes one app and named options, but has ('a:b', 'c:d')",
        "::test_number: the app is 42, but should be an import string or a WSGI callable",
        "the cluster did not start: ConfigError: unknown option 'wokers'; did you mean 'workers'?",
        "the cluster did not start: AppError: ",
        "RuntimeError: the database is on fire",
        "\non my way\n",
    ):
        assert text in shown, shown
    with (theirs.path / "pytest.ini").open("a") as ini:
        ini.write("zcluster_app = counting:app\nzcluster_workers = several\n")
    shown = run(theirs, "-k", "test_none", errors=1, deselected=4)
    assert re.search(r"\nzcluster_workers = several in .*pytest\.ini: should be a number, or 'auto'", shown)


def test_with_xdist(theirs):
    """Two workers of xdist run clusters of one name at the same time, of apps in memory: nobody meets the other's."""
    theirs.makepyfile(
        """
        import pytest
        from pathlib import Path

        @pytest.mark.parametrize("number", [1, 2])
        def test_it(number, zcluster_factory, worker_id):
            def app(environ, start_response):
                start_response("200 OK", [])
                return [worker_id.encode()]
            cluster = zcluster_factory(app, workers=1, name="same")
            Path(f"here-{number}").write_text(worker_id)
            both = [Path("here-1"), Path("here-2")]
            cluster.wait_for(lambda: all(here.exists() and here.read_text() for here in both))  # they are up
            assert {here.read_text() for here in both} == {"gw0", "gw1"}
            assert (cluster.client.get("/").text, cluster.name) == (worker_id, "same")
        """
    )
    theirs.runpytest_inprocess("-n", "2", "--dist", "load").assert_outcomes(passed=2)


def test_interrupted(theirs):
    """Ctrl-C in the middle of a test: nothing of the cluster is left, not even its run directory."""
    theirs.makepyfile(
        """
        import json, os, signal, pytest
        from pathlib import Path
        from zcluster.testing import leftovers

        @pytest.mark.zcluster("counting:app")
        def test_it(zcluster):
            seen = zcluster.snapshot()
            sockets = sorted(leftovers.listening_of(seen["launcher_pid"]))
            Path("seen.json").write_text(json.dumps([zcluster.run_dir, str(zcluster.log_path), sockets]))
            os.kill(os.getpid(), signal.SIGINT)
            zcluster.wait_for(lambda: False)
        """
    )
    done = run_clean(["-c", INTERRUPTIBLE], cwd=theirs.path, timeout_s=PATIENCE_S)
    assert done.returncode == pytest.ExitCode.INTERRUPTED, done.stdout + done.stderr
    run_dir, log, sockets = json.loads((theirs.path / "seen.json").read_text())
    assert not Path(run_dir).exists()
    assert len(sockets) == 1
    assert not leftovers.listening() & set(sockets)
    assert not list(leftovers.holders(Path(log).stat(), frozenset(sockets)))


# A test run in the background ignores SIGINT, and so do its children.
INTERRUPTIBLE = """
import signal, sys, pytest
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(pytest.main(["-p", "no:xdist", "--basetemp=base"]))
"""


def test_it_costs_nothing_while_it_is_not_used(theirs):
    """Neither the bus nor the cluster is imported by a run without a fixture of ours; the marker is known."""
    theirs.makepyfile(
        """
        import sys, pytest

        @pytest.mark.zcluster("counting:app")
        def test_it(pytestconfig):
            assert pytestconfig.pluginmanager.hasplugin("zcluster")
            big = ("zcluster", "zmq", "msgspec", "werkzeug")
            imported = {name for name in sys.modules if name.partition(".")[0] in big}
            assert imported == {"zcluster", "zcluster.testing", "zcluster.testing.plugin"}
        """
    )
    code = [sys.executable, "-m", "pytest", "-p", "no:xdist"]
    done = subprocess.run(code, cwd=theirs.path, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stdout


def passes(folder, number):
    """Run the tests in a folder as somebody would; so many pass, and no process is left."""
    words = ["-m", "pytest", *PLAIN, "-p", "no:xdist", "-W", "error"]
    done = run_clean(words, cwd=folder, timeout_s=PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{number} passed" in done.stdout


def test_the_example(tmp_path):
    """The tests of examples/testing pass, run as its README says."""
    example = ROOT / "examples" / "testing"
    assert re.findall(r"(?m)^\$ (.*)$", (example / "README.md").read_text()) == ["pytest", "zcluster run app:app"]
    for file in example.glob("*.py"):
        shutil.copy(file, tmp_path)
        assert len(file.read_text().splitlines()) <= 40
    passes(tmp_path, 3)


def test_the_page(tmp_path):
    """The tests in docs/TESTING.md pass."""
    for name, text in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", (ROOT / "docs/TESTING.md").read_text(), re.S):
        (tmp_path / name).write_text(text)
    passes(tmp_path, 2)
