"""What goes wrong in a simulation, and what the operator does meanwhile.

Invariant: everything is drawn from the world's random numbers; and `end` takes back whatever could keep a cluster
from coming back: stopped processes go on, the bus is a good one, the code on disk can be imported, forks succeed.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from zcluster.testing.sim_worker import Handle, Worker
from zcluster.testing.sim_world import Chaos, World

COUNT_MAX: Final = 10
GAP_S: Final = 0.7  # on average, between two faults
FREEZE_S: Final = 5.0  # at most: longer than the hang timeout
SIZE_MAX: Final = 4


class Faults:
    """The first act of one world."""

    def __init__(self, world: World, owner: Handle) -> None:
        self.world, self.owner = world, owner
        self.count = 0
        self.other: Handle | None = None
        self.handles = 1
        self._table: list[tuple[int, str, Callable[[], None]]] = [
            (6, "kill a worker", lambda: self._worker(lambda worker: worker.die(None, 9))),
            (2, "crash a worker", lambda: self._worker(lambda worker: worker.die(self._draw((0, 1, 3, 75)), None))),
            (4, "stop a worker", lambda: self._worker(self._freeze)),
            (2, "SIGTERM to a worker", lambda: self._worker(lambda worker: worker.deliver(("TERM",)))),
            (1, "SystemExit in a worker", lambda: self._worker(self._exit)),
            (2, "a loop is stuck", lambda: self._worker(lambda worker: setattr(worker, "stuck", True))),
            (2, "a long request", lambda: self._worker(self._long)),
            (2, "half-open", lambda: self._peer(self._mute)),
            (3, "cut a connection", lambda: self._peer(lambda peer: peer.cut())),
            (3, "somebody does not read", lambda: self._peer(self._full)),
            (4, "kill the master", self._kill_master),
            (3, "stop the master", self._stop_master),
            (1, "stop the launcher", lambda: self._freeze(world.launcher)),
            (2, "kill a zygote", lambda: self._zygote(lambda zygote: zygote.die(None, 9))),
            (1, "stop a zygote", lambda: self._zygote(self._freeze)),
            (1, "kill a service", lambda: self._one(world.services, lambda service: service.die(None, 9))),
            (2, "the machine is paused", lambda: world.pause(world.random.uniform(0.05, 4.0))),
            (3, "the bus is bad", self._bad_bus),
            (1, "the bus is good", self._good_bus),
            (2, "bad starts", lambda: setattr(world, "bad_starts", self._draw((1, 1, 2)))),
            (1, "no forks", self._no_forks),
            (3, "reload", lambda: self._reload("good")),
            (3, "reload of bad code", lambda: self._reload(self._draw(("broken", "dying", "failing", "slow")))),
            (1, "reload of code that crashes", lambda: self._reload("crashing")),
            (3, "scale", self._scale),
            (1, "open a slot", lambda: self._ask("fork")),
            (2, "close a slot", self._close),
            (2, "a signal", lambda: self._signal(self._draw(("SIGHUP", "SIGTTIN", "SIGTTOU")))),
            (1, "another handle", self._another),
        ]

    # ---- the acts --------------------------------------------------------------------------------------------------
    def first_act(self) -> None:
        """Start, suffer."""
        world, random = self.world, self.world.random
        if random.random() < 0.85:
            world.run(3.0, lambda: world.master is not None and world.master.fleet.ran)
        # Some seeds have a narrow choice of faults: what happens seldom then meets itself.
        table = self._table if random.random() < 0.6 else random.sample(self._table, 6)
        weights = [weight for weight, _, _ in table]
        stop_at = random.randrange(COUNT_MAX) if random.random() < 0.2 else -1
        for number in range(random.randint(1, COUNT_MAX)):
            if world.exited is not None:
                return
            if number == stop_at:
                self.stop()
            _, name, fault = random.choices(table, weights)[0]
            world.note("FAULT", name)
            self.count += 1
            fault()
            world.run(0.0 if random.random() < 0.25 else random.expovariate(1 / GAP_S))

    def end(self) -> None:
        """No faults any more."""
        world = self.world
        world.quiet = True
        self._good_bus()
        world.code, world.can_fork, world.bad_starts = "good", True, 0
        there: list[dict[int, Any]] = [world.workers, world.zygotes, world.peers, world.services]
        for actor in [world.launcher, world.master, *(actor for some in there for actor in some.values())]:
            if actor is not None:
                actor.thaw()
        for worker in world.workers.values():
            worker.in_app = False
        built = {process.code for process in world.zygotes.values()} | {
            process.code for process in world.workers.values()
        }
        if world.launcher.kept.stop is None and built - {"good"}:
            self.owner.ask("reload", token="the repair")
        for peer in list(world.peers.values()):
            self._eased(peer)
            if world.now < peer.mute_until:
                peer.mute_until = 0.0
                peer.cut()

    def stop(self) -> None:
        """One of the ends that a cluster may have."""
        world, chance = self.world, self.world.random.random()
        if not world.launcher.alive:
            return
        if chance < 0.5:
            self._signal("SIGTERM")
        elif chance < 0.75:
            self._signal("SIGINT")
        elif chance < 0.9:
            self.owner.ask("stop", quick=world.random.random() < 0.5)
        else:
            world.note("FAULT", "kill the launcher")
            world.launcher.die(None, 9)

    # ---- whom ------------------------------------------------------------------------------------------------------
    def _draw(self, choices: Sequence[Any]) -> Any:
        return self.world.random.choice(choices)

    def _one(self, there: dict[int, Any], what: Callable[[Any], object]) -> None:
        if there:
            what(self._draw(list(there.values())))

    def _worker(self, what: Callable[[Worker], object]) -> None:
        self._one(self.world.workers, what)

    def _peer(self, what: Callable[[Any], object]) -> None:
        self._one(self.world.peers, what)

    def _zygote(self, what: Callable[[Any], object]) -> None:
        self._one(self.world.zygotes, what)

    # ---- what ------------------------------------------------------------------------------------------------------
    def _freeze(self, actor: Any) -> None:
        if actor.alive and not actor.frozen:
            actor.freeze()
            seconds = self.world.random.uniform(0.1, FREEZE_S)
            self.world.witness.grace_s += seconds
            self.world.after(seconds, lambda _: actor.thaw())

    def _stop_master(self) -> None:
        master = self.world.master
        if master is not None and not master.frozen:
            self._freeze(master)

    def _kill_master(self) -> None:
        if self.world.master is not None:
            self.world.master.die(None, 9)

    def _exit(self, worker: Worker) -> None:
        if worker.serving:
            worker.deliver(("exit",))

    def _long(self, worker: Worker) -> None:
        worker.in_app = True

    def _mute(self, peer: Any) -> None:
        peer.mute_until = self.world.now + self.world.random.choice((0.5, 2.0, FREEZE_S))

    def _full(self, peer: Any) -> None:
        peer.full = True
        self.world.after(self.world.random.uniform(0.2, 4.0), lambda _: self._eased(peer))

    def _eased(self, peer: Any) -> None:
        peer.full = False
        if peer.alive and not peer.frozen:
            peer.begin()

    def _bad_bus(self) -> None:
        chaos, random = self.world.chaos, self.world.random
        chaos.changed_at = self.world.now
        bad = random.choice((0.02, 0.2, 0.6))
        kinds = random.sample(("pub", "evt", "down"), 2)
        chaos.lose = dict.fromkeys(kinds, bad)
        chaos.repeat = {"pub": bad, "evt": bad}
        chaos.reorder = {"pub": bad, "evt": bad}
        chaos.delay_s = random.choice((0.003, 0.05, 0.3))

    def _good_bus(self) -> None:
        if self.world.chaos.lose:
            self.world.chaos = Chaos(self.world.now)

    def _no_forks(self) -> None:
        self.world.can_fork = False
        self.world.after(self.world.random.uniform(0.1, 2.0), lambda _: setattr(self.world, "can_fork", True))

    # ---- the operator ----------------------------------------------------------------------------------------------
    def _signal(self, name: str) -> None:
        self.world.note("operator", "sends", name)
        self.world.launcher.deliver(("signal", name))

    def _ask(self, verb: str, **args: Any) -> None:
        handle = self.other if self.other is not None and self.world.random.random() < 0.5 else self.owner
        if handle.alive:
            handle.ask(verb, **args)

    def _reload(self, code: str) -> None:
        world = self.world
        world.code = code
        for _ in range(self._draw((1, 1, 2))):
            if world.random.random() < 0.3:
                self._signal("SIGHUP")
            else:
                self._ask("reload", token=f"token {world.random.randrange(1000)}")
        if code != "good":  # the operator repairs it
            world.after(world.random.uniform(0.5, 6.0), lambda _: setattr(world, "code", "good"))

    def _scale(self) -> None:
        if self.world.random.random() < 0.5:
            self._ask("scale", to=self.world.random.randrange(SIZE_MAX + 1))
        else:
            self._ask("scale", by=self._draw((-1, 1)))

    def _close(self) -> None:
        worker = self._draw(list(self.world.workers.values())) if self.world.workers else None
        if worker is not None:
            self._ask("disconnect", worker=worker.info.id)

    def _another(self) -> None:
        """A second program comes, or is killed."""
        if self.other is not None and self.other.alive:
            self.other.die(None, 9)
            self.other = None
        else:
            self.handles += 1
            self.other = Handle(self.world, self.handles, owner=False)
