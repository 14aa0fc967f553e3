"""The hooks service: calls the operator's functions when something happens to the cluster.

Theory of operation. The main thread listens on the bus like a handle, and to the launcher; a thread of its own calls
the hooks, one after the other. So a hook that takes long delays other hooks and nothing else.

Invariant: what was heard before the end is called before `on_exit`, and that is the last one; a hook that does not
return keeps this process no longer than END_S beyond the end.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from zcluster.bus.link import Link
from zcluster.config import Config
from zcluster.core.hookcalls import Call, ClusterInfo, HookCalls
from zcluster.core.messages import EVENTS, Hello, Stop
from zcluster.errors import AppError
from zcluster.unix import leash, logs, process
from zcluster.unix.channel import Channel, boot_of
from zcluster.unix.hooked import Hooked
from zcluster.unix.signals import HEARD, Signals

log = logging.getLogger("zcluster.hooks")

POLL_S: Final = 1.0  # everything wakes the loop; this only bounds what a bug could cost
LAST_WORDS_S: Final = 0.05  # after the master has ended: what it published is in our socket by now
END_S: Final = 4.0  # the launcher gives a service 5 s to leave
WAITING_MAX: Final = 10_000  # calls that wait behind a hook that does not return: every worker replaced many times
ONCE: Final = ("on_starting", "when_ready")  # hooks that leave a mark in the run directory


def main(control_fd: int) -> int:
    """Run the service until the launcher ends it."""
    signals = Signals(HEARD)
    channel = Channel.of_fd(control_fd)
    boot = boot_of(channel.first_message(), "service")
    config = msgspec.msgpack.decode(boot.config, type=Config)
    run_dir = Path(boot.run_dir)
    logs.begin(boot.kind, config, run_dir)
    process.set_title(f"zc-{boot.kind}")
    leash_fd = leash.wear(run_dir / "leash")
    signals.unblock()
    try:
        calls = _Calls(Hooked(config.hooks), run_dir)
    except AppError as error:
        log.error("%s", error)
        return error.exit_code
    link = Link(boot.run_dir, _hello, topics=(EVENTS,), heartbeat_s=config.heartbeat_s)
    began, was_ready = ((run_dir / f"hook-{name}").exists() for name in ONCE)
    story = HookCalls(began=began, was_ready=was_ready)
    is_orderly = _listen(link, channel, signals, story, calls)
    link.close()
    if is_orderly:
        found = story.end()
        calls.put(story.cluster, found)
    is_done = calls.finish()
    channel.close()
    os.close(leash_fd)
    if not is_done:  # its thread would keep the interpreter
        os._exit(0)
    signals.ignore()
    return 0


def _hello(link: bytes) -> Hello:
    return Hello(link, "service", os.getpid())


def _listen(link: Link, channel: Channel, signals: Signals, story: HookCalls, calls: "_Calls") -> bool:
    """Until the launcher says that it is over; returns whether the cluster has ended as it should."""
    link.register(channel.fileno())
    link.register(signals.fileno())
    while True:
        delivered, ready = link.poll(POLL_S)
        signals.take()
        _take(story, calls, delivered)
        if channel.fileno() in ready:
            wishes = [message for message, _fds in channel.receive() if isinstance(message, Stop)]
            if not wishes and not channel.closed:
                continue
            link.unregister(channel.fileno())
            while delivered := link.poll(LAST_WORDS_S)[0]:
                _take(story, calls, delivered)
            return bool(wishes) and not any(wish.quick for wish in wishes)  # none: the launcher is dead


def _take(story: HookCalls, calls: "_Calls", delivered: Sequence[object]) -> None:
    found = story.take(delivered)
    calls.put(story.cluster, found)  # as it is after all of this


class _Calls:
    """A queue of hooks to call, and the thread that does it."""

    def __init__(self, hooked: Hooked, run_dir: Path) -> None:
        self._hooked, self._run_dir = hooked, run_dir
        self._news = threading.Condition()  # guards what follows
        self._waiting: deque[tuple[ClusterInfo, Call]] = deque()
        self._over = False
        self._lost = 0
        self._thread = threading.Thread(target=self._run, name="zcluster-hooks", daemon=True)
        self._thread.start()

    def put(self, cluster: ClusterInfo | None, calls: list[Call]) -> None:
        """Have these called, those that are defined."""
        wanted = [call for call in calls if self._hooked.has(call[0])]
        if cluster is None or not wanted:
            return
        with self._news:
            for call in wanted:
                if len(self._waiting) >= WAITING_MAX:
                    self._lost += 1
                    if self._lost == 1 or self._lost % 1000 == 0:
                        log.error("%d hooks were not called: %d wait behind one that hangs", self._lost, WAITING_MAX)
                else:
                    self._waiting.append((cluster, call))
            self._news.notify()

    def _run(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._waiting or self._over)
                if not self._waiting:
                    return
                cluster, (name, arguments) = self._waiting.popleft()
            if name in ONCE:
                with suppress(OSError):  # no room: should we die, it is called twice
                    (self._run_dir / f"hook-{name}").touch(mode=0o600)
            self._hooked.run(name, cluster, *arguments)

    def finish(self, timeout_s: float = END_S) -> bool:
        """Let what waits be called; false when that takes longer than `timeout_s` seconds."""
        end = time.monotonic() + timeout_s
        with self._news:
            self._over = True
            self._news.notify()
        self._thread.join(max(0.0, end - time.monotonic()))
        if self._thread.is_alive():
            with self._news:
                left = len(self._waiting)
            log.error("a hook is still running %g s after the end; %d more are not called", timeout_s, left)
            return False
        return True
