"""The threads that run functions: in order by key, side by side otherwise, and none is ever lost."""

import logging
import threading

import pytest
from serving import until

from zcluster.bus.pool import Pool

WAIT_S = 20.0


@pytest.fixture
def pool():
    """A pool of three threads."""
    pool = Pool("test", threads=3)
    yield pool
    assert pool.close(WAIT_S)


def test_jobs_of_one_key_run_in_order_and_one_at_a_time(pool):
    """Whatever the others do; a thousand jobs of ten keys from four threads."""
    ran, running, clashes = {key: [] for key in range(10)}, set(), []

    def job(key, number):
        if key in running:
            clashes.append(key)
        running.add(key)
        ran[key].append(number)
        running.discard(key)

    def fill(keys):
        for number in range(250):
            for key in keys:
                assert pool.put(("key", key), lambda k=key, n=number: job(k, n))

    fillers = [threading.Thread(target=fill, args=(range(first, 10, 4),)) for first in range(4)]
    for filler in fillers:
        filler.start()
    for filler in fillers:
        filler.join()
    until(pool.is_idle)
    assert not clashes
    assert ran == {key: list(range(250)) for key in range(10)}


def test_a_job_that_blocks_holds_up_its_own_key_and_one_thread(pool):
    """Those without a key run as soon as a thread is free; so many as there are threads run at a time."""
    gate, ran, most = threading.Event(), [], threading.Barrier(2)
    pool.put("a", lambda: gate.wait(WAIT_S))
    pool.put("a", lambda: ran.append("after it"))
    pool.put("b", lambda: ran.append("b"))
    pool.put(None, lambda: most.wait(WAIT_S))
    pool.put(None, lambda: most.wait(WAIT_S))  # the two meet: both of the other threads are busy at once
    pool.put(None, lambda: ran.append("none"))
    until(lambda: len(ran) == 2)
    assert sorted(ran) == ["b", "none"]
    gate.set()
    until(lambda: ran[2:] == ["after it"])


def test_whatever_a_job_raises_the_thread_lives_on(pool, caplog):
    """Ten SystemExits would end three threads three times over."""

    def leave():
        raise SystemExit(1)

    ran = []
    with caplog.at_level(logging.ERROR, "zcluster.messages"):
        for _ in range(10):
            pool.put(None, leave)
        pool.put(None, lambda: ran.append(1))
        until(lambda: ran == [1])
        until(pool.is_idle)
    assert len(caplog.records) == 10


def test_the_last_job_is_told_of_when_nothing_waits_any_more(pool):
    """Whoever leaves waits for that, and must not look before it is true."""
    seen, gate = [], threading.Event()
    pool.put("a", lambda: gate.wait(WAIT_S))
    pool.put("a", lambda: None)
    pool.on_idle = lambda: seen.append(pool.is_idle())
    assert not pool.is_idle()
    gate.set()
    until(lambda: seen == [True])


def test_close_runs_what_waits_and_takes_no_more():
    """A job that hangs is given up; closing again waits for it."""
    pool, gate, ran = Pool("test", threads=1), threading.Event(), []
    pool.put(None, lambda: gate.wait(WAIT_S))
    pool.put(None, lambda: ran.append(1))
    assert not pool.close(0.01)
    assert not pool.put(None, lambda: ran.append(2))
    gate.set()
    assert pool.close(WAIT_S)
    assert ran == [1]


def test_a_pool_that_was_never_used_has_no_threads():
    """A worker without messages pays nothing."""
    before = threading.active_count()
    pool = Pool("test")
    assert pool.close(0.0)
    assert threading.active_count() == before
