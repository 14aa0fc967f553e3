"""The functions that a program registers for messages: `worker.on(...)`, `cluster.on("message", ...)`, `subscribe`.

Invariant: registering is all that happens here, at any time and from any thread, at import too; whoever owns the
mailbox reads it, and is told of changes. In a child forked by the zygote what was registered at import is there.
"""

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

Function = Callable[..., Any]


class Subscriptions:
    """Functions by event ("message", "disconnect") and by topic. Any thread may call any method."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: dict[str, tuple[Function, ...]] = {}
        self._topics: dict[str, tuple[Function, ...]] = {}
        self.changed: Callable[[], None] | None = None  # called after each registration; must not block or raise
        _all.add(self)

    def on(self, event: str, function: Function) -> None:
        """Call `function` at this event, after those registered before it."""
        with self._lock:
            self._events[event] = (*self._events.get(event, ()), function)
        self._tell()

    def subscribe(self, topic: str, function: Function) -> None:
        """Call `function` with what is published on this topic."""
        with self._lock:
            self._topics[topic] = (*self._topics.get(topic, ()), function)
        self._tell()

    def unsubscribe(self, topic: str, function: Function) -> None:
        """Do not call it any more; nothing when it was not registered."""
        with self._lock:
            left = tuple(f for f in self._topics.get(topic, ()) if f is not function)
            self._topics[topic] = left
            if not left:
                del self._topics[topic]
        self._tell()

    def of_event(self, event: str) -> tuple[Function, ...]:
        """The functions of an event."""
        return self._events.get(event, ())

    def of_topic(self, topic: str) -> tuple[Function, ...]:
        """The functions of a topic."""
        return self._topics.get(topic, ())

    def has_topics(self) -> bool:
        """Whether anything is subscribed to."""
        return bool(self._topics)

    def _tell(self) -> None:
        if self.changed is not None:
            self.changed()

    def _after_fork(self) -> None:
        self._lock = threading.Lock()  # another thread of the parent may have held it
        self.changed = None  # it rang for the parent's mailbox


_all: "weakref.WeakSet[Subscriptions]" = weakref.WeakSet()


def _after_fork() -> None:
    for subscriptions in list(_all):
        subscriptions._after_fork()


os.register_at_fork(after_in_child=_after_fork)  # once: what is registered there is never given back
