"""The ledger: every counter's cells and every worker's vital signs, as words of one shared memory block.

Invariant: one writer per lane, and every change of a shared word is one aligned 8-byte store, so that a reader in any
process, and a successor after any SIGKILL, sees the old value or the new one and nothing else.

Theory of operation
-------------------
A counter is a G-counter: one cell per *lane*, total = base + sum of its cells. The worker that owns a lane (it holds
the lane's byte lock, see `unix/locks`) is the only writer of that lane's cells. When it dies its successor goes on
from the values it finds: a lane is inherited, never cleared, moved or folded into another, hence there is no
two-step operation that a crash could split. Nobody ever subtracts, so every reader's totals only grow.

    0        header      64-bit words; the magic is stored last: a block without it is not a ledger yet
    4096     names       counters x 128 B: length, then UTF-8; `used_names` is stored after the entry is complete
    ..       base        u64[counters]: what earlier ledgers had counted; written once, at format
    page     lanes       lanes x stride: 64 words about the owner, then u64[counters]

`used_lanes` and `used_names` only grow and are raised under the names lock (`LockFile.names`), before the first
store they make visible. They bound every sum, so the price of a total follows the lanes in use, not the table.

Stores go through `memoryview.cast("Q")[i] = v`, which copies 8 bytes at once. `struct.pack_into` first fills the
target with zeros and a reader (or a kill) in between would see 0; it must not be used here.

A word wraps at 2**64; no word gets near: a cell stops at CELL_MAX with an error, and CELL_MAX x LANES_MAX + BASE_MAX
fits in 64 bits, so a total can always be stored and sent.
"""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from zcluster.core.messages import WorkerInfo
from zcluster.errors import ClusterError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

LAYOUT_VERSION: Final = 1
LANES_DEFAULT: Final = 512  # two workers in each of 256 slots while a reload overlaps them
COUNTERS_DEFAULT: Final = 256
LANES_MAX: Final = 4096
COUNTERS_MAX: Final = 65_536  # 512 lanes x 65,536 counters are already 256 MiB
NAME_BYTES_MAX: Final = 100
CELL_MAX: Final = 2**51 - 1  # 71 years at a million a second in every lane; JSON readers keep it exact
BASE_MAX: Final = 2**63 - 1

PAGE: Final = 4096
NAME_STRIDE: Final = 128
LANE_WORDS: Final = 64
MAGIC: Final = int.from_bytes(b"zcledgr" + bytes([LAYOUT_VERSION]), "little")

# Header words. Groups of eight share a cache line: what every increment reads must not lie beside what ticks.
W_MAGIC, W_LANES, W_COUNTERS, W_STRIDE, W_LEDGER_ID, W_BOOT_ID, W_STATE_ID = 0, 1, 2, 3, 4, 8, 10
W_USED_LANES, W_USED_NAMES = 16, 17
W_EPOCH, W_NEXT_WORKER_ID, W_MASTER_PID, W_MASTER_START, W_MASTER_TICK = 24, 25, 26, 27, 28
W_CHECKPOINT_STARTED, W_CHECKPOINT_DONE, W_LOG_OPENINGS = 32, 33, 40

# Lane words. First line: identity, rewritten only by `claim`. The last line has another writer, the master.
L_DONE, L_PID, L_START, L_WORKER_ID, L_SLOT, L_GENERATION, L_BORN, L_RESTARTS = 0, 1, 2, 3, 4, 5, 6, 7
L_STATE, L_BUS_TICK, L_LOOP_TICK = 8, 9, 10
L_INFLIGHT, L_CONNECTIONS, L_REQUESTS, L_LOAD = 16, 17, 18, 19  # the last one belongs to unix/crowd
L_RECONNECT = 24

STATES: Final = ("none", "asked", "forked", "online", "ready", "suspect", "hung", "draining", "dead")


class LedgerError(ClusterError):
    """The block is not a usable ledger, or a name or number does not fit into it."""


def check_name(name: str) -> bytes:
    """The UTF-8 form of a counter's name; TypeError or LedgerError when it cannot be one."""
    if not isinstance(name, str):
        raise TypeError(f"a counter's name is a str, not {type(name).__name__}")
    try:
        raw = name.encode()
    except UnicodeEncodeError as error:
        raise LedgerError(f"counter name {name!r} cannot be written as UTF-8: {error.reason}") from None
    if not 1 <= len(raw) <= NAME_BYTES_MAX:
        raise LedgerError(f"counter name {name[:40]!r} has {len(raw)} bytes; it must have 1 to {NAME_BYTES_MAX}")
    if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in name):
        raise LedgerError(f"counter name {name!r} holds a control character")
    return raw


class _Word:
    """One shared word as an attribute."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index

    def __get__(self, owner: "Ledger | LaneView", kind: type | None = None) -> int:
        return owner.words[self.index]

    def __set__(self, owner: "Ledger | LaneView", value: int) -> None:
        owner.words[self.index] = value


class LaneView:
    """One lane: `words` about its owner, and the owner's `cells`. Only the owner stores (except `reconnect`)."""

    __slots__ = ("cells", "lane", "words")

    identity_done = _Word(L_DONE)  # worker id + 1, stored last; 0 while the identity is being rewritten
    pid = _Word(L_PID)
    start = _Word(L_START)
    worker_id = _Word(L_WORKER_ID)
    slot = _Word(L_SLOT)
    generation = _Word(L_GENERATION)
    born_ns = _Word(L_BORN)
    restarts = _Word(L_RESTARTS)
    bus_tick_ns = _Word(L_BUS_TICK)
    loop_tick_ns = _Word(L_LOOP_TICK)
    inflight = _Word(L_INFLIGHT)
    connections = _Word(L_CONNECTIONS)
    requests = _Word(L_REQUESTS)
    reconnect = _Word(L_RECONNECT)  # the master raises it: "open your link again"

    def __init__(self, lane: int, words: memoryview, cells: memoryview) -> None:
        self.lane = lane
        self.words = words
        self.cells = cells

    @property
    def state(self) -> str:
        """The owner's state, one of STATES."""
        code = self.words[L_STATE]
        return STATES[code] if code < len(STATES) else STATES[0]

    @state.setter
    def state(self, name: str) -> None:
        self.words[L_STATE] = STATES.index(name)

    def claim(self, info: WorkerInfo, born_ns: int) -> None:
        """Write the new owner's identity (the caller holds the lane's lock). Cells and `reconnect` are inherited."""
        words = self.words
        words[L_DONE] = 0
        words[L_PID] = info.pid
        words[L_START] = info.start
        words[L_WORKER_ID] = info.id
        words[L_SLOT] = info.slot
        words[L_GENERATION] = info.generation
        words[L_BORN] = words[L_BUS_TICK] = words[L_LOOP_TICK] = born_ns
        words[L_RESTARTS] = info.restarts
        words[L_INFLIGHT] = words[L_CONNECTIONS] = words[L_REQUESTS] = 0
        self.state = info.state
        words[L_DONE] = info.id + 1

    def info(self) -> WorkerInfo | None:
        """Who owned the lane last, or None: never owned, or changing hands at this moment.

        Whether the owner still lives is for the lane's lock to say.
        """
        words = self.words
        done = words[L_DONE]
        info = WorkerInfo(
            id=words[L_WORKER_ID],
            slot=words[L_SLOT],
            lane=self.lane,
            generation=words[L_GENERATION],
            pid=words[L_PID],
            start=words[L_START],
            state=self.state,
            restarts=words[L_RESTARTS],
            requests=words[L_REQUESTS],
            inflight=words[L_INFLIGHT],
            connections=words[L_CONNECTIONS],
        )
        # Ids are never re-used, so an unchanged `done` means nobody rewrote the words while we read them.
        return info if done and words[L_DONE] == done else None


class Ledger:
    """A ledger over `buffer` (read-only buffers can be read). Reading is safe from any thread and process.

    Raises LedgerError when the buffer does not hold a complete ledger of this layout.
    """

    epoch = _Word(W_EPOCH)
    next_worker_id = _Word(W_NEXT_WORKER_ID)
    master_pid = _Word(W_MASTER_PID)
    master_start = _Word(W_MASTER_START)
    master_tick_ns = _Word(W_MASTER_TICK)
    used_names = _Word(W_USED_NAMES)  # how many names are registered
    checkpoint_started = _Word(W_CHECKPOINT_STARTED)  # number of the checkpoint that last began to read totals
    checkpoint_done = _Word(W_CHECKPOINT_DONE)  # number of the last one that is on disk for good
    log_openings = _Word(W_LOG_OPENINGS)  # the launcher raises it: "open your access log again"

    def __init__(self, buffer: "ReadableBuffer") -> None:
        self.words = _words(buffer)
        words = self.words
        if words[W_MAGIC] != MAGIC:
            raise LedgerError(_why_not_magic(words[W_MAGIC]))
        self.lanes, self.counters, self.stride = words[W_LANES], words[W_COUNTERS], words[W_STRIDE]
        _check_shape(self.lanes, self.counters)
        size = self.size_bytes(self.lanes, self.counters)
        if words.nbytes != size or self.stride != _stride(self.counters):
            raise LedgerError(f"this ledger has {words.nbytes} bytes and should have {size}: it was cut or damaged")
        self.ledger_id = _get_id(words, W_LEDGER_ID)
        self.boot_id = _get_id(words, W_BOOT_ID)
        self.state_id = _get_id(words, W_STATE_ID)
        self.has_state = self.state_id != bytes(16)
        self._base_at = (PAGE + self.counters * NAME_STRIDE) // 8
        self._lanes_at = _lanes_at(self.counters) // 8
        self._stride_words = self.stride // 8
        self._names: tuple[str, ...] = ()

    @classmethod
    def size_bytes(cls, lanes: int = LANES_DEFAULT, counters: int = COUNTERS_DEFAULT) -> int:
        """Size of the block for so many lanes and counters."""
        return _lanes_at(counters) + lanes * _stride(counters)

    @classmethod
    def format(
        cls,
        buffer: "ReadableBuffer",
        *,
        lanes: int = LANES_DEFAULT,
        counters: int = COUNTERS_DEFAULT,
        ledger_id: bytes,
        boot_id: bytes,
        state_id: bytes = bytes(16),
        base: Mapping[str, int] | None = None,
    ) -> "Ledger":
        """Make a ledger of a zeroed block; `base` are the totals to go on from. `state_id` of zeros: no state."""
        _check_shape(lanes, counters)
        words = _words(buffer)
        if words.nbytes != cls.size_bytes(lanes, counters):
            raise LedgerError(f"a ledger of {lanes} x {counters} needs {cls.size_bytes(lanes, counters)} bytes")
        if words[W_MAGIC] or words[W_USED_LANES] or words[W_USED_NAMES]:
            raise LedgerError("a ledger is formatted once, on a zeroed block: this block is in use")
        words[W_LANES], words[W_COUNTERS], words[W_STRIDE] = lanes, counters, _stride(counters)
        _put_id(words, W_LEDGER_ID, ledger_id)
        _put_id(words, W_BOOT_ID, boot_id)
        _put_id(words, W_STATE_ID, state_id)
        base_at = (PAGE + counters * NAME_STRIDE) // 8
        for index, (name, total) in enumerate((base or {}).items()):
            if not 0 <= total <= BASE_MAX:
                raise LedgerError(f"counter {name!r} cannot go on from {total}: the largest start is {BASE_MAX}")
            _put_name(words, index, counters, check_name(name))
            words[base_at + index] = total
            words[W_USED_NAMES] = index + 1
        words[W_MAGIC] = MAGIC
        return cls(buffer)

    @property
    def used_lanes(self) -> int:
        """Lanes 0..used_lanes-1 have had an owner; only these are summed."""
        return self.words[W_USED_LANES]

    def names(self) -> tuple[str, ...]:
        """The registered names; a name's place is its index."""
        names = self._names
        used = self.words[W_USED_NAMES]
        if len(names) < used:
            names += tuple(_get_name(self.words, index) for index in range(len(names), used))
            self._names = names
        return names

    def index_of(self, name: str) -> int | None:
        """The index of a registered name."""
        try:
            return self.names().index(name)
        except ValueError:
            return None

    def register(self, name: str) -> int:
        """The index of a name, registered if need be. The caller holds the names lock; LedgerError when full."""
        index = self.index_of(name)
        if index is None:
            index = self.used_names
            _put_name(self.words, index, self.counters, check_name(name))
            self.words[W_USED_NAMES] = index + 1
        return index

    def use_lane(self, lane: int) -> None:
        """Have this lane summed from now on. The caller holds the names lock and has not stored into a cell yet."""
        self._check_lane(lane)
        if lane >= self.used_lanes:
            self.words[W_USED_LANES] = lane + 1

    def lane(self, lane: int) -> LaneView:
        """The words and cells of one lane."""
        self._check_lane(lane)
        at = self._lanes_at + lane * self._stride_words
        cells = self.words[at + LANE_WORDS : at + LANE_WORDS + self.counters]
        return LaneView(lane, self.words[at : at + LANE_WORDS], cells)

    def cell(self, lane: int, index: int) -> int:
        """What one lane has counted."""
        self._check_lane(lane)
        self._check_index(index)
        return self.words[self._lanes_at + lane * self._stride_words + LANE_WORDS + index]

    def cells(self, index: int) -> memoryview:
        """A live view of one counter's cells, one per lane in use now; take it again when `used_lanes` changed."""
        self._check_index(index)
        first = self._lanes_at + LANE_WORDS + index
        return self.words[first : first + self.used_lanes * self._stride_words : self._stride_words]

    def base(self, index: int) -> int:
        """What was counted before this ledger; constant."""
        self._check_index(index)
        return self.words[self._base_at + index]

    def total(self, index: int) -> int:
        """The counter's total now: between the true total at the call and at the return."""
        return self.base(index) + sum(self.cells(index))

    def totals(self) -> dict[str, int]:
        """All totals by name."""
        return {name: self.total(index) for index, name in enumerate(self.names())}

    def release(self) -> None:
        """Give the buffer back; the ledger cannot be used afterwards."""
        self.words.release()

    def _check_lane(self, lane: int) -> None:
        if not 0 <= lane < self.lanes:
            raise LedgerError(f"lane {lane} does not exist: this ledger has lanes 0 to {self.lanes - 1}")

    def _check_index(self, index: int) -> None:
        if not 0 <= index < self.counters:
            raise LedgerError(f"counter index {index} does not exist: this ledger has {self.counters} counters")


def _check_shape(lanes: int, counters: int) -> None:
    if not (1 <= lanes <= LANES_MAX and 1 <= counters <= COUNTERS_MAX):
        raise LedgerError(
            f"a ledger has 1 to {LANES_MAX} lanes and 1 to {COUNTERS_MAX} counters, not {lanes} x {counters}"
        )


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def _stride(counters: int) -> int:
    return _pages((LANE_WORDS + counters) * 8)  # whole pages: two writers never share a cache line


def _lanes_at(counters: int) -> int:
    return _pages(PAGE + counters * (NAME_STRIDE + 8))


def _words(buffer: "ReadableBuffer") -> memoryview:
    view = memoryview(buffer).cast("B")
    if view.nbytes < PAGE or view.nbytes % 8:
        raise LedgerError(f"{view.nbytes} bytes are no ledger: it was cut or never completed")
    return view.cast("Q")


def _why_not_magic(word: int) -> str:
    if word == 0:
        return "this ledger was never completed: its maker died before the last store"
    if word & (2**56 - 1) == MAGIC & (2**56 - 1):
        return f"this ledger has layout {word >> 56}, this zcluster reads layout {LAYOUT_VERSION}"
    return "this file is not a ledger"


def _get_id(words: memoryview, at: int) -> bytes:
    return words[at : at + 2].tobytes()


def _put_id(words: memoryview, at: int, value: bytes) -> None:
    if len(value) != 16:
        raise LedgerError(f"an id has 16 bytes, not {len(value)}")
    _put_bytes(words, at, value)


def _put_bytes(words: memoryview, at: int, value: bytes) -> None:
    for offset in range(0, len(value), 8):
        words[at + offset // 8] = int.from_bytes(value[offset : offset + 8].ljust(8, b"\0"), sys.byteorder)


def _put_name(words: memoryview, index: int, counters: int, raw: bytes) -> None:
    if index >= counters:
        raise LedgerError(
            f"no room for counter {raw.decode()!r}: all {counters} names are taken;"
            " start the cluster with more (--counters), and do not make names from data"
        )
    at = (PAGE + index * NAME_STRIDE) // 8
    words[at] = len(raw)
    _put_bytes(words, at + 1, raw)


def _get_name(words: memoryview, index: int) -> str:
    at = (PAGE + index * NAME_STRIDE) // 8
    size = words[at]
    try:
        if not 1 <= size <= NAME_BYTES_MAX:
            raise ValueError(f"length {size}")
        return words[at + 1 : at + NAME_STRIDE // 8].tobytes()[:size].decode()
    except ValueError as error:  # UnicodeDecodeError is one
        raise LedgerError(f"name {index} of this ledger is damaged: {error}") from None
