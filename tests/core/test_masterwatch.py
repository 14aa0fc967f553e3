"""When the next master is started, and when one is taken for hung."""

from zcluster.core.masterwatch import CHECK_S, PAUSE_MAX_S, PAUSE_S, REPAIR_S, SETTLED_S, MasterWatch


def test_pauses_double_up_to_a_bound_and_begin_anew():
    """Masters that die at once, then one that lived."""
    watch = MasterWatch()
    pauses = [watch.died(10.0, 10.1, stopping=False) for _ in range(20)]
    assert pauses[:3] == [0.2, 0.4, 0.8]
    assert pauses[-1] == PAUSE_MAX_S
    assert watch.due == 10.1 + PAUSE_MAX_S
    assert watch.died(10.0, 10.0 + SETTLED_S, stopping=False) == PAUSE_S


def test_a_stop_does_not_wait():
    """Only a master can drain; a machine that refuses is not asked that often, though."""
    watch = MasterWatch()
    for _ in range(20):
        assert watch.died(10.0, 10.1, stopping=True) == PAUSE_S
    assert watch.failed(11.0) == PAUSE_MAX_S


def test_time_in_which_nobody_looked_does_not_count():
    """A tick that stands still for 100 s, of which the launcher was stopped for all but a few."""
    watch = MasterWatch()
    watch.look(7, 0.0)
    assert watch.look(7, 1.0) == 1.0
    assert watch.look(7, 100.0) == 3.0
    assert watch.look(8, 101.0) == watch.silent_s == 0.0
    assert watch.look(8, 102.0) == 1.0
    assert watch.look(None, 103.0) == 1.0  # nobody is judged while there is nobody
    watch.begun()
    assert watch.look(8, 104.0) == 1.0


def test_its_tick_is_looked_at_once_a_second():
    """Not with each turn of the launcher's loop."""
    watch = MasterWatch()
    watch.look(7, 10.0)
    assert not watch.is_due(10.9)
    assert watch.is_due(11.0)


def test_a_machine_that_refuses_is_asked_ever_more_rarely():
    """Each failure doubles the pause, as each death does."""
    watch = MasterWatch()
    assert [watch.failed(10.0) for _ in range(3)] == [0.2, 0.4, 0.8]
    assert watch.due == 10.8


def test_a_silence_is_too_long_when_it_is_longer_than_a_repair_takes():
    """Exactly the timeout and a repair is still well."""
    watch, now = MasterWatch(), 0.0
    while watch.silent_s < 3.0 + REPAIR_S:
        now += CHECK_S
        watch.look(None, now)
    assert watch.silent_s == 3.0 + REPAIR_S
    assert watch.is_well(3.0)
    watch.look(None, now + 0.001)
    assert not watch.is_well(3.0)


def test_before_the_first_master():
    """It may start at once; the first look counts from the beginning, a tick of 0 is none."""
    watch = MasterWatch()
    assert (watch.due, watch.silent_s) == (0.0, 0.0)
    assert watch.look(0, 1.0) == watch.silent_s == 1.0
