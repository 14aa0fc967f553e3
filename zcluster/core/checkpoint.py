"""What a state directory holds, as bytes: the checkpoint of the totals, and which ledger was in use.

Invariant: bytes that were torn, cut or altered never decode: a file is one line naming format and SHA-256, then the
JSON that the sum covers. (JSON, so that an operator can read the totals with `cat`.)
"""

import hashlib
from typing import Final, TypeVar

import msgspec

from zcluster.errors import ClusterError

FORMAT: Final = b"zcluster-state 1 "
SEALED_BYTES_MAX: Final = 32 * 2**20  # 65,536 counters of 100-byte names are 12 MiB escaped


class Damaged(ClusterError):
    """Bytes that are not what was written: torn, cut, altered, or of another format."""


class Checkpoint(msgspec.Struct, frozen=True):
    """The totals at one moment."""

    state: str  # hex id of the state directory
    ledger: str  # hex id of the ledger they were read from
    number: int  # of this checkpoint, in that ledger
    totals: dict[str, int]


class Pointer(msgspec.Struct, frozen=True):
    """Which ledger counts for a state directory. `home` tells the directory from a copy of it."""

    path: str
    locks: str  # lock file of the processes that may write into it
    ledger: str  # hex id
    home: tuple[int, int]  # device and inode of the state directory's lock file


_T = TypeVar("_T", Checkpoint, Pointer)


def seal(value: Checkpoint | Pointer) -> bytes:
    """The bytes of a file."""
    body = msgspec.json.encode(value) + b"\n"
    return FORMAT + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def unseal(raw: bytes, kind: type[_T]) -> _T:
    """What `seal` was given; Damaged when these are not its bytes."""
    head, newline, body = raw.partition(b"\n")
    if not head.startswith(FORMAT) or not newline:
        raise Damaged("it does not begin as a zcluster state file of this format does")
    if hashlib.sha256(body).hexdigest().encode() != head[len(FORMAT) :]:
        raise Damaged("its checksum does not match: it was torn or altered")
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Damaged(f"its content is not a {kind.__name__.lower()}: {error}") from None
