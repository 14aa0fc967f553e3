"""Counter in every kind of process: what it counts, where it refuses, and that threads and callbacks lose nothing."""

import copy
import pickle
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from ledger_support import BOOT, be_worker, in_child, reap, start

from zcluster import counter, current
from zcluster.core.ledger import CELL_MAX, LedgerError
from zcluster.counter import Counter
from zcluster.errors import ClusterError
from zcluster.unix.ledgerfile import create, open_ledger


@pytest.fixture
def folder():
    path = Path(tempfile.mkdtemp(prefix="zc-", dir="/dev/shm"))
    create(path / "ledger", ledger_id=b"L" * 16, boot_id=BOOT, base={"old": 100}, lanes=70, counters=8).close()
    yield path
    shutil.rmtree(path)


def totals(folder):
    file = open_ledger(folder / "ledger", writable=False)
    try:
        return file.ledger.totals()
    finally:
        file.close()


# ---- outside a cluster ---------------------------------------------------------------------------------------------
def test_outside_a_cluster_it_is_a_plain_number():
    """incr, value and durable work in a unit test, and the same name is the same counter."""

    def body():
        requests = Counter("requests")
        assert (requests.incr(), requests.incr(5), requests.incr(0), requests.value) == (1, 6, 6, 6)
        assert Counter("requests") is requests
        assert Counter("requests").incr(durable=True) == 7
        assert Counter("others").value == 0
        assert pickle.loads(pickle.dumps(requests)) is requests
        assert copy.deepcopy(requests) is requests
        assert repr(requests) == "Counter('requests')"

    in_child(body)


@pytest.mark.parametrize(
    ("n", "error"), [(-1, ValueError), (1.0, TypeError), (True, TypeError), ("1", TypeError), (None, TypeError)]
)
def test_a_counter_grows_by_whole_numbers(n, error):
    """Negative, fractional and boolean steps are refused, in and outside a cluster."""

    def body(counting):
        with pytest.raises(error):
            counting.incr(n)
        assert counting.value == 0

    in_child(lambda: body(Counter("steps")))


@pytest.mark.parametrize(("name", "error"), [("", LedgerError), ("a\n", LedgerError), (3, TypeError)])
def test_impossible_names_are_refused_at_declaration(name, error):
    """The error comes where the name is written, not in the worker."""
    with pytest.raises(error):
        Counter(name)


def test_local_counting_is_exact_under_threads():
    """Eight threads, not one increment lost."""
    assert in_child(_hammer, "local") == 8 * 3000


def test_local_callbacks_are_told_and_never_less_than_before():
    """Outside a cluster incr itself tells; a callback that counts is not called recursively; fn is returned."""

    def body():
        seen = []
        number = Counter("told")

        @number.on_change
        def tell(total):
            seen.append(total)
            if total < 3:
                number.incr()

        assert callable(tell)
        number.incr()
        number.incr(4)
        assert number.value == 6
        assert seen == [1, 6]
        with pytest.raises(TypeError, match="callable"):
            number.on_change(3)

    in_child(body)


def test_a_fork_outside_a_cluster_leaves_no_lock_taken():
    """A child forked while another thread is in the middle of an increment can count."""

    def body():
        number = Counter("forks")
        stop = threading.Event()
        thread = threading.Thread(target=lambda: [number.incr() for _ in iter(stop.is_set, True)])
        thread.start()
        codes = []
        for _ in range(30):
            codes.append(reap(start(number.incr)))
        stop.set()
        thread.join()
        return set(codes)

    assert in_child(body) == {0}


def _hammer(name):
    number = Counter(name)
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=lambda: [number.incr() for _ in range(3000)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return number.value


# ---- in a worker ---------------------------------------------------------------------------------------------------
def test_a_worker_counts_into_its_lane(folder):
    """Declared before or after the fork, with base, and summed over the lanes."""

    def body():
        early = Counter("early")
        ledger = be_worker(folder, lane=3)
        assert (early.incr(), early.incr(2), early.value) == (1, 3, 3)
        assert Counter("late").incr() == 1
        assert Counter("old").incr() == 101
        counter.bind_all()
        assert early.incr() == 4
        return ledger.names(), ledger.cell(3, ledger.index_of("early"))

    assert in_child(body) == (("old", "early", "late"), 4)

    def other():
        be_worker(folder, lane=66)
        return Counter("early").value, Counter("early").incr(6), Counter("late").value

    assert in_child(other) == (4, 10, 1)
    assert totals(folder) == {"old": 101, "early": 10, "late": 1}


def test_a_lane_that_joins_later_is_summed(folder):
    """A worker sees the increments of a lane that was not in use when it bound its counters."""

    def body():
        be_worker(folder, lane=0)
        number = Counter("joined")
        assert number.incr() == 1

        def other():
            current.locks.close()
            current.role = "none"
            counter.unbind_all()
            be_worker(folder, lane=9)
            Counter("joined").incr(5)

        in_child(other)
        return number.value, number.incr()

    assert in_child(body) == (6, 7)


def test_eight_threads_in_a_worker_are_exact(folder):
    """Eight threads and a flusher: nothing lost, and the last flushed value is the cell."""

    def body():
        ledger = be_worker(folder)
        wakes = []
        current.wake = lambda: wakes.append(1)
        flushed = {}
        done = threading.Event()

        def flush():
            while not done.is_set():
                cells = counter.take_dirty()
                assert all(value >= flushed.get(index, 0) for index, value in cells.items())
                flushed.update(cells)

        thread = threading.Thread(target=flush)
        thread.start()
        total = _hammer("exact")
        done.set()
        thread.join()
        flushed.update(counter.take_dirty())
        index = ledger.index_of("exact")
        assert flushed[index] == ledger.cell(0, index) == total
        assert wakes
        return total

    assert in_child(body) == 8 * 3000


def test_a_burst_wakes_once_and_put_back_keeps_it_dirty(folder):
    """Only clean -> dirty wakes; what could not be sent is given again, with the newest value."""

    def body():
        ledger = be_worker(folder)
        wakes = []
        current.wake = lambda: wakes.append(1)
        number, other = Counter("burst"), Counter("other")
        for _ in range(100):
            number.incr()
        other.incr()
        assert len(wakes) == 2
        index = ledger.index_of("burst")
        cells = counter.take_dirty()
        assert cells == {index: 100, ledger.index_of("other"): 1}
        assert counter.take_dirty() == {}
        counter.put_back(cells)
        number.incr()
        assert len(wakes) == 2
        assert counter.take_dirty() == {index: 101, ledger.index_of("other"): 1}
        counter.put_back({})
        assert counter.take_dirty() == {}

    in_child(body)


def test_signal_handlers_and_finalizers_may_count(folder):
    """An incr() inside an incr() of the same thread neither deadlocks nor loses either of the two."""

    def body():
        number = Counter("nested")
        be_worker(folder)
        handled = 0

        def on_signal(signum, frame):
            nonlocal handled
            number.incr()
            handled += 1
            # Once more after this one, never while it runs: on a busy machine they would pile up without end.
            signal.setitimer(signal.ITIMER_REAL, 0.0001)

        signal.signal(signal.SIGALRM, on_signal)
        signal.setitimer(signal.ITIMER_REAL, 0.0001)
        own = 0
        while handled < 200:
            number.incr()
            own += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        return number.value - handled - own

    assert in_child(body) == 0


def test_a_full_cell_is_an_error_and_not_a_wrap(folder):
    """What would exceed the largest count raises and changes nothing."""

    def body():
        be_worker(folder)
        number = Counter("full")
        assert number.incr(CELL_MAX - 1) == CELL_MAX - 1
        with pytest.raises(ClusterError, match="was not counted"):
            number.incr(2)
        with pytest.raises(ClusterError, match="was not counted"):
            number.incr(2**70)
        return number.incr(), number.value

    assert in_child(body) == (CELL_MAX, CELL_MAX)


def test_a_full_name_table_is_an_error_that_says_what_to_do(folder):
    """More names than the ledger has room for: the error names the option, the others count on."""

    def body():
        be_worker(folder)
        for n in range(7):
            Counter(f"n{n}").incr()
        with pytest.raises(LedgerError, match="--counters"):
            Counter("one too many").incr()
        with pytest.raises(LedgerError, match="--counters"):
            _ = Counter("one too many").value
        return Counter("n0").incr()

    assert in_child(body) == 2


def test_bind_all_needs_a_worker():
    """Called anywhere else it is refused."""
    with pytest.raises(ClusterError, match="nowhere else"):
        counter.bind_all()


# ---- where counting is refused -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("role", "advice"),
    [
        ("handle", r"cluster\.counters\['there'\]"),
        ("forked", "forked by the application"),
        ("zygote", "--no-preload"),
        ("worker", "no lane yet"),
    ],
)
def test_where_counting_would_be_lost_it_raises(role, advice):
    """Handle, forked child, import in the zygote, a worker without its lane: incr and value say what to do."""

    def body():
        current.role = role
        with pytest.raises(ClusterError, match=advice):
            Counter("there").incr()
        with pytest.raises(ClusterError, match=advice):
            _ = Counter("there").value

    in_child(body)


def test_a_zygote_with_a_ledger_may_read(folder):
    """Reading at import is allowed where the ledger is mapped; it registers nothing."""

    def body():
        file = open_ledger(folder / "ledger")
        current.role, current.ledger = "zygote", file.ledger
        return Counter("old").value, Counter("new").value, file.ledger.names()

    assert in_child(body) == (100, 0, ("old",))


def test_a_child_forked_by_the_application_cannot_count(folder):
    """In a child of a worker incr and value raise, and the worker's count is as before."""

    def body():
        be_worker(folder)
        current.guard_forks()
        number = Counter("forked")
        number.incr()

        def child():
            for use in (number.incr, lambda: number.value, Counter("another").incr):
                with pytest.raises(ClusterError, match="forked by the application"):
                    use()

        in_child(child)
        return number.incr()

    assert in_child(body) == 2
