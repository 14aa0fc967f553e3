"""What an engine is doing, as another thread of the process may read it.

Invariant: only the thread that leads writes; every attribute is a plain number (or a dict of a fixed vocabulary), so
a reader needs no lock and at worst sees the value of a moment ago. What the crew knows is asked of it.
"""

from collections.abc import Callable, Iterable

from .crew import Job


class Stats:
    """Live figures of one engine; times are `time.monotonic()` seconds."""

    __slots__ = (
        "_finished",
        "_running",
        "_threads",
        "connections",
        "failures",
        "headers_dropped",
        "loop_tick",
        "refused",
    )

    def __init__(
        self,
        running: Callable[[], Iterable[Job]],
        finished: Callable[[], int] = int,
        threads: Callable[[], list[tuple[Job, int]]] = list,
    ) -> None:
        self._running = running
        self._finished = finished
        self._threads = threads
        self.connections = 0  # open
        self.loop_tick = 0.0  # when the loop last came round
        self.failures = 0  # internal errors of the engine itself: a bug of ours, logged
        self.headers_dropped = 0  # header fields with an underscore in their name
        self.refused: dict[str, int] = {}  # requests the application never saw, by reason

    @property
    def requests(self) -> int:
        """Requests completed, whatever their status."""
        return self._finished()

    @property
    def inflight(self) -> int:
        """Requests in the application right now."""
        return len(list(self._running()))

    @property
    def oldest_started(self) -> float:
        """When the oldest of them entered it; 0.0 when there is none."""
        return min((request.started for request in self._running()), default=0.0)

    def threads(self) -> list[tuple[Job, int]]:
        """The requests in the application, each with the thread it runs in."""
        return self._threads()

    def slow(self, now: float, older_than_s: float, most: int) -> list[tuple[str, str, float]]:
        """Method, path and age of those that have been in it for longer, the oldest first, at most so many."""
        found = [
            (request.method, request.path, now - request.started)
            for request in self._running()
            if now - request.started > older_than_s
        ]
        return sorted(found, key=lambda one: -one[2])[:most]

    def refuse(self, reason: str) -> None:
        """Count one refused request; reasons are our own words, never the client's, so the dict stays small."""
        self.refused[reason] = self.refused.get(reason, 0) + 1
