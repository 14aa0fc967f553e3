"""Generations of code: the zygote that serves, the candidate that is introduced, and the way back.

Invariant: a reload ends with all workers of the new generation, or of the old one; an open slot loses no worker that
serves before another one is READY in it.

Theory of operation
-------------------
A reload makes a second zygote, the candidate, of a generation that never was. While nothing speaks against it, its
generation is the *target*, else the committed one is. A worker of another generation than the target is outdated.
Whenever the fleet settles and no slot is being rolled, the lowest slot whose only worker is outdated gets a second
one, of the target; when that is READY the first one leaves (`drain_surplus`), and the next slot has its turn. So the
way there, the way back, and a cluster that a new master finds half-way are one rule.

    begin -> the candidate imports -> slot by slot -> all READY: commit; the old zygote leaves
                  | it cannot, or a worker of it does not become READY
                  `-> the target is the old generation again -> slot by slot -> the end, with an error

A slot without a worker is filled by the zygote it belongs to: the candidate's if it was rolled already. One that
waits in a pause after crashes is rolled at once: the new code may be the cure.

One reload at a time. Who asks meanwhile shares the next one: it begins when this one has ended, so its import sees
what was on disk when they asked.
"""

from zcluster.core import fleet_events as f
from zcluster.core.fleet_acts import NO_LANE_RETRY_S
from zcluster.core.fleet_base import Reloading
from zcluster.core.fleet_deaths import status_text
from zcluster.core.fleet_roster import PER_SLOT_MAX
from zcluster.core.fleet_settings import FleetSettings
from zcluster.core.fleet_size import Sizes
from zcluster.core.fleet_worker import ASKED, HOLDS_SLOT, HUNG, READY, STARTING, IllegalTrigger, Worker
from zcluster.core.fleet_zygote import ABSENT, Zygote
from zcluster.core.fleet_zygote import ASKED as ZYGOTE_ASKED
from zcluster.core.fleet_zygote import READY as ZYGOTE_READY
from zcluster.core.policy import START_TRIES
from zcluster.errors import AppError, SpawnError

TOKENS_MAX = 256  # they travel to the launcher in one message; nobody reloads that often in the time one takes


class Reloads(Sizes):
    """What happens to zygotes, and reloads."""

    # ---- zygotes ---------------------------------------------------------------------------------------------------
    def zygote_up(self, generation: int, now: float) -> None:
        """The launcher has started one, or tells of it again."""
        self.highest = max(self.highest, generation)
        zygote = self.zygote_of(generation)
        if zygote is None:
            self.out.append(f.EndZygote(generation))
        else:
            zygote.move("up", generation, now)

    def imported(self, generation: int, unsafe: tuple[str, ...], now: float) -> None:
        """A zygote can fork."""
        zygote = self.zygote_of(generation)
        if zygote is not None and zygote.move("imported", generation, now) and unsafe:
            what = ", ".join(unsafe)
            self.say("warning", f"the application is not preloaded, each worker imports it: it left {what}")

    def import_failed(self, generation: int, text: str, now: float) -> None:
        """A zygote cannot load the application, and leaves."""
        zygote = self.zygote_of(generation)
        if zygote is None or not zygote.move("failed", generation, now):
            return
        if self.reloading is not None and zygote is self.reloading.zygote:
            self.reloading.failure = text
            return
        if not self.ever_ready:
            self.fail(AppError.exit_code, text, now)
            return
        zygote.broken = True
        self.say("error", f"the application cannot be imported any more; the running workers go on serving:\n{text}")
        self.out.append(f.Announce("error", None, text))

    def zygote_died(self, event: f.ZygoteDied, now: float) -> None:
        """A zygote has ended; what it was asked for will not come."""
        generation = event.generation
        zygote = self.zygote_of(generation)
        if zygote is None:
            return
        was, status = zygote.state, zygote.obituary(event.why or status_text(event.code, event.signal))
        if not zygote.move("died", generation, now):
            return
        self._lose_asked(generation, now)
        if self.reloading is not None and zygote is self.reloading.zygote:
            self.reloading.failure = event.why or f"the process that imports the application ended: {status}"
            return
        if self.stopping is not None:
            return
        wait_s = zygote.retry_at - now
        when = f"in {wait_s:.1f} s" if wait_s > 0 else "now"
        self.say("warning", f"the zygote of generation {generation} died. {status}; starting another {when}")
        if not self.ever_ready and zygote.failures >= START_TRIES:
            code = SpawnError.exit_code if was == ZYGOTE_ASKED else AppError.exit_code
            self.fail(code, f"the process that imports the application ended {START_TRIES} times: {status}", now)

    def _lose_asked(self, generation: int, now: float) -> None:
        """Not their slots' fault: asked for again as soon as there is a zygote."""
        for worker in self.roster:
            if worker.state == ASKED and worker.generation == generation:
                self.lose(worker, now)

    def expire_zygotes(self, now: float) -> None:
        """Give up those that did not do in time what they had to."""
        for zygote in self.zygotes():
            self.out += zygote.expire(now)

    def recall_decision(self, event: f.Sized | f.Committed | f.Unfinished) -> None:
        """What the launcher has kept of the master before."""
        if self.started:
            raise IllegalTrigger(f"{type(event).__name__} comes before Started")
        match event:
            case f.Sized(slots, env):
                self.sized(slots, env)
            case f.Committed(generation):
                self.zygote.generation = generation
            case f.Unfinished(tokens) if self.stopping is None:
                self.queued = {token: [] for token in tokens}

    # ---- reloads ---------------------------------------------------------------------------------------------------
    def ask_reload(self, asker: f.Asker | None, token: str) -> None:
        """Somebody wants the code that is on disk now; a token that is known is no second wish.

        Without an asker it is the operator by way of the launcher, who is answered in the log.
        """
        reloading = self.reloading
        if reloading is not None and token in reloading.askers:
            waiting = reloading.askers[token]
        elif token not in self.queued and len(self.queued) >= TOKENS_MAX:
            if asker is not None:  # else the next reload is what was wanted: it begins later than now
                self.out.append(f.Reply(asker, f"{TOKENS_MAX} reloads are asked for already; wait for one to end"))
            return
        else:
            is_new = token not in self.queued
            waiting = self.queued.setdefault(token, [])
            self._keep_reload()
            if is_new and reloading is not None:
                self.say("info", f"the next reload begins when this one has ended; asked for by {len(self.queued)}")
        if asker is not None and asker not in waiting:
            waiting.append(asker)

    def reconfigure(self, generation: int, settings: FleetSettings) -> None:
        """The candidate's settings hold while it is introduced: its code may be what needs a longer timeout."""
        reloading = self.reloading
        if reloading is not None and not reloading.failure and reloading.zygote.generation == generation:
            reloading.before = reloading.before or self.settings
            self._use(settings)

    def _use(self, settings: FleetSettings) -> None:
        self.settings = settings
        for zygote in self.zygotes():
            zygote.settings = settings
        for slot in self._slots.values():
            slot.settings = settings

    def _keep_reload(self) -> None:
        current = self.reloading.askers if self.reloading is not None else {}
        self.out.append(f.KeepReload((*current, *self.queued)))

    def turn_back_if_due(self, now: float) -> None:
        """Something spoke against the candidate; before the slots are looked at."""
        reloading = self.reloading
        if reloading is not None and not reloading.failure and reloading.zygote.failures:
            reloading.failure = "the process that imports the application could not be started"
        if reloading is not None and reloading.failure and reloading.deadline is None:
            self._turn_back(reloading, now)

    def conclude_reload(self, now: float) -> None:
        """End one, begin the next one, when it is time for that; after the slots were looked at."""
        reloading = self.reloading
        if reloading is not None and reloading.failure and reloading.deadline is not None:
            left = sorted({worker.slot for worker in self.outdated()})
            if not left or now >= reloading.deadline:
                self._fail_reload(reloading, left)
        elif reloading is not None and not reloading.failure and self._is_introduced(reloading.zygote):
            self._commit(reloading, now)
        if self.reloading is None and self.queued:
            self._begin(now)

    def _begin(self, now: float) -> None:
        self.highest += 1
        zygote = Zygote(self.settings, self.random)
        zygote.start(self.highest, False, now)
        self.reloading, self.queued = Reloading(zygote, self.queued), {}
        self.say("info", f"reloading: generation {self.highest} is imported beside generation {self.generation}")

    def _is_introduced(self, candidate: Zygote) -> bool:
        ready = {w.slot for w in self.roster if w.state == READY and w.generation == candidate.generation}
        return candidate.state == ZYGOTE_READY and ready.issuperset(self.wanted)

    def _commit(self, reloading: Reloading, now: float) -> None:
        old, self.zygote, self.reloading = self.zygote, reloading.zygote, None
        self._lose_asked(old.generation, now)
        for index in self.wanted:
            self.slot(index).healthy()  # the crashes were those of the old code
        self.out += [f.Commit(self.generation), f.KeepReload(tuple(self.queued))]
        if old.state != ABSENT:
            self.out.append(f.EndZygote(old.generation))
        self.out.append(f.Announce("reload"))
        self.say("info", f"reloaded: generation {self.generation} serves")
        self._reply(reloading, "", {"generation": self.generation})

    def _turn_back(self, reloading: Reloading, now: float) -> None:
        """All are to be of the committed generation again."""
        zygote = reloading.zygote
        self._lose_asked(zygote.generation, now)
        if zygote.state != ABSENT:
            self.out.append(f.EndZygote(zygote.generation))
        if reloading.before is not None:
            self._use(reloading.before)
        # Each slot on the way back has its own deadlines; this bounds them all, should the old zygote be gone.
        reloading.deadline = now + self.settings.boot_timeout_s * (1 + len(reloading.rolled))
        self.say("error", self._failure(reloading))

    def _failure(self, reloading: Reloading) -> str:
        new, old = reloading.zygote.generation, self.generation
        return f"generation {new} is not taken, generation {old} goes on serving: {reloading.failure}"

    def _fail_reload(self, reloading: Reloading, left: list[int]) -> None:
        self.reloading = None
        text = self._failure(reloading)
        if left:
            text += f"\nSlots that still have a worker of another generation: {', '.join(map(str, left))}"
        self.out += [f.KeepReload(tuple(self.queued)), f.Announce("error", None, text)]
        self._reply(reloading, text, {})

    def _reply(self, reloading: Reloading, error: str, body: dict[str, int]) -> None:
        for askers in reloading.askers.values():
            self.out += [f.Reply(asker, error, body) for asker in askers]

    # ---- slot by slot ----------------------------------------------------------------------------------------------
    def mark_rolled(self, worker: Worker) -> None:
        """A worker is READY; if it is the candidate's, so is its slot from now on."""
        candidate = self.candidate
        if candidate is not None and worker.generation == candidate.generation and self.reloading is not None:
            self.reloading.rolled.add(worker.slot)

    def roll(self, now: float) -> None:
        """Ask for the worker that is to take the place of an outdated one, or to end a pause."""
        zygote = self.candidate or self.zygote
        if zygote.state != ZYGOTE_READY or (zygote is self.zygote and not (self.outdated() or self.is_any_worn())):
            return
        reloading = self.reloading
        there: dict[int, list[Worker]] = {index: [] for index in self.wanted}
        for worker in self.roster:
            if worker.slot in there:
                there[worker.slot].append(worker)
                beside = sum(w.state in HOLDS_SLOT for w in there[worker.slot]) > 1 or zygote is not self.zygote
                # HUNG: that it does not start speaks against the candidate, which is said when it is dead.
                is_pending = worker.state in STARTING or worker.state == HUNG
                if is_pending and worker.generation == zygote.generation and beside:
                    return  # one at a time
        for index, workers in there.items():
            slot = self.slot(index)
            if len(workers) >= PER_SLOT_MAX:
                continue
            if not workers:
                if reloading is None or reloading.failure or index in reloading.rolled or now < reloading.retry_at:
                    continue  # it is filled, or waits, as ever
                reloading.rolled.add(index)
                slot.retry_at = now
            elif (
                workers[0].state != READY
                or now < slot.retry_at
                or (workers[0].generation == zygote.generation and not workers[0].worn)
            ):
                continue
            if not self.ask(slot, zygote, now) and reloading is not None:
                reloading.retry_at = now + NO_LANE_RETRY_S
            return
