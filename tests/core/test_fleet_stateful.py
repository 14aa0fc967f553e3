"""The fleet against a simple model: processes that exist, who holds which lane, and what was promised."""

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec.structs import replace

from zcluster.core import fleet_events as f
from zcluster.core.fleet import Fleet
from zcluster.core.fleet_settings import FleetSettings
from zcluster.core.messages import Beat

SETTINGS = FleetSettings(workers=2, lanes=8, boot_timeout_s=5.0, graceful_timeout_s=2.0, hang_timeout_s=3.0)
INDEX = st.integers(0, 10)
START = 7


class FleetMachine(RuleBasedStateMachine):
    """What the fleet asks for is done sooner or later; what happens is told sooner or later."""

    def __init__(self):
        super().__init__()
        self.fleet = Fleet(SETTINGS, 1, 1, lambda: 0.5, strict=True)
        self.now, self.pids = 0.0, 100
        self.orders, self.untold = [], []  # forks that nobody has done; deaths that nobody has told
        self.living = {}  # id -> info, of processes
        self.stage = {}  # id -> forked | online | ready | draining
        self.locks = {}  # lane -> id
        self.told_to_leave = set()
        self.zygotes = {}  # generation -> asked | up | imported
        self.size, self.asked, self.answered = 2, 0, {}

    @initialize()
    def begin(self):
        """A cluster that starts."""
        self.step(f.Started())

    # ---- the world -------------------------------------------------------------------------------------------------
    def step(self, event):
        for command in self.fleet.step(event, self.now):
            match command:
                case f.Fork(worker=info):
                    holder = self.locks.get(info.lane, 0)
                    known = holder in self.living and self.fleet.by_process(self.living[holder].pid, START)
                    assert not known, "a lane is handed out while a worker of ours has it"
                    self.orders.append(info)
                case f.SendDrain(id=id_) | f.Terminate(id=id_):
                    self.told_to_leave.add(id_)
                case f.Kill(id=id_) if id_ in self.living:
                    self.end(id_, None, 9)
                case f.StartZygote(generation=generation):
                    self.zygotes[generation] = "asked"
                case f.EndZygote(generation=generation) | f.KillZygote(generation=generation):
                    if self.zygotes.pop(generation, None) is not None:
                        self.orders = [order for order in self.orders if order.generation != generation]
                        self.untold.append(f.ZygoteDied(generation, 0))
                case f.Reply(asker=asker):
                    assert asker not in self.answered, "a question is answered once"
                    self.answered[asker] = command

    def end(self, id_, code, signal):
        info = self.living.pop(id_)
        self.stage.pop(id_)
        if self.locks[info.lane] == id_:
            del self.locks[info.lane]
        self.untold.append(f.Died(info.pid, info.start, code, signal))

    def pick(self, there, index):
        return sorted(there)[index % len(there)] if there else None

    # ---- what the processes do -------------------------------------------------------------------------------------
    @rule(index=INDEX)
    def zygote_goes_on(self, index):
        """It is started, and imports."""
        generation = self.pick(self.zygotes, index)
        was = self.zygotes.get(generation)
        if was in ("asked", "up"):
            self.zygotes[generation] = "up" if was == "asked" else "imported"
            self.step(f.ZygoteUp(generation) if was == "asked" else f.Imported(generation))

    @rule(index=INDEX)
    def fork(self, index):
        """The zygote does what it was told."""
        if self.orders:
            info = self.orders.pop(index % len(self.orders))
            self.pids += 1
            self.living[info.id] = replace(info, pid=self.pids, start=START, state="forked")
            self.stage[info.id] = "forked"
            taken = (
                self.locks.setdefault(info.lane, info.id) != info.id
            )  # its order was given up, and the lane went on
            self.step(f.Forked(self.living[info.id]))
            if taken and info.id in self.living:
                self.end(info.id, f.LANE_TAKEN_CODE, None)

    @rule(index=INDEX)
    def worker_goes_on(self, index):
        """It comes to the bus, is ready, and leaves when it is told to."""
        id_ = self.pick(self.living, index)
        if id_ is None:
            return
        stage = self.stage[id_]
        if id_ in self.told_to_leave:
            self.end(id_, 0, None)
        elif stage == "forked":
            self.stage[id_] = "online"
            self.step(f.Hello(self.living[id_], b"link"))
        elif stage == "online":
            self.stage[id_] = "ready"
            self.step(f.Ready(id_))
        else:
            self.step(f.Heard(id_, Beat(0, 0, 0, 1, 0, 0.0, 0.0, state="ready")))

    @rule(index=INDEX, status=st.sampled_from([(None, 9), (1, None), (0, None)]))
    def worker_dies(self, index, status):
        """At any moment."""
        id_ = self.pick(self.living, index)
        if id_ is not None:
            self.end(id_, *status)

    @rule(index=INDEX)
    def zygote_dies(self, index):
        """With all that it was asked for."""
        generation = self.pick(self.zygotes, index)
        if generation is not None and self.zygotes[generation] != "asked":
            del self.zygotes[generation]
            self.orders = [order for order in self.orders if order.generation != generation]
            self.untold.append(f.ZygoteDied(generation, None, 9))

    @rule()
    def a_death_is_told(self):
        """In the order in which they happened."""
        if self.untold:
            self.step(self.untold.pop(0))

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.5]))
    def time_passes(self, seconds):
        """Everybody who lives ticks."""
        self.now += seconds
        self.step(f.Ticked({id_: f.LaneAges(0.1, 0.1, in_app=False) for id_ in self.living}))

    # ---- what the operator does ------------------------------------------------------------------------------------
    @rule(to=st.integers(0, 4))
    def scale(self, to):
        """As many slots as that are open from now on."""
        self.asked += 1
        self.step(f.Scale((1, 1, self.asked), to))
        reply = self.answered.get((1, 1, self.asked))
        self.size = to if reply is not None and not reply.error else self.size

    @rule()
    def reload(self):
        """The code that is on disk now."""
        self.asked += 1
        self.step(f.Reload((1, 1, self.asked), f"token {self.asked}"))

    # ---- what holds ------------------------------------------------------------------------------------------------
    @invariant()
    def who_serves_is_not_hung(self):
        """All ticks are fresh: nobody who lives is condemned as hung; and the open slots are those promised."""
        assert not any(worker.doomed == "hung" and worker.id in self.living for worker in self.fleet.living())
        assert self.fleet.stopping is not None or len(self.fleet.wanted) == self.size

    def teardown(self):
        """When all that was asked for is done, every open slot has one worker of one generation."""
        for _ in range(400):
            if self.fleet.stopping is not None or self.is_settled():
                break
            for index in range(8):
                self.zygote_goes_on(index)
                self.fork(index)
                self.worker_goes_on(index)
                self.a_death_is_told()
            self.time_passes(0.1)
        if self.fleet.stopping is None:
            assert self.is_settled()
            assert len(self.answered) == self.asked

    def is_settled(self):
        serving = sorted((w.slot, w.generation) for w in self.fleet.living() if w.state == "ready")
        one = [(slot, self.fleet.generation) for slot in sorted(self.fleet.wanted)]
        busy = self.fleet.reloading is not None or self.orders or self.untold
        return not busy and serving == one == sorted((i.slot, i.generation) for i in self.living.values())


TestFleet = FleetMachine.TestCase
# A history of so many kinds of steps takes minutes to be made smaller: longer than a test may take.
TestFleet.settings = settings(max_examples=30, stateful_step_count=50, phases=[Phase.generate])
