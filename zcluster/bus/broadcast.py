"""What the master tells everybody: totals and events.

Invariant: what is published says what is. Totals are absolute, events are kept for whoever missed them; so a peer
that lost a frame is put right by the next one or by a snapshot.
"""

import time
from collections import deque
from collections.abc import Mapping

from zcluster.bus.hub import Hub
from zcluster.core.messages import EVENTS, TOTALS, Event, Totals, WorkerInfo

TOTALS_S = 0.05  # totals go out at once, then at most 20 times a second: a person sees no more, a bus gains a lot
RECENT = 1000  # events a peer may have missed while it was stopped; of older ones it is told that they are lost


class Broadcast:
    """The numbered topics of one epoch; used by the master's thread."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._published: dict[str, int] = {}
        self.recent: deque[Event] = deque(maxlen=RECENT)
        self.due = 0.0  # when totals may go out again

    def totals(self, totals: Mapping[str, int], now: float) -> None:
        """Publish those that changed since the last time."""
        news = {name: total for name, total in totals.items() if self._published.get(name) != total}
        if news:
            self.due = now + TOTALS_S
            self._published.update(news)
            self._hub.publish(TOTALS, lambda number: Totals(self._hub.epoch, number, news))

    def event(self, kind: str, worker: WorkerInfo | None, text: str) -> None:
        """Publish an event and remember it."""

        def make(number: int) -> Event:
            event = Event(self._hub.epoch, number, kind, worker, text, time_s=round(time.time(), 3))
            self.recent.append(event)
            return event

        self._hub.publish(EVENTS, make)
