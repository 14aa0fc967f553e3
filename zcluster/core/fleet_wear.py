"""When a worker that serves is replaced all the same: after so many requests, at such a size, at such an age; and
when a request does not come back from the application (`core/stuck`).

Invariant: it serves until its replacement is READY (`fleet_reload.roll`), one slot at a time; so no limit, however
low, makes the cluster smaller.

For leaks and hangs that nobody has found yet. Limits are looked at once per tick, against the last heartbeat: a
worker may answer some requests more than its limit.
"""

from typing import Final

from zcluster.core.fleet_settings import FleetSettings
from zcluster.core.fleet_worker import Worker

MAX_REQUESTS, MEMORY, AGE, TIMEOUT = "max requests", "memory", "age", "timeout"
MIB: Final = 1 << 20
SETTLED_S: Final = 5.0  # with a limit below what a new worker takes, the cluster would do nothing but fork
AGE_JITTER: Final = 0.1  # of the limit: workers that were started together do not all begin anew together


def wear(worker: Worker, settings: FleetSettings, now: float) -> str:
    """Why this worker is to be replaced, empty while it is not. `now` in seconds."""
    beat, age_s = worker.beat, now - worker.started_at
    if beat is not None:
        if beat.given_up:
            return TIMEOUT
        requests = settings.max_requests + int(worker.chance * settings.max_requests_jitter)
        if settings.max_requests and beat.requests >= requests:
            return MAX_REQUESTS
        if settings.max_rss_mib and age_s >= SETTLED_S and beat.rss_bytes >= settings.max_rss_mib * MIB:
            return MEMORY
    limit_s = settings.max_age_s * (1 + AGE_JITTER * worker.chance)
    return AGE if limit_s and age_s >= limit_s else ""


def story(worker: Worker) -> str:
    """What is logged when it has reached a limit."""
    if worker.worn != TIMEOUT or worker.beat is None:
        return f"{worker.label} has reached its limit ({worker.worn}): another one is started"
    count = worker.beat.given_up
    what = "1 request that does" if count == 1 else f"{count} requests that do"
    return f"{worker.label} has {what} not come back from the application: another worker is started in its place"
