"""Control channels on real socket pairs: nothing blocks, nothing leaks, last words are heard."""

import os
import resource
import select
import signal
import socket
import time

import pytest
from family import Gate, wait_for_kill
from ledger_support import in_child, kill, reap, start, until

from zcluster.core import messages as m
from zcluster.core.codec import encode_control
from zcluster.errors import BadFrame, BusError
from zcluster.unix import channel as module
from zcluster.unix.channel import FDS_MAX, MESSAGE_MAX_BYTES, WAITING_MAX, Channel

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


@pytest.fixture
def ends():
    ours, theirs = Channel.pair()
    other = Channel.of_fd(theirs.detach())
    yield ours, other
    ours.close()
    other.close()


def numbers(received):
    return [message.number for message, _fds in received]


def test_messages_arrive_whole_and_in_order(ends):
    """One datagram a message, both ways; nothing there is an empty list."""
    ours, other = ends
    assert ours.receive() == []
    sent = [m.Received(1), m.Fork(m.WorkerInfo(1, 0, 0, 0)), m.Failed(3, "x" * 100_000), m.Proceed()]
    for message in sent:
        ours.send(message)
    assert [message for message, fds in other.receive() if fds == []] == sent
    other.send(m.Received(2))
    assert numbers(ours.receive()) == [2]
    assert ours.backlog == other.backlog == 0
    assert "waiting=0" in repr(ours)


def test_descriptors_travel_in_messages(ends):
    """The receiver gets its own, closed on exec; the sender may close its own at once."""
    ours, other = ends
    reader, writer = os.pipe()
    ours.send(m.ZygoteUp(0, 1, 2), [reader, writer])
    os.close(reader)
    os.close(writer)
    ours.send(m.Proceed())
    (up, fds), (proceed, none) = other.receive()
    assert (up, proceed, none) == (m.ZygoteUp(0, 1, 2), m.Proceed(), [])
    assert not any(os.get_inheritable(fd) for fd in fds)
    os.write(fds[1], b"through")
    assert os.read(fds[0], 10) == b"through"
    for fd in fds:
        os.close(fd)


def test_a_full_socket_queues_and_flush_sends_the_rest_in_order(ends):
    """The sender never blocks; descriptors wait with their messages."""
    ours, other = ends
    reader, writer = os.pipe()
    for number in range(2000):
        ours.send(m.Died(number, 1, 2, 0, None), [reader] if number % 500 == 499 else ())
    os.close(reader)
    assert 0 < ours.backlog < 2000
    arrived, carried = [], []
    while len(arrived) < 2000:
        received = other.receive()
        assert received or ours.backlog
        arrived += numbers(received)
        carried += [fd for _message, fds in received for fd in fds]
        ours.flush()
    assert arrived == list(range(2000))
    assert ours.backlog == 0
    os.write(writer, b"four")
    assert b"".join(os.read(fd, 1) for fd in carried) == b"four"
    for fd in (writer, *carried):
        os.close(fd)


def test_a_full_socket_becomes_writable(ends):
    """Polling for writing while there is a backlog wakes up when the other end reads."""
    ours, other = ends
    while not ours.backlog:
        ours.send(m.Failed(0, "x" * 10_000))
    assert not select.select([], [ours], [], 0)[1]
    other.receive()
    assert select.select([], [ours], [], 1)[1] == [ours]


def with_other_end(body):
    """Our end of a channel, and a real process that runs `body(its end)`."""
    ours, theirs = Channel.pair()

    def run():
        ours.close()
        body(Channel.of_fd(theirs.detach()))

    pid = start(run)
    theirs.close()
    return ours, pid


def test_a_killed_process_is_an_end_of_file_and_no_exception():
    """Sending to it is silently nothing, what waited is dropped with its descriptors, receive says closed."""
    ours, pid = with_other_end(lambda _channel: wait_for_kill())
    with open(os.devnull) as file:
        while ours.backlog < 3:
            ours.send(m.Failed(0, "x" * 20_000), [file.fileno()])
    kill(pid)
    ours.flush()
    assert ours.backlog == 0
    ours.send(m.Proceed())
    assert ours.receive() == []
    assert ours.closed
    ours.send(m.Proceed())
    assert ours.receive() == []
    ours.close()
    assert ours.fileno() == -1
    assert "closed" in repr(ours)


@pytest.mark.parametrize("send_first", [False, True])
def test_the_last_words_of_a_dead_process_are_heard(send_first):
    """It sent its reason and ended without reading what we had sent: the reason arrives, also when we notice the end
    by sending."""
    ours, pid = with_other_end(lambda channel: channel.send(m.Failed(3, "no such app")))
    ours.send(m.Proceed())
    until(lambda: select.select([ours], [], [], 0)[0])
    assert reap(pid) == 0
    ours.send(m.Proceed())
    if send_first:
        ours.send(m.Proceed())
    assert ours.receive() == [(m.Failed(3, "no such app"), [])]
    assert ours.closed
    ours.close()


def test_a_message_that_cannot_be_sent_is_an_error_and_the_channel_lives(ends):
    """Too large for the protocol, too many descriptors, or too large for this socket's buffer: BusError each time."""
    ours, other = ends
    with pytest.raises(BusError, match=f"the limit is {MESSAGE_MAX_BYTES}"):
        ours.send(m.Failed(0, "x" * MESSAGE_MAX_BYTES))
    with pytest.raises(BusError, match=f"{FDS_MAX + 1} descriptors; the limit is {FDS_MAX}"):
        ours.send(m.Proceed(), [0] * (FDS_MAX + 1))
    ours.send(m.Received(1))
    assert numbers(other.receive()) == [1]

    small, reader = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    small.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    sender, receiver = Channel(small), Channel(reader)
    with pytest.raises(BusError, match="cannot send a control message of 100016 bytes: Message too long"):
        sender.send(m.Failed(0, "x" * 100_000))
    sender.send(m.Received(2))
    assert numbers(receiver.receive()) == [2]
    sender.close()
    receiver.close()


def test_the_largest_message_goes_through(ends):
    """MESSAGE_MAX_BYTES fit into the kernel's default buffer."""
    ours, other = ends
    overhead = len(encode_control(m.Failed(0, "x" * 100_000))) - 100_000
    message = m.Failed(0, "x" * (MESSAGE_MAX_BYTES - overhead))
    ours.send(message)
    assert other.receive() == [(message, [])]


def test_a_process_that_never_reads_is_an_error_in_the_end(ends):
    """WAITING_MAX messages wait, no more; what waits is still sent when it goes on."""
    ours, other = ends
    while ours.backlog < WAITING_MAX:
        ours.send(m.Proceed())
    with pytest.raises(BusError, match=f"{WAITING_MAX} control messages wait"):
        ours.send(m.Proceed())
    assert ours.backlog == WAITING_MAX
    while ours.backlog:
        other.receive()
        ours.flush()


def test_lost_descriptors_are_an_error_and_not_a_message_without_them():
    """A receiver whose table is full gets a BusError that says what to raise."""

    def body():
        ours, theirs = Channel.pair()
        other = Channel(theirs)
        ours.send(m.ZygoteUp(0, 1, 2), [0, 1])
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, hard))  # room for one of two
        with pytest.raises(BusError, match="descriptors of a control message were lost"):
            other.receive()
        assert os.dup(0) == lowest  # that one was closed again
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    in_child(body)


def test_garbage_is_a_bad_frame():
    """Both ends are ours, so this is a bug and told as one."""
    ours, theirs = Channel.pair()
    theirs.send(b"\x07garbage")
    with pytest.raises(BadFrame):
        ours.receive()
    theirs.close()
    ours.close()


def test_an_inherited_descriptor_goes_no_further():
    """of_fd and the pair itself are closed on exec; dup gives one to hand on."""
    ours, theirs = Channel.pair()
    os.set_inheritable(theirs.fileno(), True)
    other = Channel.of_fd(theirs.detach())
    assert not os.get_inheritable(other.fileno())
    assert not os.get_inheritable(ours.fileno())
    ours.send(m.Received(5))
    ours.close()
    copy = Channel.of_fd(other.dup())
    other.close()
    assert numbers(copy.receive()) == [5]
    copy.close()


def test_close_is_idempotent_and_drops_what_waits(ends):
    """The descriptors that waited are closed too (the leak check of this file sees them)."""
    ours, _other = ends
    with open(os.devnull) as file:
        while ours.backlog < 2:
            ours.send(m.Failed(0, "x" * 20_000), [file.fileno()])
    ours.close()
    ours.close()
    assert ours.backlog == 0


def test_the_first_message_is_waited_for():
    """It may come later than the child asks for it."""
    gate = Gate()

    def body(channel):
        gate.wait()
        channel.send(m.Proceed())

    ours, pid = with_other_end(body)
    gate.open()
    assert ours.first_message() == m.Proceed()
    assert reap(pid) == 0
    ours.close()
    gate.close()


def test_a_first_message_that_does_not_come_is_an_error(monkeypatch):
    """Silence ends at the time-out, a dead starter at once; both say that the starter is to blame."""
    ours, pid = with_other_end(lambda _channel: wait_for_kill())
    monkeypatch.setattr(module, "FIRST_MESSAGE_MS", 50)
    with pytest.raises(BusError, match=r"sent no first message within 0\.05 s"):
        ours.first_message()
    monkeypatch.setattr(module, "FIRST_MESSAGE_MS", 100_000)
    os.kill(pid, signal.SIGKILL)
    begun = time.monotonic()
    with pytest.raises(BusError, match="went away before it sent the first message"):
        ours.first_message()
    assert time.monotonic() - begun < 50
    assert reap(pid) == -signal.SIGKILL
    ours.close()
