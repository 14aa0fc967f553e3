"""The checkpoint service on real processes and a real disk: what durable promises, kills, copies, full disks."""

import logging
import mmap
import os
import random
import resource
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest
from ledger_support import BOOT, be_worker, disinherit, in_child, kill, reap, start, until

from zcluster import current
from zcluster.bodies.service import checkpoint_loop
from zcluster.core.checkpoint import Checkpoint, Damaged, unseal
from zcluster.counter import Counter
from zcluster.errors import ClusterError
from zcluster.unix.ledgerfile import create, open_ledger
from zcluster.unix.locks import LANES_END, LockFile
from zcluster.unix.state import open_fifo, open_state, poke

SEED = random.randrange(2**32)


class Site:
    """A run directory, a state directory, and the ledger that counts for it."""

    def __init__(self, tmp_path):
        self.run_dir = Path(tempfile.mkdtemp(prefix="zc-", dir="/dev/shm"))
        self.state_dir = tmp_path / "state"
        self.log = tmp_path / "log"
        self.state = open_state(self.state_dir)
        self.file = create(
            self.run_dir / "ledger", ledger_id=b"L" * 16, boot_id=BOOT, state_id=self.state.id, lanes=8, counters=8
        )
        self.state.adopt(self.run_dir / "ledger", self.run_dir / "locks", b"L" * 16)
        self.stop_r, self.stop_w = os.pipe()
        self.pids = []

    def serve(self, interval_s=0.05):
        """Start a service; it leaves when told to stop and no lane is locked."""
        pid = start(self._service, interval_s)
        self.pids.append(pid)
        return pid

    def _service(self, interval_s):
        disinherit(self.state._locks)  # a real service is exec'd: it inherits nothing of the launcher's
        logging.basicConfig(filename=self.log, force=True)
        os.close(self.stop_w)
        locks = LockFile(self.run_dir / "locks")
        ledger = open_ledger(self.run_dir / "ledger").ledger
        fifo = open_fifo(self.run_dir / "checkpoint")
        done = checkpoint_loop(
            ledger, self.state_dir, fifo, self.stop_r, interval_s, lambda: not locks.owners(0, LANES_END)
        )
        os._exit(0 if done else 9)

    def work(self, body):
        """Start a worker that runs body()."""

        def worker():
            be_worker(self.run_dir)
            current.poke = lambda: poke(self.run_dir / "checkpoint")
            body()

        pid = start(worker)
        self.pids.append(pid)
        return pid

    def saved(self):
        """The totals of the newest checkpoint."""
        return unseal((self.state_dir / "checkpoint").read_bytes(), Checkpoint).totals

    def stop(self):
        os.close(self.stop_w)
        self.stop_w = -1

    def end(self):
        for pid in self.pids:
            try:
                kill(pid)
            except (ProcessLookupError, ChildProcessError):
                pass  # the test has reaped it
        self.state.close()
        self.file.close()
        os.close(self.stop_r)
        if self.stop_w >= 0:
            os.close(self.stop_w)
        shutil.rmtree(self.run_dir)


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path)
    yield made
    made.end()


def count_five():
    Counter("requests").incr(5)


def test_what_changed_is_on_disk_after_the_interval(site):
    """Without anybody asking, a change is written within the interval; without a change nothing is written."""
    site.serve()
    until(lambda: site.file.ledger.checkpoint_done >= 1, "the first checkpoint")
    assert site.saved() == {}
    assert reap(site.work(count_five)) == 0
    until(lambda: site.saved() == {"requests": 5}, "the change on disk")
    inode = (site.state_dir / "checkpoint").stat().st_ino
    done = site.file.ledger.checkpoint_done
    until(lambda: site.file.ledger.checkpoint_done >= done + 3, "three quiet periods")
    assert (site.state_dir / "checkpoint").stat().st_ino == inode


def test_a_poke_does_not_wait_for_the_interval(site):
    """With a period of an hour, durable increments return as fast as the disk, each covered by the file."""
    site.serve(interval_s=3600)

    def body():
        requests = Counter("requests")
        for n in range(1, 21):
            assert requests.incr(durable=True) == n
            assert site.saved()["requests"] >= n

    started = time.monotonic()
    assert reap(site.work(body)) == 0
    assert time.monotonic() - started < 30
    # The last poke may have come when its increment was covered already; then there is one more checkpoint.
    ledger = site.file.ledger
    until(lambda: ledger.checkpoint_done == ledger.checkpoint_started, "the end of the last checkpoint")


def test_stop_waits_for_the_last_worker_and_writes_what_it_counted(site):
    """Told to stop, the service goes on until no lane is locked; its last checkpoint covers the ledger."""
    service = site.serve()
    reading, writing = os.pipe()
    done_r, done_w = os.pipe()

    def body():
        os.write(writing, b".")
        os.read(done_r, 1)
        Counter("requests").incr(7)

    worker = site.work(body)
    os.read(reading, 1)
    site.stop()
    before = site.file.ledger.checkpoint_done
    until(lambda: site.file.ledger.checkpoint_done >= before + 3, "checkpoints go on")
    assert os.waitpid(service, os.WNOHANG) == (0, 0)
    os.write(done_w, b".")
    assert reap(worker) == 0
    assert reap(service) == 0
    assert site.saved() == {"requests": 7}
    assert site.state.covers(site.file.ledger)
    for fd in (reading, writing, done_r, done_w):
        os.close(fd)


def test_workers_that_never_leave_do_not_hold_the_service_for_ever(site):
    """After its own deadline it writes what there is, says so, and goes."""

    def body():
        disinherit(site.state._locks)
        logging.basicConfig(filename=site.log, force=True)
        fifo = open_fifo(site.run_dir / "checkpoint")
        return checkpoint_loop(site.file.ledger, site.state_dir, fifo, site.stop_r, 0.01, lambda: False, 0.05)

    os.write(site.stop_w, b"!")
    assert in_child(body)
    assert "workers still count" in site.log.read_text()


def test_a_second_service_waits_for_its_turn(site):
    """Two services never write at once; the second takes over when the first is killed, and none ever moves back."""
    first = site.serve()
    until(lambda: site.file.ledger.checkpoint_done >= 1, "the first service writes")
    second = site.serve()
    assert reap(site.work(count_five)) == 0
    until(lambda: site.saved() == {"requests": 5}, "the first service goes on")
    kill(first)
    assert reap(site.work(count_five)) == 0
    until(lambda: site.saved() == {"requests": 10}, "the second has taken over")
    site.stop()
    assert reap(second) == 0


def test_a_service_that_never_gets_its_turn_leaves_when_told(site):
    """It reports failure: what it has not written may not be thrown away."""
    site.serve()
    until(lambda: site.file.ledger.checkpoint_done >= 1, "the first service writes")
    stop_r, stop_w = os.pipe()

    def body():
        disinherit(site.state._locks)
        return checkpoint_loop(site.file.ledger, site.state_dir, open_fifo(site.run_dir / "checkpoint"), stop_r)

    os.close(stop_w)
    assert in_child(body) is False
    os.close(stop_r)


def test_a_full_disk_is_reported_once_and_survived(site):
    """While the disk refuses: durable times out, counting goes on, one line is logged. Afterwards: all is there."""
    service = site.serve()
    until(lambda: site.file.ledger.checkpoint_done >= 1, "the first checkpoint")
    hard = resource.prlimit(service, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(service, resource.RLIMIT_FSIZE, (150, hard))

    def full():
        with pytest.raises(ClusterError, match="no checkpoint was written"):
            Counter("requests").incr(durable=True, timeout_s=0.4)
        assert Counter("requests").incr() == 2

    assert reap(site.work(full)) == 0
    assert site.saved() == {}
    assert not (site.state_dir / "checkpoint.tmp").exists()
    started = site.file.ledger.checkpoint_started
    until(lambda: site.file.ledger.checkpoint_started >= started + 3, "it tries again")
    resource.prlimit(service, resource.RLIMIT_FSIZE, (hard, hard))
    until(lambda: site.saved() == {"requests": 2}, "written after all")
    site.stop()
    assert reap(service) == 0
    text = site.log.read_text()
    assert text.count("cannot write the checkpoint") == 1
    assert site.state.covers(site.file.ledger)


def test_a_disk_that_stays_full_keeps_the_ledger(site):
    """The service ends with failure, nothing covers the ledger, and the next start resumes from it."""
    service = site.serve()
    until(lambda: site.file.ledger.checkpoint_done >= 1, "the first checkpoint")
    hard = resource.prlimit(service, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(service, resource.RLIMIT_FSIZE, (10, hard))
    assert reap(site.work(count_five)) == 0
    site.stop()
    assert reap(service) == 9
    assert not site.state.covers(site.file.ledger)
    assert site.state.base(BOOT).totals == {"requests": 5}


def test_copies_at_random_instants_hold_what_was_durable_and_invent_nothing(site, tmp_path):
    """Copies of the state directory, taken file by file while everything runs and the service is killed again and
    again, each restore a value between the last durable one and the last attempted (a power cut at that instant)."""
    chance = random.Random(SEED)
    tally = mmap.mmap(-1, 4096)
    words = memoryview(tally).cast("B").cast("Q")

    def body():
        requests = Counter("requests")
        while True:
            words[0] += 1
            requests.incr()
            words[0] += 1
            total = requests.incr(durable=True)
            words[1] = total

    service = site.serve()
    site.work(body)
    for number in range(30):
        goal = words[1] + chance.randrange(1, 6)
        until(lambda goal=goal: words[1] >= goal, "durable progress")
        if number % 3 == 2:
            kill(service)
            service = site.serve()
        durable = words[1]
        copy = tmp_path / f"copy{number}"
        copy_files(site.state_dir, copy)
        attempted = words[0]
        state = open_state(copy)
        base = state.base(BOOT)
        state.close()
        assert base.source == "checkpoint"
        assert durable <= base.totals["requests"] <= attempted, f"copy {number}, seed {SEED}"


def copy_files(source, target):
    """Copy what is there, in any order; drafts may vanish meanwhile."""
    target.mkdir()
    for entry in sorted(os.listdir(source)):
        try:
            shutil.copy(source / entry, target / entry)
        except FileNotFoundError:
            assert entry.endswith(".tmp")


def test_kills_of_the_service_at_random_instants_leave_whole_files(site):
    """However the writer dies, the newest checkpoint is whole, and never older than one seen before."""
    chance = random.Random(SEED)

    def body():
        requests = Counter("requests")
        while True:
            requests.incr()
            poke(site.run_dir / "checkpoint")

    site.work(body)
    until(lambda: site.file.ledger.totals().get("requests", 0) > 0, "the first increment")
    last = 0
    for _ in range(40):
        service = site.serve(interval_s=0.001)
        started = site.file.ledger.checkpoint_done
        until(lambda started=started: site.file.ledger.checkpoint_done > started, "a checkpoint")
        end = time.monotonic() + chance.uniform(0, 0.004)
        until(lambda end=end: time.monotonic() >= end, "the random instant")
        kill(service)
        try:
            total = site.saved()["requests"]
        except Damaged as error:
            pytest.fail(f"{error}, seed {SEED}")
        assert last <= total <= site.file.ledger.totals()["requests"]
        last = total


def test_all_killed_at_once(site):
    """Worker and service SIGKILLed together: the next start has every acknowledged increment, from the ledger."""
    tally = mmap.mmap(-1, 4096)
    words = memoryview(tally).cast("B").cast("Q")

    def body():
        requests = Counter("requests")
        while True:
            words[0] += 1
            requests.incr()
            words[1] += 1

    service, worker = site.serve(), site.work(body)
    until(lambda: words[1] > 5000, "progress")
    os.kill(worker, signal.SIGKILL)
    os.kill(service, signal.SIGKILL)
    reap(worker)
    reap(service)
    base = site.state.base(BOOT)
    assert base.source == "ledger"
    assert words[1] <= base.totals["requests"] <= words[0] <= words[1] + 1
