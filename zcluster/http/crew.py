"""The threads of an engine: one leads the loop, the others run requests that block, or rest.

Invariant: at most one thread leads, and whoever leads came by it in one atomic step: it popped the only element of
`_vacant`. A leader gives the loop up by returning from it, or loses it while it is inside the application, when
somebody else pops its entry of `inline`; whoever pops that entry decides.

Theory of operation. The leader runs the application itself, inline: no hand-over, no queue, no second thread awake.
While it does, the running request lies in `inline`, a list made anew for each time somebody leads, so that nobody
can pop what is another's. Two things can happen:

    it returns in time   the leader pops its own entry, and goes on leading
    it does not          the monitor, looking every TICK_S, sees the same request again, pops the entry, and makes the
                         loop vacant; a resting thread takes it. The old leader finds its entry gone when the
                         application returns: its connection goes back to the loop through a queue, and it
                         becomes one of the others

Requests that are known to block, or to wait for their client, never run inline: the leader puts them into `_jobs`.
When no thread is free they wait there, each with its connection, so the queue is bounded by the connections.

Lists and deques serve as the atomic operations: append and pop are single steps under the GIL, and cost 30 ns, a
tenth of a lock. Nothing here compares and then stores.
"""

import _thread
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

# How long a request may hold the loop before it is taken away. Below, the monitor itself costs: it wakes so often
# only while requests are running, and each time somebody must give it the GIL.
TICK_S = 0.005
# When for half a second (of ticks) nothing had to be taken away, requests are quick, or known: the first one that is
# not costs the others up to 40 ms instead of 10. Measured on a virtual machine, where a timer costs 0.17 ms, with a
# Werkzeug hello, 21,000 requests a second in each of two workers: 37 us of CPU per request with ticks of 5 ms for
# ever, 31 with these.
CALM_TICKS, CALM_TICK_S = 100, 0.02
REST_TICKS = 2  # without any request in between: then the monitor rests until the loop calls it


class Relieved(BaseException):
    """The loop was taken away from the thread that raises this: it unwinds, and must touch nothing of the loop's.

    No Exception: what guards the loop against a connection's errors must let it pass.
    """


class Job(Protocol):
    """A request as the crew sees it."""

    done: bool
    started: float  # when it entered the application
    method: str
    path: str

    def progress(self) -> int:
        """Bytes that have moved between the application and its client; -1 while a thread waits for the client."""

    def perform(self) -> None:
        """Run to the end, in any thread; raises nothing."""


class Crew:
    """Up to `threads` threads, the one that calls `run` among them; the others start when they are first needed."""

    def __init__(self, threads: int, lead: Callable[[], bool], name: str) -> None:
        self.inline: list[Job] = []  # what the leader runs itself, at most one
        self.off_loop: dict[Job, int] = {}  # what other threads run, and which (threading.get_ident)
        self.resting = threads > 1  # the monitor, if there is one; written by itself and by the leader that wakes it
        self.beat = 0  # requests finished, whatever their status; the leader's to count
        # Who may wait for a client: half of the threads, so that the others are there for requests that block for
        # other reasons. None where there are one or two: one leads, and the only other one waits for nobody.
        self._patience: list[int] = [0] * (threads // 2 if threads > 2 else 0)
        # And who may wait when even the disk space for its client is used up: all but two of them. A single thread
        # may: strictly one request at a time is what was asked for.
        self._last_resort: list[int] = [0] * (1 if threads == 1 else max(0, threads - 2 - len(self._patience)))
        self.many = threads > 1
        self._lead = lead  # returns whether the loop is over; False: it was taken away
        self._threads, self._name = threads, name
        self._vacant: list[int] = [1]
        self._jobs: deque[Job] = deque()
        self._resters: list[_thread.LockType] = []
        self._started: list[threading.Thread] = []
        self._unstarted: list[int] = list(range(threads - 1))
        self._over = False
        self._leader = 0  # the thread that leads, or led last
        self._bell = _thread.allocate_lock()  # held while nobody calls the monitor
        self._failure: BaseException | None = None

    # ---- life ------------------------------------------------------------------------------------------------------
    def run(self) -> None:
        """Lead, or work, until the loop is over and every other thread has ended; raises what the loop raised."""
        monitor = None
        self._bell.acquire()
        if self._threads > 1:
            monitor = threading.Thread(target=self._watch, name=f"{self._name}-monitor")
            monitor.start()
        try:
            self._work()
        finally:
            if monitor is not None:
                self._ring()
                monitor.join()
            for thread in self._started:
                thread.join()
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        """What every thread does until the end: lead if nobody does, else the next job, else rest."""
        me = _thread.allocate_lock()
        me.acquire()
        while not self._over:
            if self._take_the_loop():
                self._lead_once()
                continue
            try:
                job = self._jobs.popleft()
            except IndexError:
                self._rest(me)
                continue
            self.off_loop[job] = threading.get_ident()
            job.perform()
            self.off_loop.pop(job, None)
            del job  # a thread at rest must not keep a request alive

    def _take_the_loop(self) -> bool:
        try:
            self._vacant.pop()
        except IndexError:
            return False
        return True

    def _lead_once(self) -> None:
        self._leader = threading.get_ident()
        self.inline = []
        try:
            over = self._lead()
        except (
            BaseException
        ) as error:  # a bug of the engine: it ends, and the thread that called `run` raises this too
            self._failure = error
            self._end()
            raise
        if over:
            self._end()

    def _end(self) -> None:
        self._over = True
        while self._resters:
            self._call_one()

    def _rest(self, me: _thread.LockType) -> None:
        """Until somebody calls. Something may have come between the last look and the list."""
        self._resters.append(me)
        if self._vacant or self._jobs or self._over:
            try:
                self._resters.remove(me)
            except ValueError:
                pass  # called at this moment: the lock is, or will be, released
            else:
                return
        me.acquire()

    def _call_one(self) -> bool:
        """Wake a resting thread, or start one if there may be more; else the next that becomes free will look."""
        try:
            self._resters.pop().release()
        except IndexError:
            return self._start()
        return True

    def _start(self) -> bool:
        if self._over:
            return False
        try:
            number = self._unstarted.pop()
        except IndexError:
            return False
        # No daemon: threads that the app starts in a request inherit that, and would be cut off at the exit.
        thread = threading.Thread(target=self._work, name=f"{self._name}-{self._threads - number}")
        self._started.append(thread)  # before it is: it may be the one that asks whether there are others
        try:
            thread.start()
        except RuntimeError:  # the machine has no more threads now: the others must do, until it is asked again
            self._started.remove(thread)
            self._unstarted.append(number)
            return False
        return True

    def running(self) -> list[Job]:
        """What runs now, for whoever asks, from any thread."""
        return [job for job in (*self.inline, *self.off_loop) if job.started and not job.done]

    def threads(self) -> list[tuple[Job, int]]:
        """The same with the thread each runs in; of one that has just begun it may be the wrong one."""
        leader, inline = self._leader, list(self.inline)
        elsewhere = [(job, self.off_loop.get(job, 0)) for job in list(self.off_loop)]
        found = [*((job, leader) for job in inline), *elsewhere]
        return [(job, thread) for job, thread in found if job.started and not job.done]

    # ---- for the leader --------------------------------------------------------------------------------------------
    def give(self, job: Job) -> bool:
        """Have another thread run this, as soon as one is free; false when there is none, nor can be."""
        self._jobs.append(job)
        if self._call_one() or self._started:
            return True
        try:
            self._jobs.remove(job)
        except ValueError:  # somebody has taken it
            return True
        return False

    def step_down(self, tenure: "list[Job] | None") -> bool:
        """The caller, inside a request, is about to wait: true when it does not hold the loop (any more)."""
        if not tenure:
            return True  # never held it, or lost it meanwhile
        if not self._resters and not self._start():
            return False  # nobody to take it
        self._relieve()
        return True

    def take_patience(self, *, last_resort: bool = False) -> bool:
        """Whether one more thread may wait for its client; given back by `give_patience`."""
        try:
            (self._last_resort if last_resort else self._patience).pop()
        except IndexError:
            return False
        return True

    def give_patience(self, *, last_resort: bool = False) -> None:
        """A thread has stopped waiting for its client."""
        (self._last_resort if last_resort else self._patience).append(0)

    def wake_monitor(self) -> None:
        """A request begins while the monitor rests."""
        self.resting = False
        self._ring()

    def _ring(self) -> None:
        try:
            self._bell.release()
        except RuntimeError:
            pass  # somebody has called already, and the monitor is about to hear it

    # ---- the monitor -----------------------------------------------------------------------------------------------
    def _relieve(self) -> None:
        """Take the loop away from a leader that is inside the application."""
        try:
            job = self.inline.pop()
        except IndexError:
            return  # it came back at this moment
        self.off_loop[job] = self._leader  # still: the loop is not vacant yet
        if job.done:  # and has looked already: nobody else would forget it
            self.off_loop.pop(job, None)
        self._vacant.append(1)
        self._call_one()

    def _watch(self) -> None:
        idle, calm, seen = 0, 0, -1
        while not self._over:
            if idle < REST_TICKS:
                self._bell.acquire(timeout=TICK_S if calm < CALM_TICKS else CALM_TICK_S)
            else:
                self.resting = True
                # A leader looks at `resting` after it has filled `inline`, we the other way round: one of us sees it.
                if not self.inline and not self._over:
                    self._bell.acquire()
                idle, seen, self.resting = 0, -1, False
                continue
            calm += 1
            if not self.inline:
                idle += 1
            elif self.beat == seen:
                calm = 0
                self._relieve()
            else:
                idle = 0
            seen = self.beat
