"""A few threads that run what messages ask for: in order where order was promised, side by side otherwise.

Invariant: jobs with the same key run one after the other, in the order they were put; a job that blocks holds up its
own key and one thread.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Final

# Functions that wait (for a reply, a database) share so many threads in a process; the engine has its own.
THREADS: Final = 4

log = logging.getLogger("zcluster.messages")

Job = Callable[[], None]


class Pool:
    """Threads are started when there is work. Any thread may call any method; what a job raises is logged."""

    def __init__(self, name: str, *, threads: int = THREADS, daemon: bool = False) -> None:
        self._name, self._max, self._daemon = name, threads, daemon
        self._news = threading.Condition()
        self._jobs: dict[Hashable, deque[Job]] = {}  # a key is here while it has jobs, the running one included
        self._ready: deque[Hashable] = deque()  # keys with a job that may be run
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._unique = 0
        self._closed = False
        self.on_idle: Callable[[], None] | None = None  # called when the last job has ended; must not block or raise

    def put(self, key: Hashable | None, job: Job) -> bool:
        """Run a job: after those with the same key, or (None) as soon as a thread is free; false after `close`."""
        with self._news:
            if self._closed:
                return False
            if key is None:
                self._unique += 1
                key = (self, self._unique)
            jobs = self._jobs.get(key)
            if jobs is not None:
                jobs.append(job)
                return True
            self._jobs[key] = deque([job])
            self._ready.append(key)
            if self._idle >= len(self._ready):
                self._news.notify()
            elif len(self._threads) < self._max:
                name = f"{self._name}-{len(self._threads)}"
                thread = threading.Thread(target=self._run, name=name, daemon=self._daemon)
                self._threads.append(thread)
                thread.start()
            else:
                self._news.notify()
        return True

    def is_idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        with self._news:
            return not self._jobs

    def _run(self) -> None:
        while True:
            with self._news:
                while not self._ready:
                    if self._closed:
                        return
                    self._idle += 1
                    self._news.wait()
                    self._idle -= 1
                key = self._ready.popleft()
                job = self._jobs[key][0]
            try:
                job()
            except BaseException:  # the user's, of a kind that nobody caught: the thread, and the rest, are not lost
                log.exception("what a message asked for has failed: %r", job)
            del job  # and what it holds, while this thread waits
            with self._news:
                jobs = self._jobs[key]
                jobs.popleft()
                if jobs:
                    self._ready.append(key)
                    self._news.notify()
                else:
                    del self._jobs[key]
                idle = not self._jobs
            if idle and self.on_idle is not None:
                self.on_idle()

    def close(self, timeout_s: float) -> bool:
        """Run what waits and end the threads; false when one of them is still busy after `timeout_s` seconds."""
        with self._news:
            self._closed = True
            self._news.notify_all()
            threads = list(self._threads)
        end = time.monotonic() + timeout_s
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in threads if thread is not threading.current_thread())
