"""All that one peer has to send: a stream for each receiver, and what becomes of it when they come and go.

Invariant: every parcel put is returned exactly once, as received or as given up with the reason; none is given up
while its receiver may still be there.

Who is there, the master says (`Members`). Ids of workers grow and are never used again, so a worker that is not named
and whose id was given out is gone, for certain; so is a handle that this master has named before. Any other handle
may be on its way from one master to the next: it is waited for. While there is no link to a master nobody is judged.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from zcluster.core.mail import MASTER, Got, Mail, Members, worker_id
from zcluster.core.outbox import QueueFull
from zcluster.core.streams import Outgoing, Parcel
from zcluster.errors import PeerGone

HANDLES: Final = "handles"  # the receiver of what is for every handle
# A whole burst at the end of a program (20 messages of 1 MiB, 10,000 small ones) fits; who sends faster than others
# receive must feel it. One message more may enter while there is room, so the largest (32 MiB) always finds some.
MESSAGES_MAX: Final = 20_000
BYTES_MAX: Final = 64 << 20
# Of these one receiver may take three quarters: who is stopped, or never listens, must not silence us for all others.
ONE_MESSAGES_MAX: Final = 15_000
ONE_BYTES_MAX: Final = 48 << 20
# A handle that lost its master is back within some 0.2 s of the new one's start; a name that nobody has (yet) is
# waited for as long: a send to a worker may overtake the news of its birth.
ABSENT_S: Final = 5.0
FOREIGN_S: Final = 2.0  # so long a leaving sender waits for a handle that has not started the cluster
LEAVING_S: Final = 0.5  # what is for handles, and there is none, waits no longer when its sender leaves
# What was published reliably may have been lost with the master that took it; published again if it was so lately.
# A master's death is noticed in milliseconds, its successor is there within a second.
GONE_MAX: Final = 1000  # handles that have ended, to be told at once; of an older one it is told after ABSENT_S
KEEP_S: Final = 5.0
KEEP_MAX: Final = 1024
KEEP_MAX_BYTES: Final = 8 << 20


class Post:
    """Not thread-safe: its owner locks. Times are monotonic seconds."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.members: Members | None = None
        self.count = 0  # of messages kept
        self.bytes = 0
        self.failed: list[tuple[Parcel, str]] = []  # given up, with the reason; the owner takes them
        self.spread: list[tuple[int, int]] = []  # tickets that were parked, to how many they go; the owner takes them
        self._streams: dict[str, Outgoing] = {}
        self._busy: dict[str, Outgoing] = {}  # those that keep something: with many peers, few of all
        self._is_linked = False
        self._absent: dict[str, float] = {}  # receivers that are not named, since when
        self._gone: dict[str, None] = {}  # handles that have ended
        self._begun = 0  # streams
        self._parked: deque[Parcel] = deque()  # for the handles, while there is none
        self._parked_s = ABSENT_S
        self._left_at = float("inf")  # when we began to leave
        self.skipped = 0  # copies that were not made for handles that do not read
        self._kept: deque[tuple[float, Parcel]] = deque()  # reliable publications, by when they were taken
        self._kept_bytes = 0

    # ---- who is there ----------------------------------------------------------------------------------------------
    def is_there(self, name: str) -> bool | None:
        """Whether there is such a receiver; None when that is not certain."""
        if name == MASTER:
            return True
        if self.members is None:
            return None
        id_ = worker_id(name)
        if id_ is not None:
            if id_ in self.members.workers:
                return True
            return None if id_ >= self.members.next_id else False
        if name in self.members.handles:
            return True
        return False if name in self._gone else None

    def workers(self, *, slot: int | None = None) -> list[int]:
        """Ids of the workers that are ready, of one slot or of all."""
        if self.members is None:
            return []
        return [id_ for id_, (its, ready) in self.members.workers.items() if ready and slot in (None, its)]

    def learn(self, members: Members, now: float) -> None:
        """Somebody came, left, or became ready. What was said before what is known already is ignored."""
        before = self.members
        if before is not None and (members.epoch, members.number) <= (before.epoch, before.number):
            return  # a snapshot and a publication overtake one another
        self.members = members
        if before is not None and before.epoch == members.epoch:
            self._gone.update(dict.fromkeys(name for name in before.handles if name not in members.handles))
            while len(self._gone) > GONE_MAX:
                del self._gone[next(iter(self._gone))]
        for name, stream in list(self._streams.items()):
            self._judge(name, now)
            if name in self._streams and before is not None and _arrived(name, before, members):
                stream.again(now)  # what was sent before it listened is waiting for its question
        if members.handles:
            parked, self._parked = self._parked, deque()
            for parcel in parked:
                self._drop(parcel)
                self.spread.append((parcel.ticket, self.put(HANDLES, parcel, now, force=True)))

    def _judge(self, name: str, now: float) -> None:
        there = self.is_there(name)
        if there:
            self._absent.pop(name, None)
        elif there is False:
            self._give_up(name, f"{name} has ended")
        else:
            since = self._absent.setdefault(name, now)
            if self._is_linked and now >= since + ABSENT_S:
                self._give_up(name, f"there is no {name}, or it has ended")

    def _give_up(self, name: str, reason: str) -> None:
        stream = self._streams.pop(name)
        self._busy.pop(name, None)
        self._absent.pop(name, None)
        for parcel in stream.parcels():
            self._drop(parcel)
            self.failed.append((parcel, reason))

    def _drop(self, parcel: Parcel) -> None:
        self.count -= 1
        self.bytes -= len(parcel.body)

    # ---- in --------------------------------------------------------------------------------------------------------
    def put(self, to: str, parcel: Parcel, now: float, *, force: bool = False) -> int:
        """Keep a message until it is received; returns to how many it goes (0: parked until there is a handle).

        Raises `PeerGone` when the receiver has ended, `QueueFull` when too much is waiting (unless `force`d: replies
        and what is put again).
        """
        if self.is_there(to) is False:
            raise PeerGone(f"{to} has ended")
        if not force:
            self._look_for_room(to)
        if to == HANDLES:
            handles = self._readers()
            if not handles:
                parcel.began = now
                self._keep(parcel)
                self._parked.append(parcel)
                return 0
            parcel.began = 0.0
            self.skipped += len(self.members.handles) - len(handles) if self.members is not None else 0
            for name in handles:
                self._put(name, _copy(parcel))
                self._keep(parcel)
            return len(handles)
        self._put(to, parcel)
        self._keep(parcel)
        if self.is_there(to) is None:
            self._absent.setdefault(to, now)
        return 1

    def _look_for_room(self, to: str) -> None:
        """Raise `QueueFull` when too much is waiting, for all receivers or for this one."""
        if self.count >= MESSAGES_MAX or self.bytes >= BYTES_MAX:
            raise QueueFull(
                f"{self.count} messages ({self.bytes} bytes) wait to be received; wait for the futures of some"
            )
        handles = self.members.handles if self.members is not None else {}
        if to == HANDLES and self._readers():
            names = [name for name, owner in handles.items() if owner]
        else:
            names = list(handles) if to == HANDLES else [to]
        for name in names:
            if self._is_full(name):
                stream = self._streams[name]
                raise QueueFull(f"{len(stream)} messages ({stream.bytes} bytes) wait to be received by {name}")

    def _is_full(self, name: str) -> bool:
        stream = self._streams.get(name)
        return stream is not None and (len(stream) >= ONE_MESSAGES_MAX or stream.bytes >= ONE_BYTES_MAX)

    def _readers(self) -> list[str]:
        """The handles that get what is for all of them.

        The one that started the cluster always: who does not read it makes us wait. Any other only while it reads:
        a program that merely watches, and is stopped, must not silence the cluster.
        """
        handles = self.members.handles if self.members is not None else {}
        readers = [name for name, owner in handles.items() if owner or not self._is_full(name)]
        return readers or list(handles)

    def leave(self, now: float) -> None:
        """We are about to leave: what is for handles need not wait for long when there is none.

        Nor does it wait for one that does not read, unless that has started the cluster.
        """
        self._parked_s, self._left_at = LEAVING_S, now

    def _keep(self, parcel: Parcel) -> None:
        self.count += 1
        self.bytes += len(parcel.body)

    def _put(self, name: str, parcel: Parcel) -> None:
        stream = self._streams.get(name)
        if stream is None:
            self._begun += 1
            stream = self._streams[name] = Outgoing(self.name, name, self._begun)
        stream.put(parcel)
        self._busy[name] = stream

    # ---- out -------------------------------------------------------------------------------------------------------
    def pieces(self) -> Iterator[tuple[Outgoing, Mail]]:
        """Pieces that may be sent now, one of each stream in turn, so that a long message holds up its own only.

        After each the caller says `stream.sent(now)`, or stops.
        """
        going = list(self._busy.values())
        while going:
            still = []
            for stream in going:
                mail = stream.head()
                if mail is not None:
                    yield stream, mail
                    still.append(stream)
            going = still

    def got(self, got: Got, now: float) -> list[Parcel]:
        """A receiver has said how far it is; returns what has arrived."""
        stream = self._streams.get(got.sender)
        if stream is None:
            return []
        if stream.is_forgotten(got.stream, got.upto):
            self._renew(got.sender, stream)
            return []
        done = stream.got(got.stream, got.upto, got.room, now)
        if not len(stream):
            self._busy.pop(got.sender, None)
        for parcel in done:
            self._drop(parcel)
            if parcel.reliable:
                self._kept.append((now, parcel))
                self._kept_bytes += len(parcel.body)
        self._prune(now)
        return done

    def _renew(self, name: str, stream: Outgoing) -> None:
        """Begin anew with what the receiver, or the next master, does not have."""
        del self._streams[name]
        for parcel in stream.parcels():
            self._put(name, parcel)

    def _prune(self, now: float) -> None:
        kept = self._kept
        while kept and (kept[0][0] < now - KEEP_S or len(kept) > KEEP_MAX or self._kept_bytes > KEEP_MAX_BYTES):
            self._kept_bytes -= len(kept.popleft()[1].body)

    def linked(self, now: float, *, new_master: bool) -> None:
        """The link is new, and perhaps the master: what was on the way may be lost."""
        self._is_linked = True
        self._absent = dict.fromkeys(self._absent, now)
        for parcel in self._parked:
            parcel.began = now
        for name, stream in self._streams.items():
            if name != MASTER or not new_master:
                stream.again(now)
        if not new_master:
            return
        self._prune(now)
        open_ = self._streams.pop(MASTER).parcels() if MASTER in self._streams else []
        self._busy.pop(MASTER, None)
        for parcel in open_:
            parcel.at = parcel.at or parcel.began
        again = [_copy(parcel, at=parcel.at or parcel.began, ticket=0) for _at, parcel in self._kept]
        self._kept.clear()
        self._kept_bytes = 0
        for parcel in again:
            self._keep(parcel)
        for parcel in [*again, *open_]:
            self._put(MASTER, parcel)

    def parted(self) -> None:
        """There is no link: nothing can be sent, and nobody's absence means anything."""
        self._is_linked = False

    @property
    def due(self) -> float:
        """When `expire` is to be called at the latest."""
        if not self._is_linked:
            return float("inf")
        due = self._left_at + FOREIGN_S
        for stream in self._busy.values():
            due = min(due, stream.due)
        if self._absent:
            due = min(due, min(self._absent.values()) + ABSENT_S)
        return min(due, self._parked[0].began + self._parked_s) if self._parked else due

    def expire(self, now: float) -> None:
        """Time has passed."""
        if not self._is_linked:
            return
        for name, stream in list(self._streams.items()):
            self._judge(name, now)
            stream.expire(now)
        if now >= self._left_at + FOREIGN_S:
            self._left_at = float("inf")
            for name, owner in self.members.handles.items() if self.members is not None else ():
                if name in self._streams and not owner:
                    self._give_up(name, f"{name} does not read, and its sender has left")
        while self._parked and now >= self._parked[0].began + self._parked_s:
            parcel = self._parked.popleft()
            self._drop(parcel)
            self.failed.append((parcel, "no program holds a handle on this cluster that could receive it"))

    def clear(self, reason: str) -> None:
        """Give everything up."""
        for name in list(self._streams):
            self._give_up(name, reason)
        while self._parked:
            parcel = self._parked.popleft()
            self._drop(parcel)
            self.failed.append((parcel, reason))


def _copy(parcel: Parcel, *, at: float = 0.0, ticket: int | None = None) -> Parcel:
    """The same message, not begun."""
    return replace(parcel, at=at, began=0.0, ticket=parcel.ticket if ticket is None else ticket)


def _arrived(name: str, before: Members, now: Members) -> bool:
    """Whether this receiver was not there, or not ready, and is now."""
    id_ = worker_id(name)
    if id_ is not None:
        return now.workers.get(id_, (0, False))[1] and not before.workers.get(id_, (0, False))[1]
    return name in now.handles and name not in before.handles
