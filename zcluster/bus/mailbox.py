"""A peer's mailbox: what it sends to others and publishes, and the functions that are called with what it receives.

Invariant: the thread that owns the link never runs a function of the user and never waits for one; and a message
that a future has called received is handled before this process ends in an orderly way.

Theory of operation. `send` and its like encode in the caller's thread, put a parcel into the `Post` and ring. The
link's thread gives everything it hears to `take` and calls `pump` once per turn, which hands pieces to the link as
far as windows and queues allow, and says what has been received. Functions run in a `Pool`: those for messages of one
sender, or on one topic, in order; requests side by side.
"""

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Literal

from zcluster.bus.calls import Calls, Delivery, Gathered, encoded
from zcluster.bus.link import Link
from zcluster.bus.pool import Pool
from zcluster.bus.reception import Deliver, Reception
from zcluster.core.codec import MAX_TOPIC_BYTES
from zcluster.core.joining import Joined, Refreshed
from zcluster.core.mail import MASTER, TOPICS, Got, Kind, Mail, Members, Publication, Replayed, worker_name
from zcluster.core.messages import Snapshot, Tick
from zcluster.core.post import HANDLES, Post
from zcluster.core.streams import Parcel
from zcluster.errors import BusError, PeerGone
from zcluster.subscriptions import Function, Subscriptions

log = logging.getLogger("zcluster.messages")

PIECES_PER_PUMP: Final = 256  # some 5 ms; then the thread looks at what has come
PIECES_AT_ONCE: Final = 4  # that whoever sends hands to the socket itself: more would make a large message block it


def _plainly(function: Function, _sender: str, payload: Any) -> Any:
    return function(payload)


class Mailbox:
    """Any thread may call what stands before "the link's thread".

    `wake` makes the link's thread call `pump`; it must not block. `deliver` takes messages instead of the registered
    functions (a handle puts them in line with its other events): it is given the sender's name, the size in bytes,
    and a function that returns the payload, to be called exactly once. `call` says how a function is called. `daemon`
    threads do not hold up the end of the program.
    """

    def __init__(
        self,
        name: str,
        subscriptions: Subscriptions,
        wake: Callable[[], None],
        *,
        deliver: Deliver | None = None,
        call: Callable[[Function, str, Any], Any] = _plainly,
        daemon: bool = False,
    ) -> None:
        self.name, self.wake = name, wake
        self.subscriptions = subscriptions
        self.pool = Pool("zcluster-messages", daemon=daemon)
        self.dropped = 0  # mail of senders that have ended
        self._lock = threading.RLock()  # guards the post and the calls
        self._post = Post(name)
        self._calls = Calls(self._lock)
        self._serial = 0
        self._skipped = False  # a handle that does not read was told of
        self._closed = ""
        self._epoch = 0
        self._is_linked = self._follows = False
        self._post_due = 0.0  # as the last `pump` has left it; what is put since then has rung
        self._link: Link | None = None  # since its thread has pumped for the first time
        self._link_thread = 0
        self._more = False  # pieces could be sent, had the last turn been longer
        self._reception = Reception(
            name, subscriptions, self.pool, self._reply, self._ring, deliver=deliver, call=call
        )
        subscriptions.changed = self._ring

    # ---- for any thread --------------------------------------------------------------------------------------------
    def send(self, to: str, payload: object) -> Delivery:
        """Send a message to a worker ("worker:17"), a handle, or all handles ("handles").

        Returns a future that resolves when it has been received, by all of them, and raises `PeerGone` when the
        receiver has ended, or ends before. Raises `TypeError` for a payload that msgspec cannot encode, `TooLarge`
        and `QueueFull`, at once.
        """
        body = encoded(payload)
        try:
            return self._put(to, "message", body)
        except PeerGone as error:  # not raised here: a loop over all workers goes on to the next
            return self.failed(str(error))

    def failed(self, reason: str) -> Delivery:
        """Return what `send` returns for a receiver that is known to have ended."""
        delivery = Delivery(self.pool)
        delivery.settle(reason)
        return delivery

    def publish(self, topic: str, payload: object, *, reliable: bool = False) -> Delivery:
        """Publish to every subscriber of a topic; the future resolves when the master has told everybody."""
        check_topic(topic)
        return self._put(MASTER, "publish", encoded(payload), topic=topic, reliable=reliable)

    def request(self, target: int | str, payload: object, timeout_s: float) -> Any:
        """Send a request and return the reply; waits, so never to be called from the link's thread.

        `target`: a worker's id, "slot:N", "any" (ready workers in turn, others than this one if there are any),
        "master-handle" (of the program that started the cluster) or a name. Raises `NoReply` after `timeout_s`
        seconds, `PeerGone` when the target has ended, `RequestFailed` when its function raised or there is none.
        """
        end = time.monotonic() + timeout_s
        body = encoded(payload)
        name = self._calls.resolve(self._post, self.name, target, end)
        ref, call = self._calls.begin(name)
        try:
            self._put(name, "request", body, ref=ref)
        except BaseException:
            self._calls.forget(ref)
            raise
        return self._calls.wait(ref, call, end, timeout_s)

    def gather(self, topic: str, payload: object, timeout_s: float) -> Gathered:
        """Ask the subscribers of a topic in all ready workers; returns their replies, and who is missing and why."""
        check_topic(topic)
        end = time.monotonic() + timeout_s
        body = encoded(payload)
        with self._lock:
            ids = self._post.workers()
            there = self._post.members.workers if self._post.members is not None else {}
        asked: dict[int, tuple[int, Any]] = {}
        missing = {id_: "has not started yet, or is leaving" for id_ in there if id_ not in ids}
        for id_ in ids:
            ref, call = self._calls.begin(worker_name(id_))
            try:
                self._put(call.name, "request", body, ref=ref, topic=topic)
            except BusError as error:
                self._calls.forget(ref)
                missing[id_] = str(error)
            else:
                asked[id_] = (ref, call)
        return self._calls.collect(asked, missing, end)

    def flush(self, to: str = "") -> Delivery:
        """Return a future that resolves when all that was sent so far (to this name) is received or given up."""
        delivery = Delivery(self.pool)
        with self._lock:
            waiting = [before for before in self._calls.deliveries.values() if to in ("", before.to)]
            delivery.expect(len(waiting) + 1, to)
            for before in waiting:
                before.then(delivery.settle)
            delivery.settle(None)
        return delivery

    def run(self, event: str) -> None:
        """Have the functions of an event called, without arguments."""
        for function in self.subscriptions.of_event(event):
            self.pool.put(("event", event), partial(self._reception.guard, function))

    def _put(
        self, to: str, kind: Kind, body: bytes, *, topic: str = "", ref: int = 0, reliable: bool = False
    ) -> Delivery:
        delivery = Delivery(self.pool)
        with self._lock:
            if self._closed:
                raise PeerGone(self._closed)
            serial = self._serial + 1 if kind == "publish" else 0
            parcel = Parcel(kind, body, self._calls.open(delivery, to), ref, topic, reliable, serial)
            try:
                copies = self._post.put(to, parcel, time.monotonic(), force=kind in ("reply", "failure"))
            except BaseException:  # whatever it is: nobody will settle this one
                del self._calls.deliveries[parcel.ticket]
                raise
            self._serial = serial or self._serial  # those of what was taken have no hole
            delivery.expect(max(1, copies), to)
            skipped, self._skipped = self._post.skipped and not self._skipped, self._post.skipped > 0
            is_sent = self._send_at_once()
        if skipped:
            log.warning("a program that holds a handle does not read its messages: it is sent no more of them")
        if not is_sent:
            self.wake()
        return delivery

    def _send_at_once(self) -> bool:
        """Send what there is, under the lock; false when the link's thread has to go on with it."""
        link = self._link
        if link is None or threading.get_ident() == self._link_thread:
            return False
        is_alone = True
        for count, (stream, mail) in enumerate(self._post.pieces()):
            is_sent = count < PIECES_AT_ONCE and link.post_at_once(mail)
            if is_sent is False:
                return False
            stream.sent(time.monotonic())
            is_alone = is_alone and is_sent is True
        return is_alone

    def _reply(self, request: Mail, kind: Literal["reply", "failure"], body: bytes) -> None:
        try:
            self._put(request.sender, kind, body, ref=request.ref)
        except PeerGone as error:
            log.debug("nobody waits for a reply any more: %s", error)

    def _ring(self) -> None:
        self.wake()

    def attach(self, wake: Callable[[], None], on_exit: Callable[[int], None]) -> None:
        """The link exists: from now on somebody can be woken, and told of a SystemExit."""
        self.wake = wake
        self._reception.on_exit = on_exit
        self.wake()

    # ---- the link's thread -----------------------------------------------------------------------------------------
    def take(self, item: object, now: float) -> None:
        """Look at something the link has delivered; what is not mail, nor about who is there, is ignored."""
        match item:
            case Mail():
                self._on_mail(item)
            case Got():
                with self._lock:
                    self._calls.received(self._post.got(item, now))
            case Publication():
                self._reception.published(item)
            case Replayed():
                self._reception.hand_out(self._reception.subscriber.replayed(item))
            case Members():
                self._learn(item, now)
            case Joined(snapshot=snapshot):
                self._on_joined(snapshot, now)
            case Refreshed(snapshot=snapshot) if snapshot.members is not None:
                self._learn(snapshot.members, now)
            case Tick(epoch=epoch, heads=heads):
                self._reception.subscriber.heads(epoch, heads.get(TOPICS, 0))

    def _on_mail(self, mail: Mail) -> None:
        if mail.to != self.name:
            return
        if self._post.is_there(mail.sender) is False:
            self.dropped += 1  # it was killed: what it had sent must not come after its end
            return
        body = self._reception.take(mail)
        if body is not None:
            with self._lock:
                self._calls.answered(mail, body)

    def _on_joined(self, snapshot: Snapshot, now: float) -> None:
        with self._lock:
            self._post.linked(now, new_master=self._epoch not in (0, snapshot.epoch))
        self._epoch, self._is_linked = snapshot.epoch, True
        self._follows = self._follows or self.subscriptions.has_topics()
        if self._follows:
            self._reception.subscriber.joined(snapshot.epoch, snapshot.heads.get(TOPICS, 0), now)
        if snapshot.members is not None:
            self._learn(snapshot.members, now)

    def _learn(self, members: Members, now: float) -> None:
        with self._lock:
            self._post.learn(members, now)
            self._give_up()
        self._reception.forget(lambda name: self._post.is_there(name) is False)

    def _give_up(self) -> None:
        failed, self._post.failed = self._post.failed, []
        spread, self._post.spread = self._post.spread, []
        for ticket, count in spread:
            self._calls.deliveries[ticket].expect(count, HANDLES)
        self._calls.failed(failed)
        self._calls.lose_targets(lambda name: self._post.is_there(name) is False)

    def pump(self, link: Link, now: float) -> None:
        """Send what may be sent, and say what has been received."""
        if self._follows or self.subscriptions.has_topics():
            self._follows = True
            link.follow(TOPICS)
        self._reception.hear()
        self._is_linked = link.joined
        if self._link is None:
            self._link_thread, self._link = threading.get_ident(), link
        with self._lock:
            if not self._is_linked:
                self._post.parted()
                return
            if now >= self._post_due:
                self._post.expire(now)
                self._give_up()
            self._more = False
            for count, (stream, mail) in enumerate(self._post.pieces()):
                self._more = count == PIECES_PER_PUMP
                if self._more or not link.post(mail):
                    break
                stream.sent(now)
            self._post_due = self._post.due
        self._reception.acknowledge(link, now)
        missing = None if self._reception.is_full() else self._reception.subscriber.ask(now)
        if missing is not None:
            link.post(missing)

    @property
    def due(self) -> float:
        """When `pump` is to be called at the latest (monotonic seconds)."""
        if not self._is_linked:
            return float("inf")
        due = 0.0 if self._more else min(self._post_due, self._reception.due)
        return due if self._reception.is_full() else min(due, self._reception.subscriber.due)

    def finish(self) -> None:
        """From now on wake the link's thread also when the last function has returned: it waits for `is_idle`."""
        self.pool.on_idle = self._ring
        self._reception.is_leaving = True
        with self._lock:
            self._post.leave(time.monotonic())

    def is_idle(self) -> bool:
        """Whether all that was sent is received, and all that was received is handled."""
        with self._lock:
            return self._post.count == 0 and not self._reception.owes() and self.pool.is_idle()

    def close(self, reason: str, timeout_s: float) -> bool:
        """Give up what was not received, and end the threads; false when a function is still running."""
        with self._lock:
            self._closed = reason
            self._post.clear(reason)
            self._give_up()
            self._calls.close(reason)
        self.subscriptions.changed = None
        return self.pool.close(timeout_s)


def check_topic(topic: str) -> None:
    """Raise `BusError` for what cannot be a topic."""
    try:
        size = len(topic.encode()) if isinstance(topic, str) else 0
    except UnicodeEncodeError:
        size = 0
    if not 0 < size <= MAX_TOPIC_BYTES:
        raise BusError(f"a topic is text of 1 to {MAX_TOPIC_BYTES} bytes, not {topic!r:.80}")


__all__ = ["HANDLES", "Delivery", "Gathered", "Mailbox"]
