"""What the master sees of workers without asking them."""

import os
import signal
import subprocess
import time
from dataclasses import dataclass

from ledger_support import until

from zcluster.core.ledger import Ledger
from zcluster.core.messages import WorkerInfo
from zcluster.unix import process, vitals


@dataclass(frozen=True)
class Worker:
    """As much of one as is looked at."""

    id: int
    lane: int
    pid: int
    start: int


def ledger_of(*workers, age_s):
    """A ledger in whose lanes these workers last ticked so long ago."""
    ledger = Ledger.format(
        bytearray(Ledger.size_bytes(4, 1)), lanes=4, counters=1, ledger_id=b"l" * 16, boot_id=b"b" * 16
    )
    for worker in workers:
        info = WorkerInfo(worker.id, 0, worker.lane, 1, worker.pid, worker.start)
        ledger.lane(worker.lane).claim(info, time.monotonic_ns() - int(age_s * 1e9))
    return ledger


def test_only_late_ones_are_looked_at():
    """A sixth of the hang timeout without a tick, and the kernel is asked."""
    me = Worker(1, 0, os.getpid(), process.start_time(os.getpid()))
    ledger = ledger_of(me, age_s=1.0)
    assert vitals.ticked(ledger, [me], 60.0).processes == {}
    event = vitals.ticked(ledger, [me], 3.0)
    assert event.ledger[1].bus_tick_age_s >= 1.0
    assert event.processes[1].state in "RSD"
    assert 0 < event.processes[1].cpu_s <= time.process_time() + 1


def test_a_stopped_process_and_one_that_is_no_more():
    """The state is the kernel's; of another process with the same pid nothing is said."""
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        try:
            there = Worker(1, 0, sleeper.pid, process.start_time(sleeper.pid))
            other = Worker(2, 1, sleeper.pid, there.start - 1)
            ledger = ledger_of(there, other, age_s=10.0)
            sleeper.send_signal(signal.SIGSTOP)
            until(lambda: vitals.ticked(ledger, [there], 6.0).processes[1].state == "T")
            assert set(vitals.ticked(ledger, [there, other], 6.0).processes) == {1}
            assert vitals.vanished([there, other]) == [2]
            assert process.thread_states(sleeper.pid) == "T"
        finally:
            sleeper.kill()
    assert vitals.vanished([there]) == [1]
    assert vitals.ticked(ledger, [there], 6.0).processes == {}
    assert process.thread_states(there.pid) == ""
