"""The watcher (--reload): sees that code has changed, and asks the master for a reload.

Theory of operation. A service process of its own, so that nothing it does can hold up anybody. One thread waits for
the notices of the kernel (watchfiles), gathers them until a burst is over, and tells the main thread; that is a peer
on the bus like the command line, and asks as that does. A question that a dying master did not answer is asked again
by the link's outbox under the same token, so it is one reload.

Invariant: a change that was seen is followed by a reload that began later, as long as there is a master.
"""

import logging
import os
import sys
import threading
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

import msgspec

from zcluster.bus.link import Link
from zcluster.config import Config
from zcluster.core import messages as m
from zcluster.unix import leash, logs, process
from zcluster.unix.channel import Channel, boot_of
from zcluster.unix.signals import HEARD, Signals

log = logging.getLogger("zcluster.reload")

TURN_S = 60.0  # the longest wait: everything that matters wakes us
LOOK_MS = 500  # between two looks whether we are to stop
SHOWN_MAX = 3  # files named in the log


def main(control_fd: int) -> int:
    """Watch until the launcher closes our control socket; returns the exit code."""
    signals = Signals(HEARD)
    channel = Channel.of_fd(control_fd)
    boot = boot_of(channel.first_message(), "watcher")
    config = msgspec.msgpack.decode(boot.config, type=Config)
    logs.begin("watcher", config, Path(boot.run_dir))
    log.warning("--reload is for development: it watches files, and shows tracebacks to every client")
    process.set_title("zc-watcher")
    leash_fd = leash.wear(Path(boot.run_dir) / "leash")
    launcher_fd = os.pidfd_open(boot.launcher_pid)
    signals.unblock()
    watcher = Watcher(boot, config, channel, launcher_fd)
    watcher.run()
    signals.ignore()
    os.close(leash_fd)
    return 0


class Watcher:
    """The main thread."""

    def __init__(self, boot: m.Boot, config: Config, channel: Channel, launcher_fd: int) -> None:
        self._config, self._channel, self._launcher_fd = config, channel, launcher_fd
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stop = threading.Event()
        self._changed: set[str] = set()
        self._lock = threading.Lock()  # guards that
        self._number = 0
        self._link = Link(boot.run_dir, self._hello, topics=(), heartbeat_s=config.heartbeat_s)
        for fd in (self._wake_fd, channel.fileno(), launcher_fd):
            self._link.register(fd)

    def _hello(self, link: bytes) -> m.Hello:
        return m.Hello(link, "service", os.getpid())

    def run(self) -> None:
        """Turn until the cluster stops or the launcher is gone."""
        thread = threading.Thread(target=self._watch, name="zcluster-watch")
        thread.start()
        asked = ""
        while True:
            delivered, ready = self._link.poll(TURN_S)
            if self._channel.fileno() in ready or self._launcher_fd in ready:
                break
            if self._wake_fd in ready:
                os.eventfd_read(self._wake_fd)
                asked = self._ask()
            for message in delivered:
                if isinstance(message, m.Answer) and message.error:
                    log.warning("the reload for %s came to nothing: %s", asked, message.error)
        self._stop.set()
        self._link.close()
        thread.join()  # within LOOK_MS; the interpreter must not end around a thread that is in the library

    def _ask(self) -> str:
        with self._lock:
            changed, self._changed = sorted(self._changed), set()
        more = f" and {len(changed) - SHOWN_MAX} more" if len(changed) > SHOWN_MAX else ""
        what = ", ".join(_shown(path) for path in changed[:SHOWN_MAX]) + more
        log.info("%s changed: reloading", what)
        self._number += 1
        token = f"watcher {os.getpid()} {self._number}"
        self._link.send(m.Ask(self._number, "reload", msgspec.Raw(msgspec.msgpack.encode({"token": token}))))
        return what

    # ---- the other thread ------------------------------------------------------------------------------------------
    def _watch(self) -> None:
        try:
            self._tell_changes()
        except Exception:  # of the library: the kernel's limit of watches, mostly; the app is served all the same
            log.exception("cannot watch files any more (is fs.inotify.max_user_watches too low?); reload by hand")

    def _tell_changes(self) -> None:
        import watchfiles  # an extra; who asks for --reload without it has been told by the launcher

        extra = frozenset(Path(path).absolute() for path in self._config.reload_extra_file)
        is_python = watchfiles.PythonFilter()  # leaves out .git, .venv, node_modules, __pycache__ and the like

        def is_code(change: watchfiles.Change, path: str) -> bool:
            return is_python(change, path) or not extra.isdisjoint((Path(path), *Path(path).parents))

        beside = {one if one.is_dir() else one.parent for one in extra}  # a file may be replaced by another
        places = sorted({*folders(self._config.app), *beside})
        told = False
        for changes in watchfiles.watch(
            *places,
            watch_filter=is_code,
            stop_event=self._stop,
            raise_interrupt=False,
            rust_timeout=LOOK_MS,
            yield_on_timeout=True,
        ):
            if not told:  # from now on, and not before, nothing is overlooked
                told = True
                log.info("watching %s", ", ".join(map(str, places)))
            if changes:
                with self._lock:
                    self._changed.update(path for _, path in changes)
                os.eventfd_write(self._wake_fd, 1)


def folders(app: str) -> Iterator[Path]:
    """Where the app's own code is: the working directory, and the package it is imported from, wherever that is."""
    yield Path.cwd()
    top = app.partition(":")[0].partition(".")[0]
    spec = PathFinder.find_spec(top, sys.path)  # looks, and imports nothing
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        yield Path(place).absolute()
    if spec is not None and spec.origin is not None and not spec.submodule_search_locations:
        yield Path(spec.origin).absolute().parent


def _shown(path: str) -> str:
    return str(Path(path).relative_to(Path.cwd())) if Path(path).is_relative_to(Path.cwd()) else path
