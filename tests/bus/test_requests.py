"""Requests on a real bus: to whom they go, and every way in which they fail to be answered."""

import os
import threading

import msgspec
import pytest
from postal import WAIT_S
from serving import until

from zcluster.errors import ClusterError, NoReply, RequestFailed


def test_requests_reach_whom_they_name(town):
    """By id, slot, name; "any" takes turns among the others; the owner's handle; oneself."""
    stations = town.workers(3, listens=False)
    owner = town.station(f"handle:{os.getpid()}-o", listens=False, owner=True)
    for station in (*stations, owner):
        station.on.on("message", lambda payload, name=station.name: (name, payload))
    one = stations[0].mailbox
    until(lambda: one._post.members.handles)
    assert one.request(2, "x", WAIT_S) == ["worker:2", "x"]
    assert one.request("slot:3", 1, WAIT_S) == ["worker:3", 1]
    assert one.request("worker:1", None, WAIT_S)[0] == "worker:1"
    assert one.request("master-handle", None, WAIT_S)[0] == owner.name
    assert {one.request("any", None, WAIT_S)[0] for _ in range(4)} == {"worker:2", "worker:3"}
    for wrong in ("slot:x", "everybody", "", None, True, 1.5):
        with pytest.raises(ClusterError, match="is no target of a request"):
            one.request(wrong, None, 0.1)
    with pytest.raises(NoReply, match="nobody to take the request for 'slot:9'"):
        one.request("slot:9", None, 0.01)


def test_requests_that_fail_say_why(town):
    """No function, one that raises (also what cannot be encoded, or exits), a reply that cannot be sent."""
    one, two, three = town.workers(3, listens=False)
    with pytest.raises(RequestFailed, match="worker:2 has registered no function for messages"):
        one.mailbox.request(2, None, WAIT_S)

    def fails(payload):
        if payload == "raise":
            raise ValueError("broken \udc80 surrogate")
        if payload == "exit":
            raise SystemExit(5)
        return object() if payload == "object" else b"x" * (33 << 20)

    two.on.on("message", fails)
    for payload, text in [
        ("raise", "ValueError: broken .udc80 surrogate"),
        ("exit", "SystemExit: 5"),
        ("object", "TypeError: a message of type object cannot be sent"),
        ("large", "TooLarge: a message of"),
    ]:
        with pytest.raises(RequestFailed, match=text):
            one.mailbox.request(2, payload, WAIT_S)
    assert two.exits == [5]
    three.stop()
    with pytest.raises(NoReply, match=r"worker:3 did not reply within 0\.05 s"):
        one.mailbox.request(3, None, 0.05)
    three.go_on()
    three.on.on("message", lambda _: "late")
    assert one.mailbox.request(3, None, WAIT_S) == "late"
    assert not one.mailbox._calls._calls


def test_nested_requests_end_by_their_timeouts_when_all_threads_wait(town):
    """A function may ask others, and itself; too deep, and it is a NoReply, never a standstill."""
    one, two = town.workers(2, listens=False)

    def deeper(payload):
        depth, timeout_s = payload
        return depth if depth == 0 else two.mailbox.request(2, (depth - 1, timeout_s), timeout_s)

    two.on.on("message", deeper)
    assert one.mailbox.request(2, (3, WAIT_S), WAIT_S) == 0
    with pytest.raises((NoReply, RequestFailed)):
        one.mailbox.request(2, (50, 0.1), WAIT_S)
    assert one.mailbox.request(2, (1, WAIT_S), WAIT_S) == 0


def test_gather_returns_what_there_is_and_who_is_missing(town):
    """One is stopped, one killed meanwhile, one has no subscriber, one raises, one replies nonsense."""
    stations = town.workers(7, listens=False)
    one, stopped, killed, _deaf, raises, nonsense, good = stations
    for station in (one, stopped, killed, good):
        station.on.subscribe("t", lambda payload, name=station.name: [name, payload])
    raises.on.subscribe("t", lambda _: 1 / 0)
    nonsense.on.subscribe("t", lambda _: msgspec.Raw(b"\xc1"))
    stopped.stop()
    killed.stop()
    killed_now = threading.Timer(0.05, town.bury, ["worker:3"])
    killed_now.start()
    for timeout_s in (1.0, 4.0, 16.0):  # a busy machine may need more than one
        gathered = one.mailbox.gather("t", "x", timeout_s)
        killed_now.join()
        if len(gathered.replies) == 2 and len(gathered.missing) > 4:
            break
    assert gathered.replies == {1: ["worker:1", "x"], 7: ["worker:7", "x"]}
    assert set(gathered.missing) == {2, 3, 4, 5, 6}
    assert gathered.missing[2] == "did not reply in time"
    assert "ended" in gathered.missing[3]
    assert "no function for topic 't'" in gathered.missing[4]
    assert "ZeroDivisionError" in gathered.missing[5]
    assert "cannot be decoded" in gathered.missing[6]
    assert not one.mailbox._calls._calls
    stopped.go_on()
