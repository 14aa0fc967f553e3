"""A cluster under load, and a nemesis that hurts it in every way it knows; then what the promises were worth.

Everything that is done is chosen by the seed, and printed with its time. After each fault the cluster has to be whole
again: every slot a ready worker that answers
on the bus, every role its process. In the end launcher, and everything at once, are killed and
started again from the state.

Exit code 1 when a promise of the README is broken: a total outside acknowledged <= total <= attempted, a refused
connection, a request that failed although nobody had ended its worker by force, a cluster that does not become whole.
"""

import argparse
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import own_shm
from nemesis_clients import Clients, Failure, Rule
from nemesis_faults import FAULTS, BrokenPromise, Fault
from nemesis_surgery import may_trace
from nemesis_world import LOOK_S, World, gone, kill

from zcluster.errors import ClusterError

SHM_MIB = 48  # ledger 1 MiB, state as much again; small, because it is filled
RECOVER_S = 30.0  # far more than anything takes
AFTER_S = 1.0  # a client learns only with its next request that its connection has ended
PAIRS = 0.2  # of all faults so many come with a second one
REST_S = (0.05, 0.5)  # between two faults
QUIET_S = 1.0  # four periods of the checkpoint
SHOWN = 10


@dataclass
class Strike:
    """One fault, or two at once, that were done; times are of CLOCK_MONOTONIC."""

    faults: list[Fault]
    begun: float
    recovered: float = 0.0

    @property
    def name(self) -> str:
        return " + ".join(fault.name for fault in self.faults)


@dataclass
class Run:
    """What has happened."""

    world: World
    rng: random.Random
    rule: Rule = field(default_factory=Rule)
    strikes: list[Strike] = field(default_factory=list)
    recovery: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    broken: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.started:8.2f} s  {text}", flush=True)


def strike(run: Run, faults: list[Fault]) -> None:
    """Do it, and wait until the cluster is whole again."""
    done = Strike(faults, time.monotonic())
    run.strikes.append(done)
    victims: set[int] = set()
    try:
        for fault in faults:
            victims.update(fault.act(run.world, run.rng))
    except BrokenPromise as error:
        run.broken.append(f"{done.name}: {error}")
    # An order that could not be carried out, or a process that was gone, because of what was done beside it.
    except (ClusterError, ProcessLookupError, FileNotFoundError) as error:
        if len(faults) == 1:
            run.broken.append(f"{done.name}: {error}")
    since = time.monotonic() if any(fault.lasts for fault in faults) else done.begun
    is_whole = run.world.whole(frozenset(victims), RECOVER_S)
    done.recovered = time.monotonic()
    if is_whole:
        run.recovery[done.name if len(faults) == 1 else "two at once"].append(done.recovered - since)
        run.say(f"{done.name}: whole after {done.recovered - since:.3f} s")
    else:
        state = run.world.snapshot()
        run.broken.append(f"{done.name}: not whole within {RECOVER_S:g} s: {state}\n{run.world.tail()}")
        run.say(f"{done.name}: NOT WHOLE")


def main_loop(run: Run, seconds: float, kinds: list[Fault]) -> None:
    """All kinds of faults in one order, then in another, until the time is over."""
    until = time.monotonic() + seconds
    deck: list[Fault] = []
    while time.monotonic() < until and len(run.broken) < SHOWN:
        if not deck:
            deck = run.rng.sample(kinds, len(kinds))
        faults = [deck.pop()]
        if run.rng.random() < PAIRS:
            faults.append(run.rng.choice(kinds))
        strike(run, faults)
        time.sleep(run.rng.uniform(*REST_S))
        if run.world.launcher.poll() is not None:
            run.broken.append(f"the launcher has ended with {run.world.launcher.returncode}\n{run.world.tail()}")
            return


def again(run: Run, what: str, victims: list[int]) -> None:
    """Kill the launcher (and others) under load, wait until all have left, start from the state: nothing is lost."""
    begun = time.monotonic()
    kill(*victims)
    deadline = begun + RECOVER_S
    while any(not gone(pid) for pid in run.world.members()):
        if time.monotonic() > deadline:
            run.broken.append(f"{what}: {run.world.members()} have not left within {RECOVER_S:g} s")
            kill(*run.world.members())
        time.sleep(LOOK_S)
    left = time.monotonic() - begun
    run.world.launcher.wait()
    run.world.handle.close()
    run.world.start()
    run.recovery[what].append(time.monotonic() - begun)
    run.say(f"{what}: all gone after {left:.3f} s, whole again after {run.recovery[what][-1]:.3f} s")


def total(run: Run) -> int:
    """The total, asked for when no request is under way."""
    run.world.whole(frozenset(), RECOVER_S)
    return int(run.world.handle.snapshot()["counters"]["requests"])


def ends_of_the_world(run: Run) -> None:
    """The launcher dies; all die; the machine does: each time the counter goes on where it was."""
    for what in ("kill the launcher", "kill all at once"):
        # Connections are refused when no cluster runs: what these clients do not get is not held against it.
        beside = Rule()
        with Clients(run.world.port, beside, 1):
            time.sleep(run.rng.uniform(0.2, 0.5))
            pids = run.world.members() if what == "kill all at once" else [run.world.launcher.pid]
            again(run, what, pids)
        run.rule.attempted += beside.attempted
        run.rule.acknowledged += beside.acknowledged
        run.rule.settle(total(run))
    before = total(run)
    time.sleep(QUIET_S)
    kill(*run.world.members())
    shutil.rmtree(run.world.shm / "run")
    (run.world.shm / "run").mkdir(0o700)
    (run.world.shm / "state" / "ledger").unlink(missing_ok=True)
    again(run, "lose the machine (run directory and ledger)", [])
    if total(run) != before:
        run.broken.append(f"{before} were counted and on disk, {total(run)} came back")
    with Clients(run.world.port, run.rule, 1):
        time.sleep(0.3)
    run.rule.settle(total(run))


def cause(run: Run, failure: Failure) -> Strike | None:
    """The strike that ended this request: the last one that was under way while the request was."""
    for done in reversed(run.strikes):
        if done.begun <= failure.ended and failure.begun <= done.recovered + AFTER_S:
            return done
    return None


def verdict(run: Run) -> int:
    """Print what was seen; returns the exit code."""
    rule = run.rule
    causes: Counter[str] = Counter()
    for failure in rule.failures:
        done = cause(run, failure)
        near = [s for s in run.strikes if s.begun <= failure.ended and failure.begun <= s.recovered + AFTER_S]
        guilty = next((s for s in reversed(near) if any(fault.costs for fault in s.faults)), None)
        if guilty is None:
            at = f"at {failure.begun - run.started:.2f} s, beside {done.name if done else 'nothing'}"
            run.broken.append(f"a request ({failure.client}) failed {at}: {failure.error}")
        else:
            causes[guilty.name if len(guilty.faults) == 1 else "two at once"] += 1
    run.broken += rule.broken
    if rule.refused:
        run.broken.append(f"{rule.refused} connections were refused")
    print(f"\n{'fault':<48}{'times':>7}{'p50':>9}{'max':>9}{'failed requests':>17}")
    for name, times in sorted(run.recovery.items()):
        middle, longest = statistics.median(times), max(times)
        print(f"{name:<48}{len(times):>7}{middle:>7.2f} s{longest:>7.2f} s{causes[name]:>17}")
    print(
        f"\nattempted {rule.attempted:,}, acknowledged {rule.acknowledged:,}, failed {len(rule.failures):,}", end=""
    )
    print(f" (slowest answer {rule.slowest_s:.2f} s), connections refused {rule.refused}")
    for text in run.broken[:SHOWN]:
        print(f"BROKEN: {text}")
    print("verdict: " + (f"{len(run.broken)} promises broken" if run.broken else "every promise was kept"))
    return 1 if run.broken else 0


@contextmanager
def folders() -> Iterator[tuple[Path, Path]]:
    """One for the app and its log, and one on tmpfs."""
    with (
        tempfile.TemporaryDirectory(prefix="zcn-") as folder,
        tempfile.TemporaryDirectory(prefix="zcn-", dir="/dev/shm") as shm,
    ):
        yield Path(folder), Path(shm)


def chosen(options: argparse.Namespace, has_shm: bool, world: World) -> list[Fault]:
    """The kinds of faults that were asked for and are possible here; what is not is said."""
    possible = {"": True, "shm": has_shm, "trace": may_trace(world.of_role("master"))}
    names = options.only.split(",") if options.only else list(FAULTS)
    left_out = [name for name in names if not possible[FAULTS[name].needs]]
    if left_out:
        print(f"not possible here (no mount namespace, or no right to trace processes): {'; '.join(left_out)}")
    return [FAULTS[name] for name in names if possible[FAULTS[name].needs]]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0, help="of the main part (default 1)")
    parser.add_argument("--seed", type=int, default=None, help="of all that is chosen (default: a new one)")
    parser.add_argument("--workers", type=int, default=2, help="(default 2)")
    parser.add_argument("--clients", type=int, default=2, help="of each of three kinds (default 2)")
    parser.add_argument("--only", default="", help="these faults, with commas between: " + "; ".join(FAULTS))
    options = parser.parse_args()
    unknown = [name for name in options.only.split(",") if name and name not in FAULTS]
    if unknown:
        parser.error(f"there is no fault {unknown[0]!r}; there are {'; '.join(FAULTS)}")
    if options.seed is None:
        options.seed = random.randrange(1 << 32)
    return options


def main() -> int:
    options = arguments()
    has_shm = own_shm.enter(SHM_MIB)
    print(f"seed {options.seed}, {options.workers} workers, {options.clients} clients of each kind", flush=True)
    with folders() as (folder, shm):
        world = World(folder, shm, options)
        try:
            world.start()
            run = Run(world, random.Random(options.seed))
            kinds = chosen(options, has_shm, world)
            with Clients(world.port, run.rule, options.clients):
                main_loop(run, options.minutes * 60, kinds)
            run.say("the clients have stopped")
            run.rule.settle(total(run))
            if not run.broken:
                ends_of_the_world(run)
        finally:
            world.end()
            kill(*world.members())
        if left := world.members():
            run.broken.append(f"{left} were left behind")
        return verdict(run)


if __name__ == "__main__":
    sys.exit(main())
