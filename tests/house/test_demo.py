"""scripts/demo does what the README says, in one and a half seconds."""

import re
import subprocess

from left_behind import run_clean
from sources import ROOT


def rows_of(text: str) -> dict[str, int]:
    """The table of the demo."""
    return {
        label.strip(): int(value.replace(",", "")) for label, value in re.findall(r"(?m)^  (\D+?) +([\d,]+)$", text)
    }


def test_the_demo_counts_every_response(tmp_path):
    """Real requests, one SIGKILL in the middle: all counted, none refused, the worker replaced, exit 0."""
    done = run_clean([ROOT / "scripts" / "demo.py", "--seconds", "1.5"], cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    ready = re.search(r"(?m)^zcluster: ready on http://127\.0\.0\.1:\d+ \(\d+ workers, master \d+\)$", done.stdout)
    assert ready, done.stdout
    assert re.search(r"kill -9 \d+", done.stdout)
    rows = rows_of(done.stdout)
    assert rows["total counted"] >= rows["responses received"] > 0
    assert rows["kills"] == rows["replacements"] == 1
    assert rows["connections refused"] == 0
    assert rows["responses cut by the kill"] <= 4  # the default number of clients, each with one request in flight
    assert rows["requests/s"] > 0
    assert "verdict: every response was counted, no connection was refused" in done.stdout


def test_the_scripts_are_programs():
    """The README's two commands, and the others beside them, can be executed and are valid sh."""
    for name in ("demo", "test", "bench", "docs", "install", "reloads", "nemesis", "leaks", "mutants"):
        path = ROOT / "scripts" / name
        assert path.stat().st_mode & 0o111 == 0o111, f"{path} is not executable"
        checked = subprocess.run(["sh", "-n", path], capture_output=True, text=True, timeout=10)
        assert checked.returncode == 0, checked.stderr
