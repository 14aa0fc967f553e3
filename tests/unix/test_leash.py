"""The leash: when the last holder is gone every wearer is killed by the kernel, whatever it is doing."""

import os
import re
import select
import signal
import time

import pytest
from family import Gate, fork, in_family, lives_on, wait_for_kill
from ledger_support import kill, reap, start, until

from zcluster.unix import leash, process

WITHIN_S = 20.0  # milliseconds on an idle machine, and printed; nobody else would ever end them
ROUNDS = 20


@pytest.fixture
def path(tmp_path):
    leash.make(tmp_path / "leash")
    return tmp_path / "leash"


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.close()


def holder(path, gate):
    """A launcher or master, as far as the leash is concerned."""

    def body():
        leash.hold(path)
        gate.open()
        wait_for_kill()

    return body


def wearer(path, gate, do):
    def body():
        leash.wear(path)
        gate.open()
        do()

    return body


def catastrophic_regex():
    re.match(r"(a+)+$", "a" * 40 + "b")


def stopped():
    os.kill(os.getpid(), signal.SIGSTOP)


def blocked_in_read():
    reader, _writer = os.pipe()
    os.read(reader, 1)


def blocking_signals():
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
    wait_for_kill()


def computing():
    while True:
        pass


ACTS = [catastrophic_regex, stopped, wait_for_kill, blocked_in_read, blocking_signals, computing]


def wait_for_deaths(pids, deadline_s):
    """Seconds until all have died, by pidfd."""
    begun = time.monotonic()
    fds = [os.pidfd_open(pid) for pid in pids]
    try:
        for fd in fds:
            left = begun + deadline_s - time.monotonic()
            assert select.select([fd], [], [], max(left, 0))[0], f"one of {pids} is alive after {deadline_s} s"
        return time.monotonic() - begun
    finally:
        for fd in fds:
            os.close(fd)


def all_alive(pids):
    return all(process.stat(pid).state not in "ZX" for pid in pids)


def test_it_ends_everybody_when_the_last_holder_is_gone(path, gate):
    """SIGKILL of one of two holders changes nothing; of both ends a catastrophic regex, a stopped process, a sleeping
    one, a blocked read, one that blocks every signal and a busy loop."""
    holders = [start(holder(path, gate)) for _ in range(2)]
    gate.wait(2)
    wearers = [start(wearer(path, gate, act)) for act in ACTS]
    gate.wait(len(ACTS))
    until(lambda: process.stat(wearers[1]).state == "T")
    try:
        kill(holders.pop())
        assert lives_on(lambda: all_alive(wearers))
        kill(holders.pop())
        print(f"slowest death: {wait_for_deaths(wearers, WITHIN_S):.4f} s")
        assert [reap(pid) for pid in wearers] == [-signal.SIGKILL] * len(ACTS)
        wearers.clear()
    finally:
        for pid in holders + wearers:
            kill(pid)


def test_the_death_of_a_wearer_ends_nobody_else(path, gate):
    """Neither the holder nor the other wearers notice; they are still on the leash."""
    held = start(holder(path, gate))
    gate.wait()
    wearers = [start(wearer(path, gate, wait_for_kill)) for _ in range(4)]
    gate.wait(4)
    kill(wearers.pop())
    kill(wearers.pop())
    assert lives_on(lambda: all_alive([*wearers, held]))
    kill(held)
    wait_for_deaths(wearers, WITHIN_S)
    assert [reap(pid) for pid in wearers] == [-signal.SIGKILL] * 2


def test_a_holder_may_come_back(path, gate):
    """A new master holds it before the launcher dies: nobody is killed until the new one is gone too."""
    first = start(holder(path, gate))
    gate.wait()
    worn = start(wearer(path, gate, wait_for_kill))
    gate.wait()
    second = start(holder(path, gate))
    gate.wait()
    kill(first)
    assert lives_on(lambda: all_alive([worn]))
    kill(second)
    wait_for_deaths([worn], WITHIN_S)
    assert reap(worn) == -signal.SIGKILL


def test_it_ends_the_wearer_and_not_the_child_that_inherited_it(path):
    """A child forked by a wearer keeps the descriptor open: it is not killed, and it does not save its parent."""

    def body():
        gate, told = Gate(), Gate()
        held = fork(holder(path, gate))
        gate.wait()

        def parent():
            leash.wear(path)
            fork(wait_for_kill)
            told.open()
            wait_for_kill()

        worn = fork(parent)
        told.wait()
        (child,) = (found for found in process.processes() if found.ppid == worn)
        os.kill(held, signal.SIGKILL)
        wait_for_deaths([worn], WITHIN_S)
        assert lives_on(lambda: process.is_alive(child.pid, child.start))
        os.kill(child.pid, signal.SIGKILL)
        for pid, number in ((held, signal.SIGKILL), (worn, signal.SIGKILL), (child.pid, signal.SIGKILL)):
            assert reap(pid) == -number

    in_family(body)


def test_neither_end_reaches_an_exec(path):
    """Programs the app starts have nothing of it: descriptors are closed on exec."""
    for fd in (leash.hold(path), leash.wear(path)):
        assert not os.get_inheritable(fd)
    # Closing in this order: the wearer first, since this very process would be killed.
    os.close(fd)
    os.close(fd - 1)


def test_one_fifo_for_all_wearers_twenty_times(tmp_path, gate):
    """Each wearer has its own description of the one FIFO; not one of 160 is ever missed."""
    slowest_s = 0.0
    for number in range(ROUNDS):
        path = tmp_path / str(number)
        leash.make(path)
        held = start(holder(path, gate))
        gate.wait()
        wearers = [start(wearer(path, gate, act)) for act in (wait_for_kill, stopped, blocked_in_read, computing) * 2]
        gate.wait(len(wearers))
        kill(held)
        slowest_s = max(slowest_s, wait_for_deaths(wearers, WITHIN_S))
        assert [reap(pid) for pid in wearers] == [-signal.SIGKILL] * len(wearers)
    print(f"slowest death: {slowest_s:.4f} s")
