"""The ledger against a dictionary: workers come, count, are killed anywhere, and inherit lanes."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from zcluster.core.ledger import Ledger, LedgerError
from zcluster.core.messages import WorkerInfo

LANES, COUNTERS = 4, 3
BASE = {"old": 10}


class LedgerMachine(RuleBasedStateMachine):
    """Owners of lanes count into a block that nobody clears; the model only adds."""

    owners = Bundle("owners")  # (lane, worker id)

    @initialize()
    def begin(self):
        """A block with what was counted before."""
        self.block = bytearray(Ledger.size_bytes(LANES, COUNTERS))
        Ledger.format(self.block, lanes=LANES, counters=COUNTERS, ledger_id=b"l" * 16, boot_id=b"b" * 16, base=BASE)
        self.ledger = Ledger(self.block)
        self.totals = dict(BASE)
        self.locks = {}  # lane -> worker id
        self.next_id = 1
        self.used = 0

    @rule(target=owners, lane=st.integers(0, LANES - 1))
    def claim(self, lane):
        """A worker takes a lane that nobody holds, and goes on from what it finds there."""
        if lane in self.locks:
            return multiple()
        id_, self.next_id = self.next_id, self.next_id + 1
        info = WorkerInfo(id_, lane % 2, lane, 1, 100 + id_, 7, "forked", 0)
        self.ledger.use_lane(lane)
        self.ledger.lane(lane).claim(info, 5)
        self.used = max(self.used, lane + 1)
        self.locks[lane] = id_
        found = Ledger(self.block).lane(lane).info()
        assert (found.id, found.pid, found.slot, found.lane) == (id_, 100 + id_, lane % 2, lane)
        return (lane, id_)

    @rule(owner=owners, name=st.sampled_from(["old", "a", "b", "c"]), amount=st.integers(1, 3))
    def count(self, owner, name, amount):
        """The owner of a lane adds; a name that finds no room is refused and changes nothing."""
        lane, id_ = owner
        if self.locks.get(lane) != id_:
            return
        if name not in self.totals and len(self.totals) == COUNTERS:
            with pytest.raises(LedgerError, match="no room"):
                self.ledger.register(name)
            return
        index = self.ledger.register(name)
        cells = self.ledger.lane(lane).cells
        for _ in range(amount):
            cells[index] = cells[index] + 1
        self.totals[name] = self.totals.get(name, 0) + amount

    @rule(owner=consumes(owners))
    def killed(self, owner):
        """An owner is killed: its lock is gone, what it counted is not."""
        lane, id_ = owner
        if self.locks.get(lane) == id_:
            del self.locks[lane]

    @rule(owner=owners)
    def killed_while_claiming(self, owner):
        """The next owner is killed while it writes its name: the lane has no owner then, and its cells stay."""
        lane, id_ = owner
        if self.locks.get(lane) == id_:
            del self.locks[lane]
            self.ledger.lane(lane).identity_done = 0
            assert self.ledger.lane(lane).info() is None

    @invariant()
    def every_reader_sees_the_truth(self):
        """A process that maps the block now reads the same totals as one that has had it from the beginning."""
        fresh = Ledger(self.block)
        assert fresh.totals() == self.ledger.totals() == self.totals
        assert fresh.used_lanes == self.used
        assert fresh.names() == tuple(self.totals)


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=30, stateful_step_count=40)
