"""The launcher: parent and only reaper of every process, keeper of the sockets, starter of masters.

Theory of operation. One thread, no ZeroMQ, no code of the app: the part that must never fail. It decides nothing
about workers. It tells the master what the kernel says (deaths) and what the operator says (signals), as numbered
messages that are repeated to the next master until one has acknowledged them, and it starts what a master asks for:
zygotes and services. When the master dies it starts another; when the master ends with a final code it ends the rest.

Invariant: whatever order processes die in, nothing of the cluster outlives the launcher's return.
"""

import logging
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from zcluster.config import Config
from zcluster.core import messages as m
from zcluster.core.kept import Kept
from zcluster.core.masterwatch import CHECK_S, MasterWatch
from zcluster.errors import BusError, ConfigError, SpawnError, kind_of
from zcluster.resolution import Sources
from zcluster.unix import logs, process, surroundings
from zcluster.unix.brood import Brood
from zcluster.unix.capture import Pipes
from zcluster.unix.channel import Channel
from zcluster.unix.configurations import Configurations
from zcluster.unix.dumps import LOOK_AGAIN_S, Dumps, targets
from zcluster.unix.journal import Journal
from zcluster.unix.logs import say
from zcluster.unix.notify import Notify
from zcluster.unix.offspring import Child, exec_child, fork_child
from zcluster.unix.process import BLOCKED, Death
from zcluster.unix.signals import Signals, has_terminal, name_of
from zcluster.unix.site import Site, prepare
from zcluster.unix.strays import Strays

log = logging.getLogger("zcluster.launcher")

FINAL_CODES = frozenset({0, 2, 3, 4, 5})  # a master that ends with one of these is not restarted
LEAVE_S = 5.0  # zygotes (also when they are replaced) and services at the end; the writer needs a disk's time
OVERRUN_S = 10.0  # beyond the drain deadline of a stop: a new master's start, a dump; then the launcher kills

ZygoteMain = Callable[[int], int]  # (control fd) -> exit code; for an app that lives only in this process's memory


def run(
    config: Config,
    *,
    announce: bool = True,
    owner_fd: int = -1,
    handle: Channel | None = None,
    zygote_main: ZygoteMain | None = None,
    size: m.Size | None = None,
    sources: Sources | None = None,
) -> int:
    """Run a cluster until it has ended; returns its exit code, 0 for a clean stop.

    Call it in the main thread of a process with one thread, with `process.BLOCKED` blocked. `announce` prints the
    ready line on stdout. `owner_fd` is the pidfd of the process for which the cluster runs: when it ends, so does the
    cluster. `handle` is told where the cluster is (Boot). `zygote_main` makes zygotes by fork instead of exec.
    `size`: the slots to begin with, when not as many as are configured. `sources`: to be read again at a reload.
    Raises ConfigError, AppError, SpawnError or RestartLimitReached when it cannot start or gives up.
    """
    signals = Signals(BLOCKED)
    surroundings.enter(config, in_memory=zygote_main is not None)
    own_log = logs.begin("launcher", config, patience_s=logs.PATIENCE_SHORT_S)
    process.set_title("zc-launcher")
    notify = Notify.of(os.environ, is_ours=handle is None)
    site = prepare(config)  # signals stay blocked: one that comes now waits for the loop
    own_log.keep(Journal(site.path))
    configs = Configurations(site.config, config, sources)
    launcher = Launcher(site, signals, configs, announce, owner_fd, handle, zygote_main, notify)
    if size is not None:
        launcher.kept.take(size)
    return launcher.run()


@dataclass
class Launcher:
    """The loop; everything it knows is here."""

    site: Site
    signals: Signals
    configurations: Configurations
    announce: bool
    owner_fd: int
    handle: Channel | None
    zygote_main: ZygoteMain | None
    notify: Notify
    standing: str = "starting"
    master: Child | None = None
    brood: Brood = field(default_factory=Brood)
    strays: Strays = field(default_factory=Strays)
    pipes: Pipes = field(default_factory=Pipes)
    kept: Kept = field(default_factory=Kept)
    dumps: Dumps = field(default_factory=Dumps)
    told_to_stop: bool = False  # by a signal
    drain_at: float = float("inf")  # the delay before a graceful stop is over then
    stop_deadline: float = float("inf")
    final: int | None = None
    failure: str = ""
    started: bool = False  # a master was
    served: bool = False  # all workers were ready
    watch: MasterWatch = field(default_factory=MasterWatch)
    has_terminal: bool = field(default_factory=has_terminal)

    def run(self) -> int:
        """Serve until a master has ended for good, then end everything else."""
        process.become_subreaper()
        self.signals.unblock()
        if self.handle is not None:
            self.handle.send(self.site.boot())
        for number in self.signals.take():  # kept pending while we prepared
            self._on_signal(number, time.monotonic())
        try:
            while self.final is None:
                self._turn(time.monotonic())
        finally:
            self._end_the_rest()
            self.signals.ignore()
        if self.failure and (kind := kind_of(self.final)) is not None:
            raise kind(self.failure)
        return self.final

    # ---- one turn --------------------------------------------------------------------------------------------------
    def _turn(self, now: float) -> None:
        if self.kept.stop is not None and not self.started:
            self.final = 0  # stopped before anything was started
            return
        if self.master is None and now >= self.watch.due:
            self._start_master(now)
        self._wait(now)
        now = time.monotonic()
        for number in self.signals.take():
            self._on_signal(number, now)
        for death in process.reap():
            self._on_death(death, now)
        if self.master is not None:
            self._hear_master(now)
        self.strays.sweep(now)
        for dump in self.dumps.collect(now):
            log.warning("stacks of %s:\n%s", dump.target.label, dump.text)
        self._check_master(now)
        self._notify(now)
        if now >= self.drain_at:
            self._stop(m.Stop(quick=False, why="--drain-delay is over"), now)
        if now >= self.stop_deadline:
            log.error("the stop has taken too long; killing what is left")
            self.final = 70

    def _wait(self, now: float) -> None:
        poller = select.poll()
        poller.register(self.signals.fileno(), select.POLLIN)
        if self.owner_fd >= 0:
            poller.register(self.owner_fd, select.POLLIN)
        if self.master is not None and not self.master.channel.closed:
            channel = self.master.channel
            poller.register(channel.fileno(), select.POLLIN | (select.POLLOUT if channel.backlog else 0))
        due = min(self.watch.checked + CHECK_S, self.drain_at, self.stop_deadline, self.notify.due)
        if self.master is None:
            due = min(due, self.watch.due)
        if self.dumps:
            due = min(due, now + LOOK_AGAIN_S)
        ready = dict(poller.poll(max(0.0, due - now) * 1000 + 1))
        if self.master is not None:
            self.master.channel.flush()
        if self.owner_fd in ready:
            os.close(self.owner_fd)
            self.owner_fd = -1
            self._ask_to_stop(m.Stop(quick=False, why="the process that started it has ended"), time.monotonic())

    # ---- what arrives ----------------------------------------------------------------------------------------------
    def _on_signal(self, number: int, now: float) -> None:
        if number == signal.SIGCHLD:
            return  # reap() runs every turn
        hung_up = number == signal.SIGHUP and self.has_terminal and number not in self.signals.ignored
        if number == signal.SIGTERM or hung_up:
            self._ask_to_stop(m.Stop(quick=self.told_to_stop, why=name_of(number)), now)
            self.told_to_stop = True
        elif number == signal.SIGUSR1:
            self.site.reopen_logs()
        elif number in (signal.SIGINT, signal.SIGQUIT):
            self._ask_to_stop(m.Stop(quick=True, why=name_of(number)), now)
        elif number == signal.SIGUSR2:  # by ourselves: it works while the master is hung, or dead
            log.info("SIGUSR2: the stacks of every worker and zygote are asked for")
            self.dumps.begin(targets(self.site.path, self.site.ledger.ledger, self.site.locks), now)
        else:
            text, wish = self.kept.wish(name_of(number), can_reload=self.zygote_main is None)
            log.log(logging.INFO if wish else logging.WARNING, "%s: %s", name_of(number), text)
            if wish:
                self._tell(wish)

    def _ask_to_stop(self, wish: m.Stop, now: float) -> None:
        """A first wish drains; a second *signal* hurries: an orchestrator's TERM after `zcluster stop` does not."""
        if self.kept.stop is not None and (self.kept.stop.quick or not wish.quick):
            return
        delay_s = self.site.config.drain_delay_s
        if wish.quick or not self.served or not delay_s:
            self._stop(wish, now)
            return
        log.info("stopping in %g s (--drain-delay), serving until then: %s", delay_s, wish.why)
        self.kept.stop, self.drain_at = m.Stop(quick=False, why=wish.why, delayed=True), now + delay_s
        self.stop_deadline = self.drain_at + self.site.config.graceful_timeout_s + OVERRUN_S
        self._tell(self.kept.stop)

    def _stop(self, wish: m.Stop, now: float) -> None:
        log.info("stopping%s: %s", " quickly" if wish.quick else "", wish.why)
        self.kept.stop, self.drain_at = wish, float("inf")
        config = self.site.config
        self.stop_deadline = now + (config.quick_timeout_s if wish.quick else config.graceful_timeout_s) + OVERRUN_S
        self._tell(wish)
        self._admit_nobody()

    def _admit_nobody(self) -> None:
        """A stop has begun: let go of what only new workers need, so that the port closes when the last one leaves.

        Were it open here, clients would wait for the slowest request in flight and then be reset. A zygote has
        nothing to lose: it runs no exit functions, and its import may take longer than anybody wants to wait.
        """
        self.site.close_listeners()
        for zygote in self.brood.zygotes.values():
            process.send_signal(zygote.pid, zygote.start, signal.SIGKILL)

    def _on_death(self, death: Death, now: float) -> None:
        if self.master is not None and death.pid == self.master.pid:
            self._on_master_death(death, now)
            return
        self.brood.forget(death.pid)
        self._tell(self.kept.died(death.pid, death.start, death.code, death.signal))
        self.strays.reaped(death.pid, death.start)
        self.strays.left_by(death, now)

    def _tell(self, message: m.Control, fds: Sequence[int] = ()) -> None:
        """Send to the master, if there is one; a master that has stopped reading for that long is hung."""
        if self.master is None:
            return
        try:
            self.master.channel.send(message, fds)
        except BusError as error:
            self._kill_master(self.master, f": {error}")

    def _kill_master(self, master: Child, why: str) -> None:
        log.error("Master %d%s; killing it", master.pid, why)
        process.send_signal(master.pid, master.start, signal.SIGKILL)

    def _on_master_death(self, death: Death, now: float) -> None:
        assert self.master is not None
        self._hear_master(now)  # its last words
        self.master.channel.close()
        since, self.master = self.master.since, None
        if death.code in FINAL_CODES:
            self.final = death.code
            return
        pause_s = self.watch.died(since, now, stopping=self.kept.is_stopping)
        how = f"exit code {death.code}" if death.signal is None else name_of(death.signal)
        log.error("Master %d died. %s; workers go on serving, a new master starts in %.1f s", death.pid, how, pause_s)

    def _hear_master(self, now: float) -> None:
        assert self.master is not None
        try:
            for message, fds in self.master.channel.receive():
                self._on_message(message, fds, now)
        except BusError as error:  # it is beside itself; the next one will not be
            self._kill_master(self.master, f": {error}")

    def _on_message(self, message: m.Control, fds: list[int], now: float) -> None:
        for fd in fds:  # a master sends none
            os.close(fd)
        match message:
            case m.Received() | m.Size() | m.Reload():
                self.kept.take(message)
            case m.Commit(generation=generation):
                self.kept.take(message)
                workers, self.site.config = self.site.config.workers, self.configurations.commit(generation)
                self._tell(m.Settings(generation, self.site.boot().config))
                if workers != self.site.config.workers:
                    self._tell(self.kept.scale_to(self.site.config.workers))
            case m.EndZygote(generation=generation):
                self.brood.let_go(generation, now + LEAVE_S)
            case m.StartZygote(generation=generation):
                if not self.kept.is_stopping:
                    self._start_zygote(generation, now)
            case m.Capture(worker=worker):
                self.pipes.make(self.site.path, worker)
            case m.StartService(kind=kind):
                self._start_service(kind, now)
            case m.Stop():
                self._ask_to_stop(message, now)
            case m.Running(standing=text) if text:
                self.standing = text
            case m.Running(workers=workers):
                if self.announce and not self.served and self.master is not None:  # every master says it
                    say(f"zcluster: ready on {self.site.urls[0]} ({workers} workers, master {self.master.pid})")
                self.served = True
            case m.Failed(text=text):
                self.failure = text
            case _:
                log.error("the master sent %s, which is not for a launcher", type(message).__name__)

    # ---- starting --------------------------------------------------------------------------------------------------
    def _start_master(self, now: float) -> None:
        try:
            kind = "" if self.zygote_main is None else m.IN_MEMORY
            self.master = exec_child("master", self.site.rundir.name, self.site.boot(kind=kind), (), now)
        except SpawnError as error:
            log.error("%s; trying again in %.1f s", error, self.watch.failed(now))
            return
        self.started = True
        self.watch.begun()
        for generation, zygote in self.brood.zygotes.items():
            self._tell_zygote(generation, zygote)
        for kind, service in self.brood.services.items():
            self._tell(m.ServiceUp(kind, service.pid, service.start))
        for told in self.kept.told():
            self._tell(told)
        self._tell(m.Proceed())

    def _tell_zygote(self, generation: int, zygote: Child) -> None:
        self._tell(m.ZygoteUp(generation, zygote.pid, zygote.start), [zygote.channel.fileno()])

    def _start_zygote(self, generation: int, now: float) -> None:
        if zygote := self.brood.zygotes.get(generation):  # asked for by a master that died before it was told
            return self._tell_zygote(generation, zygote)
        try:
            boot = self.site.boot(generation, config=self.configurations.of(generation))
            self._tell(m.Settings(generation, boot.config))
            if self.zygote_main is None:
                zygote = exec_child("zygote", self.site.rundir.name, boot, boot.listener_fds, now)
            else:
                zygote = fork_child(self.zygote_main, boot, boot.listener_fds, now)
        except (SpawnError, ConfigError) as error:
            return self._tell(m.Failed(error.exit_code, f"zygote {generation}: {error}", generation))
        self.brood.zygotes[generation] = zygote
        self._tell_zygote(generation, zygote)

    def _start_service(self, kind: str, now: float) -> None:
        if kind not in self.brood.services:
            try:
                boot = self.site.boot(kind=kind)
                role = kind if kind in ("watcher", "hooks") else "service"
                self.brood.services[kind] = exec_child(role, self.site.rundir.name, boot, (), now)
            except SpawnError as error:
                log.error("%s", error)
                return
        service = self.brood.services[kind]
        self._tell(m.ServiceUp(kind, service.pid, service.start))

    # ---- watching and ending ---------------------------------------------------------------------------------------
    def _check_master(self, now: float) -> None:
        """Kill a master whose tick stands still. Time in which we did not run ourselves does not count against it."""
        if not self.watch.is_due(now):
            return
        self.brood.hurry(now)
        self.pipes.look()
        stale_s = self.watch.look(None if self.master is None else self.site.ledger.ledger.master_tick_ns, now)
        if self.master is not None and stale_s > self.site.config.master_timeout_s:
            self._kill_master(self.master, f" has not run for {stale_s:.0f} s")
            self.watch.begun()

    def _notify(self, now: float) -> None:
        """Tell the service manager how things stand; see `unix.notify` on what it is to restart us for."""
        is_repaired = self.master is None and self.kept.stop is None and self.final is None
        status = "no master; workers serve, another one is started" if is_repaired else self.standing
        stop_s = None if self.kept.stop is None else self.stop_deadline - now + LEAVE_S
        state = "" if not self.served else "reloading" if self.kept.is_reloading else "ready"
        self.notify.update(now, state, status, stop_s, well=self.watch.is_well(self.site.config.master_timeout_s))

    def _end_the_rest(self) -> None:
        """Zygotes and services leave, then whatever is still there is killed; sockets and files go last."""
        deadline = time.monotonic() + LEAVE_S
        orderly = self.final in FINAL_CODES
        for zygote in self.brood.zygotes.values():
            zygote.channel.close()  # end of file on its control socket: the master's copy is closed as well
        for service in self.brood.services.values():
            service.channel.send(m.Stop(quick=not orderly))
        kept = False
        while orderly and (self.brood.zygotes or self.brood.services or self.strays) and time.monotonic() < deadline:
            self.signals.wait(0.1)
            for death in process.reap():
                kept |= death.code != 0 and self.brood.is_writer(death.pid)
                self._on_death(death, time.monotonic())
            self.strays.sweep(time.monotonic())
        kept |= "checkpoint" in self.brood.services
        if not process.kill_children(LEAVE_S):
            log.error("some processes cannot be killed (in uninterruptible sleep?)")
        self.site.close(keep_ledger=kept)
        self.notify.close()
