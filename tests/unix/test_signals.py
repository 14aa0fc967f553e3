"""Signals as events on a descriptor, in children of the test: a signal set-up is for life."""

import os
import select
import signal
import subprocess
import sys

import pytest
from family import Gate
from ledger_support import in_child, reap, start, until

from zcluster.unix.process import BLOCKED
from zcluster.unix.signals import Signals, forget_inherited, name_of


def taken(signals, count):
    """The next `count` signals, in order."""
    found = []
    until(lambda: found.extend(signals.take()) or len(found) >= count, "a signal")
    return found


def test_every_signal_becomes_its_number():
    """Each of the launcher's signals is told once, makes the descriptor readable, and interrupts nothing."""

    def body():
        signals = Signals(BLOCKED)
        told = []
        for number in BLOCKED:
            assert signals.take() == []
            os.kill(os.getpid(), number)
            assert select.select([signals], [], [], 5)[0] == [signals]
            told += taken(signals, 1)
        signals.close()
        return [int(number) for number in told]

    assert in_child(body) == [int(number) for number in BLOCKED]


def test_what_came_before_the_handlers_is_kept():
    """A signal that arrived while blocked, before there was any handler, comes in at unblock and not earlier."""

    def body():
        signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
        os.kill(os.getpid(), signal.SIGTERM)
        signals = Signals(BLOCKED)
        assert signals.take() == []
        signals.unblock()
        assert taken(signals, 1) == [signal.SIGTERM]
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(BLOCKED)

    in_child(body)


def test_signals_of_others_are_not_ours():
    """A handler that the app installs does not appear among ours."""

    def body():
        signals = Signals([signal.SIGTERM])
        seen = []
        signal.signal(signal.SIGWINCH, lambda number, _frame: seen.append(number))
        os.kill(os.getpid(), signal.SIGWINCH)
        until(lambda: seen, "the app's handler")
        assert signals.take() == []

    in_child(body)


def test_a_signal_does_not_disturb_a_system_call():
    """A blocking read goes on and returns what was written, as if no signal had come."""

    def body():
        signals = Signals([signal.SIGTERM])
        ready, data = Gate(), Gate()
        parent = os.getpid()

        def disturb():
            ready.wait()
            for _ in range(100):
                os.kill(parent, signal.SIGTERM)
            data.open()

        pid = start(disturb)
        ready.open()
        assert os.read(data.reader, 1) == b"."
        assert set(taken(signals, 1)) == {signal.SIGTERM}
        assert reap(pid) == 0

    in_child(body)


def test_a_storm_loses_nothing_that_matters():
    """More signals than a pipe holds neither block nor raise, and the kind that came is known."""

    def body():
        signals = Signals([signal.SIGHUP, signal.SIGTERM])
        for _ in range(70_000):
            signal.raise_signal(signal.SIGHUP)
        found = set()
        while chunk := signals.take():
            found.update(chunk)
        signal.raise_signal(signal.SIGTERM)
        assert found == {signal.SIGHUP}
        assert taken(signals, 1) == [signal.SIGTERM]

    in_child(body)


def test_programs_of_the_app_get_the_defaults():
    """Nothing is ignored or blocked in what is executed: a do-nothing handler is not inherited, SIG_IGN would be."""

    def body():
        Signals(BLOCKED).unblock()
        code = "import signal; print([int(signal.getsignal(n) == signal.SIG_IGN) for n in map(int, input().split())])"
        numbers = [int(number) for number in BLOCKED]
        return subprocess.run(
            [sys.executable, "-c", code],
            input=" ".join(map(str, numbers)),
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert in_child(body).strip() == str([0] * len(BLOCKED))


def test_a_fork_hears_its_own_signals_only():
    """After forget_inherited a child's signals do not appear in its parent's pipe; its own Signals work."""

    def body():
        signals = Signals([signal.SIGTERM])

        def child():
            forget_inherited()
            signal.raise_signal(signal.SIGTERM)
            own = Signals([signal.SIGTERM])
            signal.raise_signal(signal.SIGTERM)
            assert taken(own, 1) == [signal.SIGTERM]

        assert reap(start(child)) == 0
        assert signals.take() == []

    in_child(body)


def test_close_gives_the_descriptors_back():
    """The handlers stay: a late signal is nothing."""

    def body():
        before = len(os.listdir("/proc/self/fd"))
        signals = Signals([signal.SIGTERM])
        signals.close()
        signal.raise_signal(signal.SIGTERM)
        return len(os.listdir("/proc/self/fd")) - before

    assert in_child(body) == 0


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGKILL, "SIGKILL"), (40, "signal 40"), (signal.SIGRTMIN, "SIGRTMIN")]
)
def test_signals_have_names(number, name):
    """As the log says them, real-time ones by number."""
    assert name_of(number) == name
