"""Which requests are stuck, since when, and which are given up: looks at what runs, on a clock of the test's."""

from zcluster.core.stuck import Running, StuckWatch


def running(key=1, started=10.0, progress=0):
    return Running(key, started, progress, "GET", "/")


def watch(until, request, *, limit_s=5.0, grace_s=2.0, since=10.0, step_s=0.25):
    """Look at the request that `request(now)` gives, four times a second; returns the watch and what it told when."""
    found, told, now = StuckWatch(limit_s, grace_s, step_s), [], since
    while now <= until:
        told += [(now, one) for one in found.look([request(now)], now)]
        now += step_s
    return found, told


def test_told_once_at_the_limit_and_given_up_after_the_grace():
    """Exactly at the limit, once however long it goes on; given up when the grace is over as well."""
    found, told = watch(16.75, lambda now: running())
    assert [(now, one.age_s, one.idle_s) for now, one in told] == [(15.0, 5.0, 5.0)]
    assert len(found.stuck) == 1
    assert not found.given_up
    assert found.look([running()], 17.0) == []
    assert len(found.given_up) == 1
    assert found.look([], 17.25) == []
    assert (found.stuck, found.given_up) == ((), ())


def test_no_limit_no_stuck_request():
    """0 is off."""
    found, told = watch(100.0, lambda now: running(), limit_s=0.0)
    assert not told
    assert not found.stuck


def test_a_stream_that_goes_on_is_not_stuck():
    """As long as a byte moves within the limit; from the last one on the limit counts."""
    found, told = watch(40.0, lambda now: running(progress=int(min(now, 30.0)) // 4))
    assert [now for now, _ in told] == [33.0]
    assert told[0][1].age_s == 23.0
    assert found.given_up


def test_waiting_for_the_client_does_not_count():
    """Neither while it lasts, nor afterwards."""
    found, told = watch(24.75, lambda now: running(progress=-1 if now < 20.0 else 0))
    assert not told
    assert not found.stuck
    _, told = watch(30.0, lambda now: running(progress=-1 if now < 20.0 else 0))
    assert [now for now, _ in told] == [25.0]


def test_one_that_is_found_late_has_moved_just_now():
    """What was there before the first look may have sent its last byte a moment ago; without a byte it has not."""
    _, told = watch(30.0, lambda now: running(progress=1), since=14.0)
    assert [now for now, _ in told] == [19.0]
    _, told = watch(30.0, lambda now: running(), since=14.0)
    assert [now for now, _ in told] == [15.0]


def test_time_without_a_look_is_nobodys_fault():
    """The process was stopped for half a minute: nothing is stuck for that, and what was before still counts."""
    found, _ = watch(13.0, lambda now: running())
    assert found.look([running()], 43.0) == []
    assert found.look([running()], 43.9) == []
    assert found.look([running()], 44.8) == []
    assert [one.idle_s for one in found.look([running()], 45.0)] == [5.0]


def test_rare_looks_are_not_late_ones():
    """With the longest period there is, a request is found as well."""
    _, told = watch(60.0, lambda now: running(), step_s=10.0)
    assert [now for now, _ in told] == [20.0]


def test_another_request_in_the_same_place_is_another():
    """Python uses the number of an object again."""
    found, told = watch(16.0, lambda now: running())
    assert len(told) == 1
    assert [one.request.started for one in found.look([running(started=1.0)], 16.25)] == [1.0]


def test_the_longest_comes_first():
    """Several at once, each with its own story."""
    found = StuckWatch(1.0, 5.0, 0.25)
    told = found.look([running(1, 10.0), running(2, 4.0), running(3, 12.0)], 12.5)
    assert [one.request.key for one in told] == [2, 1]
    assert [one.request.key for one in found.given_up] == [2]


def test_a_look_exactly_at_the_limit_is_not_late():
    """A second between two looks is what a busy machine may take; more than that is nobody's fault."""
    on_time, late = StuckWatch(5.0, 2.0, 0.25), StuckWatch(5.0, 2.0, 0.25)
    assert (on_time.stuck, on_time.given_up) == ((), ())
    for step in range(5):
        assert on_time.look([running()], 10.0 + step) == late.look([running()], 10.0 + 1.001 * step) == []
    assert [one.idle_s for one in on_time.look([running()], 15.0)] == [5.0]
    assert late.look([running()], 15.005) == []
