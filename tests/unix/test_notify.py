"""What a service manager hears: real datagrams, from a path and from the abstract namespace."""

import os
import socket
import time
from contextlib import closing

import pytest

from zcluster.unix.notify import RETRY_S, Notify

NEVER = float("inf")


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """A manager's socket, and the address that a service is given."""
    address = f"{tmp_path}/notify" if request.param == "path" else f"@zcluster-test-{os.getpid()}"
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as sock:
        sock.bind(address.replace("@", "\0"))
        sock.setblocking(False)
        yield sock, address


def heard(sock):
    """All that has come, as lines, datagram by datagram."""
    found = []
    while True:
        try:
            found.append(sock.recv(4096).decode().split("\n"))
        except BlockingIOError:
            return found


def test_a_life(manager):
    """Starting, ready, reloading, ready again, stopping: each is said once, and nothing is said twice."""
    sock, address = manager
    environ = {"NOTIFY_SOCKET": address, "HOME": "/"}
    notify = Notify.of(environ)
    assert environ == {"HOME": "/"}
    assert notify.due == NEVER
    for state, status in (("", "none"), ("", "none"), ("ready", "2 workers"), ("ready", "2 workers")):
        notify.update(1.0, state, status, None, well=True)
    before_us = time.monotonic_ns() // 1000
    notify.update(2.0, "reloading", "2 workers", None, well=True)
    notify.update(3.0, "ready", "2 workers", None, well=True)
    notify.update(4.0, "reloading", "1 worker", 2.5, well=True)
    notify.update(5.0, "ready", "1 worker", 1.5, well=True)
    notify.close()
    notify.update(6.0, "", "over", None, well=True)
    ready = ["READY=1", f"MAINPID={os.getpid()}"]
    said = heard(sock)
    reloading = said.pop(2)
    assert said == [
        ["STATUS=none"],
        [*ready, "STATUS=2 workers"],
        ready,
        ["STOPPING=1", "EXTEND_TIMEOUT_USEC=2500000", "STATUS=1 worker"],
    ]
    assert reloading[0] == "RELOADING=1"
    assert before_us <= int(reloading[1].removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


def test_the_watchdog(manager):
    """Half the period, and only while all is well; what was not said in time is not said later."""
    sock, address = manager
    notify = Notify.of({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "4000000", "WATCHDOG_PID": str(os.getpid())})
    for now, well in ((10.0, True), (11.0, True), (12.0, False), (13.0, True), (14.0, True)):
        notify.update(now, "", "", None, well=well)
    assert notify.due == 16.0
    notify.close()
    assert heard(sock) == [["WATCHDOG=1"]] * 2


def test_a_watchdog_for_somebody_else(manager):
    """A period that was meant for another process, or is no number, is not ours."""
    _, address = manager
    for more in ({"WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}):
        notify = Notify.of({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "4000000", **more})
        assert notify.due == NEVER
        notify.close()


def test_nobody_to_tell():
    """No manager, a strange address, or a program that speaks for itself: nothing is said, nothing is inherited."""
    for address, is_ours in (("", True), ("vsock:2:1234", True), ("/run/x", False)):
        environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}
        notify = Notify.of(environ, is_ours=is_ours)
        assert environ == {}
        notify.update(1.0, "ready", "x", None, well=True)
        assert notify.due == NEVER


def test_a_manager_that_does_not_read(manager):
    """A full queue stops nobody; what was not taken is said again, as it is by then."""
    sock, address = manager
    notify = Notify.of({"NOTIFY_SOCKET": address})
    number = 0
    while notify.due == NEVER:
        number += 1
        assert number < 10_000
        notify.update(1.0, "", str(number), None, well=True)
    assert notify.due == 1.0 + RETRY_S
    assert heard(sock) == [[f"STATUS={n}"] for n in range(1, number)]
    notify.update(2.0, "ready", "last", None, well=True)
    notify.close()
    assert heard(sock) == [["READY=1", f"MAINPID={os.getpid()}", "STATUS=last"]]


def test_a_manager_that_has_gone(manager):
    """Nobody listens any more: that is not our failure."""
    sock, address = manager
    notify = Notify.of({"NOTIFY_SOCKET": address})
    sock.close()
    notify.update(1.0, "ready", "x", None, well=True)
    assert notify.due == NEVER
    notify.close()
