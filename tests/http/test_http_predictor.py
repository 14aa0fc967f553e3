"""Which requests block: learned, generalised, unlearned, in bounded memory, at the speed of function calls."""

import random
import sys
import time

import pytest

from zcluster.http.predictor import (
    BLOCKED_S,
    FORGET_S,
    HOG_S,
    LONG_S,
    SIZE,
    STRONG_SLOW,
    SURELY_SLOW,
    WEAK_SLOW,
    Predictor,
    is_slow,
)


def believed_slow(predictor, method, path):
    """Whether it would run beside the loop."""
    return predictor.guess(method, path) == SURELY_SLOW


@pytest.fixture
def predictor():
    """Knows nothing."""
    return Predictor()


def teach(predictor, path, *outcomes, method="GET", now=0.0):
    """Requests of this path that turned out so."""
    for slow in outcomes:
        predictor.learn(method, path, now, slow=slow)


def path_of(number):
    """A path whose directory and shape no other has."""
    word = "".join(chr(ord("a") + int(digit)) for digit in str(number))
    return f"/{word}/x"


@pytest.mark.parametrize(
    ("elapsed_s", "cpu_s", "slow"),
    [
        (0.0001, 0.0001, False),
        (LONG_S * 0.9, 0.0, False),  # waits, but for less than a thread is worth
        (LONG_S, 0.0, True),
        (LONG_S * 2, LONG_S * 2 - BLOCKED_S / 2, False),  # computes: another thread would wait for the GIL
        (LONG_S * 2, LONG_S * 2 - BLOCKED_S, True),
        (HOG_S * 0.9, HOG_S * 0.9, False),
        (HOG_S, HOG_S, True),  # so long that its neighbours feel it
        (0.05, 0.0, True),
    ],
)
def test_what_is_slow(elapsed_s, cpu_s, slow):
    """A request is slow that waits, or that computes for so long that it would hold others up."""
    assert is_slow(elapsed_s, cpu_s) is slow


def test_nothing_is_asked_before_something_was_slow(predictor):
    """Fast requests alone leave it inactive: the hot path of a fast application pays one attribute."""
    teach(predictor, "/fast", *[False] * 100)
    assert not predictor.active
    assert not believed_slow(predictor, "GET", "/fast")
    teach(predictor, "/slow", True)
    assert predictor.active


def test_a_slow_path_is_known_at_once(predictor):
    """One slow request is enough for a path of which nothing was known."""
    teach(predictor, "/slow", True)
    assert believed_slow(predictor, "GET", "/slow")


def test_fast_and_slow_paths_of_one_application(predictor):
    """Paths are told apart, whatever their order and however often they come."""
    rng = random.Random(7)
    for _ in range(500):
        path = rng.choice(["/a/fast", "/a/slow", "/slow", "/fast"])
        teach(predictor, path, path.endswith("slow"))
    assert [believed_slow(predictor, "GET", path) for path in ("/a/fast", "/a/slow", "/slow", "/fast")] == [
        0,
        1,
        1,
        0,
    ]


def test_methods_are_told_apart(predictor):
    """POST of a path may block while GET does not."""
    teach(predictor, "/form", *[False, True] * 3, method="OTHER")
    teach(predictor, "/form", *[True] * 4, method="POST")
    teach(predictor, "/form", *[False] * 4, method="GET")
    assert believed_slow(predictor, "POST", "/form")
    assert not believed_slow(predictor, "GET", "/form")


# ---- the hierarchy -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("known", "new"),
    [
        ("/orders/17/items", "/orders/18/items"),  # the same but for its number
        ("/report/2026-11-22.pdf", "/report/x9.pdf"),
        ("/report/a", "/report/b"),  # the same directory
        ("/a", "/b"),
        ("/somewhere/deep", "/quite/else/where"),  # nothing in common: all unknown ones
    ],
)
def test_first_time_seen_paths_are_judged_by_their_kin(predictor, known, new):
    """A path never seen is believed to be what its relatives were."""
    teach(predictor, known, True)
    assert believed_slow(predictor, "GET", new)


def test_the_nearest_kin_decides(predictor):
    """A path's own history goes before its shape's, that before its directory's, that before all others."""
    for slow in (True, False):
        fresh = Predictor()
        teach(fresh, "/far/away", not slow)
        fresh.active = True
        teach(fresh, "/far/away", not slow)
        assert believed_slow(fresh, "GET", "/near/1") is not slow
        teach(fresh, "/near/other", *[slow] * 2)
        assert believed_slow(fresh, "GET", "/near/1") is slow, "its directory"
        teach(fresh, "/near/2", *[not slow] * 2)
        assert believed_slow(fresh, "GET", "/near/1") is not slow, "its shape"
        teach(fresh, "/near/1", *[slow] * 4)
        assert believed_slow(fresh, "GET", "/near/1") is slow, "itself"


def test_a_slow_path_that_is_new_every_time(predictor):
    """Unique slow paths beside unique fast ones of another kind: from the second on each is believed right."""
    teach(predictor, "/s/0", True)
    teach(predictor, "/f/0", *[False] * 4)
    wrong = 0
    for number in range(1, 10_000):
        for path, slow in ((f"/s/{number}", True), (f"/f/{number}", False)):
            wrong += believed_slow(predictor, "GET", path) is not slow
            teach(predictor, path, slow)
    assert wrong <= 20, "place and tag of two unrelated paths may be the same, once in some thousand"


def test_a_slow_word_in_every_place(predictor):
    """Unique words instead of numbers: the directory says it."""
    teach(predictor, "/user/anna/posts", True)
    believed = 0
    for number in range(200):
        path = f"/user{path_of(number)}"
        believed += believed_slow(predictor, "GET", path)
        teach(predictor, path, True)
    assert believed == 200


def test_known_paths_say_nothing_about_unknown_ones(predictor):
    """A popular slow path does not make every new path slow: only what new paths showed counts for them."""
    teach(predictor, "/slow", True)
    for number in range(6):
        teach(predictor, path_of(number), False)
    teach(predictor, "/slow", *[True] * 1000)
    assert believed_slow(predictor, "GET", "/slow")
    assert not believed_slow(predictor, "GET", path_of(77))


# ---- saturation ----------------------------------------------------------------------------------------------------
def test_one_pause_turns_no_known_path_slow(predictor):
    """A fast path stays fast through one slow request, two in a row make it slow."""
    teach(predictor, "/slow", True)  # from here on it learns
    teach(predictor, "/fast", *[False] * 5)
    teach(predictor, "/fast", True)
    assert not believed_slow(predictor, "GET", "/fast")
    teach(predictor, "/fast", True)
    assert believed_slow(predictor, "GET", "/fast")


def test_one_pause_before_anything_was_learned_costs_one_thread(predictor):
    """The very first pause of a worker is believed until the next request of that path shows better."""
    teach(predictor, "/", True)
    assert believed_slow(predictor, "GET", "/")
    teach(predictor, "/", False)
    assert not believed_slow(predictor, "GET", "/")


def test_a_rare_pause_never_turns_a_path_slow(predictor):
    """One request in three may be disturbed, for ever."""
    teach(predictor, "/slow", True)
    teach(predictor, "/fast", False)
    for _ in range(1000):
        teach(predictor, "/fast", True)
        assert not believed_slow(predictor, "GET", "/fast")
        teach(predictor, "/fast", False, False)


def test_a_slow_path_gets_its_chance_back(predictor):
    """However long it was slow: four fast requests in a row, not three, and it may hold the loop again."""
    teach(predictor, "/report", *[True] * 1000)
    teach(predictor, "/report", *[False] * 3)
    assert believed_slow(predictor, "GET", "/report")
    teach(predictor, "/report", False)
    assert not believed_slow(predictor, "GET", "/report")


def test_a_path_that_is_mostly_slow_stays_slow(predictor):
    """A cache that hits now and then does not give the loop to the misses."""
    teach(predictor, "/cached", *[True] * 6)
    for _ in range(200):
        teach(predictor, "/cached", False, False, False)
        assert believed_slow(predictor, "GET", "/cached")
        teach(predictor, "/cached", True, True, True)


# ---- forgetting ----------------------------------------------------------------------------------------------------
def test_all_is_forgotten_when_nothing_was_slow_for_long(predictor):
    """The slow first requests of a worker are not held against it for ever."""
    teach(predictor, "/import", True, True, now=0.0)
    teach(predictor, "/fast", False, now=FORGET_S)
    assert predictor.active
    teach(predictor, "/fast", False, now=FORGET_S + 0.1)
    assert not predictor.active
    assert not believed_slow(predictor, "GET", "/import")
    assert not believed_slow(predictor, "GET", path_of(3))


def test_slow_requests_keep_the_memory(predictor):
    """One slow request now and then postpones it."""
    for minute in range(10):
        teach(predictor, "/rare", True, now=minute * FORGET_S * 0.9)
        teach(predictor, "/fast", False, now=minute * FORGET_S * 0.9 + 1.0)
    assert predictor.active
    assert believed_slow(predictor, "GET", "/rare")


# ---- bounds --------------------------------------------------------------------------------------------------------
def size_of(predictor):
    """Bytes of everything it keeps."""
    return sum(sys.getsizeof(getattr(predictor, name)) for name in Predictor.__slots__)


def test_memory_is_bounded_whatever_clients_invent(predictor):
    """A hundred thousand paths take no byte more than none."""
    teach(predictor, "/", True)
    before = size_of(predictor)
    rng = random.Random(11)
    for number in range(100_000):
        predictor.learn("GET", f"/{rng.random()}/{number}", 0.0, slow=number % 3 == 0)
    assert size_of(predictor) <= before + 64  # a small integer may be another one
    assert before < 8 * SIZE


def test_odd_paths(predictor):
    """Whatever a path is made of, it can be learned and asked for."""
    for path in ("", "/", "*", "//", "/" * 5000, "é/ü", "/\x00", "/a/", "9" * 8000, "/a/" * 3000 + "1"):
        teach(predictor, path, True)
        assert believed_slow(predictor, "GET", path)
        teach(predictor, path, *[False] * 6)
        assert not believed_slow(predictor, "GET", path)


def test_a_long_path_is_no_trap(predictor):
    """The longest line a client may send costs no more than linear time: no pattern goes back over it."""
    teach(predictor, "/", True)
    for path in ("/" + "a" * 8000 + "1", "/a1" * 2700, "1/" * 4000, "a" * 8100, "/" * 8100):
        best_s = 1.0
        for _ in range(5):
            began = time.thread_time()
            believed_slow(predictor, "GET", path)
            best_s = min(best_s, time.thread_time() - began)
        assert best_s < 0.005, "a tenth of a millisecond, if nothing goes back; hundreds if something does"


def test_counters_stay_in_their_range(predictor):
    """Random histories never move a counter out of 1..STRONG_SLOW, and the last four of a path decide it."""
    rng = random.Random(3)
    history = {f"/{name}": [] for name in "abcdefgh"}
    for _ in range(4000):
        path = rng.choice(list(history))
        slow = rng.random() < 0.5
        history[path].append(slow)
        teach(predictor, path, slow)
        if history[path][-4:] == [True] * 4:
            assert believed_slow(predictor, "GET", path)
        if history[path][-4:] == [False] * 4:
            assert not believed_slow(predictor, "GET", path)
    for table in (predictor._paths, predictor._shapes, predictor._trees):
        assert max(entry & 7 for entry in table) <= STRONG_SLOW
    assert WEAK_SLOW <= STRONG_SLOW
