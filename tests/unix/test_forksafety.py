"""What must not stand in a process that forks, found in children of the test."""

import os
import socket
import threading

import pytest
from family import Gate, open_fds
from ledger_support import in_child, until

from zcluster.unix.forksafety import hazards

ROUNDS = 200


def connected(family=socket.AF_INET, path=None):
    """A client, the server's end and the listener."""
    listener = socket.socket(family)
    listener.bind(path or {socket.AF_INET: ("127.0.0.1", 0), socket.AF_INET6: ("::1", 0)}[family])
    listener.listen()
    client = socket.create_connection(listener.getsockname()[:2]) if path is None else socket.socket(family)
    if path is not None:
        client.connect(path)
    return client, listener.accept()[0], listener


def inherited():
    """Descriptors a child of pytest has anyway."""
    return frozenset(int(fd) for fd in os.listdir("/proc/self/fd"))


def check(body):
    """Run `body(known descriptors)` in a child that is alone and has one thread; the search itself leaks nothing."""

    def run():
        known = inherited()
        assert hazards(known) == []
        before = open_fds()
        hazards(frozenset())
        assert open_fds() == before
        return body(known)

    return in_child(run)


def test_a_python_thread_is_named():
    """By the name the app gave it."""

    def body(known):
        gate = Gate()
        thread = threading.Thread(target=gate.wait, name="metrics-flusher")
        thread.start()
        found = hazards(known)
        gate.open()
        thread.join()
        return found, hazards(known)

    assert check(body) == (["thread 'metrics-flusher'"], [])


def test_a_thread_of_a_library_in_c_is_named():
    """ZeroMQ's own threads are unknown to Python; the kernel knows their names."""

    def body(known):
        import zmq

        context = zmq.Context()
        sock = context.socket(zmq.PUSH)
        sock.connect("tcp://127.0.0.1:1")
        # A thread gives itself its name: until it has run it is called like its process.
        until(lambda: set(hazards(known)) >= named, "both threads with their names")
        context.destroy(linger=0)
        return True

    named = {"thread 'ZMQbg/IO/0'", "thread 'ZMQbg/Reaper'"}
    assert check(body)


def test_a_thread_that_has_been_joined_is_no_hazard():
    """The kernel lists a thread for a moment after join(); an app that used a pool at import is still preloaded."""

    def body(known):
        for _ in range(ROUNDS):
            thread = threading.Thread(target=int)
            thread.start()
            thread.join()
            assert hazards(known) == []

    check(body)


@pytest.mark.parametrize(("family", "shown"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_tcp_connection_is_named(family, shown):
    """Both ends are connections; the listener between them is not."""

    def body(known):
        client, server, listener = connected(family)
        return (
            sorted(hazards(known)),
            sorted(f"connection to {shown}:{sock.getpeername()[1]}" for sock in (client, server)),
            hazards(known | {client.fileno(), server.fileno()}),
            listener.close(),
        )

    found, expected, without, _ = check(body)
    assert found == expected
    assert without == []


def test_a_connection_to_a_unix_socket_is_named(tmp_path):
    """A database on this machine, also in the abstract namespace."""
    path = f"{tmp_path}/.s.PGSQL.5432"

    def body(known):
        kept = connected(socket.AF_UNIX, path), connected(socket.AF_UNIX, f"\0zc-test-{os.getpid()}")
        return hazards(known), os.getpid(), len(kept)

    found, pid, _ = check(body)
    assert sorted(found) == [f"connection to {path}", f"connection to @zc-test-{pid}"]


def test_what_no_child_could_misuse_is_ignored(tmp_path):
    """Socket pairs, listening, unbound and unconnected sockets, files and pipes."""

    def body(known):
        kept = [
            *socket.socketpair(),
            socket.create_server(("127.0.0.1", 0)),
            socket.socket(),
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
            socket.socket(socket.AF_UNIX),
            (tmp_path / "file").open("w"),
            Gate(),
        ]
        return hazards(known), len(kept)

    assert check(body)[0] == []
