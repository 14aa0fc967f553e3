"""When a slot gets its next worker."""

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcluster.core.fleet_settings import FleetSettings
from zcluster.core.policy import LANE_TRIES, Slot, pause_s

SETTINGS = FleetSettings(workers=1)


def slot(**settings):
    return Slot(0, FleetSettings(workers=1, **settings), lambda: 0.0)


def test_pauses_double_up_to_the_cap():
    """0.1, 0.2, 0.4 ... 25.6, then 30 s for ever."""
    pauses = [pause_s(n, 0.1, 30.0, lambda: 0.0) for n in range(1, 12)]
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0])


@given(st.integers(-1, 10**9), st.floats(0.001, 10), st.floats(0.001, 100), st.floats(0, 1, exclude_max=True))
def test_chance_only_shortens_and_never_by_more_than_half(failures, base_s, cap_s, chance):
    """Whatever chance says, a pause lies between half of what it would be without, and that; never above the cap."""
    whole_s = pause_s(failures, base_s, cap_s, lambda: 0.0)
    assert whole_s / 2 <= pause_s(failures, base_s, cap_s, lambda: chance) <= whole_s <= cap_s


def test_crashes_of_grown_workers_never_pause():
    """A hundred crashes a second, each of a worker older than 5 s, are repaired at once (there may be many slots)."""
    it = slot()
    assert all(it.crashed_ready(n / 100, age_s=5.0) == 0.0 for n in range(100))
    assert not it.looping


def test_the_eleventh_early_crash_within_a_minute_is_a_loop():
    """Ten are repaired at once, then pauses grow with each further one."""
    it = slot()
    waits = [it.crashed_ready(float(n), age_s=1.0) for n in range(13)]
    assert waits == pytest.approx([0.0] * 10 + [0.1, 0.2, 0.4])
    assert it.looping


def test_a_loop_is_left_by_health_only():
    """Being ready does not end it, being ready for a minute does."""
    it = slot(crash_loop_limit=0)
    it.crashed_ready(1.0, age_s=0.5)
    it.ready()
    assert it.looping
    it.healthy()
    assert not it.looping
    assert it.failures == 0
    assert it.failed(2.0) == pytest.approx(0.1)


def test_early_crashes_spread_over_more_than_the_window_are_no_loop():
    """Eleven early crashes, one every seven seconds, do not fall into one minute."""
    it = slot()
    assert all(it.crashed_ready(7.0 * n, age_s=1.0) == 0.0 for n in range(40))


def test_lanes_are_tried_at_once_but_not_for_ever():
    """The first three times at once, then with pauses; a worker that gets ready resets it."""
    it = slot()
    waits = [it.lane_taken(1.0) for _ in range(LANE_TRIES + 2)]
    assert waits == pytest.approx([0.0] * LANE_TRIES + [0.1, 0.2])
    it.boot_failed = True
    it.ready()
    assert [it.lane_taken(2.0) for _ in range(LANE_TRIES)] == [0.0] * LANE_TRIES
    assert not it.boot_failed


@given(st.lists(st.sampled_from(["crash", "fail", "lane"]), min_size=1, max_size=20))
def test_no_history_restarts_without_a_bound(kinds):
    """Of workers that all die young, whatever of, no more than 10 crashes + 3 lanes a minute are repaired at once."""
    it = slot()
    now, at_once = 0.0, []
    for kind in kinds * 20:
        now = max(now, it.retry_at)
        die = {"crash": partial(it.crashed_ready, age_s=0.0), "fail": it.failed, "lane": it.lane_taken}[kind]
        wait_s = die(now)
        assert 0.0 <= wait_s <= SETTINGS.restart_cap_s
        assert it.retry_at == now + wait_s
        at_once += [now] if wait_s == 0.0 else []
    crowd = SETTINGS.crash_loop_limit + LANE_TRIES
    assert all(last - first >= 60.0 for first, last in zip(at_once, at_once[crowd:], strict=False))


def test_chance_takes_up_to_half_of_a_pause():
    """In proportion."""
    assert pause_s(1, 0.1, 30.0, lambda: 0.5) == pytest.approx(0.075)
