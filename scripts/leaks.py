"""Hundreds of reloads, thousands of workers that are killed: does anything grow that should not?

Descriptors, threads and memory of launcher, master, zygote and checkpoint writer; files in the run directory and on
/dev/shm. A zygote is another one after each reload: what counts is that the next is no larger than the one before.
All of it is sampled while nothing happens, and must be flat: scripts/leaks_judge.py says how that is decided.

Exit code 1 when something grows.
"""

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import own_shm
from leaks_judge import Series, drawing, without_warm_up
from nemesis_clients import Clients, Rule
from nemesis_world import ORDER_S, ROLES, World, kill

SHM_MIB = 512
RELOADS_PER_SAMPLE = 4
# A bad day: a reload every five minutes, a worker that dies every ten seconds.
DAY = {"reloads": 288, "deaths": 8640}
# Ten deaths of a slot's workers within 5 s of their start make a crash loop, and then we would measure its pauses.
YOUNG_ROUNDS = 8
OLD_S = 5.2
DRAWN = ("launcher: memory", "master: memory", "zygote: memory")


def measure(world: World, whole_shm: bool) -> dict[tuple[str, str], float]:
    """(what, unit) -> how much of it there is."""
    found: dict[tuple[str, str], float] = {}
    pids = {"launcher": world.launcher.pid} | {role: world.of_role(role) for role in ROLES}
    for role, pid in pids.items():
        status = Path(f"/proc/{pid}/status").read_text()
        found[f"{role}: descriptors", ""] = len(os.listdir(f"/proc/{pid}/fd"))
        for field, key in (("Threads", (f"{role}: threads", "")), ("VmRSS", (f"{role}: memory", "KiB"))):
            number = re.search(rf"(?m)^{field}:\s+(\d+)", status)
            assert number is not None, status
            found[key] = int(number[1])
    files = [path for path in world.run_dir.rglob("*") if not path.is_dir()]
    found["run directory: files", ""] = len(files)
    # Without the log, which is kept to 4 MiB by itself.
    found["run directory: size", "KiB"] = sum(path.stat().st_blocks for path in files if path.name != "log") / 2
    everything = Path("/dev/shm") if whole_shm else world.shm
    found["/dev/shm: files", ""] = sum(not path.is_dir() for path in everything.rglob("*"))
    return found


def reloads(world: World, number: int) -> Iterator[int]:
    """Reload so often; yields the number done when it is time to measure."""
    for done in range(1, number + 1):
        world.write()
        world.handle.reload(timeout_s=ORDER_S)
        if done % RELOADS_PER_SAMPLE == 0 or done == number:
            settle(world)
            yield done


def deaths(world: World, number: int) -> Iterator[int]:
    """Kill all workers, again and again; yields the number of the dead when it is time to measure."""
    done = rounds = 0
    while done < number:
        victims = world.workers()[: number - done]
        kill(*victims)
        done, rounds = done + len(victims), rounds + 1
        settle(world, frozenset(victims))
        begun = time.monotonic()
        yield done
        if rounds >= YOUNG_ROUNDS:
            time.sleep(max(0.0, begun + OLD_S - time.monotonic()))


def settle(world: World, without: frozenset[int] = frozenset()) -> None:
    """Wait until all workers are there, and what made room for them has been cleared away."""
    if not world.whole(without, ORDER_S):
        raise TimeoutError(f"not whole within {ORDER_S:g} s:\n{world.tail()}")
    time.sleep(0.1)


def sampled(what: str, world: World, steps: Iterator[int], whole_shm: bool) -> list[Series]:
    """Do it, and return a series for everything that was measured."""
    begun = time.monotonic()
    events: list[float] = []
    rows: list[dict[tuple[str, str], float]] = []
    for done in steps:
        events.append(done)
        rows.append(measure(world, whole_shm))
    seconds = time.monotonic() - begun
    print(f"\n{events[-1]:,.0f} {what} in {seconds:.0f} s, {len(rows)} samples; 24 h: {DAY[what]:,} {what}")
    print(f"{'':<32}{'first':>10}{'last':>10}{'per event':>12}{'after 24 h':>32}")
    found = []
    for name, unit in rows[0]:
        series = without_warm_up(name, unit, events, [row[name, unit] for row in rows])
        found.append(series)
        middle, low, high = series.after(DAY[what])
        day = f"{middle:,.0f}" if low == high else f"{middle:,.0f} ({low:,.0f} to {high:,.0f})"
        mark = "  GROWS" if series.grows else "" if series.is_judged else "  (too few samples)"
        title = f"{name} ({unit})" if unit else name
        print(
            f"{title:<32}{series.values[0]:>10,.0f}{series.values[-1]:>10,.0f}{series.line[0]:>12.4f}{day:>32}{mark}"
        )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reloads", type=int, default=200, help="(default 200)")
    parser.add_argument("--deaths", type=int, default=2000, help="of workers (default 2000)")
    parser.add_argument("--workers", type=int, default=50, help="while they are killed (default 50)")
    parser.add_argument("--plot", type=Path, help="write the memory, and where it would be after 24 h, to this SVG")
    options = parser.parse_args()
    has_shm = own_shm.enter(SHM_MIB)
    many, options.workers = options.workers, 2
    rule = Rule()
    with (
        tempfile.TemporaryDirectory(prefix="zcl-") as folder,
        tempfile.TemporaryDirectory(prefix="zcl-", dir="/dev/shm") as shm,
    ):
        world = World(Path(folder), Path(shm), options, periods=("--heartbeat=0.5",))
        try:
            world.start()
            with Clients(world.port, rule, 1):
                by_reload = sampled("reloads", world, reloads(world, options.reloads), has_shm)
                options.workers = many
                world.handle.scale(many, timeout_s=ORDER_S)
                by_death = sampled("deaths", world, deaths(world, options.deaths), has_shm)
        finally:
            world.end()
            kill(*world.members())
    if options.plot:
        rows = [("reloads", DAY["reloads"], by_reload), ("deaths", DAY["deaths"], by_death)]
        panels = [(what, day, [one for one in found if one.name in DRAWN]) for what, day, found in rows]
        options.plot.write_text(drawing(panels), encoding="utf-8")
    growing = [series.name for series in (*by_reload, *by_death) if series.grows]
    print(f"\n{rule.acknowledged:,} requests were answered meanwhile, {rule.refused} connections refused")
    print("verdict: " + (f"{', '.join(growing)} grow" if growing else "nothing grows"))
    return 1 if growing or rule.refused else 0


if __name__ == "__main__":
    sys.exit(main())
