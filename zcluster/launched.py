"""A launcher as its handle sees it: a process that we started, or one that was found running.

Invariant: it is told from other processes by a pidfd, so neither a signal nor a wait ever meets another process that
was given its number; and what became of it is found out once and remembered.
"""

import os
import select
import signal
import threading
import time
from pathlib import Path
from typing import Final

from zcluster import owned
from zcluster.config import Config
from zcluster.core.messages import Boot, Failed, Size
from zcluster.errors import AppError, ClusterError, ConfigError, RestartLimitReached, SpawnError
from zcluster.unix import rundir
from zcluster.unix.channel import Channel
from zcluster.unix.offspring import exec_child, fork_child

BOOT_TIMEOUT_S: Final = 30.0  # an interpreter's start, 5 + 5 s for an older instance of the name, a busy machine
KILL_TIMEOUT_S: Final = 5.0  # SIGKILL takes effect at once, unless the process is in uninterruptible sleep
_KINDS: Final = (ConfigError, AppError, SpawnError, RestartLimitReached)


class Launched:
    """One launcher; `channel` only when we started it. Any thread may call any method, until `close`."""

    def __init__(self, pid: int, channel: Channel | None, run_dir: str = "") -> None:
        """Raises `SpawnError` when there is no such process (any more)."""
        self.pid, self.run_dir = pid, run_dir
        self._channel = channel
        self._lock = threading.Lock()  # guards the channel and the result
        self._failure: Failed | None = None
        self._code: int | None = None
        try:
            self.fd = os.pidfd_open(pid)
        except ProcessLookupError:
            raise SpawnError(f"the launcher {pid} has just ended") from None

    @classmethod
    def start(
        cls, config: Config, app: "owned.App | None", output_fd: int = -1, size: Size | None = None
    ) -> "Launched":
        """Start a launcher for this process; `app` when it lives in our memory only. Raises `SpawnError`.

        What the cluster writes goes to `output_fd` (3 or higher); -1: to our own stdout and stderr. `size`: the slots
        it begins with, if these are not just as many as are configured.
        """
        boot, now, own_fd = owned.boot_for(config, size), time.monotonic(), os.pidfd_open(os.getpid())
        try:
            if app is None:
                name = config.name or rundir.safe_name(config.app)
                child = exec_child("launcher", name, boot, (own_fd,), now, output_fd)
            else:
                owned.warn_of_threads()
                child = fork_child(owned.forked_main(app, own_fd), boot, (own_fd,), now, output_fd)
        finally:
            os.close(own_fd)
        return cls(child.pid, child.channel)

    @classmethod
    def find(cls, name: str, base: Path | None) -> "Launched":
        """Find a running cluster of this user; raises `SpawnError` for none, `ConfigError` for one of several."""
        running = rundir.clusters(base)
        named = [found for found in running if not name or found.name == name]
        if len(named) == 1:
            return cls(named[0].launcher_pid, None, str(named[0].path))
        names = ", ".join(found.name for found in running)
        if named:
            raise ConfigError(f"several clusters are running: {names}; choose one with --name")
        what = f"no cluster named {name!r} is running" if name else "no cluster is running"
        also = (
            f"; running are: {names}"
            if running
            else "; was it started with another --run-dir, or by another user? `zcluster run APP` starts one"
        )
        raise SpawnError(f"{what} (looked in {rundir.root_of(base)}){also}")

    def await_boot(self) -> Boot:
        """Wait for the launcher to say where the cluster is; raises why it failed."""
        assert self._channel is not None, "only a launcher that we started tells us"
        poller = select.poll()
        poller.register(self._channel.fileno(), select.POLLIN)
        poller.register(self.fd, select.POLLIN)
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        while (left_s := deadline - time.monotonic()) > 0:
            poller.poll(left_s * 1000 + 1)
            boot = self._listen()
            if boot is not None:
                self.run_dir = boot.run_dir
                return boot
            if self._failure is not None or self._channel.closed:
                self.wait(KILL_TIMEOUT_S)
                raise self.failure()
        raise SpawnError(f"the launcher {self.pid} said nothing for {BOOT_TIMEOUT_S:g} s; is the machine overloaded?")

    def _listen(self) -> Boot | None:
        """Take what the launcher has sent; returns its Boot, remembers its Failed."""
        boot = None
        with self._lock:
            for message, _fds in self._channel.receive() if self._channel is not None else ():
                if isinstance(message, Boot):
                    boot = message
                elif isinstance(message, Failed):
                    self._failure = message
        return boot

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait for its end, for ever by default; returns its exit code, None when it has not ended in time.

        Killed by a signal counts as 128 + its number, as in a shell.
        """
        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        if not poller.poll(None if timeout_s is None else max(0.0, timeout_s) * 1000):
            return None
        self._listen()
        with self._lock:
            if self._code is None:
                self._code = self._collect()
            return self._code

    def _collect(self) -> int:
        """Reap our child; the kernel tells an exit code to a parent only."""
        if self._channel is not None:
            try:
                result = os.waitid(os.P_PIDFD, self.fd, os.WEXITED)
            except ChildProcessError:  # the program reaps its children itself, or ignores SIGCHLD
                return self._failure.code if self._failure is not None else 0
            assert result is not None  # only with WNOHANG
            exited = result.si_code == os.CLD_EXITED
            return result.si_status if exited else 128 + result.si_status
        current = Path(self.run_dir).parent / "current"  # removed by a launcher that has cleaned up
        try:
            return 70 if current.read_text(encoding="ascii") == Path(self.run_dir).name else 0
        except OSError:
            return 0

    def failure(self) -> ClusterError:
        """The error that stands for how it ended: its own text, in the class its exit code means."""
        failed = self._failure
        code = failed.code if failed is not None else self._code
        text = (
            failed.text if failed is not None else f"the launcher {self.pid} ended with exit code {code}; see its log"
        )
        return next((kind(text) for kind in _KINDS if kind.exit_code == code), ClusterError(text))

    def send_signal(self, number: int) -> None:
        """Send it a signal; nothing when it has ended."""
        try:
            signal.pidfd_send_signal(self.fd, number)
        except ProcessLookupError:
            pass

    def close(self) -> None:
        """Give the descriptors back; a second call does nothing."""
        with self._lock:
            if self.fd >= 0:
                os.close(self.fd)
                self.fd = -1
            if self._channel is not None:
                self._channel.close()
