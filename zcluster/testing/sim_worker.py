"""The simulated worker, and the handle that is the operator.

Invariant: as in `bodies.worker`: no store into the ledger before the lane's lock is held, no READY before the bus is
joined, and every way out goes through a drain, unless something kills it.
"""

from typing import Any, Final

from msgspec import Raw, msgpack
from msgspec.structs import replace

from zcluster.core import messages as m
from zcluster.core.fleet_events import BOOT_FAILED_CODE, LANE_TAKEN_CODE
from zcluster.core.joining import Joined
from zcluster.core.mail import MASTER, MEMBERS, TOPICS, worker_name
from zcluster.core.post import HANDLES
from zcluster.testing.sim_peer import Peer
from zcluster.testing.sim_world import HEARTBEAT_S, LEDGER_TICK_S, World

LAST_WORDS_S: Final = 0.1
LINGER_S: Final = 0.25
STUCK_S: Final = 30.0  # a request that does not end
LARGE_BYTES: Final = 150_000  # three pieces


class Worker(Peer):
    """One worker process."""

    role = "worker"

    def __init__(self, world: World, asked: m.WorkerInfo, code: str) -> None:
        super().__init__(world, f"worker {asked.id}", worker_name(asked.id), (m.TOTALS, MEMBERS, TOPICS))
        self.info = replace(asked, pid=self.pid, start=self.start, state="forked")
        self.lane = world.ledger.lane(asked.lane)
        self.code = code
        if world.bad_starts:
            world.bad_starts -= 1
            self.code = world.random.choice(("dying", "failing"))
        random = world.random
        self.import_at = world.now + (random.uniform(0.005, 0.1) if code != "slow" else 20.0)
        self.has_lane = self.serving = self.draining = self.finished = self.launcher_gone = False
        self.term = False
        self.leaving: m.Leaving | None = None
        self.exit_code = 0
        self.leave_by = self.finish_at = self.crash_at = float("inf")
        self.tick_due = 0.0
        self.value = 0  # of its cell, which nobody else writes
        self.ticked = self.loop_ticked = world.now
        self.stuck = self.in_app = False
        self.ready_since = float("inf")
        self.reconnect_seen = self.lane.reconnect
        self.requests = 0
        world.workers[self.pid] = self
        world.note(self.name, "is born:", f"slot {asked.slot}, lane {asked.lane}, generation {asked.generation}")
        self.begin(random.uniform(0.0005, 0.004))

    def hello(self) -> m.Hello:
        """What it says of itself."""
        return m.Hello(self.link, "worker", self.pid, self.info, self.mailbox)

    def due(self) -> float:
        """The first of all that waits."""
        if not self.link:
            return self.import_at
        due = min(super().due(), self.tick_due, self.finish_at, self.crash_at)
        return due if not self.finished else min(due, self.leave_by - LAST_WORDS_S)

    def turn(self, items: list[Any]) -> None:
        """Begin, and then be a peer."""
        if not self.has_lane and not self._take_lane():
            return
        if not self.link:
            for item in items:
                self.on_other(item)
            if self.world.now >= self.import_at:
                self._begin()
            return
        super().turn(items)

    # ---- the beginning ---------------------------------------------------------------------------------------------
    def _take_lane(self) -> bool:
        world, lane = self.world, self.info.lane
        if lane in world.locks:
            self.die(LANE_TAKEN_CODE, None)
            return False
        world.locks[lane] = self
        self.has_lane = True
        world.ledger.use_lane(lane)
        self.lane.claim(self.info, world.now_ns)
        self.value = self.lane.cells[0]
        self.reconnect_seen = self.lane.reconnect
        return True

    def _begin(self) -> None:
        if self.code == "dying":
            self.die(1, None)
        elif self.code == "failing":
            self.die(BOOT_FAILED_CODE, None)
        else:
            self.lane.state = "online"
            if self.term:
                self._start_leaving("SIGTERM")
            if self.launcher_gone:
                self._drain(quick=True)
            if self.finished:
                self._leave()
            else:
                self.open()

    def ended(self, code: int | None, signal: int | None) -> None:
        """The kernel takes its locks and sockets."""
        world = self.world
        if world.locks.get(self.info.lane) is self:
            if signal is not None and self.serving:
                world.witness.cut_off(self)
            del world.locks[self.info.lane]
        del world.workers[self.pid]
        world.peers.pop(self.pid, None)
        self.close(LINGER_S if signal is None else 0.0)
        world.witness.peer_ended(self)
        world.launcher.reap(self, code, signal)

    # ---- what arrives ----------------------------------------------------------------------------------------------
    def on_other(self, item: tuple[Any, ...]) -> None:
        """Signals, and the end of the launcher."""
        if item[0] == "TERM":
            self.term = True
            if self.link and not self.finished:
                self._start_leaving("SIGTERM")
        elif item[0] == "exit":
            self.exit_code = 1
            self._start_leaving("the app raised SystemExit(1)")
        elif item[0] == "launcher gone":
            self.launcher_gone = True
            if self.link:
                self._drain(quick=True)

    def on_delivered(self, message: Any) -> None:
        """Orders of the master."""
        match message:
            case Joined():
                self._on_joined()
            case m.Drain(deadline_s=deadline_s, quick=quick):
                self._drain(quick=quick, limit_s=deadline_s)
            case m.Refused():
                self._drain(quick=False)

    def _on_joined(self) -> None:
        now = self.world.now
        if not self.serving and not self.finished:
            self.serving = True
            self.ready_since = self.loop_ticked = now
            self.lane.state = "ready"
            self.lane.loop_tick_ns = self.world.now_ns
            if self.code == "crashing":
                self.crash_at = now + self.world.random.uniform(0.1, 1.0)
        if self.leaving is not None:
            self.outbox.put(self.leaving)
        elif not self.draining:
            self.outbox.put(m.Ready())

    # ---- the end ---------------------------------------------------------------------------------------------------
    def _start_leaving(self, reason: str) -> None:
        self.leaving = m.Leaving(reason)
        if self.link:
            self.outbox.put(self.leaving)
        self._drain(quick=False)

    def _drain(self, *, quick: bool, limit_s: float | None = None) -> None:
        settings, now, random = self.world.settings, self.world.now, self.world.random
        if limit_s is None:
            limit_s = settings.quick_timeout_s if quick else settings.graceful_timeout_s
        self.leave_by = min(self.leave_by, now + limit_s)
        if self.finished:
            return
        if not self.draining:
            self.world.note(self.name, "drains", "quickly" if quick else "")
            self.finish_at = now + (STUCK_S if self.in_app or random.random() < 0.05 else random.uniform(0.0, 0.6))
        self.draining = True
        self.lane.state = "draining"
        if quick:
            self.finish_at = min(self.finish_at, now + 0.1)
        if not self.serving:
            self._finish()

    def _finish(self) -> None:
        self.finished = True
        self.finish_at = float("inf")
        self.post.leave(self.world.now)

    def _leave(self) -> None:
        self.lane.state = "dead"
        self.die(self.exit_code, None)

    # ---- time ------------------------------------------------------------------------------------------------------
    def periodic(self, now: float) -> None:
        """Ticks, heartbeats, requests, and the way out."""
        if now >= self.crash_at:
            self.die(None, 11)
            return
        if now >= self.tick_due:
            self.tick_due = now + LEDGER_TICK_S
            self._tick(now)
        if now >= self.beat_due:
            self.beat_due = now + HEARTBEAT_S
            if self.joining.joined:
                self.outbox.put(
                    m.Beat(self.requests, int(self.in_app), 0, 1, 1 << 20, 0.0, 0.0, state=self.lane.state)
                )
        if now >= self.finish_at and not self.finished:
            self._finish()
        if self.finished:
            idle = self.post.count == 0 and not self.owed
            if idle or self.launcher_gone or now >= self.leave_by - LAST_WORDS_S:
                self._leave()

    def _tick(self, now: float) -> None:
        lane, now_ns = self.lane, self.world.now_ns
        self.ticked = now
        lane.bus_tick_ns = now_ns
        if self.serving:
            if not self.draining and not self.stuck and not self.in_app:
                self._serve()
            if not self.stuck and not self.in_app:
                self.loop_ticked = now
                lane.loop_tick_ns = now_ns
        lane.inflight, lane.requests = int(self.in_app), self.requests
        if lane.reconnect != self.reconnect_seen:
            self.reconnect_seen = lane.reconnect
            self.world.note(self.name, "is told to connect again")
            self._perform(self.joining.part("reconnect ordered", now))

    def _serve(self) -> None:
        """Some requests: each counts, and some talk to others."""
        random = self.world.random
        for _ in range(int(random.random() * 3)):
            self.requests += 1
            self.world.witness.attempted += 1
            self.value += 1
            self.lane.cells[0] = self.value
            self.world.witness.acknowledged += 1
        if self.conn is not None and self.requests:
            self.conn.evt.send(("evt", m.Increments(self.info.id, self.info.lane, {0: self.value})))
        if self.world.quiet or random.random() > 0.25:
            return
        others = self.post.workers()
        chance = random.random()
        if chance < 0.35:
            self.send(MASTER, topic="news", reliable=chance < 0.25, size=LARGE_BYTES if chance < 0.03 else 0)
        elif chance < 0.5:
            self.send(HANDLES)
        elif others:
            self.send(worker_name(random.choice(others)), size=LARGE_BYTES if chance < 0.6 else 0)


class Handle(Peer):
    """The operator's program: asks for changes, and talks with workers."""

    def __init__(self, world: World, number: int, *, owner: bool) -> None:
        self.owner = owner
        super().__init__(world, f"handle {number}", "", (m.TOTALS, m.EVENTS, MEMBERS, TOPICS))
        self.mailbox = self.post.name = f"handle:{self.pid}-{number}"
        self.asked = 0
        self.open()
        self.begin()

    def hello(self) -> m.Hello:
        """What it says of itself."""
        return m.Hello(self.link, "handle", self.pid, None, self.mailbox, self.owner)

    def ask(self, verb: str, **args: Any) -> int:
        """Ask for a change; the number of the question."""
        self.asked += 1
        self.world.note(self.name, f"asks ({self.asked}) {verb}", args)
        self.world.witness.asked(self, self.asked, verb, args)
        self.outbox.put(m.Ask(self.asked, verb, Raw(msgpack.encode(args))))
        self.begin()
        return self.asked

    def on_delivered(self, message: Any) -> None:
        """Answers, and what happens."""
        match message:
            case m.Answer():
                self.world.note(self.name, "is answered", message.number, message.error, bytes(message.body))
                self.world.witness.answered(self, message)
            case m.Event():
                self.world.witness.event(self, message)

    def periodic(self, now: float) -> None:
        """Now and then a message."""
        if now < self.beat_due:
            return
        self.beat_due = now + HEARTBEAT_S
        random = self.world.random
        if self.world.quiet or random.random() > 0.3 or not self.joining.joined:
            return
        ids = self.post.workers()
        if random.random() < 0.4 or not ids:
            self.send(MASTER, topic="news", reliable=True)
        else:
            self.send(worker_name(random.choice(ids)))
