"""The master: owns ROUTER, PUB and PULL, and supervises by asking.

Theory of operation. One loop, one thread, one place to wait. Everything that happens (a message, a death that the
launcher reports, a zygote's answer, time) becomes one event for `core.fleet`, which answers with commands, performed
here. It never imports the app, never forks, reaps nothing, and can be killed at any instruction: what the next master
must know lies in the ledger (epoch, next id, lanes), with the launcher (deaths, wishes) and with the zygote (forks).

Invariant: nothing here waits for anybody. The loop comes round at least every ledger tick, and says so in the ledger.
"""

import logging
import os
import time
from pathlib import Path
from random import random
from typing import assert_never

import msgspec

from zcluster.bus.broadcast import Broadcast
from zcluster.bus.desk import Desk
from zcluster.bus.hub import Arrival, Hub
from zcluster.bus.peers import Peers
from zcluster.bus.relay import Relay
from zcluster.config import Config
from zcluster.core import fleet_events as f
from zcluster.core import messages as m
from zcluster.core.fleet import Fleet
from zcluster.core.fleet_settings import FleetSettings
from zcluster.core.fleet_wire import for_launcher, of_launcher, of_worker, of_zygote
from zcluster.core.fleet_worker import ONLINE, READY
from zcluster.core.mail import Got, Mail, Missing
from zcluster.core.questions import Questions
from zcluster.core.services import Services, kinds
from zcluster.core.snapshot import fleet_snapshot, who_is_there
from zcluster.core.standing import Standing
from zcluster.unix import lanes, leash, logs, process, vitals
from zcluster.unix.channel import Channel, boot_of
from zcluster.unix.ending import Ending
from zcluster.unix.ledgerfile import open_ledger
from zcluster.unix.locks import MASTER_BYTE, LockFile
from zcluster.unix.signals import HEARD, Signals
from zcluster.unix.zygotes import Zygotes

log = logging.getLogger("zcluster.master")

TURN_MIN_S = 0.005  # between two looks at the deadlines
ORPHAN_TICK_S = 0.05  # without a launcher nobody reports deaths: look for them


def main(control_fd: int) -> int:
    """Run a master; returns its exit code."""
    signals = Signals(HEARD)
    channel = Channel.of_fd(control_fd)
    boot = boot_of(channel.first_message(), "master")
    config = msgspec.msgpack.decode(boot.config, type=Config)
    run_dir = Path(boot.run_dir)
    logs.begin("master", config, run_dir, logs.PATIENCE_SHORT_S)
    process.set_title("zc-master")
    leash_fd = leash.hold(run_dir / "leash")
    locks = LockFile(run_dir / "locks")
    if not locks.try_lock(MASTER_BYTE):
        log.critical("process %s is the master of this cluster already", locks.owner(MASTER_BYTE))
        return os.EX_SOFTWARE
    master = Master(boot, config, channel, signals, locks)
    try:
        return master.run()
    finally:
        master.relay.close()
        master.hub.close()
        channel.close()
        os.close(leash_fd)


class Master:
    """The loop and what it performs with."""

    def __init__(self, boot: m.Boot, config: Config, channel: Channel, signals: Signals, locks: LockFile) -> None:
        self.boot, self.config, self.channel, self.signals, self.locks = boot, config, channel, signals, locks
        self.launcher_fd = os.pidfd_open(boot.launcher_pid)
        self.ledger = open_ledger(Path(boot.run_dir) / "ledger").ledger
        self.ledger.master_tick_ns = time.monotonic_ns()
        self.ledger.epoch += 1  # before the sockets are bound: who hears us knows that the old one is gone
        self.ledger.master_pid, self.ledger.master_start = os.getpid(), process.start_time(os.getpid())
        self.hub = Hub(boot.run_dir, self.ledger.epoch)
        self.fleet = Fleet(FleetSettings.of(config), self.ledger.epoch, max(1, self.ledger.next_worker_id), random)
        self.peers = Peers()
        self.relay = Relay(self.hub, self.peers)
        self.zygotes = Zygotes(self.hub.register, self.hub.unregister)
        self.ending = Ending(boot.run_dir, self.zygotes)
        self.questions = Questions(can_reload=boot.kind != m.IN_MEMORY)
        self.services = Services(kinds(config), random)
        self.broadcast, self.standing = Broadcast(self.hub), Standing()
        self.desk = Desk(self.hub, self.peers, self.relay, self.questions, self, process.start_time)
        self.tick_due = self.beat_due = 0.0
        self.totals_dirty, self.proceeding, self.launcher_gone = True, False, False
        self.final: f.Finish | None = None
        for fd in (channel.fileno(), self.launcher_fd, signals.fileno()):
            self.hub.register(fd)

    def run(self) -> int:
        """Turn until the fleet says Finish."""
        turned = time.monotonic()
        while self.final is None:
            timeout_s = self._timeout_s(turned)
            arrivals, ready = self.hub.poll(timeout_s)
            before, turned = turned, time.monotonic()
            if (lag_s := turned - before - timeout_s) > self.config.heartbeat_s:
                log.warning("the master did not run for %.1f s; nobody is judged for it", lag_s)
                self._step(f.Lagged(lag_s))
            for arrival in arrivals:
                self._on_arrival(arrival)
            self.relay.acknowledge()
            if ready or self.channel.needs_care:
                self._ready_fds(ready)
                self.relay.ended(ready)
            self._periodic(time.monotonic())
            if self.relay.changed and self.proceeding:
                self.relay.members(*who_is_there(self.fleet))
        if self.final.code:
            self.channel.send(m.Failed(self.final.code, self.final.text))
        return self.final.code

    def _timeout_s(self, now: float) -> float:
        """Until the next tick, the next publication of totals, or the fleet's next deadline."""
        if self.fleet.stepped and (deadline_s := self.fleet.next_deadline(now)) is not None:
            self.tick_due = min(self.tick_due, now + max(deadline_s, TURN_MIN_S))
        self.fleet.stepped = False
        due = min(self.tick_due, self.broadcast.due) if self.totals_dirty else self.tick_due
        return max(0.0, due - now)

    # ---- what happens ----------------------------------------------------------------------------------------------
    def _ready_fds(self, ready: list[int]) -> None:
        self.signals.take()  # ours mean nothing: only the launcher interprets signals
        if self.channel.fileno() in ready:
            self._control(self.channel.receive())
        if self.launcher_fd in ready or self.channel.closed:
            self._launcher_gone()
        for generation, message in self.zygotes.hear(ready):
            self._on_zygote(generation, message)
        self.channel.flush()

    def _launcher_gone(self) -> None:
        if self.launcher_gone:
            return
        self.launcher_gone = True
        log.error("the launcher is gone; draining everything")
        self.hub.unregister(self.launcher_fd)
        if self.channel.fileno() >= 0:
            self.hub.unregister(self.channel.fileno())
        self._step(f.LauncherGone())

    def _control(self, arrived: list[tuple[m.Control, list[int]]]) -> None:
        for message, fds in arrived:
            match message:
                case m.ZygoteUp(generation=generation, pid=pid, start=start):
                    self.zygotes.up(generation, pid, start, Channel.of_fd(fds.pop()))
                    if self.proceeding:
                        self._step(f.ZygoteUp(generation))
                case m.ServiceUp(kind=kind, pid=pid):
                    self.services.up(kind, pid, time.monotonic())
                case m.Proceed():
                    self._proceed()
                case m.Died(number=number):
                    self._on_death(message)
                    self.channel.send(m.Received(number))
                case m.ScaleBy(number=number, by=by, to=to):
                    self._step(f.Scale((*f.LAUNCHER, number), to, by, least=1))
                case m.Settings(generation=generation, config=raw):
                    config = msgspec.msgpack.decode(raw, type=Config)
                    self._step(f.Reconfigured(generation, FleetSettings.of(config)))
                    if generation == self.fleet.generation:  # committed; only now it is for those who outlive it
                        logging.getLogger("zcluster").setLevel(config.log_level.upper())
                case m.Size() | m.Commit() | m.Reload() | m.Stop():
                    self.questions.recall(message)
                    self._step(of_launcher(message))
                case m.Failed(text=text, generation=generation):
                    log.error("%s", text)
                    self._step(f.ZygoteDied(generation, why=text))
                case _:
                    log.error("the launcher sent %s, which is not for a master", type(message).__name__)
            for fd in fds:
                os.close(fd)

    def _proceed(self) -> None:
        """All that stood before this master has been told: look at the lanes and begin."""
        found = lanes.holders(self.ledger, self.locks)
        self.proceeding = True
        if found.living or self.zygotes.generations:
            log.info("epoch %d: adopting %d workers of the master before", self.ledger.epoch, len(found.living))
        self._step(f.Started(found.living, found.foreign, self.zygotes.generations, found.departed))
        self.zygotes.send(self.fleet.generation, m.Sync(self.ledger.epoch))

    def _on_death(self, death: m.Died) -> None:
        generation = self.zygotes.find(death.pid, death.start)
        if generation is not None:
            for _, message in self.zygotes.last_words(generation):  # why it could not import
                self._on_zygote(generation, message)
            self.zygotes.forget(generation)
            self._step(f.ZygoteDied(generation, death.code, death.signal))
            if generation != self.fleet.generation:
                self.ending.forget_zygote(generation)
            return
        if loss := self.services.died(death.pid, time.monotonic()):
            log.warning("%s", loss)
            return
        worker = self.fleet.by_process(death.pid, death.start)
        if worker is not None and worker.ready_at is None:
            said, note = lanes.last_state(self.ledger, worker), self.ending.boot_note(worker.id)
            if note and (death.code == f.BOOT_FAILED_CODE or worker.doomed):
                self._step(f.BootFailed(worker.id, note))
            if said == READY and worker.state == ONLINE:
                self._step(f.Ready(worker.id))  # it served, and died before its Ready came here
            elif said is None and death.code == f.LANE_TAKEN_CODE:  # else the code is the app's
                self._step(f.LaneTaken(worker.id))
        self._step(f.Died(death.pid, death.start, death.code, death.signal))

    def _on_zygote(self, generation: int, message: m.Control) -> None:
        if (event := of_zygote(generation, message, self.ledger.epoch)) is not None:
            self._step(event)

    # ---- the bus ---------------------------------------------------------------------------------------------------
    def _on_arrival(self, arrival: Arrival) -> None:
        message = arrival.message
        if isinstance(message, m.Increments):
            self.totals_dirty = True  # the ledger has the totals; this says when to look
        elif isinstance(message, Mail | Got | Missing):
            self.relay.take(arrival)
        else:
            self.desk.take(arrival)

    def is_worker(self, hello: m.Hello) -> bool:
        """Whether a peer is the worker it says: it holds the lane's lock."""
        return hello.worker is not None and lanes.is_holder(self.ledger, self.locks, hello.worker, hello.pid)

    def admit(self, worker: m.WorkerInfo, link: bytes) -> None:
        """A worker has said Hello; of one that the master before had, perhaps sooner than we look at the lanes."""
        commands = self.fleet.step(f.Hello(lanes.aged(self.ledger, worker), link), time.monotonic())
        admitted = self.fleet.by_process(worker.pid, worker.start)
        if admitted is not None and admitted.id == worker.id:
            self.peers.bind(link, worker.id)  # before a Drain is sent to it
        for command in commands:
            self._perform(command)

    def hear(self, id_: int, message: m.Message) -> None:
        """A worker has said something else."""
        self._step(of_worker(id_, message))

    def ask(self, question: f.Question) -> None:
        """Somebody has a question that changes something."""
        self._step(question)

    def stop(self, *, quick: bool) -> None:
        """By way of the launcher: it keeps the wish, and repeats it to the next master should this one die."""
        self.channel.send(m.Stop(quick, "stop was asked for on the bus"))

    def snapshot(self) -> m.Snapshot:
        """The whole cluster, now."""
        return fleet_snapshot(
            self.fleet,
            time.monotonic(),
            name=Path(self.boot.run_dir).parent.name,
            urls=self.boot.urls,
            launcher_pid=self.boot.launcher_pid,
            master_pid=os.getpid(),
            zygote_pid=self.zygotes.pid(self.fleet.generation),
            counters=self.ledger.totals(),
            heads=dict(self.hub.heads),
            dropped=dict(self.hub.dropped),
            received=dict(self.hub.received),
            recent=tuple(self.broadcast.recent),
            members=self.relay.members(*who_is_there(self.fleet)) if self.proceeding else None,
        )

    # ---- time ------------------------------------------------------------------------------------------------------
    def _periodic(self, now: float) -> None:
        if now >= self.tick_due:
            self.tick_due = now + (ORPHAN_TICK_S if self.launcher_gone else self.config.ledger_tick_s)
            self.ledger.master_tick_ns = time.monotonic_ns()
            self.relay.changed = True  # a worker that was asked for and never came is announced to nobody
            for id_ in vitals.vanished(self.fleet.living()):
                self._step(f.Vanished(id_))
            for kind in self.services.due(now) if self.proceeding else ():
                self.channel.send(m.StartService(kind))
            self.standing.tell(self.fleet, self.channel.send)
            if self.proceeding or self.launcher_gone:
                self._step(vitals.ticked(self.ledger, self.fleet.living(), self.config.hang_timeout_s))
        if now >= self.beat_due:
            self.beat_due = now + self.config.heartbeat_s
            self.totals_dirty = True  # an event may have been lost: the ledger is looked at once a heartbeat anyway
            self.hub.tick()
        if self.totals_dirty and now >= self.broadcast.due:
            self.totals_dirty = False
            self.broadcast.totals(self.ledger.totals(), now)

    # ---- doing what the fleet decides ------------------------------------------------------------------------------
    def _step(self, event: f.FleetEvent) -> None:
        for command in self.fleet.step(event, time.monotonic()):
            self._perform(command)

    def _perform(self, command: f.FleetCommand) -> None:
        match command:
            case f.StartZygote() | f.Commit() | f.KeepReload() | f.Running():
                self.channel.send(for_launcher(command))
            case f.SaveNextId(next_id=next_id):
                self.ledger.next_worker_id = next_id
            case f.Fork(worker=worker, env=env):
                if self.config.capture_output:
                    self.channel.send(m.Capture(worker.id))
                self.zygotes.send(worker.generation, m.Fork(worker, dict(env)))
            case f.EndZygote(generation=generation):
                self.channel.send(for_launcher(command))
                self.zygotes.hang_up(generation)
            case f.Resize():
                self.questions.resize(command)
            case f.Reply():
                link, answer, told = self.questions.answer(command)
                for message in told:
                    self.channel.send(message)
                if link:
                    self.hub.send(link, answer)
            case f.SendDrain(id=id_, deadline_s=deadline_s, quick=quick):
                self.hub.send(self.peers.link_of(id_), m.Drain(deadline_s, quick))
            case f.Refuse(link=link, reason=reason):
                self.hub.send(link, m.Refused(reason))
            case f.Terminate() | f.Dump() | f.Kill() | f.SendSignal() | f.DumpZygote() | f.KillZygote():
                self.ending.perform(command)
            case f.Reconnect(id=id_):
                for alive in self.fleet.living():
                    if alive.id == id_:
                        self.ledger.lane(alive.lane).reconnect += 1
            case f.Announce(kind=kind, worker=worker_, text=text):
                self._announce(kind, worker_, text)
            case f.Log(level=level, text=text):
                log.log(logging.getLevelName(level.upper()), "%s", text)
            case f.Finish():
                self.final = command
            case _:
                assert_never(command)

    def _announce(self, kind: str, worker: m.WorkerInfo | None, text: str) -> None:
        self.broadcast.event(kind, worker, text)
        self.relay.changed = True
        if kind == "exit" and worker is not None:
            self.peers.forget(worker.id)
            self.relay.exited(worker.id)
            self.ending.forget_worker(worker.id)
