"""What a worker says of itself with each heartbeat.

Invariant: a heartbeat cannot fail because clients, or the app, have taken all descriptors.
"""

import os
import resource
import threading
from typing import Final

from zcluster.core.messages import Beat
from zcluster.core.slow import SLOW_AFTER_S, SLOW_MAX, slow_requests

from .engine import Engine
from .overdue import Overdue

PAGE_BYTES: Final = resource.getpagesize()


class Beats:
    """Used by the worker's main thread. `fd` is opened once, for life."""

    def __init__(self, engine: Engine, overdue: Overdue) -> None:
        self._engine, self._overdue = engine, overdue
        self.fd = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)

    def take(self, now: float, *, serving: bool, state: str) -> Beat:
        """The beat at `now` (monotonic seconds); `serving`: the engine's loop runs; `state` as in the lane."""
        stats = self._engine.stats
        oldest = stats.oldest_started
        pages = int(os.pread(self.fd, 256, 0).split()[1])
        return Beat(
            requests=stats.requests,
            inflight=stats.inflight,
            connections=stats.connections,
            threads=threading.active_count(),
            rss_bytes=pages * PAGE_BYTES,
            oldest_request_s=max(0.0, now - oldest) if oldest else 0.0,
            loop_lag_s=max(0.0, now - stats.loop_tick) if serving and not stats.inflight else 0.0,
            slow=slow_requests(stats.slow(now, SLOW_AFTER_S, SLOW_MAX)),
            refused=dict(stats.refused),
            stuck=self._overdue.stuck,
            given_up=self._overdue.given_up,
            state=state,
        )
