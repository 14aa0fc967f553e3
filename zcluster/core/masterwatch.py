"""When a launcher starts the next master, and when it takes the one it has for hung.

Invariant: there is always a next try, and its pause has a bound; and a master is judged only for time in which the
launcher itself ran. Pure: `now` is given, monotonic seconds.
"""

from typing import Final

PAUSE_S, PAUSE_MAX_S = 0.1, 5.0  # before a restart; "for ever", so the cap is low
CRASHES_MAX: Final = 10  # in a row that are counted: the pause has long reached its cap
SETTLED_S: Final = 5.0  # a master that lived this long starts the pauses anew
REPAIR_S: Final = 2 * PAUSE_MAX_S  # until the next master ticks, once one is taken for hung
CHECK_S: Final = 1.0  # how often the master's tick is looked at


class MasterWatch:
    """What a launcher remembers about its masters."""

    def __init__(self) -> None:
        self.due = 0.0  # of the next start
        self.checked = 0.0
        self._crashes = 0  # in a row
        self._tick_seen = 0
        self._stale_s = 0.0
        self.silent_s = 0.0  # since any master ticked, however many have been started meanwhile

    def died(self, since: float, now: float, *, stopping: bool) -> float:
        """A master that was started at `since` is dead: return the pause before the next one, in seconds."""
        self._crashes = 0 if now - since >= SETTLED_S else self._crashes + 1
        # In a stop the operator waits for the end, and only a master can drain.
        return self._pause(now, PAUSE_S if stopping else None)

    def failed(self, now: float) -> float:
        """The machine refused to start one: return the pause before the next try, in seconds."""
        self._crashes += 1
        return self._pause(now, None)

    def _pause(self, now: float, pause_s: float | None) -> float:
        self._crashes = min(self._crashes, CRASHES_MAX)
        pause_s = min(PAUSE_S * 2**self._crashes, PAUSE_MAX_S) if pause_s is None else pause_s
        self.due = now + pause_s
        return pause_s

    def begun(self) -> None:
        """A master has been started."""
        self._stale_s = 0.0

    def is_well(self, timeout_s: float) -> bool:
        """Whether a master ticked not long ago, or the next one has time to; hung is one after `timeout_s`."""
        return self.silent_s <= timeout_s + REPAIR_S

    def is_due(self, now: float) -> bool:
        """Whether it is time to look at the tick."""
        return now - self.checked >= CHECK_S

    def look(self, tick: int | None, now: float) -> float:
        """Its tick (None: there is no master); return for how many seconds that has not moved."""
        attended_s = min(now - self.checked, 2 * CHECK_S)
        self.checked = now
        self.silent_s = 0.0 if tick not in (None, self._tick_seen) else self.silent_s + attended_s
        if tick is not None:
            self._stale_s = 0.0 if tick != self._tick_seen else self._stale_s + attended_s
            self._tick_seen = tick
        return self._stale_s
