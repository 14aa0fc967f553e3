"""The simulator: whole clusters on one thread and a fake clock, with everything that can go wrong, by seed.

Invariant: `run(seed)` depends on the seed and on the code, and on nothing else; so a failure is a number.

The core of launcher, master, workers and a handle is the true one (`zcluster.core`); between them are wires that
lose, repeat, delay and reorder, and processes that die, stop, start slowly or cannot start. A run has three acts:
faults, one after the other; then a time without any, in which everything must come back; then the end of the cluster.
In a third of all runs the cluster is stopped while the faults go on.

    scripts/sim 4711        one seed, with its history
    scripts/sim             as many as there is time for
"""

from dataclasses import dataclass

from zcluster.testing.sim_faults import Faults
from zcluster.testing.sim_launcher import Launcher
from zcluster.testing.sim_witness import Witness
from zcluster.testing.sim_worker import Handle
from zcluster.testing.sim_world import Broken, World

END_S = 40.0  # a stop's deadline, what is killed after it, and faults that still have to be noticed


@dataclass(frozen=True)
class Outcome:
    """A seed that passed."""

    seed: int
    events: int
    seconds: float  # simulated
    faults: int
    epochs: int
    history: list[str]


def run(seed: int, *, with_history: bool = False) -> Outcome:
    """Play one seed; raises Broken when something that must hold does not."""
    world = World(seed)
    world.witness = Witness(world)
    world.launcher = Launcher(world)
    world.launcher.begin()
    owner = Handle(world, 1, owner=True)
    faults = Faults(world, owner)
    try:
        _play(world, faults)
    except Broken:
        raise
    except AssertionError as error:  # the core's own checks
        world.note("core", "AssertionError:", error)
        raise Broken(seed, f"{type(error).__name__}: {error}", world.history()) from error
    except Exception as error:
        world.note("core", "raised", repr(error))
        raise Broken(seed, f"an exception: {error!r}", world.history()) from error
    history = world.history() if with_history else []
    return Outcome(seed, world.events, world.now, faults.count, world.ledger.epoch, history)


def _play(world: World, faults: Faults) -> None:
    """The three acts."""
    witness = world.witness
    faults.first_act()
    faults.end()
    world.note("--------", "the faults are over")
    if world.launcher.kept.stop is None and world.launcher.alive:
        if not world.run(witness.patience_s(), lambda: witness.unsettled() == ""):
            world.fail(f"not settled {witness.patience_s():.0f} s after the last fault: {witness.unsettled()}")
        if world.exited is None:
            _epilogue(world)
    if world.exited is None:
        faults.stop()
        if not world.run(END_S, lambda: world.exited is not None):
            world.fail(f"the cluster does not end within {END_S:.0f} s")
    world.run(1.0)
    left = [worker.name for worker in world.workers.values()]
    if left:
        world.fail(f"left behind: {', '.join(left)}")


def _epilogue(world: World) -> None:
    """Everybody says one thing more, so that holes show; then nothing may be missing, and nothing may be left."""
    witness = world.witness
    for peer in list(world.peers.values()):
        peer.publish_once()
    if not world.run(10.0, lambda: not witness.unsettled() and not witness.missing()):
        world.fail(witness.unsettled() or witness.missing())
    world.run(1.0)
    if witness.unsettled():
        world.fail(f"it does not stay settled: {witness.unsettled()}")
    witness.measure()
