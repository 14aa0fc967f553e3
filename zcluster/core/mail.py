"""What users say to each other over the bus: mail from one to another, publications to all, and who is there.

Invariant: a payload travels as bytes that nobody between its two ends looks into; so nothing a user sends can be
mistaken for an order of ours, and a master spends as much on 32 MiB as on copying it.

A message is cut into pieces of at most PIECE_BYTES, so that a large one never stands in the way of a small one of
somebody else. Names: "worker:17", or "handle:PID-xxxx" of a program that holds a handle; neither is ever used again.
The stream from one name to another is FIFO: its pieces are numbered 1, 2, 3, ..., repeated until they are
acknowledged, and accepted in that order only. What is published is a stream to MASTER, which numbers it again (for
all senders together) and tells everybody.
"""

from typing import Final, Literal

from msgspec import Struct

MEMBERS, TOPICS = "members", "topics"  # zmq topics of `pub`
MASTER: Final = "master"  # where publications are sent
PIECE_BYTES: Final = 64 << 10  # copied in some 10 us; 32 MiB are 512 of them
ID_MAX_DIGITS: Final = 20  # of 64 bits
PAYLOAD_MAX_BYTES: Final = (32 << 20) + 5  # 32 MiB of bytes or text, and what msgpack puts before them

Kind = Literal["message", "request", "reply", "failure", "publish"]


def worker_name(id_: int) -> str:
    """Return the name of a worker's mailbox."""
    return f"worker:{id_}"


def worker_id(name: str) -> int | None:
    """Return the id of the worker whose mailbox this is; None when it is no worker's."""
    kind, _, rest = name.partition(":")
    if kind != "worker" or not rest.isdecimal() or len(rest) > ID_MAX_DIGITS:
        return None
    id_ = int(rest)
    return id_ if name == worker_name(id_) else None  # not 007, nor digits of other scripts


class Mail(Struct, frozen=True, array_like=True, tag="mail"):
    """Peer -> master -> peer: one piece of the stream from `sender` to `to`."""

    sender: str  # must be the mailbox that said Hello on this link
    to: str
    stream: int  # a number that grows when `sender` begins anew: its receiver, or its master, was gone
    number: int  # in this stream, from 1 on
    kind: Kind
    body: bytes
    more: bool = False  # further pieces of this message follow
    ref: int = 0  # of a request: a number its sender chose; repeated by the reply or failure
    topic: str = ""  # of a request made by gather, and of what is published
    reliable: bool = False  # published: kept for whoever misses it
    serial: int = 0  # published: counts the messages of this sender, also over a new stream
    at: float = 0.0  # published again after the death of a master: when (CLOCK_MONOTONIC) for the first time; else 0


class Got(Struct, frozen=True, array_like=True, tag="got"):
    """Peer -> master -> peer, or master -> peer: all pieces of `to`'s stream to `sender` up to a number are here.

    Less than was said before: the receiver does not know this stream (any more), and its sender begins anew.
    """

    sender: str  # who has received
    to: str
    stream: int
    upto: int
    room: int  # so many pieces beyond `upto` may be sent


class Publication(Struct, frozen=True, array_like=True, tag="publication"):
    """Pub, master -> everybody (or by ctl, again, to whoever missed it): one piece of what was published."""

    epoch: int
    number: int  # one count for all topics: a hole is a loss
    sender: str
    serial: int
    topic: str
    body: bytes
    part: int = 0  # which piece of its message
    more: bool = False
    reliable: bool = False
    at: float = 0.0


class Missing(Struct, frozen=True, array_like=True, tag="missing"):
    """Peer -> master: publications with these numbers have not come."""

    first: int
    last: int


class Replayed(Struct, frozen=True, array_like=True, tag="replayed"):
    """Master -> peer, after the reliable ones among them were sent again: the others are lost."""

    first: int
    last: int
    lost: dict[str, int] = {}  # topic -> how many; "" for those the master does not remember
    senders: dict[str, int] = {}  # who published them, where it remembers -> serial of the first of each


class Members(Struct, frozen=True, array_like=True, tag="members"):
    """Pub: everybody who can be written to. Absolute; a worker below `next_id` that is not named is gone for ever."""

    epoch: int
    number: int
    workers: dict[int, tuple[int, bool]]  # id -> slot, whether it is ready
    handles: dict[str, bool]  # name -> whether it is the one that started the cluster
    next_id: int
