"""Ways to break the core, to see that the simulator finds them: each changes one decision, as a slip would."""

from zcluster.core import fleet_acts, fleet_events, fleet_health, fleet_reload
from zcluster.core import messages as m
from zcluster.core.fleet import Fleet
from zcluster.core.fleet_health import Verdict
from zcluster.core.fleet_worker import READY
from zcluster.core.joining import Deliver, Joining
from zcluster.core.kept import Kept
from zcluster.core.ledger import LaneView
from zcluster.core.outbox import Outbox
from zcluster.core.policy import Slot
from zcluster.core.questions import Questions
from zcluster.core.streams import Incoming, Outgoing
from zcluster.core.topics import Ring, Subscriber


def lane_handed_out_while_locked(patch):
    """The lanes of those who are leaving count as free."""
    true = fleet_acts.Acts.ask

    def ask(self, slot, zygote, now):
        leaving = {id_: worker for id_, worker in self.roster.workers.items() if worker.state == "draining"}
        for id_ in leaving:
            del self.roster.workers[id_]
        try:
            return true(self, slot, zygote, now)
        finally:
            self.roster.workers = leaving | self.roster.workers

    patch.setattr(fleet_acts.Acts, "ask", ask)


def killed_without_a_look_at_the_tick(patch):
    """Who is silent on the bus for the whole timeout is hung."""

    def judge(worker, ages, now, settings, lags):
        silent = now - worker.last_heard >= settings.hang_timeout_s
        return Verdict.HUNG_SILENT if silent else true(worker, ages, now, settings, lags)

    true = fleet_health.judge
    patch.setattr(fleet_acts, "judge", judge)


def own_lag_is_the_workers_fault(patch):
    """A master that did not run judges for that time."""
    patch.setattr(Fleet, "_lagged", lambda self, seconds, now: None)


def no_deduplication_of_mail(patch):
    """A piece that comes twice is delivered twice."""
    true = Incoming.take

    def take(self, mail):
        if mail.number <= self.upto and not mail.more and not self.is_open:
            return mail.body
        return true(self, mail)

    patch.setattr(Incoming, "take", take)


def mail_is_not_repeated(patch):
    """What was not acknowledged is not sent again."""
    patch.setattr(Outgoing, "expire", lambda self, now: setattr(self, "due", float("inf")))


def reload_forgets_a_slot(patch):
    """A reload is committed when one slot is introduced."""

    def is_introduced(self, candidate):
        return any(w.state == READY and w.generation == candidate.generation for w in self.roster)

    patch.setattr(fleet_reload.Reloads, "_is_introduced", is_introduced)


def replaced_before_the_next_is_ready(patch):
    """An outdated worker leaves as soon as its replacement starts."""
    true = fleet_acts.Acts._kept

    def kept(self, workers):
        best, next_ = true(self, workers)
        return (None, next_) if next_ is not None else (best, next_)

    patch.setattr(fleet_acts.Acts, "_kept", kept)


def questions_are_acted_upon_twice(patch):
    """A question that was answered is forgotten."""
    patch.setattr(Questions, "_remember", lambda self, asker, answer: None)


def a_wish_is_told_once(patch):
    """The launcher forgets a wish of the operator when it has told it once."""
    true = Kept._scale

    def scale(self, by, to):
        wish = true(self, by, to)
        del self._unacknowledged[wish.number]
        return wish

    patch.setattr(Kept, "_scale", scale)


def slot_of_a_crash_is_lost(patch):
    """After a crash loop a slot is never filled again."""
    true = Slot.failed

    def failed(self, now):
        wait_s = true(self, now)
        if self.failures >= 3:
            self.retry_at = float("inf")
        return wait_s

    patch.setattr(Slot, "failed", failed)


def no_pause_after_failures(patch):
    """Workers that cannot start are started again at once."""

    def failed(self, now):
        self.retry_at = now
        return 0.0

    patch.setattr(Slot, "failed", failed)


def ids_are_not_saved(patch):
    """The next master begins with ids that were used."""
    true = Fleet.step

    def step(self, event, now):
        return [c for c in true(self, event, now) if not isinstance(c, fleet_events.SaveNextId)]

    patch.setattr(Fleet, "step", step)


def lane_is_cleared_by_its_next_owner(patch):
    """A lane begins with zero."""
    true = LaneView.claim

    def claim(self, info, born_ns):
        self.cells[0] = 0
        true(self, info, born_ns)

    patch.setattr(LaneView, "claim", claim)


def holes_in_events_are_ignored(patch):
    """What comes is delivered, whatever has come."""
    true = Joining._update

    def update(self, message, now):
        if isinstance(message, m.Event) and message.epoch == self.epoch:
            return [Deliver(message)]
        return true(self, message, now)

    patch.setattr(Joining, "_update", update)


def an_older_master_is_believed(patch):
    """Epochs are not compared when a Welcome comes."""
    true = Joining._raised

    def raised(self, totals, number):
        self.totals.clear()
        return true(self, totals, number)

    patch.setattr(Joining, "_raised", raised)


def missing_publications_are_not_asked_for(patch):
    """A hole is passed over in silence."""
    true = Subscriber.take

    def take(self, publication):
        if publication.epoch == self.epoch and publication.number > self.upto + 1:
            self.upto = publication.number - 1
        return true(self, publication)

    patch.setattr(Subscriber, "take", take)


def a_replay_lacks_the_last(patch):
    """The master's memory sends one piece less than it has."""
    true = Ring.replay

    def replay(self, asked):
        again, last_word = true(self, asked)
        return again[:-1], last_word

    patch.setattr(Ring, "replay", replay)


def a_lost_ready_is_not_made_good(patch):
    """Heartbeats say nothing of the state."""
    patch.setattr(Fleet, "_reconcile", lambda self, worker, says, now: None)


def a_lost_answer_is_not_asked_for(patch):
    """A question is asked once on each link."""
    patch.setattr(Outbox, "repeat", lambda self, now: None)


def a_reload_that_failed_leaves_its_workers(patch):
    """The way back ends at once."""
    true = fleet_reload.Reloads._turn_back

    def turn_back(self, reloading, now):
        true(self, reloading, now)
        reloading.deadline = now
        self.outdated = lambda: []

    patch.setattr(fleet_reload.Reloads, "_turn_back", turn_back)


def a_stop_is_not_kept(patch):
    """A master that is started during a stop is not told of it."""
    true = Kept.told

    def told(self):
        return [message for message in true(self) if not isinstance(message, m.Stop)]

    patch.setattr(Kept, "told", told)


MUTATIONS = [
    thing for thing in list(globals().values()) if callable(thing) and getattr(thing, "__module__", "") == __name__
]
