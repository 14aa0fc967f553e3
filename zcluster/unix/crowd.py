"""Fair accepting: which worker takes the next connection, told from the words that each keeps in the ledger.

Invariant: nothing here can keep a connection waiting. A `Crowd` only gives advice from words that may be old; its
user gives way for at most 2 ms and then accepts whatever the words say.

Theory of operation
-------------------
Every worker waits for the same listening sockets, and a new connection wakes all of them. Whoever is awake first
would take it, and the next one too, so before each accept a worker asks `fuller()`: does another one have fewer
connections than I, and is it there to take this one? Then it leaves the listener to the others for a moment (DEL,
ADD; the listener is level-triggered, so a connection that nobody took is told again). Workers with equal numbers do
not wait for each other: the slower ones find the queue empty.

Each worker has one word, its *load*: the number of its open connections, or NOT_ACCEPTING while it takes none
(not started, paused, draining, at its limit), which is more than anybody has. A worker counts when it says that it is
ready and both of its ticks are fresh: the loop's (it comes round) and the bus's (its main thread runs). So the dead,
the stopped and the hung drop out by themselves, `fresh_s` after their last tick.

Until then, or while an emptier worker waits for a CPU, the others give way to one that does not come. So when a
connection is still there after the wait, the emptiest worker is *absent* if its number has not moved (only the
emptiest: all others may be giving way themselves), and with the next wait the second emptiest, and so on. After some
waits in vain the absent are not waited for in the next accepts, first in 1, then in 3, 7 and so on, unless their
number moves. Of 64 connections that come at once to two workers, one of them killed a moment ago, the last waits for
13 pauses and not for 64. An emptier worker that was only late takes what it can all the while, and gets the rest of
its share from those that come next.
"""

import time
from typing import Final

from zcluster.core.ledger import L_BUS_TICK, L_LOAD, L_LOOP_TICK, L_STATE, STATES, Ledger

NOT_ACCEPTING: Final = 1 << 63
# Who is there, and which of them are the emptiest, is looked up this often, the numbers themselves each time: a look
# at 4 lanes costs 1 us, at 512 some 60. A worker that became ready is seen 10 ms later, which nobody notices.
LOOK_NS: Final = 10_000_000
# Only so many are compared with: when I am no fuller than the 16 emptiest of a moment ago, the connection is in good
# hands, and the price of a question does not grow with the cluster.
COMPARED: Final = 16
# Larger numbers need not be equal: from 32 connections on a difference of 3 % is none. Otherwise, where connections
# are short, all workers but one are always leaving the listener or coming back: with 64 clients of one request per
# connection that costs some 10 % more CPU than taking turns by chance. Twice as tolerant was tried: it saves that for
# 16 connections per worker too, but uses up what is allowed for being late (64 over 4: most / least <= 1.25).
TOLERATED_SHIFT: Final = 5
# What was learnt by waiting in vain holds for some waits only: a worker that had no CPU may have one again.
VAIN_NS: Final = 20_000_000
# On a machine with many more processes than CPUs a worker that was woken runs some 10 ms later: so long the others
# remain patient, one connection per wait. Without this, one of four workers got 58 of 64 connections at a load of 14.
PATIENT_WAITS: Final = 8
DOUBLINGS: Final = 6  # up to 63 unquestioned accepts after one wait; they take well under a millisecond
_READY: Final = STATES.index("ready")


class Crowd:
    """One worker among the others of its cluster; for the thread that runs the engine's loop.

    The lane is this worker's own, it holds its lock. `fresh_s`: ticks older than this are no sign of life; it should
    be several times the period at which both ticks are stored.
    """

    def __init__(self, ledger: Ledger, lane: int, fresh_s: float) -> None:
        self._ledger = ledger
        self._lane = lane
        self._fresh_ns = int(fresh_s * 1e9)
        self._own = ledger.lane(lane).words
        self._connections = 0
        self._accepting = False
        self._lanes: list[memoryview] = []  # of every worker there has been, by lane
        self._emptiest: list[memoryview] = []  # of those that are there, at most COMPARED
        self._look_at_ns = 0
        self._unquestioned = 0  # accepts for which the absent are not waited for
        self._vain = 0  # waits in vain one after the other
        self._vain_at_ns = -VAIN_NS
        self._awaited: list[tuple[memoryview, int]] = []  # those we gave way to last, and their numbers then
        self._absent: dict[int, int] = {}  # id() of those who did not come -> their number
        self._own[L_LOAD] = NOT_ACCEPTING  # the owner before us may have left its number

    def open(self, accepting: bool) -> None:
        """Say whether this worker takes connections; from its making on a Crowd says no. Takes effect at once."""
        self._accepting = accepting
        self._own[L_LOAD] = self._connections if accepting else NOT_ACCEPTING

    def settle(self, connections: int) -> None:
        """Say how many connections this worker has open: one 8-byte store, at every accept and every close."""
        self._connections = connections
        if self._accepting:
            self._own[L_LOAD] = connections

    def fuller(self) -> bool:
        """Whether another worker, ready and alive, has fewer connections: then give way to it for 1 to 2 ms."""
        now_ns = time.monotonic_ns()
        if now_ns >= self._look_at_ns:
            self._look(now_ns)
        bound = self._connections - (self._connections >> TOLERATED_SHIFT)
        for words in self._emptiest:
            if words[L_LOAD] < bound:
                return self._gives_way(bound, now_ns)
        return False

    def waited(self) -> None:
        """Say that this worker gave way, and then got a connection that nobody else had taken."""
        now_ns = time.monotonic_ns()
        recently = now_ns < self._vain_at_ns + VAIN_NS
        idle = {id(words): load for words, load in self._awaited if words[L_LOAD] == load}
        absent = {one: load for one, load in self._absent.items() if idle.get(one) == load} if recently else {}
        present = [(load, id(words)) for words, load in self._awaited if id(words) not in absent]
        if present:
            load, one = min(present)
            if idle.get(one) == load:
                absent[one] = load
        self._vain = (min(self._vain, PATIENT_WAITS + DOUBLINGS - 1) if recently else 0) + 1 if absent else 0
        self._unquestioned = (1 << max(0, self._vain - PATIENT_WAITS)) - 1
        self._absent, self._vain_at_ns = absent, now_ns

    def detach(self) -> None:
        """In a child forked by the application, where the ledger is not mapped: touch it no more, say anything."""
        self._own = memoryview(bytearray(self._own.nbytes)).cast("Q")
        self._lanes, self._emptiest, self._awaited = [], [], []
        self._look_at_ns = 1 << 63

    def _gives_way(self, bound: int, now_ns: int) -> bool:
        """Whether one of those with fewer connections than `bound` is worth waiting for."""
        emptier = [(words, load) for words in self._emptiest if (load := words[L_LOAD]) < bound]
        if self._unquestioned and now_ns < self._vain_at_ns + VAIN_NS:
            present = any(self._absent.get(id(words)) != load for words, load in emptier)
            if not present:
                self._unquestioned -= 1
                return False
        self._awaited = emptier
        return True

    def _look(self, now_ns: int) -> None:
        """Find out who is there, and keep the emptiest."""
        self._look_at_ns = now_ns + LOOK_NS
        lanes, own, oldest_ns = self._lanes, self._lane, now_ns - self._fresh_ns
        for lane in range(len(lanes), self._ledger.used_lanes):
            lanes.append(self._ledger.lane(lane).words)
        there = [
            words
            for lane, words in enumerate(lanes)
            if words[L_STATE] == _READY
            and words[L_LOOP_TICK] >= oldest_ns
            and words[L_BUS_TICK] >= oldest_ns
            and lane != own
        ]
        if len(there) > COMPARED:
            there = sorted(there, key=_load)[:COMPARED]
        self._emptiest = there


def _load(words: memoryview) -> int:
    return words[L_LOAD]
