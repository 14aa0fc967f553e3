"""What the fleet does to workers: ask for them, take them in, drain, condemn, kill and bury them.

Invariant: every act leaves the worker with a deadline, unless it is READY or SUSPECT (heartbeats judge those), and
says all that others must do about it as commands, in order, in `out`.
"""

from msgspec.structs import replace

from zcluster.core import fleet_events as f
from zcluster.core.fleet_base import KILL_AGAIN_S, START_STOP_S, Base, Stopping
from zcluster.core.fleet_deaths import (
    BOOT_FAILED,
    BOOT_TIMEOUT,
    DRAIN_TIMEOUT,
    RELOAD,
    Account,
    Death,
    verdict,
)  # fmt: skip
from zcluster.core.fleet_wear import TIMEOUT
from zcluster.core.fleet_worker import (
    ASKED,
    DRAINING,
    FORKED,
    HOLDS_SLOT,
    ONLINE,
    SERVING,
    STARTING,
    Worker,
    adopted_state,
    deadline_after,
)  # fmt: skip
from zcluster.core.fleet_zygote import READY as ZYGOTE_READY
from zcluster.core.fleet_zygote import SYNCING, Zygote
from zcluster.core.messages import WorkerInfo
from zcluster.core.policy import START_TRIES, Slot
from zcluster.errors import AppError, RestartLimitReached, SpawnError

NO_LANE_RETRY_S = 1.0
STOPPING_TEXT = "the cluster is stopping"


class Acts(Base):
    """The acts; `Fleet` adds what events mean."""

    # ---- birth -----------------------------------------------------------------------------------------------------
    def ask(self, slot: Slot, zygote: Zygote, now: float) -> bool:
        """Ask the zygote for a worker in this slot; false when there is no lane for it."""
        lane = self.roster.free_lane(now)
        if lane is None:  # the settings have fewer lanes than two for each slot, and each slot has one that drains
            slot.retry_at = now + NO_LANE_RETRY_S
            self.say(
                "error", f"no free lane of {self.settings.lanes} for slot {slot.index}: raise the number of lanes"
            )
            return False
        id_ = self.roster.new_id()
        info = WorkerInfo(id_, slot.index, lane, zygote.generation, state=ASKED, restarts=slot.forks)
        worker = Worker(info, now)
        worker.chance = self.random()
        worker.deadline = now + self.settings.boot_timeout_s
        self.roster.add(worker)
        self.out += [f.SaveNextId(self.roster.next_id), f.Fork(info, self.wanted.get(slot.index, {}))]
        return True

    def born(self, worker: Worker, info: WorkerInfo, now: float) -> None:
        """A worker that was asked for has a process."""
        self.roster.born(worker, info.pid, info.start)
        self.slot(worker.slot).forks += 1
        worker.started_at = worker.last_heard = now
        self.announce("fork", worker, now)

    def after_birth(self, worker: Worker, now: float) -> None:
        """Its death may have been told before its birth; and nobody starts any more when the cluster stops."""
        death = self.roster.deaths.get((worker.pid, worker.start))
        if death is not None:
            self.bury(worker, *death, now)
        elif self.stopping is not None:
            self.wind_down(worker, now)

    def why_not(self, info: WorkerInfo) -> str:
        """Why a worker that was not asked for by this fleet has no place in it; empty when it has."""
        if self.zygote_of(info.generation) is None:
            return f"generation {info.generation} is not wanted, {self.target} is"
        if info.slot not in self.wanted:
            return f"slot {info.slot} is closed"
        if self.stopping is None and not self.roster.is_free(info.slot):
            return f"slot {info.slot} is taken"
        return self.roster.objection(info)

    def take_in(self, info: WorkerInfo, state: str, now: float) -> Worker:
        """Make a worker nobody asked for (in this epoch) one of ours."""
        worker = Worker(info, now, state)
        worker.chance = self.random()
        worker.adopted = True
        worker.announced = state != FORKED
        worker.deadline = deadline_after(state, now, self.settings)
        if state == DRAINING or state in SERVING:
            worker.ready_at = worker.started_at
            self.ever_ready = True
        slot = self.slot(info.slot)
        slot.forks = max(slot.forks, info.restarts + 1)
        self.roster.add(worker)
        if info.id >= self.roster.next_id:
            self.roster.next_id = info.id + 1
            self.out.append(f.SaveNextId(self.roster.next_id))
        return worker

    def doubt(self, lane: int, now: float) -> None:
        """A process that is none of ours may hold this lane's lock for a while."""
        if 0 <= lane < self.settings.lanes:
            self.roster.doubtful[lane] = now + self.settings.boot_timeout_s

    def lose(self, worker: Worker, now: float) -> None:
        """It was asked for and will not come; should it exist after all it has its lane, hence that is kept back."""
        worker.move("lost")
        self.roster.remove(worker)
        self.doubt(worker.lane, now)

    # ---- end -------------------------------------------------------------------------------------------------------
    def disconnect(self, worker: Worker, now: float) -> None:
        """It takes no part any more; told once, before its exit, if its being online was told."""
        if worker.announced:
            worker.announced = False
            self.announce("disconnect", worker, now)

    def drain(self, worker: Worker, now: float, limit_s: float, *, quick: bool) -> None:
        """Tell a worker to finish and leave, or to be quicker about it."""
        worker.move("drain")
        worker.told_to_leave, worker.ailment = True, ""  # from now on nobody looks what ails it
        worker.deadline = now + limit_s
        self.out.append(f.SendDrain(worker.id, limit_s, quick))
        self.disconnect(worker, now)

    def stop_starting(self, worker: Worker, now: float, limit_s: float) -> None:
        """End a worker that serves nobody yet."""
        worker.move("drain")
        worker.stopped = True
        worker.deadline = now + limit_s
        self.out.append(f.Terminate(worker.id, worker.pid, worker.start))
        self.disconnect(worker, now)

    def drain_surplus(self, now: float) -> None:
        """Whoever has been replaced leaves, and whoever is in a slot that is not open."""
        slots: dict[int, list[Worker]] = {}
        for worker in self.roster:
            if worker.state in HOLDS_SLOT:
                slots.setdefault(worker.slot, []).append(worker)
        for slot, workers in slots.items():
            if slot in self.wanted and len(workers) == 1 and self.zygote_of(workers[0].generation) is not None:
                continue
            best, next_ = self._kept(workers) if slot in self.wanted else (None, None)
            for worker in workers:
                if worker is best or worker is next_:
                    continue
                if worker.state in SERVING:
                    if best is not None:
                        worker.replaced = RELOAD if best.generation != worker.generation else worker.worn
                    self.drain(worker, now, self.settings.graceful_timeout_s, quick=False)
                elif worker.state in (FORKED, ONLINE):
                    self.stop_starting(worker, now, START_STOP_S)

    def _kept(self, workers: list[Worker]) -> tuple[Worker | None, Worker | None]:
        """Of the workers of one slot: the one that serves, and the one that starts and is to take its place."""
        target, committed = self.target, self.generation
        serving = [worker for worker in workers if worker.state in SERVING]
        starting = [w for w in workers if w.state in STARTING and self.zygote_of(w.generation) is not None]
        best = max(serving, key=lambda w: (w.generation == target, w.generation == committed, w.id), default=None)
        next_ = max(starting, key=lambda w: (w.generation == target, w.id), default=None)
        if best is not None and next_ is not None:
            follows = next_.id > best.id if next_.generation == best.generation else next_.generation == target
            if not follows:
                next_ = None
        return best, next_

    def wind_down(self, worker: Worker, now: float) -> None:
        """The cluster stops: end this worker as its state allows. Repeating it only ever tightens the deadline."""
        assert self.stopping is not None
        left_s = max(0.0, self.stopping.deadline - now)
        start_left_s = min(left_s, START_STOP_S)
        if worker.state in (FORKED, ONLINE):
            self.stop_starting(worker, now, start_left_s)
        elif worker.state in SERVING:
            self.drain(worker, now, left_s, quick=self.stopping.quick)
        elif worker.killed_at is None and worker.deadline is not None:
            if worker.state == ASKED or worker.stopped:
                worker.deadline = min(worker.deadline, now + start_left_s)
            elif worker.state == DRAINING and now + left_s < worker.deadline:
                self.drain(worker, now, left_s, quick=self.stopping.quick)

    def condemn(self, worker: Worker, reason: str, text: str, now: float) -> None:
        """Give up a worker: have its stacks dumped, and kill it a moment later."""
        worker.move("overdue")
        worker.doomed = reason
        worker.deadline = now + self.settings.dump_grace_s
        self.say("error", f"{worker.label} {text}; its stacks are dumped, then it is killed")
        self.announce("error", worker, now, text)
        self.out.append(f.Dump(worker.id, worker.pid, worker.start))

    def kill(self, worker: Worker, now: float) -> None:
        """SIGKILL, again and again until its death is told."""
        if worker.killed_at is None:
            worker.killed_at = now
        else:
            self.say("error", f"{worker.label} is not dead {now - worker.killed_at:.1f} s after SIGKILL; sent again")
        worker.deadline = now + KILL_AGAIN_S
        self.out.append(f.Kill(worker.id, worker.pid, worker.start, worker.doomed))

    def overdue(self, worker: Worker, now: float) -> None:
        """Its deadline has passed."""
        if worker.state == ASKED:
            self.lose(worker, now)
            self.say("error", f"no worker came for slot {worker.slot}: the zygote did not answer")
            zygote = self.zygote_of(worker.generation)
            if self.stopping is None and zygote is not None:
                self.out += zygote.give_up("it did not fork in time", now)
        elif worker.state in (FORKED, ONLINE):
            text = f"was not ready {now - worker.started_at:.1f} s after its start"
            self.condemn(worker, BOOT_TIMEOUT, text, now)
        else:
            worker.doomed = worker.doomed or (TIMEOUT if worker.replaced == TIMEOUT else DRAIN_TIMEOUT)
            self.kill(worker, now)

    def bury(self, worker: Worker, code: int | None, signal: int | None, now: float) -> None:
        """It is dead: tell everybody, and decide what follows."""
        death = verdict(worker, code, signal)
        orderly = worker.state == DRAINING
        worker.move("died")
        self.roster.remove(worker)
        self.disconnect(worker, now)
        info = replace(
            worker.info(now), exitcode=code, signal=signal, reason=death.reason, exited_after_disconnect=orderly
        )
        self.out.append(f.Announce("exit", info, death.text))
        what = self._consequence(worker, death, now)
        self._blame_candidate(worker, death, now)  # after: whether its slot loops is known by now
        level = "info" if death.account is Account.LEFT else "warning"
        self.say(level, f"Worker {worker.pid} died. {death.text}; {what}")

    def recall(self, departed: tuple[WorkerInfo, ...], now: float) -> None:
        """Take note of the last owners of lanes that nobody holds, and bury those whose death was kept for us."""
        for info in departed:
            slot = self.slot(info.slot)
            slot.forks = max(slot.forks, info.restarts + 1)
            self.roster.departed[info.pid, info.start] = info
            if (info.pid, info.start) in self.roster.deaths:
                self.bury_departed((info.pid, info.start), now)

    def bury_departed(self, process: tuple[int, int], now: float) -> None:
        """A death that no master was there to hear: the ledger still says who it was."""
        info = self.roster.departed.pop(process, None)
        if info is not None:
            self.bury(self.take_in(info, adopted_state(info.state), now), *self.roster.deaths[process], now)

    def _blame_candidate(self, worker: Worker, death: Death, now: float) -> None:
        """A worker that never became ready, or workers that crash again and again, condemn a new generation."""
        reloading = self.reloading
        if reloading is None or worker.generation != self.target:
            return
        if reloading.failure:
            if death.account is Account.FAILED_START and reloading.deadline is not None:
                reloading.deadline = now  # the old code does not start any more, and cannot be waited for
            return
        if worker.ready_at is None and not worker.stopped and death.account is not Account.LANE_TAKEN:
            reloading.failure = worker.boot_text or f"a worker ended before it was ready: {death.text}"
        elif death.account is Account.CRASH and self.slot(worker.slot).looping:
            reloading.failure = f"its workers die again and again; the last one: {death.text}"

    def _consequence(self, worker: Worker, death: Death, now: float) -> str:
        """Put the death on its slot's account; returns what is done about it."""
        slot = self.slot(worker.slot)
        if self.stopping is not None:
            return "not replaced: the cluster is stopping"
        if death.account is Account.FAILED_START and worker.generation != self.generation:
            return f"generation {worker.generation} is given up"  # the reload's failure, not the slot's
        if death.account is Account.CRASH:
            slot.crashed_ready(now, now - worker.started_at)
        elif death.account is Account.LANE_TAKEN:
            self.roster.foreign.add(worker.lane)
            slot.lane_taken(now)
        elif death.account is Account.FAILED_START:
            slot.boot_failed = slot.boot_failed or death.reason == BOOT_FAILED
            slot.failed(now)
        if death.account in (Account.CRASH, Account.FAILED_START):
            self.crashes += 1
        self._give_up_if_hopeless(slot, death, now)
        if self.stopping is not None:
            return "not replaced: giving up"
        if worker.slot not in self.wanted:
            return f"not replaced: slot {worker.slot} is closed"
        if not self.roster.is_free(worker.slot):
            return f"slot {worker.slot} has its replacement already"
        if self.zygote_for(worker.slot).state != ZYGOTE_READY:
            return f"replacing it in slot {worker.slot} as soon as there is a zygote"
        if slot.retry_at > now:
            return f"next attempt in {slot.retry_at - now:.1f} s"
        return f"replacing it in slot {worker.slot} now"

    def _give_up_if_hopeless(self, slot: Slot, death: Death, now: float) -> None:
        limit = self.settings.restart_limit
        if limit and self.crashes > limit:
            text = f"{self.crashes} workers have died, more than the restart limit of {limit}"
            self.fail(RestartLimitReached.exit_code, text, now)
        elif not self.ever_ready:
            everywhere = all(self.slot(index).boot_failed for index in self.wanted)
            if (everywhere and self.wanted) or slot.failures >= START_TRIES:
                text = self.boot_text or f"no worker became ready; the last one ended with {death.text}"
                self.fail(AppError.exit_code, text, now)

    def fork_failed(self, worker: Worker, text: str, now: float) -> None:
        """The machine has no process for it."""
        self.lose(worker, now)
        del self.roster.doubtful[worker.lane]  # there is no fork
        if self.stopping is not None:
            return
        slot = self.slot(worker.slot)
        wait_s = slot.failed(now)
        reloading = self.reloading
        if reloading is not None and worker.generation == reloading.zygote.generation:
            reloading.failed_forks += 1
            if reloading.failed_forks >= START_TRIES:
                reloading.failure = reloading.failure or f"its workers cannot be forked: {text}"
        self.say("error", f"no worker for slot {slot.index}: {text}; next attempt in {wait_s:.1f} s")
        if not self.ever_ready and slot.failures >= START_TRIES:
            self.fail(SpawnError.exit_code, f"cannot fork workers: {text}", now)

    def fail(self, code: int, text: str, now: float) -> None:
        """There is no point in going on: stop everything, then finish with this code."""
        if self.stopping is None:
            self.begin_stop(self.settings.graceful_timeout_s, code, text, now, quick=False)

    def begin_stop(self, limit_s: float, code: int, text: str, now: float, *, quick: bool) -> None:
        """Stop, or (when that has begun) be quicker about it; the first reason gives the exit code."""
        if self.stopping is None:
            self.stopping = Stopping(now, now + limit_s, quick, code, text)
        elif now + limit_s < self.stopping.deadline:
            self.stopping.deadline = now + limit_s
            self.stopping.quick = self.stopping.quick or quick
        else:
            return
        for worker in self.roster:
            self.wind_down(worker, now)
        self.refuse_questions()

    def refuse_questions(self) -> None:
        """The cluster stops: nobody's wish is fulfilled any more, and whoever waits for an answer gets this one."""
        reloading, self.reloading = self.reloading, None
        waiting = [question.asker for question in self.early]
        for askers in (reloading.askers if reloading is not None else {}, self.queued):
            waiting += [asker for those in askers.values() for asker in those]
        waiting += [asker for restarting in self.restarting.values() for asker in restarting.askers]
        self.queued, self.early, self.restarting = {}, [], {}
        self.out += [f.Reply(asker, STOPPING_TEXT) for asker in waiting]

    def finish_if_over(self, now: float) -> None:
        """Finish when nobody is left, or only those that cannot be ended."""
        assert self.stopping is not None
        if not self.started or (self.zygote.state == SYNCING and now < self.stopping.since + START_STOP_S):
            return  # there may be workers we do not know of yet
        if now < self.end_of_patience():
            return
        names = ", ".join(worker.label for worker in self.roster)
        if names:
            self.say("error", f"left behind, because SIGKILL did not end them: {names}")
        self.finished = True
        self.out.append(f.Finish(self.stopping.code, self.stopping.text))
