"""What the fleet can be asked: the events that somebody waits for the outcome of. `fleet_events` has them all.

Invariant: each names who asks, and is answered by one Reply to that one, now or when what was asked for has ended.
"""

from collections.abc import Mapping

from msgspec import Struct

Asker = tuple[int, int, int]  # who waits for the Reply to which question: pid, its start, number of the question
LAUNCHER = (0, 0)  # the first two of the launcher, which asks for the operator; no process has the pid 0


class Scale(Struct, frozen=True):
    """Have so many slots open; `by` counts when `to` is None."""

    asker: Asker
    to: int | None = None
    by: int = 0
    least: int = 0  # the fewest that this one may ask for


class Open(Struct, frozen=True):
    """Open one slot more, for workers with this in their environment."""

    asker: Asker
    env: Mapping[str, str] = {}


class Close(Struct, frozen=True):
    """Close the slot of this worker; None: all slots."""

    asker: Asker
    worker: int | None = None


class Reload(Struct, frozen=True):
    """Introduce the code that is on disk now. The same token again is the same wish."""

    asker: Asker
    token: str


class Restart(Struct, frozen=True):
    """Replace the worker of this slot, start-first; nothing is done when `worker` (its id) is gone already."""

    asker: Asker
    slot: int
    worker: int = 0  # 0: whoever is there


class Signal(Struct, frozen=True):
    """Send this signal to the worker of this slot; not when it is another one than `worker`."""

    asker: Asker
    slot: int
    number: int
    worker: int = 0


Question = Scale | Open | Close | Reload | Restart | Signal
