"""What every handle on a cluster has, whether it started the cluster or found it: it knows, hears, and talks.

Invariant: nothing of the cluster lives in this process, so closing a handle, or killing the process that holds it,
takes nothing from a cluster that somebody else started.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

import msgspec

from zcluster import current
from zcluster.callbacks import END_TIMEOUT_S, Callback
from zcluster.core.messages import Snapshot
from zcluster.errors import ClusterError
from zcluster.follower import Follower
from zcluster.launched import Launched
from zcluster.news import EVENTS, News
from zcluster.orders import ANSWER_TIMEOUT_S, FLUSH_TIMEOUT_S, Orders
from zcluster.roster import Roster, Worker, ps_form
from zcluster.subscriptions import Function, Subscriptions

if TYPE_CHECKING:
    from zcluster.bus.mailbox import Delivery, Gathered, Mailbox
    from zcluster.config import Config

log = logging.getLogger("zcluster.handle")

WAIT_TIMEOUT_S: Final = 30.0  # of wait_for: longer than anything healthy takes, shorter than a test run

_T = TypeVar("_T")
_lock = threading.Lock()
_open_handles: "list[Handle]" = []


class Handle:
    """Following one cluster. Any thread may use it; a child forked by this program may not."""

    def __init__(self) -> None:
        self._config: Config | None = None  # None: attached
        self._pid = os.getpid()
        self._launched: Launched | None = None
        self._follower: Follower | None = None
        self._mailbox: Mailbox | None = None
        self._orders: Orders | None = None
        self._subscriptions = Heard(self)
        self._closed = False
        self._news = News(self._ordering)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._follower else "not started"
        return f"<{type(self).__name__} {self._config.app if self._config else self.name!r} {state}>"

    def close(self) -> None:
        """Let go of the cluster without ending it. What was sent is received first, if that takes no longer than 5 s.

        What has happened so far is still told to callbacks, for another 5 s.

        A cluster that this handle started ends with this program, or by `stop`. A second call does nothing.
        """
        if os.getpid() != self._pid:  # first of all: in a forked child our locks may be held for ever
            return
        if not self._closed:
            self._flush()
        with self._news.changed:
            if self._closed:
                return
            self._closed = True
            self._news.tell()
        if self._follower is not None:
            self._follower.close()
            _register(self, is_open=False)
        self._news.callbacks.close()
        if self._mailbox is not None and not self._mailbox.close("this handle was closed", END_TIMEOUT_S):
            log.error("a function for messages is still running %g s after the end of the handle", END_TIMEOUT_S)
        if self._launched is not None:
            self._launched.close()

    def _begin_again(self) -> None:
        """A start has failed and nothing is left of it: be as before, with all that was registered and set up."""
        self._launched = self._follower = self._mailbox = self._orders = None
        self._news = self._news.renewed(self._ordering)
        self._closed = False

    # ---- what is known ---------------------------------------------------------------------------------------------
    @property
    def name(self) -> str:
        """Its name, for `zcluster ps --name`; empty before the start."""
        return Path(self._launched.run_dir).parent.name if self._launched is not None else ""

    @property
    def urls(self) -> tuple[str, ...]:
        """Where it listens, in the order of `bind`, with the real port numbers; empty before the start."""
        seen = self._news.roster.snapshot
        return seen.urls if seen is not None else ()

    @property
    def url(self) -> str:
        """The first of `urls`; empty before the start."""
        return self.urls[0] if self.urls else ""

    @property
    def workers(self) -> dict[int, Worker]:
        """The workers that live, by id, as last heard of; a copy, of workers that are themselves kept up to date.

        One that disconnects is among them until it has exited.
        """
        return dict(self._news.roster.workers)

    @property
    def counters(self) -> Mapping[str, int]:
        """The totals by counter name, kept up to date: at most about 50 ms old. `snapshot()` asks for exact ones."""
        return Totals(self._news.roster)

    @property
    def dropped(self) -> dict[str, int]:
        """What this handle did not tell its callbacks, by reason; a reason that has not occurred is not in it."""
        counts = {**self._news.dropped, "callbacks behind one that does not return": self._news.callbacks.lost}
        if self._mailbox is not None:
            counts["messages of those who have ended"] = self._mailbox.dropped
        return {reason: count for reason, count in counts.items() if count}

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
        """Have `fn` called at each such event. Also a decorator; returns `fn`.

        Events and arguments: setup(settings), fork(worker), online(worker), listening(worker, address),
        message(worker, payload), disconnect(worker), exit(worker, exitcode, signal), error(worker or None, text),
        reload(generation). A function may take fewer; what has a default is not counted.

        Callbacks of a handle run one after the other in a thread of its own, in the order of the events; one that
        raises is logged. On a handle from `attach` the workers that are there already are told first. On one that has
        started its cluster, messages are kept (1,000, or 16 MiB) until the first function for them is registered.
        What a function for messages returns, if it is not None, answers a `request` to this handle.
        """
        if fn is None:
            return lambda function: self.on(event, function)
        self._news.on(event, fn)
        if event == "message":
            self._subscriptions.on("message", fn)
        return fn

    def wait_for(self, what: "str | Callable[[], _T]", timeout_s: float = WAIT_TIMEOUT_S) -> "_T | Worker | None":
        """Wait for the next event of this name, and return its worker; or until a function returns something true.

        A function is called, without arguments, whenever there is news; it sees what has happened before the call,
        too: `worker.kill(); cluster.wait_for(worker.is_dead)`. Raises `ClusterError` after `timeout_s` seconds, or
        when the cluster ends first. In a callback it holds up all other callbacks.
        """
        self._open()
        news = self._news
        if isinstance(what, str):
            if what not in EVENTS:
                raise ClusterError(f"there is no event {what!r}; events are {', '.join(EVENTS)}")
            name, before = what, news.count(what)
            self._await(lambda: news.count(name) > before, f"event {what!r}", timeout_s)
            return news.last(what)
        return self._await(what, getattr(what, "__qualname__", repr(what)), timeout_s)

    def _await(self, condition: Callable[[], _T], description: str, timeout_s: float) -> _T:
        value: list[_T] = []  # of the evaluation that was true: the next one may not be

        def is_over() -> object:
            value[:] = [condition()]
            return value[0] or self._has_ended()

        self._news.wait_until(is_over, timeout_s)
        value[0] = value[0] or condition()  # the end may have brought what was waited for
        if not value[0]:
            ended = "the cluster has ended" if self._has_ended() else f"{timeout_s:g} s are over"
            raise ClusterError(f"waited for {description}, but {ended}")
        return value[0]

    # ---- messages --------------------------------------------------------------------------------------------------
    def broadcast(self, payload: Any) -> "dict[int, Delivery]":
        """Send a message to each worker that is connected; returns the futures of `Worker.send`, by worker id.

        Raises what `Worker.send` raises; a worker that ends meanwhile is left out, or its future raises `PeerGone`.
        """
        return self._ordering().send_to_all(payload)

    def publish(self, topic: str, payload: Any, *, reliable: bool = False) -> "Delivery":
        """Publish to the subscribers of a topic in all workers and handles, this one included.

        The future resolves when the master has passed it on. `reliable`: whoever misses it, because it is slow or the
        master dies, gets it again. Raises as `Worker.send` does.
        """
        return self._mail().publish(topic, payload, reliable=reliable)

    def subscribe(
        self, topic: str, fn: Function | None = None, *, on_lost: Callable[[int], Any] | None = None
    ) -> Any:
        """Have `fn(payload)` called with what is published on a topic from now on. Also a decorator; returns `fn`.

        It runs in a thread for messages: of one topic one call at a time, in order. `on_lost` is called with the
        number of messages that this handle has missed. Raises `BusError` for what cannot be a topic.
        """
        from zcluster.bus.mailbox import check_topic

        check_topic(topic)
        if fn is None:
            return lambda function: self.subscribe(topic, function, on_lost=on_lost)
        self._subscriptions.subscribe(topic, fn)
        if on_lost is not None:
            self._subscriptions.on(f"lost:{topic}", on_lost)
        return fn

    def request(self, target: int | str, payload: Any, timeout: float = 1.0) -> Any:
        """Ask a worker (its id, "slot:2", "any") or the handle that started the cluster ("master-handle").

        Returns what its function for messages returns. Raises `NoReply` after `timeout` seconds, `PeerGone` when it
        has ended, `RequestFailed` when its function raised or there is none.
        """
        return self._mail().request(target, payload, timeout)

    def gather(self, topic: str, payload: Any = None, timeout: float = 0.5) -> "Gathered":
        """Ask all subscribers of a topic in the workers; returns (replies, missing), both by worker id.

        It never fails as a whole: whoever does not reply within `timeout` seconds is missing, with the reason.
        """
        return self._mail().gather(topic, payload, timeout)

    def _reply(self, fn: Function, sender: str, payload: Any) -> Any:
        """Answer a request with what a callback returns: in line with all others, as callbacks are promised."""
        return self._news.call(fn, sender, payload)

    # ---- inside ----------------------------------------------------------------------------------------------------
    def _follow(self, run_dir: str, heartbeat_s: float, *, messages: bool) -> None:
        assert self._launched is not None
        owner = self._config is not None
        self._news.keeps_mail = self._news.keeps_mail and owner
        self._news.replays = self._news.replays or not owner
        if messages:
            from zcluster.bus.mailbox import Mailbox

            self._mailbox = Mailbox(
                f"handle:{os.getpid()}-{os.urandom(4).hex()}",
                self._subscriptions,
                self._ring,
                deliver=self._news.mail,
                call=self._reply,
                daemon=True,
            )
        self._follower = Follower(
            run_dir, self._launched.fd, heartbeat_s, self._news.take, self._on_end, mailbox=self._mailbox, owner=owner
        )
        self._orders = Orders(self._news, self._follower, self._mailbox, self._has_ended)
        _register(self, is_open=True)
        self._follower.start()

    def _flush(self) -> None:
        """Let what was sent be received, by whoever is there to receive it."""
        if self._mailbox is not None and not self._has_ended():
            try:
                self._mailbox.flush().exception(FLUSH_TIMEOUT_S)
            except TimeoutError:
                log.warning("some messages have not been received within %g s; they are given up", FLUSH_TIMEOUT_S)

    def _ring(self) -> None:
        if self._follower is not None:
            self._follower.ring()

    def _on_end(self) -> None:
        """The follower follows no more: because the cluster has ended, or because it was told to."""
        self._news.end(has_ended=self._launched is not None and self._launched.wait(0) is not None)

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

    def _ordering(self) -> Orders:
        self._open()
        assert self._orders is not None
        return self._orders

    def _mail(self) -> "Mailbox":
        self._open()
        if self._mailbox is None:
            raise ClusterError("this handle was attached without messages (messages=False)")
        return self._mailbox

    def _ask(self, verb: str, args: object, timeout_s: float | None) -> msgspec.Raw:
        self._open()
        assert self._follower is not None
        return self._follower.ask(verb, args, timeout_s)


class Heard(Subscriptions):
    """What is registered on a handle; and on the module, while this is the one handle that module functions go by."""

    def __init__(self, handle: Handle) -> None:
        super().__init__()
        self._handle = handle

    def of_event(self, event: str) -> tuple[Function, ...]:
        """The functions of an event; those of the module hear of losses only, messages are a worker's."""
        shared = current.subscriptions.of_event(event) if event.startswith("lost:") and self._is_the_one() else ()
        return super().of_event(event) + shared

    def of_topic(self, topic: str) -> tuple[Function, ...]:
        """The functions of a topic."""
        return super().of_topic(topic) + (current.subscriptions.of_topic(topic) if self._is_the_one() else ())

    def has_topics(self) -> bool:
        """Whether anything is subscribed to."""
        return super().has_topics() or (self._is_the_one() and current.subscriptions.has_topics())

    def _is_the_one(self) -> bool:
        return self._handle._mailbox is not None and current.mailbox is self._handle._mailbox


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


def _forget_in_child() -> None:
    """In a child that this program forks: its handles are not ours, and their mailboxes deliver nothing here."""
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it
    if _open_handles and current.role == "handle":
        current.mailbox = current.subscriptions.changed = None
    _open_handles.clear()


os.register_at_fork(after_in_child=_forget_in_child)


def _register(handle: Handle, *, is_open: bool) -> None:
    """While this process has a handle open, a Counter of it must not count: it is no part of the cluster.

    And while it has just one, `zcluster.publish` and its like go by that one.
    """
    with _lock:
        if is_open:
            _open_handles.append(handle)
        else:
            _open_handles.remove(handle)
        if current.role in ("none", "handle"):  # a worker that opens a handle is still a worker
            current.role = "handle" if _open_handles else "none"
            only = _open_handles[0] if len(_open_handles) == 1 else None
            current.mailbox = only._mailbox if only is not None else None
            current.subscriptions.changed = only._ring if only is not None else None
