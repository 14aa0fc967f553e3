"""`Cluster`: the handle on a cluster, for programs and tests.

Theory of operation. The cluster never lives in this process: a launcher is started (or found, by `attach`), tells us
where its run directory is, and from there on the handle is a peer on the bus like the command line, with one thread
that listens (`follower`) and one that calls the user's functions (`callbacks`). What is known stands in a `Roster`,
what happens is told by `News`, what the master is to do is asked by `Orders`; `handle` puts them together. Here is
what only a cluster has that somebody can start, change and end.

Invariant: whatever happens to this process, the cluster it started ends: in an orderly way by `stop`, otherwise
because the launcher holds a pidfd of us. A handle that was attached never ends its cluster by being closed.
"""

import os
import signal
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from signal import SIGTERM
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self

import msgspec

from zcluster import owned
from zcluster.config import Config, make_config
from zcluster.core.messages import Size
from zcluster.errors import BusError, ClusterError, ConfigError, SpawnError
from zcluster.handle import WAIT_TIMEOUT_S, Handle
from zcluster.launched import KILL_TIMEOUT_S, Launched
from zcluster.orders import ANSWER_TIMEOUT_S, environment
from zcluster.roster import Worker, signal_number
from zcluster.unix.cpus import available_cpus

# What a launcher takes beyond the drain: 10 s overrun, 5 s for zygotes and services, 5 s for killing.
STOP_MARGIN_S: Final = 25.0


class Cluster(Handle):
    """A cluster of workers: started by `with` or `start()`, or found running by `attach()`.

    `app` is an import string or a WSGI callable; `options` are those of `zcluster run`, named as the fields of
    `Config`, and those of `setup`. Neither files nor variables are read: a program's cluster is what the program
    says. Raises `ConfigError` for options that make no sense. Any thread may use a handle; a child forked by this
    program may not.
    """

    _output_fd = -1  # where the cluster writes; -1: to our stdout and stderr. For who shows it elsewhere (testing)
    _first: Size | None = None  # the slots it begins with; None: as configured. For who begins with none (compat)

    def __init__(self, app: str | owned.App, **options: Any) -> None:
        super().__init__()
        self._given: dict[str, Any] = {}
        self._app: owned.App | None = None  # one that cannot be imported
        self._env: dict[str, str] = {}
        self._change(app=app, **options)

    # ---- settings --------------------------------------------------------------------------------------------------
    def setup(self, **options: Any) -> None:
        """Change the settings, and tell callbacks of `setup` (each call once; in their thread, after this returns).

        Options are those of the constructor, `app` among them; what is not named stays as it was. `env` is a mapping
        that workers have in their environment besides: those that `start` or a later `fork` makes, and what replaces
        them. After the start only `env` can be changed: `ConfigError` names what cannot.
        """
        self._change(**options)
        self._news.set_up(self.settings)

    def _change(self, **options: Any) -> None:
        with self._news.changed:
            if self._launched is not None and (fixed := sorted(set(options) - {"env"})):
                raise ConfigError(
                    f"option {fixed[0]!r} cannot be changed after the start; 'env' can be set up for later forks, "
                    "scale() changes the number of workers, and everything else needs another cluster"
                )
            env = environment(options.pop("env", self._env))
            if options:
                given = {**self._given, **options}
                config, app = _configuration(given)
                self._given, self._config, self._app = given, config, app
            self._env = env
            self._news.settings = self.settings

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings as they are now, by name, defaults included; `env` is what forks get besides.

        Of a handle from `attach` only what was set up on it is known.
        """
        known = msgspec.structs.asdict(self._config) if self._config is not None else {}
        return MappingProxyType({**known, "env": MappingProxyType(self._env)} if known or self._env else {})

    # ---- beginning and end -----------------------------------------------------------------------------------------
    def start(self) -> Self:
        """Start the cluster and wait until all its workers are ready; returns itself.

        One that could not start can be started again, when the reason is gone. Raises `ConfigError`, `AppError`,
        `SpawnError` or `RestartLimitReached` when it cannot start: whose fault it is decides the class, the text is
        the launcher's.
        """
        if self._config is None or self._launched is not None or self._closed:
            raise ClusterError("this handle has been used already; make a new Cluster to start another one")
        self._launched = Launched.start(self._config, self._app, self._output_fd, self._beginning())
        try:
            self._follow(self._launched.await_boot().run_dir, self._config.heartbeat_s, messages=True)
            # A start that fails is ended by the master; this is for one that neither fails nor succeeds.
            limit_s = 2 * self._config.boot_timeout_s + WAIT_TIMEOUT_S
            if not self._news.wait_until(lambda: self._news.roster.running or self._has_ended(), limit_s):
                raise SpawnError(f"the workers were not ready within {limit_s:g} s; look at the log on stderr")
            if not self._news.roster.running:
                raise self._launched.failure()
        except BaseException:
            self._launched.send_signal(signal.SIGQUIT)
            if self._launched.wait(self._config.quick_timeout_s + STOP_MARGIN_S) is None:
                self._kill()
            self.close()
            self._begin_again()
            raise
        return self

    @classmethod
    def attach(
        cls, name: str = "", *, run_dir: str = "", timeout_s: float = ANSWER_TIMEOUT_S, messages: bool = True
    ) -> Self:
        """Return a handle on a running cluster of this user: the named one, or the only one.

        Workers that are there already are replayed to each callback when it is registered: as fork, online,
        listening. Without `messages` it neither sends nor receives any. Raises `SpawnError` when there is no such
        cluster or its master does not answer in `timeout_s` seconds, `ConfigError` when there are several and none is
        named.
        """
        base = run_dir or os.environ.get("ZCLUSTER_RUN_DIR", "")
        launched = Launched.find(name, Path(base) if base else None)
        handle = cls.__new__(cls)
        Handle.__init__(handle)
        handle._given, handle._app, handle._env = {}, None, {}
        handle._launched = launched
        handle._follow(launched.run_dir, 1.0, messages=messages)
        handle._news.wait_until(lambda: handle._news.roster.snapshot or handle._has_ended(), timeout_s)
        if handle._news.roster.snapshot is None:
            ended = handle._has_ended()
            handle.close()
            if ended:
                raise SpawnError(f"cluster {handle.name!r} has ended while we looked at it")
            raise SpawnError(
                f"the master of cluster {handle.name!r} did not answer within {timeout_s:g} s: it is stopped, "
                f"overloaded, or being replaced. Its launcher is process {launched.pid}; signals reach it in any "
                f"case (kill -TERM {launched.pid} stops the cluster)"
            )
        return handle

    def _beginning(self) -> Size | None:
        """The slots the cluster begins with, when that is more than a number."""
        assert self._config is not None
        if self._first is None and self._env:
            slots = tuple(range(self._config.workers or available_cpus()))
            return Size(slots, dict.fromkeys(slots, self._env))
        return self._first

    def __enter__(self) -> Self:
        return self if self._follower is not None else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if os.getpid() != self._pid:  # a child forked inside the block leaves the block, too
            return
        if self._config is None:
            self.close()
        else:
            self.stop(quick=kind is not None)

    def stop(self, quick: bool = False, timeout_s: float | None = None) -> int:
        """End the cluster and close this handle; requests in flight are finished first. Returns the exit code.

        After `timeout_s` seconds (default: the drain's own limits and 25 s) a launcher that we started is killed, its
        workers leave by themselves, and `ClusterError` is raised. When it has ended already, only closes the handle.
        """
        if self._launched is None or self._closed:
            return 0
        self._open()  # a forked child is told that it may not, before anything is done to its parent's cluster
        try:
            if not self._has_ended():
                if not quick:
                    self._flush()
                self.request_stop(quick=quick)
            config = self._config
            drain_s = config.drain_delay_s + config.graceful_timeout_s if config is not None else WAIT_TIMEOUT_S
            return self.wait(drain_s + STOP_MARGIN_S if timeout_s is None else timeout_s)
        except BaseException:
            if self._config is not None:
                self._kill()
            raise
        finally:
            self.close()

    def request_stop(self, *, quick: bool = False) -> None:
        """Tell the cluster to end and do not wait for it; `BusError` when the master of an attached one is silent."""
        launched = self._open()
        if self._config is not None:  # ours to signal, which works while there is no master, too
            launched.send_signal(signal.SIGQUIT if quick else signal.SIGTERM)
        else:
            self._ask("stop", {"quick": quick}, ANSWER_TIMEOUT_S)

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait until the launcher has ended, for ever by default; returns its exit code (128 + N after signal N).

        Only a parent learns an exit code: an attached handle returns 0 when the cluster has cleaned up after itself
        and 70 when it has not. Raises `ClusterError` after `timeout_s` seconds.
        """
        code = self._open().wait(timeout_s)
        if code is None:
            raise ClusterError(f"cluster {self.name!r} has not ended within {timeout_s:g} s")
        return code

    def _kill(self) -> None:
        assert self._launched is not None
        self._launched.send_signal(signal.SIGKILL)
        self._launched.wait(KILL_TIMEOUT_S)

    # ---- orders ----------------------------------------------------------------------------------------------------
    def fork(self, env: Mapping[str, str] | None = None, timeout_s: float = WAIT_TIMEOUT_S) -> Worker:
        """Have one worker more, and return it when it has been forked, which takes milliseconds.

        It takes the lowest slot that is closed, or a new one. `env` is what it, and what replaces it, has in the
        environment besides: with the `env` of `settings`, over ours. Raises `BusError` when the master refuses, for
        instance for want of lanes, and `ClusterError` when no worker was forked within `timeout_s` seconds.
        """
        try:
            return self._ordering().fork({**self._env, **environment(env or {})}, timeout_s)
        except ClusterError:
            if self._config is not None and self._launched is not None and not self._closed and self._has_ended():
                raise self._launched.failure() from None  # the application cannot be imported, for instance
            raise

    def scale(self, size: int | str, *, wait: bool = True, timeout_s: float | None = None) -> int:
        """Have `size` workers, or so many more or fewer ("+1", "-2"); returns how many are wanted now.

        The lowest closed slots are opened, the highest are closed; 0 is a number, too. It waits until every worker
        that is wanted listens and every other one is gone, or until somebody scales otherwise, for `timeout_s`
        seconds (default: a worker's boot and drain, and 25 s), then raises `ClusterError`.
        """
        return self._ordering().scale(size, self._patience_s(timeout_s), wait=wait)

    def disconnect(self, callback: Callable[[], object] | None = None, timeout_s: float | None = None) -> None:
        """Let all workers finish and leave. The cluster lives on without: `fork` and `scale` work as before.

        What was sent to them is received first. Without a callback it returns when *all* are gone, or raises
        `ClusterError` after `timeout_s` seconds (default as in `scale`). With one it returns at once, and the
        callback is called when all are gone, after the last `exit`: in the thread of callbacks, as these are, also
        when there was no worker. Requests that come meanwhile wait for the next worker.
        """
        orders, news = self._ordering(), self._news
        outcome: deque[BusError | None] = deque()

        def then(error: BusError | None) -> None:
            if callback is None:
                outcome.append(error)
                news.tell()
            elif error is None:
                news.callbacks.put(callback)
            else:
                news.callbacks.put(_raise, error)  # logged there, as what a callback raises

        orders.disconnect_all(then)
        if callback is None:
            self._await(lambda: outcome, "all workers to be gone", self._patience_s(timeout_s))
            if (error := outcome.pop()) is not None:
                raise error

    def reload(self, *, wait: bool = True, timeout_s: float | None = None) -> int:
        """Load the code anew and replace the workers one by one, new before old; returns the new generation.

        Raises `ReloadFailed` with the reason, a traceback for instance, when the new code cannot be imported or its
        workers do not become ready; all is then as it was before. It returns when the old workers are gone, and by
        default waits as long as that takes: every step has a deadline of its own. `ClusterError` after `timeout_s`
        seconds; the reload goes on. Without `wait` it returns 0 as soon as the order is taken, and the events
        `reload` and `error` tell what came of it.
        """
        if wait:
            return self._ordering().reload(timeout_s)
        self._ordering().begin_reload()
        return 0

    def restart(self, slot: int, *, wait: bool = True, timeout_s: float | None = None) -> int:
        """Replace the worker of a slot by a new one of the same code, new before old; returns the new one's id.

        A slot that waits after crashes gets its worker now. Raises `BusError` with the reason when there is no such
        slot, or the new worker does not start: the one that serves then goes on. It returns when the old worker is
        gone, and by default waits as long as that takes; `ClusterError` after `timeout_s` seconds. Without `wait` it
        returns 0 as soon as the order is taken; a master that dies before it is carried out forgets it.
        """
        if wait:
            return self._ordering().restart(slot, timeout_s)
        self._ordering().begin_restart(slot)
        return 0

    def send_signal(self, slot: int, signal: int | str = SIGTERM) -> tuple[int, int]:
        """Have the master send a signal, by number or name, to the worker of a slot; returns its id and pid.

        TERM lets it finish; in any case it is replaced when it ends. Unlike `Worker.kill` it is logged by the
        cluster, and works from another PID namespace. Raises `BusError` when the slot has no worker, `ClusterError`
        when there is no such signal.
        """
        return self._ordering().kill(slot, signal_number(signal))

    def _patience_s(self, timeout_s: float | None) -> float:
        if timeout_s is not None:
            return timeout_s
        config = self._config
        return STOP_MARGIN_S + (
            config.boot_timeout_s + config.graceful_timeout_s if config is not None else 2 * WAIT_TIMEOUT_S
        )


def _configuration(given: Mapping[str, Any]) -> tuple[Config, owned.App | None]:
    """Return the checked configuration, and the app if it cannot be named."""
    options = dict(given)
    app, app_in_memory = options.pop("app"), None
    if not isinstance(app, str):
        if not callable(app):
            raise ConfigError(f"the app is {app!r:.100}, but should be an import string or a WSGI callable")
        name = owned.import_name(app)
        app_in_memory = None if name else app
        app = name or getattr(app, "__name__", type(app).__name__)
    return make_config(app=app, **options), app_in_memory


def _raise(error: BaseException) -> None:
    raise error
