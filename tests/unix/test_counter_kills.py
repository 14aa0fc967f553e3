"""SIGKILL against counting: at random instants, at every bytecode, over generations of successors in one lane.

The rule everywhere: acknowledged <= total <= attempted, and no reader ever sees a total shrink.
"""

import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from ledger_support import BOOT, be_worker, in_child, kill, reap, start, until

from zcluster.counter import Counter
from zcluster.unix.ledgerfile import create, open_ledger

IDS = {"ledger_id": b"L" * 16, "boot_id": BOOT}
pytestmark = pytest.mark.timeout(180)  # a thousand forks, one after the other: seconds, but on a busy machine
SEED = random.randrange(2**32)
ATTEMPTED, ACKED = 0, 512  # words of the tally; + lane


@pytest.fixture
def folder():
    path = Path(tempfile.mkdtemp(prefix="zc-", dir="/dev/shm"))
    create(path / "ledger", lanes=8, counters=8, **IDS).close()
    yield path
    shutil.rmtree(path)


@pytest.fixture
def tally():
    """Shared words in which a child notes what it attempts and what was acknowledged."""
    with mmap.mmap(-1, 8192) as block, memoryview(block).cast("B").cast("Q") as words:
        yield words


def count(folder, tally, lane, limit=None):
    """A worker: attempts, counts, acknowledges, for ever or `limit` times."""
    be_worker(folder, lane)
    requests = Counter("requests")
    done = 0
    while limit is None or done < limit:
        tally[ATTEMPTED + lane] += 1
        requests.incr()
        tally[ACKED + lane] += 1
        done += 1


def acked(tally):
    return sum(tally[ACKED : ACKED + 8])


def attempted(tally):
    return sum(tally[ATTEMPTED : ATTEMPTED + 8])


def test_forty_kills_at_random_instants(folder, tally):
    """One lane, forty successors, each killed in the middle: acked <= cell <= acked + kills, never shrinking."""
    chance = random.Random(SEED)
    file = open_ledger(folder / "ledger")
    before = 0
    for kills in range(1, 41):
        pid = start(count, folder, tally, 0)
        goal = tally[ACKED] + chance.randrange(1, 3000)
        until(lambda goal=goal: tally[ACKED] >= goal, "progress")
        kill(pid)
        cell = file.ledger.cell(0, 0)
        assert tally[ACKED] <= cell <= tally[ATTEMPTED] <= tally[ACKED] + kills, f"seed {SEED}"
        assert cell >= before
        before = cell
    assert in_child(_count_and_sum, folder, tally, 0) == before + 10
    file.close()


def _count_and_sum(folder, tally, lane):
    count(folder, tally, lane, limit=10)
    return Counter("requests").value


def test_lanes_are_inherited_over_many_kills_while_a_reader_watches(folder, tally):
    """Three lanes, ninety kills with immediate successors; a concurrent reader sees only growing totals within the
    bounds at every single read."""
    chance = random.Random(SEED)
    file = open_ledger(folder / "ledger", writable=False)
    workers = {lane: start(count, folder, tally, lane) for lane in range(3)}
    last = kills = reads = 0
    due = 0.0
    end = time.monotonic() + 90
    while kills < 90:
        assert time.monotonic() < end
        low = acked(tally)
        total = file.ledger.totals().get("requests", 0)
        high = attempted(tally)
        assert low <= total <= high, f"seed {SEED}"
        assert total >= last
        last, reads = total, reads + 1
        if time.monotonic() >= due and reads > 3 * kills:
            lane = chance.randrange(3)
            kill(workers[lane])
            kills += 1
            workers[lane] = start(count, folder, tally, lane)
            due = time.monotonic() + chance.uniform(0.0, 0.03)
    for pid in workers.values():
        kill(pid)
    total = file.ledger.total(0)
    assert acked(tally) <= total <= attempted(tally) <= acked(tally) + kills + 3
    assert reads > 200
    assert total > 1000
    file.close()


def test_a_lane_is_never_shared(folder, tally):
    """While its owner lives a lane cannot be locked by a successor; when it is killed it can at once."""
    pid = start(count, folder, tally, 5)
    until(lambda: tally[ACKED + 5] > 0, "the owner counts")

    def successor():
        from zcluster.unix.locks import LockFile

        locks = LockFile(folder / "locks")
        assert not locks.try_lock(5)
        assert locks.owner(5) == pid
        kill_from_child(pid)
        until(lambda: locks.try_lock(5), "the lane is free")
        return True

    assert in_child(successor)
    assert reap(pid) == -signal.SIGKILL


def kill_from_child(pid):
    os.kill(pid, signal.SIGKILL)


# The long ones at each so-many-th bytecode, because of the suite's time; the program itself has no such limit.
@pytest.mark.parametrize(("what", "step"), [("incr", 1), ("first incr", 4), ("format", 4), ("checkpoint", 23)])
def test_a_kill_at_every_bytecode(what, step):
    """Of incr(), of the one that registers its name first, of making a ledger, of a checkpoint: all, or nothing."""
    program = str(Path(__file__).with_name("at_every_bytecode.py"))
    done = subprocess.run([sys.executable, program, what, str(step)], stderr=subprocess.PIPE, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
