"""What the tests of processes share: families with a subreaper of their own, so that pytest never is one."""

import os
import select
import signal
import time

from ledger_support import in_child, start, until

from zcluster.unix import process

NOBODY = 65534


def in_family(body, *args):
    """Run `body(*args)` in a child that is the subreaper of all it starts; fail when it leaves a process behind."""

    def run():
        process.become_subreaper()
        result = body(*args)
        assert not children(), f"left behind: {children()}"
        return result

    return in_child(run)


def children():
    """The living and the dead children of this process."""
    return [found for found in process.processes() if found.ppid == os.getpid()]


def collect(*pids, deadline_s=30.0):
    """Reap until all these processes have died; returns what was reaped, by pid."""
    found = {}

    def reaped():
        found.update((death.pid, death) for death in process.reap())
        return found.keys() >= set(pids)

    until(reaped, f"the death of {pids}", deadline_s)
    return found


def fork(body, *args):
    """Fork a child of a family's member; it ends with the exit code that `body` returns, or 1 and a traceback."""
    return start(lambda: os._exit(body(*args) or 0))


def lives_on(condition, for_s=0.2):
    """Is `condition()` true now and for a while? What must not happen cannot be waited for."""
    end = time.monotonic() + for_s
    while condition():
        if time.monotonic() >= end:
            return True
        select.select([], [], [], 0.005)
    return False


def drop_privileges():
    """Become an ordinary user, in a child: root is bound by hardly any limit or permission."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def wait_for_kill():
    """What a child does that is to be killed; SIGALRM ends it if nobody comes."""
    while True:
        signal.pause()


def open_fds():
    """Number of open descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


class Gate:
    """A pipe that holds processes up: `wait` until `open`, each `open(n)` lets n pass; also counts who is there."""

    def __init__(self):
        self.reader, self.writer = os.pipe()

    def open(self, passers=1):
        os.write(self.writer, b"." * passers)

    def wait(self, passers=1, deadline_s=20.0):
        for _ in range(passers):
            ready, _, _ = select.select([self.reader], [], [], deadline_s)
            assert ready, "nobody came"
            assert os.read(self.reader, 1) == b"."

    def close(self):
        os.close(self.reader)
        os.close(self.writer)
