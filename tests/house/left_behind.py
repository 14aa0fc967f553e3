"""Run a program that starts a cluster, and see that it leaves no process behind."""

import os
import secrets
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def run_clean(words: Sequence[str | Path], cwd: Path, timeout_s: float = 90.0) -> "subprocess.CompletedProcess[str]":
    """Run this interpreter with `words`; nothing that inherited its environment may live when it has ended."""
    mark = f"ZC_HOUSE_MARK={secrets.token_hex(8)}"
    name, _, value = mark.partition("=")
    # A file, not a pipe: what it leaves behind must not keep us from seeing its end.
    out, errors = cwd / f"out-{value}", cwd / f"err-{value}"
    try:
        with out.open("w") as stdout, errors.open("w") as stderr:
            done = subprocess.run(
                [sys.executable, *words],
                cwd=cwd,
                env={**os.environ, name: value},
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                timeout=timeout_s,
            )
        # multiprocessing's resource tracker, of the demo's clients, ends a moment after the program it belongs to.
        deadline = time.monotonic() + 20.0
        while (left := living(mark)) and time.monotonic() < deadline:
            select.select([], [], [], 0.01)
        told = subprocess.CompletedProcess(done.args, done.returncode, out.read_text(), errors.read_text())
    finally:
        out.unlink(missing_ok=True)
        errors.unlink(missing_ok=True)
    assert not left, f"{words} left {left} behind:\n{told.stderr}"
    return told


def living(mark: str) -> list[str]:
    """The command lines of all processes with this word in their environment, zombies left out."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            environ = Path(f"/proc/{entry}/environ").read_bytes()
            state = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0]
            if mark.encode() in environ.split(b"\0") and state not in "ZX":
                found.append(f"{entry}: {Path(f'/proc/{entry}/cmdline').read_bytes()[-80:]!r}")
        except OSError:  # it ended while we looked, or is another user's
            continue
    return found
