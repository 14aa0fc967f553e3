"""What an engine is doing, as another thread of the process may read it.

Invariant: only the engine's thread writes; every attribute is a plain number (or a dict of a fixed vocabulary), so a
reader needs no lock and at worst sees the value of a moment ago.
"""


class Stats:
    """Live figures of one engine; times are `time.monotonic()` seconds."""

    __slots__ = (
        "connections",
        "failures",
        "headers_dropped",
        "inflight",
        "loop_tick",
        "oldest_started",
        "refused",
        "requests",
    )

    def __init__(self) -> None:
        self.requests = 0  # completed, whatever their status
        self.inflight = 0  # in the application right now
        self.connections = 0  # open
        self.oldest_started = 0.0  # when the running request entered the application; 0.0 when none does
        self.loop_tick = 0.0  # when the loop last came round
        self.failures = 0  # internal errors of the engine itself: a bug of ours, logged
        self.headers_dropped = 0  # header fields with an underscore in their name
        self.refused: dict[str, int] = {}  # requests the application never saw, by reason

    def refuse(self, reason: str) -> None:
        """Count one refused request; reasons are our own words, never the client's, so the dict stays small."""
        self.refused[reason] = self.refused.get(reason, 0) + 1
