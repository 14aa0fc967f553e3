"""The walk of docs/OPERATIONS.md, done: each command is run in order, and prints what stands there."""

import re
import shlex
import urllib.request
from pathlib import Path

from handle_rig import ROOT
from harness import Running, wait_for

from zcluster import Cluster
from zcluster.cli import main

PAGE = ROOT / "docs" / "OPERATIONS.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"# (\w+\.\w+)\n")
# What is another number each time: times, process ids, and the port, which is 0 in a test.
DIFFERS = (
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[.,]\d{3}", "TIME"),
    (r"\bWorker \d+ ", "Worker PID "),
    (r"127\.0\.0\.1:\d+", "ADDRESS"),
    (r"\b(pid=|pid |launcher |master |zygote )\d+", r"\1PID"),
    (r"looked in \S+\)", "looked in DIRECTORY)"),
)
ROW = re.compile(
    r"(\d+) +(\d+) +\d+ +(\w+) +(\d+) .* (\d+) +(\S+)"
)  # of ps: id, slot, state, generation, restarts, age


def walk():
    """The commands of the page with the lines that follow each."""
    for kind, text in FENCE.findall(PAGE.read_text(encoding="utf-8")):
        if kind == "console":
            for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                command, _, output = part.partition("\n")
                yield command, output


def alike(text):
    """Lines without what differs; of those that begin with a time (`events`) the order does not count."""
    lines = []
    for line in text.splitlines():
        for pattern, name in DIFFERS:
            line = re.sub(pattern, name, line)
        row = ROW.fullmatch(line)
        lines.append(" ".join(row.groups()) if row else " ".join(line.split()))
    return sorted(lines) if lines and lines[0].startswith("TIME") else lines


def is_calm(handle):
    """Whether each open slot has one worker, which is ready, and nobody else is there."""
    seen = handle.snapshot()
    there = sorted((worker["slot"], worker["state"]) for worker in seen["workers"])
    return there == [(slot, "ready") for slot in seen["slots"]]


def test_the_walk(tmp_path, monkeypatch, capsys):
    """Every command on the page gives the output that stands below it, on one cluster, from its start to its end."""
    for _, text in FENCE.findall(PAGE.read_text(encoding="utf-8")):
        if named := FILE.match(text):
            (tmp_path / named[1]).write_text(text.replace(":8000", ":0"), encoding="utf-8")
    (first, ready), *commands = walk()
    assert first == "zcluster run"
    cluster = Running("shop:app", workers=None, bind="", cwd=tmp_path, fast=False, wait=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZCLUSTER_RUN_DIR", str(cluster.base))
    try:
        url = cluster.wait_ready()
        assert alike(ready)[0].startswith("zcluster: ready on http://ADDRESS (2 workers, master PID)")
        with Cluster.attach() as handle:
            for command, output in commands:
                if command == "zcluster stop --wait":
                    break
                assert alike(told(command, url, capsys)) == alike(output), command
                wait_for(lambda: is_calm(handle), 30.0, f"calm after {command}")
        for command, output in commands[[command for command, _ in commands].index("zcluster stop --wait") :]:
            assert alike(told(command, url, capsys)) == alike(output), command
        cluster.ended()
    finally:
        cluster.close()


def told(command, url, capsys):
    """What a command prints, on stdout and stderr; ours run in this process, which is the same code."""
    program, *words = shlex.split(command)
    if program == "curl":
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.read().decode()
    assert program == "zcluster"
    code = main(words)
    said = capsys.readouterr()
    assert (code == 0) == (said.err == ""), (command, code, said.err)
    return said.out + said.err


def test_every_command_is_on_the_page():
    """No command of the command line is forgotten in the walk; those that need no cluster stand elsewhere."""
    from zcluster.cli import all_commands

    text = Path(PAGE).read_text(encoding="utf-8")
    assert not [name for name in set(all_commands()) - {"config", "check"} if f"zcluster {name}" not in text]
