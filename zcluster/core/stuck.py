"""Requests that stay in the application for longer than --timeout: which, since when, and which are given up.

Invariant: what counts is time in which the application had the request and did nothing with it. Whenever a byte moves
between it and its client the count begins anew, and it stands still while a thread waits for the client: so neither a
slow client, nor a stream that goes on, nor a large upload is ever taken for stuck.

Theory of operation. Nothing is measured on the way of a request: whoever asks, a few times a second, brings what runs
now, and `look` compares it with what it saw the last time. So a moment may be late by one look, never early. After a
look that itself came late (the process was stopped, or its machine was) the time in between is nobody's fault.

    in the application for the limit               `stuck`, and told once
    ... and for the grace, too                     `given_up`: it will hardly come back, the worker is replaced
"""

from collections.abc import Iterable
from typing import Final

from msgspec import Struct

LATE_LOOK_S: Final = 1.0  # a busy machine lets nobody wait for so long
LATE_LOOKS: Final = 4  # where looks are rarer than four times a second


class Running(Struct, frozen=True):
    """A request that is in the application. `key` and `started` together name it while it runs."""

    key: int
    started: float  # seconds of the clock that `look` is given
    progress: int  # bytes moved so far; -1: a thread waits for the client
    method: str
    path: str
    thread: int = 0


class Stuck(Struct, frozen=True):
    """One that is over the limit."""

    request: Running
    age_s: float
    idle_s: float  # without an end, and without a byte


class StuckWatch:
    """The requests of one worker, looked at every `period_s`. Not thread-safe; `limit_s` 0: none is ever stuck."""

    def __init__(self, limit_s: float, grace_s: float, period_s: float) -> None:
        self.stuck: tuple[Stuck, ...] = ()  # by now, oldest first
        self.given_up: tuple[Stuck, ...] = ()  # those of them that have had the grace as well
        self._limit_s, self._grace_s = limit_s, grace_s
        self._late_s = max(LATE_LOOK_S, LATE_LOOKS * period_s)
        self._seen: dict[tuple[int, float], tuple[float, int]] = {}  # since when, and at how many bytes
        self._told: set[tuple[int, float]] = set()
        self._looked: float | None = None

    def look(self, running: Iterable[Running], now: float) -> list[Stuck]:
        """Take note of what runs; returns what has gone over the limit, each request once in its life."""
        if not self._limit_s:
            return []
        passed_s = 0.0 if self._looked is None else now - self._looked
        lag_s = passed_s if passed_s > self._late_s else 0.0
        self._looked = now
        seen, stuck = {}, []
        for request in running:
            key = (request.key, request.started)
            since = self._since(request, now)
            if key in self._seen:
                since = min(now, since + lag_s)
            seen[key] = (since, request.progress)
            if now - since >= self._limit_s:
                stuck.append(Stuck(request, now - request.started, now - since))
        self._seen = seen
        self._told.intersection_update(seen)
        self.stuck = tuple(sorted(stuck, key=lambda one: -one.idle_s))
        self.given_up = tuple(one for one in self.stuck if one.idle_s >= self._limit_s + self._grace_s)
        news = [one for one in self.stuck if (one.request.key, one.request.started) not in self._told]
        self._told.update((one.request.key, one.request.started) for one in news)
        return news

    def _since(self, request: Running, now: float) -> float:
        before = self._seen.get((request.key, request.started))
        if before is None:
            return request.started if request.progress == 0 else now
        since, progress = before
        return since if request.progress == progress >= 0 else now
