"""One worker in the eyes of the master, and the table of the states it can be in.

Invariant: a worker's state changes only through `Worker.move`, which looks it up in TRANSITIONS.

Theory of operation
-------------------
    asked      the zygote was told to fork; no process is known yet
    forked     the process exists (pid, start)
    online     it said Hello on the bus
    ready      it accepts connections
    suspect    it was ready, and nothing was heard of it for a third of the hang timeout
    hung       given up (silent, stuck, or not ready in time): its stacks are being dumped, then it is killed
    draining   it finishes what it has and leaves: of its own accord, because it was told to, or on a SIGTERM
    dead       no more

The same fact may be told on several sockets, in any order, and twice: the bus may bring a Hello before the zygote's
Forked, and a new master hears everything again. Repetitions therefore stand in the table as transitions to the same
state; what does not stand there cannot happen and is a bug of ours.
"""

from typing import Final

from zcluster.core.fleet_settings import FleetSettings
from zcluster.core.messages import Beat, WorkerInfo

ASKED, FORKED, ONLINE, READY = "asked", "forked", "online", "ready"
SUSPECT, HUNG, DRAINING, DEAD = "suspect", "hung", "draining", "dead"
STATES: Final = (ASKED, FORKED, ONLINE, READY, SUSPECT, HUNG, DRAINING, DEAD)
# What can happen to a worker. `silent` and `overdue` are the master's judgement, `drain` its order, `lost` means that
# the zygote ended, or never answered, before it forked.
TRIGGERS: Final = (
    "forked", "hello", "ready", "heard", "silent", "overdue", "leaving", "drain", "died", "lost",
)  # fmt: skip

TRANSITIONS: Final[dict[tuple[str, str], str]] = {
    (ASKED, "forked"): FORKED,
    (ASKED, "hello"): ONLINE,
    (ASKED, "lost"): DEAD,
    #
    (FORKED, "forked"): FORKED,
    (FORKED, "hello"): ONLINE,
    (FORKED, "overdue"): HUNG,
    (FORKED, "drain"): DRAINING,
    (FORKED, "died"): DEAD,
    #
    (ONLINE, "forked"): ONLINE,
    (ONLINE, "hello"): ONLINE,
    (ONLINE, "heard"): ONLINE,
    (ONLINE, "ready"): READY,
    (ONLINE, "overdue"): HUNG,
    (ONLINE, "leaving"): DRAINING,
    (ONLINE, "drain"): DRAINING,
    (ONLINE, "died"): DEAD,
    #
    (READY, "forked"): READY,
    (READY, "hello"): READY,
    (READY, "ready"): READY,
    (READY, "heard"): READY,
    (READY, "silent"): SUSPECT,
    (READY, "overdue"): HUNG,
    (READY, "leaving"): DRAINING,
    (READY, "drain"): DRAINING,
    (READY, "died"): DEAD,
    #
    (SUSPECT, "forked"): SUSPECT,  # told by the zygote, not by the worker: no sign of life
    (SUSPECT, "hello"): READY,
    (SUSPECT, "ready"): READY,
    (SUSPECT, "heard"): READY,
    (SUSPECT, "overdue"): HUNG,
    (SUSPECT, "leaving"): DRAINING,
    (SUSPECT, "drain"): DRAINING,
    (SUSPECT, "died"): DEAD,
    # The verdict stands, whatever is heard after it: the dump itself wakes a stopped process.
    (HUNG, "forked"): HUNG,
    (HUNG, "hello"): HUNG,
    (HUNG, "ready"): HUNG,
    (HUNG, "heard"): HUNG,
    (HUNG, "leaving"): HUNG,
    (HUNG, "died"): DEAD,
    #
    (DRAINING, "forked"): DRAINING,
    (DRAINING, "hello"): DRAINING,
    (DRAINING, "ready"): DRAINING,
    (DRAINING, "heard"): DRAINING,
    (DRAINING, "leaving"): DRAINING,
    (DRAINING, "drain"): DRAINING,
    (DRAINING, "died"): DEAD,
}

# In these states a worker is what its slot has or will have; it needs no other one. HUNG is among them because its
# lane is locked, and its slot not free, until it is dead.
HOLDS_SLOT: Final = frozenset({ASKED, FORKED, ONLINE, READY, SUSPECT, HUNG})
SERVING: Final = frozenset({READY, SUSPECT})
STARTING: Final = frozenset({ASKED, FORKED, ONLINE})


class IllegalTrigger(AssertionError):
    """A trigger that does not stand in the table for this state: a bug of ours."""


def next_state(state: str, trigger: str) -> str:
    """Look it up; IllegalTrigger when it cannot happen."""
    try:
        return TRANSITIONS[state, trigger]
    except KeyError:
        raise IllegalTrigger(f"a worker that is {state} cannot get {trigger!r}") from None


class Worker:
    """What the master knows of one worker. Only the fleet that holds it writes to it."""

    __slots__ = (
        "adopted", "ailment", "announced", "beat", "boot_text", "chance", "deadline", "doomed", "generation",
        "gone_at", "healthy", "id", "killed_at", "lane", "lane_taken", "last_heard", "leaving", "pid", "ready_at",
        "reconnect_at", "replaced", "restarts", "silent_at", "slot", "start", "started_at", "state", "stopped",
        "told_to_leave", "worn",
    )  # fmt: skip

    def __init__(self, info: WorkerInfo, now: float, state: str = ASKED) -> None:
        self.id, self.slot, self.lane, self.generation = info.id, info.slot, info.lane, info.generation
        self.pid, self.start, self.restarts = info.pid, info.start, info.restarts
        self.state = state
        self.adopted = False  # from another master, or from a zygote that was given up: not asked for by this fleet
        self.announced = False  # to the handles, as online
        self.beat: Beat | None = None
        self.started_at = now - info.uptime_s
        self.ready_at: float | None = None
        self.healthy = False
        self.last_heard = now
        self.reconnect_at = 0.0  # not before then again
        self.deadline: float | None = None  # of the state it is in; always set, but for READY and SUSPECT
        self.doomed = ""  # why we kill it
        self.killed_at: float | None = None
        self.gone_at: float | None = None  # its process vanished, its status has not been told yet
        self.leaving = ""  # its own reason to leave
        self.told_to_leave = False  # by a Drain
        self.replaced = ""  # why it was told to leave for another one in its slot
        self.chance = 0.0  # from 0 up to 1: how far its limits are put off
        self.worn = ""  # which of its limits it has reached
        self.boot_text = ""  # why it could not begin, in its own words
        self.lane_taken = False  # by another process: this one could not even begin
        self.ailment = ""  # what is wrong with it, in a word (fleet_health), while that is known
        self.silent_at: tuple[float, float] | None = None  # when it was first found silent, with its CPU time then
        self.stopped = False  # SIGTERM sent while it was starting

    def move(self, trigger: str) -> None:
        """Change the state by the table."""
        self.state = next_state(self.state, trigger)

    @property
    def label(self) -> str:
        """How logs name it."""
        return f"Worker {self.pid} (id {self.id}, slot {self.slot})"

    def postpone(self, seconds: float) -> None:
        """Nobody is judged for time in which the master did not run."""
        self.last_heard += seconds
        if self.deadline is not None:
            self.deadline += seconds

    def info(self, now: float) -> WorkerInfo:
        """As others see it."""
        beat = self.beat
        return WorkerInfo(
            id=self.id,
            slot=self.slot,
            lane=self.lane,
            generation=self.generation,
            pid=self.pid,
            start=self.start,
            state=self.state,
            restarts=self.restarts,
            requests=beat.requests if beat else 0,
            inflight=beat.inflight if beat else 0,
            connections=beat.connections if beat else 0,
            threads=beat.threads if beat else 0,
            rss_bytes=beat.rss_bytes if beat else 0,
            uptime_s=round(max(0.0, now - self.started_at), 3),
            oldest_request_s=beat.oldest_request_s if beat else 0.0,
            note=self.ailment or (stuck_note(beat.stuck) if beat else ""),
        )


def stuck_note(count: int) -> str:
    """What `ps` says of a worker with so many requests over --timeout; empty for none."""
    if not count:
        return ""
    return "1 stuck request" if count == 1 else f"{count} stuck requests"


def adopted_state(recorded: str) -> str:
    """The state a new master believes a worker in, from what its record says; Hello and Ready correct it."""
    if recorded in (SUSPECT, HUNG):
        return READY  # that was the judgement of a master that is gone; ours starts afresh
    if recorded == DEAD:
        return DRAINING  # it had said its last words as it should
    return recorded if recorded in (FORKED, ONLINE, READY, DRAINING) else FORKED


def unheard(worker: Worker, says: str) -> str:
    """What was lost on the way, by what the worker says of its state: "ready", "leaving", "drain"; empty: nothing.

    A link may lose a frame (a queue was full, a connection was made anew) without anybody noticing. A heartbeat that
    was sent just before a Drain came looks the same: a Drain that is repeated does no harm.
    """
    if says == READY and worker.state == ONLINE:
        return "ready"
    if says == DRAINING and worker.state in (ONLINE, READY, SUSPECT):
        return "leaving"
    return "drain" if says == READY and worker.state == DRAINING and worker.told_to_leave else ""


def deadline_after(state: str, now: float, settings: FleetSettings) -> float | None:
    """When a worker taken over in this state must have left it; None where heartbeats judge instead."""
    if state in SERVING:
        return None
    return now + (settings.graceful_timeout_s if state == DRAINING else settings.boot_timeout_s)
