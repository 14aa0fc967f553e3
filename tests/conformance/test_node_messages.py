"""Messages between a worker and the handle: T43 to T51."""

import datetime
import signal
import threading
from collections import defaultdict

import pytest
from conformance_rig import LIMIT_S, cluster_of, end_of, get, in_slot, stop, until, whole

from zcluster import PeerGone, QueueFull, TooLarge

SLOTS = 2


class Heard:
    """What a cluster's messages say, by worker, and how much each had said when its exit was told."""

    def __init__(self, cluster):
        self.said = defaultdict(list)
        self.exits = []
        cluster.on("message", lambda worker, payload: self.said[worker.id].append(payload))
        cluster.on("exit", lambda worker: self.exits.append((worker.id, len(self.said[worker.id]))))

    def of(self, worker):
        """What this worker has said so far."""
        return list(self.said[worker.id])


@pytest.fixture(scope="module")
def shared():
    """One cluster for all, with a listener from the beginning."""
    with cluster_of(workers=SLOTS) as cluster:
        cluster.heard = Heard(cluster)
        yield cluster


@pytest.fixture
def two(shared):
    """The cluster, with two ready workers."""
    return whole(shared, SLOTS)


def echoed(cluster, worker, payload):
    """What comes back when a worker is sent this."""
    before = len(cluster.heard.of(worker))
    worker.send(payload)
    return until(lambda: cluster.heard.of(worker)[before:])[0]


def test_t43_both_ways_and_to_both_listeners(two):
    """An echo is equal, and heard once by the worker's own listener and once by the cluster's, in this order."""
    worker = in_slot(two, 0)
    seen = []
    worker.on("message", lambda payload: seen.append(("worker", payload)))
    two.on("message", lambda other, payload: seen.append(("cluster", payload)))
    payload = {"a": [1, "é", None]}
    worker.send(payload)
    until(lambda: len(seen) == 2)
    assert seen == [("worker", payload), ("cluster", payload)]


def test_t44_early_messages_wait_for_the_worker(two):
    """A thousand, sent as soon as it is forked: each arrives once, in order."""
    worker = two.fork()
    for number in range(1000):
        worker.send(number)
    until(lambda: len(two.heard.said[worker.id]) >= 1000)
    assert two.heard.of(worker) == list(range(1000))


PAYLOADS = {
    "nothing": None,
    "text": "é\0\U0001f600",
    "empty": b"",
    "bytes": b"\x00\xff",
    "a large number": 2**64 - 1,
    "a moment": datetime.datetime(2026, 11, 22, 12, 30, tzinfo=datetime.UTC),
    "nested": {"a": [{"b": [[]]}, {}], "": 1.5},
    "800 kB": "x" * 800_004,
    "32 MiB": b"x" * (32 << 20),
}


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_t45_what_a_message_may_be(two, payload):
    """Equal after a round trip, whatever it is and up to 32 MiB."""
    assert echoed(two, in_slot(two, 1), payload) == payload


def test_t45_what_a_message_may_not_be(two):
    """A TypeError or TooLarge at the sender says what is wrong; the link is whole afterwards."""
    worker = in_slot(two, 0)
    itself = []
    itself.append(itself)
    for wrong in (object(), {"a": lambda: None}, itself, 2**64, "\ud800"):
        with pytest.raises(TypeError, match=f"a message of type {type(wrong).__name__} cannot be sent"):
            worker.send(wrong)
    with pytest.raises(TooLarge):
        worker.send(b"x" * ((32 << 20) + 1))
    assert echoed(two, worker, "whole") == "whole"


def test_t46_send_says_when_it_was_received(two):
    """Its future is done when the worker has it, never while that is stopped: then QueueFull; PeerGone if it dies."""
    worker = in_slot(two, 0)
    worker.send("x").result(LIMIT_S)
    stop(worker)
    waiting = worker.send("y")
    in_slot(two, 1).send("z").result(LIMIT_S)  # others are not held up
    assert not waiting.done()
    more = []
    with pytest.raises(QueueFull):
        more.extend(worker.send(b"") for _ in range(1_000_000))
    worker.kill(signal.SIGKILL)
    assert {type(future.exception(LIMIT_S)) for future in (waiting, *more)} == {PeerGone}
    assert end_of(two, worker) == (None, signal.SIGKILL)
    with pytest.raises(PeerGone):
        worker.send("w").result(LIMIT_S)


def test_t46b_floods_in_both_directions(two):
    """10,000 each way at the same time: all arrive, in order, and nobody waits for ever."""
    worker = two.fork()
    worker.send({"do": "flood", "count": 10_000})
    for number in range(10_000):
        last = worker.send({"do": "tell who"} if number % 1000 == 0 else {"do": "nothing"})
    last.result(LIMIT_S)
    until(lambda: len(two.heard.said[worker.id]) >= 20_000, 30)
    assert [payload for payload in two.heard.of(worker) if isinstance(payload, int)] == list(range(10_000))


@pytest.mark.parametrize("payload", [{"cmd": "NODE_CLUSTER", "ack": -1}, {"cmd": "NODE_x"}, ["stop", {}], {"do": ""}])
def test_t47_no_message_is_an_order(two, payload):
    """What looks like one of Node's or of ours arrives like anything else."""
    assert echoed(two, in_slot(two, 0), payload) == payload


def test_t48_a_listener_that_raises(two, caplog):
    """On either side it is logged, and costs none of the following messages."""
    worker = in_slot(two, 1)
    heard, before = [], len(two.heard.of(worker))

    def raising(payload):
        heard.append(payload)
        raise ValueError(f"as ordered: {payload}")

    worker.on("message", raising)
    for _ in range(3):
        worker.send({"do": "raise"})
    for number in range(10):
        worker.send(number)
    until(lambda: len(two.heard.of(worker)) >= before + 10)  # the worker's own listener comes first
    assert heard == two.heard.of(worker)[before:] == list(range(10))
    assert "as ordered" in caplog.text


@pytest.mark.parametrize("leave", ["exit", "disconnect"])
@pytest.mark.parametrize(("count", "size"), [(1000, 20), (200, 64 << 10), (20, 1 << 20)])
def test_t49_nothing_is_lost_at_an_orderly_exit(two, count, size, leave):
    """1,000 small, 200 of 64 KiB, 20 of 1 MiB, sent just before SystemExit or disconnect: all come before `exit`."""
    before = dict(two.workers)
    try:
        get(two, f"/flood?{count},{size},{leave}")
    except OSError:
        assert leave == "exit"  # a 500: the app has raised
    two.wait_for(lambda: set(before) - set(two.workers), 2 * LIMIT_S)
    (gone,) = set(before) - set(two.workers)
    worker = before[gone]
    assert end_of(two, worker) == (0, None)
    until(lambda: [id_ for id_, _ in two.heard.exits if id_ == gone])
    mail = numbered(two.heard.of(worker))
    assert [payload["number"] for payload in mail] == list(range(count))
    assert {len(payload["body"]) for payload in mail} == {size}
    assert [(gone, len(two.heard.of(worker)))] == [told for told in two.heard.exits if told[0] == gone]


def test_t49_what_a_killed_worker_had_sent(two):
    """After SIGKILL: a prefix of what it sent arrives, nothing twice, and nothing after its exit."""
    before = dict(two.workers)
    killer = threading.Thread(target=lambda: until(lambda: kill_who_talks(two, before)))
    killer.start()
    try:
        get(two, "/flood?5000,20,stay")
    except OSError:
        pass
    killer.join()
    two.wait_for(lambda: set(before) - set(two.workers), LIMIT_S)
    (gone,) = set(before) - set(two.workers)
    until(lambda: [id_ for id_, _ in two.heard.exits if id_ == gone])
    numbers = [payload["number"] for payload in numbered(two.heard.of(before[gone]))]
    assert numbers == list(range(len(numbers)))
    assert [(gone, len(two.heard.of(before[gone])))] == [told for told in two.heard.exits if told[0] == gone]


def numbered(payloads):
    """Those that /flood has sent."""
    return [payload for payload in payloads if isinstance(payload, dict) and "number" in payload]


def kill_who_talks(cluster, workers):
    """Kill the worker of whom some messages have come."""
    for worker in workers.values():
        if numbered(cluster.heard.of(worker)):
            return worker.kill(signal.SIGKILL)
    return False


def test_t50_what_was_sent_before_disconnect(two):
    """50 of 64 KiB, then disconnect: the worker has all of them, and only then hears that it is to leave."""
    worker = in_slot(two, 1)
    before = len(two.heard.of(worker))
    for number in range(50):
        worker.send([number, b"x" * (64 << 10)])
    worker.disconnect()
    assert end_of(two, worker) == (0, None)
    until(lambda: [id_ for id_, _ in two.heard.exits if id_ == worker.id])
    said = two.heard.of(worker)[before:]
    assert [payload[0] for payload in said[:-1]] == list(range(50))
    assert said[-1] == "disconnecting"


def test_t51_exit_is_the_last_that_is_heard(two):
    """Of all workers of these tests, and of two that leave talking: no message came after the exit was told."""
    leaving = list(two.workers.values())
    for worker in leaving:
        worker.send({"do": "flood", "count": 500})
        worker.disconnect()
    until(lambda: {worker.id for worker in leaving} <= {id_ for id_, _ in two.heard.exits})
    assert echoed(two, two.fork(), "later") == "later"
    assert all(two.heard.of(worker)[-501:] == [*range(500), "disconnecting"] for worker in leaving)
    assert all(len(two.heard.said[id_]) == count for id_, count in two.heard.exits)
