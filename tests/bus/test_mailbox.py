"""Mailboxes on a real bus: what is sent arrives, once and in order, and whoever waits is told how it ended."""

import logging
import os
import threading
import time
from concurrent.futures import wait

import msgspec
import pytest
from postal import WAIT_S, failure_of
from serving import until

from zcluster.bus import reception
from zcluster.bus.calls import encoded
from zcluster.core import post
from zcluster.core.mail import PAYLOAD_MAX_BYTES, PIECE_BYTES, Mail
from zcluster.core.outbox import QueueFull
from zcluster.errors import PeerGone, RequestFailed, TooLarge


def of_size(size):
    """What takes this many bytes on its way."""
    payload = [b"x" * (size - 1000), b"y" * 900]
    payload[1] += b"y" * (size - len(encoded(payload)))
    assert len(encoded(payload)) == size
    return payload


SELF = []
SELF.append(SELF)
LOOP = {}
LOOP["x"] = LOOP


@pytest.mark.parametrize(
    "payload",
    [2**64, -(2**63) - 1, object(), lambda: None, 1j, SELF, LOOP, {"a": [SELF]}, "\udc80", range(3), msgspec.UNSET],
    ids=range(11),
)
def test_what_cannot_be_sent_is_a_type_error_that_says_what_can(payload):
    """At the sender, before anything else happens."""
    with pytest.raises(TypeError, match=r"cannot be sent: .*; send None, bool, int"):
        encoded(payload)


def test_the_largest_message_is_32_mib_of_bytes_and_one_more_is_too_large():
    """The limit is of what the user counts, and the error says what to do."""
    assert len(encoded(b"x" * (32 << 20))) == PAYLOAD_MAX_BYTES
    with pytest.raises(TooLarge, match="split it, or send a path"):
        encoded(b"x" * ((32 << 20) + 1))


def test_hostile_and_ordinary_payloads_arrive_as_they_are(town):
    """Empty ones, the ends of the integers, names of Node's orders, times; sizes around a piece."""
    one, two = town.workers(2)
    payloads = [
        None,
        b"",
        "",
        0,
        2**64 - 1,
        -(2**63),
        {"cmd": "NODE_HANDLE"},
        [],
        {},
        1.5,
        True,
        {"a": [{"b": None}]},
    ]
    payloads += [of_size(PIECE_BYTES + d) for d in (-1, 0, 1)] + [of_size(2 * PIECE_BYTES + d) for d in (-1, 0, 1)]
    for payload in payloads:
        one.mailbox.send("worker:2", payload)
    one.mailbox.flush().result(WAIT_S)
    until(lambda: len(two.got) == len(payloads))
    assert two.got == payloads


def test_the_largest_message_arrives_while_others_go_on(town):
    """Its pieces take turns with what others send to the same receiver."""
    one, two, three = town.workers(3)
    largest = b"0123456789abcdef" * (2 << 20)
    large = one.mailbox.send("worker:2", largest)
    rounds = 0
    while not large.done():
        three.mailbox.send("worker:2", rounds).result(WAIT_S)
        rounds += 1
    large.result(0)
    until(lambda: len(two.got) == rounds + 1)
    assert [payload for payload in two.got if payload != largest] == list(range(rounds))
    assert two.got.count(largest) == 1
    assert rounds


def test_a_payload_that_its_receiver_cannot_decode_loses_nothing_else(town, caplog):
    """msgspec.Raw is sent as it is, be it nonsense."""
    one, two = town.workers(2)
    with caplog.at_level(logging.ERROR, "zcluster.messages"):
        one.mailbox.send("worker:2", msgspec.Raw(b"\xc1"))
        for _ in range(5):
            with pytest.raises(RequestFailed, match="cannot be decoded"):
                one.mailbox.request(2, msgspec.Raw(b"\xc1"), WAIT_S)
        one.mailbox.send("worker:2", "after").result(WAIT_S)
        until(lambda: two.got == ["after"])
    assert "has failed" in caplog.text
    two.on._events["message"] = (lambda _payload: msgspec.Raw(b"\xc1"),)
    with pytest.raises(RequestFailed, match="the reply of worker:2 cannot be decoded"):
        one.mailbox.request(2, None, WAIT_S)


def test_messages_of_one_sender_arrive_in_order_also_over_new_links_and_masters(town):
    """A thousand messages, while the links of both are replaced, then the master, then frames are lost."""
    one, two = town.workers(2)
    count = 0

    def burst():
        nonlocal count
        for _ in range(250):
            one.mailbox.send("worker:2", count)
            count += 1

    burst()
    one.do(lambda: one.link.reopen())
    burst()
    two.do(lambda: two.link.reopen())
    burst()
    town.replace_office()
    burst()
    frames = iter(range(1 << 30))
    town.office.do(
        lambda: setattr(town.office, "lose", lambda a: isinstance(a.message, Mail) and not next(frames) % 99)
    )
    burst()
    one.mailbox.flush("worker:2").result(WAIT_S)
    until(lambda: len(two.got) >= count)
    assert two.got == list(range(count))


def test_early_messages_wait_until_the_receiver_listens(town):
    """They were received, and wait for a function; then they come in order."""
    one, two = town.workers(2, listens=False)
    for number in range(10):
        one.mailbox.send("worker:2", number)
    one.mailbox.flush().result(WAIT_S)
    two.on.on("message", two.got.append)
    one.mailbox.send("worker:2", 10)
    until(lambda: two.got == list(range(11)))


def test_a_slow_receiver_makes_its_senders_wait_and_loses_nothing(town, monkeypatch):
    """Its inbox fills, then the sender's queue, then `send` raises QueueFull; when it goes on all arrive."""
    monkeypatch.setattr(reception, "INBOX_MAX", 50)
    monkeypatch.setattr(post, "MESSAGES_MAX", 100)
    one, two, three = town.workers(3, listens=False)
    gate = threading.Event()
    two.on.on("message", lambda payload: (gate.wait(WAIT_S), two.got.append(payload)))
    sent = {one: [], three: []}
    end = time.monotonic() + WAIT_S
    full = set()
    while len(full) < 2 or sum(map(len, sent.values())) < 250:  # 50 in the inbox, 100 with each sender
        assert time.monotonic() < end
        full.clear()
        for station, numbers in sent.items():
            try:
                station.mailbox.send("worker:2", (station.name, len(numbers)))
                numbers.append((station.name, len(numbers)))
            except QueueFull:
                full.add(station)
    assert two.mailbox._reception._count <= 50
    turns = two.turns
    assert not threading.Event().wait(0.1)
    assert two.turns - turns < 50, "it spins while its inbox is full"
    gate.set()
    for station in sent:
        station.mailbox.flush().result(WAIT_S)
    until(lambda: len(two.got) == sum(map(len, sent.values())))
    for station, numbers in sent.items():
        assert [tuple(payload) for payload in two.got if payload[0] == station.name] == numbers


def test_so_many_large_messages_as_there_is_room_for_are_received_at_a_time(town, monkeypatch):
    """The others wait for their turn: all arrive, and memory is bounded."""
    monkeypatch.setattr(reception, "OPEN_MAX", 2)
    stations = town.workers(5)
    most = 0
    payloads = [bytes([station]) * (10 * PIECE_BYTES) for station in range(5)]
    futures = [station.mailbox.send("worker:1", payload) for station, payload in zip(stations, payloads, strict=True)]
    while not all(future.done() for future in futures):
        most = max(most, len(stations[0].mailbox._reception._open))
        wait(futures, 0.001)
    for future in futures:
        future.result(0)
    until(lambda: len(stations[0].got) == 5)
    assert sorted(stations[0].got) == payloads
    assert most <= 2


def test_whoever_is_killed_is_gone_for_its_senders_at_once(town):
    """What waits for it fails, requests too; and nothing can be sent to it any more."""
    one, two, three = town.workers(3)
    two.stop()
    futures = [one.mailbox.send("worker:2", number) for number in range(100)]
    failures = []
    asking = threading.Thread(target=lambda: failures.append(failure_of(one, 2)))
    asking.start()
    until(lambda: one.mailbox._calls._calls)
    began = time.monotonic()
    town.bury("worker:2")
    until(lambda: all(future.done() for future in futures[50:]))
    asking.join(WAIT_S)
    assert time.monotonic() - began < 5.0
    errors = [future.exception(0) for future in futures]
    assert {type(error) for error in errors} <= {PeerGone, type(None)}
    assert isinstance(errors[-1], PeerGone)
    assert isinstance(failures[0], PeerGone)
    with pytest.raises(PeerGone, match="worker:2 has ended"):
        one.mailbox.send("worker:2", "more").result(0)
    three.mailbox.send("worker:1", "all is well").result(WAIT_S)


def test_what_is_for_all_handles_waits_for_the_first_and_goes_to_each(town):
    """A worker's `send`: parked while there is none, then one copy for each that is open."""
    (one,) = town.workers(1)
    early = one.mailbox.send("handles", "early")
    name = f"handle:{os.getpid()}"
    first = town.station(f"{name}-a")
    early.result(WAIT_S)
    second = town.station(f"{name}-b")
    until(lambda: len(one.mailbox._post.members.handles) == 2)
    one.mailbox.send("handles", "both").result(WAIT_S)
    until(lambda: (first.got, second.got) == (["early", "both"], ["both"]))
    second.stop()
    third = one.mailbox.send("handles", "one of them is stopped")
    until(lambda: first.got[-1] == "one of them is stopped")
    assert not third.done()
    second.go_on()
    third.result(WAIT_S)


def test_flush_waits_for_what_was_sent_before_and_for_one_name_only(town):
    """Not for what is sent after it, and not for another who is stopped."""
    one, two, three = town.workers(3)
    three.stop()
    one.mailbox.send("worker:3", "later")
    one.mailbox.send("worker:2", "now")
    one.mailbox.flush("worker:2").result(WAIT_S)
    assert two.mailbox.flush().result(WAIT_S) is None
    everything = one.mailbox.flush()
    assert not everything.done()
    three.go_on()
    everything.result(WAIT_S)
    until(lambda: three.got == ["later"])


def test_a_future_cannot_be_cancelled_and_its_callbacks_run_elsewhere(town, caplog):
    """A callback that raises or blocks costs nothing else; one added at the end is called too."""
    one, two = town.workers(2)
    called, gate = [], threading.Event()
    delivery = one.mailbox.send("worker:2", 1)
    assert not delivery.cancel()
    with caplog.at_level(logging.ERROR, "zcluster.messages"):
        delivery.add_done_callback(lambda _: gate.wait(WAIT_S))
        delivery.add_done_callback(lambda _: 1 / 0)
        delivery.add_done_callback(lambda _: (_ for _ in ()).throw(SystemExit(3)))
        delivery.add_done_callback(lambda future: called.append((future, threading.current_thread().name)))
        until(lambda: len(called) == 1)
        one.mailbox.send("worker:2", 2).result(WAIT_S)
        gate.set()
    assert called[0][0] is delivery
    assert called[0][1].startswith("zcluster-messages")
    assert "ZeroDivisionError" in caplog.text
    town.stations.pop("worker:1").close()
    delivery.add_done_callback(called.append)
    assert called[1:] == [delivery]
    until(lambda: two.got == [1, 2])


def test_a_closed_mailbox_fails_all_that_waits_and_takes_nothing_more(town):
    """Futures, requests, flushes; the reason is told."""
    one, two = town.workers(2)
    two.stop()
    futures = [one.mailbox.send("worker:2", 1), one.mailbox.publish("t", 1), one.mailbox.flush()]
    failures = []
    asking = threading.Thread(target=lambda: failures.append(failure_of(one, 2)))
    asking.start()
    until(lambda: one.mailbox._calls._calls)
    town.stations.pop("worker:1").close()
    asking.join(WAIT_S)
    assert isinstance(failures[0], PeerGone)
    with pytest.raises(PeerGone, match="it was closed"):
        futures[0].result(WAIT_S)
    futures[2].result(WAIT_S)
    with pytest.raises(PeerGone, match="it was closed"):
        one.mailbox.send("worker:2", 1).result(0)
    assert not one.mailbox._calls.deliveries
    two.go_on()


def test_functions_that_raise_or_exit_lose_nothing_else(town, caplog):
    """The next function and the next message are called; SystemExit is told to the owner, once each time."""
    one, two = town.workers(2, listens=False)

    def fails(payload):
        if payload == "fail":
            raise ValueError("of the user")
        if payload == "leave":
            raise SystemExit(7)
        if payload == "leave with a text":
            raise SystemExit("bye")

    two.on.on("message", fails)
    two.on.on("message", two.got.append)
    payloads = ["fail", "leave", "leave with a text", "last"]
    with caplog.at_level(logging.ERROR, "zcluster.messages"):
        for payload in payloads:
            one.mailbox.send("worker:2", payload)
        until(lambda: two.got == payloads)
    assert "ValueError: of the user" in caplog.text
    assert two.exits == [7, 1]
