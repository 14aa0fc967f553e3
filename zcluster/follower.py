"""The thread of a handle: follows a cluster on the bus, carries questions to its master, and sees its launcher end.

Invariant: the link belongs to this thread alone. Others leave orders in a queue and ring; nothing they do blocks it.
"""

import itertools
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Raw

from zcluster.bus.link import Link
from zcluster.core.messages import Answer, Ask, Hello
from zcluster.errors import BusError

log = logging.getLogger("zcluster.handle")

POLL_S: Final = 1.0  # everything wakes the thread; this only bounds what a bug could cost
LAST_WORDS_S: Final = 0.05  # after the launcher has ended: what the master published is in our socket by now
_numbers = itertools.count(1)  # of questions: a master tells repetitions by (pid, number), so one count per process


class _Question:
    """One Ask that somebody waits for."""

    def __init__(self, verb: str, args: Raw) -> None:
        self.ask = Ask(next(_numbers), verb, args)
        self.done = threading.Event()
        self.answer: Answer | None = None


class Follower:
    """Follow the cluster in `run_dir` until its launcher ends (`launcher_fd`, a pidfd, which stays the caller's).

    `on_batch` is given what the link delivers; `on_end` is called once, last, by the same thread.
    """

    def __init__(
        self,
        run_dir: str,
        launcher_fd: int,
        heartbeat_s: float,
        on_batch: Callable[[Sequence[object]], None],
        on_end: Callable[[], None],
    ) -> None:
        self._run_dir, self._launcher_fd, self._heartbeat_s = run_dir, launcher_fd, heartbeat_s
        self._on_batch, self._on_end = on_batch, on_end
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()  # guards the bell's life and the orders
        self._orders: deque[_Question | int] = deque()  # to ask, or the number of one to forget
        self._asked: dict[int, _Question] = {}  # the thread's own
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="zcluster-handle", daemon=True)
        self._thread.start()

    def ask(self, verb: str, args: Raw, timeout_s: float) -> Raw:
        """Ask the master and return the body of its answer; for any thread but the follower's own.

        Raises `BusError` when it does not answer within `timeout_s` seconds, or answers with an error.
        """
        question = _Question(verb, args)
        self._order(question)
        if not question.done.wait(timeout_s):
            self._order(question.ask.number)
            raise BusError(
                f"the master did not answer {verb!r} within {timeout_s:g} s; it may be stopped or overloaded"
            )
        if question.answer is None:
            raise BusError(f"the cluster ended before its master answered {verb!r}")
        if question.answer.error:
            raise BusError(f"the master refused {verb!r}: {question.answer.error}")
        return question.answer.body

    def close(self) -> None:
        """Stop following and wait for the thread, unless it is the one that calls."""
        with self._lock:
            self._closing = True
            self._ring()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _order(self, order: _Question | int) -> None:
        with self._lock:
            self._orders.append(order)
            self._ring()
            ended = self._bell < 0
        if ended and isinstance(order, _Question):
            order.done.set()

    def _ring(self) -> None:
        if self._bell >= 0:
            os.eventfd_write(self._bell, 1)

    # ---- in the thread ---------------------------------------------------------------------------------------------
    def _run(self) -> None:
        try:
            link = Link(self._run_dir, _hello, heartbeat_s=self._heartbeat_s)
            try:
                link.register(self._bell)
                link.register(self._launcher_fd)
                self._follow(link)
            finally:
                link.close(linger_ms=0)
        except Exception:
            log.exception("following the cluster in %s has failed; this handle hears no more of it", self._run_dir)
        finally:
            self._end()
            self._on_end()

    def _follow(self, link: Link) -> None:
        ended = False
        while not (ended or self._closing):
            delivered, ready = link.poll(POLL_S)
            self._take(delivered)
            if self._bell in ready:
                os.eventfd_read(self._bell)
                self._carry_out(link)
            ended = self._launcher_fd in ready
        if ended or self._launcher_fd in link.poll(0)[1]:
            link.unregister(self._launcher_fd)
            while delivered := link.poll(LAST_WORDS_S)[0]:
                self._take(delivered)

    def _take(self, delivered: Sequence[object]) -> None:
        for message in delivered:
            if isinstance(message, Answer):
                question = self._asked.pop(message.number, None)
                if question is not None:
                    question.answer = message
                    question.done.set()
        if delivered:
            self._on_batch(delivered)

    def _carry_out(self, link: Link) -> None:
        while self._orders:
            order = self._orders.popleft()
            if isinstance(order, int):
                self._asked.pop(order, None)
                link.outbox.forget(order)
                continue
            self._asked[order.ask.number] = order
            try:
                link.send(order.ask)
            except BusError as error:  # the queue is full, or the question is too large
                del self._asked[order.ask.number]
                order.answer = Answer(order.ask.number, error=str(error))
                order.done.set()

    def _end(self) -> None:
        """Nobody will answer any more: tell those who wait."""
        with self._lock:
            bell, self._bell = self._bell, -1
            os.close(bell)
            waiting = [*self._asked.values(), *(order for order in self._orders if isinstance(order, _Question))]
            self._orders.clear()
        for question in waiting:
            question.done.set()


def _hello(link: bytes) -> Hello:
    return Hello(link, "handle", os.getpid())
