"""Zygotes as the master holds them, and the launcher's children that have a control socket."""

import os
import signal
import subprocess
import sys

import pytest

from zcluster.core import messages as m
from zcluster.unix import process
from zcluster.unix.brood import Brood
from zcluster.unix.channel import Channel
from zcluster.unix.offspring import Child
from zcluster.unix.zygotes import Zygotes


class Poller:
    """What is polled."""

    def __init__(self):
        self.fds = set()

    def add(self, fd):
        self.fds.add(fd)

    def remove(self, fd):
        self.fds.remove(fd)


@pytest.fixture
def child():
    """A process that ignores the end of its control socket: it only waits for a signal."""
    with subprocess.Popen([sys.executable, "-c", "import signal; print(flush=True); signal.pause()"],
                          stdout=subprocess.PIPE) as started:  # fmt: skip
        started.stdout.readline()
        yield started
        started.kill()


def zygote_of(zygotes, generation, pid, start):
    """Hand one over; returns the other end of its socket."""
    ours, theirs = Channel.pair()
    zygotes.up(generation, pid, start, ours)
    return Channel(theirs)


def test_what_zygotes_say_comes_with_their_generation():
    """Each is heard on its own socket; at the end of file it is known still, but not polled any more."""
    poller = Poller()
    zygotes = Zygotes(poller.add, poller.remove)
    first, second = zygote_of(zygotes, 1, 10, 1), zygote_of(zygotes, 2, 20, 2)
    assert (zygotes.generations, zygotes.pid(1), zygotes.pid(3)) == ((1, 2), 10, 0)
    assert (zygotes.find(20, 2), zygotes.find(20, 3)) == (2, None)
    first.send(m.Imported(1, True))
    second.send(m.ImportFailed(2, "no"))
    assert list(zygotes.hear(poller.fds)) == [(1, m.Imported(1, True)), (2, m.ImportFailed(2, "no"))]
    assert list(zygotes.hear(())) == []
    zygotes.send(2, m.Sync(1))
    zygotes.send(3, m.Sync(1))  # there is none
    assert [message for message, _ in second.receive()] == [m.Sync(1)]
    second.send(m.ImportFailed(2, "again"))
    second.close()
    assert list(zygotes.last_words(2)) == [(2, m.ImportFailed(2, "again"))]
    assert (len(poller.fds), zygotes.generations) == (1, (1, 2))
    zygotes.forget(2)
    zygotes.hang_up(1)
    zygotes.hang_up(1)
    assert (poller.fds, zygotes.find(10, 1)) == (set(), 1)
    first.receive()
    assert first.closed
    zygotes.forget(1)
    first.close()


def test_the_next_one_of_a_generation_takes_its_place(child):
    """Told twice by the launcher: the socket of before is closed, and signals go to the new process."""
    poller = Poller()
    zygotes = Zygotes(poller.add, poller.remove)
    before = zygote_of(zygotes, 1, 10, 1)
    after = zygote_of(zygotes, 1, child.pid, process.start_time(child.pid))
    before.receive()
    assert before.closed
    assert len(poller.fds) == 1
    zygotes.signal(2, signal.SIGKILL)  # there is none
    zygotes.signal(1, signal.SIGTERM)
    assert child.wait(20) == -signal.SIGTERM
    zygotes.forget(1)
    before.close()
    after.close()


def test_a_zygote_that_does_not_leave_is_killed(child):
    """Its socket is closed at once; when its time is over it is killed, and forgotten when it is dead."""
    ours, theirs = Channel.pair()
    start = process.start_time(child.pid)
    brood = Brood({3: Child(child.pid, start, ours, 0.0)})
    os.kill(child.pid, signal.SIGSTOP)
    brood.let_go(3, 10.0)
    brood.let_go(3, 10.0)
    assert (brood.zygotes, theirs.recv(10)) == ({}, b"")
    brood.hurry(9.9)
    assert process.is_alive(child.pid, start)
    brood.hurry(10.0)
    assert child.wait(20) == -signal.SIGKILL
    brood.forget(child.pid)
    assert not brood._leaving
    theirs.close()


def test_the_dead_are_forgotten():
    """A zygote and a service, by pid; a stranger means nothing."""
    channels = [Channel.pair() for _ in range(2)]
    zygote, service = (Child(pid, 1, ours, 0.0) for pid, (ours, _) in zip((10, 11), channels, strict=True))
    brood = Brood({1: zygote}, {"checkpoint": service})
    brood.forget(12)
    assert (len(brood.zygotes), len(brood.services)) == (1, 1)
    brood.forget(10)
    brood.forget(11)
    assert (brood.zygotes, brood.services) == ({}, {})
    assert all(ours.closed for ours, _ in channels)
    for _, theirs in channels:
        theirs.close()
