"""The services: processes beside the workers, of which this is the one that writes checkpoints, and starts the other.

The checkpoint service: the totals to disk, every second while they change and at once when somebody waits. (The
output service, which reads what workers print, is `unix/captured`.)

Invariant: number k is announced in the ledger (`checkpoint_started`) before the totals of checkpoint k are read,
and reported (`checkpoint_done`) after they are on disk for good. So an increment stored while `checkpoint_started`
was s is on disk once `checkpoint_done` >= s + 1, whichever service process, alive or killed, wrote it.

A full or failing disk is no reason to stop counting: it is logged once per kind of error and tried again every
period; `incr(durable=True)` then times out, and everything is still in the ledger.
"""

import errno
import logging
import os
import select
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from zcluster.config import Config
from zcluster.core.ledger import Ledger
from zcluster.unix import logs, process
from zcluster.unix.captured import UNBORN_S, Captured
from zcluster.unix.channel import Channel, boot_of
from zcluster.unix.ledgerfile import open_ledger
from zcluster.unix.locks import CHECKPOINT_BYTE, LANES_END, OUTPUT_BYTE, LockFile
from zcluster.unix.signals import HEARD, Signals
from zcluster.unix.state import CheckpointFile, drain_fifo, open_fifo

log = logging.getLogger("zcluster.checkpoint")

OUTPUT_PATIENCE_S: Final = 1.0  # a reader of our log who has stopped holds up a print() no longer than that
INTERVAL_S: Final = 1.0  # what a power cut may cost
_TURN_POLL_S: Final = 0.05  # a writer before us is being killed, or stuck in fsync on a dying disk
_FINISHED_POLL_S: Final = 0.02  # once told to stop: how often to ask whether the last worker has gone
# Workers leave inside their own deadlines, which the master enforces; this only bounds the wait if it cannot.
FINISH_TIMEOUT_S: Final = 600.0
# The launcher stops us after the last worker has gone; this bounds the wait when the launcher died instead.
ORPHAN_MARGIN_S: Final = 1.0
_FINAL_TRIES: Final = 4  # with the pause below inside the 5 s that the launcher gives a service to leave
_FINAL_PAUSE_S: Final = 0.5


def main(control_fd: int) -> int:
    """Run the service the Boot names; 0 when all that was counted is on disk.

    It wears no leash: when launcher and master are both dead it still has something to save. It leaves by itself once
    no lane is locked any more.
    """
    signals = Signals(HEARD)
    channel = Channel.of_fd(control_fd)
    boot = boot_of(channel.first_message(), "service")
    config = msgspec.msgpack.decode(boot.config, type=Config)
    run_dir = Path(boot.run_dir)
    patience_s = OUTPUT_PATIENCE_S if boot.kind == "output" else logs.PATIENCE_S
    own_log = logs.begin(boot.kind, config, run_dir, patience_s)
    process.set_title(f"zc-{boot.kind}")
    locks = LockFile(run_dir / "locks")
    locks.try_lock(OUTPUT_BYTE if boot.kind == "output" else CHECKPOINT_BYTE)
    signals.unblock()
    if boot.kind == "output":
        Captured(run_dir, own_log, config.log_format, UNBORN_S + config.boot_timeout_s).run(control_fd)
        signals.ignore()
        return 0
    complete = checkpoint_loop(
        open_ledger(run_dir / "ledger").ledger,
        config.state,
        open_fifo(run_dir / "checkpoint"),
        control_fd,
        config.checkpoint_s,
        finished=lambda: not locks.owners(0, LANES_END),
        finish_timeout_s=config.orphan_timeout_s + ORPHAN_MARGIN_S,
    )
    channel.close()
    signals.ignore()
    return 0 if complete else os.EX_IOERR


def checkpoint_loop(
    ledger: Ledger,
    state_dir: str | Path,
    poke_fd: int,
    stop_fd: int,
    interval_s: float = INTERVAL_S,
    finished: Callable[[], bool] = lambda: True,
    finish_timeout_s: float = FINISH_TIMEOUT_S,
) -> bool:
    """Write checkpoints until `stop_fd` is readable or closed *and* `finished()` says that nobody counts any more.

    `poke_fd` is the reading end made by `open_fifo`; nothing is read from `stop_fd`. Returns whether the last
    checkpoint covers everything; if not, the ledger file must be kept for the next start. SpawnError when
    `state_dir` is not a state directory.
    """
    with CheckpointFile(state_dir) as file:
        while not file.try_turn():
            if _readable(stop_fd, _TURN_POLL_S):
                log.error("another process still writes checkpoints into %s; leaving without one", state_dir)
                return False
        writer = _Writer(ledger, file)
        stop_at_s = _run(writer, poke_fd, stop_fd, interval_s, finished, finish_timeout_s)
        if time.monotonic() >= stop_at_s:
            log.error(
                "workers still count %.0f s after the stop; what they count from now on is lost", finish_timeout_s
            )
        return _write_last(writer)


class _Writer:
    """Numbers checkpoints and writes those that differ from what is on disk."""

    def __init__(self, ledger: Ledger, file: CheckpointFile) -> None:
        self._ledger = ledger
        self._file = file
        # What a service before us wrote may have missed its directory fsync: the first one is always written.
        self._saved: dict[str, int] | None = None
        self._complained: set[int | None] = set()

    def write(self) -> bool:
        """One checkpoint. False when the disk refused it."""
        ledger = self._ledger
        number = ledger.checkpoint_started + 1
        ledger.checkpoint_started = number
        totals = ledger.totals()
        if totals != self._saved:
            try:
                self._file.write(ledger.ledger_id, number, totals)
            except OSError as error:
                self._complain(error)
                return False
            if self._complained:
                log.warning("checkpoints are written again to %s", self._file.path)
                self._complained.clear()
            self._saved = totals
        ledger.checkpoint_done = number
        return True

    def _complain(self, error: OSError) -> None:
        if error.errno in self._complained:
            return
        self._complained.add(error.errno)
        advice = "make room on that disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check that directory"
        log.error(
            "cannot write the checkpoint to %s: %s; %s. Counting goes on in memory, the next try is due in a moment",
            self._file.path,
            error.strerror,
            advice,
        )


def _run(
    writer: _Writer,
    poke_fd: int,
    stop_fd: int,
    interval_s: float,
    finished: Callable[[], bool],
    finish_timeout_s: float,
) -> float:
    """Write when due or poked, until stopped and finished; returns the time at which we stop waiting for that."""
    poller = select.poll()
    poller.register(poke_fd, select.POLLIN)
    poller.register(stop_fd, select.POLLIN)
    due_s, stop_at_s = time.monotonic(), float("inf")
    stopping = False
    while True:
        now_s = time.monotonic()
        if stopping and (now_s >= stop_at_s or finished()):
            return stop_at_s
        if now_s >= due_s:
            healthy = writer.write()
            due_s = time.monotonic() + interval_s
        wait_s = min(due_s - now_s, _FINISHED_POLL_S) if stopping else due_s - now_s
        for fd, _ in poller.poll(max(wait_s, 0.0) * 1000):
            if fd == stop_fd:
                poller.unregister(stop_fd)
                stopping, stop_at_s = True, time.monotonic() + finish_timeout_s
            else:
                drain_fifo(poke_fd)
                if healthy:  # a failing disk is tried once per period, however many wait for it
                    due_s = 0.0


def _write_last(writer: _Writer) -> bool:
    for attempt in range(_FINAL_TRIES):
        if attempt:
            time.sleep(_FINAL_PAUSE_S)
        if writer.write():
            return True
    log.error("the last checkpoint could not be written; the counts since the one before are in the ledger only")
    return False


def _readable(fd: int, timeout_s: float) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(timeout_s * 1000))
