"""Requests that the application does not end: found in whichever thread, never where a client is slow."""

import logging
import re
import socket
import struct
import threading
import time

import pytest
from http_rig import DEADLINE_S, GET, Records, plain, serve, until

from zcluster.http import Overdue

LIMIT_S = 0.2
LOOK_S = 0.02


@pytest.fixture
def told():
    """A log, and what was written to it."""
    log = logging.getLogger("test.overdue")
    log.propagate = False
    records = Records()
    log.addHandler(records)
    yield log, records
    log.removeHandler(records)


def watching(rig, log, threads=4, grace_s=LIMIT_S):
    return Overdue(rig.engine, threads, limit_s=LIMIT_S, grace_s=grace_s, period_s=LOOK_S, log=log)


def look_until(overdue, condition, what):
    """Look every now and then, as a worker does, until it is so."""

    def looked():
        overdue.look(time.monotonic())
        threading.Event().wait(LOOK_S)
        return condition()

    until(looked, what)


def get(path):
    return GET.replace(b"/ ", path + b" ", 1)


@pytest.mark.parametrize("threads", [1, 4])
def test_the_stack_is_that_of_the_request(threads, told):
    """Also of one that has the only thread, or lost the loop; what else runs is not named."""
    go = threading.Event()

    def get_stuck_here(environ, start_response):
        if environ["PATH_INFO"] != "/":
            go.wait(DEADLINE_S)
        return plain()(environ, start_response)

    log, records = told
    with serve(get_stuck_here, threads=threads) as rig:
        overdue = watching(rig, log, threads)
        client = rig.client().send(get(b"/a%0Ab?secret"))
        look_until(overdue, lambda: overdue.stuck, "it is found stuck")
        if threads > 1:
            assert rig.client().request(GET).status == 200
        look_until(overdue, lambda: overdue.given_up == 1, "it is given up")
        assert len(records.lines) == 1
        first, *stack = records.lines[0].splitlines()
        said = r"WARNING GET /a\\nb has been in the application for \S+ s, longer than the limit of 0\.2 s, in .*:"
        assert re.fullmatch(said, first)
        assert "in _counted" in stack[0]  # what stands between the engine and the application, here
        assert any("in get_stuck_here" in line for line in stack)
        assert "in serve" not in records.lines[0]
        go.set()
        assert client.receive().status == 200
        look_until(overdue, lambda: not overdue.stuck, "it is over")
    assert len(records.lines) == 1


def test_each_is_named_with_its_own_thread(told):
    """Two that block at once, in two threads."""
    go, there = threading.Event(), threading.Barrier(3)

    def first_one():
        there.wait(DEADLINE_S)
        go.wait(DEADLINE_S)

    def second_one():
        there.wait(DEADLINE_S)
        go.wait(DEADLINE_S)

    def app(environ, start_response):
        {"/first": first_one, "/second": second_one}[environ["PATH_INFO"]]()
        return plain()(environ, start_response)

    log, records = told
    with serve(app, threads=4) as rig:
        overdue = watching(rig, log, grace_s=DEADLINE_S)
        clients = [rig.client().send(get(path)) for path in (b"/first", b"/second")]
        there.wait(DEADLINE_S)
        look_until(overdue, lambda: overdue.stuck == 2, "both are found")
        go.set()
        assert [client.receive().status for client in clients] == [200, 200]
    for line in records.lines:
        name = line.partition("GET /")[2].partition(" ")[0]
        other = {"first": "second", "second": "first"}[name]
        assert f"in {name}_one" in line
        assert f"in {other}_one" not in line


def test_a_client_that_does_not_read_is_not_a_stuck_application(told):
    """The thread waits in the middle of a response: that is the client's time, however long."""
    block = b"x" * (1 << 20)

    def app(environ, start_response):
        start_response("200 OK", [])
        for _ in range(16):
            yield block

    log, records = told
    with serve(app, threads=4) as rig:
        overdue = watching(rig, log)
        client = rig.client().send(GET)
        begun = time.monotonic()
        look_until(overdue, lambda: time.monotonic() - begun > 3 * LIMIT_S, "time has passed")
        assert rig.stats.inflight == 1
        assert len(client.receive().body) == 16 << 20
    assert not records.lines


def test_a_client_that_does_not_send_is_not_a_stuck_application(told):
    """The same for a body that is streamed to the application."""

    def app(environ, start_response):
        while environ["wsgi.input"].read(65536):
            pass
        return plain()(environ, start_response)

    log, records = told
    with serve(app, threads=4) as rig:
        overdue = watching(rig, log)
        size = 1 << 20
        client = rig.client().send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % size)
        client.send(b"x" * (size // 2))
        until(lambda: rig.stats.inflight, "the application has it")
        begun = time.monotonic()
        look_until(overdue, lambda: time.monotonic() - begun > 3 * LIMIT_S, "time has passed")
        assert client.send(b"x" * (size // 2)).receive().status == 200
    assert not records.lines


def test_what_is_left_in_a_drain(told):
    """Not while another request can be finished; then the client is cut off with a reset, not with an end."""
    go, other = threading.Event(), threading.Event()

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield b"some"
        (go if environ["PATH_INFO"] == "/stuck" else other).wait(DEADLINE_S)
        yield b"more"

    log, records = told
    with serve(app, threads=4) as rig:
        overdue = watching(rig, log)
        stuck = rig.client().send(get(b"/stuck"))
        look_until(overdue, lambda: overdue.given_up, "it is given up")
        late = rig.client().send(get(b"/late"))
        until(lambda: rig.stats.inflight == 2, "both are in the application")
        rig.engine.drain()
        overdue.look(time.monotonic())
        assert not overdue.is_all_that_is_left()
        other.set()
        assert late.receive().body == b"somemore"
        late.sock.close()
        look_until(overdue, overdue.is_all_that_is_left, "the other one has gone")
        overdue.cut()
        assert "ERROR GET /stuck has been in the application for" in str(records)
        (connection,) = rig.engine._shared.connections.values()
        assert connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == struct.pack("ii", 1, 0)
        go.set()
        stuck.receive()
