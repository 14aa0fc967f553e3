"""A crew with a loop of its own, so small that one sees what it does: a queue of requests instead of epoll."""

import queue
import threading
import time

import pytest
from http_rig import DEADLINE_S, until

from zcluster.http.crew import Crew, Relieved


class Request:
    """Something to run; `work` is called with it."""

    def __init__(self, work, *, pooled=False):
        self.method = self.path = ""
        self.pooled = pooled  # as if the predictor had said so
        self.done = False
        self.started = 0.0
        self.tenure = None
        self.thread = ""
        self.crew = None
        self.runs = 0
        self._work = work

    def perform(self):
        self.runs += 1
        self.started = time.monotonic()
        self.thread = threading.current_thread().name
        self._work(self)
        self.done = True


class Loop:
    """Runs what is put into it, inline like a connection does, and checks that nobody else leads meanwhile."""

    def __init__(self, threads):
        self.crew = Crew(threads, self._lead, "crew")
        self.todo = queue.SimpleQueue()
        self.leaders = []  # the names, in the order in which they began
        self.relieved = []
        self.refused = 0  # jobs for which there was nobody
        self.error = None
        self._leading = threading.Lock()  # held by who touches the loop, never waited for
        self._thread = threading.Thread(target=self._run, name="crew-1")

    def __enter__(self):
        self._before = set(threading.enumerate())
        self._thread.start()
        return self

    def __exit__(self, kind, *_):
        self.end()
        if kind is None:
            assert self.error is None, repr(self.error)
            left = set(threading.enumerate()) - self._before
            assert not left, f"threads were left: {left}"
            assert not self.crew.running()
            assert not self.crew.off_loop

    def end(self):
        """Let the loop be over and wait until `run` has returned."""
        self.todo.put(None)
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), "the crew did not end"

    def put(self, work, *, pooled=False):
        """Have this run."""
        request = Request(work, pooled=pooled)
        self.todo.put(request)
        return request

    def run(self, work, *, pooled=False):
        """Have this run, and wait until it is done."""
        request = self.put(work, pooled=pooled)
        until(lambda: request.done, "the request's end")
        return request

    def threads(self):
        """Names of those that live."""
        return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("crew-"))

    def _run(self):
        try:
            self.crew.run()
        except BaseException as error:
            self.error = error

    def _lead(self):
        assert self._leading.acquire(False), "two threads lead"
        self.leaders.append(threading.current_thread().name)
        try:
            while (request := self.todo.get()) is not None:
                if isinstance(request, BaseException):
                    raise request
                self._start(request)
        except Relieved:
            self.relieved.append(threading.current_thread().name)
            return False
        self._leading.release()
        return True

    def _start(self, request):
        """As Connection._start."""
        crew = self.crew
        request.crew = crew
        if request.pooled:
            if crew.give(request):
                return
            self.refused += 1
        request.tenure = tenure = crew.inline
        tenure.append(request)
        if crew.resting:
            crew.wake_monitor()
        self._leading.release()
        request.perform()
        try:
            tenure.pop()
        except IndexError:
            crew.off_loop.pop(request, None)
            raise Relieved from None
        assert self._leading.acquire(False), "two threads lead"
        crew.beat += 1


class Scarcity:
    """From `begin` to `end` the kernel has no room for the stack of another thread."""

    def begin(self):
        threading.stack_size(1 << 46)
        with pytest.raises(RuntimeError):
            threading.Thread(target=print).start()

    def end(self):
        threading.stack_size(0)


@pytest.fixture
def no_more_threads():
    """A machine that may run out of threads."""
    scarcity = Scarcity()
    yield scarcity
    scarcity.end()
