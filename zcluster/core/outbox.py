"""Outbox: what a peer wants to tell its master, kept until it is certain that it need not be sent again.

Invariant: an Ask stays here from `put` to its Answer (or `forget`), over any number of lost links and frames; the
rest is a statement of how things are: only the latest of each kind is kept, and only until a socket has taken it.
"""

from collections import deque
from typing import Final

from zcluster.core.codec import encode
from zcluster.core.messages import Ask, Message
from zcluster.errors import BusError

FRAME_MAX_BYTES: Final = 33 << 20  # a payload of 32 MiB and its envelope; a master cuts off who sends more
# An owner that asks faster than a master answers must feel it, not fill the memory: 1,000 questions in flight is far
# more than any caller waits for, and 64 MiB holds one frame of the largest size and many usual ones.
MESSAGES_MAX: Final = 1000
BYTES_MAX: Final = 64 << 20
# A question, or its answer, can be lost on a link that goes on: with a queue that was full at the wrong moment, with
# a connection that the library made anew. Masters tell repetitions, and a reload is answered when it has ended: asked
# for so seldom, a question of a whole minute costs 30 small frames.
ASK_AGAIN_S: Final = 2.0


class QueueFull(BusError):
    """More is waiting for the master than this link may keep; wait for answers or try again later."""


class Outbox:
    """A bounded, ordered set of frames; used by one thread."""

    def __init__(self, messages_max: int = MESSAGES_MAX, bytes_max: int = BYTES_MAX) -> None:
        self._messages_max, self._bytes_max = messages_max, bytes_max
        self._frames: dict[int | type, bytes] = {}  # by number of the Ask, else by kind of message
        self.unsent: deque[int | type] = deque()  # for others to look whether there is anything
        self._bytes = 0
        self._again_at = float("-inf")

    def __len__(self) -> int:
        """Return how many messages are kept, sent or not."""
        return len(self._frames)

    def put(self, message: Message) -> None:
        """Queue a message; raises `QueueFull`, and `BusError` when it is larger than a frame may be."""
        key: int | type = message.number if isinstance(message, Ask) else type(message)
        if isinstance(message, Ask) and key in self._frames:
            raise ValueError(f"a question numbered {key} is already waiting for its answer")
        frame = encode(message)
        if len(frame) > FRAME_MAX_BYTES:
            raise BusError(f"a message of {len(frame)} bytes; the bus carries {FRAME_MAX_BYTES}: send less at a time")
        old = self._frames.get(key)
        size = self._bytes + len(frame) - (len(old) if old is not None else 0)
        if (old is None and len(self._frames) >= self._messages_max) or size > self._bytes_max:
            raise QueueFull(f"{len(self._frames)} messages ({self._bytes} bytes) wait for the master already")
        self._frames[key], self._bytes = frame, size
        if old is None:
            self.unsent.append(key)

    def head(self) -> bytes | None:
        """Return the frame to send next, or None."""
        return self._frames[self.unsent[0]] if self.unsent else None

    def sent(self) -> None:
        """The frame that `head` returned is in the hands of a socket."""
        key = self.unsent.popleft()
        if not isinstance(key, int):
            self._drop(key)

    def rewind(self) -> None:
        """A new link: every question without an answer is to be sent again, before what was never sent."""
        waiting = set(self.unsent)
        self.unsent.extendleft(reversed([key for key in self._frames if key not in waiting]))

    def repeat(self, now: float) -> None:
        """Time has passed (`now` in monotonic seconds): what was asked and not answered is asked again in a while."""
        if len(self._frames) == len(self.unsent):
            self._again_at = now + ASK_AGAIN_S
        elif now >= self._again_at:
            self._again_at = now + ASK_AGAIN_S
            self.rewind()

    def answered(self, number: int) -> bool:
        """The Answer has come; false when nobody waits for it (any more)."""
        return self.forget(number)

    def forget(self, number: int) -> bool:
        """Nobody waits for this answer any more; false when it was not asked or is already answered."""
        if number not in self._frames:
            return False
        if number in self.unsent:
            self.unsent.remove(number)
        self._drop(number)
        return True

    def _drop(self, key: int | type) -> None:
        self._bytes -= len(self._frames.pop(key))
