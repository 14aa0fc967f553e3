"""scripts/nemesis, in seconds: faults of each class, no promise broken; and the page that shows a long run."""

import re
import sys

import pytest
from left_behind import run_clean
from sources import ROOT

SCRIPTS = ROOT / "scripts"
PAGE = ROOT / "docs" / "RELIABILITY.md"
# One of each class, none that waits for a hang to be found out: those have tests of their own.
FAULTS = (
    "kill a worker", "kill the master", "kill the zygote", "pause a worker", "reload", "fill /dev/shm",
    "no descriptors for a worker", "bus: reset", "bus: loss", "bus: half-open and delay (a worker's end)",
)  # fmt: skip


@pytest.fixture
def modules(monkeypatch):
    """The nemesis's modules are siblings in a folder of programs, found the way Python finds them for a program."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import nemesis_clients
    import nemesis_faults

    yield nemesis_clients, nemesis_faults
    for name in set(sys.modules) - before:
        if name.startswith("nemesis"):
            del sys.modules[name]


def test_a_short_run_breaks_no_promise(tmp_path):
    """Faults under load, then the ends of launcher, cluster and machine: the rule holds, nothing is refused."""
    words = ("--minutes=0.08", "--seed=20", "--clients=1", f"--only={','.join(FAULTS)}")
    done = run_clean([SCRIPTS / "nemesis.py", *words], cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("verdict: every promise was kept\n"), done.stdout
    assert re.search(r"(?m)^attempted [1-9][\d,]*, acknowledged [1-9][\d,]*, ", done.stdout), done.stdout
    assert "connections refused 0\n" in done.stdout
    assert len(re.findall(r"(?m)^ +[\d.]+ s  .*: whole after ", done.stdout)) >= 3, done.stdout
    for end in ("kill the launcher", "kill all at once", r"lose the machine \(run directory and ledger\)"):
        assert re.search(rf"(?m)^{end} +1 ", done.stdout), done.stdout


def test_the_rule_is_not_blind(modules):
    """A total below what was acknowledged, above what was attempted, or fallen is found."""
    rule = modules[0].Rule(attempted=10, acknowledged=8)
    rule.end(low=8, last=7, total=9, seconds=0.1)
    assert not rule.broken
    rule.end(low=9, last=7, total=9, seconds=0.1)  # what had been acknowledged is not in it
    rule.end(low=8, last=7, total=11, seconds=0.1)  # nobody has asked so often
    rule.end(low=7, last=9, total=9, seconds=0.1)  # the same reader has seen that already
    assert len(rule.broken) == 3
    rule.settle(rule.acknowledged - 1)
    rule.settle(rule.attempted + 1)
    assert len(rule.broken) == 5


def test_an_unknown_fault_is_named(tmp_path):
    """What cannot be done is refused before anything is started."""
    done = run_clean([SCRIPTS / "nemesis.py", "--only=kill a worker,earthquake"], cwd=tmp_path)
    assert done.returncode == 2
    assert "there is no fault 'earthquake'" in done.stderr


def test_the_page_shows_every_fault(modules):
    """The verdict in RELIABILITY.md is of a run with all kinds of faults."""
    shown = PAGE.read_text(encoding="utf-8")
    for name in modules[1].FAULTS:
        assert re.search(rf"(?m)^{re.escape(name)} +[1-9]\d* ", shown), name
    assert len(re.findall(r"(?m)^verdict: ", shown)) == 2


def test_the_tests_on_the_page_exist():
    """Every test that RELIABILITY.md names is there."""
    there = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", PAGE.read_text(encoding="utf-8")))
    assert len(named) > 10
    missing = [name for name in sorted(named) if f"def {name}(" not in there]
    assert not missing, missing
