"""Hostile and broken peers on the bus of a live cluster under load: counted, dropped, and nobody notices. Row 24."""

import os
import random
import resource
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import zmq
from anatomy import instance, kill, see
from harness import running
from load import Load
from observer import Observer

from zcluster.bus.endpoints import CTL_CUT_BYTES, EVT_CUT_BYTES, EVT_MAX_BYTES, SUBSCRIPTION_CUT_BYTES
from zcluster.core import messages as m
from zcluster.core.codec import encode
from zcluster.core.outbox import FRAME_MAX_BYTES
from zcluster.unix.process import start_time

WORKERS = 2
FRAMES = 10_000
# Why a master drops what comes in; it also counts what it could not send.
REASONS = (
    "bad-frame",
    "direction",
    "oversized",
    "multipart",
    "wrong-sender",
    "stranger",
    "foreign-uid",
    "unattested",
)
EXTREME = (-(2**63), -1, 0, 1, 2**31, 2**63, 2**64 - 1)


@pytest.fixture(scope="module")
def cluster():
    with running("counting:app", workers=WORKERS) as running_cluster:
        yield running_cluster


@pytest.fixture
def unharmed(cluster):
    """Load on the cluster during the test; afterwards the same processes, exact counts, no failed request."""
    with Observer(cluster) as seen:
        before, workers = seen.snapshot(), seen.wait_ready(WORKERS)
        with Load(cluster.address, clients=2) as load:
            yield seen
            begun = load.acknowledged
            seen.wait(lambda: load.acknowledged > begun + 20, "requests are answered after all that")
        after = seen.snapshot()
        assert (after.master_pid, after.epoch) == (before.master_pid, before.epoch)
        assert {s: w.pid for s, w in seen.wait_ready(WORKERS).items()} == {s: w.pid for s, w in workers.items()}
        assert not [e for e in seen.events if e.kind in ("exit", "error", "disconnect")], seen.events
        total = cluster.counters()
        assert set(total) == {"requests"}
        load.check(total["requests"], base=before.counters["requests"])
        assert "Traceback" not in cluster.log, cluster.log


@pytest.fixture
def stranger(cluster):
    """Make raw ZeroMQ sockets connected to the cluster's bus; all are closed at the end."""
    context = zmq.Context()
    kept = []

    def make(kind, name, routing_id=None):
        raw = context.socket(kind)
        raw.linger, raw.sndhwm, raw.rcvhwm, raw.rcvtimeo = 0, 0, 0, 30_000
        if routing_id:
            raw.routing_id = routing_id
        raw.connect(f"ipc://{instance(cluster)}/{name}")
        kept.append(raw)
        return raw

    yield make
    context.destroy(0)


def dropped(seen, name):
    """How many messages the master has dropped that came in on one socket."""
    counts = seen.snapshot().dropped
    return sum(counts.get(f"{name}:{reason}", 0) for reason in REASONS)


def packed(*values):
    return b"\x01" + msgspec.msgpack.encode(values)


def garbage(count, seed):
    """Empty, random, truncated, foreign, deep, lying, mistyped and misdirected frames."""
    rng = random.Random(seed)
    whole = encode(m.Ask(1, "snapshot"))
    fixed = [
        b"", b"\0", b"\1", b"\xff", b"\x02" + whole[1:], b"GET / HTTP/1.1\r\n\r\n", whole[:-1], whole + b"\0",
        b"\x01" + b"\x91" * 60_000 + b"\xc0", b"\x01" + b"\x81" * 60_000, b"\x01\xdd\xff\xff\xff\xff",
        b"\x01\xdf\xff\xff\xff\xff", b"\x01\xc6\xff\xff\xff\xffx", b"\x01\x92\xa5hello\xc4\x01",
        b"\x01\x91\xa3\xff\xfe\xfd", b"\x01\x91\xa4nope", b"\x01\x90", b"\x01\xc0",
        encode(m.Answer(1)), encode(m.Drain(0.0, True)),
        encode(m.Tick(2**40, 1, {})), encode(m.Totals(1, 2**60, {"requests": 10**9})), encode(m.Refused("go away")),
        packed("ask", 1.5, "snapshot"), packed("ask", "1", "stop"),
        packed("hello", b"x", "worker", "1"), packed("inc", 1, 1, {"a": 1}), packed("inc", 1, 1, [1]),
        b"\x01" + b"\x91" * 60_000, packed("x" * 50_000), packed(*range(10_000)),
    ]  # fmt: skip
    yield from fixed
    for number in range(count - len(fixed)):
        kind = number % 4
        if kind == 0:
            yield rng.randbytes(rng.randrange(300)).replace(b"\x01", b"\x02", 1)
        elif kind == 1:  # of another release
            yield bytes([rng.choice((0, 2, 3, 127, 255))]) + whole[1:]
        elif kind == 2:  # cut off somewhere
            yield whole[: rng.randrange(len(whole))]
        else:  # one byte too many, of the right version
            yield whole + rng.randbytes(1 + rng.randrange(20))


@pytest.mark.parametrize(("kind", "name"), [(zmq.DEALER, "ctl"), (zmq.PUSH, "evt")])
def test_ten_thousand_frames(unharmed, stranger, kind, name):
    """Every single one is counted as dropped."""
    before = dropped(unharmed, name)
    raw = stranger(kind, name)
    for frame in garbage(FRAMES, seed=3):
        raw.send(frame)
    unharmed.wait(lambda: dropped(unharmed, name) >= before + FRAMES, "all are counted")
    assert dropped(unharmed, name) == before + FRAMES


def test_ten_thousand_subscriptions(unharmed, stranger):
    """Random topics, odd commands and unsubscriptions on `pub`: the totals of the real peers go on coming."""
    raw = stranger(zmq.XSUB, "pub")
    rng = random.Random(4)
    for number, frame in enumerate(garbage(FRAMES, seed=5)):
        raw.send(bytes([number % 3]) + frame[: rng.randrange(SUBSCRIPTION_CUT_BYTES - 1)])
    heard = unharmed.link.totals.get("requests", 0)
    unharmed.wait(lambda: unharmed.link.totals.get("requests", 0) > heard, "totals still arrive")


def test_multipart_and_huge_frames(unharmed, stranger):
    """Up to the limit of the library they are counted; beyond it the sender alone loses its connection."""
    ctl, evt = dropped(unharmed, "ctl"), dropped(unharmed, "evt")
    raw = stranger(zmq.DEALER, "ctl")
    for _ in range(100):
        raw.send_multipart([encode(m.Ask(1, "snapshot")), b"x", b"", b"y"])
    raw.send(b"\x01" + b"\xc6" + struct.pack(">I", 32 << 20) + bytes(32 << 20))
    raw.send(b"\x01" * (FRAME_MAX_BYTES + 1))
    stranger(zmq.PUSH, "evt").send(b"\x01" * (EVT_MAX_BYTES + 1))
    unharmed.wait(lambda: (dropped(unharmed, "ctl"), dropped(unharmed, "evt")) == (ctl + 102, evt + 1), "counted")
    stranger(zmq.DEALER, "ctl").send(b"\x01" * (CTL_CUT_BYTES + 1))
    stranger(zmq.PUSH, "evt").send(b"\x01" * (EVT_CUT_BYTES + 1))
    stranger(zmq.XSUB, "pub").send(b"\x01" * (4 * SUBSCRIPTION_CUT_BYTES))


def test_raw_bytes(cluster, unharmed):
    """Connections that do not speak ZMTP, begin to and stop, or say nothing at all."""
    rng = random.Random(6)
    silent = []
    for number in range(600):
        raw = socket.socket(socket.AF_UNIX)
        raw.connect(str(instance(cluster) / ("ctl", "pub", "evt")[number % 3]))
        greeting = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0NULL" + bytes(48) if number % 2 else b""
        try:
            raw.sendall(greeting[: rng.randrange(65)] + rng.randbytes(rng.randrange(5000)))
        except (BrokenPipeError, ConnectionResetError):
            pass  # thrown out while still talking
        (silent.append if number % 6 == 0 else socket.socket.close)(raw)
    assert unharmed.ask("snapshot").error == ""
    for raw in silent:
        raw.close()


def hello(link, worker):
    return m.Hello(link, "worker", os.getpid(), worker)


def me(like, **other):
    """A worker's papers with our own process in them."""
    mine = {"pid": os.getpid(), "start": start_time(os.getpid())}
    return msgspec.structs.replace(like, **{**mine, **other})


def test_false_papers(unharmed, stranger):
    """Who speaks for another process, or for a lane whose lock it does not hold, is not heard, whatever it says."""
    victim = unharmed.wait_ready(WORKERS)[0]
    before = dropped(unharmed, "ctl")
    link = b"\x02" * 16
    lies = [
        m.Hello(link, "worker", victim.pid, victim),  # its own words, from our mouth
        m.Hello(b"\x03" * 16, "worker", os.getpid(), me(victim)),  # of another link
        hello(link, victim),  # our pid outside, its pid inside
        hello(link, me(victim)),
        hello(link, me(victim, id=10**6)),
        hello(link, me(victim, id=10**6, lane=77)),
        hello(link, me(victim, id=10**6, slot=99, lane=77)),
    ]
    raw = stranger(zmq.DEALER, "ctl", link)
    for lie in lies:
        raw.send(encode(lie))
        for words in (m.Ready(), m.Leaving("I say so"), m.Beat(0, 0, 0, 0, 0, 0.0, 0.0), m.Ask(1, "stop")):
            raw.send(encode(words))
    unharmed.wait(lambda: dropped(unharmed, "ctl") == before + 5 * len(lies), "all of it is dropped")
    raw.send(encode(m.Hello(link, "handle", os.getpid(), me(victim))))  # a handle has no papers
    raw.send(encode(m.Hello(link, "handle", os.getpid())))
    raw.send(encode(m.Leaving("I say so")))  # the truth, but nobody here is a worker
    raw.send(encode(m.Ask(1, "snapshot")))
    while msgspec.msgpack.decode(raw.recv()[1:])[0] != "answer":
        pass
    # Who was drained by it would never be ready again; suspect somebody may be, for a moment of a busy machine.
    unharmed.wait(lambda: {w.state for w in unharmed.workers().values()} == {"ready"}, "both workers are ready")


def test_false_papers_for_a_vacant_place(cluster, stranger):
    """While a slot waits for its replacement nobody else can take it: not even with the right id, slot and lane."""
    with Observer(cluster) as seen:
        victim = seen.wait_ready(WORKERS)[0]
        zygote = see(cluster).zygote
        kill(zygote, number=signal.SIGSTOP)
        try:
            kill(victim.pid)
            seen.wait_exit(victim.pid)
            before = dropped(seen, "ctl")
            claims = [me(victim, id=victim.id + id_, lane=lane) for id_ in range(10) for lane in range(4)]
            link = b"\x04" * 16
            raw = stranger(zmq.DEALER, "ctl", link)
            for claim in claims:
                raw.send(encode(hello(link, claim)))
                raw.send(encode(m.Ready()))
            seen.wait(lambda: dropped(seen, "ctl") == before + 2 * len(claims), "all of it is dropped")
            assert os.getpid() not in seen.workers()
        finally:
            kill(zygote, number=signal.SIGCONT)
        assert seen.wait_ready(WORKERS, without=[victim.pid])[0].pid != os.getpid()


def test_papers_beyond_all_bounds(unharmed, stranger):
    """Numbers that are none, in every field of a worker's papers: dropped, never believed, never fatal."""
    like = unharmed.wait_ready(WORKERS)[0]
    before = dropped(unharmed, "ctl")
    link = b"\x05" * 16
    raw = stranger(zmq.DEALER, "ctl", link)
    fields = ("id", "slot", "lane", "generation", "start", "pid", "requests")
    for field in fields:
        for value in EXTREME:
            papers = {f: getattr(me(like, id=10**6, lane=78), f) for f in like.__struct_fields__} | {field: value}
            raw.send(packed("hello", link, "worker", os.getpid(), list(papers.values())))
            raw.send(packed("ask", value, "snapshot"))
    unharmed.wait(lambda: dropped(unharmed, "ctl") == before + 2 * len(fields) * len(EXTREME), "all of it is dropped")
    assert os.getpid() not in unharmed.workers()


def test_questions_nobody_understands(unharmed, stranger):
    """An unknown verb and wrong arguments are answered with an error; a question without a Hello is dropped."""
    assert "does not know the verb 'make-coffee'" in unharmed.ask("make-coffee").error
    assert "does not know the verb" in unharmed.ask("x" * 100_000).error
    assert unharmed.ask("stop", {"quick": "perhaps"}).error
    assert unharmed.ask("stop", [[[[1]]]]).error
    before = dropped(unharmed, "ctl")
    stranger(zmq.DEALER, "ctl").send(encode(m.Ask(1, "stop")))
    unharmed.wait(lambda: dropped(unharmed, "ctl") == before + 1, "it is dropped")
    assert unharmed.snapshot().state == "running"


def test_increments_of_others(cluster, unharmed, stranger):
    """Whoever says how much a lane has counted, only the ledger is believed."""
    raw = stranger(zmq.PUSH, "evt")
    for lane in (0, 1, 77, 511, 512, 2**63, 2**64 - 1):
        for cell in (0, 255, 256, 2**40):
            raw.send(packed("inc", 1, lane, {cell: 2**64 - 1}))
    raw.send(packed("inc", 1, -1, {-1: -1}))
    before = unharmed.snapshot().received.get("evt", 0)
    unharmed.wait(lambda: unharmed.snapshot().received.get("evt", 0) > before, "they and others were read")
    assert unharmed.snapshot().counters["requests"] < 10**9


FOREIGNER = """
import os, sys, zmq
context = zmq.Context()  # before the change of user, who may not be able to read our packages
from zcluster.core.codec import encode
from zcluster.core.messages import Ask, Hello, Increments
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
ctl, evt = context.socket(zmq.DEALER), context.socket(zmq.PUSH)
ctl.routing_id = b"f" * 16
ctl.connect(f"ipc://{sys.argv[1]}/ctl")
evt.connect(f"ipc://{sys.argv[1]}/evt")
ctl.send(encode(Hello(b"f" * 16, "handle", os.getpid())))
ctl.send(encode(Ask(1, "stop")))
evt.send(encode(Increments(1, 1, {0: 1})))
sys.stdin.read()
context.destroy(0)
"""


def test_another_user(cluster, unharmed):
    """Even with every permission opened, what another user sends is dropped: it cannot stop the cluster."""
    path = instance(cluster)
    doors = [path, path.parent, path.parent.parent, cluster.base, *(path / name for name in ("ctl", "pub", "evt"))]
    modes = {door: door.stat().st_mode & 0o7777 for door in doors}
    assert all(mode & 0o077 == 0 for mode in modes.values()), modes
    if os.getuid() != 0:
        return  # nobody but root can speak as somebody else; the closed doors were looked at
    try:
        for door in doors:
            door.chmod(0o777)
        child = subprocess.Popen([sys.executable, "-c", FOREIGNER, str(path)], stdin=subprocess.PIPE)
        try:
            foreign = {"ctl:foreign-uid": 2, "evt:foreign-uid": 1}
            unharmed.wait(lambda: foreign.items() <= unharmed.snapshot().dropped.items(), "all three are dropped")
        finally:
            child.communicate(timeout=20)
        assert child.returncode == 0
    finally:
        for door, mode in modes.items():
            door.chmod(mode)


def test_afterwards_it_works(cluster):
    """After all of the above a death is noticed and repaired, and the master's memory has not run away."""
    with Observer(cluster) as seen:
        victim = seen.wait_ready(WORKERS)[1]
        kill(victim.pid)
        seen.wait_ready(WORKERS, without=[victim.pid])
        pages = int(Path(f"/proc/{see(cluster).master}/statm").read_text().split()[1])
        assert pages * resource.getpagesize() < 300 << 20
