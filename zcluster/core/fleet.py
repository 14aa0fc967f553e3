"""The supervisor's mind: events in, commands out. It decides; the master performs.

Invariant: at any time each slot either has a worker (or one is asked for), or waits for a known reason with a known
end: a pause after crashes, a zygote that is being started, a worker being killed, or the stop of the cluster.

Theory of operation
-------------------
`Fleet.step(event, now)` changes the state by the tables (TRANSITIONS for each worker, ZYGOTE_TRANSITIONS), then
*settles*: slots without a worker are filled, a zygote that is missing is asked for, a stop that is complete finishes.
So nothing has to remember that something is still to be done: the replacement after a crash, after a voluntary leave,
after a lost fork and after a restart of the master is the same line of code.

Deadlines are judged on `Ticked` only, and a master that did not run says so with `Lagged` before it.

What may come twice, late, or in another order than it happened (they are told on different sockets): Forked, Hello
and Died of one worker; anything of a worker that is dead already; everything, after a restart of the master.
"""

from collections.abc import Mapping

from zcluster.core import fleet_events as f
from zcluster.core.fleet_acts import STOPPING_TEXT
from zcluster.core.fleet_base import VANISHED_S
from zcluster.core.fleet_judge import Judges
from zcluster.core.fleet_wear import TIMEOUT, story, wear
from zcluster.core.fleet_worker import (
    ASKED,
    DRAINING,
    FORKED,
    ONLINE,
    READY,
    SERVING,
    SUSPECT,
    IllegalTrigger,
    Worker,
    adopted_state,
    unheard,
)  # fmt: skip
from zcluster.core.fleet_zygote import READY as ZYGOTE_READY
from zcluster.core.messages import WorkerInfo
from zcluster.errors import RestartLimitReached

EARLY_MAX = 1000  # questions before Started, which comes within milliseconds
LEFT_BEHIND_CODE = 70  # the launcher died: nobody asked for this end, so it is none of the orderly codes


class Fleet(Judges):
    """All workers of one cluster, as one state machine. Not thread-safe; the master has one thread.

    `random` gives numbers from 0 up to 1. With `strict` an event that cannot happen raises IllegalTrigger (tests);
    otherwise it is logged and ignored: the rest of the cluster is worth more than one wrong message.
    """

    # ---- the machine -----------------------------------------------------------------------------------------------
    def step(self, event: f.FleetEvent, now: float) -> list[f.FleetCommand]:
        """Take one event at the time `now` (seconds, any monotonic clock); returns what to do, in order."""
        self.stepped = True
        if self.finished:
            return []
        self.out = []
        try:
            self._take(event, now)
        except IllegalTrigger as error:
            if self.strict:
                raise
            self.say("error", f"ignored {type(event).__name__}: {error} (please report this)")
        if self.out or not isinstance(event, f.Heard):  # heartbeats are many and settle nothing
            self._settle(now)
        return self.out

    def check(self) -> None:
        """Raise AssertionError when an invariant does not hold."""
        self.roster.check()
        for worker in self.roster:
            assert (worker.deadline is None) == (worker.state in SERVING), (
                f"{worker.label} is {worker.state} for ever"
            )

    def _take(self, event: f.FleetEvent, now: float) -> None:
        match event:
            case f.Ticked(ledger, processes):
                self._ticked(ledger, processes, now)
            case f.Scale() | f.Open() | f.Close() | f.Reload() | f.Restart() | f.Signal():
                self._question(event, now)
            case f.Unfinished(tokens) if self.started:
                for token in tokens if self.stopping is None else ():
                    self.ask_reload(None, token)
            case f.Reconfigured(generation, settings):
                self.reconfigure(generation, settings)
            case f.Sized() | f.Committed() | f.Unfinished():
                self.recall_decision(event)
            case f.Started():
                self._started(event, now)
            case f.ZygoteUp(generation):
                self.zygote_up(generation, now)
            case f.Imported(generation, unsafe):
                self.imported(generation, unsafe, now)
            case f.ImportFailed(generation, text):
                self.import_failed(generation, text, now)
            case f.ZygoteDied():
                self.zygote_died(event, now)
            case f.Synced(forks, imported):
                self.zygote.synced(imported, now)
                for info in forks:
                    self._forked(info, now)
            case f.Forked(info):
                self._forked(info, now)
            case f.Hello(info, link):
                self._hello(info, link, now)
            case f.Died(pid, start, code, signal):
                self._died(pid, start, code, signal, now)
            case f.Lagged(seconds):
                self._lagged(seconds, now)
            case f.Stop(delayed=True):
                self.is_leaving = True
            case f.Stop(quick, why):
                self._stop(why, now, quick=quick)
            case f.LauncherGone():
                self._launcher_gone(now)
            case _:
                worker = self.roster.workers.get(event.id)
                if worker is not None:  # else late words of the dead
                    self._take_of(worker, event, now)

    def _take_of(
        self,
        worker: Worker,
        event: f.ForkFailed | f.Ready | f.Heard | f.Leaving | f.BootFailed | f.LaneTaken | f.Vanished,
        now: float,
    ) -> None:
        """Events of one worker that is not dead."""
        match event:
            case f.Heard(_, beat):
                self._alive(worker, "heard", now)
                if beat is not None:
                    worker.beat = beat
                    self._reconcile(worker, beat.state, now)
            case f.Ready():
                self._ready(worker, now)
            case f.Leaving(_, reason):
                self._leaving(worker, reason, now)
            case f.BootFailed(_, text):
                if (self.ran or self.has_adopted) and text != self.boot_text and worker.generation == self.generation:
                    self.say("error", f"{worker.label} could not start: {text}")
                self.boot_text = worker.boot_text = text
            case f.LaneTaken():
                worker.lane_taken = True
            case f.ForkFailed(_, text):
                self.fork_failed(worker, text, now)
            case f.Vanished() if worker.pid:
                worker.gone_at = now if worker.gone_at is None else worker.gone_at
                if self.launcher_gone:
                    self._died(worker.pid, worker.start, None, None, now)

    def _settle(self, now: float) -> None:
        """Do what is still to be done, whatever the event was."""
        if self.stopping is not None:
            self.finish_if_over(now)
        elif self.started:
            self.turn_back_if_due(now)
            self.drain_surplus(now)
            for index in self.roster.vacant(self.wanted):
                slot, zygote = self.slot(index), self.zygote_for(index)
                if slot.retry_at <= now and zygote.state == ZYGOTE_READY:
                    self.ask(slot, zygote, now)
            self.roll(now)
            self.conclude_reload(now)
            self.conclude_restarts()
            for zygote in self.zygotes():
                self.out += zygote.ask_if_due(now)
            ready = {worker.slot for worker in self.roster if worker.state == READY}
            if not self.ran and ready.issuperset(self.wanted):
                self.ran = True
                self.out += [f.Running(len(self.wanted)), f.Announce("running")]
            self.note_lacks()
        self.check()

    def _question(self, question: f.Question, now: float) -> None:
        """Whoever asks is answered: now, or (a reload) when it has ended."""
        if self.stopping is not None or self.is_leaving:
            self.out.append(f.Reply(question.asker, STOPPING_TEXT))
        elif not self.started:
            if len(self.early) >= EARLY_MAX:
                self.out.append(f.Reply(question.asker, "the master is just starting; ask again"))
            else:
                self.early.append(question)
        else:
            match question:
                case f.Scale():
                    self.scale(question, now)
                case f.Open():
                    self.open(question, now)
                case f.Close():
                    self.close(question, now)
                case f.Reload(asker, token):
                    self.ask_reload(asker, token)
                case f.Restart():
                    self.restart(question, now)
                case _:
                    self.signal(question)

    # ---- the master's start ----------------------------------------------------------------------------------------
    def _started(self, event: f.Started, now: float) -> None:
        if self.zygote.started:
            raise IllegalTrigger("a master starts once")
        self.started = True
        self.lags.since, self.has_adopted = now, bool(event.adopted)
        self.roster.foreign |= event.foreign_lanes
        for info in sorted(event.adopted, key=lambda info: info.id):
            objection = self.roster.objection(info)
            if objection:
                self.roster.foreign.add(info.lane)
                self.say("error", f"process {info.pid} in lane {info.lane} is not adopted: {objection}")
            else:
                self.take_in(info, adopted_state(info.state), now)
        generation = self.zygote.generation
        seen = [info.generation for info in (*event.adopted, *event.departed)]
        self.highest = max(generation, *seen, *event.zygotes, self.highest)
        self.zygote.start(generation, generation in event.zygotes, now)
        for other in event.zygotes:
            if other != generation:
                self.out.append(f.EndZygote(other))  # a candidate of the master before: the reload is begun again
        self.recall(event.departed, now)
        self.drain_surplus(now)
        if self.stopping is not None:
            for worker in self.roster:
                self.wind_down(worker, now)
        early, self.early = self.early, []
        for question in early:
            self._question(question, now)

    # ---- workers ---------------------------------------------------------------------------------------------------
    def _vet(self, info: WorkerInfo) -> None:
        """A worker has a process of its own: signals are sent to what is written here, and 0 would be ourselves."""
        other = self.by_process(info.pid, info.start)
        if info.pid < 1 or (other is not None and other.id != info.id):
            raise IllegalTrigger(f"worker id {info.id} cannot be process {info.pid}")

    def _forked(self, info: WorkerInfo, now: float) -> None:
        self._vet(info)
        worker = self.roster.workers.get(info.id)
        if worker is None or worker.pid not in (0, info.pid):
            self._unexpected_fork(info, now)
            return
        was = worker.state
        worker.move("forked")
        if was == ASKED:
            self.born(worker, info, now)
            self.after_birth(worker, now)

    def _unexpected_fork(self, info: WorkerInfo, now: float) -> None:
        """A fork that was given up, or that the master before asked for."""
        if (info.pid, info.start) in self.roster.deaths:
            return
        objection = self.why_not(info)
        if objection:
            self.doubt(info.lane, now)
            self.say("warning", f"worker {info.pid} was forked, but {objection}: it is ended")
            self.out.append(f.Terminate(info.id, info.pid, info.start))
            return
        worker = self.take_in(info, FORKED, now)
        self.announce("fork", worker, now)
        self.after_birth(worker, now)

    def _hello(self, info: WorkerInfo, link: bytes, now: float) -> None:
        self._vet(info)
        worker = self.roster.workers.get(info.id)
        if worker is None:
            self._strangers_hello(info, link, now)
            return
        if worker.pid not in (0, info.pid):
            self.out.append(f.Refuse(info.id, link, f"worker id {info.id} is process {worker.pid}"))
            return
        was = worker.state
        self._alive(worker, "hello", now)
        if was == ASKED:
            self.born(worker, info, now)
        if was in (ASKED, FORKED) and worker.state == ONLINE:
            worker.announced = True
            self.announce("online", worker, now)
            self.after_birth(worker, now)
        elif worker.state == DRAINING and worker.told_to_leave and worker.deadline is not None:
            self._drain_again(worker, worker.deadline - now)  # it may have been sent to a link that is no more

    def _strangers_hello(self, info: WorkerInfo, link: bytes, now: float) -> None:
        if (info.pid, info.start) in self.roster.deaths:
            return
        reason = "the cluster is stopping" if self.stopping is not None else self.why_not(info)
        if reason:
            self.doubt(info.lane, now)
            self.say("warning", f"worker {info.pid} (id {info.id}) is refused: {reason}")
            self.out.append(f.Refuse(info.id, link, reason))
            return
        worker = self.take_in(info, ONLINE, now)
        self.announce("fork", worker, now)
        self.announce("online", worker, now)

    def _alive(self, worker: Worker, trigger: str, now: float) -> None:
        """A sign of life came over the bus."""
        was = worker.state
        worker.move(trigger)
        if was == SUSPECT:
            self.say("info", f"{worker.label} is heard again after {now - worker.last_heard:.1f} s")
        worker.last_heard = now

    def _ready(self, worker: Worker, now: float) -> None:
        was = worker.state
        self._alive(worker, "ready", now)
        if was == ONLINE:
            worker.ready_at, worker.deadline = now, None
            self.slot(worker.slot).ready()
            self.ever_ready = True
            self.boot_text = ""
            self.mark_rolled(worker)
            self.announce("listening", worker, now)

    def _reconcile(self, worker: Worker, says: str, now: float) -> None:
        """Make good what was lost on the way to us, or to the worker."""
        match unheard(worker, says):
            case "ready":
                self._ready(worker, now)
            case "leaving":
                self._leaving(worker, "its reason was lost", now)
            case "drain" if worker.deadline is not None and worker.killed_at is None:
                self._drain_again(worker, worker.deadline - now)

    def _drain_again(self, worker: Worker, left_s: float) -> None:
        quick = self.stopping is not None and self.stopping.quick
        self.out.append(f.SendDrain(worker.id, max(0.0, left_s), quick))

    def _leaving(self, worker: Worker, reason: str, now: float) -> None:
        was = worker.state
        self._alive(worker, "leaving", now)
        if worker.state != DRAINING or was == DRAINING:
            return
        worker.leaving = reason
        worker.deadline = now + self.settings.graceful_timeout_s
        slot = self.slot(worker.slot)
        if worker.ready_at is None:
            slot.failed(now)  # no crash; but leaving before READY, over and over, is as fruitless
        else:
            slot.left(now)
        self.say("info", f"{worker.label} leaves voluntarily ({reason})")
        self.disconnect(worker, now)

    def _died(self, pid: int, start: int, code: int | None, signal: int | None, now: float) -> None:
        worker = self.roster.processes.get((pid, start))
        self.roster.died(pid, start, code, signal)
        if worker is not None:
            self.bury(worker, code, signal, now)
        else:
            self.bury_departed((pid, start), now)

    # ---- time ------------------------------------------------------------------------------------------------------
    def _ticked(self, ledger: Mapping[int, f.LaneAges], processes: Mapping[int, f.ProcessFacts], now: float) -> None:
        self.expire_zygotes(now)
        for worker in self.roster:
            if worker.gone_at is not None and now >= worker.gone_at + VANISHED_S:
                self._died(worker.pid, worker.start, None, None, now)
            elif worker.deadline is not None:
                if now >= worker.deadline:
                    self.overdue(worker, now)
            else:
                self.judge_health(worker, ledger.get(worker.id), processes.get(worker.id), now)
                if worker.state == READY and not worker.worn:
                    worker.worn = wear(worker, self.settings, now)
                    if worker.worn:
                        self.say("warning" if worker.worn == TIMEOUT else "info", story(worker))

    def _lagged(self, seconds: float, now: float) -> None:
        if seconds <= 0:
            return
        self.lags.add(now, seconds)
        for worker in self.roster:
            worker.postpone(seconds)
        for zygote in self.zygotes():
            if zygote.deadline is not None:
                zygote.deadline += seconds
        if self.reloading is not None and self.reloading.deadline is not None:
            self.reloading.deadline += seconds
        if self.stopping is not None:
            self.stopping.deadline += seconds

    # ---- the end ---------------------------------------------------------------------------------------------------
    def _stop(self, why: str, now: float, *, quick: bool) -> None:
        limit_s = self.settings.quick_timeout_s if quick else self.settings.graceful_timeout_s
        degraded = self.is_degraded()
        code = RestartLimitReached.exit_code if degraded else 0
        text = "stopped while not all workers could be kept running" if degraded else why
        self.begin_stop(limit_s, code, text, now, quick=quick)

    def _launcher_gone(self, now: float) -> None:
        self.launcher_gone = self.started = True
        for worker in self.roster:
            if worker.gone_at is not None:
                self._died(worker.pid, worker.start, None, None, now)
        self.begin_stop(self.settings.orphan_timeout_s, LEFT_BEHIND_CODE, "the launcher is gone", now, quick=True)
