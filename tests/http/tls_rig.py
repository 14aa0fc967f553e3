"""Certificates made for a test, and two ends of TLS that one thread drives."""

import contextlib
import select
import socket
import ssl
import subprocess
import time

import pytest

from zcluster.http.tls import wrap
from zcluster.unix import certificate

DEADLINE_S = 20.0


def openssl(*arguments, text=""):
    """Run openssl(1) to its end; returns what it printed."""
    ran = subprocess.run(["openssl", *map(str, arguments)], input=text, capture_output=True, text=True, timeout=30)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def make_certificate(folder, name="server"):
    """A self-signed certificate for localhost and 127.0.0.1, and its key: two files."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"),
        *("-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        *("-keyout", key, "-out", cert),
    )
    return cert, key


@pytest.fixture(scope="session")
def pem(tmp_path_factory):
    """One certificate and its key, for all tests that only need some."""
    return make_certificate(tmp_path_factory.mktemp("pem"))


@pytest.fixture
def server_context(pem):
    """A context as a zygote makes it."""
    return certificate.load(str(pem[0]), str(pem[1]))


def client_context(pem, **settings):
    """A client that trusts the certificate."""
    context = ssl.create_default_context(cafile=str(pem[0]))
    for name, value in settings.items():
        setattr(context, name, value)
    return context


def tcp_pair(send_buffer=0, receive_buffer=0):
    """A connected pair over loopback: the accepted end (with its send buffer) and the client's, both non-blocking."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if send_buffer:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        listener.listen()
        client = socket.socket()
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.connect(listener.getsockname())
        accepted, _ = listener.accept()
    accepted.setblocking(False)
    client.setblocking(False)
    return accepted, client


class Ends:
    """The server's end (`server`, ours) and a client of the standard library (`client`)."""

    def __init__(self, server, client):
        self.server, self.client = server, client

    def both(self, ours, theirs=lambda: None, what="the exchange"):
        """Step both ends until each has given a result; returns the two. What has to wait is tried again."""
        results, steps = {}, {"ours": ours, "theirs": theirs}
        end = time.monotonic() + DEADLINE_S
        while steps:
            assert time.monotonic() < end, f"{what}: {list(steps)} did not finish"
            for name, step in list(steps.items()):
                with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    results[name] = step()
                    del steps[name]
            select.select([self.server, self.client], [], [], 0.001)
        return results["ours"], results["theirs"]

    def shake_hands(self):
        """The handshake, ours inside a recv; ends when a first byte was read. Returns self."""

        def hello():
            self.client.do_handshake()
            return self.client.send(b"!")

        ours, _ = self.both(lambda: self.server.recv(1), hello, "the handshake")
        assert ours == b"!"
        return self

    def close(self):
        self.server.close()
        self.client.close()


@pytest.fixture
def connect(server_context, pem):
    """Make two ends; `settings` are attributes of the client's context."""
    made = []

    def connect(*, context=server_context, buffers=(0, 0), **settings):
        accepted, raw = tcp_pair(*buffers)
        theirs = client_context(pem, **settings)
        client = theirs.wrap_socket(
            raw,
            server_hostname="localhost",
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
        )
        made.append(Ends(wrap(context, accepted), client))
        return made[-1]

    yield connect
    for ends in made:
        ends.close()
