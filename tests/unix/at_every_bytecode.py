"""A program: SIGKILL at every bytecode of counting and of a checkpoint, and what is found afterwards.

`python at_every_bytecode.py NAME [STEP]`; with a STEP it kills at each so-many-th bytecode only. A program of its own
because it forks thousands of times, and the fork of a process as large as pytest takes ten times as long. It ends
with 0, or with the traceback of what did not hold.
"""

import mmap
import os
import signal
import sys
import tempfile
from pathlib import Path

from ledger_support import BOOT, be_worker_in_memory, disinherit, reap, start

from zcluster import counter, current
from zcluster.core.ledger import Ledger, LedgerError
from zcluster.counter import Counter
from zcluster.unix.state import CheckpointFile, open_state

IDS = {"ledger_id": b"L" * 16, "boot_id": BOOT}
STEP = int(sys.argv[2]) if len(sys.argv) > 2 else 1
TOOL = 4  # of sys.monitoring: an id that no debugger or profiler reserves


def arm(after):
    """SIGKILL this process before its bytecode number `after` from here on, in whatever function it is."""
    left = after

    def count_down(*_):
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    if sys.version_info >= (3, 12):
        sys.monitoring.use_tool_id(TOOL, "killer")
        sys.monitoring.register_callback(TOOL, sys.monitoring.events.INSTRUCTION, count_down)
        sys.monitoring.set_events(TOOL, sys.monitoring.events.INSTRUCTION)
        return

    def trace(frame, event, arg):
        frame.f_trace_opcodes = True
        if event == "opcode":
            count_down()
        return trace

    sys.settrace(trace)


def disarm():
    """Survived."""
    if sys.version_info >= (3, 12):
        sys.monitoring.set_events(TOOL, 0)
    else:
        sys.settrace(None)


def at_every_bytecode(body, judge, limit=6000):
    """Run `body(arm_now)` in children, each killed one bytecode (or STEP) later than the last, until one survives."""
    for after in range(0, limit, STEP):

        def child(after=after):
            body(lambda: arm(after))

        code = reap(start(child))
        judge(code)
        if code == 0:
            print(f"killed at {after // STEP} boundaries, of {after}", flush=True)
            return after
        assert code == -signal.SIGKILL
    raise AssertionError(f"still not through after {limit} bytecodes")


def block_of(base):
    block = mmap.mmap(-1, Ledger.size_bytes(2, 2))
    Ledger.format(block, lanes=2, counters=2, base=base, **IDS).release()
    return block


def incr(folder):
    """The cell holds 41 or 42, and 42 whenever the call had returned; a successor goes on from it."""
    block = block_of({"requests": 0})
    ledger = Ledger(block)
    ledger.use_lane(0)
    cell = ledger.lane(0).cells
    seen = set()

    def body(arm_now):
        be_worker_in_memory(block, folder / "locks")
        counter.bind_all()
        current.wake = lambda: None
        requests = Counter("requests")
        arm_now()
        requests.incr()
        disarm()
        assert cell[0] == 42

    def judge(code):
        assert cell[0] in ((41, 42) if code else (42,))
        seen.add(cell[0])
        cell[0] = 41

    cell[0] = 41
    boundaries = at_every_bytecode(body, judge)
    assert seen == {41, 42}
    assert boundaries > 30


def first_incr(folder):
    """The same when the name has to be registered first: no half-written name, no lock that stays."""
    block = block_of({})
    ledger = Ledger(block)
    ledger.use_lane(0)
    cells = ledger.lane(0).cells
    words = ledger.words[: len(ledger.words)]
    pristine = words.tobytes()
    outcomes = set()

    def body(arm_now):
        be_worker_in_memory(block, folder / "locks")
        requests = Counter("first of its name")
        arm_now()
        requests.incr()
        disarm()

    def judge(code):
        reader = Ledger(block)
        names, cell = reader.names(), cells[0]
        assert (names, cell) in (((), 0), (("first of its name",), 0), (("first of its name",), 1))
        assert code or cell == 1
        outcomes.add((names, cell))
        memoryview(block)[: len(pristine)] = pristine

    at_every_bytecode(body, judge)
    assert len(outcomes) == 3


def format_(folder):
    """A ledger is complete or it is none."""
    size = Ledger.size_bytes(2, 2)
    block = mmap.mmap(-1, size)
    outcomes = set()

    def body(arm_now):
        arm_now()
        Ledger.format(block, lanes=2, counters=2, base={"a": 7, "b": 2**40}, **IDS)
        disarm()

    def judge(code):
        try:
            outcomes.add(str(Ledger(block).totals()))
        except LedgerError:
            assert code
            outcomes.add("none")
        memoryview(block)[:] = bytes(size)

    at_every_bytecode(body, judge)
    assert outcomes == {"none", str({"a": 7, "b": 2**40})}


def checkpoint(folder):
    """The one before or the new one, whole, and never less than was on disk for good; the next is written over it."""
    state = open_state(folder / "state")
    seen = {"old": 0, "new": 0}
    last = 0

    def body(arm_now):
        disinherit(state._locks)
        with CheckpointFile(state.path) as file:
            number = last + 1
            arm_now()
            file.write(b"L" * 16, number, {"requests": number})
            disarm()

    def judge(code):
        nonlocal last
        base = state.base(BOOT)
        number = base.totals.get("requests", 0)
        assert number == last + 1 or (code and number == last), (code, last, base)
        seen["new" if number > last else "old"] += 1
        last = number

    for _ in range(2):  # so that there are a checkpoint and the one before it
        assert reap(start(lambda: body(lambda: arm(1 << 60)))) == 0
        judge(0)
    at_every_bytecode(body, judge, limit=60_000)
    assert min(seen.values()) > 1, seen
    state.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        {"incr": incr, "first incr": first_incr, "format": format_, "checkpoint": checkpoint}[sys.argv[1]](Path(name))
