"""The zygote: imports the app once and forks workers from it.

Theory of operation. One thread, no ZeroMQ context, no HTTP. It is told what to fork by the master of the day through
one control socket that outlives masters: the launcher keeps the other end and hands it on. A worker is forked twice,
so that it becomes the launcher's child. When both launcher and master have closed their end, it leaves.

Preload is safe or off: when the import leaves threads or connections behind, the zygote replaces itself (execve(2),
same pid, same control socket) by one without the app, and each worker imports the app for itself.

Invariant: every Fork is answered by Forked or ForkFailed, in order; so after Sync nothing asked before is open.
"""

import faulthandler
import gc
import logging
import os
import select
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from zcluster import current
from zcluster.config import Config
from zcluster.core import messages as m
from zcluster.core.births import Births
from zcluster.core.codec import decode_control, encode_control
from zcluster.errors import AppError, ConfigError, SpawnError
from zcluster.unix import failure, leash, logs, process, surroundings
from zcluster.unix.birth import Birth
from zcluster.unix.channel import Channel, boot_of
from zcluster.unix.forksafety import hazards
from zcluster.unix.hooked import find_hooks
from zcluster.unix.locks import LockFile, zygote_byte
from zcluster.unix.notes import dump_into
from zcluster.unix.signals import HEARD, Signals

if TYPE_CHECKING:
    from ssl import SSLContext

log = logging.getLogger("zcluster.zygote")

App = Callable[..., Any]


def main(control_fd: int, worker_main: Callable[[Birth], int], resumed: str = "", app: App | None = None) -> int:
    """Run a zygote until its masters are gone. Returns a worker's exit code in each worker; never in the zygote.

    `resumed`: descriptor of the Boot left by an image that found preloading unsafe. `app` is given when it lives only
    in this process's memory: there is nothing to import.
    """
    signals = Signals(HEARD)
    channel = Channel.of_fd(control_fd)
    boot = boot_of(_left_boot(int(resumed)) if resumed else channel.first_message(), "zygote")
    for fd in boot.listener_fds:
        os.set_inheritable(fd, False)  # nothing that the app executes holds our ports
    launcher_fd = os.pidfd_open(boot.launcher_pid)
    config = msgspec.msgpack.decode(boot.config, type=Config)
    run_dir = Path(boot.run_dir)
    logs.begin(f"zygote gen={boot.generation}", config, run_dir)
    process.set_title("zc-zygote")
    surroundings.have_temporary_files(run_dir)
    stacks_fd = dump_into(run_dir / f"stacks-zygote-{boot.generation}")
    leash_fd = leash.wear(run_dir / "leash")
    locks = LockFile(run_dir / "locks")
    locks.try_lock(zygote_byte(boot.generation))
    signals.unblock(process.LET_IN)
    current.role = "zygote"
    zygote = Zygote(boot, config, channel, signals, locks, launcher_fd, app, app is not None)
    if zygote.import_app():
        born = zygote.loop()
        if born is not None:
            signals.close()
            channel.close()
            faulthandler.unregister(process.DUMP_SIGNAL)
            os.close(stacks_fd)
            os.close(leash_fd)
            return worker_main(Birth(boot, config, born, zygote.app, locks, launcher_fd, zygote.tls))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # not an orderly interpreter exit: the app's atexit functions are the workers' to run


@dataclass
class Zygote:
    """The state of one zygote."""

    boot: m.Boot
    config: Config
    channel: Channel
    signals: Signals
    locks: LockFile
    launcher_fd: int
    app: App | None
    in_memory: bool  # the app is this process's own: there is nothing to import, and nobody to be executed instead
    imported: bool = False
    tls: "SSLContext | None" = None  # made before the first fork: a session resumes with any of its workers
    births: Births = field(default_factory=Births)
    grown: list[str] = field(default_factory=list)  # what makes forking from here unsafe by now

    def import_app(self) -> bool:
        """Import the app as configured and tell the master; False when there is no app to fork from."""
        generation = self.boot.generation
        unsafe = tuple(self.boot.kind.split("\n")) if self.boot.kind else ()
        try:
            self._read_certificate()
        except ConfigError as error:  # it was good when the launcher looked; an older generation goes on with that
            self.channel.send(m.ImportFailed(generation, str(error)))
            return False
        if self.config.preload != "off" and not unsafe and not self.in_memory:
            try:
                if self.config.hooks:
                    find_hooks(self.config.hooks)
                self.app = failure.load_or_show(self.config)
            except AppError as error:
                self.channel.send(m.ImportFailed(generation, str(error)))
                return False
            found = hazards(self._known_fds())
            if found and self.config.preload == "auto":
                self._start_again_empty(found)
            elif found:
                log.warning("--preload is forced although the app left %s; every worker shares it", ", ".join(found))
        gc.collect()
        gc.freeze()  # what stands now is shared by all workers: keep the collector from writing into those pages
        self.imported = True
        self.channel.send(m.Imported(generation, self.app is not None, unsafe))
        return True

    def _read_certificate(self) -> None:
        if self.config.certfile:
            from zcluster.unix import certificate  # the ssl module is only for who speaks TLS

            self.tls = certificate.load(self.config.certfile, self.config.keyfile)

    def _known_fds(self) -> frozenset[int]:
        return frozenset({self.channel.fileno(), *self.boot.listener_fds})

    def _start_again_empty(self, found: list[str]) -> None:
        """Become a zygote that has not imported the app; what the app had opened is closed by execve."""
        memory = os.memfd_create("boot", 0)
        told = msgspec.structs.replace(self.boot, kind="\n".join(found)[:2000])
        os.write(memory, encode_control(told))
        for fd in (memory, self.channel.fileno(), *self.boot.listener_fds):
            os.set_inheritable(fd, True)
        signal.pthread_sigmask(signal.SIG_BLOCK, process.BLOCKED)
        os.execv(sys.executable, [*_own_argv(), f"resume={memory}"])

    def loop(self) -> m.WorkerInfo | None:
        """Serve masters until they are gone. Returns in each forked worker with its identity, else None."""
        poller = select.poll()
        for source in (self.channel.fileno(), self.signals.fileno(), self.launcher_fd):
            poller.register(source, select.POLLIN)
        while not self.channel.closed:
            ready = dict(poller.poll(1000 if self.channel.backlog else None))
            self.signals.take()
            if self.launcher_fd in ready:
                return None
            self.channel.flush()
            for message, _fds in self.channel.receive():
                match message:
                    case m.Fork(worker=worker, env=env):
                        if self._fork(worker, env):
                            return self.births.newest
                    case m.Sync(epoch=epoch):
                        self.channel.send(m.Synced(epoch, self.imported, self.births.living(_is_alive)))
                    case _:
                        log.error("a zygote was sent %s", type(message).__name__)
            if self.grown:  # every Fork of this turn has been answered
                log.warning("the zygote has grown %s since the import; it starts again without the app", self.grown)
                self._start_again_empty(self.grown)
        return None

    def _fork(self, worker: m.WorkerInfo, env: dict[str, str]) -> bool:
        """Fork one worker, with `env` in its environment besides; True in the worker."""
        threads = process.thread_count()
        if threads > 1 and self.in_memory and not self.births:
            log.warning("the app's process has %d threads in the zygote; they are not in the workers", threads)
        if threads > 1 and self.config.preload == "auto" and self.app is not None and not self.in_memory:
            self.grown = hazards(self._known_fds()) or ["a thread"]
            self.channel.send(
                m.ForkFailed(worker.id, f"the zygote has grown {', '.join(self.grown)} since the import")
            )
            return False
        signal.pthread_sigmask(signal.SIG_BLOCK, process.BLOCKED)
        try:
            birth = process.fork_orphan()
        except SpawnError as error:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, process.LET_IN)
            self.channel.send(m.ForkFailed(worker.id, str(error)))
            return False
        if birth is None:
            born = msgspec.structs.replace(worker, pid=os.getpid(), start=process.start_time(os.getpid()))
            self.births.add(born, _is_alive)
            # As bytes: whatever the locale of this process can or cannot encode, a worker does not die of a name.
            os.environb.update({name.encode(): value.encode() for name, value in env.items()})
            return True
        signal.pthread_sigmask(signal.SIG_UNBLOCK, process.LET_IN)
        born = msgspec.structs.replace(worker, pid=birth[0], start=birth[1])
        self.births.add(born, _is_alive)
        self.channel.send(m.Forked(born))
        return False


def _is_alive(worker: m.WorkerInfo) -> bool:
    return process.is_alive(worker.pid, worker.start)


def _left_boot(fd: int) -> m.Control:
    """What the image before this one has left; its descriptor would be inherited by all that the app executes."""
    with os.fdopen(fd, "rb") as memory:
        memory.seek(0)
        return decode_control(memory.read())


def _own_argv() -> list[str]:
    """How this interpreter was started, without the word of an earlier restart."""
    return [word for word in sys.orig_argv if not word.startswith("resume=")]
