"""The master's part in mail: who may speak for whom, what it keeps, and whom it tells that somebody has ended."""

import os
import signal
import subprocess
import sys

import pytest
import zmq
from postal import PostOffice
from serving import until

from zcluster.bus import peers, relay
from zcluster.core.codec import decode, encode
from zcluster.core.mail import MASTER, PIECE_BYTES, Got, Mail, Missing, Publication, Replayed
from zcluster.core.messages import Hello, Leaving, Welcome, WorkerInfo

NAME = f"handle:{os.getpid()}-a"


@pytest.fixture
def office(run_dir):
    """A master that carries mail."""
    with PostOffice(run_dir) as office:
        yield office


@pytest.fixture
def raw(run_dir):
    """A peer that says what it likes: `say(message)`, `hear(kind)`."""
    peers = []

    def make(mailbox, worker=0, role="handle"):
        peer = Raw(run_dir, len(peers) + 1)
        peers.append(peer)
        info = WorkerInfo(worker, 0, 0, 1) if worker else None
        peer.say(Hello(peer.link, "worker" if worker else role, os.getpid(), info, mailbox))
        peer.welcome = peer.hear(Welcome)
        return peer

    yield make
    for peer in peers:
        peer.context.destroy(0)


class Raw:
    """One DEALER."""

    def __init__(self, run_dir, number):
        self.context, self.link = zmq.Context(), bytes([number]) * 16
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.routing_id = self.link
        self.socket.connect(f"ipc://{run_dir}/ctl")

    def say(self, message):
        self.socket.send(encode(message))

    def hear(self, kind):
        """The next message, which is of this kind."""
        assert self.socket.poll(20_000), f"no {kind.__name__}"
        message = decode(self.socket.recv())
        assert isinstance(message, kind), message
        return message


def mail(sender, to, number=1, body=b"x", stream=1, **fields):
    return Mail(sender, to, stream, number, "publish" if to == MASTER else "message", body, **fields)


def test_mail_and_answers_are_carried_as_they_are(office, raw):
    """Between a worker and a handle, both ways."""
    worker, handle = raw("worker:7", 7), raw(NAME)
    there = mail("worker:7", NAME, 3, b"\x00\xff" * 1000, ref=9, topic="t")
    worker.say(there)
    assert handle.hear(Mail) == there
    back = Got(NAME, "worker:7", 1, 3, 29)
    handle.say(back)
    assert worker.hear(Got) == back


@pytest.mark.parametrize(
    ("mailbox", "worker", "role"),
    [
        ("worker:8", 7, "worker"),
        ("worker:7", 0, "handle"),
        ("handle:1-a", 0, "handle"),
        (f"handle:{os.getpid()}-" + "x" * 64, 0, "handle"),
        (NAME, 0, "service"),
        ("master", 0, "handle"),
        ("handles", 0, "handle"),
    ],
    ids=[
        "another's",
        "a handle as a worker",
        "another process",
        "too long",
        "a service",
        "the master",
        "all handles",
    ],
)
def test_nobody_gets_a_name_that_is_not_his(office, raw, mailbox, worker, role):
    """It is welcome on the bus all the same, without a mailbox: what it sends as mail is counted and dropped."""
    peer = raw(mailbox, worker, role)
    assert office.hub.dropped["ctl:mailbox"] == 1
    peer.say(mail(mailbox, MASTER, topic="t"))
    until(lambda: office.hub.dropped["ctl:no-mailbox"] == 1)
    assert mailbox not in office.do(office.members).handles


def test_who_speaks_for_another_or_to_nobody_is_counted(office, raw):
    """The sender is the mailbox of the link; a receiver that is not there is no error: its sender sends again."""
    worker = raw("worker:7", 7)
    raw(NAME)
    worker.say(mail(NAME, "worker:7"))
    worker.say(Got(NAME, "worker:7", 1, 1, 1))
    worker.say(mail("worker:7", "worker:99"))
    worker.say(mail("worker:7", "worker:7"))
    assert worker.hear(Mail).sender == "worker:7"
    assert office.hub.dropped["ctl:wrong-sender"] == 2
    assert office.hub.dropped["ctl:nobody"] == 1


def test_publications_are_numbered_once_and_only_in_their_order(office, raw):
    """Repeated, early, oversized ones and those without a topic are not; one answer a turn says how far it is."""
    worker = raw("worker:7", 7)
    for number in (1, 1, 2, 4, 2, 3):
        worker.say(mail("worker:7", MASTER, number, topic="t", serial=number, more=number == 1, reliable=True))
    answers = []
    until(lambda: answers.append(worker.hear(Got)) or answers[-1].upto == 3)
    assert office.hub.heads["topics"] == 3
    for bad in (mail("worker:7", MASTER, 4), mail("worker:7", MASTER, 4, topic="x" * 256, serial=4),
                mail("worker:7", MASTER, 4, b"x" * (PIECE_BYTES + 1), topic="t")):  # fmt: skip
        worker.say(bad)
    until(lambda: office.hub.dropped["ctl:publication"] == 3)
    worker.say(Missing(1, 3))
    pieces = [worker.hear(Publication) for _ in range(3)]
    assert [(p.number, p.serial, p.part, p.more) for p in pieces] == [
        (1, 1, 0, True),
        (2, 2, 1, False),
        (3, 3, 0, False),
    ]
    assert worker.hear(Replayed) == Replayed(1, 3)
    for asked in (Missing(0, 1), Missing(2, 1), Missing(1, 4), Missing(-5, -1)):
        worker.say(asked)
    until(lambda: office.hub.dropped["ctl:missing"] == 4)
    worker.say(mail("worker:7", MASTER, 1, topic="t", stream=2, serial=4))
    assert worker.hear(Got) == Got(MASTER, "worker:7", 2, 1, 32)
    worker.say(mail("worker:7", MASTER, 4, topic="t", stream=1))  # of the stream before: no answer
    worker.say(mail("worker:7", MASTER, 2, topic="t", stream=2))
    assert worker.hear(Got).upto == 2


def test_what_the_first_to_join_a_new_master_publish_is_kept_for_the_last(office, raw):
    """Reliable or not; later only what is reliable."""
    worker = raw("worker:7", 7)
    worker.say(mail("worker:7", MASTER, 1, topic="t", serial=1))
    worker.hear(Got)
    office.do(lambda: setattr(office.relay, "_joining_until", 0.0))
    worker.say(mail("worker:7", MASTER, 2, topic="t", serial=2))
    worker.hear(Got)
    worker.say(Missing(1, 2))
    assert worker.hear(Publication).number == 1
    assert worker.hear(Replayed) == Replayed(1, 2, {"t": 1}, {"worker:7": 2})


def test_members_are_published_when_somebody_comes_leaves_or_is_killed(office, raw, run_dir):
    """A handle's process is watched; Leaving is as good; the descriptors are given back."""
    worker = raw("worker:7", 7)
    assert worker.welcome.snapshot.members.workers == {7: (0, True)}
    fds = len(os.listdir("/proc/self/fd"))
    handle = raw(NAME)
    assert handle.welcome.snapshot.members.handles == {NAME: False}
    handle.say(Leaving("done"))
    until(lambda: office.do(office.members).handles == {})
    code = (
        "import os, signal, sys; from test_relay import Hello, Raw, Welcome\n"
        "peer = Raw(sys.argv[1], 99)\n"
        "peer.say(Hello(peer.link, 'handle', os.getpid(), None, f'handle:{os.getpid()}-z', True))\n"
        "peer.hear(Welcome); print('up', flush=True); signal.pause()\n"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    child = subprocess.Popen([sys.executable, "-c", code, str(run_dir)], stdout=subprocess.PIPE, env=environ)
    with child:
        assert child.stdout.readline() == b"up\n"
        assert office.do(office.members).handles == {f"handle:{child.pid}-z": True}
        child.send_signal(signal.SIGKILL)
    until(lambda: office.do(office.members).handles == {})
    handle.context.destroy(0)
    until(lambda: len(os.listdir("/proc/self/fd")) <= fds)
    office.bury(7)
    assert office.do(office.members).workers == {}


def test_there_is_a_limit_on_handles(office, raw, monkeypatch, caplog):
    """One more is welcome, without a mailbox, and the log says so."""
    monkeypatch.setattr(relay, "HANDLES_MAX", 1)
    raw(NAME)
    raw(f"handle:{os.getpid()}-b")
    assert "has no mailbox: 1 handles are open already" in caplog.text
    assert office.do(office.members).handles == {NAME: False}


def test_a_stream_begins_with_one(office, raw):
    """A publication in stream 0, not its first, is nothing; the master goes on."""
    handle = raw(NAME)
    handle.say(mail(NAME, MASTER, 5, topic="t", stream=0))
    handle.say(mail(NAME, MASTER, 1, topic="t"))
    assert handle.hear(Got) == Got(MASTER, NAME, 1, 1, 32)


def test_a_link_has_one_name_for_life(office, raw):
    """A second one is welcome, but not to that name; and the first can come back on another link."""
    handle = raw(NAME)
    handle.say(Hello(handle.link, "handle", os.getpid(), None, f"{NAME}b"))
    assert handle.hear(Welcome).snapshot.members.handles == {NAME: False}
    handle.say(Leaving("done"))
    until(lambda: not office.do(office.members).handles)  # there is no order across sockets
    again = raw(NAME)
    again.say(mail(NAME, NAME))
    assert again.hear(Mail) == mail(NAME, NAME)


def test_who_only_listens_is_not_forgotten_for_those_who_ask(office, raw, monkeypatch):
    """Thousands of command lines come and go: a handle that has nothing to say keeps its mailbox."""
    monkeypatch.setattr(peers, "PEERS_MAX", 3)
    listener = raw(NAME)
    for _ in range(4):
        raw("")
    worker = raw("worker:7", 7)
    worker.say(mail("worker:7", NAME))
    assert listener.hear(Mail) == mail("worker:7", NAME)
