"""What must hold in a simulation, looked at by somebody who sees everything at once.

Invariant: it judges by the truth (who runs, who holds which lock, what was stored), never by what a master believes;
and it changes nothing.
"""

from collections.abc import Sized
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from zcluster.core import fleet_events as f
from zcluster.core import messages as m
from zcluster.core.fleet import Fleet
from zcluster.core.fleet_deaths import BOOT_TIMEOUT, DRAIN_TIMEOUT, HUNG
from zcluster.core.fleet_worker import SERVING
from zcluster.testing.sim_letters import Letters
from zcluster.testing.sim_world import HEARTBEAT_S, LEDGER_TICK_S, MASTER_TIMEOUT_S, World

if TYPE_CHECKING:
    from zcluster.testing.sim_master import Master
    from zcluster.testing.sim_peer import Peer
    from zcluster.testing.sim_worker import Worker

# A tick that is a third of the hang timeout old, less one tick, and less the lag that a master does not notice.
STALE_S: Final = 1.0 - LEDGER_TICK_S - 0.15
UNTOLD_S: Final = 8.0  # a death may be unknown to a master so long: until its process is looked for, and 5 s
# A master notices that it did not run when it wakes a heartbeat later than it wanted to, so what it misses may be a
# ledger tick longer; and of what it does notice it knows all but one such tick.
LAG_S: Final = HEARTBEAT_S + LEDGER_TICK_S
RECENT_DEATHS: Final = 50
# What a core object may hold in so small a world. Rings and the memory of deaths are bounded by larger numbers.
SIZE_MAX: Final = 400
FORKS_PER_S: Final = 30.0  # of three slots; three at once, and then pauses that double


class Witness(Letters):
    """Called on everything that happens."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.attempted = self.acknowledged = 0  # increments
        self.total = 0
        self.grace_s = 0.0  # time that the faults themselves have taken
        self.ids: set[int] = set()
        self.drains: dict[tuple[int, int], float] = {}  # epoch and worker id -> when it was first told to leave
        self.forks: list[float] = []
        self.dead: list[tuple[float, int, int, int]] = []  # when, slot, generation, id: lately
        self.committed = 1
        self.questions: dict[tuple[int, int], tuple[str, dict[str, Any]]] = {}  # open ones
        self.answers = 0
        self.fulfilled: set[f.Asker] = set()  # who had the size changed
        self.wishes: set[int] = set()  # of the operator, by signal, that no master has decided yet
        self.told: dict[int, int] = {}  # peer -> the highest total it was told
        self.events: dict[int, tuple[int, int]] = {}  # handle -> the last event it was told

    # ---- the ledger ------------------------------------------------------------------------------------------------
    def check(self) -> None:
        """After everything that happens."""
        total = self.world.ledger.total(0)
        if total != self.total:
            if total < self.total:
                self.world.fail(f"the total fell from {self.total} to {total}")
            self.total = total
        if not self.acknowledged <= total <= self.attempted:
            self.world.fail(f"{self.acknowledged} acknowledged <= total {total} <= {self.attempted} attempted")

    def cut_off(self, worker: "Worker") -> None:
        """It is killed, perhaps in the midst of an increment."""
        random = self.world.random
        if random.random() < 0.3 and not worker.frozen:
            self.attempted += 1
            if random.random() < 0.5:
                worker.lane.cells[0] = worker.value + 1

    def told_totals(self, peer: "Peer", totals: m.Totals) -> None:
        """A peer is told totals: they rise, and are nobody's invention."""
        for total in totals.totals.values():
            if not self.told.get(peer.pid, -1) < total <= self.total:
                self.world.fail(f"{peer.name} is told a total of {total} after {self.told.get(peer.pid)}")
            self.told[peer.pid] = total

    def event(self, handle: "Peer", event: m.Event) -> None:
        """A handle is told what happened: in order, once."""
        if self.events.get(handle.pid, (0, 0)) >= (event.epoch, event.number):
            self.world.fail(f"{handle.name} is told {event} after {self.events[handle.pid]}")
        self.events[handle.pid] = (event.epoch, event.number)

    def holders(self) -> tuple[tuple[m.WorkerInfo, ...], tuple[m.WorkerInfo, ...]]:
        """Who holds lanes, and who was the last in those that nobody holds (`unix.lanes`)."""
        living, departed = [], []
        world = self.world
        for lane in range(world.ledger.used_lanes):
            info = world.ledger.lane(lane).info()
            owner = world.locks.get(lane)
            if info is not None:
                info = replace(info, uptime_s=world.now - world.ledger.lane(lane).born_ns / 1e9)
                if owner is None:
                    departed.append(info)
                elif owner.pid == info.pid:
                    living.append(info)
        return tuple(living), tuple(departed)

    def ages(self, fleet: Fleet) -> dict[int, f.LaneAges]:
        """How old the ticks of these workers are (`unix.lanes`)."""
        found = {}
        ledger, now_ns = self.world.ledger, self.world.now_ns
        for worker in fleet.living():
            lane = ledger.lane(worker.lane)
            if lane.worker_id == worker.id and lane.pid == worker.pid:
                bus_s, loop_s = (now_ns - lane.bus_tick_ns) / 1e9, (now_ns - lane.loop_tick_ns) / 1e9
                found[worker.id] = f.LaneAges(max(0.0, bus_s), max(0.0, loop_s), lane.inflight > 0)
        return found

    # ---- what the fleet decides ------------------------------------------------------------------------------------
    def decided(self, master: "Master", command: f.FleetCommand) -> None:
        """A command, before it is performed."""
        match command:
            case f.Fork(worker=info):
                self._forks(master, info)
            case f.SendDrain(id=id_):
                if (master.epoch, id_) not in self.drains:
                    self.drains[master.epoch, id_] = self.world.now
                    self._drains(master, id_)
            case f.Dump(id=id_, pid=pid) if pid in self.world.workers:
                self._condemns(master, self.world.workers[pid], master.fleet.roster.workers[id_].doomed)
            case f.Kill(pid=pid, reason=reason) if pid in self.world.workers and reason == DRAIN_TIMEOUT:
                self._condemns(master, self.world.workers[pid], reason)
            case f.Commit(generation=generation):
                self._commits(master, generation)
            case f.Reply(asker=asker, body=body):
                if asker in self.fulfilled:
                    self.world.fail(f"what {asker} wants is done a second time")
                if body and "generation" not in body:
                    self.fulfilled.add(asker)
                if asker[:2] == f.LAUNCHER:
                    self.wishes.discard(asker[2])
            case f.Finish(code=code):
                self._finishes(master, code)

    def _forks(self, master: "Master", info: m.WorkerInfo) -> None:
        world = self.world
        holder = world.locks.get(info.lane)
        if holder is not None and master.fleet.by_process(holder.pid, holder.start) is not None:
            world.fail(f"lane {info.lane} is handed out although {holder.name} has it")
        if info.id in self.ids:
            world.fail(f"worker id {info.id} is used twice")
        if info.id >= world.ledger.next_worker_id:
            world.fail(f"worker id {info.id} is used before it is saved")
        if world.launcher.kept.stop is not None and master.fleet.stopping is not None:
            world.fail("a worker is forked in a cluster that stops")
        self.ids.add(info.id)
        self.forks.append(world.now)
        if len(self.forks) > FORKS_PER_S and world.now - self.forks[-int(FORKS_PER_S)] < 1.0:
            world.fail(f"more than {FORKS_PER_S:.0f} forks within a second")

    def _drains(self, master: "Master", id_: int) -> None:
        """Who serves leaves when another one serves in its slot, or nobody is wanted there."""
        fleet = master.fleet
        victim = fleet.roster.workers[id_]
        process = self.world.workers.get(victim.pid)
        if fleet.stopping is not None or victim.slot not in fleet.wanted or process is None or process.draining:
            return
        if master.began_at == self.world.now:
            return  # its slot was closed under the master before, and is opened again by a wish of the same instant
        others = [w for w in fleet.roster if w.slot == victim.slot and w.id != id_ and w.state in SERVING]
        if not any(self._serves_or_died(w.pid, w.id) for w in others):
            self.world.fail(f"{process.name} is told to leave, and nobody serves in slot {victim.slot}")

    def _serves_or_died(self, pid: int, id_: int) -> bool:
        worker = self.world.workers.get(pid)
        return worker.serving if worker is not None else any(dead[3] == id_ for dead in self.dead)

    def _condemns(self, master: "Master", worker: "Worker", reason: str) -> None:
        """A worker is given up: rightly?"""
        world, now = self.world, self.world.now
        age_s = self._net(master, worker.ticked)
        loop_s = self._net(master, worker.loop_ticked) if worker.stuck else 0.0
        if reason == HUNG and age_s < STALE_S and loop_s < world.settings.hang_timeout_s - STALE_S:
            world.fail(f"{worker.name} is condemned as hung, {age_s:.2f} s after its last tick")
        served_s = now - max(worker.ready_since, master.since)
        told = worker.joining.joined and worker.joining.epoch == master.epoch and worker.conn is not None
        well_since = max(worker.mute_until, world.chaos.changed_at)  # and a heartbeat has made good what was lost
        told = told and "down" not in world.chaos.lose and now - well_since > 3 * HEARTBEAT_S
        if reason == BOOT_TIMEOUT and told and served_s > 2.0 and age_s < STALE_S and not worker.draining:
            world.fail(f"{worker.name} is condemned as not ready, and has served for {served_s:.1f} s")
        drained_s = now - self.drains.get(
            (master.epoch, worker.info.id), now
        )  # a quick stop is over before anything is repeated
        if (
            reason == DRAIN_TIMEOUT
            and told
            and not worker.draining
            and age_s < STALE_S
            and drained_s > 3 * HEARTBEAT_S
        ):
            world.fail(f"{worker.name} is killed because it does not leave, and was never told to")

    def _net(self, master: "Master", since: float) -> float:
        """Seconds since then in which this master ran, as far as it can tell (see LAG_S)."""
        now, begin = self.world.now, max(since, master.since)
        away = [*master.stopped, *self.world.ends]
        ran_s, upto = now - begin, begin
        for start, end in sorted((start, end) for start, end in away if end - start > LAG_S):
            first, last = max(start, upto), end - LEDGER_TICK_S  # they overlap: a stopped master in a paused machine
            ran_s -= max(0.0, last - first)
            upto = max(upto, last)
        return ran_s

    def _commits(self, master: "Master", generation: int) -> None:
        """A reload has ended well: everybody is of the new generation."""
        if generation <= self.committed:
            self.world.fail(f"generation {generation} is committed after {self.committed}")
        self.committed = generation
        serving = {w.info.slot for w in self.world.workers.values() if w.serving and w.info.generation == generation}
        serving |= {slot for _, slot, its, _ in self.dead if its == generation}
        if not serving.issuperset(master.fleet.wanted):
            self.world.fail(f"generation {generation} is committed with slots {sorted(serving)} of its own")

    def _finishes(self, master: "Master", code: int) -> None:
        for worker in self.world.workers.values():
            known = master.fleet.by_process(worker.pid, worker.start) is not None
            left = worker.draining or worker.frozen or not worker.serving or known
            if not left and code == 0:
                self.world.fail(f"the cluster finishes, and {worker.name} serves")

    def master_condemned(self, master: "Master", stale_s: float) -> None:
        """The launcher kills a master."""
        if not master.frozen and master.bound:
            self.world.fail(
                f"{master.name} is killed as hung ({stale_s:.1f} s of at least {MASTER_TIMEOUT_S}) but runs"
            )

    # ---- questions -------------------------------------------------------------------------------------------------
    def asked(self, handle: "Peer", number: int, verb: str, args: dict[str, Any]) -> None:
        """Somebody wants a change."""
        self.questions[handle.pid, number] = (verb, args)

    def answered(self, handle: "Peer", answer: m.Answer) -> None:
        """And has its answer: the only one."""
        if self.questions.pop((handle.pid, answer.number), None) is None:
            self.world.fail(f"{handle.name} is answered twice: {answer.number}")
        self.answers += 1

    # ---- ends ------------------------------------------------------------------------------------------------------
    def peer_ended(self, peer: "Peer") -> None:
        """A process of the bus has ended."""
        world = self.world
        self.ended_letters(peer)
        info: m.WorkerInfo | None = getattr(peer, "info", None)
        if info is not None and getattr(peer, "serving", False):
            self.dead.append((world.now, info.slot, info.generation, info.id))
            self.dead = [dead for dead in self.dead[-RECENT_DEATHS:] if dead[0] > world.now - UNTOLD_S - self.grace_s]
        for key in [key for key in self.questions if key[0] == peer.pid]:
            del self.questions[key]

    # ---- sizes -----------------------------------------------------------------------------------------------------
    def ticked(self, master: "Master") -> None:
        """Nothing grows without a bound: looked at once in a while."""
        if master.tick_due % 2.0 < LEDGER_TICK_S:
            self.measure()

    def measure(self) -> None:
        """The sizes of everything that a core object holds."""
        world = self.world
        there: list[tuple[str, object]] = [("launcher", world.launcher.kept)]
        master = world.master
        if master is not None:
            there += [(master.name, thing) for thing in (master.fleet, master.fleet.roster, master.questions)]
            there += [(master.name, thing) for thing in (master.bus.peers, master.services, master.fleet.lags)]
        for peer in world.peers.values():
            there += [(peer.name, thing) for thing in (peer.joining, peer.outbox, peer.post, peer.subscriber, peer)]
        for name, thing in there:
            for field, value in vars(thing).items():
                if isinstance(value, Sized) and not isinstance(value, str | bytes) and len(value) > SIZE_MAX:
                    world.fail(f"{type(thing).__name__}.{field} of {name} has {len(value)} entries")

    # ---- the end ---------------------------------------------------------------------------------------------------
    def unsettled(self) -> str:
        """What is not yet as it should be, when all faults are over; empty when it is."""
        world, master = self.world, self.world.master
        if world.exited is not None:
            return ""
        if master is None or not master.proceeding:
            return "there is no master"
        fleet, kept = master.fleet, vars(world.launcher.kept)
        if fleet.reloading is not None or fleet.queued or kept["_reload"] or kept["_reload_wish"]:
            return "a reload has not ended"
        if kept["_unacknowledged"]:
            return "the launcher keeps what no master has received"
        if self.questions:
            return f"not answered: {self.questions}"
        if set(world.launcher.zygotes) != {fleet.generation}:
            return f"there are zygotes {sorted(world.launcher.zygotes)}, generation {fleet.generation} serves"
        living = sorted((w.info.slot, w.info.generation) for w in world.workers.values())
        if living != [(slot, fleet.generation) for slot in sorted(fleet.wanted)]:
            return f"workers (slot, generation) {living}, wanted {sorted(fleet.wanted)} of {fleet.generation}"
        for worker in world.workers.values():
            known = fleet.by_process(worker.pid, worker.start)
            is_well = worker.serving and not worker.draining and not worker.stuck
            if not is_well or known is None or known.state != "ready":
                return f"{worker.name} does not serve"
        if self.wishes:
            return f"wishes of the operator that nobody has heard: {self.wishes}"
        if not world.services:
            return "the service is missing"
        for peer in world.peers.values():
            if not peer.joining.joined or peer.joining.epoch != master.epoch:
                return f"{peer.name} has not joined"
        return self.open_letters()

    def patience_s(self) -> float:
        """How long a repair may take. In a row: a zygote that does not answer, a hang, a boot, the longest pause, and
        each of the slots there and back in two reloads."""
        settings = self.world.settings
        once = 2 * settings.boot_timeout_s + settings.hang_timeout_s + settings.restart_cap_s + MASTER_TIMEOUT_S
        return 3 * once + 6 * settings.boot_timeout_s + 10 * HEARTBEAT_S
