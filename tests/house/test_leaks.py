"""scripts/leaks sees what grows and is not frightened by what does not, and its rounds are done for real."""

import random
import re
import sys
import xml.etree.ElementTree as ET

import pytest
from left_behind import run_clean
from sources import ROOT

SCRIPTS = ROOT / "scripts"


@pytest.fixture
def judge(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import leaks_judge

    yield leaks_judge
    del sys.modules["leaks_judge"]


NOISE = [random.Random(7).uniform(-300, 300) for _ in range(40)]
LINES = {
    "flat": ([30_000.0] * 40, False),
    "noise": ([30_000.0 + noise for noise in NOISE], False),
    "saturates": ([30_000.0 - 3000 * 0.7**n for n in range(40)], False),
    "one step": ([30_000.0 + 1000 * (n > 32) for n in range(40)], False),
    "leaks": ([30_000.0 + 25 * n for n in range(40)], True),
    "leaks under noise": ([30_000.0 + 60 * n + noise for n, noise in enumerate(NOISE)], True),
    "leaks by steps": ([30_000.0 + 128 * (n // 3) for n in range(40)], True),
}


@pytest.mark.parametrize(("values", "grows"), LINES.values(), ids=LINES)
def test_what_grows_is_found(judge, values, grows):
    """A leak of 1 MiB in a run is found, also under noise; noise, a step and a beginning are no leaks."""
    series = judge.without_warm_up("memory", "KiB", [50.0 * n for n in range(1, 41)], values)
    assert series.grows is grows, (series.growth, series.line)


def test_descriptors_that_stay_open_are_a_leak(judge):
    """Of what is counted, one more now and then is too much; of few samples nothing is said."""
    events = [float(n) for n in range(40)]
    series = judge.without_warm_up("descriptors", "", events, [float(15 + n // 5) for n in range(40)])
    assert series.grows
    assert not judge.without_warm_up("descriptors", "", events[:10], events[:10]).is_judged


def test_rounds_are_done(tmp_path):
    """Six reloads, six deaths, in seconds: everything is measured, the drawing is one, nothing is left."""
    plot = tmp_path / "plot.svg"
    words = ("--reloads=6", "--deaths=6", "--workers=2", f"--plot={plot}")
    done = run_clean([SCRIPTS / "leaks.py", *words], cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"(?m)^6 reloads in ", done.stdout), done.stdout
    assert re.search(r"(?m)^6 deaths in ", done.stdout), done.stdout
    for role in ("launcher", "master", "zygote", "checkpoint writer"):
        assert len(re.findall(rf"(?m)^{role}: (?:descriptors|threads|memory)", done.stdout)) == 6
    assert done.stdout.endswith("verdict: nothing grows\n")
    assert len(ET.parse(plot).getroot().findall("{*}g")) == 6
