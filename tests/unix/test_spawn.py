"""Births by exec: a fresh interpreter that has all it needs and nothing else."""

import ast
import os
import resource
import subprocess
import sys

import pytest
from family import drop_privileges
from ledger_support import in_child

from zcluster.errors import SpawnError
from zcluster.unix import process

# The process under test is real; only what it becomes is a small program of ours, found first in sys.path.
START = """
import os, signal, sys
def main():
    fds = [int(word) for word in sys.argv[4:]]
    told = {
        "argv": sys.argv, "path": sys.path, "flags": (sys.flags.dev_mode, sys.flags.optimize, sys.warnoptions),
        "blocked": {int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, [])}, "group": os.getpgrp(),
        "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd")), "cwd": os.getcwd(), "pid": os.getpid(),
    }
    os.write(fds[-1], repr(told).encode())
"""
PARENT = """
import os, sys
from zcluster.unix import process
sys.path[:0] = [{folder!r}, "", "/no/such/\\udcff"]
sys.path.append(b"not a string")
os.chdir({folder!r})
reader, writer = os.pipe()
other, _secret = os.pipe()
pid, start = process.spawn("master", [other, writer], name="shop")
assert process.start_time(pid) == start
assert os.getpgid(pid) == pid
os.close(writer)
told = os.read(reader, 65536).decode(errors="surrogateescape")
assert os.waitpid(pid, 0) == (pid, 0)
print(repr((pid, os.getpid(), other, writer, [p for p in sys.path if isinstance(p, str)], told)).encode("ascii"))
"""


def test_spawn_hands_on_path_flags_descriptors_and_nothing_else(tmp_path):
    """The child has our sys.path, -W, -X and -O, the named descriptors under their numbers, its signals blocked and a
    group of its own; a json.py of the app in the working directory does no harm."""
    (tmp_path / "zcluster").mkdir()
    (tmp_path / "zcluster" / "__init__.py").touch()
    (tmp_path / "zcluster" / "start.py").write_text(START)
    for name in ("json", "re", "typing"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the app has a module of that name')")
    flags = ["-W", "error", "-X", "dev", "-O", "-B"]
    done = subprocess.run(
        [sys.executable, *flags, "-c", PARENT.format(folder=str(tmp_path))],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert done.returncode == 0, done.stderr
    pid, parent, other, writer, path, raw = ast.literal_eval(ast.literal_eval(done.stdout).decode())
    told = ast.literal_eval(raw)
    assert told["pid"] == told["group"] == pid != parent
    assert told["argv"][1:4] == ["zcluster-master", "master", "shop"]
    assert told["path"] == path
    assert told["flags"] == (True, 1, ["default", "error"])  # the first by -X dev
    assert told["blocked"] == {int(number) for number in process.BLOCKED}
    assert len(set(told["fds"]) - {0, 1, 2, other, writer}) == 1  # that of the listing
    assert told["cwd"] == str(tmp_path)


def test_spawn_says_which_process_could_not_be_started(monkeypatch):
    """No interpreter there, or no process left: a SpawnError with the kernel's reason."""
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(SpawnError, match="cannot start the master process: No such file or directory"):
        process.spawn("master", [], name="x")

    def body():
        drop_privileges()
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        with pytest.raises(SpawnError, match="cannot start the zygote process: Resource temporarily unavailable"):
            process.spawn("zygote", [], name="x")

    in_child(body)
