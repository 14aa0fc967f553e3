"""Mailboxes on a real bus within one process: a master that carries mail, and peers with a thread each."""

import os
import threading
import time

from serving import Master, until

from zcluster.bus.link import Link
from zcluster.bus.mailbox import Mailbox
from zcluster.bus.peers import Peers
from zcluster.bus.relay import Relay
from zcluster.core.mail import MEMBERS, TOPICS, Got, Mail, Missing
from zcluster.core.messages import TOTALS, Hello, Leaving, Resync, Snapshot, Welcome, WorkerInfo
from zcluster.errors import ClusterError
from zcluster.subscriptions import Subscriptions

WAIT_S = 20.0  # for what takes milliseconds on an idle machine


class PostOffice(Master):
    """A master with a Relay. Who says Hello as a worker is one, ready at once, until `bury` says that it is dead."""

    def __init__(self, run_dir, epoch=1, **options):
        super().__init__(run_dir, epoch, **options)
        self.peers = Peers()
        self.relay = Relay(self.hub, self.peers)
        self.workers = {}  # id -> slot, whether it is ready
        self.next_id = 1
        self.lose = None  # a function: whether this arrival is lost

    def members(self):
        return self.relay.members(dict(self.workers), self.next_id)

    def snapshot(self):
        heads, pid = dict(self.hub.heads), os.getpid()
        return Snapshot(
            "t",
            (),
            self.epoch,
            1,
            "running",
            1,
            pid,
            1,
            {},
            (),
            heads,
            dict(self.hub.dropped),
            members=self.members(),
        )

    def turn(self, timeout_s):
        arrivals, ready = self.hub.poll(timeout_s)
        for arrival in arrivals:
            if self.lose is None or not self.lose(arrival):
                self.handle(arrival)
        self.relay.acknowledge()
        self.relay.ended(ready)
        if self.relay.changed:
            self.members()
        if self._wake in ready:
            os.eventfd_read(self._wake)
            while not self._todo.empty():
                self._todo.get()()

    def handle(self, arrival):
        message, link = arrival.message, arrival.peer
        if isinstance(message, Mail | Got | Missing):
            self.relay.take(arrival)
        elif isinstance(message, Hello):
            self.hellos += 1
            if self.peers.find(link, arrival.pid) is None:
                self.peers.add(link, arrival.pid)
                if message.worker is not None:
                    self.peers.bind(link, message.worker.id)
                    self.workers[message.worker.id] = (message.worker.slot, True)
                    self.next_id = max(self.next_id, message.worker.id + 1)
            self.relay.hello(link, message)
            self.hub.welcome(link, Welcome(os.getpid(), self.start, self.snapshot()))
        elif isinstance(message, Resync):
            self.hub.welcome(link, Welcome(os.getpid(), self.start, self.snapshot()))
        elif isinstance(message, Leaving):
            self.relay.left(self.peers.find(link, arrival.pid).mailbox)

    def bury(self, worker):
        """This worker has been killed."""

        def dead():
            del self.workers[worker]
            self.peers.forget(worker)
            self.relay.exited(worker)

        self.do(dead)

    def __exit__(self, *details):
        self.stop_serving()
        self.relay.close()
        super().__exit__(*details)


class Station:
    """A peer: its mailbox, its link and the thread of that link. `got` is what its functions were called with."""

    def __init__(self, run_dir, name, *, listens=True, topics=(), **options):
        self.name, self.run_dir, self.got, self.exits, self.options = name, str(run_dir), [], [], options
        self.on = Subscriptions()
        if listens:
            self.on.on("message", self.got.append)
        for topic in topics:
            self.listen(topic)
        self.turns = 0
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._orders, self._lock = [], threading.Lock()
        self._running, self._awake, self._resting = True, threading.Event(), threading.Event()
        self._awake.set()
        self.mailbox = Mailbox(name, self.on, lambda: None, daemon=True)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def listen(self, topic):
        self.on.subscribe(topic, self.got.append)
        self.on.on(f"lost:{topic}", lambda count: self.got.append(("lost", count)))

    def hello(self, link):
        worker = None
        if self.name.startswith("worker:"):
            id_ = int(self.name.removeprefix("worker:"))
            worker = WorkerInfo(id_, id_, id_, 1)
        role = "worker" if worker else "handle"
        return Hello(link, role, os.getpid(), worker, self.name, self.options.get("owner", False))

    def ring(self):
        with self._lock:
            if self._bell >= 0:
                os.eventfd_write(self._bell, 1)

    def _run(self):
        topics = (TOTALS, MEMBERS, TOPICS) if self.on.has_topics() else (TOTALS, MEMBERS)
        self.link = Link(self.run_dir, self.hello, topics=topics, heartbeat_s=0.2)
        self.link.register(self._bell)
        self.mailbox.attach(self.ring, self.exits.append)
        while self._running:
            if not self._awake.is_set():
                self._resting.set()
                self._awake.wait()
            due = min(self.mailbox.due, time.monotonic() + 60)
            delivered, ready = self.link.poll(max(0.0, due - time.monotonic()))
            self.turns += 1
            if self._bell in ready:
                os.eventfd_read(self._bell)
            while self._orders:
                self._orders.pop(0)()
            for item in delivered:
                self.mailbox.take(item, time.monotonic())
            self.mailbox.pump(self.link, time.monotonic())
        self.link.close(0)

    def do(self, order):
        """Have the link's thread do something."""
        self._orders.append(order)
        self.ring()

    def stop(self):
        """As SIGSTOP would; returns when it has stopped."""
        self._resting.clear()
        self._awake.clear()
        self.ring()
        assert self._resting.wait(WAIT_S)

    def go_on(self):
        self._awake.set()

    def start(self):
        self._thread.start()
        return self

    def workers(self):
        return self.mailbox._post.workers()

    def close(self):
        self._running = False
        self._awake.set()
        self.ring()
        self._thread.join()
        ended = self.mailbox.close("it was closed", WAIT_S)
        with self._lock:
            bell, self._bell = self._bell, -1
            os.close(bell)
        return ended


class Town:
    """An office and its stations, all ended with the block."""

    def __init__(self, run_dir):
        self.run_dir, self.office, self.stations = run_dir, PostOffice(run_dir), {}
        self.office.__enter__()

    def station(self, name, **options):
        station = self.stations[name] = Station(self.run_dir, name, **options)
        return station.start()

    def workers(self, count, **options):
        """So many workers, from 1 on, that all know each other."""
        stations = [self.station(f"worker:{id_}", **options) for id_ in range(1, count + 1)]
        for station in stations:
            until(lambda station=station: len(station.workers()) == count)
        return stations

    def replace_office(self):
        """As if the master was killed and another one started: what was in its sockets is lost."""
        self.end_office()
        self.begin_office()

    def end_office(self):
        self.office.__exit__()

    def begin_office(self):
        """The next master: it knows which workers live."""
        before, self.office = self.office, PostOffice(self.run_dir, self.office.epoch + 1)
        self.office.workers, self.office.next_id = before.workers, before.next_id
        self.office.__enter__()

    def bury(self, name):
        """Kill a worker."""
        self.stations.pop(name).close()
        self.office.bury(int(name.removeprefix("worker:")))

    def close(self):
        for station in self.stations.values():
            station.close()
        self.office.__exit__()


def failure_of(station, target, timeout_s=WAIT_S):
    try:
        return station.mailbox.request(target, None, timeout_s)
    except ClusterError as error:
        return error
