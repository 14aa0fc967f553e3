"""What the tests of listeners share."""

import socket

import pytest

from zcluster.unix import listen


@pytest.fixture
def bound():
    """Bind, and close at the end."""
    made = []

    def bind(*addresses, backlog=16, **more):
        found = listen.bind(addresses, backlog, **more)
        made.extend(found)
        return found

    yield bind
    for listener in made:
        listener.close()


def talk(sock, family, target):
    """Connect and see that the listener accepts exactly this connection."""
    with socket.socket(family) as client:
        client.connect(target)
        accepted, _ = sock.accept()
        with accepted:
            client.send(b"x")
            accepted.settimeout(5)
            assert accepted.recv(1) == b"x"
