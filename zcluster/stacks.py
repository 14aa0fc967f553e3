"""`zcluster dump`: where every thread of a worker, or of all workers and zygotes, is at this moment.

Invariant: neither a master nor the workers' interpreters are needed for it, so it shows what is wrong when they are.
"""

import select
import time
from pathlib import Path

import click

from zcluster.errors import ClusterError, ReloadFailed
from zcluster.launched import Launched
from zcluster.parameters import SETTINGS, say, which_to_read
from zcluster.unix.dumps import LOOK_AGAIN_S, Dump, Dumps, Target, targets
from zcluster.unix.ledgerfile import open_ledger
from zcluster.unix.locks import LockFile

NOT_DONE = ReloadFailed.exit_code  # as cli's: the cluster runs, and what was asked for could not be had


@click.command("dump", context_settings=SETTINGS)
@which_to_read
@click.argument("slot", required=False, type=click.IntRange(min=0), metavar="[SLOT]")
def dump_command(name: str, run_dir: str, slot: int | None) -> int:
    """Show the stacks of all threads of the worker in SLOT, or of every worker and zygote.

    It works for workers that hang, in C code, too. One that is stopped is not continued for it. The result is 1 when
    a process did not show its stacks.
    """
    asked = _there(Path(Launched.find(name, Path(run_dir) if run_dir else None).run_dir), slot)
    complete = {dump.target: dump for dump in _dumped(asked)}
    for number, target in enumerate(asked):
        if number:
            say()
        say(f"{target.label}\n{complete[target].text}")
    return 0 if all(dump.ok for dump in complete.values()) else NOT_DONE


def _there(run_dir: Path, slot: int | None) -> list[Target]:
    """Who is to be asked."""
    ledger = open_ledger(run_dir / "ledger", writable=False)
    locks = LockFile(run_dir / "locks")
    try:
        found = targets(run_dir, ledger.ledger, locks)
    finally:
        locks.close()
        ledger.close()
    asked = [target for target in found if slot is None or target.slot == slot]
    if not asked:
        slots = sorted({target.slot for target in found if target.slot is not None})
        there = f"; there are workers in {', '.join(map(str, slots))}" if slots else "; there is no worker at all"
        raise ClusterError(
            f"no worker is in slot {slot}{there}" if slot is not None else "no process is there to ask"
        )
    return asked


def _dumped(asked: list[Target]) -> list[Dump]:
    """Ask them, and wait until each has shown its stacks, or it is known why it does not."""
    dumps, complete = Dumps(), []
    dumps.begin(asked, time.monotonic())
    while dumps:
        complete += dumps.collect(time.monotonic())
        if dumps:
            select.select([], [], [], LOOK_AGAIN_S)
    return complete
