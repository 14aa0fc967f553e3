"""A small real master for the tests of the bus: a Hub, served by a thread of the test or by a process of its own."""

import os
import sys
import threading
import time
from collections import deque
from pathlib import Path
from queue import SimpleQueue

from zcluster.bus.hub import Hub
from zcluster.core.messages import (
    EVENTS,
    TOTALS,
    Answer,
    Ask,
    Event,
    Hello,
    Resync,
    Snapshot,
    Totals,
    Welcome,
)


def start_time(pid):
    """Field 22 of proc(5) stat."""
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19])


def until(condition, timeout_s=20.0):
    """Wait for a condition that another thread brings about."""
    end, pause = time.monotonic() + timeout_s, threading.Event()
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        pause.wait(0.005)


class Master:
    """Welcomes Hellos and Resyncs, answers an Ask with its own arguments, ticks; `do` runs code in its thread."""

    def __init__(self, run_dir, epoch=1, *, heartbeat_s=0.2, recent=100_000, totals=None, uids=None):
        self.hub = Hub(str(run_dir), epoch, uids)
        self.epoch, self.heartbeat_s = epoch, heartbeat_s
        self.totals = dict(totals or {})
        self.recent = deque(maxlen=recent)
        self.arrivals = []
        self.hellos = self.resyncs = 0
        self.largest_turn = 0
        self.ticking, self.welcoming = True, True
        self.start = start_time(os.getpid())
        self.on_ready = None
        self._todo = SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.hub.register(self._wake)
        self._running = True
        self._thread = None

    def snapshot(self):
        heads, dropped = dict(self.hub.heads), dict(self.hub.dropped)
        pid = os.getpid()
        return Snapshot(
            "t", (), self.epoch, 1, "running", 1, pid, 1, dict(self.totals), (), heads, dropped, tuple(self.recent)
        )

    def publish_totals(self, **totals):
        self.totals.update(totals)
        return self.hub.publish(TOTALS, lambda number: Totals(self.epoch, number, totals))

    def publish_event(self, text="", *, lose=False):
        number = self.hub.heads.get(EVENTS, 0) + 1
        event = Event(self.epoch, number, "online", None, text)
        self.recent.append(event)
        if lose:
            self.hub.heads[EVENTS] = number
        else:
            self.hub.publish(EVENTS, lambda _: event)

    def turn(self, timeout_s):
        arrivals, ready = self.hub.poll(timeout_s)
        self.largest_turn = max(self.largest_turn, sum(a.source == "evt" for a in arrivals))
        for arrival in arrivals:
            message = arrival.message
            self.arrivals.append(arrival)
            if isinstance(message, Hello | Resync):
                self.hellos += isinstance(message, Hello)
                self.resyncs += isinstance(message, Resync)
                if self.welcoming:
                    self.hub.welcome(arrival.peer, Welcome(os.getpid(), self.start, self.snapshot()))
            elif isinstance(message, Ask):
                self.hub.send(arrival.peer, Answer(message.number, "", message.args))
            elif self.on_ready is not None:
                self.on_ready(arrival)
        if self._wake in ready:
            os.eventfd_read(self._wake)
            while not self._todo.empty():
                self._todo.get()()

    def serve(self):
        ticked = 0.0
        while self._running:
            if self.ticking and time.monotonic() - ticked >= self.heartbeat_s:
                ticked = time.monotonic()
                self.hub.tick()
            self.turn(self.heartbeat_s / 4)

    def do(self, code):
        """Run code in the serving thread and return its result."""
        done, box = threading.Event(), []

        def run():
            try:
                box.append(code())
            finally:
                done.set()

        self._todo.put(run)
        os.eventfd_write(self._wake, 1)
        assert done.wait(60)  # 100,000 broadcasts in one go take 2 s on an idle machine
        return box[0]

    def __enter__(self):
        self._thread = threading.Thread(target=self.serve)
        self._thread.start()
        return self

    def stop_serving(self):
        """Before anything that the thread uses is closed."""
        self._running = False
        self._thread.join()

    def __exit__(self, *_):
        self.stop_serving()
        self.hub.unregister(self._wake)
        os.close(self._wake)
        self.hub.close(linger_ms=0)


if __name__ == "__main__":
    master = Master(sys.argv[1], int(sys.argv[2]), totals={"requests": int(sys.argv[3])})
    print("up", flush=True)
    master.serve()
