"""A running cluster as a test holds it: a `Cluster` that can be hurt, asked and read, and that leaves nothing behind.

Theory of operation. The cluster writes into a log of its own, which is shown when a test fails, and by which its
processes are known (`leftovers`). Its run directory is its own, its port is any free one, so any number of them run
side by side. Its periods are a tenth of the usual ones or less: a hang is found within seconds.

Invariant: after `end` no process of the cluster lives, none of its sockets listens and its run directory is gone,
whatever the test did to it; if that took force, `end` raises and says what was left.
"""

import os
import re
import secrets
import select
import shutil
import signal
import socket
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from fcntl import F_DUPFD_CLOEXEC, fcntl
from pathlib import Path
from typing import Any, Final, Self

from zcluster.cluster import Cluster
from zcluster.errors import BusError, ClusterError
from zcluster.owned import App
from zcluster.roster import Worker
from zcluster.testing import leftovers
from zcluster.testing.leftovers import Left
from zcluster.testing.wire import WireClient, connect
from zcluster.unix import process
from zcluster.unix.rundir import DEFAULT_BASE

DEFAULTS: Final[Mapping[str, Any]] = {
    "bind": "127.0.0.1:0",
    "workers": 2,  # the least number that can disagree
    "graceful_timeout_s": 5.0,
    "quick_timeout_s": 1.0,
    "keep_alive_s": 2.0,  # below the drain's limit: an idle connection must not make an orderly end one by force
    # Not a tenth: with ten tests at once on a small machine, a healthy process may not run for a second or two.
    "hang_timeout_s": 5.0,
    "master_timeout_s": 10.0,
    "heartbeat_s": 0.1,
    "ledger_tick_s": 0.05,
    "orphan_timeout_s": 0.5,
    "dump_grace_s": 0.2,
    "boot_timeout_s": 30.0,
}
WAIT_TIMEOUT_S: Final = 30.0  # longer than anything healthy takes, shorter than a test run
ANSWER_TIMEOUT_S: Final = 5.0  # a master that lives answers in milliseconds
LAST_LOOK_TIMEOUT_S: Final = 1.0  # the same before a stop, which nobody wants to wait for
SIGNAL_TIMEOUT_S: Final = 5.0  # KILL and STOP take effect at once, unless the process waits for a disk
# After the launcher: workers of a launcher that was killed leave within their orphan timeout. And after our KILL.
LEAVE_TIMEOUT_S: Final = 10.0
LOOK_S: Final = 0.01  # between two looks at something the kernel gives no notice of
SERVING: Final = ("ready", "suspect", "hung")


class RunningCluster(Cluster):
    """A cluster under test: start it by `start()` or `with`, end it by `end()` or the end of the block.

    Options are those of `Cluster`; defaults are two workers, port 0, and the short periods of `DEFAULTS`. Any thread
    may use it.
    """

    def __init__(self, app: str | App, *, log_path: str | os.PathLike[str], **options: Any) -> None:
        """`log_path`: where the cluster's log goes, appended to. Raises `ConfigError` as `Cluster` does."""
        self.log_path = Path(log_path)
        base = os.environ.get("ZCLUSTER_RUN_DIR") or str(DEFAULT_BASE)
        self._own_dir = "" if options.get("run_dir") else f"{base}/zct-{secrets.token_hex(6)}"  # made by start
        self.run_dir: str = options.get("run_dir") or self._own_dir
        self._launcher = 0, 0  # pid and start
        self._sockets: frozenset[int] = frozenset()  # that it listens on, by inode
        self._clients: list[WireClient] = []
        self._raw: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._stopped: dict[int, Worker] = {}  # by slot
        self._totals: dict[str, int] = {}  # when we last asked
        self._slots = 0  # as many as were asked for at the start
        super().__init__(app, **{**DEFAULTS, **options, "run_dir": self.run_dir})

    @classmethod
    def attach(cls, *args: Any, **kwargs: Any) -> Self:
        """Not offered: what is hurt, ended and checked for leftovers has to be the test's own."""
        raise ClusterError("a RunningCluster is started; to look at a running one, take zcluster.Cluster.attach")

    # ---- beginning and end -----------------------------------------------------------------------------------------
    def start(self) -> Self:
        """Start it and wait until all workers are ready; raises as `Cluster.start` does, and leaves nothing then."""
        fd = os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            if fd <= 2:  # a program that has closed its standard streams: these numbers mean something to a child
                fd, low = fcntl(fd, F_DUPFD_CLOEXEC, 3), fd
                os.close(low)
            if self._own_dir:
                Path(self._own_dir).mkdir(0o700, exist_ok=True)
            self._output_fd = fd
            super().start()
        except BaseException as error:
            try:
                self.end()
            except ClusterError as left:
                error.add_note(str(left))
            raise
        finally:
            os.close(fd)
        launcher = self._launched
        assert launcher is not None
        self._launcher = launcher.pid, process.start_time(launcher.pid)
        self._sockets = leftovers.listening_of(launcher.pid)
        self._slots = len({worker.slot for worker in self.workers.values()})
        return self

    def __exit__(self, *what: object) -> None:
        """End it, also when the block failed."""
        if os.getpid() == self._pid:  # a child forked inside the block leaves the block, too
            self.end()

    def stop(self, quick: bool = False, timeout_s: float | None = None) -> int:
        """End it as `Cluster.stop` does; the idle connections of clients are closed first, nobody waits for them."""
        for client in self._clients:
            client.close_idle()
        if self._follower is not None and not self._has_ended():
            with suppress(BusError):  # a master that cannot answer is no reason not to stop
                self._look(LAST_LOOK_TIMEOUT_S)
        return super().stop(quick, timeout_s)

    def end(self) -> None:
        """Stop it quickly and see that nothing is left; what is, is killed and named in a `ClusterError`.

        A second call does nothing.
        """
        for client in self._clients:
            client.close()
        for sock in list(self._raw):
            sock.close()
        wrong: list[str] = []
        try:
            for left in self._left():
                process.send_signal(left.pid, left.start, signal.SIGCONT)  # a stopped one cannot leave
            if self._closed:  # by a test that let go of it: then it would end with this program only
                process.send_signal(*self._launcher, signal.SIGQUIT)
            try:
                super().stop(quick=True)
            except ClusterError as error:
                wrong.append(str(error))
            wrong += self._force()
        finally:
            self._remove_dir()
        if wrong:
            raise ClusterError(
                f"cluster {self.name or self.log_path.name!r} has not ended as it should: " + "; ".join(wrong)
            )

    def _left(self) -> list[Left]:
        if not self.log_path.exists():
            return []
        return list(leftovers.holders(self.log_path.stat(), self._sockets))

    def _force(self) -> list[str]:
        """Wait until all of it is gone, then kill; returns what had to be killed, and what is there for all that."""
        told = []
        if not _until(lambda: not self._left(), LEAVE_TIMEOUT_S):
            told = [str(left) for left in self._left()]
            _until(self._is_killed, LEAVE_TIMEOUT_S)
        if self._sockets & leftovers.listening():
            told.append(f"something still listens on {', '.join(self.urls)}")
        return told

    def _is_killed(self) -> bool:
        left = self._left()
        for one in left:
            process.send_signal(one.pid, one.start, KILL)
        return not left

    def _remove_dir(self) -> None:
        if self._own_dir:
            shutil.rmtree(self._own_dir, ignore_errors=True)

    # ---- asking ----------------------------------------------------------------------------------------------------
    @property
    def client(self) -> WireClient:
        """A client in the style of Werkzeug's test client, the same at each access: `client.get("/").json`."""
        if not self._clients:
            self.new_client()
        return self._clients[0]

    def new_client(self, *, use_cookies: bool = True, timeout_s: float = 30.0) -> WireClient:
        """Return a further client, with cookies and connections of its own; closed when the cluster ends."""
        self._open()
        client = WireClient(self.url, use_cookies=use_cookies, timeout_s=timeout_s)
        self._clients.append(client)
        return client

    def raw(self, timeout_s: float = 10.0) -> socket.socket:
        """Return a socket connected to the cluster's first address; closed when the cluster ends, if not before."""
        self._open()
        sock = connect(self.url, timeout_s)
        self._raw.add(sock)
        return sock

    @property
    def counters(self) -> Mapping[str, int]:
        """The exact totals by counter name, asked for at each access; those before its `stop` when it has ended.

        What a request has counted is in it when its response has come. Raises `BusError` when the master does not
        answer for 5 s.
        """
        if not self._has_ended():
            self._look(ANSWER_TIMEOUT_S)
        # What was asked for may be older than what was heard, or the other way round; and a total never falls.
        heard, asked = super().counters, self._totals
        return {name: max(heard.get(name, 0), asked.get(name, 0)) for name in sorted({*heard, *asked})}

    def _look(self, timeout_s: float) -> None:
        self._totals = self.snapshot(timeout_s)["counters"]

    @property
    def log(self) -> str:
        """What the cluster has written so far: its log, and the stdout and stderr of the app."""
        try:
            return self.log_path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def wait_for_log(self, pattern: str, timeout_s: float = WAIT_TIMEOUT_S) -> re.Match[str]:
        """Wait until a regular expression is found in the log; `ClusterError` after `timeout_s` seconds."""
        if not _until(lambda: re.search(pattern, self.log) is not None, timeout_s):
            raise ClusterError(f"waited {timeout_s:g} s for {pattern!r} in the log, which is:\n{self.log}")
        found = re.search(pattern, self.log)
        assert found is not None  # a log only grows
        return found

    def processes(self) -> list[int]:
        """The pids of all its processes: launcher, master, zygote, workers, and programs that the app has started."""
        return sorted(left.pid for left in self._left())

    # ---- hurting ---------------------------------------------------------------------------------------------------
    def in_slot(self, slot: int, timeout_s: float = WAIT_TIMEOUT_S) -> Worker:
        """Return the worker that serves in a slot; waits for one that is being replaced.

        Raises `ClusterError` when there is no such slot, or nobody serves in it within `timeout_s` seconds.
        """
        slots = max([self._slots, *(worker.slot + 1 for worker in self.workers.values())])
        if not 0 <= slot < slots:
            raise ClusterError(f"there is no slot {slot}; this cluster has slots 0 to {slots - 1}")
        found: list[Worker] = []
        self._await(lambda: self._serving(slot, found), f"a worker that serves in slot {slot}", timeout_s)
        return found[-1]

    def _serving(self, slot: int, found: list[Worker]) -> bool:
        """Find the newest worker of a slot that is ready, or was before it hung, and whose process is there."""
        there = [w for w in self.workers.values() if w.slot == slot and w.state in SERVING and w.kill(0)]
        found.extend(sorted(there, key=lambda worker: worker.id))
        return bool(there)

    def kill(self, slot: int, signal: int = signal.SIGKILL) -> Worker:
        """Send a signal to the worker in a slot and return it: `cluster.wait_for(worker.is_dead)`.

        After SIGKILL it waits until the process has ended, which takes milliseconds: its connections are closed, and
        no request that is sent from now on can reach it. Raises `ClusterError` as `in_slot` does.
        """
        worker = self.in_slot(slot)
        try:
            fd = os.pidfd_open(worker.pid)
        except ProcessLookupError:
            return self.kill(slot, signal)  # it has just died by itself: the one that was meant is its replacement
        try:
            if not worker.kill(signal):
                return self.kill(slot, signal)
            if signal == KILL and not _ends(fd, SIGNAL_TIMEOUT_S):
                raise ClusterError(f"worker {worker.id} (process {worker.pid}) does not die of SIGKILL")
        finally:
            os.close(fd)
        return worker

    def stop_worker(self, slot: int) -> Worker:
        """Stop the worker in a slot (SIGSTOP) and return it when it stands still, as one that hangs does.

        It is found hung after `hang_timeout_s`, killed and replaced, unless `continue_worker` comes before.
        """
        worker = self._stopped[slot] = self.kill(slot, signal.SIGSTOP)
        if not _until(lambda: _is_still(worker.pid), SIGNAL_TIMEOUT_S):
            raise ClusterError(f"worker {worker.id} (process {worker.pid}) does not stop; did it continue at once?")
        return worker

    def continue_worker(self, slot: int) -> Worker:
        """Let the worker that was stopped in a slot go on (SIGCONT), and return it, whether it still lives or not.

        Raises `ClusterError` when none was stopped there.
        """
        worker = self._stopped.pop(slot, None)
        if worker is None:
            raise ClusterError(f"no worker is stopped in slot {slot}; stop_worker({slot}) comes first")
        worker.kill(signal.SIGCONT)
        return worker

    def wait_replaced(self, worker: Worker, timeout_s: float = WAIT_TIMEOUT_S) -> Worker:
        """Wait until this worker is dead and another serves in its slot; returns that one."""
        found: list[Worker] = []
        self._await(
            lambda: worker.is_dead() and self._serving(worker.slot, found),
            f"the replacement of worker {worker.id} in slot {worker.slot}",
            timeout_s,
        )
        return found[-1]


KILL: Final = signal.SIGKILL  # in methods with an argument `signal`


def _is_still(pid: int) -> bool:
    """Whether no thread of a process runs: they stop one after the other. True when it has ended, too."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        states = [(task / "stat").read_text(errors="replace").rpartition(")")[2].split()[0] for task in threads]
    except OSError:
        return process.stat(pid) is None
    return all(state in "TtZX" for state in states)


def _ends(pidfd: int, timeout_s: float) -> bool:
    """Wait for the end of a process; False when it does not end within `timeout_s` seconds."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(timeout_s * 1000))


def _until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Look until a condition is true; False when it is not within `timeout_s` seconds."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        select.select((), (), (), LOOK_S)
    return True
