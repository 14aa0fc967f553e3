"""Which requests will block? Learned, as a processor learns which branches are taken.

Invariant: memory and time are bounded whatever paths clients invent: the tables are of fixed size, entries are found
by hash, and a new path takes the place of an old one. A wrong guess costs time, never correctness: a request
believed fast that blocks is found by the monitor, one believed slow that is fast pays for a thread it did not need.

Theory of operation. One small saturating counter per method and path, and coarser ones for paths never seen: the
path with its numbers struck out, then its directory, then all paths unknown to these. The first that knows anything
decides. A counter is 0 (knows nothing), 1..2 (fast) or 3..6 (slow): a slow request moves it up, a fast one down, so
a single pause of the machine turns no path slow that is known to be fast, and a slow path must be fast four times in
a row before it gets a chance to hold the loop again. Beside each counter stands a tag, the rest of the hash: without
it, paths that are new every time (/items/1, /items/2, ...) would fill the table within seconds, and each new one
would be told what an unrelated one was.

While nothing has ever been slow, or taken suspiciously long (`active` is false) there is nothing to ask and nothing
to learn; when nothing has been slow for FORGET_S all is forgotten: the first request of a worker is often slow
because it imports and compiles.
"""

import re
from array import array

SIZE = 4096  # entries per table: 24 KiB in all, and of a thousand slow paths few push each other out
PLACE, TAG = SIZE - 1, 0xFFF8  # an entry has 16 bits: 13 of the hash above its counter
WEAK_SLOW, STRONG_SLOW, FAST, WEAK_FAST = 3, 6, 1, 2
FORGET_S = 30.0
SUSPECTS = 64  # more at once are no request's fault but the machine's
SURELY_FAST, UNSURE, SURELY_SLOW = range(3)
# What makes a request slow. Waiting is what another thread can use: 1 ms of it in a request of at least 2 ms (a
# thread's wake-up and the way back cost 0.05 ms). Computing is not, under the GIL, until it is long enough to
# be felt by the clients beside it.
LONG_S, BLOCKED_S, HOG_S = 0.002, 0.001, 0.010

# Begins only where a segment does, and never goes back (*+): linear, on the longest path a client may send too.
_numbers = re.compile(r"(?<![^/])[^/0-9]*+[0-9][^/]*").sub


def is_slow(elapsed_s: float, cpu_s: float) -> bool:
    """Should a request that took so long, and computed for so much of it, run beside the loop?"""
    return elapsed_s >= HOG_S or (elapsed_s >= LONG_S and elapsed_s - cpu_s >= BLOCKED_S)


class Predictor:
    """Used by the leader and by threads that finish requests; a lost update is a small error of memory."""

    __slots__ = ("_met_slow", "_paths", "_shapes", "_slow_at", "_suspects", "_trees", "_unknown", "active")

    def __init__(self) -> None:
        self.active = False
        self._slow_at = 0.0
        self._forget()

    def _forget(self) -> None:
        self.active = self._met_slow = False
        self._suspects: set[int] = set()  # keys of requests that took long while nobody measured
        self._paths = array("H", bytes(2 * SIZE))
        self._shapes = array("H", bytes(2 * SIZE))
        self._trees = array("H", bytes(2 * SIZE))
        self._unknown = 0

    def guess(self, method: str, path: str) -> int:
        """What this request will be: SURELY_FAST, or UNSURE (then it should be measured), or SURELY_SLOW."""
        salt = hash(method)
        key = hash(path) ^ salt
        if self._suspects and key in self._suspects:
            return UNSURE
        known = self._paths[key & PLACE] ^ (key >> 9 & TAG)  # as in `_counter`: every request comes by here
        if known == FAST:
            return SURELY_FAST
        if known == 0 or known > 7:
            shape, tree = _shape_and_tree(path)
            known = (
                _counter(self._shapes, hash(shape) ^ salt)
                or _counter(self._trees, hash(tree) ^ salt)
                or self._unknown
            )
        return SURELY_SLOW if known >= WEAK_SLOW else UNSURE

    def suspect(self, method: str, path: str, now: float) -> None:
        """This one took long, and nobody knows whether it waited: the next one of its kind is to be measured."""
        if len(self._suspects) >= SUSPECTS:
            self._suspects.clear()
        self._suspects.add(hash(path) ^ hash(method))
        if not self.active:
            self.active, self._slow_at = True, now

    def learn(self, method: str, path: str, now: float, *, slow: bool) -> None:
        """What it was; `now` is any monotonic clock."""
        salt = hash(method)
        key = hash(path) ^ salt
        self._suspects.discard(key)
        if slow:
            self.active, self._slow_at, self._met_slow = True, now, True
        elif not self.active:
            return
        elif now - self._slow_at > FORGET_S or not (self._met_slow or self._suspects):
            self._forget()
            return
        known = self._paths[key & PLACE] ^ (key >> 9 & TAG)
        if known == (STRONG_SLOW if slow else FAST):
            return  # saturated: the coarser ones have heard it
        if known > 7:
            known = 0
        _set(self._paths, key, _move(known, slow))
        shape, tree = _shape_and_tree(path)
        for table, key in ((self._shapes, hash(shape) ^ salt), (self._trees, hash(tree) ^ salt)):
            was = _counter(table, key)
            _set(table, key, _move(was, slow))
            if was:
                return  # a path of a kind that is known says nothing about unknown ones
        self._unknown = _move(self._unknown, slow)


def _counter(table: "array[int]", key: int) -> int:
    counter = table[key & PLACE] ^ (key >> 9 & TAG)  # what is left when the tags are the same
    return counter if counter < 8 else 0


def _set(table: "array[int]", key: int, counter: int) -> None:
    table[key & PLACE] = key >> 9 & TAG | counter


def _move(counter: int, slow: bool) -> int:
    if slow:
        return min(counter + 1, STRONG_SLOW) if counter else WEAK_SLOW
    return max(counter - 1, FAST) if counter else FAST


def _shape_and_tree(path: str) -> tuple[str, str]:
    """The path with segments that hold digits struck out, and the directory of that."""
    shape = _numbers("0", path)
    return shape, shape[: shape.rfind("/") + 1]
