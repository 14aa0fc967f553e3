"""A worker: the main thread is the bus and the signals, the engine's thread runs the app.

Theory of operation. Born by the zygote, it locks its lane, puts on the leash, imports the app if the zygote did not,
joins the bus and only then accepts. It leaves when it is drained: by the master (Drain), by its own SIGTERM (which it
announces, so it counts as voluntary), by the app (SystemExit), or because the launcher is gone. The death of a master
changes nothing here but the link.

Invariant: no store into a ledger cell before the lane's lock is held; no accept before the bus is joined.
"""

import faulthandler
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from zcluster import current
from zcluster.bus.link import Link
from zcluster.bus.mailbox import Mailbox
from zcluster.bus.teller import Teller
from zcluster.core import messages as m
from zcluster.core.fleet_events import BOOT_FAILED_CODE, LANE_TAKEN_CODE
from zcluster.core.joining import Joined
from zcluster.core.mail import MEMBERS, TOPICS, Mail, worker_name
from zcluster.errors import ClusterError
from zcluster.http import AccessLog, Beats, Engine, Limits, Overdue, Probe, behind_proxies
from zcluster.http.engine import TICK_S
from zcluster.unix import capture, leash, logs, process, strays
from zcluster.unix.birth import Birth
from zcluster.unix.crowd import Crowd
from zcluster.unix.failure import load_or_show
from zcluster.unix.forksafety import is_connected_below
from zcluster.unix.hooked import Hooked
from zcluster.unix.ledgerfile import LedgerFile, open_ledger
from zcluster.unix.notes import dump_into
from zcluster.unix.signals import HEARD, Signals
from zcluster.unix.state import poke

log = logging.getLogger("zcluster.worker")

PAGE_BYTES = resource.getpagesize()
LAST_WORDS_S = 0.1  # before the drain's deadline: closing, and the interpreter's exit, take some 20 ms
FRESH_TICKS = 3  # a worker that has missed so many ticks is not waited for when a connection is to be shared
# How long a thread of the app that computes keeps the GIL from the others, the loop among them, which pays it at
# each system call. Measured on a busy machine, 2 workers, 4 clients of an endpoint that computes 30 ms beside 32 of a
# fast one: 6,200 fast and 54 computing requests a second with the interpreter's 5 ms, 14,700 and 43 with 0.5 ms,
# 19,100 and 40 with 0.1 ms. Nothing where nobody waits for the GIL.
SWITCH_INTERVAL_S = 0.0005


def main(birth: Birth) -> int:
    """Live a worker's life; returns the exit code. Called right after the fork, in the only thread."""
    info = birth.worker
    os.setpgid(0, 0)
    os.environ.update(
        {strays.MARK: str(info.pid), "ZCLUSTER_WORKER_ID": str(info.id), "ZCLUSTER_WORKER_SLOT": str(info.slot)}
    )
    process.set_title(f"zc-worker-{info.slot}")
    run_dir = Path(birth.boot.run_dir)
    who = f"worker[{info.slot}] gen={info.generation} id={info.id}"
    captured = not birth.config.capture_output or capture.begin(run_dir, info.id, who)
    current.fds += logs.begin(who, birth.config, run_dir).fds
    if not captured:
        log.error("the launcher has made no pipe for the output of this worker; it is not captured")
    signals = Signals(HEARD)
    current.fds += [dump_into(run_dir / f"stacks-{info.id}"), leash.wear(run_dir / "leash")]
    signals.unblock(process.LET_IN)
    if process.has_ended(birth.launcher_fd):  # launcher and master may have died before the leash was on
        return 0
    if not birth.locks.try_lock(info.lane):
        return LANE_TAKEN_CODE
    signals.reset_in_forks()
    ledger = _bind_ledger(birth, run_dir)
    mailbox = current.mailbox = Mailbox(worker_name(info.id), current.subscriptions, _nobody)
    try:
        hooked = Hooked(birth.config.hooks)
        hooked.must_run("post_fork", info)
        app = load_or_show(birth.config) if birth.app is None else birth.app
        signals.rearm()
        if current.counting is not None:
            current.counting.bind_all()
        hooked.must_run("post_worker_init", info)
    except ClusterError as error:  # the app, or more counters than the ledger has room for
        mailbox.close("this worker could not start", 0.0)
        (run_dir / f"boot-{info.id}").write_text(str(error), encoding="utf-8", errors="replace")
        return BOOT_FAILED_CODE
    code = Worker(birth, app, ledger, signals, mailbox).run()
    hooked.run("worker_exit", info)
    return code


def _nobody() -> None:
    """Wakes nobody: what is sent while the app is imported waits in the mailbox for the link."""


def _bind_ledger(birth: Birth, run_dir: Path) -> LedgerFile:
    """Map the ledger, take over the lane, and let the app's counters count into it."""
    info = birth.worker
    file = open_ledger(run_dir / "ledger")
    file.keep_for_life()
    with birth.locks.names():
        file.ledger.use_lane(info.lane)
    file.ledger.lane(info.lane).claim(info, time.monotonic_ns())
    current.ledger, current.locks, current.lane, current.worker = file.ledger, birth.locks, info.lane, info
    current.fds.extend([*file.fds, birth.locks.fd, birth.launcher_fd])
    current.role = "worker"
    current.guard_forks()
    return file


class Worker:
    """The main thread."""

    def __init__(self, birth: Birth, app: Any, ledger: LedgerFile, signals: Signals, mailbox: Mailbox) -> None:
        config = birth.config
        self.mailbox = mailbox
        self.birth, self.config, self.info, self.signals = birth, config, birth.worker, signals
        self.lane = ledger.ledger.lane(birth.worker.lane)
        self.reconnect_seen = self.lane.reconnect
        self.ledger, self.log_openings_seen = ledger.ledger, ledger.ledger.log_openings
        self.listeners = [socket.socket(fileno=fd) for fd in birth.boot.listener_fds]
        self.crowd = Crowd(ledger.ledger, self.info.lane, fresh_s=FRESH_TICKS * max(TICK_S, config.ledger_tick_s))
        self.access = AccessLog(config.access_logfile, config.access_logformat) if config.access_logfile else None
        app = behind_proxies(app, config.forwarded_allow_ips)
        limits = Limits.of(config, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        self.engine = Engine(
            app,
            self.listeners,
            limits=limits,
            tick=self._loop_tick,
            on_exit=self._app_exits,
            threads=config.threads,
            crowd=self.crowd,
            access=self.access,
            tls=birth.tls,
        )
        self.overdue = Overdue(
            self.engine,
            config.threads,
            limit_s=config.timeout_s,
            grace_s=config.timeout_grace_s,
            period_s=config.ledger_tick_s,
            log=log,
        )
        self.health = self._health_check(app, limits) if config.health_path else None
        self.main_thread = threading.get_ident()
        self.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.beats = Beats(self.engine, self.overdue)
        current.fds.append(self.beats.fd)
        # No daemon: threads that the app starts in a request inherit that, and would be cut off at the exit.
        self.thread = threading.Thread(target=self._serve, name="zcluster-http")
        self.serving = self.draining = self.finished = False
        self.code = 0
        self.leaving: m.Leaving | None = None
        self.leave_by = float("inf")  # then the master kills us
        self.launcher_gone = False
        self.teller = Teller(self.info.id, self.info.lane, self._wake)
        self.tick_due = self.beat_due = 0.0
        topics = (m.TOTALS, MEMBERS, TOPICS) if current.subscriptions.has_topics() else (m.TOTALS, MEMBERS)
        self.link = Link(birth.boot.run_dir, self._hello, topics=topics, heartbeat_s=config.heartbeat_s)
        for fd in (signals.fileno(), self.wake_fd, birth.launcher_fd):
            self.link.register(fd)

    def run(self) -> int:
        """Until the engine has drained."""
        current.wake, current.poke, current.leave = self.teller.change, self._poke, self._leave_for
        self.mailbox.attach(self._wake_for_mail, self._app_exits)
        current.at_unbind.append(self._forget_in_child)
        self.lane.state = "online"
        try:
            while not self.finished:
                self._turn(time.monotonic())
            self._finish_mail()
        except BaseException:  # the engine must not go on, and hold up the exit, in a worker that nobody leads
            self.engine.drain(quick=True)
            self.mailbox.close("this worker has failed", 0.0)
            if self.access is not None:
                self.access.close()
            raise
        self._leave()
        self.signals.ignore()
        if self.thread.is_alive():  # in a request that was given up
            process.leave_at_once(self.code)
        return self.code

    def _turn(self, now: float) -> None:
        due = min(self.tick_due, self.beat_due, self.teller.due, self.mailbox.due)
        delivered, ready = self.link.poll(max(0.0, due - now))
        if ready:
            self._ready_fds(ready)
        now = time.monotonic()
        for item in delivered:
            self.mailbox.take(item, now)
            if type(item) is not Mail:
                self._on_delivered(item)
        self.mailbox.pump(self.link, now)
        self._periodic(now)

    # ---- from other threads ----------------------------------------------------------------------------------------
    def _loop_tick(self) -> None:
        self.lane.loop_tick_ns = time.monotonic_ns()

    def _app_exits(self, code: int) -> None:
        self.code = code
        self._leave_for(f"the app raised SystemExit({code})")

    def _leave_for(self, reason: str) -> None:
        self.leaving = m.Leaving(reason)
        self._wake()

    def _serve(self) -> None:
        try:
            self.engine.run()
        except BaseException:  # a bug of the engine: the worker must not live on without it
            log.exception("the HTTP engine failed; this worker ends and is replaced")
            self.code = os.EX_SOFTWARE
        self.finished = True
        self._wake()

    def _wake(self) -> None:
        os.eventfd_write(self.wake_fd, 1)

    def _wake_for_mail(self) -> None:
        if threading.get_ident() != self.main_thread:  # we look anyway
            os.eventfd_write(self.wake_fd, 1)

    def _poke(self) -> None:
        poke(Path(self.birth.boot.run_dir) / "checkpoint")

    def _forget_in_child(self) -> None:
        """In a child the app forked: give up the sockets that are ours, so that clients and peers see us go."""
        self.engine.close_in_child()
        if self.health is not None:
            self.health.close_in_child()
        self.crowd.detach()
        if self.access is not None:
            self.access.close_in_child()
        for entry in os.listdir("/proc/self/fd"):
            if is_connected_below(int(entry), self.birth.boot.run_dir):
                os.close(int(entry))
        os.close(self.wake_fd)
        faulthandler.unregister(process.DUMP_SIGNAL)

    # ---- the bus ---------------------------------------------------------------------------------------------------
    def _hello(self, link: bytes) -> m.Hello:
        return m.Hello(link, "worker", self.info.pid, self.info, self.mailbox.name)

    def _ready_fds(self, ready: list[int]) -> None:
        if self.wake_fd in ready:
            os.eventfd_read(self.wake_fd)
            if self.leaving is not None:
                self._start_leaving(self.leaving)
            elif not self.serving and self.link.joined:  # the health check has ended
                self._on_joined()
        if self.signals.fileno() in ready and signal.SIGTERM in self.signals.take():
            self._start_leaving(m.Leaving("SIGTERM"))
        if self.birth.launcher_fd in ready and not self.launcher_gone:
            self.launcher_gone = True
            capture.end()
            self.link.unregister(self.birth.launcher_fd)
            self.engine.close_listeners()  # at once: the next launcher wants the port
            self._drain(quick=True)

    def _on_delivered(self, item: object) -> None:
        match item:
            case Joined():
                self._on_joined()
            case m.Drain(deadline_s=deadline_s, quick=quick):
                self._drain(quick=quick, limit_s=deadline_s)
            case m.Refused(reason=reason):
                log.warning("the master has no place for this worker: %s; leaving", reason)
                self._drain(quick=False)
            case m.Totals(totals=totals):
                if current.counting is not None:
                    current.counting.dispatch(totals)

    def _health_check(self, app: Any, limits: Limits) -> Probe:
        tls, threads = bool(self.config.certfile), self.config.threads
        return Probe(app, self.config.health_path, self._wake, self._app_exits, limits, threads=threads, tls=tls)

    def _is_healthy(self) -> bool:
        """May this worker serve? The check begins when the bus is joined: the app may ask other workers in it."""
        health, note = self.health, Path(self.birth.boot.run_dir) / f"boot-{self.info.id}"
        if health is None:
            return True
        if not health.begun:
            note.write_text(health.pending, encoding="utf-8")  # for the master, should it lose its patience
            health.start()
        elif health.failure:
            note.write_text(health.failure, encoding="utf-8", errors="replace")
            self.code = BOOT_FAILED_CODE
            self._drain(quick=True)
        elif health.ended:
            note.unlink(missing_ok=True)
            return True
        return False

    def _on_joined(self) -> None:
        if not self.serving and not self.finished and self._is_healthy():
            self.serving = True
            self.lane.state = "ready"
            sys.setswitchinterval(SWITCH_INTERVAL_S)
            if self.access is not None:
                self.access.start()
            self._loop_tick()  # from now on its age is judged, and the import may have taken longer than a hang may
            self.thread.start()
        if self.leaving is not None:
            self.link.send(self.leaving)
        elif self.serving and not self.draining:
            self.link.send(m.Ready())
        self.teller.dirty = True

    def _start_leaving(self, leaving: m.Leaving) -> None:
        self.leaving = leaving
        self.link.send(leaving)
        self._drain(quick=False)

    def _drain(self, *, quick: bool, limit_s: float | None = None) -> None:
        if limit_s is None:
            limit_s = self.config.quick_timeout_s if quick else self.config.graceful_timeout_s
        self.leave_by = min(self.leave_by, time.monotonic() + limit_s)
        if self.finished:
            return
        self.draining = True
        self.lane.state = "draining"
        if self.serving:
            self.engine.drain(quick=quick)
        else:
            self.finished = True

    def _periodic(self, now: float) -> None:
        stats = self.engine.stats
        if now >= self.tick_due:
            self.tick_due = now + self.config.ledger_tick_s
            self.lane.bus_tick_ns = time.monotonic_ns()
            if stats.requests != self.lane.requests:  # the loop's own tick comes once per round, which may be long
                self._loop_tick()
            self.lane.inflight, self.lane.connections, self.lane.requests = (
                stats.inflight,
                stats.connections,
                stats.requests,
            )
            self.overdue.look(now)
            if self.draining and not self.finished and self.overdue.is_all_that_is_left():
                self.overdue.cut()
                self.finished = True
            if self.lane.reconnect != self.reconnect_seen:
                self.reconnect_seen = self.lane.reconnect
                self.link.reopen()
            if self.ledger.log_openings != self.log_openings_seen:
                self.log_openings_seen = self.ledger.log_openings
                if self.access is not None:
                    self.access.reopen()
        if now >= self.beat_due:
            self.beat_due = now + self.config.heartbeat_s
            if self.link.joined:
                self.link.send(self.beats.take(now, serving=self.serving, state=self.lane.state))
        if now >= self.teller.due:
            self.teller.flush(self.link, now)

    def _finish_mail(self) -> None:
        """What was received is handled, the app's last functions run, and what was sent is received.

        As long as the drain's deadline allows, and somebody is there to carry it.
        """
        self.mailbox.finish()
        for last in (False, True):
            if last:
                self.mailbox.run("disconnect")
            while not self.mailbox.is_idle() and not self.launcher_gone:
                now = time.monotonic()
                if now >= self.leave_by - LAST_WORDS_S:
                    log.warning("leaving although functions for messages still run, or messages were not received")
                    return
                self._turn(now)

    def _leave(self) -> None:
        """The last words, then the sockets; the interpreter's exit does the rest."""
        if self.serving and not self.overdue.given_up:
            self.thread.join()
        if self.access is not None:
            self.access.close()
        self.teller.flush(self.link, time.monotonic())
        current.mailbox = None
        self.mailbox.close("this worker has left the cluster", 0.0)
        self.link.close()
        self.lane.state = "dead"
        for listener in self.listeners:
            listener.detach()  # shared with the others; the process's end closes our descriptor
