"""The simulated launcher, zygotes and services: who starts processes, who reaps them, and who forks workers.

Invariant: what a master may rely on is kept by `core.kept` and judged by `core.masterwatch`, as in the true launcher;
here stands only what the kernel does (deaths are told once, sockets keep what nobody has read).
"""

from typing import Any, Final

from msgspec import Raw

from zcluster.core import messages as m
from zcluster.core.kept import Kept
from zcluster.core.masterwatch import CHECK_S, MasterWatch
from zcluster.testing.sim_master import Master
from zcluster.testing.sim_worker import Worker
from zcluster.testing.sim_world import MASTER_TIMEOUT_S, Actor, Wire, World

FINAL_CODES: Final = (0, 2, 3, 4, 5)  # of a master: the end of the cluster; anything else is a crash
LEAVE_S: Final = 2.0
OVERRUN_S: Final = 12.0  # what a stop may take longer than its deadline, before the launcher ends it
START_S: Final = (0.05, 0.4)  # a process begins to run
IMPORT_S: Final = (0.05, 0.3)


class Service(Actor):
    """A process that lives until it is killed."""

    def ended(self, code: int | None, signal: int | None) -> None:
        """It is no more."""
        del self.world.services[self.pid]
        super().ended(code, signal)

    def turn(self, items: list[Any]) -> None:
        """Do nothing that the others would notice."""

    def due(self) -> float:
        """Never."""
        return float("inf")


class Zygote(Actor):
    """A zygote: imports the code of its time, then forks what it is told to."""

    def __init__(self, world: World, generation: int) -> None:
        super().__init__(world, f"zygote {generation}")
        self.generation = generation
        self.code = world.code
        self.imported = self.let_go = False
        self.orders: list[m.Fork | m.Sync] = []
        self.unread: list[m.Control] = []  # in the socket, which the next master inherits
        self.forks: list[m.WorkerInfo] = []
        self._imports_at = world.now + world.random.uniform(*IMPORT_S)
        world.zygotes[self.pid] = self
        self.begin()

    def ended(self, code: int | None, signal: int | None) -> None:
        """It is no more."""
        del self.world.zygotes[self.pid]
        super().ended(code, signal)

    def due(self) -> float:
        """Its import."""
        return float("inf") if self.imported else self._imports_at

    def turn(self, items: list[Any]) -> None:
        """Orders that come while it imports wait for that."""
        self.orders += items
        if not self.imported and self.world.now >= self._imports_at:
            self._import()
        if self.imported and self.alive:
            orders, self.orders = self.orders, []
            for order in orders:
                self._obey(order)
        if self.let_go and self.alive:
            self.world.after(0.005, lambda _: self.die(0, None))

    def say(self, message: m.Control) -> None:
        """To the master; what nobody reads stays in the socket."""
        self.world.after(self.world.random.uniform(0.0, 0.003), self._said, message)

    def _said(self, message: m.Control) -> None:
        master = self.world.master
        if master is None or self.generation not in master.zygotes:
            self.unread.append(message)
        else:
            master.deliver(("zygote", self.generation, message))

    def _import(self) -> None:
        self.imported = True
        if self.code == "broken":
            self.say(m.ImportFailed(self.generation, "SyntaxError"))
            self.world.after(0.01, lambda _: self.die(0, None))
        else:
            self.world.note(self.name, "has imported", f"{self.code} code")
            self.say(m.Imported(self.generation, True))

    def _obey(self, order: m.Fork | m.Sync) -> None:
        if isinstance(order, m.Sync):
            forks = tuple(info for info in self.forks if info.pid in self.world.workers)
            self.say(m.Synced(order.epoch, self.code != "broken", forks))
        elif not self.world.can_fork:
            self.say(m.ForkFailed(order.worker.id, "EAGAIN"))
        elif self.code != "broken":
            worker = Worker(self.world, order.worker, self.code)
            self.forks.append(worker.info)
            self.say(m.Forked(worker.info))


class Launcher(Actor):
    """The launcher: parent of all."""

    def __init__(self, world: World) -> None:
        super().__init__(world, "launcher")
        self.kept, self.watch = Kept(), MasterWatch()
        self.zygotes: dict[int, Zygote] = {}
        self.leaving: dict[int, float] = {}  # pid of a zygote -> when it is killed
        self.services: dict[str, Service] = {}
        self.has_master = False  # as far as it has heard
        self.stop_deadline = float("inf")
        self._to_master: Wire | None = None

    # ---- one turn --------------------------------------------------------------------------------------------------
    def due(self) -> float:
        """The next look at the master, or its next start."""
        due = min(self.watch.checked + CHECK_S, self.stop_deadline)
        return due if self.has_master else min(due, self.watch.due)

    def turn(self, items: list[Any]) -> None:
        """As the true one: what has arrived, then the time."""
        now = self.world.now
        for what, *of in items:
            match what:
                case "master":
                    self._on_message(of[0])
                case "died":
                    self._tell(self.kept.died(*of))
                case "master died":
                    self._on_master_death(of[0], of[1])
                case "signal":
                    self._on_signal(of[0])
        if self.world.exited is not None:
            return
        if not self.has_master and now >= self.watch.due:
            self._start_master()
        if self.watch.is_due(now):
            self._check_master()
        if now >= self.stop_deadline:
            self.world.fail("the stop took so long that the launcher had to end it")

    def _on_signal(self, name: str) -> None:
        if name in ("SIGTERM", "SIGINT"):
            self.ask_to_stop(m.Stop(name == "SIGINT", name))
            return
        _, wish = self.kept.wish(name, can_reload=True)
        if isinstance(wish, m.ScaleBy):
            self.world.witness.wishes.add(wish.number)
        if wish is not None:
            self._tell(wish)

    def ask_to_stop(self, wish: m.Stop) -> None:
        """Keep it, tell it, and let go of what only new workers need."""
        if self.kept.stop is not None and (self.kept.stop.quick or not wish.quick):
            return
        self.kept.stop = wish
        settings = self.world.settings
        limit_s = settings.quick_timeout_s if wish.quick else settings.graceful_timeout_s
        self.stop_deadline = self.world.now + limit_s + OVERRUN_S + self.world.witness.grace_s
        self._tell(wish)
        for zygote in list(self.zygotes.values()):
            zygote.die(None, 9)

    def _check_master(self) -> None:
        master, now = self.world.master, self.world.now
        for pid in [pid for pid, at in self.leaving.items() if now >= at]:
            del self.leaving[pid]
            if pid in self.world.zygotes:
                self.world.zygotes[pid].die(None, 9)
        stale_s = self.watch.look(None if master is None else self.world.ledger.master_tick_ns, now)
        if master is not None and stale_s > MASTER_TIMEOUT_S:
            self.world.witness.master_condemned(master, stale_s)
            self.watch.begun()
            master.die(None, 9)

    # ---- the master ------------------------------------------------------------------------------------------------
    def _start_master(self) -> None:
        world = self.world
        self.watch.begun()
        self.has_master = True
        master = world.master = Master(world, Wire(world, "control", self.deliver))
        self._to_master = Wire(world, "control", master.deliver)
        for generation, zygote in self.zygotes.items():
            self._tell(m.ZygoteUp(generation, zygote.pid, zygote.start))
        for kind, service in self.services.items():
            self._tell(m.ServiceUp(kind, service.pid, service.start))
        for told in self.kept.told():
            self._tell(told)
        self._tell(m.Proceed())
        world.after(world.random.uniform(*START_S), lambda _: master.bind())

    def _on_master_death(self, code: int | None, since: float) -> None:
        self.has_master = False
        if code in FINAL_CODES:
            self.world.exited = code
            self.world.note(self.name, "ends with exit code", code)
            for actor in [*self.world.workers.values(), *self.world.zygotes.values(), *self.world.services.values()]:
                actor.die(None, 9)
            return
        pause_s = self.watch.died(since, self.world.now, stopping=self.kept.stop is not None)
        self.world.note(self.name, f"starts another master in {pause_s:.1f} s")

    def _tell(self, message: m.Control) -> None:
        if self.world.master is not None and self._to_master is not None:
            self._to_master.send(("control", message))

    def _on_message(self, message: m.Control) -> None:
        match message:
            case m.Received() | m.Size() | m.Reload() | m.Commit():
                self.kept.take(message)
                if isinstance(message, m.Commit):
                    self._tell(m.Settings(message.generation, Raw(b"")))
            case m.EndZygote(generation=generation):
                zygote = self.zygotes.pop(generation, None)
                if zygote is not None:
                    self.leaving[zygote.pid] = self.world.now + LEAVE_S
                    zygote.let_go = True
                    zygote.begin()
            case m.StartZygote(generation=generation):
                if self.kept.stop is None:
                    zygote = self.zygotes.get(generation) or Zygote(self.world, generation)
                    self.zygotes[generation] = zygote
                    self._tell(m.ZygoteUp(generation, zygote.pid, zygote.start))
            case m.StartService(kind=kind):
                service = self.services.get(kind) or Service(self.world, kind)
                self.services[kind] = self.world.services[service.pid] = service
                self._tell(m.ServiceUp(kind, service.pid, service.start))
            case m.Stop():
                self.ask_to_stop(message)

    def reap(self, actor: Actor, code: int | None, signal: int | None) -> None:
        """A child has ended; whether we notice is another matter."""
        for generation in [generation for generation, zygote in self.zygotes.items() if zygote is actor]:
            del self.zygotes[generation]
        for kind in [kind for kind, service in self.services.items() if service is actor]:
            del self.services[kind]
        self.leaving.pop(actor.pid, None)
        delay_s = self.world.random.uniform(0.0, 0.005)
        self.world.after(delay_s, self.deliver, ("died", actor.pid, actor.start, code, signal))

    def ended(self, code: int | None, signal: int | None) -> None:
        """Those who watch the launcher notice; the others lose what held them."""
        world = self.world
        for worker in list(world.workers.values()):
            world.after(0.001, worker.deliver, ("launcher gone",))
        for other in [*world.zygotes.values(), *world.services.values()]:
            world.after(0.05, self._end, other)
        if world.master is not None:
            world.after(0.001, world.master.deliver, ("launcher gone",))
        else:
            world.exited = -9
            world.end_orphans()

    @staticmethod
    def _end(actor: Any) -> None:
        actor.die(0, None)
