"""Play one seed of the simulator and print its history, or search many for one that fails.

    scripts/sim 4711                one seed, with all that happened in it
    scripts/sim                     new seeds for a minute
    scripts/sim --seeds 500         the seeds 0 to 499
    scripts/sim --seconds 600 --first 1000000

Exit code 1 when a seed failed: its number, what did not hold, and the end of its history are printed.
"""

import argparse
import os
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import count

from zcluster.testing.sim import run
from zcluster.testing.sim_world import Broken

CHUNK = 50  # seeds for one process at a time: a second
LINES = 60  # of the history of a seed that failed
SHOWN_MAX = 5  # failures with their history; of more, only the numbers


def play(first: int, number: int) -> tuple[int, int, int, float, list[tuple[int, str, list[str]]]]:
    """Play some seeds: how many, events, faults and simulated seconds, and what failed."""
    events, faults, seconds, failures = 0, 0, 0.0, []
    for seed in range(first, first + number):
        try:
            outcome = run(seed)
        except Broken as broken:
            failures.append((seed, broken.text, broken.history[-LINES:]))
        else:
            events, faults, seconds = events + outcome.events, faults + outcome.faults, seconds + outcome.seconds
    return number, events, faults, seconds, failures


def show(seed: int) -> int:
    """One seed and its history."""
    try:
        outcome = run(seed, with_history=True)
    except Broken as broken:
        print("\n".join(broken.history))
        print(f"\nseed {seed} FAILED: {broken.text}")
        return 1
    print("\n".join(outcome.history))
    print(f"\nseed {seed}: {outcome.events} events, {outcome.faults} faults, {outcome.epochs} masters; all held")
    return 0


def search(first: int, seeds: int | None, seconds: float, jobs: int) -> int:
    """Many seeds, in several processes."""
    began, totals, failures = time.monotonic(), [0, 0, 0, 0.0], []
    starts = iter(range(first, first + seeds, CHUNK)) if seeds is not None else count(first, CHUNK)
    with ProcessPoolExecutor(jobs) as pool:
        running: set[Future] = set()
        while True:
            while len(running) < jobs and (seeds is not None or time.monotonic() - began < seconds):
                start = next(starts, None)
                if start is None:
                    break
                number = CHUNK if seeds is None else min(CHUNK, first + seeds - start)
                running.add(pool.submit(play, start, number))
            if not running:
                break
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                *played, failed = future.result()
                totals = [before + now for before, now in zip(totals, played, strict=True)]
                report(failed, len(failures))
                failures += failed
    took_s = time.monotonic() - began
    print(
        f"{totals[0]} seeds from {first} in {took_s:.0f} s, {60 * totals[0] / took_s:.0f} a minute, {jobs} processes:"
        f" {totals[1]} events, {totals[2]} faults, {totals[3] / 3600:.1f} simulated hours; {len(failures)} failed"
    )
    if failures:
        print("repeat one with: scripts/sim SEED;", "seeds:", *sorted(seed for seed, _, _ in failures))
    return 1 if failures else 0


def report(failed: list[tuple[int, str, list[str]]], before: int) -> None:
    """Print what failed."""
    for number, (seed, text, history) in enumerate(failed, before):
        if number < SHOWN_MAX:
            print("\n".join(history))
        print(f"seed {seed} FAILED: {text}\n    repeat it with: scripts/sim {seed}", flush=True)


def main() -> int:
    """Read the arguments."""
    parser = argparse.ArgumentParser(prog="scripts/sim", description=__doc__.split("\n", 1)[0])
    parser.add_argument("seed", nargs="?", type=int, help="play this seed and print its history")
    parser.add_argument("--seeds", type=int, help="play so many seeds")
    parser.add_argument("--seconds", type=float, default=60.0, help="search for so long, unless --seeds is given")
    parser.add_argument("--first", type=int, help="the first seed: 0 with --seeds, otherwise one from the clock")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    given = parser.parse_args()
    if given.seed is not None:
        return show(given.seed)
    first = given.first if given.first is not None else 0 if given.seeds is not None else int(time.time()) * 1000
    return search(first, given.seeds, given.seconds, given.jobs)


if __name__ == "__main__":
    sys.exit(main())
