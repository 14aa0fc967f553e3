"""The joining of one peer on a bus that loses, repeats and reorders what it likes, with masters that come and go."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from zcluster.core.joining import Deliver, Joined, Joining, Missed, Parted, SendHello, SendResync
from zcluster.core.messages import EVENTS, TOTALS, Event, Probe, Snapshot, Tick, Totals, Welcome


class LossyBus:
    """A model of a master, its restarts and a pub that drops, repeats and reorders, beside a true machine."""

    def __init__(self):
        self.machine = Joining()
        self.epoch, self.total, self.heads, self.recent = 1, 0, {TOTALS: 0, EVENTS: 0}, []
        self.air, self.now, self.link = [], 0.0, b""
        self.resync = self.hello = False
        self.seen_totals, self.seen_events = [], []
        self.first_epoch = 0
        self.reopen()

    def reopen(self):
        self.link = bytes([len(self.link) % 255 + 1]) * 16 if self.link else b"\x01" * 16
        self.act(self.machine.opened(self.link, self.now))

    def act(self, actions):
        for action in actions:
            match action:
                case SendHello():
                    self.hello = True
                case SendResync():
                    self.resync = True
                case Parted():
                    self.reopen()
                case Deliver(Totals(totals=totals)):
                    self.seen_totals.append(totals["n"])
                case Deliver(Event() as event):
                    self.seen_events.append((event.epoch, event.number))
                case Joined(again=False):
                    self.first_epoch = self.epoch
                case Missed():
                    raise AssertionError(action)

    def count(self):
        self.total += 1
        self.heads[TOTALS] += 1
        self.air.append(Totals(self.epoch, self.heads[TOTALS], {"n": self.total}))

    def event(self):
        self.heads[EVENTS] += 1
        event = Event(self.epoch, self.heads[EVENTS], "online")
        self.recent.append(event)
        self.air.append(event)

    def beat(self):
        self.air.append(Tick(self.epoch, 1, dict(self.heads)))

    def answer(self, lose):
        if self.hello or self.resync:
            self.hello = self.resync = False
            if not lose:
                self.air.append(Probe(self.link))
                self.act(self.machine.ctl(self.welcome(), self.now))

    def welcome(self):
        counters, heads = {"n": self.total}, dict(self.heads)
        snapshot = Snapshot("t", (), self.epoch, 1, "running", 1, 2, 3, counters, (), heads, {}, tuple(self.recent))
        return Welcome(2, 20, snapshot)

    def restart(self):
        self.epoch, self.heads, self.recent, self.air = self.epoch + 1, {TOTALS: 0, EVENTS: 0}, [], []

    def step(self, code, index):
        self.now += 0.03
        if code == "count":
            self.count()
        elif code == "event":
            self.event()
        elif code == "beat":
            self.beat()
        elif code in ("answer", "lose-answer"):
            self.answer(code == "lose-answer")
        elif code == "restart":
            self.restart()
        elif code == "gone":
            self.act(self.machine.master_gone(self.now))
        elif code == "time":
            self.now += 1.0
            self.act(self.machine.tick(self.now))
        elif self.air:
            message = self.air[index % len(self.air)] if code in ("repeat", "reorder") else self.air[0]
            if code != "repeat":
                self.air.remove(message)
            if code != "drop":
                self.act(self.machine.pub(message, self.now))


class JoiningMachine(RuleBasedStateMachine):
    """Any history of such a bus, against what its master knows."""

    def __init__(self):
        super().__init__()
        self.bus = LossyBus()

    @initialize(joined=st.booleans())
    def begin(self, joined):
        """Half of all histories begin with a peer that has joined."""
        for _ in range(2 * joined):
            self.bus.step("answer", 0)
            self.bus.step("take", 0)

    @rule(what=st.sampled_from(["count", "event", "beat", "restart", "gone", "time"]))
    def happens(self, what):
        """The master does something, ends, or is silent."""
        self.bus.step(what, 0)

    @rule(lost=st.booleans())
    def is_answered(self, lost):
        """A Hello or Resync is answered; the answer may be lost."""
        self.bus.step("lose-answer" if lost else "answer", 0)

    @rule(how=st.sampled_from(["take", "take", "drop", "repeat", "reorder"]), index=st.integers(0, 50))
    def arrives(self, how, index):
        """A frame of pub arrives, or not, or out of order, or not for the last time."""
        self.bus.step(how, index)

    @invariant()
    def nothing_goes_back(self):
        """Totals rise, events come in order and once."""
        totals, events = self.bus.seen_totals[-2:], self.bus.seen_events[-2:]
        assert totals == sorted(set(totals))
        assert events == sorted(set(events))

    def teardown(self):
        """Once the bus works again for a moment, the peer knows everything."""
        bus = self.bus
        for _ in range(8):
            bus.step("time", 0)
            bus.step("beat", 0)
            bus.step("answer", 0)
            while bus.air:
                bus.step("take", 0)
        assert bus.machine.joined
        assert bus.machine.epoch == bus.epoch
        assert bus.machine.totals.get("n", 0) == bus.total
        assert bus.seen_totals == sorted(set(bus.seen_totals))
        assert bus.seen_events == sorted(set(bus.seen_events))
        of_last = [number for epoch, number in bus.seen_events if epoch == bus.epoch]
        assert of_last == list(range(bus.heads[EVENTS] - len(of_last) + 1, bus.heads[EVENTS] + 1))
        assert bus.epoch == bus.first_epoch or len(of_last) == bus.heads[EVENTS]


TestJoining = JoiningMachine.TestCase
TestJoining.settings = settings(max_examples=60, stateful_step_count=60)
