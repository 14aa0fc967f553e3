"""`publish`, `subscribe`, `request`, `gather`: messages between all processes of a cluster.

Invariant: the same code runs everywhere. In a worker these go through its mailbox, in a program through the one
cluster it has a handle on; in neither (a unit test, `flask run`) they reach the subscribers of this process only.

Functions run in a few threads of their own (`bus.pool`), those of one topic one after the other in the order of
publication; one that raises is logged. `subscribe` may be called at import: what is registered in the zygote is there
in each worker.
"""

import logging
import os
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

from zcluster import current
from zcluster.bus.calls import Delivery, Gathered, decoded, encoded
from zcluster.bus.mailbox import Mailbox, check_topic
from zcluster.bus.pool import Pool
from zcluster.errors import ClusterError, PeerGone

__all__ = ["Delivery", "Gathered", "gather", "publish", "request", "subscribe"]

log = logging.getLogger("zcluster.messages")

REQUEST_TIMEOUT_S: Final = 1.0  # a worker that lives answers in a millisecond; a web request cannot wait much longer
GATHER_TIMEOUT_S: Final = 0.5

_F = TypeVar("_F", bound=Callable[..., Any])
_local: dict[int, Pool] = {}  # by process (threads do not cross a fork): made when something is published outside


def subscribe(topic: str, *, on_lost: Callable[[int], Any] | None = None) -> Callable[[_F], _F]:
    """Decorate a function that is to be called with everything published on `topic`.

    What it returns is its reply to a `gather`. `on_lost` is called with the number of messages that this process has
    missed (it was stopped, or too slow, for longer than they are kept). Raises `BusError` for what is no topic.
    Thread-safe; may be called at import.
    """
    check_topic(topic)

    def register(function: _F) -> _F:
        current.subscriptions.subscribe(topic, function)
        if on_lost is not None:
            current.subscriptions.on(f"lost:{topic}", on_lost)
        return function

    return register


def publish(topic: str, payload: object, *, reliable: bool = False) -> Delivery:
    """Publish to every subscriber of `topic` in all workers and handles, this process included, one copy each.

    Returns a future that resolves when everybody has been told. A subscriber that was stopped for long may miss some:
    it is told so, and what is `reliable` is sent to it again (the master keeps 64 MiB of it, within the last 50,000
    pieces of all topics). Raises `TypeError` for a payload that cannot be encoded, `TooLarge` beyond 32 MiB,
    `QueueFull` when too much waits. Thread-safe.
    """
    mailbox = _mailbox("publish")
    if mailbox is not None:
        return mailbox.publish(topic, payload, reliable=reliable)
    check_topic(topic)
    pool = _local.get(os.getpid()) or _local.setdefault(os.getpid(), Pool("zcluster-messages", daemon=True))
    delivery, body = Delivery(pool), encoded(payload)
    for function in current.subscriptions.of_topic(topic):
        pool.put(topic, partial(_call, function, body))
    delivery.set_result(None)
    return delivery


def _call(function: Callable[[Any], Any], body: bytes) -> None:
    try:
        function(decoded(body))
    except Exception:  # the user's, as in a mailbox: told, and no reason to lose the rest
        log.exception("a function registered for messages raised: %r", function)


def request(target: int | str, payload: object, timeout: float = REQUEST_TIMEOUT_S) -> Any:
    """Ask one process and return its reply: what the function it registered for messages returns.

    `target` is a worker's id, "slot:2", "any" or "master-handle" (the program that started the cluster). `timeout` is
    in seconds. Raises `NoReply`, `PeerGone`, `RequestFailed` (the function there raised, or there is none), and what
    `publish` raises. Thread-safe; not to be called at import.
    """
    mailbox = _mailbox("request")
    if mailbox is None:
        raise PeerGone(f"request({target!r}) was called outside a cluster: there is nobody to ask")
    return mailbox.request(target, payload, timeout)


def gather(topic: str, payload: object = None, timeout: float = GATHER_TIMEOUT_S) -> Gathered:
    """Ask the subscribers of `topic` in all ready workers; returns `(replies, missing)`.

    `replies` maps a worker's id to what its function returned, `missing` the ids of the others to the reason: it has
    not replied in `timeout` seconds, has ended, has no subscriber, or its function raised. Never fails as a whole.
    """
    mailbox = _mailbox("gather")
    if mailbox is not None:
        return mailbox.gather(topic, payload, timeout)
    check_topic(topic)
    body = encoded(payload)
    functions = current.subscriptions.of_topic(topic)
    try:
        results = [function(decoded(body)) for function in functions]
    except Exception as error:  # the user's: told as it would be by a worker
        log.exception("a function that should have replied raised: %r", functions)
        return Gathered({}, {0: f"{type(error).__name__}: {error}"})
    return Gathered({0: next((result for result in results if result is not None), None)} if results else {}, {})


def _mailbox(what: str) -> Mailbox | None:
    """The mailbox to use; None outside a cluster."""
    mailbox: Mailbox | None = current.mailbox
    if mailbox is not None:
        return mailbox
    if current.role == "handle":
        raise ClusterError(
            f"{what}() was called in a program with several clusters, or none that is open; use cluster.{what}()"
        )
    if current.role in ("zygote", "forked"):
        where = "while the app is imported" if current.role == "zygote" else "in a child that the app has forked"
        raise ClusterError(f"{what}() was called {where}, in a process that is no part of the cluster's bus")
    return None
