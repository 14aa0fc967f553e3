"""The requests of an engine that its application does not end: found, logged with their stacks, and given up.

Invariant: a request is only given up when nothing else in this process can be finished any more.
"""

import logging
import sys
import threading
import traceback
from typing import Final

from zcluster.core.slow import named
from zcluster.core.stuck import Running, Stuck, StuckWatch

from .engine import Engine
from .exchange import Exchange

STACK_MAX_FRAMES: Final = 50  # the newest ones; a recursion's thousand would say no more


class Overdue:
    """Used by one thread, which is not the engine's and looks every `period_s`. `limit_s` 0: nothing is overdue."""

    def __init__(
        self, engine: Engine, threads: int, *, limit_s: float, grace_s: float, period_s: float, log: logging.Logger
    ) -> None:
        self._engine, self._threads, self._log = engine, threads, log
        self._limit_s = limit_s
        self._watch = StuckWatch(limit_s, grace_s, period_s)

    @property
    def stuck(self) -> int:
        """How many requests are over the limit."""
        return len(self._watch.stuck)

    @property
    def given_up(self) -> int:
        """How many of these are over the grace, too."""
        return len(self._watch.given_up)

    def look(self, now: float) -> None:
        """Look at what runs (`now`: monotonic seconds), and log what is over the limit, once."""
        if not self._limit_s:
            return
        running = [
            Running(id(job), job.started, job.progress(), job.method, job.path, thread)
            for job, thread in self._engine.stats.threads()
        ]
        for one in self._watch.look(running, now):
            self._log.warning(
                "%s, longer than the limit of %g s, in thread %s:\n%s",
                _story(one),
                self._limit_s,
                _name_of(one.request.thread),
                _stack_of(one.request.thread),
            )

    def is_all_that_is_left(self) -> bool:
        """In a drain: whether only what is given up is left, or no thread is left that could do the rest."""
        return bool(self.given_up) and self.given_up >= min(self._engine.stats.connections, self._threads)

    def cut(self) -> None:
        """The process is about to end: no client may take what it got for a whole response."""
        for one in self._watch.given_up:
            self._log.error("%s; it is given up, and its client is cut off", _story(one))
        self._engine.cut()


def _story(one: Stuck) -> str:
    request = one.request
    text = f"{named(request.method, request.path)} has been in the application for {one.age_s:.1f} s"
    if one.age_s - one.idle_s > 1:
        text += f", and has given nothing for {one.idle_s:.1f} s"
    return text


def _name_of(thread: int) -> str:
    names = {other.ident: other.name for other in threading.enumerate()}
    return names.get(thread, str(thread))


def _stack_of(thread: int) -> str:
    """Where a thread is in the application, from the outermost call to the innermost; ours above it tell nothing."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "  (it has just ended)"
    stack = list(traceback.walk_stack(frame))
    ours = next((n for n, (outer, _) in enumerate(stack) if outer.f_code is Exchange.serve.__code__), len(stack))
    inside = traceback.StackSummary.extract(iter(stack[:ours][:STACK_MAX_FRAMES][::-1]), lookup_lines=True)
    return "".join(inside.format()).rstrip() or "  (it is between two calls of the application)"
