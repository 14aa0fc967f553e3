"""A peer's sockets, used by their owner and by others at once."""

import os
import select
import threading

import pytest
import zmq

from zcluster.bus.sockets import Sockets

WAIT_S = 60.0  # a news that is slept over is slept over for ever: nothing else wakes the owner in these tests


class Echo:
    """A master that sends everything back to whoever has sent it."""

    def __init__(self, run_dir):
        self._context = zmq.Context()
        self._ctl = self._context.socket(zmq.ROUTER)
        self._ctl.bind(f"ipc://{run_dir}/ctl")
        self._end = self._context.socket(zmq.PAIR)
        self._end.bind("inproc://end")
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        end = self._context.socket(zmq.PAIR)
        end.connect("inproc://end")
        poller = zmq.Poller()
        for socket in (self._ctl, end):
            poller.register(socket, zmq.POLLIN)
        while end not in dict(poller.poll()):
            self._ctl.send_multipart(self._ctl.recv_multipart())
        end.close()
        self._ctl.close()

    def close(self):
        self._end.send(b"")
        self._thread.join(WAIT_S)
        self._end.close()
        self._context.term()


class Owner:
    """The thread whose sockets they are; tells who sends what has come back."""

    def __init__(self, run_dir):
        self.bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.back = {}  # number -> event
        self.rung = 0
        self._going = True
        self.sockets = Sockets(str(run_dir))
        self.sockets.open(())
        self.sockets.poller.register(self.bell, select.POLLIN)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        while self._going:
            news, ready = self.sockets.wait(WAIT_S, writing=False)
            if self.bell in ready:
                os.eventfd_read(self.bell)
                self.rung += 1
            if news:
                self.sockets.receive(lambda frame: self.back[int(frame.bytes)].set(), print)
        self.sockets.close(0)

    def ring(self):
        os.eventfd_write(self.bell, 1)

    def close(self):
        self._going = False
        self.ring()
        self._thread.join(WAIT_S)
        os.close(self.bell)


@pytest.fixture
def owner(run_dir):
    echo, owner = Echo(run_dir), Owner(run_dir)
    yield owner
    owner.close()
    echo.close()


def send(owner, number):
    """Send one as another thread than the owner's, and wait until it has come back; whether it left at once."""
    came = owner.back[number] = threading.Event()
    pause = threading.Event()
    while (sent := owner.sockets.send_at_once(b"%d" % number)) is False:
        pause.wait(0.001)  # there is no connection yet
    if sent is None:
        owner.ring()
    assert came.wait(WAIT_S), f"message {number} came back, and its owner slept"
    return sent


def test_no_news_is_slept_over_while_many_threads_send(owner):
    """Four threads, each of which waits for its message to come back before it sends the next."""
    done = []

    def sender(first):
        done.append([send(owner, number) for number in range(first, first + 500)])

    threads = [threading.Thread(target=sender, args=(first,)) for first in (0, 1000, 2000, 3000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * WAIT_S)
    assert sorted(map(len, done)) == [500] * 4
    print(f"{sum(sent is None for some in done for sent in some)} of 2000 took news away from the owner")


def test_sockets_that_are_shut_take_nothing(owner):
    """Neither those of a link that was given up, nor any in a child that its owner has forked."""
    assert send(owner, 1) in (True, None)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if owner.sockets.send_at_once(b"2") is False else 1)
    assert os.waitpid(pid, 0)[1] == 0
    owner.close()
    assert owner.sockets.send_at_once(b"3") is False
    owner.bell = os.eventfd(0)  # the fixture closes it
