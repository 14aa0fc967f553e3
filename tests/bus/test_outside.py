"""`publish`, `subscribe`, `request`, `gather` outside a cluster: the same code runs in the unit tests of an app."""

import logging
import os

import pytest
from serving import until

from zcluster import current, messaging
from zcluster.errors import BusError, ClusterError, PeerGone
from zcluster.subscriptions import Subscriptions


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Registrations of this test only; its threads are ended."""
    monkeypatch.setattr(current, "subscriptions", Subscriptions())
    yield
    for pool in messaging._local.values():
        assert pool.close(20.0)
    messaging._local.clear()


def test_publications_reach_this_process_in_order_and_one_that_fails_is_logged(caplog):
    """As bytes that were encoded and decoded: what a subscriber gets is never the publisher's own object."""
    got = []

    @messaging.subscribe("t")
    def take(payload):
        got.append(payload)
        if payload == (1 if len(got) == 2 else None):
            raise ValueError("of the user")

    mine = {"a": [1]}
    with caplog.at_level(logging.ERROR, "zcluster.messages"):
        assert messaging.publish("t", mine).result(20.0) is None
        for number in range(1, 100):
            messaging.publish("t", number, reliable=True)
        messaging.publish("another", "x")
        until(lambda: len(got) == 100)
    assert got == [mine, *range(1, 100)]
    assert got[0] is not mine
    assert "ValueError: of the user" in caplog.text


def test_what_cannot_be_sent_is_refused_here_too():
    """Otherwise the app's tests would pass, and the app would not work."""
    for call in (messaging.publish, messaging.gather):
        with pytest.raises(TypeError, match="cannot be sent"):
            call("t", object())
        with pytest.raises(BusError, match="a topic is text"):
            call("", 1)
    with pytest.raises(BusError, match="a topic is text"):
        messaging.subscribe("x" * 256)
    with pytest.raises(PeerGone, match="outside a cluster"):
        messaging.request("any", 1)


def test_gather_returns_what_there_is_and_never_fails():
    """The reply of this process, which has no id; the reason, if its function raises; nothing without subscribers."""
    assert messaging.gather("t") == ({}, {})
    messaging.subscribe("t")(lambda payload: None)
    messaging.subscribe("t")(lambda payload: [payload, 1])
    assert messaging.gather("t", "x") == ({0: ["x", 1]}, {})
    messaging.subscribe("bad")(lambda payload: 1 / 0)
    assert messaging.gather("bad") == ({}, {0: "ZeroDivisionError: division by zero"})


def test_a_child_has_threads_of_its_own():
    """The parent's do not cross a fork: what a pre-forking server's worker publishes is handled there."""
    got = []
    messaging.subscribe("t")(got.append)
    messaging.publish("t", "parent")
    until(lambda: got == ["parent"])
    child = os.fork()
    if child == 0:
        code = 1
        try:
            messaging.publish("t", "child")
            until(lambda: got == ["parent", "child"])
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("role", ["handle", "zygote", "forked"])
def test_where_it_cannot_work_the_error_says_what_to_do(role, monkeypatch):
    """A program with several clusters, an import in the zygote, a child of the app."""
    monkeypatch.setattr(current, "role", role)
    for call in (messaging.publish, messaging.gather, messaging.request):
        with pytest.raises(ClusterError, match=r"use cluster\.|no part of the cluster"):
            call("t", 1)
