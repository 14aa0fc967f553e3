"""What goes on for as long as somebody looks: `events -f` and `--watch`, in a terminal and elsewhere."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios

import pytest
from harness import ZCLUSTER, running, wait_for
from test_terminal import IN_TERMINAL

PATIENCE_S = 30.0
CLEAR = "\x1b[H\x1b[J"


@pytest.fixture(scope="module")
def cluster():
    """One worker that counts, for all of these tests."""
    with running("counting:app", workers=1) as it:
        yield it


class Screen:
    """A command in the foreground of a terminal of its own; `shown` is all that it has written."""

    def __init__(self, cluster, *words, columns=80):
        self.keyboard, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        command = [*ZCLUSTER, *words, f"--run-dir={cluster.base}"]
        environ = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", IN_TERMINAL, *command], stdin=theirs, stdout=theirs, stderr=theirs, env=environ
        )
        os.close(theirs)
        self.shown = ""

    def until(self, pattern):
        """Read until this is on the screen; returns the match. An empty pattern: to the end."""
        while not (pattern and (found := re.search(pattern, self.shown))):
            assert select.select([self.keyboard], [], [], PATIENCE_S)[0], (pattern, self.shown)
            try:
                self.shown += os.read(self.keyboard, 65536).decode().replace("\r\n", "\n")
            except OSError:  # EIO: its last user is gone
                assert not pattern, (pattern, self.shown)
                return None
        return found

    def ctrl_c(self):
        """Press it, and return the exit code."""
        os.write(self.keyboard, b"\x03")
        self.until("")
        return self.close()

    def close(self):
        """Its exit code."""
        os.close(self.keyboard)
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def screen(cluster):
    """Start a command in a terminal; whatever a test left running is ended."""
    made = []

    def show(*words, columns=80):
        made.append(Screen(cluster, *words, columns=columns))
        return made[-1]

    yield show
    for it in made:
        if it.process.poll() is None:
            it.process.kill()
            it.close()


def test_events_in_a_terminal(cluster, screen):
    """What was, then what happens, as it happens; Ctrl-C ends it with 130 and without another word."""
    it = screen("events", "-f")
    it.until(r"listening   worker\[0\] gen=1 id=\d+ pid=\d+\n")
    (before,) = cluster.workers()
    cluster.command_line("restart", "0")
    fork = it.until(rf"fork        worker\[0\] gen=1 id=(?!{before['id']}\b)(\d+) pid=(\d+)\n")
    exit_line = (
        rf"exit        worker\[0\] gen=1 id={before['id']} pid={before['pid']}: left as it was told \(restart\)\n"
    )
    end = it.until(exit_line)
    assert fork.start() < end.start()
    assert it.ctrl_c() == 130
    assert it.shown[end.end() :] == "^C\n"


def test_counters_in_a_terminal_are_drawn_over(cluster, screen):
    """Every look is drawn where the one before stood; the total moves."""
    it = screen("counters", "--watch", "0.05")
    total = int(it.until(r"requests +([\d,]+)\n")[1].replace(",", ""))
    cluster.get()
    it.until(rf"{re.escape(CLEAR)}requests +{total + 1:,}\n")
    assert it.ctrl_c() == 130
    assert all(part == "" or re.match(r"requests +[\d,]+\n", part) for part in it.shown.split(CLEAR))


def test_ps_in_a_narrow_terminal(screen):
    """No line is longer than 80 columns; a wide one has all of them."""
    narrow, wide = screen("ps"), screen("ps", columns=200)
    for it in (narrow, wide):
        it.until("")
        assert it.close() == 0
    assert max(map(len, narrow.shown.splitlines())) <= 80
    assert "SLOT" in narrow.shown
    assert "RESTARTS" not in narrow.shown
    assert "RESTARTS" in wide.shown


def test_watching_without_a_terminal(cluster):
    """A line per change, and nothing while nothing changes; it ends as soon as nobody reads it."""
    total = cluster.counters()["requests"]
    command = [*ZCLUSTER, "counters", "--watch=0.05", "--json", f"--run-dir={cluster.base}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as watching:
        assert json.loads(watching.stdout.readline()) == {"requests": total}
        cluster.get()
        assert json.loads(watching.stdout.readline()) == {"requests": total + 1}
        watching.stdout.close()
        assert watching.wait(PATIENCE_S) == 0
        assert watching.stderr.read() == b""


def test_events_that_nobody_reads_any_more(cluster):
    """`zcluster events -f | head -1` ends by itself, although nothing happens."""
    command = [*ZCLUSTER, "events", "-f", "--json", f"--run-dir={cluster.base}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as watching:
        first = json.loads(watching.stdout.readline())
        assert (first["kind"], first["epoch"], first["number"]) == ("fork", 1, 1)
        assert first["worker"]["slot"] == 0
        watching.stdout.close()
        assert watching.wait(PATIENCE_S) in (0, 1)  # 1, as click has it, when it was still writing
        assert watching.stderr.read() == b""


def test_events_of_a_cluster_that_ends():
    """A new master is told of; when the cluster has ended, so has the command, with 0."""
    with running("counting:app", workers=1) as cluster:
        command = [*ZCLUSTER, "events", "-f", f"--run-dir={cluster.base}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
            assert "  fork        worker[0] " in watching.stdout.readline()
            first = cluster.ps()["master_pid"]
            os.kill(first, signal.SIGKILL)
            wait_for(lambda: cluster.ps()["master_pid"] != first, 30.0)
            cluster.stop()
            said, err = watching.communicate(timeout=PATIENCE_S)
            assert (watching.returncode, err) == (0, "")
        assert re.search(r"  master      a new one, process \d+, has taken over: epoch 2\n", said), said
        assert said.splitlines()[-1].endswith("left as it was told"), said
