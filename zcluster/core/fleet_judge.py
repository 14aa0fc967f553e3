"""What the fleet makes of the health of its workers: who is suspect, who is hung, and what is said about it.

Invariant: nobody is given up for what ails it alone: an ailment is told (in the log, in `ps`), `fleet_health.judge`
decides.
"""

from zcluster.core import fleet_events as f
from zcluster.core.fleet_deaths import HUNG
from zcluster.core.fleet_health import AILMENTS, Verdict, ailment, judge
from zcluster.core.fleet_slots import SlotOrders
from zcluster.core.fleet_worker import READY, Worker


class Judges(SlotOrders):
    """The judgements; `Fleet` asks for them at each tick."""

    def judge_health(self, worker: Worker, ages: f.LaneAges | None, facts: f.ProcessFacts | None, now: float) -> None:
        """The health of a worker that is READY or SUSPECT."""
        silence_s = now - worker.last_heard
        self._diagnose(worker, ages, facts, now)
        why = f"; {worker.ailment}" if worker.ailment else ""
        match judge(worker, ages, now, self.settings, self.lags):
            case Verdict.HUNG_SILENT:
                self.condemn(worker, HUNG, f"is hung: nothing heard, and no tick, for {silence_s:.1f} s{why}", now)
            case Verdict.HUNG_LOOP:
                self.condemn(worker, HUNG, "is hung: its event loop is stuck outside the application", now)
            case Verdict.FINE:
                if not worker.healthy and worker.ready_at is not None:
                    worker.healthy = now - worker.ready_at >= self.settings.healthy_after_s
                    if worker.healthy:
                        self.slot(worker.slot).healthy()
            case kind:
                self._suspect(worker, silence_s, now, reconnect=kind is Verdict.RECONNECT)

    def _diagnose(self, worker: Worker, ages: f.LaneAges | None, facts: f.ProcessFacts | None, now: float) -> None:
        """What ails it; told when that changes."""
        if facts is None:
            worker.silent_at = None
        elif worker.silent_at is None:
            worker.silent_at = (now, facts.cpu_s)
        was, worker.ailment = worker.ailment, ailment(worker, ages, facts, now, self.settings, self.lags)
        if worker.ailment and worker.ailment != was:
            self.say("warning", f"{worker.label}: {AILMENTS[worker.ailment]}")
        elif was and not worker.ailment:
            self.say("info", f"{worker.label} goes on; it was: {was}")

    def _suspect(self, worker: Worker, silence_s: float, now: float, *, reconnect: bool) -> None:
        """It was not heard for too long; when its tick is fresh, that is the bus's fault."""
        if worker.state == READY:
            worker.move("silent")
            self.say("warning", f"{worker.label} is suspect: nothing heard of it for {silence_s:.1f} s")
        if reconnect and now >= worker.reconnect_at:
            worker.reconnect_at = now + self.settings.hang_timeout_s / 3
            self.say("warning", f"{worker.label} lives but is not heard: told to open its sockets again")
            self.out.append(f.Reconnect(worker.id))
