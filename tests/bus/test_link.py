"""A peer's end: joining, staying joined, losing the master and finding the next one, through real sockets."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import msgspec
import pytest
from serving import Master, start_time, until
from test_hub import nasty_frames

from zcluster.bus.link import Link
from zcluster.core.codec import encode_pub, subscription
from zcluster.core.joining import REOPEN_MIN_S, Joined, Missed, Parted, Refreshed
from zcluster.core.messages import (
    TOTALS,
    Answer,
    Ask,
    Beat,
    Event,
    Hello,
    Increments,
    Ready,
    Totals,
    Welcome,
)
from zcluster.core.outbox import Outbox, QueueFull
from zcluster.errors import BusError, ConfigError


@pytest.fixture
def masters(run_dir):
    """Start masters as processes of their own; all are killed at the end."""
    processes = []

    def start(epoch, total=0):
        command = [sys.executable, str(Path(__file__).with_name("serving.py")), str(run_dir), str(epoch), str(total)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        processes.append(process)
        assert process.stdout.readline() == b"up\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait(20)
        process.stdout.close()


def answers(seen):
    """The numbers of the answers among what was delivered."""
    return [m.number for m in seen if isinstance(m, Answer)]


def test_a_path_too_long_for_the_kernel_names_the_option(tmp_path):
    """The same text as on the master's side."""
    with pytest.raises(ConfigError, match="--run-dir"):
        Link(str(tmp_path / ("x" * 100)), lambda name: Hello(name, "handle", os.getpid()))


def test_joining_brings_the_snapshot_and_then_every_update(run_dir, connect, collect, joined):
    """After Joined the totals of the snapshot are known, and what is published is delivered as it is."""
    with Master(run_dir, epoch=7, totals={"requests": 5}) as master:
        link = connect()
        seen = [
            m for m in joined(link) if not isinstance(m, Refreshed)
        ]  # a Hello that was repeated is answered twice
        assert [type(m) for m in seen] == [Joined]
        assert (seen[0].snapshot.epoch, seen[0].again, link.epoch, link.totals) == (7, False, 7, {"requests": 5})
        number = master.do(lambda: master.publish_totals(requests=6))
        master.do(lambda: master.publish_event("hi"))
        seen = collect(link, lambda seen: any(isinstance(m, Event) for m in seen))
        seen = [m for m in seen if not isinstance(m, Refreshed)]  # a Hello that was repeated is answered twice
        assert seen[0] == Totals(7, number, {"requests": 6})
        assert isinstance(seen[1], Event)
        assert seen[1].text == "hi"


def test_two_hundred_joins_all_receive_the_first_broadcast_after_ready(run_dir, connect, collect, joined):
    """Fault row 17: nobody is a slow joiner, while other broadcasts go on all the time."""
    with Master(run_dir) as master:
        broadcasts = iter(range(1, 10**6))
        master.on_ready = lambda _: master.publish_totals(requests=next(broadcasts))
        for round_ in range(1, 201):
            link = connect(topics=(TOTALS,))
            joined(link)
            link.send(Ready())
            seen = collect(link, lambda seen: any(isinstance(m, Totals) for m in seen))
            assert [m.totals for m in seen if isinstance(m, Totals)] == [{"requests": round_}]
            link.close(0)
        assert master.resyncs == 0
        assert not master.hub.dropped


def test_links_that_come_and_go_leave_no_fd_behind(run_dir, connect, joined):
    """Sockets, pidfds and contexts all end with their link."""
    with Master(run_dir):
        before = None
        for _ in range(20):
            link = connect()
            joined(link)
            link.reopen()
            joined(link)
            link.close(0)
            link.close(0)
            before = before or len(os.listdir("/proc/self/fd"))
        # The master's side of a closed connection is closed by its own I/O thread, a moment later.
        until(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_a_killed_master_is_noticed_and_its_successor_joined(masters, connect, collect, joined):
    """SIGKILL: the link parts at once, asks what it was asking, keeps totals from falling, and sees epoch + 1."""
    first = masters(1, 41)
    link = connect()
    joined(link)
    first.send_signal(signal.SIGKILL)
    seen = collect(link, lambda seen: any(isinstance(m, Parted) for m in seen))
    assert not link.joined
    assert [m.reason for m in seen if isinstance(m, Parted)] == ["the master has ended"]
    link.send(Ask(1, "echo"))
    link.send(Ask(2, "echo"))
    assert not link.push(Increments(1, 1, {0: 1}))
    masters(2, 42)
    seen = collect(link, lambda seen: len(answers(seen)) == 2)
    assert answers(seen) == [1, 2]
    assert [(m.snapshot.epoch, m.again) for m in seen if isinstance(m, Joined)] == [(2, True)]
    assert [m.totals for m in seen if isinstance(m, Totals)] == [{"requests": 42}]
    assert (link.epoch, link.totals) == (2, {"requests": 42})


def test_many_restarts_of_the_master_answer_every_question_once(masters, connect, collect, joined):
    """Five masters are killed with questions in flight; each question gets exactly one answer."""
    link = connect()
    seen, asked = [], 0
    for epoch in range(1, 6):
        process = masters(epoch, epoch)
        seen += collect(link, lambda _, epoch=epoch: link.joined and link.epoch == epoch)
        for _ in range(20):
            asked += 1
            link.send(Ask(asked, "echo"))
        seen += link.poll(0)[0]
        process.kill()
        seen += collect(link, lambda _: not link.joined)
    masters(6, 6)
    # The fifth may have answered everything before it was killed: an empty outbox alone says nothing of the sixth.
    seen += collect(link, lambda _: link.joined and link.epoch == 6 and len(link.outbox) == 0)
    assert sorted(answers(seen)) == list(range(1, asked + 1))
    assert [m.snapshot.epoch for m in seen if isinstance(m, Joined)] == [1, 2, 3, 4, 5, 6]


def test_a_welcome_of_a_process_that_is_not_there_is_not_trusted(run_dir, connect, collect, joined):
    """A re-used pid (another start time) is no master; the link tries again, and joins when it is true."""
    with Master(run_dir) as master:
        master.start += 1
        link = connect()
        seen = collect(link, lambda seen: sum(isinstance(m, Parted) for m in seen) >= 3)
        assert not any(isinstance(m, Joined) for m in seen)
        master.start = start_time(os.getpid())
        joined(link)


def test_an_ordered_reconnect_is_told_at_once(run_dir, connect, joined):
    """What happened between two polls is delivered by the next one without waiting for its time-out."""
    with Master(run_dir):
        link = connect(heartbeat_s=30)
        joined(link)
        threading.Event().wait(REOPEN_MIN_S)  # otherwise the limit on new sockets holds it back that long
        link.reopen()
        started = time.monotonic()
        delivered, _ = link.poll(float("inf"))
        assert isinstance(delivered[0], Parted)
        assert time.monotonic() - started < 20


def test_a_silent_master_that_lives_costs_a_link_and_not_more(run_dir, connect, collect, joined):
    """No tick for five heartbeats: new sockets, a new name, joined again in the same epoch."""
    with Master(run_dir) as master:
        link = connect(heartbeat_s=0.05)
        joined(link)
        master.ticking = False
        seen = collect(link, lambda seen: any(isinstance(m, Parted) for m in seen))
        master.ticking = True
        seen += joined(link)
        assert "nothing heard" in next(m.reason for m in seen if isinstance(m, Parted))
        assert link.epoch == 1
        assert len({a.peer for a in master.arrivals if isinstance(a.message, Hello)}) >= 2


def test_a_gap_is_closed_by_a_resync(run_dir, connect, collect, joined):
    """Lost totals and a lost event come back with the next snapshot, the events in order and once."""
    with Master(run_dir) as master:
        link = connect()
        joined(link)

        def lose():
            master.publish_event("one")
            master.publish_event("two", lose=True)
            master.publish_event("three")
            master.hub.heads[TOTALS] = master.hub.heads.get(TOTALS, 0) + 1
            master.totals["lost"] = 9

        master.do(lose)
        seen = collect(link, lambda seen: "lost" in link.totals and sum(isinstance(m, Event) for m in seen) == 3)
        assert [m.text for m in seen if isinstance(m, Event)] == ["one", "two", "three"]
        assert any(isinstance(m, Refreshed) for m in seen)
        assert link.totals["lost"] == 9
        assert master.resyncs >= 1


def test_a_slow_subscriber_converges(run_dir, connect, collect, joined):
    """Fault row 15: 100,000 broadcasts to a peer that does not look; PUB drops, the peer ends at the truth."""
    with Master(run_dir) as master:
        link = connect()
        joined(link)

        def flood():
            for value in range(1, 100_001):
                master.publish_totals(requests=value)
                if value % 1000 == 0:
                    master.publish_event(str(value))

        master.do(flood)
        seen = collect(link, lambda _: link.totals.get("requests") == 100_000 and len(link.outbox) == 0)
        seen += collect(
            link, lambda more: master.resyncs and "100000" in [getattr(m, "text", "") for m in seen + more]
        )
        values = [m.totals["requests"] for m in seen if isinstance(m, Totals)]
        assert values == sorted(set(values))
        assert [int(m.text) for m in seen if isinstance(m, Event)] == list(range(1000, 100_001, 1000))
        assert not any(isinstance(m, Missed) for m in seen)


def test_questions_are_asked_again_after_a_reconnect_and_answered_once(run_dir, connect, collect, joined):
    """A new set of sockets repeats what has no answer yet; a second answer is dropped."""
    with Master(run_dir) as master:
        link = connect()
        joined(link)
        for number in range(50):
            link.send(Ask(number, "echo", msgspec.Raw(msgspec.msgpack.encode({"n": number}))))
        link.reopen()
        seen = collect(link, lambda seen: len(answers(seen)) == 50)
        link.send(Ask(99, "echo"))
        seen += collect(link, lambda more: 99 in answers(more))
        assert sorted(answers(seen)) == [*range(50), 99]
        asked = [a.message.number for a in master.arrivals if isinstance(a.message, Ask)]
        assert set(asked) == {*range(50), 99}
        assert bytes(next(m.body for m in seen if isinstance(m, Answer) and m.number == 7)) == b"\x81\xa1n\x07"


def test_without_a_master_the_queue_is_bounded_and_says_so(connect):
    """Messages and bytes both have a limit; statements of state are conflated and never fill it."""
    link = connect(outbox=Outbox(messages_max=10, bytes_max=2000))
    for number in range(9):
        link.send(Ask(number, "x"))
    for number in range(100):
        link.send(Beat(number, 0, 0, 0, 0, 0.0, 0.0))
    with pytest.raises(QueueFull, match="10 messages"):
        link.send(Ask(100, "x"))
    assert link.outbox.forget(3)
    with pytest.raises(QueueFull):
        link.send(Ask(101, "x" * 2000))
    assert not link.push(Increments(1, 1, {0: 1}))
    assert link.poll(0) == ([], [])


def test_the_latest_state_is_sent_on_joining(run_dir, connect, collect):
    """What was said while there was no master is said once, as it is now."""
    link = connect()
    for number in range(100):
        link.send(Beat(number, 0, 0, 0, 0, 0.0, 0.0))
    with Master(run_dir) as master:
        collect(link, lambda _: any(isinstance(a.message, Beat) for a in master.arrivals))
        assert [a.message.requests for a in master.arrivals if isinstance(a.message, Beat)] == [99]


def test_increments_are_pushed_and_refused_when_too_large(run_dir, connect, joined):
    """An event leaves at once or not at all; one that the master would cut us off for is our own mistake."""
    with Master(run_dir) as master:
        link = connect()
        joined(link)
        until(lambda: link.push(Increments(3, 4, {0: 17})))
        until(lambda: any(a.message == Increments(3, 4, {0: 17}) for a in master.arrivals))
        with pytest.raises(BusError, match="fewer"):
            link.push(Increments(1, 1, dict.fromkeys(range(20_000), 2**60)))


def test_poll_wakes_for_fds_and_for_signals(run_dir, connect, joined):
    """The owner's own fds, the signal wake-up fd among them, end a poll at once; a signal alone breaks nothing."""
    with Master(run_dir):
        link = connect(heartbeat_s=30)
        joined(link)
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        caught = []
        before = signal.signal(signal.SIGUSR1, lambda *_: caught.append(1))
        fd_before = signal.set_wakeup_fd(writer)
        link.register(reader)
        try:
            timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1))
            timer.start()
            started = time.monotonic()
            ready = []
            while not ready:
                ready = link.poll(30)[1]
            assert ready == [reader]
            assert caught == [1]
            assert time.monotonic() - started < 20
            timer.join()
        finally:
            signal.set_wakeup_fd(fd_before)
            signal.signal(signal.SIGUSR1, before)
            link.unregister(reader)
            os.close(reader)
            os.close(writer)


def test_a_link_works_from_any_one_thread(run_dir, joined):
    """A handle makes, uses and closes its link in a thread of its own."""
    states = []

    def own():
        link = Link(str(run_dir), lambda name: Hello(name, "handle", os.getpid()), heartbeat_s=0.2)
        joined(link)
        states.append(link.joined)
        link.close(0)

    with Master(run_dir):
        thread = threading.Thread(target=own)
        thread.start()
        thread.join(20)
    assert states == [True]


def test_a_closed_link_and_a_forked_copy_say_so(run_dir, connect):
    """Using it after close is an error of the caller; in a forked child, too, and there close does nothing."""
    link = connect()
    link.close(0)
    for use in (lambda: link.poll(0), lambda: link.send(Ready()), link.reopen):
        with pytest.raises(BusError, match="closed"):
            use()
    script = textwrap.dedent("""
        import os, sys
        from zcluster.bus.link import Link
        from zcluster.core.messages import Hello
        from zcluster.errors import BusError
        link = Link(sys.argv[1], lambda name: Hello(name, "handle", os.getpid()))
        child = os.fork()
        if child == 0:
            try:
                link.poll(0)
            except BusError:
                link.close()
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        link.poll(0)
        link.close()
    """)
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, str(run_dir)]
    assert subprocess.run(command, timeout=30, check=False).returncode == 0


def test_a_hostile_master_cannot_end_a_peer(run_dir, connect, joined, collect):
    """10,000 bad frames from above on both sockets are counted; what is true is still delivered."""
    with Master(run_dir) as master:
        link = connect()
        joined(link)
        peer = next(a.peer for a in master.arrivals)
        frames = list(nasty_frames(10_000, seed=3))

        def send(some):
            for frame in some:
                master.hub._ctl.send_multipart([peer, frame])
                master.hub._pub.send(subscription(TOTALS) + frame)

        def counted(name):
            return sum(count for key, count in link.dropped.items() if key.startswith(name))

        for first in range(0, 10_000, 100):  # fewer than the high-water mark, so that none is lost on the way
            master.do(lambda first=first: send(frames[first : first + 100]))
            collect(link, lambda _, first=first: counted("ctl") == counted("pub") == first + 100)
        master.do(lambda: master.publish_totals(requests=77))
        collect(link, lambda _: link.totals.get("requests") == 77)
        assert link.dropped["ctl:unasked"] == 1
        assert link.dropped["pub:bad-frame"] == 10_000


def test_a_stale_welcome_of_a_lower_epoch_is_fenced(run_dir, connect, collect, joined):
    """A master of the past may still speak; nobody believes it."""
    with Master(run_dir, epoch=5) as master:
        link = connect()
        joined(link)
        peer = next(a.peer for a in master.arrivals)
        old = msgspec.structs.replace(master.snapshot(), epoch=4, counters={"requests": 999})
        master.do(lambda: master.hub.send(peer, Welcome(os.getpid(), master.start, old)))
        master.do(lambda: master.hub._pub.send(encode_pub(TOTALS, Totals(4, 9999, {"requests": 998}))))
        master.do(lambda: master.publish_totals(requests=1))
        collect(link, lambda _: link.totals.get("requests") == 1)
        assert link.epoch == 5
