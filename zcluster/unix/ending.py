"""Signals to those that have to end, the stacks they leave, and their notes.

Invariant: a signal goes to the very process that was meant (pid and start time), or to nobody.
"""

import logging
import signal
from pathlib import Path

from zcluster.core import fleet_events as f
from zcluster.unix import process
from zcluster.unix.notes import empty_note, read_note
from zcluster.unix.zygotes import Zygotes

log = logging.getLogger("zcluster.master")

Blow = f.Terminate | f.Dump | f.Kill | f.SendSignal | f.DumpZygote | f.KillZygote


class Ending:
    """What a master does to workers and zygotes that do not end by themselves."""

    def __init__(self, run_dir: str, zygotes: Zygotes) -> None:
        self._run_dir, self._zygotes = Path(run_dir), zygotes
        self._dumped: set[str] = set()  # notes with stacks that we wanted; others are of what an operator asked for

    def perform(self, command: Blow) -> None:
        """Do what the fleet decided."""
        match command:
            case f.Terminate(pid=pid, start=start):
                process.send_signal(pid, start, signal.SIGTERM)
            case f.Dump(id=id_, pid=pid, start=start):
                self._begin_note(f"stacks-{id_}")
                process.send_signal(pid, start, signal.SIGCONT)  # a stopped process cannot write its stacks
                process.send_signal(pid, start, process.DUMP_SIGNAL)
            case f.Kill(id=id_, pid=pid, start=start, reason=reason):
                self._log_stacks(f"worker id={id_}", f"stacks-{id_}", reason)
                process.send_signal(pid, start, signal.SIGKILL)
            case f.SendSignal(pid=pid, start=start, number=number):
                process.send_signal(pid, start, number)
            case f.DumpZygote(generation=generation, reason=reason):
                log.error("the zygote of generation %d is dumped, then killed: %s", generation, reason)
                self._begin_note(f"stacks-zygote-{generation}")
                # No SIGCONT: a stopped one would go on with all that it was asked for.
                self._zygotes.signal(generation, process.DUMP_SIGNAL)
            case f.KillZygote(generation=generation, reason=reason):
                self._log_stacks(f"zygote gen={generation}", f"stacks-zygote-{generation}", reason)
                self._zygotes.signal(generation, signal.SIGKILL)

    def boot_note(self, id_: int) -> str:
        """Why a worker could not start, in its own words; empty when it has left none."""
        return read_note(self._run_dir / f"boot-{id_}")

    def forget_worker(self, id_: int) -> None:
        """It is dead, and what it had to say has been read."""
        for name in (f"stacks-{id_}", f"boot-{id_}"):
            self._dumped.discard(name)
            (self._run_dir / name).unlink(missing_ok=True)

    def forget_zygote(self, generation: int) -> None:
        """The same; not for a generation that may get another one, which has the same file."""
        (self._run_dir / f"stacks-zygote-{generation}").unlink(missing_ok=True)

    def _begin_note(self, note: str) -> None:
        self._dumped.add(note)
        empty_note(self._run_dir / note)

    def _log_stacks(self, whose: str, note: str, reason: str) -> None:
        stacks = read_note(self._run_dir / note) if note in self._dumped else ""
        if stacks:
            log.error("stacks of %s before it is killed (%s):\n%s", whose, reason, stacks)
