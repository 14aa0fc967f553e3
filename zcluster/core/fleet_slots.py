"""What an operator has done to one slot: its worker replaced, or sent a signal.

Invariant: whoever asked for a restart is answered once, when another worker is READY in the slot, or when it is known
why none will be; until then the worker that serves goes on serving, and is not touched when its replacement fails.

A restart is the replacement of a worn worker (`fleet_wear`) that somebody waits for. It is not kept by the launcher:
the link of who asked repeats the question to the next master, and names the worker that is to go, so that nothing
happens twice.
"""

from collections.abc import Iterable

from zcluster.core import fleet_events as f
from zcluster.core.fleet_base import Restarting
from zcluster.core.fleet_deaths import SIGNAL_NAMES
from zcluster.core.fleet_reload import Reloads
from zcluster.core.fleet_worker import DEAD, HOLDS_SLOT, READY, SERVING, STARTING, Worker
from zcluster.core.fleet_zygote import READY as ZYGOTE_READY

RESTART = "restart"
# Who wait for one restart; each is an operator's command, and all get the same answer.
WAITING_MAX = 256


class SlotOrders(Reloads):
    """The questions about one slot."""

    def restart(self, event: f.Restart, now: float) -> None:
        """Replace the worker of a slot; one that is empty after crashes gets its worker now."""
        slot, worker = event.slot, self._holder(event.slot)
        error = self._no_slot(slot)
        zygote = self.zygote_for(slot)
        if not error and zygote.broken:
            error = (
                f"the application cannot be imported any more, so slot {slot} can get no other worker; "
                "put it right, then reload"
            )
        known = self.restarting.get(slot)
        if not error and known is not None and len(known.askers) >= WAITING_MAX:
            error = f"{WAITING_MAX} commands wait for the restart of slot {slot} already"
        if error:
            self.out.append(f.Reply(event.asker, error))
        elif known is not None:
            known.askers.append(event.asker)
        else:
            self.restarting[slot] = Restarting(_outgoing(event, worker), [event.asker])
            if worker is None:
                self.slot(slot).healthy()
                self.slot(slot).retry_at = now
            elif worker.id == self.restarting[slot].id and worker.state in SERVING:
                worker.worn = RESTART
                self.say("info", f"{worker.label} is restarted: another one is started in its place")

    def conclude_restarts(self) -> None:
        """Answer those whose restart has ended. One whose slot has a worker that only starts goes on waiting."""
        for slot, restarting in list(self.restarting.items()):
            newer = [w for w in self.roster if w.slot == slot and w.id > restarting.id]
            served = next((worker for worker in newer if worker.state == READY), None)
            if served is not None:
                self._end_restart(slot, "", {"slot": slot, "worker": served.id})
            elif slot not in self.wanted:
                self._end_restart(slot, f"slot {slot} was closed meanwhile", {})
            else:
                self._look_at_attempt(slot, restarting, newer)

    def _look_at_attempt(self, slot: int, restarting: Restarting, newer: list[Worker]) -> None:
        attempt = restarting.attempt
        is_dead = attempt is not None and attempt.state == DEAD
        if attempt is not None and is_dead and attempt.pid and not (attempt.lane_taken or attempt.stopped):
            why = attempt.boot_text or attempt.doomed or "it ended before it was ready; the log says how"
            there = self._holder(slot)
            goes_on = f"; worker {there.id} goes on serving" if there is not None and there.state in SERVING else ""
            self._end_restart(slot, f"the new worker of slot {slot} does not start{goes_on}: {why}", {})
        else:
            starting = (worker for worker in newer if worker.state in STARTING)
            restarting.attempt = next(starting, None if is_dead else attempt)

    def _end_restart(self, slot: int, error: str, body: dict[str, int]) -> None:
        restarting = self.restarting.pop(slot)
        for worker in self.roster:
            if worker.id == restarting.id and worker.worn == RESTART and error:
                worker.worn = ""
                self.say("error", f"{worker.label} is not restarted: {error}")
        self.out += [f.Reply(asker, error, body) for asker in restarting.askers]

    def signal(self, event: f.Signal) -> None:
        """Send a signal to the worker of a slot; the one that serves, if another one is leaving or starting."""
        there = [worker for worker in self.roster if worker.slot == event.slot and worker.pid]
        worker = max(there, key=lambda w: (w.state in SERVING, w.state in HOLDS_SLOT, w.id), default=None)
        if worker is None or (event.worker and worker.id != event.worker):
            error = self._no_slot(event.slot) or f"slot {event.slot} has no worker now"
            if worker is not None:
                error = f"worker {event.worker} is gone; slot {event.slot} has worker {worker.id} now"
            self.out.append(f.Reply(event.asker, error))
            return
        name = SIGNAL_NAMES.get(event.number, f"signal {event.number}")
        self.say("info", f"{worker.label} is sent {name}: it was asked for on the bus")
        self.out += [
            f.SendSignal(worker.id, worker.pid, worker.start, event.number),
            f.Reply(event.asker, "", {"worker": worker.id, "pid": worker.pid}),
        ]

    def vacancies(self, now: float) -> dict[int, str]:
        """The open slots that have no worker, and what each waits for, in words."""
        return {slot: self._waits_for(slot, now) for slot in sorted(self.roster.vacant(self.wanted))}

    def _waits_for(self, index: int, now: float) -> str:
        slot, zygote = self.slot(index), self.zygote_for(index)
        if zygote.broken:
            return "the application cannot be imported any more"
        if zygote.state != ZYGOTE_READY:
            return "the application is being imported"
        failed = f" after {slot.failures} failures in a row" if slot.failures > 1 else ""
        return f"next attempt in {max(0.0, slot.retry_at - now):.1f} s{failed}"

    def _holder(self, slot: int) -> Worker | None:
        """The worker that a slot has, or will have: the one that serves before one that starts."""
        there = [worker for worker in self.roster if worker.slot == slot and worker.state in HOLDS_SLOT]
        return max(there, key=lambda w: (w.state in SERVING, w.id), default=None)

    def _no_slot(self, slot: int) -> str:
        """Why nothing can be asked of this slot; empty when it is open."""
        if slot in self.wanted:
            return ""
        return f"there is no slot {slot}; open are {spans(self.wanted)}" if self.wanted else "no slot is open"


def _outgoing(event: f.Restart, there: Worker | None) -> int:
    """The id that the new worker's is to be higher than; one that only starts is new enough."""
    if there is None:
        return event.worker
    last = there.id - 1 if there.state in STARTING else there.id
    return min(event.worker or last, last)


def spans(slots: Iterable[int]) -> str:
    """Numbers in words, those in a row as a span: "0-3, 7"."""
    parts: list[list[int]] = []
    for slot in sorted(slots):
        if parts and parts[-1][-1] == slot - 1:
            parts[-1].append(slot)
        else:
            parts.append([slot])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
