"""The simulated master: `core.fleet` and the rest of its pure core, with a bus and processes that are simulated.

Invariant: what is decided is decided by the core; this only carries it out, in the order in which `bodies.master`
does. (What `bus.relay` decides about publications and mailboxes stands here once more, as thinly as it goes.)
"""

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from msgspec import msgpack
from msgspec.structs import replace

from zcluster.core import fleet_events as f
from zcluster.core import messages as m
from zcluster.core.fleet import Fleet
from zcluster.core.fleet_wire import for_launcher, of_launcher, of_worker, of_zygote
from zcluster.core.fleet_worker import ONLINE, READY
from zcluster.core.mail import Got, Mail, Missing, worker_name
from zcluster.core.questions import Questions
from zcluster.core.services import Services
from zcluster.core.snapshot import fleet_snapshot, who_is_there
from zcluster.core.verbs import VERBS
from zcluster.testing.sim_bus import Bus
from zcluster.testing.sim_world import COUNTER, HEARTBEAT_S, LEDGER_TICK_S, Actor, Gone, Wire, World

if TYPE_CHECKING:
    from zcluster.testing.sim_peer import Conn

TURN_MIN_S: Final = 0.005
ORPHAN_TICK_S: Final = 0.05
RECENT: Final = 1000
_BUS: Final = ("ctl", "evt")


class Master(Actor):
    """One master, from its start to its end."""

    def __init__(self, world: World, control: Wire) -> None:
        super().__init__(world, f"master {world.ledger.epoch + 1}")
        self.control = control
        self.bound = self.proceeding = self.launcher_gone = False
        ledger = self.ledger = world.ledger
        ledger.master_tick_ns = world.now_ns
        ledger.epoch += 1
        ledger.master_pid, ledger.master_start = self.pid, self.start
        self.epoch = ledger.epoch
        self.fleet = Fleet(
            world.settings, self.epoch, max(1, ledger.next_worker_id), world.random.random, strict=True
        )
        self.bus = Bus(world, self.epoch)
        self.questions = Questions(can_reload=True)
        self.services = Services(("checkpoint",), world.random.random)
        self.zygotes: dict[int, Any] = {}
        self.recent: deque[m.Event] = deque(maxlen=RECENT)
        self.told_total = -1
        self.tick_due = self.beat_due = self.began_at = 0.0
        self.planned = world.now  # when its wait was to end

    def bind(self) -> None:
        """It runs, and its sockets are bound."""
        if not self.alive:
            return
        self.world.note(self.name, "is bound")
        self.bound = True
        self.planned = self.world.now
        self.world.reconnect()
        self._run()

    def deliver(self, item: object) -> None:
        """What comes before it runs waits."""
        if self.bound or not self.alive:
            super().deliver(item)
        else:
            self.inbox.append(item)

    def close(self) -> None:
        """Its sockets are closed: what they had taken may just arrive, or not."""
        grace_s = self.world.random.uniform(0.0, 0.002)
        self.bus.close(grace_s)
        for item in self.inbox:  # the sockets of zygotes outlive us, and what nobody has read in them
            if item[0] == "zygote" and item[1] in self.zygotes:
                self.zygotes[item[1]].unread.append(item[2])
        for peer in list(self.world.peers.values()):
            if peer.watched == (self.pid, self.start):
                self.world.after(grace_s, peer.deliver, ("master gone", self.pid))

    def ended(self, code: int | None, signal: int | None) -> None:
        """Told to the launcher, behind its last words."""
        self.world.master = None
        self.close()
        self.control.send(("master died", code, self.since))
        if not self.world.launcher.alive:
            self.world.exited = -9 if code is None else code
            self.world.end_orphans()

    # ---- one turn --------------------------------------------------------------------------------------------------
    def due(self) -> float:
        """The next tick, or what the fleet waits for."""
        if not self.bound:
            return float("inf")
        now = self.world.now
        deadline_s = self.fleet.next_deadline(now)
        if deadline_s is not None:
            self.tick_due = min(self.tick_due, now + max(deadline_s, TURN_MIN_S))
        self.planned = self.tick_due
        return self.tick_due

    def turn(self, items: list[Any]) -> None:
        """Bus first, then what the launcher and the zygotes say, then the time."""
        now = self.world.now
        lag_s = now - self.planned
        if lag_s > HEARTBEAT_S:
            self._step(f.Lagged(lag_s))
        for item in items:
            if item[0] in _BUS:
                self._on_bus(item)
        self.bus.acknowledge()
        for item in items:
            if item[0] not in _BUS:
                self._on_other(item)
        if self.alive:
            self._periodic(now)
        if self.alive and self.proceeding:
            self.bus.who(*who_is_there(self.fleet))

    def _on_other(self, item: tuple[Any, ...]) -> None:
        match item:
            case ("control", message):
                self._on_control(message)
            case ("zygote", generation, message):
                self._on_zygote(generation, message)
            case ("gone", mailbox):
                self.bus.left(mailbox)
            case ("launcher gone",):
                self.launcher_gone = True
                self._step(f.LauncherGone())

    def _on_control(self, message: m.Control) -> None:
        match message:
            case m.ZygoteUp(generation=generation, pid=pid):
                zygote = self.world.zygotes.get(pid)
                if zygote is not None:
                    self.zygotes[generation] = zygote
                    unread, zygote.unread = zygote.unread, []
                    for words in unread:
                        zygote.say(words)
                if self.proceeding:
                    self._step(f.ZygoteUp(generation))
                if zygote is None:  # it has ended meanwhile: its death comes next
                    self.zygotes.setdefault(generation, Gone(pid, message.start))
            case m.ServiceUp(kind=kind, pid=pid):
                self.services.up(kind, pid, self.world.now)
            case m.Proceed():
                self._proceed()
            case m.Died(number=number):
                self._on_death(message)
                self.control.send(("master", m.Received(number)))
            case m.ScaleBy(number=number, by=by, to=to):
                self._step(f.Scale((*f.LAUNCHER, number), to, by, least=1))
            case m.Settings(generation=generation):
                self._step(f.Reconfigured(generation, self.world.settings))
            case m.Size() | m.Commit() | m.Reload() | m.Stop():
                self.questions.recall(message)
                self._step(of_launcher(message))

    def _proceed(self) -> None:
        found = self.world.witness.holders()
        self.proceeding, self.began_at = True, self.world.now
        self._step(f.Started(found[0], frozenset(), tuple(self.zygotes), found[1]))
        self._to_zygote(self.fleet.generation, m.Sync(self.epoch))

    def _to_zygote(self, generation: int, order: m.Control) -> None:
        zygote = self.zygotes.get(generation)
        if zygote is not None:
            self.world.after(self.world.random.uniform(0.0, 0.003), zygote.deliver, order)

    def _on_death(self, death: m.Died) -> None:
        for generation, zygote in list(self.zygotes.items()):
            if (zygote.pid, zygote.start) == (death.pid, death.start):
                del self.zygotes[generation]
                self._zygote_death(generation, zygote, death)
                return
        if self.services.died(death.pid, self.world.now):
            return
        worker = self.fleet.by_process(death.pid, death.start)
        if worker is not None and death.code == f.BOOT_FAILED_CODE:
            self._step(f.BootFailed(worker.id, "it could not be loaded"))
        if worker is not None and worker.ready_at is None:
            info = self.ledger.lane(worker.lane).info()
            said = info.state if info is not None and (info.id, info.pid) == (worker.id, worker.pid) else None
            if said == READY and worker.state == ONLINE:
                self._step(f.Ready(worker.id))
            elif said is None and death.code == f.LANE_TAKEN_CODE:
                self._step(f.LaneTaken(worker.id))
        self._step(f.Died(death.pid, death.start, death.code, death.signal))

    def _zygote_death(self, generation: int, zygote: Any, death: m.Died) -> None:
        unread, zygote.unread = zygote.unread, []
        for words in unread:
            self._on_zygote(generation, words)
        self._step(f.ZygoteDied(generation, death.code, death.signal))

    def _on_zygote(self, generation: int, message: m.Control) -> None:
        event = of_zygote(generation, message, self.epoch)
        if event is not None:
            self._step(event)

    # ---- the bus ---------------------------------------------------------------------------------------------------
    def _on_bus(self, item: tuple[Any, ...]) -> None:
        if item[0] == "evt":
            return  # news of increments; the ledger is looked at with every tick
        conn: Conn = item[1]
        message = item[2]
        if self.bus.conns.get(conn.link) is not conn:
            return
        match message:
            case m.Hello():
                if self._on_hello(conn, message):
                    self.bus.name(conn.link, message)
                    self._welcome(conn)
                return
            case Mail() | Got() | Missing():
                self.bus.carry(conn, message)
                return
        peer = self.bus.peers.find(conn.link, conn.pid)
        if peer is None:
            return
        if peer.worker:
            self._step(of_worker(peer.worker, message))
        elif isinstance(message, m.Leaving):
            self.bus.left(peer.mailbox)
        match message:
            case m.Resync():
                self._welcome(conn)
            case m.Ask(verb=verb) if verb in VERBS:
                heard = self.questions.hear(conn.link, (conn.pid, conn.start, message.number), message)
                if isinstance(heard, m.Answer):
                    self.bus.send(conn.link, heard)
                elif heard is not None:
                    self._step(heard)
            case m.Ask(number=number, args=args):
                wish = msgpack.decode(args, type=dict[str, bool])
                self.control.send(("master", m.Stop(wish["quick"], "asked for on the bus")))
                self.bus.send(conn.link, m.Answer(number))

    def _on_hello(self, conn: "Conn", hello: m.Hello) -> bool:
        info = hello.worker
        if info is not None and self.world.locks.get(info.lane) is not self.world.workers.get(info.pid):
            return False
        if self.bus.peers.find(conn.link, conn.pid) is None:
            self.bus.peers.add(conn.link, conn.pid)
            if info is not None:
                commands = self.fleet.step(f.Hello(info, conn.link), self.world.now)
                self.world.note(self.name, "hears", "Hello of", f"worker {info.id}")
                admitted = self.fleet.by_process(info.pid, info.start)
                if admitted is not None and admitted.id == info.id:
                    self.bus.peers.bind(conn.link, info.id)
                self._perform(commands)
        return True

    def _welcome(self, conn: "Conn") -> None:
        self.bus.probe(conn)
        snapshot = fleet_snapshot(
            self.fleet,
            self.world.now,
            name="sim",
            urls=(),
            launcher_pid=self.world.launcher.pid,
            master_pid=self.pid,
            zygote_pid=0,
            counters=self.ledger.totals(),
            heads=self.bus.heads,
            dropped={},
            received={},
            recent=tuple(self.recent),
            members=self.bus.who(*who_is_there(self.fleet)) if self.proceeding else None,
        )
        self.bus.send(conn.link, m.Welcome(self.pid, self.start, snapshot))

    # ---- time ------------------------------------------------------------------------------------------------------
    def _periodic(self, now: float) -> None:
        if now >= self.tick_due:
            self.tick_due = now + (ORPHAN_TICK_S if self.launcher_gone else LEDGER_TICK_S)
            self.ledger.master_tick_ns = self.world.now_ns
            for worker in self.fleet.living():
                if worker.pid and worker.pid not in self.world.workers:
                    self._step(f.Vanished(worker.id))
            for kind in self.services.due(now) if self.proceeding else ():
                self.control.send(("master", m.StartService(kind)))
            if self.alive and (self.proceeding or self.launcher_gone):
                self._step(f.Ticked(self.world.witness.ages(self.fleet)))
                self.world.witness.ticked(self)
        if now >= self.beat_due and self.alive:
            self.beat_due = now + HEARTBEAT_S
            self.bus.publish(m.TICK, lambda number: m.Tick(self.epoch, number, dict(self.bus.heads)))
            total = self.ledger.total(0)
            if total != self.told_total:
                self.told_total = total
                self.bus.publish(m.TOTALS, lambda number: m.Totals(self.epoch, number, {COUNTER: total}))

    # ---- what the fleet decides ------------------------------------------------------------------------------------
    def _step(self, event: f.FleetEvent) -> None:
        if not self.alive:
            return
        if not isinstance(event, f.Heard | f.Ticked):
            self.world.note(self.name, "takes", event)
        self._perform(self.fleet.step(event, self.world.now))

    def _perform(self, commands: list[f.FleetCommand]) -> None:
        for command in commands:
            if not isinstance(command, f.Announce):
                self.world.note(self.name, "->", command)
            self.world.witness.decided(self, command)
            self._act(command)

    def _act(self, command: f.FleetCommand) -> None:
        world = self.world
        match command:
            case f.StartZygote() | f.Commit() | f.KeepReload() | f.Running():
                self.control.send(("master", for_launcher(command)))
            case f.SaveNextId(next_id=next_id):
                self.ledger.next_worker_id = next_id
            case f.Fork(worker=info, env=env):
                self._to_zygote(info.generation, m.Fork(info, dict(env)))
            case f.EndZygote(generation=generation):
                self.control.send(("master", for_launcher(command)))
            case f.Resize():
                self.questions.resize(command)
            case f.Reply():
                link, answer, told = self.questions.answer(command)
                for message in told:
                    self.control.send(("master", message))
                if link:
                    self.bus.send(link, answer)
            case f.SendDrain(id=id_, deadline_s=deadline_s, quick=quick):
                self.bus.send(self.bus.peers.link_of(id_), m.Drain(deadline_s, quick))
            case f.Refuse(link=link, reason=reason):
                self.bus.send(link, m.Refused(reason))
            case f.KillZygote(generation=generation):
                if generation in self.zygotes:
                    world.after(0.0, self._end, (self.zygotes[generation], None, 9))
            case f.Terminate(pid=pid) | f.Dump(pid=pid) | f.Kill(pid=pid) if pid in world.workers:
                world.after(0.0, self._blow, (type(command), world.workers[pid]))
            case f.Reconnect(id=id_):
                for alive in self.fleet.living():
                    if alive.id == id_:
                        self.ledger.lane(alive.lane).reconnect += 1
            case f.Announce(kind=kind, worker=worker, text=text):
                self._announce(kind, worker, text)
            case f.Finish(code=code):
                world.after(0.0, self._end, (self, code, None))

    def _end(self, whom: Any) -> None:
        actor, code, signal = whom
        actor.die(code, signal)

    def _blow(self, blow: Any) -> None:
        kind, worker = blow
        if kind is f.Kill:
            worker.die(None, 9)
        elif kind is f.Dump:
            worker.thaw()
        else:
            worker.deliver(("TERM",))

    def _announce(self, kind: str, worker: m.WorkerInfo | None, text: str) -> None:
        def make(number: int) -> m.Event:
            event = m.Event(self.epoch, number, kind, worker and replace(worker, uptime_s=0.0), text)
            self.recent.append(event)
            return event

        self.bus.publish(m.EVENTS, make)
        if kind == "exit" and worker is not None:
            self.bus.peers.forget(worker.id)
            self.bus.forget(worker_name(worker.id))
