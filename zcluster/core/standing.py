"""How a cluster stands, in the one line that systemd and others who only look from outside are told.

Invariant: it is said when it has changed, and not else.
"""

from collections.abc import Callable

from zcluster.core import messages as m
from zcluster.core.fleet import Fleet
from zcluster.core.fleet_worker import READY


def standing(fleet: Fleet) -> str:
    """Return the line, such as `running: 4 workers, generation 2`."""
    living, wanted = fleet.living(), len(fleet.wanted)
    ready = sum(worker.state == READY for worker in living)
    state = fleet.state
    if state == "stopping":
        return f"stopping: {len(living)} workers are left"
    who = f"{wanted} workers" if ready >= wanted else f"{ready} of {wanted} workers"
    candidate = fleet.candidate
    news = f", generation {candidate.generation} is being introduced" if candidate is not None else ""
    return f"{state}: {who}, generation {fleet.generation}{news}"


class Standing:
    """What was said last. Used by the master's thread."""

    def __init__(self) -> None:
        self._said = ""

    def tell(self, fleet: Fleet, send: Callable[[m.Running], None]) -> None:
        """Send to the launcher how the cluster stands, if that is new."""
        text = standing(fleet)
        if text != self._said:
            self._said = text
            send(m.Running(0, text))
