"""What the ledger's tests share: real child processes, polling with a deadline, what makes a process a worker."""

import os
import pickle
import select
import signal
import sys
import time
import traceback
import warnings

from zcluster import counter, current
from zcluster.core.ledger import Ledger
from zcluster.core.messages import WorkerInfo
from zcluster.unix.ledgerfile import open_ledger
from zcluster.unix.locks import LockFile
from zcluster.unix.state import CheckpointFile

BOOT = b"b" * 16


def until(condition, what="the condition", deadline_s=20.0):
    """Poll until `condition()` is true and return what it gave; fail after the deadline."""
    end = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < end, f"{what} did not come true within {deadline_s} s"
        select.select([], [], [], 0.001)
    return found


def start(body, *args):
    """Fork a child that runs `body(*args)` and exits 0, or prints its traceback and exits 1; returns the pid."""
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        # Other tests of this run may have left threads of libraries; the children here use none of their locks.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.alarm(50)  # no child outlives its test, whatever happens to the parent
        body(*args)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def reap(pid):
    """Wait for a child and return its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill(pid):
    """SIGKILL a child and reap it."""
    os.kill(pid, signal.SIGKILL)
    return reap(pid)


def start_ready(body, *args):
    """Start a child that runs `body(ready, *args)`; return its pid once it has called ready()."""
    reading, writing = os.pipe()

    def child():
        os.close(reading)
        body(lambda: os.write(writing, b"."), *args)

    pid = start(child)
    os.close(writing)
    told = os.read(reading, 1)  # end of file when the child dies: nothing to wait for
    os.close(reading)
    assert told, f"the child ended with {reap(pid)} before it was ready; its traceback is on stderr"
    return pid


def forever():
    """Keep a child alive until it is killed."""
    while True:
        signal.pause()


def in_child(body, *args):
    """Run `body(*args)` in a forked child and return its result, so that this process's globals stay clean."""
    reading, writing = os.pipe()

    def report():
        os.close(reading)
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump(body(*args), pipe)

    pid = start(report)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        raw = pipe.read()
    code = reap(pid)
    assert code == 0, f"the child ended with {code}; its traceback is on stderr"
    return pickle.loads(raw)


def be_worker(folder, lane=0):
    """Make this process what a worker is: lane locked, ledger mapped, counters bound."""
    locks = LockFile(folder / "locks")
    until(lambda: locks.try_lock(lane), f"lane {lane} free")
    file = open_ledger(folder / "ledger")
    file.keep_for_life()
    with locks.names():
        file.ledger.use_lane(lane)
    info = WorkerInfo(id=lane, slot=lane, lane=lane, generation=0, pid=os.getpid(), state="ready")
    file.ledger.lane(lane).claim(info, 1)
    current.ledger, current.locks, current.lane, current.worker = file.ledger, locks, lane, info
    current.fds.extend([*file.fds, locks.fd])
    current.role = "worker"
    counter.bind_all()
    return file.ledger


def be_worker_in_memory(block, locks_path):
    """The same on a block of anonymous shared memory, which the parent can look into."""
    current.ledger, current.locks, current.lane = Ledger(block), LockFile(locks_path), 0
    current.role = "worker"


def disinherit(locks):
    """In a forked child: close the parent's lock file, as an exec'd process never had it."""
    os.close(locks.fd)


def checkpoint(state, totals, ledger_id=b"L" * 16, number=1):
    """What the service does, in a process of its own."""

    def body():
        disinherit(state._locks)
        with CheckpointFile(state.path) as file:
            assert file.try_turn()
            file.write(ledger_id, number, totals)

    in_child(body)
