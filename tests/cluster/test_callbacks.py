"""Callbacks: in order, in one thread, and no failure of one reaches another."""

import functools
import logging
import threading

import pytest

from zcluster import callbacks
from zcluster.callbacks import Callbacks, Letter, Listener


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
    """Events that wait behind it are limited, messages are not, what is dropped is logged, close gives up in time."""
    monkeypatch.setattr(callbacks, "WAITING_MAX", 10)
    calls, release, entered, made = Callbacks("test"), threading.Event(), threading.Event(), []
    calls.put(lambda: (entered.set(), release.wait(30)))
    assert entered.wait(10)
    assert not calls.is_over()
    with caplog.at_level(logging.ERROR, "zcluster.handle"):
        for number in range(15):
            calls.put(made.append, number)
        for number in range(15):
            calls.put(Listener(made.append), Letter(lambda number=number: number))
        calls.close(timeout_s=0.05)
    assert calls.lost == 5
    assert "1 callbacks were dropped: 10 wait" in caplog.text
    assert "25 that wait are given up" in caplog.text
    assert calls.is_over()
    release.set()
    calls.close()
    calls.put(made.append, "too late")
    assert made == []


def test_messages_are_never_dropped_for_events(monkeypatch):
    """The mailbox bounds them: its senders wait."""
    monkeypatch.setattr(callbacks, "WAITING_MAX", 10)
    calls, release, made = Callbacks("test"), threading.Event(), []
    calls.put(lambda: release.wait(30))
    for number in range(100):
        calls.put(Listener(made.append), Letter(lambda number=number: number))
    release.set()
    calls.close()
    assert made == list(range(100))


def test_a_queue_that_is_not_used_costs_no_thread():
    """Nor does closing it."""
    calls = Callbacks("unused")
    calls.close()
    assert calls.is_over()
    assert "unused" not in {thread.name for thread in threading.enumerate()}


class Counting:
    """A callable object."""

    def __call__(self, one, two):
        """Return both."""
        return (one, two)


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda: "none", "none"),
        (lambda one: one, 1),
        (lambda one, two: (one, two), (1, 2)),
        (lambda one, two="mine": (one, two), (1, "mine")),
        (lambda *all_: all_, (1, 2, 3)),
        (lambda one, *, key="k": (one, key), (1, "k")),
        (Counting(), (1, 2)),
        (functools.partial(lambda zero, one: (zero, one), 0), (0, 1)),
        (int, 1),
    ],
)
def test_a_function_is_given_what_it_asks_for(fn, expected):
    """As many of the arguments as it has positional parameters without a default."""
    assert Listener(fn)(1, 2, 3) == expected


def test_a_callback_may_close_its_own_queue():
    """`cluster.on("exit", lambda worker: cluster.stop())` does not wait for itself."""
    calls, done = Callbacks("test"), threading.Event()
    calls.put(lambda: (calls.close(), done.set()))
    assert done.wait(10)


def test_who_waits_behind_a_callback_that_closes_need_not_wait_for_it():
    """It may be waiting for those who wait: a handle that is closed by its own callback waits for its threads."""
    calls, seen = Callbacks("test"), []
    entered, go_on, done = threading.Event(), threading.Event(), threading.Event()
    calls.put(lambda: (entered.set(), go_on.wait(20), calls.close(), seen.append(calls.is_over()), done.set()))
    assert entered.wait(20)
    assert calls.put(seen.append, "told all the same")
    go_on.set()
    assert done.wait(20)
    calls.close()
    assert seen == [True, "told all the same"]
    assert not calls.put(seen.append, "too late")
