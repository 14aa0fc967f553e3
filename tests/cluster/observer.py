"""A peer on a cluster's bus that only looks: snapshots at the rate of the bus, and every event since it joined."""

import itertools
import os
import time

import msgspec
from anatomy import PATIENCE_S, instance

from zcluster.bus.link import Link
from zcluster.core import messages as m

_numbers = itertools.count(1_000_000)  # of questions: apart from those of handles in this process


class Observer:
    """Used by the thread of the test; a context manager."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.events = []  # m.Event, in order
        self._answers = {}
        # It notices gaps soon, but does not take a hiccup of a busy machine for a broken link: a test may have made
        # it impossible to open another one.
        self.link = Link(
            str(instance(cluster)),
            lambda link: m.Hello(link, "handle", os.getpid()),
            heartbeat_s=0.1,
            tick_timeout_s=60.0,
        )

    def __enter__(self):
        self.wait(lambda: self.link.joined, "the observer has joined")
        return self

    def __exit__(self, *_):
        self.link.close(linger_ms=0)

    def look(self, timeout_s=0.005):
        """Take what has arrived, waiting a moment for it."""
        for item in self.link.poll(timeout_s)[0]:
            if isinstance(item, m.Event):
                self.events.append(item)
            elif isinstance(item, m.Answer):
                self._answers[item.number] = item

    def wait(self, condition, what, timeout_s=PATIENCE_S):
        """Look until `condition()` is true; returns its value."""
        deadline = time.monotonic() + timeout_s
        while not (value := condition()):
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {timeout_s} s: {what}\nlog:\n{self.cluster.log}")
            self.look()
        return value

    def ask(self, verb, args=None, timeout_s=PATIENCE_S):
        """Ask the master; returns its Answer."""
        number = next(_numbers)
        self.link.send(m.Ask(number, verb, msgspec.Raw(msgspec.msgpack.encode(args))))
        return self.wait(lambda: self._answers.pop(number, None), f"an answer to {verb!r}", timeout_s)

    def snapshot(self):
        return msgspec.msgpack.decode(self.ask("snapshot").body, type=m.Snapshot)

    def workers(self):
        """pid -> WorkerInfo, now."""
        return {worker.pid: worker for worker in self.snapshot().workers}

    def wait_state(self, pid, *states, timeout_s=PATIENCE_S):
        """Until this worker is in one of these states; returns its WorkerInfo."""
        seen = []

        def there():
            info = self.workers().get(pid)
            if info and info.state not in seen:
                seen.append(info.state)
            return info if info and info.state in states else None

        return self.wait(there, f"worker {pid} is {' or '.join(states)}; it was {seen}", timeout_s)

    def happened(self, kind, pid):
        """The event of this kind and worker, or None."""
        return next((e for e in self.events if e.kind == kind and e.worker and e.worker.pid == pid), None)

    def wait_exit(self, pid, timeout_s=PATIENCE_S):
        """Until this worker's exit was told; returns its WorkerInfo with the status."""
        return self.wait(lambda: self.happened("exit", pid), f"the exit of {pid}", timeout_s).worker

    def wait_ready(self, count, without=(), timeout_s=PATIENCE_S):
        """Until every slot has one ready worker, none of them in `without`; returns them by slot."""

        def all_ready():
            there = self.snapshot().workers
            whole = [w.slot for w in there] == list(range(count)) and {w.state for w in there} == {"ready"}
            return {w.slot: w for w in there} if whole and not {w.pid for w in there} & set(without) else None

        return self.wait(all_ready, f"{count} workers are ready, without {without}", timeout_s)
