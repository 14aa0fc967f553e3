"""Callbacks: in order, in one thread, and no failure of one reaches another."""

import logging
import threading

from zcluster import callbacks
from zcluster.callbacks import Callbacks


def test_calls_are_made_in_order_in_one_thread():
    """A thousand calls from here arrive in order, in a thread that is not ours."""
    made, threads = [], set()
    calls = Callbacks("test")
    for number in range(1000):
        calls.put(lambda n: (made.append(n), threads.add(threading.current_thread().name)), number)
    calls.close()
    assert made == list(range(1000))
    assert threads == {"test"}


def test_a_raising_callback_is_logged_and_costs_nothing_else(caplog):
    """Exceptions and sys.exit of the user's code are told; the next callback is called."""
    made = []
    calls = Callbacks("test")

    def fail(argument):
        raise ValueError(argument)

    def leave(argument):
        raise SystemExit(3)

    with caplog.at_level(logging.ERROR, "zcluster.handle"):
        for fn in (fail, leave, made.append):
            calls.put(fn, "x")
        calls.close()
    assert made == ["x"]
    assert len(caplog.records) == 2
    assert "ValueError: x" in caplog.text


def test_a_callback_that_hangs_bounds_memory_and_close(caplog, monkeypatch):
    """What waits behind it is limited, what is dropped is logged, and close gives up in time."""
    monkeypatch.setattr(callbacks, "WAITING_MAX", 10)
    calls, release, entered = Callbacks("test"), threading.Event(), threading.Event()
    calls.put(lambda _: (entered.set(), release.wait(30)), None)
    assert entered.wait(10)
    with caplog.at_level(logging.ERROR, "zcluster.handle"):
        for number in range(15):
            calls.put(print, number)
        calls.close(timeout_s=0.05)
    release.set()
    calls.close()
    assert "1 callbacks were dropped: 10 wait" in caplog.text
    assert "given up" in caplog.text


def test_a_callback_may_close_its_own_queue():
    """`cluster.on("exit", lambda worker: cluster.stop())` does not wait for itself."""
    calls, done = Callbacks("test"), threading.Event()
    calls.put(lambda _: (calls.close(), done.set()), None)
    assert done.wait(10)
