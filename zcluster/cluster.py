"""`Cluster`: the handle on a cluster, for programs and tests.

Theory of operation. The cluster never lives in this process: a launcher is started (or found, by `attach`), tells us
where its run directory is, and from there on the handle is a peer on the bus like the command line, with one thread
that listens (`follower`) and one that calls the user's functions (`callbacks`). What is known stands in a `Roster`.

Invariant: whatever happens to this process, the cluster it started ends: in an orderly way by `stop`, otherwise
because the launcher holds a pidfd of us. A handle that was attached never ends its cluster by being closed.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar, overload

import msgspec

from zcluster import current, owned
from zcluster.callbacks import Callback, Callbacks
from zcluster.config import Config, make_config
from zcluster.core.messages import Snapshot
from zcluster.errors import ClusterError, ConfigError, SpawnError
from zcluster.follower import Follower
from zcluster.launched import KILL_TIMEOUT_S, Launched
from zcluster.roster import STAGES, Happening, Roster, Worker, ps_form

EVENTS: Final = ("setup", *STAGES, "message", "error", "reload")
ANSWER_TIMEOUT_S: Final = 5.0  # a master that lives answers in milliseconds
WAIT_TIMEOUT_S: Final = 30.0  # of wait_for: longer than anything healthy takes, shorter than a test run
# What a launcher takes beyond the drain: 10 s overrun, 5 s for zygotes and services, 5 s for killing.
STOP_MARGIN_S: Final = 25.0
LOOK_S: Final = 0.1  # a condition that somebody waits for may depend on more than our news: look at it again

_T = TypeVar("_T")
_open_lock = threading.Lock()
_open_handles = 0


class Cluster:
    """A cluster of workers: started by `with` or `start()`, or found running by `attach()`.

    `app` is an import string or a WSGI callable; `options` are those of `zcluster run`, named as the fields of
    `Config`. Raises `ConfigError` for options that make no sense. Any thread may use a handle; a child forked by this
    program may not.
    """

    def __init__(self, app: str | owned.App, **options: Any) -> None:
        app_in_memory = None
        if not isinstance(app, str):
            if not callable(app):
                raise ConfigError(f"the app is {app!r:.100}, but should be an import string or a WSGI callable")
            name = owned.import_name(app)
            app_in_memory = None if name else app
            app = name or getattr(app, "__name__", type(app).__name__)
        self._prepare(make_config(app=app, **options), app_in_memory)

    def _prepare(self, config: Config | None, app: "owned.App | None") -> None:
        self._config, self._app = config, app  # config None: attached
        self._pid = os.getpid()
        self._launched: Launched | None = None
        self._follower: Follower | None = None
        self._callbacks: Callbacks | None = None
        self._closed = False
        self._roster = Roster()
        self._news = threading.Condition()  # guards what follows, and keeps callbacks in the order of what happened
        self._functions: dict[str, list[Callback]] = {event: [] for event in EVENTS}
        self._batches = 0  # of news, the end included
        self._happened: dict[str, tuple[int, Worker | None]] = {}  # event -> how often, and whose it was last

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._follower else "not started"
        return f"<Cluster {self._config.app if self._config else self.name!r} {state}>"

    # ---- beginning and end -----------------------------------------------------------------------------------------
    def start(self) -> Self:
        """Start the cluster and wait until all its workers are ready; returns itself.

        Raises `ConfigError`, `AppError`, `SpawnError` or `RestartLimitReached` when it cannot start: whose fault it
        is decides the class, the text is the launcher's.
        """
        if self._config is None or self._launched is not None or self._closed:
            raise ClusterError("this handle has been used already; make a new Cluster to start another one")
        self._launched = Launched.start(self._config, self._app)
        try:
            self._follow(self._launched.await_boot().run_dir, self._config.heartbeat_s)
            # A start that fails is ended by the master; this is for one that neither fails nor succeeds.
            limit_s = 2 * self._config.boot_timeout_s + WAIT_TIMEOUT_S
            if not self._wait_until(lambda: self._roster.running or self._has_ended(), limit_s):
                raise SpawnError(f"the workers were not ready within {limit_s:g} s; look at the log on stderr")
            if not self._roster.running:
                raise self._launched.failure()
        except BaseException:
            self._launched.send_signal(signal.SIGQUIT)
            if self._launched.wait(self._config.quick_timeout_s + STOP_MARGIN_S) is None:
                self._kill()
            self.close()
            raise
        return self

    @classmethod
    def attach(cls, name: str = "", *, run_dir: str = "", timeout_s: float = ANSWER_TIMEOUT_S) -> Self:
        """Return a handle on a running cluster of this user: the named one, or the only one.

        Workers that are there already are replayed to each callback when it is registered: as fork, online,
        listening. Raises `SpawnError` when there is no such cluster or its master does not answer in `timeout_s`
        seconds, `ConfigError` when there are several and none is named.
        """
        base = run_dir or os.environ.get("ZCLUSTER_RUN_DIR", "")
        launched = Launched.find(name, Path(base) if base else None)
        handle = cls.__new__(cls)
        handle._prepare(None, None)
        handle._launched = launched
        handle._follow(launched.run_dir, 1.0)
        handle._wait_until(lambda: handle._roster.snapshot or handle._has_ended(), timeout_s)
        if handle._roster.snapshot is None:
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

        After `timeout_s` seconds (default: the drain's own limit and 25 s) a launcher that we started is killed, its
        workers leave by themselves, and `ClusterError` is raised. When it has ended already, only closes the handle.
        """
        if self._launched is None or self._closed:
            return 0
        try:
            if not self._has_ended():
                self.request_stop(quick=quick)
            drain_s = self._config.graceful_timeout_s if self._config is not None else WAIT_TIMEOUT_S
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

    def close(self) -> None:
        """Let go of the cluster without ending it. What has happened so far is still told to callbacks, for 5 s.

        A cluster that this handle started ends with this program, or by `stop`. A second call does nothing.
        """
        with self._news:
            if self._closed or os.getpid() != self._pid:
                return
            self._closed = True
            self._tell()
        if self._follower is not None:
            self._follower.close()
            _count_handles(-1)
        if self._callbacks is not None:
            self._callbacks.close()
        if self._launched is not None:
            self._launched.close()

    def _kill(self) -> None:
        assert self._launched is not None
        self._launched.send_signal(signal.SIGKILL)
        self._launched.wait(KILL_TIMEOUT_S)

    # ---- what is known ---------------------------------------------------------------------------------------------
    @property
    def name(self) -> str:
        """Its name, for `zcluster ps --name`; empty before the start."""
        return Path(self._launched.run_dir).parent.name if self._launched is not None else ""

    @property
    def urls(self) -> tuple[str, ...]:
        """Where it listens, in the order of `bind`, with the real port numbers; empty before the start."""
        seen = self._roster.snapshot
        return seen.urls if seen is not None else ()

    @property
    def url(self) -> str:
        """The first of `urls`; empty before the start."""
        return self.urls[0] if self.urls else ""

    @property
    def workers(self) -> dict[int, Worker]:
        """The workers that live, by id, as last heard of; a copy, of workers that are themselves kept up to date."""
        return dict(self._roster.workers)

    @property
    def counters(self) -> Mapping[str, int]:
        """The totals by counter name, kept up to date: at most about 50 ms old. `snapshot()` asks for exact ones."""
        return Totals(self._roster)

    def snapshot(self, timeout_s: float = ANSWER_TIMEOUT_S) -> dict[str, Any]:
        """Ask the master for the state of everything: what `zcluster ps --json` prints.

        Raises `BusError` when it does not answer within `timeout_s` seconds.
        """
        return ps_form(msgspec.msgpack.decode(self._ask("snapshot", None, timeout_s), type=Snapshot))

    # ---- events ----------------------------------------------------------------------------------------------------
    @overload
    def on(self, event: str) -> Callable[[Callback], Callback]: ...
    @overload
    def on(self, event: str, fn: Callback) -> Callback: ...
    def on(self, event: str, fn: Callback | None = None) -> Callback | Callable[[Callback], Callback]:
        """Have `fn` called with the `Worker` on each such event; `setup` passes the `Cluster`. Also a decorator.

        Events are setup, fork, online, listening, disconnect, exit, message, error, reload. Callbacks of a handle run
        one after the other in a thread of its own, in the order of the events; one that raises is logged. On a handle
        from `attach` the workers that are there already are told first.
        """
        if event not in self._functions:
            raise ClusterError(f"there is no event {event!r}; events are {', '.join(EVENTS)}")
        if fn is None:
            return lambda function: self.on(event, function)
        with self._news:
            self._functions[event].append(fn)
            if self._config is None and self._callbacks is not None:
                replay: Sequence[object] = ()
                if event == "setup":
                    replay = (self,)
                elif STAGES.get(event, 9) <= STAGES["listening"]:
                    replay = [w for w in self._roster.workers.values() if w.has_reached(event)]
                for argument in replay:
                    self._callbacks.put(fn, argument)
        return fn

    def wait_for(self, what: "str | Callable[[], _T]", timeout_s: float = WAIT_TIMEOUT_S) -> "_T | Worker | None":
        """Wait for the next event of this name, and return its worker; or until a function returns something true.

        A function is called, without arguments, whenever there is news; it sees what has happened before the call,
        too: `worker.kill(); cluster.wait_for(worker.is_dead)`. Raises `ClusterError` after `timeout_s` seconds, or
        when the cluster ends first. Not to be called from a callback.
        """
        self._open()
        if isinstance(what, str):
            if what not in self._functions:
                raise ClusterError(f"there is no event {what!r}; events are {', '.join(EVENTS)}")
            with self._news:
                before = self._happened.get(what, (0, None))[0]
            self._await(lambda: self._happened.get(what, (0, None))[0] > before, f"event {what!r}", timeout_s)
            return self._happened[what][1]
        return self._await(what, getattr(what, "__qualname__", repr(what)), timeout_s)

    def _await(self, condition: Callable[[], _T], description: str, timeout_s: float) -> _T:
        self._wait_until(lambda: condition() or self._closed or self._has_ended(), timeout_s)
        value = condition()
        if not value:
            ended = "the cluster has ended" if self._closed or self._has_ended() else f"{timeout_s:g} s are over"
            raise ClusterError(f"waited for {description}, but {ended}")
        return value

    def _wait_until(self, condition: Callable[[], object], timeout_s: float) -> bool:
        """Evaluate a condition at all news, without holding our lock: it may be the user's, and ask us anything."""
        end = time.monotonic() + timeout_s
        while True:
            with self._news:
                seen = self._batches
            if condition():
                return True
            left_s = end - time.monotonic()
            if left_s <= 0:
                return False
            with self._news:
                self._news.wait_for(lambda: self._batches != seen, min(left_s, LOOK_S))  # noqa: B023

    # ---- inside ----------------------------------------------------------------------------------------------------
    def _follow(self, run_dir: str, heartbeat_s: float) -> None:
        assert self._launched is not None
        _count_handles(+1)
        self._callbacks = Callbacks("zcluster-callbacks")
        self._follower = Follower(run_dir, self._launched.fd, heartbeat_s, self._on_batch, self._on_end)

    def _on_batch(self, batch: Sequence[object]) -> None:
        with self._news:
            self._spread(self._roster.take(batch))

    def _on_end(self) -> None:
        """The follower follows no more: because the cluster has ended, or because it was told to."""
        with self._news:
            if self._launched is not None and self._launched.wait(0) is not None:
                self._spread(self._roster.end())
            self._tell()

    def _spread(self, happened: Sequence[Happening]) -> None:
        for happening in happened:
            kind, worker = happening.kind, happening.worker
            self._happened[kind] = (self._happened.get(kind, (0, None))[0] + 1, worker)
            for fn in self._functions.get(kind, ()):
                if self._callbacks is not None:
                    self._callbacks.put(fn, self if kind == "setup" else worker)
        self._tell()

    def _tell(self) -> None:
        """Wake those who wait for news."""
        with self._news:
            self._batches += 1
            self._news.notify_all()

    def _has_ended(self) -> bool:
        return self._closed or (self._launched is not None and self._launched.wait(0) is not None)

    def _open(self) -> Launched:
        if os.getpid() != self._pid:
            raise ClusterError("this handle belongs to the process that made it; a forked child may attach its own")
        if self._launched is None or self._closed:
            raise ClusterError(
                "this handle is not open; use it inside its 'with' block, or between start() and stop()"
            )
        return self._launched

    def _ask(self, verb: str, args: object, timeout_s: float) -> msgspec.Raw:
        self._open()
        assert self._follower is not None
        return self._follower.ask(verb, msgspec.Raw(msgspec.msgpack.encode(args)), timeout_s)


class Totals(Mapping[str, int]):
    """The totals of a cluster as last heard of, by counter name: a live, read-only view."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster

    def __getitem__(self, name: str) -> int:
        return self._roster.totals[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._roster.totals)

    def __len__(self) -> int:
        return len(self._roster.totals)

    def __repr__(self) -> str:
        return f"{self._roster.totals!r}"


def _count_handles(change: int) -> None:
    """While this process has a handle open, a Counter of it must not count: it is no part of the cluster."""
    global _open_handles
    with _open_lock:
        _open_handles += change
        if current.role in ("none", "handle"):  # a worker that opens a handle is still a worker
            current.role = "handle" if _open_handles else "none"
