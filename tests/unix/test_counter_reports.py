"""What happens after an increment: callbacks are told, durable waits for the right checkpoint."""

import logging
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

import pytest
from ledger_support import BOOT, be_worker, in_child, reap, start, until

from zcluster import counter, current
from zcluster.counter import Counter
from zcluster.errors import ClusterError, ConfigError
from zcluster.unix.ledgerfile import create


@pytest.fixture
def folder():
    path = Path(tempfile.mkdtemp(prefix="zc-", dir="/dev/shm"))
    create(path / "ledger", ledger_id=b"L" * 16, boot_id=BOOT, base={"old": 100}, lanes=70, counters=8).close()
    yield path
    shutil.rmtree(path)


# ---- on_change in a worker -----------------------------------------------------------------------------------------
def test_dispatch_tells_in_its_own_thread_and_only_growing_totals(folder):
    """Stale, repeated and unknown totals are not told; a callback that raises is logged and told again; dispatch
    does not wait for a slow callback and merges what came meanwhile."""

    def body():
        be_worker(folder)
        number = Counter("watched")
        seen, gate, threads, logged = [], threading.Event(), set(), []
        logging.getLogger("zcluster.counter").addFilter(logged.append)

        @number.on_change
        def bad(total):
            raise RuntimeError(f"bad {total}")

        @number.on_change
        def slow(total):
            threads.add(threading.current_thread().name)
            seen.append(total)
            gate.wait(10)

        counter.dispatch({"unknown": 9, "watched": 5})
        until(lambda: seen == [5], "first total told")
        for total in (7, 6, 9, 8, 9, 5):
            counter.dispatch({"watched": total})
        gate.set()
        until(lambda: seen == [5, 9], "merged total told")
        counter.dispatch({"watched": 9})
        counter.dispatch({"watched": 4})
        counter.dispatch({"watched": 10})
        until(lambda: len(seen) == 3, "last total told")
        assert seen == [5, 9, 10]
        assert threads == {"zcluster-on-change"}

        return [str(record.exc_info[1]) for record in logged]

    assert in_child(body) == ["bad 5", "bad 9", "bad 10"]


def test_dispatch_without_callbacks_starts_no_thread(folder):
    """A cluster in which nobody listens pays for no thread."""

    def body():
        be_worker(folder)
        Counter("quiet").incr()
        counter.dispatch({"quiet": 1})
        return threading.active_count(), len(os.listdir("/proc/self/task"))

    assert in_child(body) == (1, 1)


# ---- durable -------------------------------------------------------------------------------------------------------
def test_durable_without_state_is_the_operators_error(folder):
    """Nothing is counted and the option is named."""

    def body():
        be_worker(folder)
        with pytest.raises(ConfigError, match="--state DIR"):
            Counter("durable").incr(durable=True)
        return Counter("durable").value

    assert in_child(body) == 0


def test_durable_without_a_service_times_out_and_has_counted(folder):
    """No checkpoint in time: an error that says so, after poking; the increment is in the total."""
    (folder / "ledger").unlink()
    create(folder / "ledger", ledger_id=b"L" * 16, boot_id=BOOT, state_id=b"S" * 16).close()

    def body():
        be_worker(folder)
        pokes = []
        current.poke = lambda: pokes.append(1)
        begun = time.monotonic()
        with pytest.raises(ClusterError, match="counted, but no checkpoint was written within 1 s"):
            Counter("durable").incr(durable=True, timeout_s=1.0)
        # How often at least nobody knows: this process may not have run for most of that second.
        assert 1 <= len(pokes) <= 2 + (time.monotonic() - begun) / 0.1
        return Counter("durable").value

    assert in_child(body) == 1


def test_durable_waits_for_a_checkpoint_that_began_after_the_store(folder):
    """A checkpoint that was being written during the store does not count: the next one does."""
    (folder / "ledger").unlink()
    file = create(folder / "ledger", ledger_id=b"L" * 16, boot_id=BOOT, state_id=b"S" * 16)
    ledger = file.ledger
    ledger.checkpoint_started, ledger.checkpoint_done = 5, 4
    reading, writing = os.pipe()

    def body():
        be_worker(folder)
        current.poke = lambda: os.write(writing, b"!")
        Counter("durable").incr(durable=True)
        os.write(writing, b"D")

    pid = start(body)
    assert os.read(reading, 1) == b"!"
    ledger.checkpoint_done = 5  # began before the store
    os.set_blocking(reading, False)
    for _ in range(2):  # it pokes on: it is still waiting
        assert set(until(lambda: _read(reading), "another poke")) == {ord("!")}
    ledger.checkpoint_started = 6
    assert b"D" not in (_read(reading) or b"")
    ledger.checkpoint_done = 6
    assert reap(pid) == 0
    assert (_read(reading) or b"").endswith(b"D")
    os.close(reading)
    os.close(writing)
    file.close()


def _read(fd):
    try:
        return os.read(fd, 1000)
    except BlockingIOError:
        return None
