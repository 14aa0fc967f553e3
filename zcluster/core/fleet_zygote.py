"""The zygote as the fleet sees it: when one can fork, when the next is asked for, when it is given up.

Invariant: at most one zygote of the current generation is asked for at a time, and every wait for one has an end.

Theory of operation
-------------------
    absent -ask-> asked -up-> importing -imported-> ready          ending: told us it failed, or was given up
    absent ------up-------------^   syncing -synced-^  (a new master and a zygote that outlived the old one)
    any -died-> absent

The generation stands for what was asked for (it grows with each reload), not for a process: a zygote that died is
replaced by one of the same generation. What is told by a process already replaced is ignored: the table has no
transition for it.
"""

from collections.abc import Callable
from typing import Final

from zcluster.core.fleet_events import DumpZygote, FleetCommand, KillZygote, StartZygote
from zcluster.core.fleet_settings import FleetSettings
from zcluster.core.policy import pause_s

ABSENT, ASKED, IMPORTING, SYNCING, READY, ENDING = "absent", "asked", "importing", "syncing", "ready", "ending"
ZYGOTE_TRANSITIONS: Final[dict[tuple[str, str], str]] = {
    (ABSENT, "ask"): ASKED,
    (ABSENT, "up"): IMPORTING,  # the launcher tells a new master again
    (ASKED, "up"): IMPORTING,
    (ASKED, "died"): ABSENT,  # the launcher could not even start it
    (ASKED, "overdue"): ABSENT,
    (IMPORTING, "imported"): READY,
    (IMPORTING, "synced"): READY,  # it outlived a master, but the launcher told so after Started
    (IMPORTING, "failed"): ENDING,
    (IMPORTING, "overdue"): ENDING,
    (IMPORTING, "died"): ABSENT,
    (SYNCING, "synced"): READY,
    (SYNCING, "failed"): ENDING,
    (SYNCING, "overdue"): ENDING,
    (SYNCING, "died"): ABSENT,
    (READY, "overdue"): ENDING,
    (READY, "died"): ABSENT,
    (ENDING, "overdue"): ENDING,
    (ENDING, "died"): ABSENT,
}
ENDING_S = 2.0  # a zygote that said it cannot import exits at once; after that it is killed, again and again
_LATE: Final = {IMPORTING: "its import took longer than the boot timeout", SYNCING: "it did not answer a new master"}


class Zygote:
    """The current generation's zygote."""

    def __init__(self, settings: FleetSettings, random: Callable[[], float]) -> None:
        self.settings = settings
        self.random = random
        self.generation = 1
        self.state = ABSENT
        self.failures = 0  # deaths in a row, none of them after a healthy life
        self.broken = False  # the code on disk could not be imported, and has not been since
        self.started = False
        self.doomed = ""  # why we kill it
        self.retry_at = 0.0
        self.ready_at: float | None = None
        self.deadline: float | None = None

    def start(self, generation: int, alive: bool, now: float) -> None:
        """A master starts; `alive`: a zygote outlived the one before, and will say what it has forked."""
        self.generation = generation
        self.started = True
        if alive:
            self.state = SYNCING
            self.deadline = now + self.settings.boot_timeout_s

    def move(self, trigger: str, generation: int, now: float) -> bool:
        """Change the state by the table; False when it is of another generation or means nothing now."""
        state = ZYGOTE_TRANSITIONS.get((self.state, trigger))
        if state is None or generation != self.generation:
            return False
        self.state = state
        if trigger == "died" or state == ABSENT:
            self._ended(now)
        elif state == READY:
            self.ready_at, self.deadline, self.broken = now, None, False
        else:
            self.deadline = now + (ENDING_S if state == ENDING else self.settings.boot_timeout_s)
        return True

    def synced(self, imported: bool, now: float) -> None:
        """It answered; if it has not imported yet it will say so."""
        if imported:
            self.move("synced", self.generation, now)
        elif self.state == SYNCING:
            self.state = IMPORTING

    def _ended(self, now: float) -> None:
        """Its first death is repaired at once; repeated ones, without a healthy life between them, with pauses."""
        settings = self.settings
        if self.ready_at is not None and now - self.ready_at >= settings.healthy_after_s:
            self.failures = 0
        self.failures += 1
        self.doomed = ""
        self.ready_at = self.deadline = None
        again = self.failures - 1
        self.retry_at = now + (
            pause_s(again, settings.restart_base_s, settings.restart_cap_s, self.random) if again else 0.0
        )

    def ask_if_due(self, now: float) -> list[FleetCommand]:
        """Ask for one when there is none and the pause is over."""
        if not self.started or self.state != ABSENT or now < self.retry_at:
            return []
        self.move("ask", self.generation, now)
        return [StartZygote(self.generation)]

    def expire(self, now: float) -> list[FleetCommand]:
        """Give it up when it did not do in time what it had to."""
        if self.deadline is None or now < self.deadline:
            return []
        was = self.state
        if was in _LATE:
            return self.give_up(_LATE[was], now)
        self.move("overdue", self.generation, now)
        return [KillZygote(self.generation, self.doomed or "it does not end")] if was == ENDING else []

    def give_up(self, reason: str, now: float) -> list[FleetCommand]:
        """It is of no use any more: its stacks first, and a moment later it is killed."""
        if self.state == ENDING or not self.move("overdue", self.generation, now):
            return []
        self.doomed = reason
        self.deadline = now + self.settings.dump_grace_s
        return [DumpZygote(self.generation, reason)]

    def obituary(self, status: str) -> str:
        """How it ended and, when we ended it, why; to be asked before its death is taken in."""
        return f"{status} ({self.doomed})" if self.doomed else status
