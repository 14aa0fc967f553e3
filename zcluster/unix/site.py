"""The site: everything a launcher holds open for its cluster, made in the one order that is safe.

name and directory -> older processes gone -> state -> listening sockets -> ledger -> leash -> published

Invariant: what cannot be had is found out before any process is started, and a failure half-way leaves nothing.
"""

import logging
import os
import resource
import secrets
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from zcluster.config import Config
from zcluster.unix import leash, ledgerfile, listen, rundir
from zcluster.unix.cpus import available_cpus
from zcluster.unix.ledgerfile import LedgerFile
from zcluster.unix.listen import Listener
from zcluster.unix.locks import LAUNCHER_BYTE, LockFile
from zcluster.unix.rundir import RunDir
from zcluster.unix.state import State, open_state

log = logging.getLogger("zcluster.launcher")


@dataclass
class Site:
    """Owned by the launcher, for life."""

    config: Config  # with every "auto" resolved
    rundir: RunDir
    state: State | None
    listeners: list[Listener]
    ledger: LedgerFile
    locks: LockFile
    leash_fd: int

    @property
    def path(self) -> Path:
        """The instance directory."""
        return self.rundir.path

    @property
    def urls(self) -> tuple[str, ...]:
        """Where it listens, in the order of --bind."""
        return tuple(listener.url for listener in self.listeners)

    def close(self, *, keep_ledger: bool = False) -> None:
        """Give everything back; the files go, but the ledger if it holds what no checkpoint does."""
        for listener in self.listeners:
            listener.close()
        if self.state is not None:
            if not keep_ledger and not self.state.covers(self.ledger.ledger):
                keep_ledger = True
            if keep_ledger:
                log.error(
                    "the last checkpoint is not complete; the counters stay in %s for the next start", self.path
                )
            self.state.close()
        os.close(self.leash_fd)
        self.ledger.close()
        self.locks.close()
        self.rundir.remove(keep_ledger=keep_ledger)
        self.rundir.lock.close()


def prepare(config: Config) -> Site:
    """Take what the cluster needs. Raises SpawnError naming what the machine refuses, and what to give instead."""
    config = msgspec.structs.replace(config, workers=config.workers or available_cpus())
    _raise_fd_limit()
    base = Path(config.run_dir) if config.run_dir else None
    with ExitStack() as undo:
        run = rundir.claim(base, config.name, rundir.safe_name(config.app))
        undo.callback(run.lock.close)
        undo.callback(run.remove)
        killed = rundir.await_older(run)
        if killed:
            log.warning("killed %d processes that an earlier instance of %r had left", killed, run.name)
        state = open_state(config.state) if config.state else None
        if state is not None:
            undo.callback(state.close)
        listeners = listen.bind(config.bind, config.backlog)
        for listener in listeners:
            undo.callback(listener.close)
        locks = LockFile(run.path / "locks")
        undo.callback(locks.close)
        locks.try_lock(LAUNCHER_BYTE)
        ledger = _make_ledger(config, run, state)
        undo.callback(ledger.close)
        leash.make(run.path / "leash")
        leash_fd = leash.hold(run.path / "leash")
        run.publish()
        rundir.discard(
            run.older, bytes(16) if state is None else state.id
        )  # the new ledger stands: what an older one held is in it, or in the checkpoint
        undo.pop_all()
    return Site(config, run, state, listeners, ledger, locks, leash_fd)


def _make_ledger(config: Config, run: RunDir, state: State | None) -> LedgerFile:
    boot_id = ledgerfile.boot_id()
    ledger_id = secrets.token_bytes(16)
    totals = {}
    if state is not None:
        base = state.base(boot_id)
        totals = base.totals
        log.info("%s", base.note)
    path = run.path / "ledger"
    ledger = ledgerfile.create(
        path,
        ledger_id=ledger_id,
        boot_id=boot_id,
        state_id=bytes(16) if state is None else state.id,
        base=totals,
        lanes=config.lanes,
        counters=config.counters,
    )
    if state is not None:
        state.adopt(path, run.path / "locks", ledger_id)
    return ledger


def _raise_fd_limit() -> None:
    """As many descriptors as the machine allows: every connection is one, and libzmq aborts when it finds none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
