"""Calling the user's functions when something happens, without letting them hold up anything of ours.

Invariant: callbacks run one after the other, in the order of what happened, in a thread of their own; one that raises
is logged and costs the others nothing. The thread that hears the news never waits for them.
"""

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any, Final

log = logging.getLogger("zcluster.handle")

# A callback that hangs while every worker of a large cluster dies and comes back some forty times.
WAITING_MAX: Final = 10_000
END_TIMEOUT_S: Final = 5.0  # what callbacks that are still running or waiting get when the handle is closed

Callback = Callable[[Any], object]


class Callbacks:
    """A queue of calls and the thread that makes them. Any thread may call any method."""

    def __init__(self, name: str) -> None:
        self._queue: queue.Queue[tuple[Callback, object] | None] = queue.Queue(WAITING_MAX)
        self._lost = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, fn: Callback, argument: object) -> None:
        """Have `fn(argument)` called; dropped, and logged, when WAITING_MAX calls wait already."""
        try:
            self._queue.put_nowait((fn, argument))
        except queue.Full:
            self._lost += 1
            if self._lost == 1 or self._lost % 1000 == 0:
                log.error(
                    "%d callbacks were dropped: %d wait behind one that does not return", self._lost, WAITING_MAX
                )

    def _run(self) -> None:
        while True:
            item = self._queue.get()
            if item is None:
                return
            fn, argument = item
            try:
                fn(argument)
            except (Exception, SystemExit):  # the user's code: told, and no reason to lose the rest
                log.exception("a callback of the cluster raised: %r(%r)", fn, argument)

    def close(self, timeout_s: float = END_TIMEOUT_S) -> None:
        """Let what waits be called, for at most `timeout_s`, and end the thread. A callback may call this itself."""
        try:
            self._queue.put(None, timeout=timeout_s)
        except queue.Full:
            log.error("callbacks are still waiting behind one that does not return; they are given up")
            return
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                log.error("a callback is still running %g s after the end of the cluster's handle", timeout_s)
