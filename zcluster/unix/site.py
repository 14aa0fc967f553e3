"""The site: everything a launcher holds open for its cluster, made in the one order that is safe.

certificate -> name and directory -> older processes gone -> state -> listening sockets -> pid file -> root given up
            -> ledger -> leash -> published -> adopted

Invariant: what cannot be had is found out before any process is started, and a failure half-way leaves nothing.
"""

import logging
import os
import resource
import secrets
import stat
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from zcluster.config import Config
from zcluster.core.messages import Boot
from zcluster.errors import ConfigError, SpawnError
from zcluster.unix import identity, journal, leash, ledgerfile, listen, logfile, process, rundir, surroundings
from zcluster.unix.cpus import available_cpus
from zcluster.unix.identity import Identity
from zcluster.unix.ledgerfile import LedgerFile
from zcluster.unix.listen import Listener
from zcluster.unix.locks import LAUNCHER_BYTE, LockFile
from zcluster.unix.pidfile import PidFile
from zcluster.unix.rundir import RunDir
from zcluster.unix.state import State, open_state

log = logging.getLogger("zcluster.launcher")

# Far more than one worker serves; not the 10^9 some containers allow: programs that close "all" descriptors one by
# one, which an app may start, would take minutes.
FDS_ENOUGH = 1 << 20


@dataclass
class Site:
    """Owned by the launcher, for life."""

    config: Config  # with every "auto" resolved
    rundir: RunDir
    state: State | None
    listeners: list[Listener]
    ledger: LedgerFile
    pidfile: PidFile | None
    locks: LockFile
    leash_fd: int
    urls: tuple[str, ...]  # where it listens, in the order of --bind; the listeners may be closed by now

    @property
    def path(self) -> Path:
        """The instance directory."""
        return self.rundir.path

    def boot(self, generation: int = 0, kind: str = "", config: Config | None = None) -> Boot:
        """What a process of the cluster has to know; `config` is that of its generation if it is not ours."""
        return Boot(
            config=msgspec.Raw(msgspec.msgpack.encode(config or self.config)),
            run_dir=str(self.path),
            urls=self.urls,
            launcher_pid=os.getpid(),
            launcher_start=process.start_time(os.getpid()),
            generation=generation,
            listener_fds=tuple(listener.sock.fileno() for listener in self.listeners),
            kind=kind,
        )

    def close_listeners(self) -> None:
        """Leave the addresses to the workers that still serve on them; a second call does nothing."""
        while self.listeners:
            self.listeners.pop().close()

    def reopen_logs(self) -> None:
        """After log rotation: have every log there again, under its own name, and every process write to that."""
        for option in ("log_file", "access_logfile"):
            try:
                logfile.settle(getattr(self.config, option), option)
            except ConfigError as error:
                log.error("%s", error)
        self.ledger.ledger.log_openings += 1
        log.info("SIGUSR1: the logs are opened anew")

    def close(self, *, keep_ledger: bool = False) -> None:
        """Give everything back; the files go, but the ledger if it holds what no checkpoint does."""
        self.close_listeners()
        if self.pidfile is not None:
            self.pidfile.remove()
        keep_ledger = self._holds_counts() and (keep_ledger or not self._is_saved())
        if keep_ledger:
            log.error("the last checkpoint is not complete; the counters stay in %s for the next start", self.path)
        if self.state is not None:
            self.state.close()
        os.close(self.leash_fd)
        self.ledger.close()
        self.locks.close()
        self.rundir.remove(keep_ledger=keep_ledger)
        self.rundir.lock.close()

    def _holds_counts(self) -> bool:
        """Without a state directory nothing outlives a cluster, and zeros are worth nothing."""
        return self.state is not None and any(self.ledger.ledger.totals().values())

    def _is_saved(self) -> bool:
        return self.state is not None and self.state.covers(self.ledger.ledger)


def prepare(config: Config) -> Site:
    """Take what the cluster needs. Raises SpawnError naming what the machine refuses, and what to give instead."""
    who = identity.wanted(config)
    with identity.acting(who):
        config = msgspec.structs.replace(
            config,
            workers=config.workers or available_cpus(),
            access_logfile=logfile.settle(config.access_logfile),
            log_file=logfile.settle(config.log_file, "log_file"),
        )
    _raise_fd_limit()
    base = Path(config.run_dir) if config.run_dir else None
    try:
        with ExitStack() as undo:
            site = _prepare(config, who, base, undo)
            undo.pop_all()
    except OSError as error:  # memory or inodes of the tmpfs, the table of open files
        raise SpawnError(f"cannot set up the run directory in {rundir.root_of(base)}: {error}") from error
    # The new ledger stands: what an older one held is in it, or in the checkpoint.
    rundir.discard(site.rundir.older, bytes(16) if site.state is None else site.state.id)
    return site


def _prepare(config: Config, who: Identity | None, base: Path | None, undo: ExitStack) -> Site:
    if config.certfile:
        from zcluster.unix import certificate  # the ssl module is only for who speaks TLS

        certificate.load(config.certfile, config.keyfile)  # the zygotes make theirs: here for the errors
    with identity.acting(who):
        if who is not None:
            identity.require_programs()
        run = rundir.claim(base, config.name, rundir.safe_name(config.app))
        undo.callback(run.lock.close)
        undo.callback(run.remove)
        killed = rundir.await_older(run)
        if killed:
            log.warning("killed %d processes that an earlier instance of %r had left", killed, run.name)
        state = open_state(config.state) if config.state else None
        if state is not None:
            undo.callback(state.close)
    listeners = _listen(config, undo)
    pidfile = PidFile(config.pidfile) if config.pidfile else None
    if pidfile is not None:
        undo.callback(pidfile.remove)
    if who is not None:
        config = _hand_over(config, who, run.path, listeners, pidfile)
    locks = LockFile(run.path / "locks")
    undo.callback(locks.close)
    locks.try_lock(LAUNCHER_BYTE)
    ledger = _make_ledger(config, run.path / "ledger", state)
    undo.callback(ledger.close)
    journal.make(run.path)
    leash.make(run.path / "leash")
    leash_fd = leash.hold(run.path / "leash")
    undo.callback(os.close, leash_fd)
    run.publish()
    if state is not None:
        # Last of all: once the state directory names this ledger an older one no longer counts, and a failure after
        # that would remove the only copy of what it held.
        state.adopt(ledger.path, run.path / "locks", ledger.ledger.ledger_id)
    urls = tuple(listener.url for listener in listeners)
    return Site(config, run, state, listeners, ledger, pidfile, locks, leash_fd, urls)


def _hand_over(
    config: Config, who: Identity, folder: Path, listeners: Sequence[Listener], pidfile: PidFile | None
) -> Config:
    """Give up root, and before that what only root can give; returns the options as they are for the user."""
    keys = {}
    for field in ("certfile", "keyfile") if config.certfile else ():
        path = getattr(config, field)
        if path and not identity.may(who, path, os.R_OK):
            keys[field] = _copy(Path(path), folder / field, who)
    if keys:
        log.info("%s cannot read %s: a reload goes on with it as it is now", who, " and ".join(sorted(keys)))
    try:
        for listener in listeners:
            listener.give_to(who.uid, who.gid)
            if listener.unlink is not None and not identity.may(who, listener.unlink.parent, os.W_OK | os.X_OK):
                log.warning("%s cannot remove %s in the end; the next start will", who, listener.unlink)
        if pidfile is not None:
            pidfile.give_to(who.uid, who.gid)
        _give_streams(who)
    except OSError as error:
        raise SpawnError(f"cannot give {error.filename} to {who}: {error.strerror}") from error
    identity.drop(who, surroundings.given_variables(config))
    log.info("running as %s from here on", who)
    return msgspec.structs.replace(config, **keys)


def _give_streams(who: Identity) -> None:
    """Let the user open the pipes that stdout and stderr are, as container runtimes do: logs open them anew."""
    for fd in (1, 2):
        with suppress(OSError):  # closed, or of a user namespace that is not ours: then it is written as it is
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                os.fchown(fd, who.uid, -1)


def _copy(path: Path, target: Path, who: Identity) -> str:
    """Copy a key into the run directory: into memory, where the user's processes are going to have it anyway."""
    text = path.read_bytes()
    with identity.acting(who):
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(text)
    return str(target)


def _listen(config: Config, undo: ExitStack) -> list[Listener]:
    """Bind what was asked for, beside what systemd has passed.

    A passed socket is served in any case, because its clients would wait for ever, and so is an explicit --bind,
    because nothing is dropped that was asked for: only the default gives way.
    """
    tls = bool(config.certfile)
    listeners = listen.from_systemd(os.environ, os.getpid(), tls=tls)
    for listener in listeners:
        undo.callback(listener.close)
    wanted = config.bind
    if listeners:
        wanted = () if config.bind == Config(app="-").bind else config.bind
        also = f", besides {', '.join(wanted)} (--bind)" if wanted else ""
        log.info("listening on %s from systemd%s", ", ".join(listener.url for listener in listeners), also)
    mode = int(config.unix_mode[-3:], 8) if config.unix_mode else None
    for listener in listen.bind(wanted, config.backlog, unix_mode=mode, tls=tls, passed=listeners):
        undo.callback(listener.close)
        listeners.append(listener)
    return listeners


def _make_ledger(config: Config, path: Path, state: State | None) -> LedgerFile:
    boot_id = ledgerfile.boot_id()
    totals = {}
    if state is not None:
        base = state.base(boot_id)
        totals = base.totals
        log.info("%s", base.note)
    return ledgerfile.create(
        path,
        ledger_id=secrets.token_bytes(16),
        boot_id=boot_id,
        state_id=bytes(16) if state is None else state.id,
        base=totals,
        lanes=config.lanes,
        counters=config.counters,
    )


def _raise_fd_limit() -> None:
    """Room for every connection: each is a descriptor, and libzmq aborts when it finds none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = min(hard, FDS_ENOUGH)
    if soft < enough:
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))
