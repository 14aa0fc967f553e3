"""The ledger over plain memory: layout, names, lanes, and that totals are exact and only grow."""

import mmap

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from zcluster.core import ledger as module
from zcluster.core.ledger import (
    BASE_MAX,
    CELL_MAX,
    COUNTERS_MAX,
    LANES_MAX,
    LaneView,
    Ledger,
    LedgerError,
    check_name,
)
from zcluster.core.messages import WorkerInfo

IDS = {"ledger_id": b"L" * 16, "boot_id": b"B" * 16, "state_id": b"S" * 16}
INFO = WorkerInfo(id=7, slot=2, lane=1, generation=3, pid=4711, start=99, state="online", restarts=5)


def made(lanes=4, counters=4, base=None):
    block = bytearray(Ledger.size_bytes(lanes, counters))
    return block, Ledger.format(block, lanes=lanes, counters=counters, base=base, **IDS)


def test_a_formatted_ledger_reads_back():
    """Everything given at format is seen by another reader of the same block."""
    block, _ = made(base={"requests": 40, "é": 2})
    reader = Ledger(block)
    assert (reader.lanes, reader.counters, reader.ledger_id, reader.boot_id) == (4, 4, b"L" * 16, b"B" * 16)
    assert reader.state_id == b"S" * 16
    assert reader.has_state
    assert reader.names() == ("requests", "é")
    assert reader.totals() == {"requests": 40, "é": 2}
    assert (reader.used_lanes, reader.used_names, reader.epoch) == (0, 2, 0)


def test_no_state_is_an_id_of_zeros():
    """A ledger formatted without a state id says that it has none."""
    block = bytearray(Ledger.size_bytes(1, 1))
    assert not Ledger.format(block, lanes=1, counters=1, ledger_id=b"L" * 16, boot_id=b"B" * 16).has_state


def test_default_size_and_alignment():
    """The default ledger is about 2 MiB and no two lanes share a page."""
    assert Ledger.size_bytes() == 4096 + 9 * 4096 + 512 * 4096
    block, ledger = made(lanes=3, counters=600)
    assert ledger.stride % 4096 == 0
    address = memoryview(block).cast("Q")
    ledger.lane(2).cells[0] = 77
    assert [index for index, word in enumerate(address) if word == 77] == [
        (len(block) - ledger.stride) // 8 + module.LANE_WORDS
    ]


def test_whole_pages():
    """What just fills a page takes no other one: the names with the base, and a lane."""
    assert Ledger.size_bytes(3, 448) == 4096 + 15 * 4096 + 3 * 4096
    assert Ledger.size_bytes(3, 449) == 4096 + 15 * 4096 + 3 * 8192
    assert Ledger.size_bytes(1, 30) == 4096 + 4096 + 4096
    assert Ledger.size_bytes(1, 31) == 4096 + 8192 + 4096


@pytest.mark.parametrize(("lanes", "counters"), [(LANES_MAX, 1), (1, COUNTERS_MAX)])
def test_the_largest_ledger(lanes, counters):
    """As many lanes, or counters, as may be; with ids of any bits and the largest start."""
    ids = dict.fromkeys(IDS, b"\xff" * 16)
    with mmap.mmap(-1, Ledger.size_bytes(lanes, counters)) as block:  # untouched pages take no memory
        ledger = Ledger.format(block, lanes=lanes, counters=counters, base={"a": BASE_MAX}, **ids)
        assert (ledger.ledger_id, ledger.totals()) == (b"\xff" * 16, {"a": BASE_MAX})
        lane = ledger.lane(lanes - 1)
        lane.cells[counters - 1] = CELL_MAX
        assert ledger.cell(lanes - 1, counters - 1) == CELL_MAX
        for view in (lane.words, lane.cells):
            view.release()
        ledger.release()


def test_a_ledger_without_its_magic_is_refused():
    """A ledger whose maker ended before the last store is not usable."""
    block = bytearray(Ledger.size_bytes(1, 2))
    with pytest.raises(LedgerError, match="cannot go on from"):
        Ledger.format(block, lanes=1, counters=2, base={"a": 1, "b": -1}, **IDS)
    with pytest.raises(LedgerError, match="never completed"):
        Ledger(block)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[:5001], "no ledger"),
        (lambda b: b[:5000], "cut or damaged"),
        (lambda b: b[:4096], "cut or damaged"),
        (lambda b: b + bytes(4096), "cut or damaged"),
        (lambda b: b"", "no ledger"),
        (lambda b: b"x" + b[1:], "not a ledger"),
        (lambda b: b"{" + b[1:], "not a ledger"),
        (lambda b: b[:7] + b"\x02" + b[8:], "layout 2"),
        (lambda b: b[:7] + b"\x03" + b[8:], "layout 3"),
        (lambda b: b[:8] + bytes(8) + b[16:], "lanes"),
        (lambda b: b[:16] + b"\xff" * 8 + b[24:], "lanes"),
        (lambda b: b[:24] + bytes(8) + b[32:], "cut or damaged"),
    ],
)
def test_a_block_that_is_no_ledger_is_refused(change, message):
    """Cut, foreign and damaged blocks raise LedgerError with the reason."""
    block, _ = made()
    with pytest.raises(LedgerError, match=message):
        Ledger(bytes(change(bytes(block))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lanes": 0}, "lanes"),
        ({"lanes": LANES_MAX + 1}, "lanes"),
        ({"counters": 0}, "counters"),
        ({"lanes": 5}, "needs"),
        ({"ledger_id": b"short"}, "16 bytes"),
        ({"base": {"a": BASE_MAX + 1}}, "cannot go on"),
        ({"base": {f"c{i}": 1 for i in range(5)}}, "all 4 names are taken"),
        ({"base": {"": 1}}, "0 bytes"),
    ],
)
def test_what_cannot_be_formatted_is_refused(options, message):
    """Wrong shapes, ids and base totals raise LedgerError, and leave a block that is no ledger."""
    block = bytearray(Ledger.size_bytes(4, 4))
    with pytest.raises(LedgerError, match=message):
        Ledger.format(block, **{"lanes": 4, "counters": 4, **IDS, **options})
    with pytest.raises(LedgerError):
        Ledger(block)


def test_a_ledger_is_formatted_once():
    """A block that holds a ledger is never overwritten."""
    block, ledger = made(base={"a": 3})
    with pytest.raises(LedgerError, match="in use"):
        Ledger.format(block, lanes=4, counters=4, **IDS)
    assert ledger.totals() == {"a": 3}
    for word in (module.W_MAGIC, module.W_USED_LANES, module.W_USED_NAMES):
        block = bytearray(Ledger.size_bytes(4, 4))
        memoryview(block).cast("Q")[word] = 1
        with pytest.raises(LedgerError, match="in use"):
            Ledger.format(block, lanes=4, counters=4, **IDS)


def test_names_are_registered_once_and_in_order():
    """Registering is idempotent, indexes are stable, and other readers see a name only when it is complete."""
    block, ledger = made(counters=2)
    reader = Ledger(block)
    assert reader.names() == ()
    assert ledger.register("a") == 0
    assert ledger.register("b" * 100) == 1
    assert ledger.register("a") == 0
    assert reader.index_of("b" * 100) == 1
    assert reader.index_of("c") is None
    with pytest.raises(LedgerError, match=r"no room for counter 'c'.*--counters"):
        ledger.register("c")
    assert reader.names() == ("a", "b" * 100)


@pytest.mark.parametrize("name", ["", "x" * 101, "é" * 51, "a\nb", "a\0", "\x7f", "\x85", "\ud800"])
def test_impossible_names(name):
    """Empty, long, unprintable and unencodable names are refused."""
    with pytest.raises(LedgerError, match="name"):
        check_name(name)


def test_possible_names():
    """As long as may be, and with the characters beside those that are refused."""
    for name in ("x" * 100, "é" * 50, " ~\xa0"):
        assert check_name(name) == name.encode()


def test_a_name_is_a_str():
    """Bytes are no name."""
    with pytest.raises(TypeError, match="bytes"):
        check_name(b"requests")


@pytest.mark.parametrize("damage", [b"\xff" * 8, bytes(8)])
def test_a_damaged_name_is_reported(damage):
    """A name entry with an impossible length raises instead of giving nonsense."""
    block, _ = made(base={"a": 1})
    block[4096:4104] = damage
    with pytest.raises(LedgerError, match="name 0 of this ledger is damaged"):
        Ledger(block).totals()


def test_a_name_that_is_not_utf8_is_reported():
    """So does one whose bytes are not UTF-8."""
    block, _ = made(base={"ab": 1})
    block[4104:4106] = b"\xff\xfe"
    with pytest.raises(LedgerError, match="damaged"):
        Ledger(block).names()


def test_only_used_lanes_are_summed_and_their_number_only_grows():
    """used_lanes bounds the sum, and using a lower lane does not lower it."""
    _, ledger = made(base={"a": 100})
    ledger.lane(3).cells[0] = 5
    assert ledger.total(0) == 100
    ledger.use_lane(1)
    assert (ledger.used_lanes, len(ledger.cells(0)), ledger.total(0)) == (2, 2, 100)
    ledger.use_lane(3)
    ledger.use_lane(0)
    assert (ledger.used_lanes, ledger.total(0), ledger.cell(3, 0), ledger.cell(0, 0)) == (4, 105, 5, 0)


def test_each_cell_is_a_place_of_its_own():
    """What a lane stores for a counter is read there, by its lane and index, and in that counter's total alone."""
    block, ledger = made(lanes=3, counters=3)
    ledger.use_lane(2)
    for lane in range(3):
        for index in range(3):
            ledger.lane(lane).cells[index] = 1 << (4 * lane + index)
    reader = Ledger(block)
    for index in range(3):
        assert [reader.cell(lane, index) for lane in range(3)] == list(reader.cells(index))
        assert list(reader.cells(index)) == [1 << (4 * lane + index) for lane in range(3)]
        assert reader.total(index) == 0x111 << index


@pytest.mark.parametrize("lane", [-1, 4])
def test_lanes_and_indexes_are_checked(lane):
    """A lane or a counter outside the table is an error, not somebody else's word."""
    _, ledger = made()
    for call in (ledger.lane, ledger.use_lane, lambda n: ledger.cell(n, 0)):
        with pytest.raises(LedgerError, match="lane"):
            call(lane)
    for call in (ledger.cells, ledger.base, ledger.total, lambda n: ledger.cell(0, n)):
        with pytest.raises(LedgerError, match="counter index"):
            call(lane)


def test_a_claimed_lane_tells_its_owner_and_keeps_its_cells():
    """claim writes the identity and resets vital signs; cells and the reconnect word are inherited."""
    block, ledger = made()
    lane = ledger.lane(1)
    assert lane.info() is None
    lane.cells[2] = 41
    lane.reconnect, lane.requests, lane.inflight = 3, 9, 9
    lane.claim(INFO, born_ns=123)
    seen = Ledger(block).lane(1)
    assert seen.info() == INFO
    assert (seen.born_ns, seen.bus_tick_ns, seen.loop_tick_ns, seen.reconnect) == (123, 123, 123, 3)
    assert (seen.requests, seen.cells[2], seen.identity_done) == (0, 41, INFO.id + 1)
    lane.state, lane.requests, lane.connections, lane.inflight = "draining", 8, 2, 1
    assert seen.info().state == "draining"
    assert (seen.info().requests, seen.info().connections, seen.info().inflight) == (8, 2, 1)


class Cut:
    """The words of a lane whose owner is killed after so many stores."""

    def __init__(self, words, stores):
        self.words, self.left = words, stores

    def __setitem__(self, index, value):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.words[index] = value


def test_a_claim_that_is_cut_short_leaves_the_old_owner_or_none():
    """Whichever store is the last one: no successor reads half of one identity and half of another."""
    told = []
    for stores in range(99):
        _, ledger = made()
        lane = ledger.lane(1)
        lane.claim(INFO, 1)
        new = WorkerInfo(id=9, slot=3, lane=1, generation=4, pid=4712, start=100, state="forked", restarts=6)
        try:
            LaneView(1, Cut(lane.words, stores), lane.cells).claim(new, 2)
        except KeyboardInterrupt:
            told.append(lane.info())
        else:
            assert lane.info() == new
            break
    assert told[0] == INFO
    assert told[1:] == [None] * (len(told) - 1)
    assert len(told) > 10


def test_an_identity_that_is_being_rewritten_is_not_read():
    """While the done word is 0 there is no owner to report."""
    _, ledger = made()
    lane = ledger.lane(1)
    lane.claim(INFO, 1)
    lane.identity_done = 0
    assert lane.info() is None


def test_states():
    """An unknown state cannot be stored, an unknown code reads as none."""
    _, ledger = made()
    lane = ledger.lane(0)
    with pytest.raises(ValueError, match="not in tuple"):
        lane.state = "asleep"
    for code in (len(module.STATES), 200):
        lane.words[module.L_STATE] = code
        assert lane.state == "none"


def test_header_words_are_shared():
    """What the master and the service write is seen by every reader."""
    block, ledger = made()
    reader = Ledger(block)
    words = ("epoch", "next_worker_id", "master_pid", "master_start", "master_tick_ns")
    for value, word in enumerate((*words, "checkpoint_started", "checkpoint_done"), start=1):
        setattr(ledger, word, value)
        assert getattr(reader, word) == value
    assert reader.totals() == {}


def test_a_read_only_ledger_reads_and_refuses_to_write():
    """A handle maps the ledger read-only; writing raises instead of doing harm."""
    block, _ = made(base={"a": 1})
    reader = Ledger(bytes(block))
    assert reader.totals() == {"a": 1}
    with pytest.raises(TypeError):
        reader.register("b")
    with pytest.raises(TypeError):
        reader.epoch = 2


def test_a_released_ledger_gives_its_mapping_back():
    """release lets the mapping be closed."""
    with mmap.mmap(-1, Ledger.size_bytes(1, 1)) as block:
        Ledger.format(block, lanes=1, counters=1, **IDS).release()


def test_the_largest_total_fits_into_a_word():
    """Full cells in every lane of the largest ledger, on the largest base, stay below 2**64."""
    assert BASE_MAX + LANES_MAX * CELL_MAX < 2**64


class Model(RuleBasedStateMachine):
    """Writers, readers, registrations and new starts against a dictionary of what was counted."""

    names = Bundle("names")
    LANES, COUNTERS = 5, 6

    def __init__(self):
        super().__init__()
        self.block, self.ledger = made(self.LANES, self.COUNTERS)
        self.reader = Ledger(self.block)
        self.counted = {}
        self.seen = {}
        self.lanes_used = 0

    @rule(target=names, name=st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=9))
    def register(self, name):
        if name not in self.counted and len(self.counted) == self.COUNTERS:
            with pytest.raises(LedgerError):
                self.ledger.register(name)
            return next(iter(self.counted))
        index = self.ledger.register(name)
        self.counted.setdefault(name, 0)
        assert self.ledger.index_of(name) == index == list(self.counted).index(name)
        return name

    @rule(lane=st.integers(0, LANES - 1))
    def use(self, lane):
        self.ledger.use_lane(lane)
        self.ledger.lane(lane).claim(INFO, 1)
        self.lanes_used = max(self.lanes_used, lane + 1)

    @precondition(lambda self: self.lanes_used)
    @rule(name=names, data=st.data(), n=st.integers(0, 2**40))
    def count(self, name, data, n):
        lane = data.draw(st.integers(0, self.lanes_used - 1))
        self.ledger.lane(lane).cells[self.ledger.index_of(name)] += n
        self.counted[name] += n

    @rule()
    def start_again(self):
        base = self.reader.totals()
        self.block, self.ledger = made(self.LANES, self.COUNTERS, base)
        self.reader = Ledger(self.block)
        self.lanes_used = 0

    @rule()
    def attach_another_reader(self):
        self.reader = Ledger(memoryview(self.block).toreadonly())

    @invariant()
    def totals_are_exact_and_only_grow(self):
        totals = self.ledger.totals()
        assert totals == self.counted == self.reader.totals()
        assert all(totals[name] >= before for name, before in self.seen.items())
        assert self.ledger.used_lanes == self.lanes_used
        self.seen = totals


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
