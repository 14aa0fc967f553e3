"""What callers wait for: that a message is received, that a request is answered.

Invariant: every `Delivery` and every call is settled exactly once, whatever becomes of the receiver; none outlives
the mailbox.
"""

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec

from zcluster.bus.pool import Pool
from zcluster.core.mail import PAYLOAD_MAX_BYTES, Mail, worker_name
from zcluster.core.post import Post
from zcluster.core.streams import Parcel
from zcluster.errors import ClusterError, NoReply, PeerGone, RequestFailed, TooLarge

log = logging.getLogger("zcluster.messages")

TARGET_MAX_CHARS: Final = 64  # as long as the name of a mailbox may be (bus.relay)

_encoder: Final = msgspec.msgpack.Encoder()


class Gathered(NamedTuple):
    """Replies by worker id, and why there is none of the others."""

    replies: dict[int, Any]
    missing: dict[int, str]


def encoded(payload: object) -> bytes:
    """Return a payload's bytes; raises `TypeError` for what msgspec cannot encode, `TooLarge` beyond 32 MiB."""
    try:
        body = _encoder.encode(payload)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise TypeError(
            f"a message of type {type(payload).__name__} cannot be sent: {error}; send None, bool, int (64 bit), "
            "float, str, bytes, datetime, lists, maps, dataclasses or msgspec.Struct of these"
        ) from None
    if len(body) > PAYLOAD_MAX_BYTES:
        raise TooLarge(
            f"a message of {len(body)} bytes; at most {PAYLOAD_MAX_BYTES} can be sent: split it, or send a path"
        )
    return body


def decoded(body: bytes) -> Any:
    """Return what `encoded` was given: dataclasses and structs as maps."""
    return msgspec.msgpack.decode(body)


class Delivery(Future[None]):
    """Resolves when a message has been received by all it was for. Callbacks run in the mailbox's pool."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.set_running_or_notify_cancel()  # what is on its way cannot be called back
        self.to = ""
        self._pool = pool
        self._left = 0
        self._received = 0
        self._reason = ""
        self._then: list[Callable[[str | None], object]] = []

    def add_done_callback(self, fn: Callable[[Future[None]], object]) -> None:
        """As every future's, but `fn` runs in the pool: it is the user's and may block."""
        super().add_done_callback(partial(self._have_run, fn))

    def _have_run(self, fn: Callable[[Future[None]], object], future: Future[None]) -> None:
        if not self._pool.put(None, partial(_run, fn, future)):
            _run(fn, future)  # the pool is closed: in the thread that asks, as of every future that is done

    def expect(self, count: int, to: str) -> None:
        """It goes to so many."""
        self._left, self.to = count, to

    def then(self, fn: Callable[[str | None], object]) -> None:
        """Ours: called when it is settled, under the mailbox's lock."""
        self._then.append(fn)

    def settle(self, failure: str | None) -> bool:
        """One receiver has it, or never will; true when that was the last one."""
        self._left -= 1
        self._received += failure is None
        self._reason = failure or self._reason
        if self._left > 0 or self.done():
            return False
        if self._received or not self._reason:
            self.set_result(None)
        else:
            self.set_exception(PeerGone(self._reason))
        for fn in self._then:
            fn(None)
        return True


def _run(fn: Callable[[Future[None]], object], future: Future[None]) -> None:
    try:
        fn(future)
    except Exception:  # the user's: told, and no reason to lose the rest
        log.exception("a callback of a delivery raised: %r", fn)


class _Call:
    """One request that somebody waits for: by a lock of its own, so that a reply wakes nobody else."""

    __slots__ = ("_gate", "error", "name", "reply")

    def __init__(self, name: str) -> None:
        self.name = name
        self.reply: Any = msgspec.UNSET
        self.error: ClusterError | None = None
        self._gate = threading.Lock()
        self._gate.acquire()

    def is_over(self) -> bool:
        return self.error is not None or self.reply is not msgspec.UNSET

    def end(self) -> None:
        """Let the waiting thread go on; under the lock of the mailbox."""
        if self._gate.locked():
            self._gate.release()

    def wait(self, end: float) -> None:
        """Return when it is over, or at `end` (monotonic seconds)."""
        self._gate.acquire(timeout=min(max(0.0, end - time.monotonic()), threading.TIMEOUT_MAX))


def _reply_of(call: _Call) -> Any:
    try:
        return decoded(call.reply)
    except (ValueError, RecursionError) as error:  # it was given as msgspec.Raw or Ext, which nobody checks
        raise RequestFailed(f"the reply of {call.name} cannot be decoded: {error}") from None


class Calls:
    """The open deliveries and requests of one mailbox, whose lock it shares; `arrived` is notified of all news."""

    def __init__(self, lock: Any) -> None:
        self.arrived = threading.Condition(lock)
        self.deliveries: dict[int, Delivery] = {}
        self._calls: dict[int, _Call] = {}
        self._numbers = itertools.count(1)
        self._turn = 0
        self._closed = ""

    # ---- deliveries, under the lock --------------------------------------------------------------------------------
    def open(self, delivery: Delivery, to: str) -> int:
        """Return the ticket of a new one."""
        ticket = next(self._numbers)
        delivery.to = to
        self.deliveries[ticket] = delivery
        return ticket

    def received(self, parcels: Iterable[Parcel]) -> None:
        """These have arrived."""
        for parcel in parcels:
            self._settle(parcel.ticket, None)

    def failed(self, failed: Iterable[tuple[Parcel, str]]) -> None:
        """These were given up."""
        for parcel, reason in failed:
            self._settle(parcel.ticket, reason)
            call = self._calls.get(parcel.ref) if parcel.kind == "request" else None
            if call is not None:
                call.error = PeerGone(reason)
                call.end()
        self.arrived.notify_all()

    def _settle(self, ticket: int, failure: str | None) -> None:
        delivery = self.deliveries.get(ticket)  # none: it is of a publication that was repeated
        if delivery is not None and delivery.settle(failure):
            del self.deliveries[ticket]

    # ---- requests --------------------------------------------------------------------------------------------------
    def begin(self, name: str) -> tuple[int, _Call]:
        """Return the number of a new request, and what its reply comes into."""
        with self.arrived:
            ref = next(self._numbers)
            call = self._calls[ref] = _Call(name)
            return ref, call

    def forget(self, ref: int) -> None:
        """Nobody waits for it any more."""
        with self.arrived:
            self._calls.pop(ref, None)

    def answered(self, mail: Mail, body: bytes) -> None:
        """A reply or a failure has come."""
        call = self._calls.get(mail.ref)
        if call is None or call.name != mail.sender:
            return
        if mail.kind == "reply":
            call.reply = body
        else:
            try:
                text = str(decoded(body))
            except (ValueError, RecursionError) as error:  # no peer of ours; and this is the link's thread
                text = f"it failed, and the reason cannot be decoded: {error}"
            call.error = RequestFailed(text if text.startswith(mail.sender) else f"{mail.sender}: {text}")
        call.end()

    def lose_targets(self, is_gone: Callable[[str], bool]) -> None:
        """Some receivers have ended: they will not reply."""
        for call in self._calls.values():
            if not call.is_over() and is_gone(call.name):
                call.error = PeerGone(f"{call.name} ended before it replied")
                call.end()
        self.arrived.notify_all()

    def wait(self, ref: int, call: _Call, end: float, timeout_s: float) -> Any:
        """Wait for the reply until `end` and return it."""
        if not self._closed:
            call.wait(end)
        with self.arrived:
            self._calls.pop(ref, None)
        if call.error is not None:
            raise call.error
        if call.reply is msgspec.UNSET:
            if self._closed:
                raise PeerGone(self._closed)
            raise NoReply(f"{call.name} did not reply within {timeout_s:g} s")
        return _reply_of(call)

    def collect(self, open_: dict[int, tuple[int, _Call]], missing: dict[int, str], end: float) -> Gathered:
        """Wait for all of them until `end`; whoever has not replied is missing."""
        for _ref, call in open_.values():
            if not self._closed:
                call.wait(end)
        with self.arrived:
            for ref, _call in open_.values():
                self._calls.pop(ref, None)
        replies: dict[int, Any] = {}
        for id_, (_ref, call) in open_.items():
            if call.error is not None:
                missing[id_] = str(call.error)
            elif call.reply is msgspec.UNSET:
                missing[id_] = "did not reply in time"
            else:
                try:
                    replies[id_] = _reply_of(call)
                except RequestFailed as error:
                    missing[id_] = str(error)
        return Gathered(replies, missing)

    def resolve(self, post: Post, own: str, target: int | str, end: float) -> str:
        """Return the name of whom a request goes to; a slot that is being filled is waited for until `end`."""
        with self.arrived:
            while not (name := self._find(post, own, target)):
                left_s = end - time.monotonic()
                if self._closed:
                    raise PeerGone(self._closed)
                if left_s <= 0 and isinstance(target, int):
                    raise PeerGone(f"there is no worker {target}")
                if left_s <= 0:
                    raise NoReply(f"there was nobody to take the request for {target!r} in time")
                self.arrived.wait(left_s)
            return name

    def _find(self, post: Post, own: str, target: int | str) -> str:
        if isinstance(target, int) and not isinstance(target, bool):
            name = worker_name(target)
            return "" if post.members is not None and post.is_there(name) is None else name
        if not isinstance(target, str) or len(target) > TARGET_MAX_CHARS:
            raise _no_target(target)
        if target == "any":
            ids = post.workers()
            others = [id_ for id_ in ids if worker_name(id_) != own] or ids
            self._turn += 1
            return worker_name(others[self._turn % len(others)]) if others else ""
        if target == "master-handle":
            handles = post.members.handles if post.members is not None else {}
            return next((name for name, owner in handles.items() if owner), next(iter(handles), ""))
        kind, _, rest = target.partition(":")
        if kind == "slot" and rest.isdecimal():
            ids = post.workers(slot=int(rest))
            return worker_name(max(ids)) if ids else ""
        if kind in ("worker", "handle") and rest:
            return target
        raise _no_target(target)

    def close(self, reason: str) -> None:
        """Nothing will come any more."""
        self._closed = reason
        for call in self._calls.values():
            call.end()
        self.arrived.notify_all()


def _no_target(target: object) -> ClusterError:
    return ClusterError(
        f"{target!r:.80} is no target of a request; give a worker's id, 'slot:N', 'any' or 'master-handle'"
    )
