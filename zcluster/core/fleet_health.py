"""Is this worker alive? One heartbeat cannot tell; three signs together can.

Invariant: a worker is only ever judged for time in which the master itself ran.

    heard on the bus | ledger: bus tick | ledger: loop tick | what it is                         verdict
    in time          | any              | fresh, or in app  | in good health                     FINE
    any              | any              | stale, not in app | its event loop is stuck            HUNG
    late by a third  | fresh            |                   | the bus is broken, not the worker  RECONNECT, never more
    late by a third  | stale            |                   | stopped, swapped, GIL held ...     SUSPECT
    late by all      | stale            |                   | ... for longer than may be         HUNG

The same limit, a third of the hang timeout, divides fresh from stale. With the defaults that is 10 s, or 40 ticks of
250 ms: no busy machine misses so many in a row, and a worker frozen for the whole timeout is past it three times. Any
larger limit would only kill later; a much smaller one would take a stall of the moment for proof.

What ails it is another question, for the operator: it is told, and kills nobody (`ailment`, after a third, too).

    bus tick | loop tick            | the kernel says           | what it is
    stale    | any                  | state T: stopped          | frozen (stopped): SIGSTOP, or a debugger
    stale    | any                  | state D: cannot be woken  | frozen (in the kernel): a dead disk or NFS, a cgroup
    stale    | stale                | its CPU time grows        | GIL held: code that computes lets nobody else run
    stale    | stale                | its CPU time stands still | frozen (asleep): its cgroup, or C code that sleeps
             |                      |                           | and keeps the GIL
    fresh    | stale, nobody in app |                           | loop blocked
    fresh    | any                  |                           | N stuck requests: its heartbeat says so (core/stuck)
"""

from collections import deque
from enum import Enum
from typing import Final

from zcluster.core.fleet_events import LaneAges, ProcessFacts
from zcluster.core.fleet_settings import FleetSettings
from zcluster.core.fleet_worker import Worker

# Lags remembered. Each is longer than a heartbeat and they matter for one hang timeout: 30 at most with the defaults.
LAGS_MAX = 64


# Of one CPU: what holds the GIL takes all it can get of one, also where twenty share it; in a process that does
# not run it is exactly nothing, and one that sleeps has only the threads of ZeroMQ, which take microseconds.
RUNS_AT_SHARE: Final = 0.02
RUNS_AT_S: Final = 0.02  # two of the kernel's clock ticks: one may be the rest of what was before

STOPPED, IN_KERNEL, ASLEEP = "frozen (stopped)", "frozen (in the kernel)", "frozen (asleep)"
GIL, LOOP = "GIL held", "loop blocked"
AILMENTS: Final = {
    STOPPED: "frozen: it is stopped (state T), by SIGSTOP or a debugger; SIGCONT lets it go on",
    IN_KERNEL: "frozen: it waits in the kernel (state D): a disk or file server is silent, or its cgroup is frozen",
    ASLEEP: "frozen: it does not run at all; its cgroup is frozen, or C code sleeps and keeps the interpreter (GIL)",
    GIL: "the interpreter (GIL) is held: some code computes and lets no other thread run",
    LOOP: "its event loop is blocked, with no request in the application; the rest of it runs",
}


class Verdict(Enum):
    """What the signs say."""

    FINE = "fine"
    SUSPECT = "suspect"
    RECONNECT = "reconnect"
    HUNG_SILENT = "hung: nothing heard and no tick"
    HUNG_LOOP = "hung: event loop stuck"


class Lags:
    """The times the master did not run: a tick that grew old meanwhile is not the worker's fault (a paused VM)."""

    def __init__(self) -> None:
        self.since = 0.0  # this master's start: before it, it did not run either
        self.spans: deque[tuple[float, float]] = deque(maxlen=LAGS_MAX)

    def add(self, now: float, seconds: float) -> None:
        """The master did not run in the `seconds` before `now`."""
        self.spans.append((now - seconds, now))

    def net_age_s(self, now: float, age_s: float) -> float:
        """The age, without the part of it in which the master did not run."""
        born = max(now - age_s, self.since)
        return now - born - sum(max(0.0, end - max(begin, born)) for begin, end in self.spans)


def judge(worker: Worker, ages: LaneAges | None, now: float, settings: FleetSettings, lags: Lags) -> Verdict:
    """The table above. No ages (the lane is not locked, or not its own) means that there is no fresh tick."""
    hang_s = settings.hang_timeout_s
    silence_s = now - worker.last_heard
    ticking = ages is not None and lags.net_age_s(now, ages.bus_tick_age_s) < hang_s / 3
    if silence_s >= hang_s and not ticking:
        return Verdict.HUNG_SILENT
    if ages is not None and not ages.in_app and lags.net_age_s(now, ages.loop_tick_age_s) > hang_s:
        return Verdict.HUNG_LOOP
    if silence_s < hang_s / 3:
        return Verdict.FINE
    return Verdict.RECONNECT if ticking else Verdict.SUSPECT


def ailment(
    worker: Worker, ages: LaneAges | None, facts: ProcessFacts | None, now: float, settings: FleetSettings, lags: Lags
) -> str:
    """The second table above: one of AILMENTS, empty when nothing is wrong, or it is not known yet what."""
    stale_s = settings.hang_timeout_s / 3
    if ages is None:
        return ""
    if lags.net_age_s(now, ages.bus_tick_age_s) < stale_s:
        blocked = not ages.in_app and lags.net_age_s(now, ages.loop_tick_age_s) > stale_s
        return LOOP if blocked else ""
    if facts is None or worker.silent_at is None:
        return ""
    if facts.state in "Tt":
        return STOPPED
    if facts.state == "D":
        return IN_KERNEL
    if lags.net_age_s(now, ages.loop_tick_age_s) < stale_s:
        return ""  # somebody runs in there; what keeps its main thread is a bug of ours, and no ailment
    since, cpu_s = worker.silent_at
    watched_s, used_s = now - since, facts.cpu_s - cpu_s
    if used_s >= max(RUNS_AT_S, RUNS_AT_SHARE * watched_s):
        return GIL
    return ASLEEP if watched_s >= stale_s / 2 else ""
