"""`Counter`: numbers that the whole cluster counts together, exact whatever dies.

Invariant: in a worker an increment is one store into this worker's own cell, done before `incr` returns and never
undone; everything after it (waking the bus, summing, waiting for the disk) only reports.

Theory of operation
-------------------
Counters are declared anywhere, also at import in the zygote: the declaration is only recorded. After the fork the
worker's body calls `bind_all`, which registers the names and gives every counter its cell and a live view of all
cells. What `incr` does otherwise depends on the process (`current.role`): outside a cluster a counter is a plain
number of this process; where counting would be lost or doubled (zygote, handle, a child the application forked) it
raises.

Dirty marks: the first increment after a flush marks the counter and wakes the bus thread; later ones find it marked.
`take_dirty` clears the mark first and reads the cell second, under the counter's lock, so an increment is either in
the value it returns or wakes again. What is sent are running values: losing or repeating them does no harm.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from zcluster import current
from zcluster.core.ledger import CELL_MAX, COUNTERS_MAX, W_USED_LANES, Ledger, check_name
from zcluster.errors import ClusterError, ConfigError

log = logging.getLogger("zcluster.counter")

# Waiting for a checkpoint: fsync takes 0.1-20 ms, so the first looks are frequent, the later ones cheap.
_POLL_FIRST_S, _POLL_LAST_S = 0.001, 0.005
_POKE_AGAIN_S: Final = 0.1  # the service may have been replaced after our poke

OnChange = Callable[[int], object]

_registry: "dict[str, Counter]" = {}
_registry_lock = threading.RLock()  # taken before a counter's lock, never after
_dirty: "deque[Counter]" = deque()  # bounded by the registry: a counter enters when its mark is set


class Counter:
    """A counter of the whole cluster, by name; `Counter("a")` is the same object everywhere in a process.

    All methods are safe from any thread. LedgerError for a name that is empty, longer than 100 bytes of UTF-8, or
    holds control characters.
    """

    name: str
    _own: memoryview | None  # cells of our lane: present when bound, and then all of the following are
    _ledger: Ledger | None
    _words: memoryview  # the whole ledger
    _cells: memoryview  # this counter's cells of all lanes in use
    _index: int
    _base: int
    _dirty: bool
    _lock: threading.RLock
    _local: int  # the number itself, outside a cluster
    _callbacks: list[OnChange]  # replaced, never changed: read without a lock
    _told: int  # the largest total handed to the callbacks
    _telling: bool
    _tell_lock: threading.RLock

    def __new__(cls, name: str) -> "Counter":
        """Return the counter of this name; declare it if it is new."""
        check_name(name)
        with _registry_lock:
            counter = _registry.get(name)
            if counter is None:
                if len(_registry) >= COUNTERS_MAX:
                    raise ClusterError(f"{COUNTERS_MAX} counters exist; do not make their names from data")
                counter = super().__new__(cls)
                counter.name = name
                counter._local = 0
                counter._callbacks = []
                counter._told = 0
                counter._telling = False
                counter._new_locks()
                counter._unbind()
                _registry[name] = counter
            return counter

    def __reduce__(self) -> "tuple[type[Counter], tuple[str]]":
        return Counter, (self.name,)

    def __repr__(self) -> str:
        return f"Counter({self.name!r})"

    def incr(self, n: int = 1, *, durable: bool = False, timeout_s: float = 10.0) -> int:
        """Add `n` (an int >= 0) and return the cluster-wide total after it.

        The total is exact but no unique ticket: others count meanwhile. With `durable` it returns after the
        checkpoint that covers the increment is on disk, within `timeout_s`; outside a cluster that has no effect.

        Raises TypeError, ValueError (a wrong `n`), ConfigError (durable without --state; nothing was counted) and
        ClusterError: counting is not possible in this process (nothing was counted), or the checkpoint did not come
        in time (it *was* counted).
        """
        if type(n) is not int or n < 0:
            n = _checked(n)
        own = self._own
        if own is None:
            own = self._bind_or_none("incr()")
            if own is None:
                return self._incr_local(n)
        if durable:
            self._require_state()
        index = self._index
        with self._lock:
            # Read, add, store: nothing between them lets a signal handler or a finalizer of this thread in (CPython
            # looks for those at calls and backward jumps), so even an incr() inside an incr() is not lost.
            value = own[index] + n
            if value > CELL_MAX:
                raise _overflow(self.name, n)
            own[index] = value
            if not self._dirty:
                self._mark()
        cells = self._cells
        if len(cells) != self._words[W_USED_LANES]:
            cells = self._renew_cells()
        total: int = self._base + sum(cells)
        if durable:
            self._wait_for_checkpoint(timeout_s)
        return total

    @property
    def value(self) -> int:
        """The cluster-wide total now, read from shared memory. ClusterError where there is none to read."""
        if self._own is not None or self._bind_or_none("value") is not None:
            cells = self._cells
            if len(cells) != self._words[W_USED_LANES]:
                cells = self._renew_cells()
            return self._base + sum(cells)
        if current.role == "none":
            return self._local
        ledger = current.ledger  # the zygote's: it reads and never registers
        if ledger is None:
            raise _wrong_place(self.name, "value")
        index = ledger.index_of(self.name)
        return 0 if index is None else ledger.total(index)

    def on_change(self, fn: OnChange) -> OnChange:
        """Call `fn(total)` when the total has grown, never with a smaller one than before; returns `fn`.

        In a worker it is called from the thread that dispatches the cluster's totals (changes are coalesced: not
        every total is seen); outside a cluster by `incr` itself. What it raises is logged.
        """
        if not callable(fn):
            raise TypeError(f"on_change takes a callable, not {type(fn).__name__}")
        with self._tell_lock:
            self._callbacks = [*self._callbacks, fn]
        return fn

    # ---- binding ---------------------------------------------------------------------------------------------------
    def _bind(self, ledger: Ledger, lane: int, index: int) -> None:
        with self._lock:
            self._ledger = ledger
            self._index = index
            self._base = ledger.base(index)
            self._words = ledger.words
            self._cells = ledger.cells(index)
            self._dirty = False
            self._own = ledger.lane(lane).cells  # last: from here on incr takes the short way

    def _unbind(self) -> None:
        self._own = self._ledger = None
        self._words = self._cells = memoryview(b"")
        self._index = self._base = 0
        self._dirty = False

    def _new_locks(self) -> None:
        # Re-entrant: a finalizer that counts may run inside this thread's own incr().
        self._lock = threading.RLock()
        self._tell_lock = threading.RLock()

    def _bind_or_none(self, what: str) -> memoryview | None:
        """Our cells, bound now if this is a worker; None where a counter has none and need not have."""
        if current.role == "worker":
            ledger, locks = current.ledger, current.locks
            if ledger is None or locks is None or current.lane < 0:
                raise _wrong_place(self.name, what)
            with _registry_lock:
                if self._own is None:
                    index = ledger.index_of(self.name)
                    if index is None:
                        with locks.names():
                            index = ledger.register(self.name)
                    self._bind(ledger, current.lane, index)
                return self._own
        if current.role not in ("none", "zygote"):
            raise _wrong_place(self.name, what)
        return None

    # ---- the parts of incr that are not the short way --------------------------------------------------------------
    def _incr_local(self, n: int) -> int:
        if current.role != "none":
            raise _wrong_place(self.name, "incr()")
        with self._lock:
            total = self._local + n
            self._local = total
        if self._callbacks:
            self._tell(total)
        return total

    def _mark(self) -> None:
        self._dirty = True
        _dirty.append(self)
        if current.wake is not None:
            current.wake()

    def _renew_cells(self) -> memoryview:
        ledger = self._ledger
        assert ledger is not None, "a bound counter has a ledger"
        self._cells = cells = ledger.cells(self._index)
        return cells

    def _require_state(self) -> None:
        if self._ledger is not None and not self._ledger.has_state:
            raise ConfigError(
                f"{self!r}.incr(durable=True) needs a disk to be durable on: start the cluster with --state DIR"
            )

    def _wait_for_checkpoint(self, timeout_s: float) -> None:
        """Wait for a checkpoint that began after our store: the one numbered `started` may have read before it."""
        ledger = self._ledger
        assert ledger is not None, "a bound counter has a ledger"
        wanted = ledger.checkpoint_started + 1
        now_s = time.monotonic()
        deadline_s, poke_at_s, pause_s = now_s + timeout_s, now_s, _POLL_FIRST_S
        while ledger.checkpoint_done < wanted:
            if now_s >= deadline_s:
                raise ClusterError(
                    f"{self!r}: counted, but no checkpoint was written within {timeout_s:g} s: whether the"
                    " increment is on disk is not known; the log of the checkpoint service says why (disk full?)"
                )
            if now_s >= poke_at_s and current.poke is not None:
                current.poke()
                poke_at_s = now_s + _POKE_AGAIN_S
            time.sleep(min(pause_s, max(deadline_s - now_s, 0.0)))
            pause_s = min(pause_s * 2, _POLL_LAST_S)
            now_s = time.monotonic()

    def _tell(self, total: int) -> None:
        """Hand a total to the callbacks, unless they have seen as much. One at a time: they never see it shrink."""
        with self._tell_lock:
            if total <= self._told or self._telling:
                return  # `_telling`: a callback counts itself; it is told with the next change, not recursively
            self._told = total
            self._telling = True
            try:
                for fn in self._callbacks:
                    _call(fn, self, total)
            finally:
                self._telling = False


def bind_all() -> None:
    """Give every declared counter its cell. For the worker's body, after its lane is locked and `current` is set.

    LedgerError when the names do not fit into the ledger.
    """
    ledger, locks = current.ledger, current.locks
    if current.role != "worker" or ledger is None or locks is None or current.lane < 0:
        raise ClusterError("counters are bound in a worker that has locked its lane, and nowhere else")
    with _registry_lock, locks.names():
        for counter in _registry.values():
            if counter._ledger is not ledger:
                counter._bind(ledger, current.lane, ledger.register(counter.name))


def unbind_all() -> None:
    """Forget cells and dirty marks, as after a fork. The counts stay in the ledger."""
    _dirty.clear()
    for counter in _registry.values():
        counter._unbind()


def take_dirty() -> dict[int, int]:
    """Counters changed since the last call: index -> this worker's running value. For the bus thread."""
    values: dict[int, int] = {}
    for _ in range(len(_dirty)):  # what becomes dirty meanwhile wakes again
        counter = _dirty.popleft()
        with counter._lock:
            counter._dirty = False
            if counter._own is not None:
                values[counter._index] = counter._own[counter._index]
    return values


def put_back(cells: Mapping[int, int]) -> None:
    """Mark what `take_dirty` gave as dirty again, without waking the caller: it knows."""
    with _registry_lock:
        counters = [c for c in _registry.values() if c._own is not None and c._index in cells]
    for counter in counters:
        with counter._lock:
            if not counter._dirty:
                counter._dirty = True
                _dirty.append(counter)


def dispatch(totals: Mapping[str, int]) -> None:
    """Have the `on_change` callbacks told of these totals, in a thread of their own. Never blocks.

    Totals that arrive while a callback runs are merged: the next call gets the largest.
    """
    for name, total in totals.items():
        counter = _registry.get(name)
        if counter is not None and counter._callbacks:
            _teller.put(counter, total)


class _Teller:
    """The thread that runs the application's callbacks, made when the first total for one arrives."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._totals: dict[Counter, int] = {}  # bounded by the registry
        self._thread: threading.Thread | None = None

    def put(self, counter: Counter, total: int) -> None:
        with self._changed:
            self._totals[counter] = max(total, self._totals.get(counter, 0))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="zcluster-on-change", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._totals:
                    self._changed.wait()
                counter, total = self._totals.popitem()
            counter._tell(total)


class _Counting:
    """This module as the worker's body sees it, through `current.counting`."""

    bind_all = staticmethod(bind_all)
    take_dirty = staticmethod(take_dirty)
    put_back = staticmethod(put_back)
    dispatch = staticmethod(dispatch)


def _call(fn: OnChange, counter: Counter, total: int) -> None:
    try:
        fn(total)
    except Exception:
        # The user's code: whatever it raises must not keep the other callbacks from their totals.
        log.exception("%r.on_change: %r raised for total %d; it will be called again", counter, fn, total)


def _checked(n: object) -> int:
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"a counter grows by an int, not {type(n).__name__}")
    if n < 0:
        raise ValueError(f"a counter only grows: {n} is negative")
    return int(n)


def _overflow(name: str, n: int) -> ClusterError:
    return ClusterError(f"Counter({name!r}).incr({n}) was not counted: one worker can count to {CELL_MAX}")


def _wrong_place(name: str, what: str) -> ClusterError:
    told = {
        "handle": f"this process holds a handle on a cluster and counts nothing: read cluster.counters[{name!r}]",
        "forked": "this process was forked by the application and belongs to no cluster: count in the worker itself",
        "zygote": "the application is being imported, once for all workers: move it into a request or a function"
        " that runs in a worker, or start with --no-preload",
        "worker": "this worker has no lane yet: count after it has started",
    }
    return ClusterError(f"Counter({name!r}).{what}: {told.get(current.role, current.role)}")


def _after_fork_in_child() -> None:
    # Another thread of the parent may have held any of these locks at the fork, and no thread of ours came along.
    global _registry_lock, _teller
    _registry_lock = threading.RLock()
    _teller = _Teller()
    for counter in _registry.values():
        counter._new_locks()
        counter._telling = False


_teller = _Teller()
os.register_at_fork(after_in_child=_after_fork_in_child)
current.at_unbind.append(unbind_all)
current.counting = _Counting()
