"""A cluster in a terminal: Ctrl-C, a window that is closed, workers in the background."""

import os
import pty
import re
import select
import sys
import termios

from anatomy import ready
from harness import running, wait_for
from stopping import SOON_S, answer, ask, blocks_term, is_calm

# Makes its standard input the controlling terminal of a session of its own, itself the foreground group, and execs.
# Nobody there ignores the terminal's signals, as under nohup(1) these tests themselves do.
IN_TERMINAL = (
    "import fcntl, os, signal as s, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "[s.signal(number, s.SIG_DFL) for number in (s.SIGHUP, s.SIGINT, s.SIGQUIT)]; os.execv(sys.argv[1], sys.argv[1:])"
)


READY_URL = re.compile(r"zcluster: ready on (\S+) ")


class Terminal:
    """A pseudo-terminal with a cluster in its foreground; `screen` is all that was shown on it."""

    def __init__(self, app="counting:app", *, stops_output=False):
        self.keyboard, self.theirs = pty.openpty()
        self.screen = ""
        if stops_output:
            settings = termios.tcgetattr(self.theirs)
            settings[3] |= termios.TOSTOP
            termios.tcsetattr(self.theirs, termios.TCSANOW, settings)
        streams = {"stdin": self.theirs, "stdout": self.theirs, "stderr": self.theirs}
        # With the periods of every day: nobody is called suspect on a busy machine, and every line is expected.
        # And with time to leave by itself at Ctrl-C, for a worker that does not run for the second it has by default.
        command = [sys.executable, "-c", IN_TERMINAL]
        self.cluster = running(app, "--quick-timeout=15", wait=False, fast=False, popen=streams, prefix=command)

    def __enter__(self):
        cluster = self.cluster.__enter__()
        os.close(self.theirs)
        return cluster

    def __exit__(self, *what):
        self.close()
        return self.cluster.__exit__(*what)

    def close(self):
        """Close the window."""
        if self.keyboard >= 0:
            os.close(self.keyboard)
            self.keyboard = -1

    def read(self, until="", timeout_s=20.0):
        """Read until this was shown; by default until nobody has the terminal open any more."""
        while not until or until not in self.screen:
            assert select.select([self.keyboard], [], [], timeout_s)[0], self.screen
            try:
                self.screen += os.read(self.keyboard, 65536).decode()
            except OSError:  # EIO: its last user is gone
                assert not until, self.screen
                return

    def read_ready(self, cluster):
        """Read the ready line."""
        self.read("ready on ")
        self.read(" workers, master ")
        cluster.url = READY_URL.search(self.screen)[1]


def test_ctrl_c():
    """In a terminal, one Ctrl-C is one clean stop: each line once, no traceback, exit 0."""
    terminal = Terminal()
    with terminal as cluster:
        terminal.read_ready(cluster)
        pids = ready(cluster).values()
        os.write(terminal.keyboard, b"\x03")
        terminal.read()
        cluster.ended(SOON_S)
    assert is_calm(terminal.screen)
    assert len(pids) == 2
    for line in ("zcluster: ready on ", "stopping quickly: SIGINT", *(f"Worker {pid} died. left" for pid in pids)):
        assert terminal.screen.count(line) == 1, terminal.screen
    lines = [line for line in terminal.screen.splitlines() if "did not run for" not in line]  # on a busy machine
    assert len(lines) == 4, terminal.screen


def test_ctrl_c_while_it_starts():
    """Nor is there a traceback when it comes at once."""
    terminal = Terminal()
    with terminal as cluster:
        wait_for(lambda: blocks_term(cluster))
        os.write(terminal.keyboard, b"\x03")
        terminal.read()
        cluster.ended(SOON_S)
    assert is_calm(terminal.screen)


def test_the_terminal_is_closed():
    """SIGHUP from a terminal that goes away is a TERM: a request in flight is answered, nothing is left."""
    terminal = Terminal()
    with terminal as cluster:
        terminal.read_ready(cluster)
        with ask(cluster, "/slow?0.2") as slow:
            terminal.close()
            assert answer(slow) == b"1"
            cluster.ended(SOON_S)


def test_workers_are_in_the_background():
    """Yet they may write to the terminal, even to one set to stop such output; asking it for input fails."""
    terminal = Terminal("talking:app", stops_output=True)
    with terminal as cluster:
        terminal.read_ready(cluster)
        assert cluster.get("/one") == "printed"
        terminal.read("asked for /one")
        assert cluster.get("/read") == "cannot read: Input/output error; stdin: b''"
        os.write(terminal.keyboard, b"\x03")
        terminal.read()
        cluster.ended(SOON_S)
    assert is_calm(terminal.screen)
