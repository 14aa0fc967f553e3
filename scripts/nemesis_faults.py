"""What the nemesis does to a cluster: one function per kind of fault, with what the cluster owes its clients then.

A fault is a generator: all it does to the cluster is done when it ends, and it yields the processes that have to be
replaced. What may not happen because of it (a paused worker that is killed, a broken reload that succeeds) it
asserts itself.
"""

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from nemesis_surgery import cut, full, held, unreachable, without_descriptors
from nemesis_world import HANG_S, ORDER_S, World, gone, kill

from zcluster.errors import ClusterError

BUS_THREAD = "ZMQbg/IO/0"  # as libzmq names the thread that reads and writes its sockets
PAUSE_S = (0.1, 1.0)  # a pause that nobody may be killed for: SUSPECT begins at a third of the hang limit
PAUSED = f"{PAUSE_S[0]:g} to {PAUSE_S[1]:g} s"
HOLD_S = (0.3, 1.5)  # a shortage or a cut

Act = Callable[[World, random.Random], Iterator[int]]


class BrokenPromise(Exception):
    """The cluster has done what it may not do."""


@dataclass(frozen=True)
class Fault:
    """One kind of fault."""

    name: str
    seen: str  # what is done, and what the cluster does then
    act: Act
    costs: bool  # whether requests under way may fail: only when the worker that answers them is ended by force
    needs: str = ""  # "trace", "shm"
    lasts: bool = False  # the time to recover counts from its end, not from its beginning


FAULTS: dict[str, Fault] = {}


def fault(name: str, seen: str, *, costs: bool = False, needs: str = "", lasts: bool = False) -> Callable[[Act], Act]:
    """Register a fault."""

    def register(act: Act) -> Act:
        FAULTS[name] = Fault(name, seen, act, costs, needs, lasts)
        return act

    return register


def stay(seconds: tuple[float, float], rng: random.Random) -> None:
    """The time a fault lasts is part of the fault."""
    time.sleep(rng.uniform(*seconds))


# ---- deaths -------------------------------------------------------------------------------------------------------
@fault("kill a worker", "SIGKILL: reported with its signal, replaced at once in its slot and lane.", costs=True)
def kill_worker(world: World, rng: random.Random) -> Iterator[int]:
    victim = rng.choice(world.workers())
    kill(victim)
    yield victim


@fault("kill all workers", "All at once: clients wait in the listening queue, nobody is refused.", costs=True)
def kill_workers(world: World, rng: random.Random) -> Iterator[int]:
    victims = world.workers()
    kill(*victims)
    yield from victims


def _killing(*roles: str) -> Act:
    def act(world: World, rng: random.Random) -> Iterator[int]:
        victims = [world.of_role(role) for role in roles]
        rng.shuffle(victims)
        kill(*victims)
        yield from victims

    return act


fault(
    "kill the master",
    "The launcher starts another; it adopts the workers, epoch + 1, totals unchanged. Nobody stops serving.",
)(_killing("master"))
fault("kill the zygote", "Another one is started and imports the same code; workers serve on.")(_killing("zygote"))
fault("kill the checkpoint writer", "Started again; the ledger counts meanwhile.")(_killing("checkpoint writer"))
fault("kill master and zygote", "Both are started again, in any order.")(_killing("master", "zygote"))


@fault(
    "kill all but the launcher",
    "The launcher and its sockets are left: connections wait, everything is started again, totals go on.",
    costs=True,
)
def kill_all(world: World, rng: random.Random) -> Iterator[int]:
    victims = list(world.processes())
    rng.shuffle(victims)
    kill(*victims)
    yield from victims


# ---- pauses -------------------------------------------------------------------------------------------------------
def _pausing(role: str) -> Act:
    def act(world: World, rng: random.Random) -> Iterator[int]:
        pid = rng.choice(world.workers()) if role == "worker" else world.of_role(role)
        kill(pid, number=signal.SIGSTOP)
        stay(PAUSE_S, rng)
        kill(pid, number=signal.SIGCONT)
        if gone(pid):
            raise BrokenPromise(f"the {role} was killed for a pause below the limit of {HANG_S:g} s")
        yield from ()

    return act


for role in ("worker", "master", "zygote", "checkpoint writer"):
    fault(
        f"pause {'a' if role == 'worker' else 'the'} {role}", f"SIGSTOP for {PAUSED}: nobody is killed.", lasts=True
    )(_pausing(role))


def _hanging(role: str) -> Act:
    def act(world: World, rng: random.Random) -> Iterator[int]:
        pid = rng.choice(world.workers()) if role == "worker" else world.of_role(role)
        kill(pid, number=signal.SIGSTOP)
        yield pid

    return act


fault(
    "stop a worker for good",
    "SIGSTOP: no sign of life on the bus or in the ledger: hung after `--hang-timeout` (4 s here), replaced.",
    costs=True,
)(_hanging("worker"))
fault(
    "stop the master for good",
    "Its tick stands still for `--master-timeout` (4 s here): the launcher kills and replaces it.",
)(_hanging("master"))


# ---- orders -------------------------------------------------------------------------------------------------------
@fault("reload", "New code, slot by slot, start-first.")
def reload(world: World, rng: random.Random) -> Iterator[int]:
    before = world.workers()
    world.write()
    world.handle.reload(timeout_s=ORDER_S)
    yield from before


@fault("reload of code that cannot be imported", "The order fails with the reason; the old generation serves on.")
def reload_broken(world: World, rng: random.Random) -> Iterator[int]:
    before = world.snapshot()
    world.write(broken=rng.choice(["import no_such_module", "1 / 0", "raise SystemExit(4)", "def f(:"]))
    try:
        world.handle.reload(timeout_s=ORDER_S)
    except ClusterError:
        pass  # as it should be
    else:
        raise BrokenPromise("a reload of code that cannot be imported has succeeded")
    finally:
        world.write()
    after = world.snapshot()
    if before and after and after["generation"] != before["generation"]:
        raise BrokenPromise(f"generation {before['generation']} is now {after['generation']} after a failed reload")
    yield from ()


@fault("scale up and down", "By one or two up, to fewer, and back.")
def scale(world: World, rng: random.Random) -> Iterator[int]:
    for size in (world.size + rng.randint(1, 2), rng.randint(1, max(1, world.size - 1)), world.size):
        world.handle.scale(size, timeout_s=ORDER_S)
    yield from ()


# ---- shortages ----------------------------------------------------------------------------------------------------
@fault(
    "fill /dev/shm",
    "Not a byte is left: the ledger was allocated when it was made, checkpoints are tried again.",
    needs="shm",
    lasts=True,
)
def fill(world: World, rng: random.Random) -> Iterator[int]:
    with full(world.shm):
        stay(HOLD_S, rng)
    yield from ()


@fault(
    "fill /dev/shm and kill a worker and the master",
    "Successors start without room.",
    costs=True,
    needs="shm",
    lasts=True,
)
def fill_and_kill(world: World, rng: random.Random) -> Iterator[int]:
    victims = [rng.choice(world.workers()), world.of_role("master")]
    with full(world.shm):
        kill(*victims)
        stay(HOLD_S, rng)
    yield from victims


@fault(
    "no descriptors for a worker", "It can accept nothing: others do; connections wait.", needs="trace", lasts=True
)
def starve_worker(world: World, rng: random.Random) -> Iterator[int]:
    with without_descriptors(rng.choice(world.workers())):
        stay(HOLD_S, rng)
    yield from ()


# libzmq aborts a process that cannot accept on ipc: the master dies of it, and that is all.
@fault(
    "no descriptors for the master and kill a worker",
    "libzmq aborts the master when it cannot accept the new worker; another one starts.",
    costs=True,
    needs="trace",
    lasts=True,
)
def starve_master(world: World, rng: random.Random) -> Iterator[int]:
    victim = rng.choice(world.workers())
    with without_descriptors(world.of_role("master")):
        kill(victim)
        stay(HOLD_S, rng)
    yield victim


# ---- the bus ------------------------------------------------------------------------------------------------------
@fault(
    "bus: reset",
    "Some connections of all workers are shut down under their feet: reconnected, nobody is killed.",
    needs="trace",
    lasts=True,
)
def reset(world: World, rng: random.Random) -> Iterator[int]:
    for pid in world.workers():
        cut(pid, world.run_dir, tuple(rng.sample(("ctl", "pub", "evt"), rng.randint(1, 3))))
    yield from ()


@fault(
    "bus: loss",
    "They are shut down, and nobody can connect for a while; messages of that time are lost, totals are not.",
    needs="trace",
    lasts=True,
)
def lose(world: World, rng: random.Random) -> Iterator[int]:
    pids = world.workers()  # before: meanwhile nobody could come back whom another fault has cut off
    with unreachable(world.run_dir):
        for pid in pids:
            cut(pid, world.run_dir)
        stay(HOLD_S, rng)
    yield from ()


def _half_open(*, master: bool) -> Act:
    def act(world: World, rng: random.Random) -> Iterator[int]:
        pids = [world.of_role("master")] if master else world.workers()
        with ExitStack() as stack:
            for pid in pids:
                stack.enter_context(held(pid, BUS_THREAD.__eq__))
            stay(HOLD_S, rng)
        for pid in pids:
            if gone(pid):
                raise BrokenPromise(f"process {pid} was killed although only its bus stood still")
        yield from ()

    return act


HALF = "The thread that reads and writes the bus stands still, the connection stays open: late, but nobody is killed."
fault("bus: half-open and delay (a worker's end)", HALF, needs="trace", lasts=True)(_half_open(master=False))
fault("bus: half-open and delay (the master's end)", HALF, needs="trace", lasts=True)(_half_open(master=True))
