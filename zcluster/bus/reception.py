"""The receiving half of a mailbox: what comes is put in order, counted, and given to the functions that want it.

Invariant: no function runs in the link's thread; what was accepted, and so may be acknowledged, is handled once; and
what was accepted and not handled yet is bounded. Beyond that bound senders keep what is theirs, and of publications
only the number is noted: what is reliable among them is asked for when there is room again.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Literal

from zcluster.bus.calls import decoded, encoded
from zcluster.bus.link import Link
from zcluster.bus.pool import Pool
from zcluster.core.mail import Got, Mail, Members, Publication
from zcluster.core.streams import WINDOW_PIECES, Incoming
from zcluster.core.topics import Lost, Published, Subscriber
from zcluster.errors import BusError
from zcluster.subscriptions import Function, Subscriptions

log = logging.getLogger("zcluster.messages")

# What has come and was not handled: as much as a sender may keep (core.post), and the largest message twice.
INBOX_MAX: Final = 20_000
INBOX_MAX_BYTES: Final = 64 << 20
SENDERS_MAX: Final = 10_000  # streams remembered; a worker that ends is forgotten, a handle when there are this many

# (sender's name, a function that returns the payload and is to be called exactly once), for each message
Deliver = Callable[[str, Callable[[], Any]], None]
# (request, what kind of answer, its payload)
Reply = Callable[[Mail, Literal["reply", "failure"], bytes], None]


class Reception:
    """What stands first is for the link's thread; the rest runs in the pool. See `Mailbox` for the parameters."""

    def __init__(
        self,
        name: str,
        subscriptions: Subscriptions,
        pool: Pool,
        reply: Reply,
        eased: Callable[[], None],
        *,
        deliver: Deliver | None,
        call: Callable[[Function, str, Any], Any],
    ) -> None:
        self.name, self.subscriptions, self.pool = name, subscriptions, pool
        self.subscriber = Subscriber()
        self._reply, self._eased = reply, eased
        self._deliver, self._call = deliver, call
        self.on_exit: Callable[[int], None] | None = None  # told the code when a function raises SystemExit
        self._incoming: dict[str, Incoming] = {}
        self._starved: set[str] = set()  # senders that were refused for want of room
        self._unheard: deque[tuple[str, bytes]] = deque()  # messages that came before there was a function for them
        self._lock = threading.Lock()  # guards the two counts
        self._count = self._bytes = 0  # of what was accepted and not handled

    # ---- the link's thread -----------------------------------------------------------------------------------------
    def is_full(self) -> bool:
        """Whether nothing more is accepted for now."""
        return self._count >= INBOX_MAX or self._bytes >= INBOX_MAX_BYTES

    def owes(self) -> bool:
        """Whether something received has not been acknowledged yet."""
        return any(incoming.owed for incoming in self._incoming.values())

    def take(self, mail: Mail) -> bytes | None:
        """Take a piece of mail; returns the body when it completes a reply or failure: that is the caller's."""
        incoming = self._incoming.get(mail.sender)
        if incoming is None:
            incoming = self._incoming[mail.sender] = Incoming()
            if len(self._incoming) > SENDERS_MAX:
                del self._incoming[next(iter(self._incoming))]
        if self.is_full() and mail.kind not in ("reply", "failure"):
            incoming.owed = True
            self._starved.add(mail.sender)
            return None
        body = incoming.take(mail)
        if body is None or mail.kind in ("reply", "failure"):
            return body
        self._add(body)
        if mail.kind == "request":
            self.pool.put(None, partial(self._answer, mail, body))
        elif self._deliver is not None:
            self._deliver(mail.sender, partial(self._payload, body))
        else:
            self._unheard.append((mail.sender, body))
            self.hear()
        return None

    def hear(self) -> None:
        """Give messages to the functions, if any have been registered by now; otherwise they wait."""
        if self._deliver is None and self.subscriptions.of_event("message"):
            while self._unheard:
                sender, body = self._unheard.popleft()
                self.pool.put(sender, partial(self._message, sender, body))

    def published(self, publication: Publication) -> None:
        """A publication has come."""
        if self.is_full():
            self.subscriber.heads(publication.epoch, publication.number)  # asked for when there is room
        else:
            self.hand_out(self.subscriber.take(publication))

    def hand_out(self, news: list[Published | Lost]) -> None:
        """Give publications to the functions of their topics, and say what is lost."""
        for item in news:
            key = ("topic", item.topic)
            if isinstance(item, Lost):
                lost_of = repr(item.topic) if item.topic else "topics that nobody remembers"
                log.warning(
                    "%d publications on %s are lost: this process was too slow or stopped", item.count, lost_of
                )
                for function in self.subscriptions.of_event(f"lost:{item.topic}"):
                    self.pool.put(key, partial(self.guard, function, item.count))
            elif functions := self.subscriptions.of_topic(item.topic):
                self._add(item.body)
                self.pool.put(key, partial(self._published, functions, item.body))

    def forget(self, members: Members) -> None:
        """Workers that have ended will send no more."""
        for name in list(self._incoming):
            id_ = name.removeprefix("worker:")
            if id_ != name and int(id_) < members.next_id and int(id_) not in members.workers:
                del self._incoming[name]

    def acknowledge(self, link: Link) -> None:
        """Say how far each sender has come, and whether there is room for more."""
        room = 0 if self.is_full() else WINDOW_PIECES
        for name, incoming in list(self._incoming.items()):
            if incoming.owed or (room and name in self._starved):
                if not link.post(Got(self.name, name, incoming.stream, incoming.upto, room)):
                    return
                incoming.owed = False
                if room:
                    self._starved.discard(name)

    # ---- in the pool -----------------------------------------------------------------------------------------------
    def _add(self, body: bytes) -> None:
        with self._lock:
            self._count += 1
            self._bytes += len(body)

    def _payload(self, body: bytes) -> Any:
        """Decode what was accepted; it is being handled from here on."""
        with self._lock:
            was_full = self.is_full()
            self._count -= 1
            self._bytes -= len(body)
            eased = was_full and not self.is_full()
        if eased:
            self._eased()
        return decoded(body)

    def guard(self, function: Function, *arguments: Any) -> Any:
        """Call a function of the user's; what it raises is logged and loses nothing else."""
        try:
            return function(*arguments)
        except SystemExit as leave:
            if self.on_exit is not None:
                self.on_exit(leave.code if isinstance(leave.code, int) else int(leave.code is not None))
        except Exception:
            log.exception("a function registered for messages raised: %r", function)
        return None

    def _message(self, sender: str, body: bytes) -> None:
        payload = self._payload(body)
        for function in self.subscriptions.of_event("message"):
            self.guard(self._call, function, sender, payload)

    def _published(self, functions: tuple[Function, ...], body: bytes) -> None:
        payload = self._payload(body)
        for function in functions:
            self.guard(function, payload)

    def _answer(self, mail: Mail, body: bytes) -> None:
        """Call what is registered; the first result that is not None is the reply."""
        payload = self._payload(body)
        topic = mail.topic
        functions = self.subscriptions.of_topic(topic) if topic else self.subscriptions.of_event("message")
        what = f"topic {topic!r}" if topic else "messages"
        reply, failure = None, "" if functions else f"{self.name} has registered no function for {what}"
        for function in functions:
            try:
                result = function(payload) if topic else self._call(function, mail.sender, payload)
                reply = result if reply is None else reply
            except Exception as error:
                log.exception("a function that should have replied raised: %r", function)
                failure = failure or f"{type(error).__name__}: {error}"
        try:
            answer = encoded(reply)
        except (TypeError, BusError) as error:
            log.error("the reply of %r cannot be sent: %s", functions, error)
            answer, failure = b"", failure or f"{type(error).__name__}: {error}"
        if failure:
            self._reply(mail, "failure", encoded(failure[:FAILURE_MAX_CHARS]))
        else:
            self._reply(mail, "reply", answer)


FAILURE_MAX_CHARS: Final = 2000  # of an exception's text that is told to whoever asked
