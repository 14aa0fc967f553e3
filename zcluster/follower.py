"""The thread of a handle: follows a cluster on the bus, carries questions to its master, and sees its launcher end.

Invariant: the link, and the mailbox's side of it, belong to this thread alone. Others leave orders in a queue and
ring; nothing they do blocks it.
"""

import itertools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from msgspec import Raw, msgpack

from zcluster.bus.link import Link
from zcluster.core.mail import MEMBERS, TOPICS
from zcluster.core.messages import EVENTS, TOTALS, Answer, Ask, Hello, Leaving
from zcluster.errors import BusError, Refusal

if TYPE_CHECKING:
    from zcluster.bus.mailbox import Mailbox

log = logging.getLogger("zcluster.handle")

POLL_S: Final = 1.0  # everything wakes the thread; this only bounds what a bug could cost
# A link that is being replaced when the handle is closed is back within some 20 ms, unless there is no master.
LEAVE_S: Final = 1.0
LAST_WORDS_S: Final = 0.05  # after the launcher has ended: what the master published is in our socket by now
_numbers = itertools.count(1)  # of questions: a master tells repetitions by (pid, number), so one count per process

Then = Callable[["Raw | BusError"], None]


class _Question:
    """One Ask, and what is done with the body of its Answer, or with the reason why there is none."""

    def __init__(self, verb: str, args: object, then: Then) -> None:
        self.ask = Ask(next(_numbers), verb, Raw(msgpack.encode(args)))
        self._then = then

    def answer(self, answer: Answer | None) -> None:
        if answer is None:
            self._then(BusError(f"the cluster ended before its master answered {self.ask.verb!r}"))
        else:
            self._then(Refusal(self.ask.verb, answer.error) if answer.error else answer.body)


@dataclass(frozen=True)
class _Wait:
    """Something to do as soon as a condition holds, or at the end of patience (monotonic seconds)."""

    is_over: Callable[[], bool]
    until: float
    then: Callable[[], object]


class Follower:
    """Follow the cluster in `run_dir` until its launcher ends (`launcher_fd`, a pidfd, which stays the caller's).

    `on_batch` is given what the link delivers; `on_end` is called once, last, by the same thread. `mailbox`, if there
    is one, is under this name a member of the cluster; `owner`: of the one that this process has started.
    """

    def __init__(
        self,
        run_dir: str,
        launcher_fd: int,
        heartbeat_s: float,
        on_batch: Callable[[Sequence[object]], None],
        on_end: Callable[[], None],
        *,
        mailbox: "Mailbox | None" = None,
        owner: bool = False,
    ) -> None:
        self._run_dir, self._launcher_fd, self._heartbeat_s = run_dir, launcher_fd, heartbeat_s
        self._on_batch, self._on_end = on_batch, on_end
        self._mailbox, self._owner = mailbox, owner
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()  # guards the bell's life and the orders
        self._orders: deque[_Question | int | _Wait] = deque()  # to ask, or the number of one to forget
        self._asked: dict[int, _Question] = {}  # the thread's own
        self._waits: list[_Wait] = []  # as well
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="zcluster-handle", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def ask(self, verb: str, args: object, timeout_s: float | None) -> Raw:
        """Ask the master and return the body of its answer; `timeout_s` None: as long as the cluster lives.

        Raises `Refusal` when it answers with an error, `BusError` when it does not answer in time.
        """
        done: deque[Raw | BusError] = deque()
        arrived = threading.Event()

        def then(answer: Raw | BusError) -> None:
            done.append(answer)
            arrived.set()

        number = self.ask_then(verb, args, then)
        if not arrived.wait(timeout_s):
            self._order(number)
            raise BusError(
                f"the master did not answer {verb!r} within {timeout_s:g} s; it may be stopped or overloaded"
            )
        answer = done.pop()
        if isinstance(answer, BusError):
            raise answer
        return answer

    def ask_then(self, verb: str, args: object, then: Then) -> int:
        """Ask, and have `then` called with the answer's body or a `BusError`: by this thread, so it must not wait.

        Returns the number of the question.
        """
        question = _Question(verb, args, then)
        if not self._order(question):
            question.answer(None)
        return question.ask.number

    def when(self, is_over: Callable[[], bool], limit_s: float, then: Callable[[], object]) -> None:
        """Have this thread call `then` as soon as mail has made a condition true, and after `limit_s` in any case."""
        if not self._order(_Wait(is_over, time.monotonic() + limit_s, then)):
            then()

    def ring(self) -> None:
        """Have the thread look at its orders and its mailbox."""
        with self._lock:
            self._ring()

    def close(self) -> None:
        """Stop following and wait for the thread, unless it is the one that calls."""
        with self._lock:
            self._closing = True
            self._ring()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _order(self, order: _Question | int | _Wait) -> bool:
        with self._lock:
            if self._bell < 0:
                return False
            self._orders.append(order)
            self._ring()
            return True

    def _ring(self) -> None:
        if self._bell >= 0:
            os.eventfd_write(self._bell, 1)

    # ---- in the thread ---------------------------------------------------------------------------------------------
    def _run(self) -> None:
        try:
            topics: tuple[str, ...] = (TOTALS, EVENTS)
            if self._mailbox is not None:
                topics += (MEMBERS, TOPICS) if self._mailbox.subscriptions.has_topics() else (MEMBERS,)
            link = Link(self._run_dir, self._hello, topics=topics, heartbeat_s=self._heartbeat_s)
            try:
                link.register(self._bell)
                link.register(self._launcher_fd)
                has_ended = self._follow(link)
                if self._mailbox is not None and not has_ended:
                    self._take_leave(link)
            finally:
                link.close()
        except Exception:
            log.exception("following the cluster in %s has failed; this handle hears no more of it", self._run_dir)
        finally:
            self._end()
            self._on_end()

    def _hello(self, link: bytes) -> Hello:
        name = self._mailbox.name if self._mailbox is not None else ""
        return Hello(link, "handle", os.getpid(), mailbox=name, owner=self._owner)

    def _follow(self, link: Link) -> bool:
        """Until the handle is closed, or (true) the launcher has ended."""
        ended = False
        while not (ended or self._closing):
            delivered, ready = link.poll(self._patience_s())
            self._take(delivered)
            if self._bell in ready:
                os.eventfd_read(self._bell)
                self._carry_out(link)
            if self._mailbox is not None:
                self._mailbox.pump(link, time.monotonic())
            self._look_at_waits(time.monotonic())
            ended = self._launcher_fd in ready
        if ended or self._launcher_fd in link.poll(0)[1]:
            link.unregister(self._launcher_fd)
            while delivered := link.poll(LAST_WORDS_S)[0]:
                self._take(delivered)
            return True
        return False

    def _take_leave(self, link: Link) -> None:
        """Say that we go, so that nobody keeps mail for us: this process, and so our name, may live on for long."""
        link.unregister(self._bell)
        end = time.monotonic() + LEAVE_S
        while not link.joined and (left_s := end - time.monotonic()) > 0:
            if self._launcher_fd in link.poll(left_s)[1]:
                return
        if link.joined:
            link.send(Leaving("its handle is closed"))

    def _patience_s(self) -> float:
        dues = [wait.until for wait in self._waits]
        if self._mailbox is not None:
            dues.append(self._mailbox.due)
        due = min(dues, default=float("inf"))
        return min(POLL_S, max(0.0, due - time.monotonic()))

    def _look_at_waits(self, now: float) -> None:
        waits, self._waits = self._waits, []
        for wait in waits:
            if now >= wait.until or wait.is_over():
                wait.then()
            else:
                self._waits.append(wait)

    def _take(self, delivered: Sequence[Any]) -> None:
        """Mail first goes to the mailbox: what a worker has sent before its exit is told before its exit."""
        now = time.monotonic()
        for message in delivered:
            if isinstance(message, Answer):
                question = self._asked.pop(message.number, None)
                if question is not None:
                    question.answer(message)
            elif self._mailbox is not None:
                self._mailbox.take(message, now)
        if delivered:
            self._on_batch(delivered)

    def _carry_out(self, link: Link) -> None:
        while self._orders:
            order = self._orders.popleft()
            if isinstance(order, int):
                self._asked.pop(order, None)
                link.outbox.forget(order)
                continue
            if isinstance(order, _Wait):
                self._waits.append(order)
                continue
            self._asked[order.ask.number] = order
            try:
                link.send(order.ask)
            except BusError as error:  # the queue is full, or the question is too large
                del self._asked[order.ask.number]
                order.answer(Answer(order.ask.number, error=str(error)))

    def _end(self) -> None:
        """Nobody will answer any more: tell those who wait."""
        with self._lock:
            bell, self._bell = self._bell, -1
            os.close(bell)
            waiting = [*self._asked.values(), *(order for order in self._orders if isinstance(order, _Question))]
            waits = [*self._waits, *(order for order in self._orders if isinstance(order, _Wait))]
            self._orders.clear()
        for question in waiting:
            question.answer(None)
        if self._mailbox is not None:
            why = "this handle was closed" if self._closing else "the cluster has ended"
            self._mailbox.close(why, 0.0)  # its threads are waited for by whoever closes the handle
        for wait in waits:
            wait.then()  # its question cannot be asked any more, which is an answer
