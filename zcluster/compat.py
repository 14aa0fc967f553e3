"""Node's `cluster` module, name for name: the shape of its programs, on a zcluster.

```python
from zcluster import compat as cluster

if cluster.is_primary:
    cluster.setup_primary(bind="127.0.0.1:8000")
    for _ in range(4):
        cluster.fork()
    cluster.on("exit", lambda worker, code, signal: cluster.fork())
else:
    app = ...  # the WSGI application: workers import this very file
```
The first `fork` starts a cluster without workers, and asks for one, as every later `fork` does. As in Node the
program lives as long as its workers: after its last line it waits until `disconnect` has ended the last one.

What is not as in Node: a worker that dies is replaced whether or not anybody listens. So that the program above has
four workers in the end, and not ever more, `fork()` in a callback for the `exit` of a worker that is being replaced
returns the replacement.

Invariant: importing this starts nothing; a process has one cluster of this kind at most.
"""

import sys
import threading
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zcluster import current
from zcluster.callbacks import Callback, Callbacks, Listener
from zcluster.core.messages import Size
from zcluster.errors import ClusterError, ConfigError
from zcluster.news import EVENTS
from zcluster.roster import Worker
from zcluster.whoami import worker as worker

if TYPE_CHECKING:
    from zcluster.cluster import Cluster

    is_primary: bool  # this process is no worker, and does not import the app for one
    is_worker: bool
    workers: dict[int, Worker]  # those that live, by id
    settings: Mapping[str, Any]  # empty until the first `setup_primary` or `fork`
    exited_after_disconnect: bool | None  # of this worker, when it leaves; until then, and in the primary, None

__all__ = [
    *("disconnect", "exited_after_disconnect", "fork", "is_primary", "is_worker", "on", "settings", "setup_primary"),
    *("worker", "workers"),
]

_lock = threading.RLock()  # guards what follows
_clusters: "list[Cluster]" = []  # the one, when it has been made
_functions: list[tuple[str, Callback]] = []  # registered so far: another one is made after a start that failed
_callbacks = Callbacks("zcluster-callbacks")  # while there is none
_exiting: ContextVar[Worker | None] = ContextVar("_exiting", default=None)  # whose exit is being told in this thread


def __getattr__(name: str) -> Any:
    if name in ("is_primary", "is_worker"):
        return (current.role in ("worker", "zygote")) == (name == "is_worker")
    if name == "workers":
        return _clusters[0].workers if _clusters else {}
    if name == "settings":
        return _clusters[0].settings if _clusters else {}
    if name == "exited_after_disconnect":
        return worker.exited_after_disconnect if worker else None
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def setup_primary(**options: Any) -> None:
    """Change the settings: `app` (default: `app` of the program's own file), and the options of `Cluster.setup`.

    Each call is told to callbacks for `setup`. After the first `fork` only `env` can be changed.
    """
    with _lock:
        _made(options).setup(**options)


def fork(env: Mapping[str, str] | None = None) -> Worker:
    """Have one worker more, and return it when it has been forked; `env`: what it has in its environment besides.

    In a callback for the exit of a worker that is replaced without our doing: the one that replaces it. Raises
    `ClusterError` in a worker, and what `Cluster.start` and `Cluster.fork` raise.
    """
    with _lock:
        cluster = _started()
    exiting = _exiting.get()
    if exiting is not None:
        _exiting.set(None)  # a second fork in this callback is one more
        replacement = cluster._ordering().replacement(exiting)
        if replacement is not None:
            return replacement
    return cluster.fork(env)


def disconnect(callback: Callable[[], object] | None = None) -> None:
    """Let all workers finish and leave; returns at once. `callback` is called when all are gone, and not before."""
    with _lock:
        has_started = bool(_clusters and _clusters[0].name)
    if has_started:
        _clusters[0].disconnect(callback or _nothing)
    elif callback is not None:
        _callbacks.put(callback)


def on(event: str, fn: Callback | None = None) -> Any:
    """Have `fn` called at each such event, with the arguments that Node gives; a function may take fewer.

    Also a decorator; returns `fn`. Who registers late is told of the forks, onlines and listenings that have been.
    """
    if fn is None:
        return lambda function: on(event, function)
    if event not in EVENTS:
        raise ClusterError(f"there is no event {event!r}; events are {', '.join(EVENTS)}")
    told = _exit_teller(fn) if event == "exit" else fn
    with _lock:
        _functions.append((event, told))
        if _clusters:
            _clusters[0].on(event, told)
    return fn


def _exit_teller(fn: Callback) -> Callback:
    listener = Listener(fn)

    def tell(dead: Worker, code: int | None, signal: int | None) -> None:
        token = _exiting.set(dead)
        try:
            listener(dead, code, signal)
        finally:
            _exiting.reset(token)

    return tell


def _nothing() -> None:
    """Node's `disconnect` needs no callback."""


def _made(options: Mapping[str, Any]) -> "Cluster":
    from zcluster.cluster import Cluster  # a worker, which imports this module too, has no use for it

    if not _clusters:
        cluster = Cluster(options.get("app") or _own_app())
        cluster._first = Size(())
        cluster._news.replays = True
        for event, fn in _functions:
            cluster.on(event, fn)
        _clusters.append(cluster)
    return _clusters[0]


def _own_app() -> str:
    """Node's workers run the program's own file: its `app`."""
    main = sys.modules.get("__main__")
    spec, path = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None:
        return f"{spec.name}:app"
    if path is None:
        raise ConfigError("this program has no file; name the application: setup_primary(app='module:attribute')")
    return f"{Path(path).stem}:app"


def _started() -> "Cluster":
    if current.role in ("worker", "zygote"):
        raise ClusterError("fork() was called in a worker, or while the app was imported: only the primary forks")
    cluster = _made({})
    if not cluster.name:
        try:
            cluster.start()
        except ClusterError:
            _clusters.clear()
            raise
        threading.Thread(target=_stay, args=(cluster,), name="zcluster-primary").start()
    return cluster


def _stay(cluster: "Cluster") -> None:
    """Keep the program alive as long as there are workers, or are to be; then end the cluster.

    A thread that is no daemon: the interpreter waits for it after the last line of the program. A program that ends
    with a traceback ends at once, and its workers with it.
    """
    threading.main_thread().join()
    try:
        if not hasattr(sys, "last_type"):
            cluster._ordering().await_nobody()
    finally:
        cluster.stop()
