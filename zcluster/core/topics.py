"""What is published: the master's memory of it, and a subscriber's eye for what is missing.

Invariant: a subscriber delivers each message once, in the order in which the master published it; and of every one
that it does not deliver it says so, by topic, unless it was not following when that one was published.

Theory of operation. The master numbers all pieces of all topics in one count, so any loss is a hole in it, seen at
the next publication or at the next tick, which carries the last number. A subscriber waits behind the hole and asks
(Missing); the master sends what it still has of reliable topics once more, and then says what of that stretch it
has not (Replayed). A new master begins a new count, and all of it is ours, also what it published before we joined.
What was on its way through the old one is published again by its sender, with the serial it had. Serials of a sender
only grow, and have no holes: that tells what was here already, and (of a sender that was heard before) what the old
master took with it.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final

from msgspec import structs

from zcluster.core.mail import PAYLOAD_MAX_BYTES, Missing, Publication, Replayed

ASK_AGAIN_S: Final = 0.2  # an answer takes a millisecond; a link that was replaced meanwhile loses the question
SETTLE_S: Final = 0.02  # after joining: what is on its way by pub comes first, and need not be asked for
HELD_MAX: Final = 2048  # pieces that wait behind a hole: 128 MiB at the very worst; others are asked for later
SEEN_MAX: Final = 20_000  # senders whose last serial is known; the one not heard of for longest is forgotten
PARTIAL_MAX_BYTES: Final = 4 * PAYLOAD_MAX_BYTES  # of messages that are not complete, of all senders together
# The master's memory: some seconds of a busy cluster. Bodies are kept of reliable topics only.
RING_MAX: Final = 50_000  # numbers, some 8 MiB: five seconds of all that a master can publish
RING_MAX_BYTES: Final = 64 << 20
REPLAY_MAX: Final = 64  # pieces for one question: 4 MiB; the rest is asked for next


@dataclass(frozen=True, slots=True)
class Published:
    """A whole message for the functions of its topic."""

    sender: str
    topic: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Lost:
    """So many messages on this topic will not come; topic "": nobody knows on which, and pieces may be counted."""

    topic: str
    count: int


class Ring:
    """What a master has published lately; used by its thread."""

    def __init__(self) -> None:
        self._frames: deque[tuple[Publication, bool]] = deque()  # and whether its body is still here
        self._bytes = 0
        self._kept: deque[Publication] = deque()  # those with bodies, oldest first

    def put(self, publication: Publication, *, keep: bool = False) -> None:
        """Remember it, with its body if it is reliable or asked for; the next number each time."""
        keep = keep or publication.reliable
        if keep:
            self._kept.append(publication)
            self._bytes += len(publication.body)
        self._frames.append((publication if keep else _slim(publication), keep))
        while self._bytes > RING_MAX_BYTES:
            self._drop_body()
        if len(self._frames) > RING_MAX:
            oldest, kept = self._frames.popleft()
            if kept and self._kept and self._kept[0].number == oldest.number:
                self._bytes -= len(self._kept.popleft().body)

    def _drop_body(self) -> None:
        oldest = self._kept.popleft()
        self._bytes -= len(oldest.body)
        index = oldest.number - self._frames[0][0].number
        self._frames[index] = (_slim(oldest), False)

    def replay(self, asked: Missing) -> tuple[list[Publication], Replayed]:
        """Return what to send again, and the last word on the stretch (or on the beginning of it)."""
        start = self._frames[0][0].number if self._frames else 1
        end = start + len(self._frames) - 1
        first, last = max(asked.first, 1), min(asked.last, end)
        if last < first:
            return [], Replayed(asked.first, asked.last, {"": asked.last - asked.first + 1})
        lost: dict[str, int] = {}
        senders: dict[str, int] = {}
        again: list[Publication] = []
        if first < start:
            lost[""] = min(last, start - 1) - first + 1
        for number in range(max(first, start), last + 1):
            publication, kept = self._frames[number - start]
            if kept:
                again.append(publication)
            elif not publication.more:  # a message is counted where it ends
                lost[publication.topic] = lost.get(publication.topic, 0) + 1
                senders.setdefault(publication.sender, publication.serial)
            if len(again) == REPLAY_MAX:
                last = number
                break
        return again, Replayed(first, last, lost, senders)


def _slim(publication: Publication) -> Publication:
    """The same without its body."""
    return structs.replace(publication, body=b"")


class Subscriber:
    """A peer's side; used by the thread of its link. Times are monotonic seconds."""

    def __init__(self) -> None:
        self.epoch = 0  # of the count followed; 0: none yet
        self.upto = 0  # all numbers up to this one are dealt with
        self.lost = 0  # messages that will not come
        self._head = 0  # the last number known to exist
        self._held: dict[int, Publication] = {}
        self._asked_at = float("-inf")
        self._asked = (0, 0)  # the first and last number asked for; the answer is not here yet
        self._since = float("inf")  # following from then on
        self._seen: dict[str, int] = {}  # sender -> last serial
        self._unsure: set[str] = set()  # senders not heard of since the last master ended
        self._anyones = 0  # lost in this count, nobody knows whose: a hole that such a sender shows may be these
        self._partial: dict[str, tuple[int, list[bytes], int]] = {}  # sender -> serial, pieces and their bytes so far
        self._partial_bytes = 0

    @property
    def due(self) -> float:
        """When `ask` is to be called."""
        return self._asked_at + ASK_AGAIN_S if self._head > self.upto else float("inf")

    def joined(self, epoch: int, head: int, now: float) -> None:
        """A master's count stands at `head`. Of the first one what comes after that is ours; of others, all."""
        if self._since == float("inf"):
            self._since, self.upto = now, head
        elif epoch != self.epoch:
            self.upto, self._head = 0, 0
            self._held.clear()
            self._partial.clear()
            self._partial_bytes = self._anyones = 0
            self._unsure = set(self._seen)
        self.epoch = epoch
        self._head = max(self._head, head)
        self._asked_at, self._asked = now - ASK_AGAIN_S + SETTLE_S, (0, 0)

    def ask(self, now: float) -> Missing | None:
        """The question to ask now about what is missing, None when there is none."""
        if self._head <= self.upto or now < self._asked_at + ASK_AGAIN_S:
            return None
        self._asked_at = now
        self._asked = self.upto + 1, min(self._held, default=self._head + 1) - 1
        return Missing(*self._asked)

    def expects(self, publication: Publication) -> bool:
        """Whether it was asked for; so there is room for it: an answer has at most REPLAY_MAX pieces."""
        return publication.epoch == self.epoch and self.upto < publication.number <= self._asked[1]

    def heads(self, epoch: int, head: int) -> None:
        """The master's tick: the last number of its count."""
        if epoch == self.epoch:
            self._head = max(self._head, head)

    def take(self, publication: Publication) -> list[Published | Lost]:
        """A piece came, by pub or again by ctl; return what is to be delivered now."""
        number = publication.number
        if publication.epoch != self.epoch or number <= self.upto:
            return []
        self._head = max(self._head, number)
        if number > self.upto + 1:
            if len(self._held) < HELD_MAX or self.expects(publication):
                self._held[number] = publication
            return []
        out: list[Published | Lost] = []
        self.upto = number
        self._process(publication, out)
        self._release(out)
        return out

    def replayed(self, answer: Replayed) -> list[Published | Lost]:
        """The master's last word: what has not come of this stretch never will."""
        out: list[Published | Lost] = []
        if answer.first != self._asked[0]:
            return out  # it was asked twice
        self._asked, self._asked_at = (0, 0), float("-inf")  # what is missing still is asked for at once
        if answer.last <= self.upto:
            return out  # all of it has come
        self._anyones += answer.lost.get("", 0)
        unsure = {sender: answer.senders[sender] for sender in self._unsure & answer.senders.keys()}
        for number in sorted(number for number in self._held if number <= answer.last):  # not all that are lost
            held = self._held.pop(number)
            self.upto = number
            if unsure.get(held.sender, held.serial) < held.serial:
                self._look_back(held.sender, unsure.pop(held.sender), out)
            self._process(held, out)
        self.upto = answer.last
        for sender, serial in unsure.items():
            self._look_back(sender, serial, out)
        for topic, count in answer.lost.items():
            self._lose(topic, count, out)
        self._release(out)
        return out

    def _release(self, out: list[Published | Lost]) -> None:
        while (held := self._held.pop(self.upto + 1, None)) is not None:
            self.upto += 1
            self._process(held, out)

    def _process(self, publication: Publication, out: list[Published | Lost]) -> None:
        """Put a piece to its message; the whole message is delivered unless it was here before."""
        sender = publication.sender
        seen = self._seen.get(sender, 0)
        if publication.serial <= seen or (publication.at and not seen and publication.at <= self._since):
            return
        if sender in self._unsure:
            self._look_back(sender, publication.serial, out)
            if publication.at:  # there are holes between those that are published again
                self._unsure.add(sender)
        serial, parts, size = self._partial.pop(sender, (0, [], 0))
        self._partial_bytes -= size
        if serial != publication.serial:
            parts, size = [], 0  # of one that its sender never ended: it begins again, with a new master
        if publication.part != len(parts):  # a piece is missing: the rest is of no use
            if not publication.more:  # counted where it ends, here as by the master
                self._see(sender, publication.serial)
                self._lose(publication.topic, 1, out)
            return
        parts.append(publication.body)
        if publication.more:
            size += len(publication.body)
            self._partial[sender] = (publication.serial, parts, size)
            self._partial_bytes += size
            while self._partial_bytes > PARTIAL_MAX_BYTES:  # of a sender that was killed, most likely
                self._partial_bytes -= self._partial.pop(next(iter(self._partial)))[2]
            return
        self._see(sender, publication.serial)
        out.append(Published(sender, publication.topic, parts[0] if len(parts) == 1 else b"".join(parts)))

    def _look_back(self, sender: str, serial: int, out: list[Published | Lost]) -> None:
        """The first of a sender's in this count: what is missing before it, the last master took with it."""
        gone = max(0, serial - self._seen.get(sender, 0) - 1)
        told = min(gone, self._anyones)
        self._anyones -= told
        self._unsure.discard(sender)
        self._see(sender, max(serial - 1, self._seen.get(sender, 0)))  # told: not again by the next piece
        if gone > told:
            self._lose("", gone - told, out)

    def _see(self, sender: str, serial: int) -> None:
        self._seen.pop(sender, None)  # to the end: the one heard of last is forgotten last
        self._seen[sender] = serial
        if len(self._seen) > SEEN_MAX:
            del self._seen[next(iter(self._seen))]

    def _lose(self, topic: str, count: int, out: list[Published | Lost]) -> None:
        self.lost += count
        out.append(Lost(topic, count))
