"""The receiving half of a mailbox: what comes is put in order, counted, and given to the functions that want it.

Invariant: no function runs in the link's thread; what was accepted, and so may be acknowledged, is handled once; and
what was accepted and not handled yet is bounded. Beyond that bound senders keep what is theirs, and of publications
only the number is noted: what is reliable among them is asked for when half of what waits has been handled.
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
from zcluster.core.mail import Got, Mail, Publication
from zcluster.core.streams import WINDOW_PIECES, Incoming
from zcluster.core.topics import Lost, Published, Subscriber
from zcluster.errors import BusError
from zcluster.subscriptions import Function, Subscriptions

log = logging.getLogger("zcluster.messages")

# What has come and was not handled: as much as a sender may keep (core.post), and the largest message twice.
INBOX_MAX: Final = 20_000
INBOX_MAX_BYTES: Final = 64 << 20
# An acknowledgement costs both ends and the master as much as a message. What nobody waits for is acknowledged with
# the next one, and after this long at the latest: a tenth of what a sender waits before it asks.
ACK_S: Final = 0.02
ACK_PIECES: Final = WINDOW_PIECES // 4  # or when so many pieces have come: a window never stands still for it
SENDERS_MAX: Final = 10_000  # streams remembered; who has ended is forgotten, others when there are this many
OPEN_MAX: Final = 8  # messages in several pieces that have begun and not ended: 256 MiB; others wait for their turn
FAILURE_MAX_CHARS: Final = 2000  # of an exception's text that is told to whoever asked

# (sender's name, size in bytes, a function that returns the payload and is to be called exactly once), per message
Deliver = Callable[[str, int, Callable[[], Any]], None]
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
        self._owed: set[str] = set()  # senders to whom an acknowledgement is due
        self._patient: set[str] = set()  # and those that need not have it before `due`
        self.due = float("inf")  # when `acknowledge` is to be called, for their sake (monotonic seconds)
        self.is_leaving = False  # nothing is put off any more
        self._starved: set[str] = set()  # senders that were refused for want of room
        self._open: set[str] = set()  # senders of which a message has begun and not ended
        self._unheard: deque[tuple[str, bytes]] = deque()  # messages that came before there was a function for them
        self._lock = threading.Lock()  # guards what follows
        self._count = self._bytes = 0  # of what was accepted and not handled
        self._full = False

    # ---- the link's thread -----------------------------------------------------------------------------------------
    def is_full(self) -> bool:
        """Whether nothing more is accepted: from the limit on, until half of it is handled."""
        return self._full

    def owes(self) -> bool:
        """Whether something received has not been acknowledged yet."""
        return bool(self._owed or self._patient)

    def take(self, mail: Mail) -> bytes | None:
        """Take a piece of mail; returns the body when it completes a reply or failure: that is the caller's."""
        incoming = self._incoming.get(mail.sender)
        if incoming is None:
            incoming = self._incoming[mail.sender] = Incoming()
            if len(self._incoming) > SENDERS_MAX:
                self._drop(next(iter(self._incoming)))
        if not incoming.meet(mail):
            return None
        # Nobody waits for this one: a request is answered by its reply, and a reply by nothing.
        waits = (
            mail.kind in ("message", "publish") or mail.number % ACK_PIECES == 0 or mail.number != incoming.upto + 1
        )
        (self._owed if waits or self.is_leaving else self._patient).add(mail.sender)
        if mail.kind not in ("reply", "failure") and self._refuses(mail):
            self._starved.add(mail.sender)
            return None
        body = incoming.take(mail)
        if incoming.is_open:
            self._open.add(mail.sender)
        else:
            self._open.discard(mail.sender)
        if body is None or mail.kind in ("reply", "failure"):
            return body
        self._add(body)
        if mail.kind == "request":
            self.pool.put(None, partial(self._answer, mail, body))
        elif self._deliver is not None:
            self._deliver(mail.sender, len(body), partial(self._payload, body))
        else:
            self._unheard.append((mail.sender, body))
            self.hear()
        return None

    def _refuses(self, mail: Mail) -> bool:
        crowded = mail.more and mail.sender not in self._open and len(self._open) >= OPEN_MAX
        return self._full or crowded

    def hear(self) -> None:
        """Give messages to the functions, if any have been registered by now; otherwise they wait."""
        if self._deliver is None and self.subscriptions.of_event("message"):
            while self._unheard:
                sender, body = self._unheard.popleft()
                self.pool.put(sender, partial(self._message, sender, body))

    def published(self, publication: Publication) -> None:
        """A publication has come."""
        if self._full and not self.subscriber.expects(publication):
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

    def forget(self, has_ended: Callable[[str], bool]) -> None:
        """Who has ended will send no more."""
        for name in [name for name in self._incoming if has_ended(name)]:
            self._drop(name)

    def _drop(self, name: str) -> None:
        del self._incoming[name]
        for names in (self._owed, self._patient, self._starved, self._open):
            names.discard(name)

    def acknowledge(self, link: Link, now: float) -> None:
        """Say how far each sender has come, and whether there is room for more."""
        if not (self._owed or self._patient or self._starved):
            self.due = float("inf")
            return
        if self._patient and (now >= self.due or self.is_leaving):
            self._owed |= self._patient
            self._patient.clear()
        self.due = min(self.due, now + ACK_S) if self._patient else float("inf")
        full, crowded = self._full, len(self._open) >= OPEN_MAX
        for name in self._owed | self._starved:
            room = 0 if full or (crowded and name in self._starved) else WINDOW_PIECES
            if not room and name not in self._owed:
                continue
            incoming = self._incoming[name]
            if not link.post(Got(self.name, name, incoming.stream, incoming.upto, room)):
                return
            self._owed.discard(name)
            self._patient.discard(name)
            if room:
                self._starved.discard(name)
            else:
                self._starved.add(name)  # to be told when there is room: it has stopped

    # ---- in the pool -----------------------------------------------------------------------------------------------
    def _add(self, body: bytes) -> None:
        with self._lock:
            self._count += 1
            self._bytes += len(body)
            self._full = self._full or self._count >= INBOX_MAX or self._bytes >= INBOX_MAX_BYTES

    def _payload(self, body: bytes) -> Any:
        """Decode what was accepted; it is being handled from here on."""
        with self._lock:
            self._count -= 1
            self._bytes -= len(body)
            eased = self._full and self._count <= INBOX_MAX // 2 and self._bytes <= INBOX_MAX_BYTES // 2
            self._full = self._full and not eased
        if eased:
            self._eased()
        return decoded(body)

    def guard(self, function: Function, *arguments: Any) -> Any:
        """Call a function of the user's; what it raises is logged and loses nothing else."""
        try:
            return function(*arguments)
        except SystemExit as leave:
            self._exit(leave)
        except Exception:
            log.exception("a function registered for messages raised: %r", function)
        return None

    def _exit(self, leave: SystemExit) -> None:
        if self.on_exit is not None:
            self.on_exit(leave.code if isinstance(leave.code, int) else int(leave.code is not None))

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
        topic, failure, reply = mail.topic, "", None
        functions = self.subscriptions.of_topic(topic) if topic else self.subscriptions.of_event("message")
        if not functions:
            failure = f"{self.name} has registered no function for {f'topic {topic!r}' if topic else 'messages'}"
        try:
            payload = self._payload(body)
        except (ValueError, RecursionError) as error:  # given as msgspec.Raw or Ext, which nobody checks
            functions, failure = (), f"the request cannot be decoded: {error}"
        for function in functions:
            try:
                result = function(payload) if topic else self._call(function, mail.sender, payload)
                reply = result if reply is None else reply
            except SystemExit as leave:
                self._exit(leave)
                failure = failure or f"SystemExit: {leave}"
            except Exception as error:
                log.exception("a function that should have replied raised: %r", function)
                failure = failure or f"{type(error).__name__}: {error}"
        try:
            answer = encoded(reply)
        except (TypeError, BusError) as error:
            log.error("the reply of %r cannot be sent: %s", functions, error)
            answer, failure = b"", failure or f"{type(error).__name__}: {error}"
        if failure:
            text = failure[:FAILURE_MAX_CHARS].encode(errors="backslashreplace").decode()
            self._reply(mail, "failure", encoded(text))
        else:
            self._reply(mail, "reply", answer)
