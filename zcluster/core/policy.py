"""When a slot gets its next worker: at once, after a pause, or (a cluster that never ran) not at all.

Invariant: no history of crashes makes a slot start workers without a bound on their rate, or closes it for ever.

Theory of operation
-------------------
A slot remembers three things: how often in a row its workers failed to *start*, when workers that had become READY
crashed soon after their start, and whether that adds up to a crash loop.

    a worker died ...               next attempt
    after READY                     at once: the crash was a request's, and the next one may never come
    after READY, young, too often   crash loop: as below
    before READY                    pause(n), n = 1, 2, 3 ... failures in a row
    it was READY for a minute       everything is forgotten

"Young" and "too often" are restart intensity, as in OTP (1 in 5 s) and systemd (5 in 10 s). Both of those give up
then; we only pause, so the default is laxer: more than 10 crashes, each within 5 s of its start, within 60 s.
"""

from collections import deque
from collections.abc import Callable

from zcluster.core.fleet_settings import FleetSettings

# A lane whose lock turns out to be held is nobody's failure and the next lane is tried at once; but a program that
# happens to exit with that code must not be forked without end.
LANE_TRIES = 3
# So many failed starts of one slot before any worker was ever ready mean that the program does not start (gunicorn
# stops at the first; three forgive a database that comes up a second later).
START_TRIES = 3
# Exponents beyond this are cut off: 0.1 s x 2**40 is older than anything, and floats must not overflow.
DOUBLINGS_MAX = 40


def pause_s(failures: int, base_s: float, cap_s: float, random: Callable[[], float]) -> float:
    """Seconds to wait after the n-th failure in a row: base x 2^(n-1), at most cap, less up to half of it by chance.

    Only *downwards* and only half: the cap stays a promise to whoever waits, and a slot never hammers on (full
    jitter, which may choose 0, is for thousands of clients of one server; here a few slots must fall out of step).
    `random` gives a number from 0 up to 1.
    """
    whole_s: float = min(cap_s, base_s * 2.0 ** min(max(failures - 1, 0), DOUBLINGS_MAX))
    return whole_s * (1.0 - random() / 2.0)


class Slot:
    """What one slot remembers of its dead, and when it may have its next worker."""

    __slots__ = (
        "boot_failed", "early_crashes", "failures", "forks", "index", "lane_tries", "looping", "random", "retry_at",
        "settings",
    )  # fmt: skip

    def __init__(self, index: int, settings: FleetSettings, random: Callable[[], float]) -> None:
        self.index = index
        self.settings = settings
        self.random = random
        self.forks = 0  # processes this slot has had: the next one is that many restarts away from the first
        self.failures = 0  # starts that failed in a row, and crashes while looping
        self.lane_tries = 0
        self.looping = False
        self.boot_failed = False  # the application could not be loaded, at least once since someone was READY
        self.retry_at = 0.0
        self.early_crashes: deque[float] = deque(maxlen=settings.crash_loop_limit + 1)

    def crashed_ready(self, now: float, age_s: float) -> float:
        """A READY worker of this age crashed; returns the seconds until the next attempt."""
        if age_s < self.settings.early_crash_s:
            self.early_crashes.append(now)
            recent = [at for at in self.early_crashes if at > now - self.settings.crash_loop_window_s]
            if len(recent) > self.settings.crash_loop_limit:
                self.looping = True
            if self.looping:
                return self.failed(now)
        self.retry_at = now
        return 0.0

    def failed(self, now: float) -> float:
        """A worker did not become READY (or crashed in a loop); returns the seconds until the next attempt."""
        self.failures += 1
        wait_s = pause_s(self.failures, self.settings.restart_base_s, self.settings.restart_cap_s, self.random)
        self.retry_at = now + wait_s
        return wait_s

    def lane_taken(self, now: float) -> float:
        """The lane belonged to somebody else; returns the seconds until the next attempt."""
        self.lane_tries += 1
        if self.lane_tries > LANE_TRIES:
            return self.failed(now)
        self.retry_at = now
        return 0.0

    def left(self, now: float) -> None:
        """A worker leaves as it should: the slot may be filled at once."""
        self.retry_at = now

    def ready(self) -> None:
        """A worker is READY: the program can be loaded and the lane was free. Pauses are only reset by `healthy`."""
        self.lane_tries = 0
        self.boot_failed = False

    def healthy(self) -> None:
        """It has been READY for a minute: forget the crashes."""
        self.failures = self.lane_tries = 0
        self.looping = False
        self.early_crashes.clear()
