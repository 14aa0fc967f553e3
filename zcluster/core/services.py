"""Which services a cluster wants, which it has, and when one that is missing is asked for again.

Invariant: no history of deaths, and no order that was lost, makes the launcher start a service without a bound on the
rate, or leaves the cluster without it for ever.
"""

from collections.abc import Callable
from typing import Final

from msgspec import Struct

from zcluster.config import Config
from zcluster.core.policy import pause_s

PAUSE_S, PAUSE_MAX_S = 0.1, 5.0  # after the second death in a row; as long as the next checkpoint may wait
SETTLED_S: Final = 5.0  # a service that lived this long starts the pauses anew
ANSWER_S: Final = 5.0  # the launcher starts a process in milliseconds; it says nothing when the machine refused


def kinds(config: Config) -> tuple[str, ...]:
    """Which services a cluster of this configuration has."""
    wanted = {
        "checkpoint": bool(config.state),
        "output": config.capture_output,
        "watcher": config.reload,
        "hooks": bool(config.hooks),
    }
    return tuple(kind for kind, is_wanted in wanted.items() if is_wanted)


class _Service(Struct):
    """One kind. `due` is when it is asked for (again), unless it is up."""

    due: float
    pid: int = 0
    since: float = 0.0
    failures: int = 0  # deaths in a row


class Services:
    """Used by the master's thread. Times are monotonic seconds, given by the caller."""

    def __init__(self, wanted: tuple[str, ...], random: Callable[[], float]) -> None:
        self._random = random
        self._services = {kind: _Service(0.0) for kind in wanted}

    def up(self, kind: str, pid: int, now: float) -> None:
        """The launcher has started it, or says again that it runs."""
        service = self._services.get(kind)
        if service is not None and service.pid != pid:
            service.pid, service.since = pid, now

    def died(self, pid: int, now: float) -> str:
        """A process has ended: what to tell the operator if it was a service, else ""."""
        for kind, service in self._services.items():
            if service.pid == pid:
                service.failures = 1 if now - service.since >= SETTLED_S else service.failures + 1
                again = service.failures - 1  # the first death is repaired at once
                wait_s = pause_s(again, PAUSE_S, PAUSE_MAX_S, self._random) if again else 0.0
                service.pid, service.due = 0, now + wait_s
                return f"the {kind} service {pid} died; starting another in {wait_s:.1f} s"
        return ""

    def due(self, now: float) -> list[str]:
        """The kinds to ask the launcher for now; it answers a second question about a living one with its pid."""
        missing = [kind for kind, service in self._services.items() if not service.pid and service.due <= now]
        for kind in missing:
            self._services[kind].due = now + ANSWER_S
        return missing
