"""The master's end: who is admitted, what is counted, and that nothing which comes in stops it."""

import os
import random
import resource
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import zmq
from serving import Master, until

from zcluster import bus
from zcluster.bus.endpoints import CTL_CUT_BYTES, CTL_HWM, EVT_CUT_BYTES, EVT_MAX_BYTES, SUBSCRIPTION_CUT_BYTES
from zcluster.bus.hub import TURN_MESSAGES, Hub
from zcluster.core.codec import encode
from zcluster.core.messages import Answer, Ask, Hello, Increments, Ready, Welcome
from zcluster.core.outbox import FRAME_MAX_BYTES
from zcluster.errors import ConfigError, SpawnError


@pytest.fixture
def stranger(run_dir):
    """Make raw ZeroMQ sockets connected to the hub; all are closed at the end."""
    context = zmq.Context()
    kept = []

    def make(kind, name, routing_id=None):
        raw = context.socket(kind)
        raw.linger = 0
        raw.sndhwm = raw.rcvhwm = 0
        if routing_id:
            raw.routing_id = routing_id
        raw.connect(f"ipc://{run_dir}/{name}")
        kept.append(raw)
        return raw

    yield make
    context.destroy(0)


def answered(link, collect, number):
    """The hub still serves: a question gets its answer."""
    link.send(Ask(number, "echo"))
    collect(link, lambda seen: any(isinstance(m, Answer) and m.number == number for m in seen))


def nasty_frames(count, seed):
    """Empty, random, truncated, foreign, deep, lying and misdirected frames; none is admitted on any socket."""
    rng = random.Random(seed)
    good = encode(Ask(1, "x" * 40))
    fixed = [
        b"", b"\0", b"\1", b"\xff", b"\x02" + good[1:], b"GET / HTTP/1.1\r\n\r\n", good[:-1], good + b"\0",
        b"\x01" + b"\x91" * 5000 + b"\xc0", b"\x01\xdd\xff\xff\xff\xff", b"\x01\xdf\xff\xff\xff\xff",
        b"\x01\xc6\xff\xff\xff\xffx", b"\x01\x92\xa5hello\xc4\x01", b"\x01\x91\xa3\xff\xfe\xfd", b"\x01\x91\xa4nope",
        b"\x01\x94\xa3inc\xa1x\x01\x80", encode(Answer(1)), b"\x01\x90", b"\x01\xc0", b"\x01" + b"\x81" * 3000,
    ]  # fmt: skip
    for number in range(count):
        yield fixed[number] if number < len(fixed) else b"\x00" + rng.randbytes(rng.randrange(200))


def test_a_path_too_long_for_the_kernel_names_the_option(tmp_path):
    """A run directory beyond 107 bytes is the operator's to change, and the text says how."""
    with pytest.raises(ConfigError, match="--run-dir"):
        Hub(str(tmp_path / ("x" * 100)), 1)


def test_a_directory_that_is_not_there_is_a_spawn_error(run_dir):
    """Binding where nothing can be bound leaves no context behind and says where."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(SpawnError, match="missing"):
        Hub(str(run_dir / "missing"), 1)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_limit_of_open_files_is_raised_and_the_sockets_are_private(run_dir):
    """libzmq aborts when it runs out of fds, and other users have no business here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    hub = Hub(str(run_dir), 1)
    try:
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
        assert {p.name: p.stat().st_mode & 0o077 for p in run_dir.iterdir()} == {"ctl": 0, "pub": 0, "evt": 0}
    finally:
        hub.close(0)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_poll_waits_for_foreign_fds_too(run_dir):
    """A pidfd or a pipe of the caller is reported beside the bus, and no more once it is unregistered."""
    hub = Hub(str(run_dir), 1)
    reader, writer = os.pipe()
    try:
        hub.register(reader)
        assert hub.poll(0) == ([], [])
        os.write(writer, b"x")
        assert hub.poll(5) == ([], [reader])
        hub.unregister(reader)
        assert hub.poll(0) == ([], [])
    finally:
        hub.close(0)
        os.close(reader)
        os.close(writer)


def test_a_hello_that_lies_about_its_process_or_its_name_is_dropped(run_dir, stranger):
    """The kernel knows who connected; a Hello that says otherwise is counted and unanswered."""
    with Master(run_dir) as master:
        raw = stranger(zmq.DEALER, "ctl", b"\x01" * 16)
        raw.send(encode(Hello(b"\x01" * 16, "worker", 1)))
        raw.send(encode(Hello(b"\x02" * 16, "worker", os.getpid())))
        raw.send(encode(Hello(b"\x01" * 16, "worker", os.getpid())))
        until(lambda: master.hellos)
        assert master.hub.dropped == {"ctl:wrong-sender": 2}
        assert [(a.peer, a.pid) for a in master.arrivals] == [(b"\x01" * 16, os.getpid())]


def test_messages_in_the_wrong_direction_and_multipart_are_counted(run_dir, stranger):
    """Only what a peer may say is admitted, each on its own socket, in one frame."""
    with Master(run_dir) as master:
        ctl, evt = stranger(zmq.DEALER, "ctl"), stranger(zmq.PUSH, "evt")
        ctl.send(encode(Welcome(1, 1, master.snapshot())))
        ctl.send(encode(Increments(0, 0, {0: 1})))
        ctl.send_multipart([encode(Ready())] + [b"x"] * 1000)
        evt.send(encode(Ready()))
        evt.send_multipart([encode(Increments(0, 0, {0: 1}))] * 2)
        evt.send(encode(Increments(7, 8, {0: 1})))
        until(lambda: master.arrivals and sum(master.hub.dropped.values()) == 5)
        assert master.hub.dropped == {"ctl:direction": 2, "ctl:multipart": 1, "evt:direction": 1, "evt:multipart": 1}
        assert master.arrivals[0].message == Increments(7, 8, {0: 1})


def unreachable(master):
    """How many messages were for nobody."""
    return master.hub.dropped.get("ctl:unreachable", 0)


def test_sending_to_nobody_and_to_a_full_queue_returns_false_at_once(run_dir, stranger):
    """A master is never blocked by a peer that is gone or does not read: the loss is seen and counted."""
    with Master(run_dir) as master:
        assert not master.do(lambda: master.hub.send(b"\x01nobody", Answer(1)))
        raw = stranger(zmq.DEALER, "ctl", b"\x02" * 16)
        raw.send(encode(Hello(b"\x02" * 16, "handle", os.getpid())))
        until(lambda: master.hellos)
        big = Answer(1, "x" * 100_000)
        raw.close(0)
        # It is noticed a moment later; until then what is sent waits in its queue, which may become full.
        until(lambda: not master.do(lambda: master.hub.send(b"\x02" * 16, big)) and unreachable(master) >= 2)
        assert not master.do(lambda: master.hub.send(b"\x01nobody", Answer(1, "x" * (FRAME_MAX_BYTES + 1))))
        assert master.hub.dropped["ctl:too-large-to-send"] == 1


def test_a_peer_that_does_not_read_fills_only_its_own_queue(run_dir, stranger, connect, joined, collect):
    """After the high-water mark, send says false; the others are served."""
    with Master(run_dir) as master:
        link = connect()
        joined(link)
        context = zmq.Context()
        raw = context.socket(zmq.DEALER)
        raw.rcvhwm, raw.routing_id, raw.linger = 1, b"\x03" * 16, 0
        raw.connect(f"ipc://{run_dir}/ctl")
        raw.send(encode(Hello(b"\x03" * 16, "handle", os.getpid())))
        until(lambda: any(a.peer == b"\x03" * 16 for a in master.arrivals))
        big = Answer(1, "x" * 20_000)
        sent = master.do(lambda: next(n for n in range(10_000) if not master.hub.send(b"\x03" * 16, big)))
        assert 0 < sent <= CTL_HWM + 200  # so many fit into the buffers of a connection
        assert master.hub.dropped == {"ctl:queue-full": 1}
        answered(link, collect, 1)
        context.destroy(0)


def test_ten_thousand_bad_frames_on_each_socket_are_counted_and_served_through(
    run_dir, stranger, connect, joined, collect
):
    """Malformed, foreign-version, deep, lying and random frames are dropped one by one; a real peer never notices."""
    with Master(run_dir) as master:
        link = connect()
        joined(link)
        ctl, evt, pub = stranger(zmq.DEALER, "ctl"), stranger(zmq.PUSH, "evt"), stranger(zmq.XSUB, "pub")
        for number, frame in enumerate(nasty_frames(10_000, seed=1)):
            for raw in (ctl, evt, pub):
                raw.send(frame)
            if number % 2500 == 0:
                answered(link, collect, number)

        def dropped(name):  # of a copy: the master's thread may be adding another reason
            return sum(v for k, v in dict(master.hub.dropped).items() if k.startswith(name))

        until(lambda: dropped("ctl:") == dropped("evt:") == 10_000)
        answered(link, collect, 20_000)
        master.do(lambda: master.publish_totals(requests=3))
        collect(link, lambda _: link.totals.get("requests") == 3)


def test_oversized_frames_are_counted_or_cut_off(run_dir, stranger, connect, joined, collect):
    """A little too large is counted; far too large costs the sender its connection, and nobody else anything."""
    with Master(run_dir) as master:
        link = connect()
        joined(link)
        evt, ctl = stranger(zmq.PUSH, "evt"), stranger(zmq.DEALER, "ctl")
        evt.send(b"\x01" * (EVT_MAX_BYTES + 1))
        ctl.send(b"\x01" * (FRAME_MAX_BYTES + 1))
        until(lambda: len(master.hub.dropped) == 2)
        assert master.hub.dropped == {"evt:oversized": 1, "ctl:oversized": 1}
        evt.send(b"\x01" * (EVT_CUT_BYTES + 1))
        ctl.send(b"\x01" * (CTL_CUT_BYTES + 1))
        stranger(zmq.XSUB, "pub").send(b"\x02" * (1 << 20))  # as a subscription it would crash its own sender
        stranger(zmq.XSUB, "pub").send(b"\x01" * (SUBSCRIPTION_CUT_BYTES - 1))
        answered(link, collect, 1)
        assert sum(master.hub.dropped.values()) == 2


def test_raw_garbage_on_the_unix_sockets_harms_nobody(run_dir, connect, joined, collect):
    """Bytes that are not even ZMTP, half greetings, and connections that say nothing."""
    rng = random.Random(2)
    with Master(run_dir) as master:
        link = connect()
        joined(link)
        silent = []
        for number in range(300):
            raw = socket.socket(socket.AF_UNIX)
            raw.connect(str(run_dir / ("ctl", "pub", "evt")[number % 3]))
            greeting = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03" if number % 2 else b""
            try:
                raw.sendall(greeting + rng.randbytes(rng.randrange(2000)))
            except (BrokenPipeError, ConnectionResetError):
                pass  # thrown out while still talking
            if number % 5:
                raw.close()
            else:
                silent.append(raw)
        answered(link, collect, 1)
        joined(connect())
        for raw in silent:
            raw.close()
        assert master.hellos >= 2


def test_a_flood_on_one_socket_does_not_starve_the_other(run_dir, stranger, connect, joined, collect):
    """While events pour in, every turn takes a bounded number of them and questions are answered."""
    with Master(run_dir) as master:
        link = connect()
        joined(link)
        pushers = [stranger(zmq.PUSH, "evt") for _ in range(8)]
        frame = encode(Increments(1, 1, {0: 1}))
        for _ in range(5000):
            for pusher in pushers:
                pusher.send(frame)
        for number in range(5):
            answered(link, collect, number)
        until(lambda: sum(a.source == "evt" for a in master.arrivals) == 40_000)
        assert 0 < master.largest_turn <= TURN_MESSAGES


def test_another_user_is_not_admitted(run_dir):
    """A process of a foreign uid, even with a true Hello, is dropped and counted."""
    root = os.getuid() == 0  # otherwise we cannot become another user, and the hub admits only another one instead
    run_dir.chmod(0o777)
    child = textwrap.dedent("""
        import os, sys, zmq
        context = zmq.Context()  # before the change of user, who may not be able to read our packages
        from zcluster.core.codec import encode
        from zcluster.core.messages import Hello, Increments
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        ctl, evt = context.socket(zmq.DEALER), context.socket(zmq.PUSH)
        ctl.routing_id = b"f" * 16
        ctl.connect(f"ipc://{sys.argv[1]}/ctl")
        evt.connect(f"ipc://{sys.argv[1]}/evt")
        ctl.send(encode(Hello(b"f" * 16, "worker", os.getpid())))
        evt.send(encode(Increments(1, 1, {0: 1})))
        sys.stdin.read()
        context.destroy(0)
    """)
    with Master(run_dir, uids=None if root else {os.getuid() + 1}) as master:
        for path in run_dir.iterdir():
            path.chmod(0o777)
        process = subprocess.Popen([sys.executable, "-c", child, str(run_dir)], stdin=subprocess.PIPE)
        try:
            until(lambda: sum(master.hub.dropped.values()) == 2)
        finally:
            process.communicate(timeout=20)
        assert master.hub.dropped == {"ctl:foreign-uid": 1, "evt:foreign-uid": 1}
        assert not master.arrivals
        assert process.returncode == 0


def test_another_user_meets_two_locked_doors(run_dir):
    """A foreign user cannot enter the run directory; nor, with that opened, connect to any of its sockets."""
    if os.getuid() != 0:
        assert run_dir.stat().st_mode & 0o077 == 0
        return  # nobody but root can try it as somebody else
    child = textwrap.dedent("""
        import os, socket, sys
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        for line in sys.stdin:
            for name in ("ctl", "pub", "evt"):
                try:
                    socket.socket(socket.AF_UNIX).connect(f"{sys.argv[1]}/{name}")
                    print("open", end=" ")
                except PermissionError:
                    print("closed", end=" ")
            print(flush=True)
    """)
    command = [sys.executable, "-S", "-c", child, str(run_dir)]
    with (
        Master(run_dir),
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process,
    ):

        def tries():
            process.stdin.write("now\n")
            process.stdin.flush()
            return process.stdout.readline().split()

        assert tries() == ["closed"] * 3
        run_dir.chmod(0o777)
        assert tries() == ["closed"] * 3
        for path in run_dir.iterdir():
            path.chmod(0o777)
        assert tries() == ["open"] * 3  # so it was the modes that closed it; the hub's own look is tested above
        process.communicate(timeout=20)


def test_zmq_is_imported_by_the_bus_only():
    """No other part of the package speaks ZeroMQ."""
    package = Path(bus.__path__[0]).parent
    users = {p.relative_to(package).parts[0] for p in package.rglob("*.py") if "import zmq" in p.read_text()}
    assert users == {"bus"}
