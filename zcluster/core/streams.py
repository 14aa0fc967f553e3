"""One stream of mail from one name to another: in order, once, and no more on its way than the receiver has room for.

Invariant: what has been put into an `Outgoing` stays there until the other side's `Incoming` has said that it is
there; so neither a lost frame, a lost link nor a dead master loses it. What `Incoming` returns is what was put, in
order, each message once.

Theory of operation. TCP in miniature (RFC 9293, section 3.8): pieces are numbered, acknowledged up to a number, and
sent at most a window ahead of it. There is no selective repetition ("go back n"): ipc does not lose frames, only dead
processes, closed links and full queues do, so losses are rare and come in whole windows. When nothing was heard for a
while one piece is sent again as a question; the answer says where to go on. A window of nothing stops the sender in
the same way, and the same question finds out that the receiver has room again, should it not have said so.
"""

from dataclasses import dataclass, field
from typing import Final

from zcluster.core.mail import PAYLOAD_MAX_BYTES, PIECE_BYTES, Kind, Mail

WINDOW_PIECES: Final = 32  # 2 MiB on the way: some 4 ms of the bus's throughput, ten times the time of an answer
# An answer takes a millisecond, or as long as a busy interpreter leaves its bus thread waiting; the pause doubles, so
# that whoever is stopped for half a minute is asked some 20 times and not 150.
RETRY_S: Final = 0.2
RETRY_MAX_S: Final = 2.0


@dataclass(slots=True, eq=False)
class Parcel:
    """One message on its way. `ticket` is the owner's, and comes back when it has been received."""

    kind: Kind
    body: bytes
    ticket: int = 0
    ref: int = 0
    topic: str = ""
    reliable: bool = False
    serial: int = 0
    at: float = 0.0
    began: float = 0.0  # when its first piece was sent for the first time (monotonic seconds), 0 before
    first: int = field(default=0, init=False)  # the number of its first piece in the stream

    @property
    def pieces(self) -> int:
        """How many frames it takes; an empty body takes one."""
        return max(1, -(-len(self.body) // PIECE_BYTES))


class Outgoing:
    """The sender's end; used under the owner's lock. Times are monotonic seconds."""

    def __init__(self, sender: str, to: str, stream: int) -> None:
        self.sender, self.to, self.stream = sender, to, stream
        self.bytes = 0  # of what is kept
        self._parcels: dict[int, Parcel] = {}  # by a running index: those not yet received, in order
        self._head = self._tail = self._cursor = 0  # indexes: oldest kept, next to be put, next to be sent from
        self._last = 0  # number of the last piece put
        self._sent = 0  # number of the last piece sent, in this round
        self._highest = 0  # in any round: what is acknowledged may be of one before
        self._acked = 0
        self._limit = WINDOW_PIECES  # the receiver has room up to this number
        self._shut = False  # the receiver has said that it has no room: what was on the way is thrown away
        self._probing = False  # one piece only, until it is answered
        self._pause_s = RETRY_S
        self.due = float("inf")  # when `expire` is to be called

    def __len__(self) -> int:
        """Return how many messages are kept."""
        return len(self._parcels)

    def put(self, parcel: Parcel) -> None:
        """Add a message at the end."""
        parcel.first = self._last + 1
        self._last += parcel.pieces
        self._parcels[self._tail] = parcel
        self._tail += 1
        self.bytes += len(parcel.body)

    def head(self) -> Mail | None:
        """Return the piece to send next, None while there is none or no room for it; then call `sent`."""
        limit = self._acked + 1 if self._probing else self._limit
        if self._cursor == self._tail or self._sent >= limit:
            return None
        parcel, number = self._parcels[self._cursor], self._sent + 1
        start = (number - parcel.first) * PIECE_BYTES
        return Mail(
            self.sender,
            self.to,
            self.stream,
            number,
            parcel.kind,
            parcel.body if parcel.pieces == 1 else parcel.body[start : start + PIECE_BYTES],
            number < parcel.first + parcel.pieces - 1,
            parcel.ref,
            parcel.topic,
            parcel.reliable,
            parcel.serial,
            parcel.at,
        )

    def sent(self, now: float) -> None:
        """The piece that `head` returned is in the hands of a socket."""
        parcel = self._parcels[self._cursor]
        parcel.began = parcel.began or now
        if self._sent == self._acked and not self._probing:
            self.due = now + self._pause_s
        self._sent += 1
        self._highest = max(self._highest, self._sent)
        if self._sent == parcel.first + parcel.pieces - 1:
            self._cursor += 1

    def is_forgotten(self, stream: int, upto: int) -> bool:
        """Whether the receiver has less than it once had: it does not remember this stream, which must begin anew."""
        return stream == self.stream and upto < self._acked

    def got(self, stream: int, upto: int, room: int, now: float) -> list[Parcel]:
        """The receiver has everything up to a number; return the messages that are done."""
        if stream != self.stream or not self._acked <= upto <= self._highest:
            return []  # of a stream before this one
        reopened = self._shut and room > 0
        self._shut = room <= 0
        if upto > self._acked:
            self._acked, self._pause_s, self._probing = upto, RETRY_S, False
        elif self._probing and room > 0:  # it says where it stands: go on from there
            self._probing, reopened = False, True
        self._limit = upto + max(0, min(room, WINDOW_PIECES))
        if reopened:
            self._go_back()
        done = []
        while self._head < self._tail:
            parcel = self._parcels[self._head]
            if parcel.first + parcel.pieces - 1 > upto:
                break
            done.append(self._parcels.pop(self._head))
            self.bytes -= len(parcel.body)
            self._head += 1
        if self._sent <= upto:
            self._sent, self._cursor = upto, self._head
        waiting = self._sent > self._acked or (self._parcels and self._limit <= self._acked)
        self.due = now + self._pause_s if waiting else float("inf")
        return done

    def expire(self, now: float) -> None:
        """Nothing was heard until `due`: ask with one piece, sent again."""
        if now < self.due:
            return
        self._go_back()
        self._probing = True
        self._pause_s = min(2 * self._pause_s, RETRY_MAX_S)
        self.due = now + self._pause_s

    def again(self, now: float) -> None:
        """The way is new (a link of ours or of the receiver's): what was on it may be lost."""
        if self._parcels:
            self._go_back()
            self._probing, self._pause_s = False, RETRY_S
            self._limit = max(self._limit, self._acked + 1)
            self.due = now + self._pause_s

    def parcels(self) -> list[Parcel]:
        """What is kept, in order."""
        return list(self._parcels.values())

    def _go_back(self) -> None:
        """Send from the first piece on that was not acknowledged."""
        self._sent = self._acked
        self._cursor = self._head


class Incoming:
    """The receiver's end; used by one thread."""

    def __init__(self) -> None:
        self.stream = 0
        self.upto = 0  # all pieces up to this number are here
        self.bytes = 0  # of a message that is not complete
        self._parts: list[bytes] = []
        self._too_large = False

    def meet(self, mail: Mail) -> bool:
        """Note of which stream a piece is; false when that is one before this one, and deserves no answer."""
        if mail.stream < self.stream:
            return False
        if mail.stream > self.stream:
            self.stream, self.upto = mail.stream, 0
            self._parts, self.bytes, self._too_large = [], 0, False
        return True

    @property
    def is_open(self) -> bool:
        """Whether a message has begun and not ended."""
        return bool(self._parts)

    def take(self, mail: Mail) -> bytes | None:
        """Take a piece; return the whole body when it completes its message. What comes twice, or too early, is not.

        A message that grows beyond what may be sent (no sender of ours does that) is thrown away.
        """
        if not self.meet(mail) or mail.number != self.upto + 1:
            return None
        self.upto += 1
        if not self._parts and not mail.more:
            return mail.body
        self._parts.append(mail.body)
        self.bytes += len(mail.body)
        if self.bytes > PAYLOAD_MAX_BYTES:
            self._parts, self.bytes, self._too_large = [b""], 0, True
        if mail.more:
            return None
        body, whole = b"".join(self._parts), not self._too_large
        self._parts, self.bytes, self._too_large = [], 0, False
        return body if whole else None
