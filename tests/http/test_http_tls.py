"""TLS as a non-blocking socket: what a plain one promises, this one keeps."""

import select
import socket
import ssl
import struct
import threading

import pytest
from tls_rig import Ends, client_context, connect, make_certificate, pem, server_context, tcp_pair

from zcluster.http.tls import RECORD_BYTES, tls_environ, wrap
from zcluster.unix import certificate

__all__ = ["connect", "pem", "server_context"]

NO_LINGER = struct.pack("ii", 1, 0)
SMALL = (4096, 4096)  # buffers: the kernel makes some 9 KiB of it, less than one record


# ---- handshake -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_request_and_its_response(connect, version):
    """The handshake is inside recv; what was agreed on stands in the environ."""
    ends = connect(maximum_version=version).shake_hands()
    ends.client.send(b"GET /")
    assert ends.both(lambda: ends.server.recv(100))[0] == b"GET /"
    assert ends.server.send(b"200 OK") == 6
    assert ends.both(lambda: None, lambda: ends.client.recv(100))[1] == b"200 OK"
    cipher, protocol, _ = ends.client.cipher()
    name = {ssl.TLSVersion.TLSv1_2: "TLSv1.2", ssl.TLSVersion.TLSv1_3: "TLSv1.3"}[version]
    assert tls_environ(ends.server) == {
        "wsgi.url_scheme": "https",
        "HTTPS": "on",
        "SSL_PROTOCOL": name,
        "SSL_CIPHER": cipher,
        "SSL_SESSION_RESUMED": "Initial",
    }
    assert protocol == name or version == ssl.TLSVersion.TLSv1_2


def test_http_is_agreed_on(connect, pem, server_context):
    """ALPN: http/1.1 where the client offers it beside others, and nothing where it does not."""
    for offered, agreed in ((["h2", "http/1.1"], "http/1.1"), (["h2"], None)):
        context = client_context(pem)
        context.set_alpn_protocols(offered)
        accepted, raw = tcp_pair()
        client = context.wrap_socket(raw, server_hostname="localhost", do_handshake_on_connect=False)
        ends = Ends(wrap(server_context, accepted), client).shake_hands()
        assert client.selected_alpn_protocol() == agreed
        ends.close()


def test_a_handshake_in_single_bytes_never_waits(server_context, pem):
    """A client that dribbles costs one BlockingIOError a byte, not the loop."""
    accepted, raw = tcp_pair()
    server = wrap(server_context, accepted)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context(pem).wrap_bio(incoming, outgoing, server_hostname="localhost")
    done, got, waits = False, b"", 0
    while not got:
        if not done:
            try:
                client.do_handshake()
                done = True
                client.write(b"x")
            except ssl.SSLWantReadError:
                pass
        flight = outgoing.read()
        for n in range(len(flight)):
            assert raw.send(flight[n : n + 1]) == 1
            assert select.select([server], [], [], 20)[0]
            try:
                got += server.recv()
            except BlockingIOError:
                waits += 1
                assert not server.wants_write
        if select.select([raw], [], [], 0 if got else 0.05)[0]:
            incoming.write(raw.recv(65536))
    assert got == b"x"
    assert waits > 200, "a hello alone has more bytes than that"
    server.close()
    raw.close()


def test_a_handshake_that_has_to_write(connect, tmp_path, pem):
    """A certificate chain larger than the socket: recv asks for writing, and goes on when the client reads."""
    chain = tmp_path / "chain.pem"
    chain.write_text(pem[0].read_text() * 120)
    ends = connect(context=certificate.load(str(chain), str(pem[1])), buffers=SMALL)
    with pytest.raises(ssl.SSLWantReadError):
        ends.client.do_handshake()
    assert select.select([ends.server], [], [], 20)[0]
    with pytest.raises(BlockingIOError):
        ends.server.recv()
    assert ends.server.wants_write
    ends.shake_hands()
    assert not ends.server.wants_write


# ---- reading -------------------------------------------------------------------------------------------------------
def test_bytes_that_epoll_does_not_see(connect):
    """A short recv leaves the rest of its record in `pending`; one of a record's size never does."""
    ends = connect().shake_hands()
    ends.client.send(b"a" * 1000)
    assert ends.both(lambda: ends.server.recv(10))[0] == b"a" * 10
    assert not select.select([ends.server], [], [], 0)[0]
    assert ends.server.pending() == 990
    assert ends.server.has_unread()
    assert ends.server.recv(RECORD_BYTES) == b"a" * 990
    assert ends.server.pending() == 0
    assert not ends.server.has_unread()
    ends.client.send(b"b" * 20000)
    assert ends.both(lambda: ends.server.recv(RECORD_BYTES))[0] == b"b" * RECORD_BYTES
    assert ends.server.pending() == 0
    assert select.select([ends.server], [], [], 20)[0], "the next record is the kernel's, and epoll's"
    assert ends.server.has_unread()


@pytest.mark.parametrize("how", ["orderly", "torn", "reset"])
def test_the_client_goes(connect, how):
    """close_notify, a bare end of TCP, a reset: an end, or an error of the connection, and at once."""
    ends = connect().shake_hands()
    if how == "orderly":
        with pytest.raises(ssl.SSLWantReadError):
            ends.client.unwrap()
    if how == "reset":
        ends.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
    ends.client.close()
    assert select.select([ends.server], [], [], 20)[0]
    try:
        assert ends.server.recv() == b""
    except ConnectionError:
        assert how != "orderly"  # a client that closes with our tickets unread resets too
    assert not ends.server.has_unread()


def test_the_client_goes_in_the_handshake(server_context):
    """Connect and leave, as scanners and load balancers do: an end like any other."""
    accepted, raw = tcp_pair()
    server = wrap(server_context, accepted)
    with pytest.raises(BlockingIOError):
        server.recv()
    raw.close()
    assert select.select([server], [], [], 20)[0]
    assert server.recv() == b""
    server.close()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"\x00\x01garbage and more of it", "TLS: wrong version number"),
        (b"\x16\x03\x01\x00\x05hello", "TLS: "),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "TLS: wrong version number"),
        (b"\xff" * 4096, "TLS: wrong version number"),
    ],
)
def test_what_is_no_tls(server_context, said, reason):
    """It costs one connection, and says in a few words why."""
    accepted, raw = tcp_pair()
    server = wrap(server_context, accepted)
    raw.send(said)
    assert select.select([server], [], [], 20)[0]
    with pytest.raises(ConnectionAbortedError, match=reason):
        server.recv()
    server.close()
    raw.close()


@pytest.mark.parametrize("method", [b"GET", b"POST", b"HEAD", b"PUT"])
def test_plain_http_is_told_so(server_context, method):
    """Who was sent to http:// by mistake can read what is wrong."""
    accepted, raw = tcp_pair()
    server = wrap(server_context, accepted)
    raw.send(method + b" / HTTP/1.1\r\nHost: h\r\nCookie: " + b"c" * 1000 + b"\r\n\r\n")
    assert select.select([server], [], [], 20)[0]
    with pytest.raises(ConnectionAbortedError, match="TLS: http request"):
        server.recv()
    server.close()
    raw.settimeout(20)
    answer = raw.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Content-Length: %d\r\n" % len(body) in head
    assert body == b"This port speaks TLS; use https:// instead\n"
    raw.close()


def test_a_client_that_is_too_old(server_context):
    """TLS 1.1 is refused (RFC 8996), with an alert for the client."""
    accepted, raw = tcp_pair()
    server = wrap(server_context, accepted)
    hello = bytes.fromhex("0302") + bytes(32) + bytes.fromhex("00000200350100")  # TLS_RSA_WITH_AES_256_CBC_SHA
    handshake = b"\x01" + len(hello).to_bytes(3, "big") + hello
    raw.send(b"\x16\x03\x01" + len(handshake).to_bytes(2, "big") + handshake)
    assert select.select([server], [], [], 20)[0]
    with pytest.raises(ConnectionAbortedError, match="TLS: unsupported protocol"):
        server.recv()
    assert raw.recv(100)[:1] == b"\x15", "an alert"
    server.close()
    raw.close()


def test_a_client_that_does_not_trust_us(connect, tmp_path):
    """Its alert is an error of the connection, named."""
    other = make_certificate(tmp_path, "other")
    ends = connect(context=certificate.load(*map(str, other)))

    def refuse():
        with pytest.raises(ssl.SSLCertVerificationError):
            ends.client.do_handshake()

    # suppressed in a step: what has to wait is an SSLError as well, so the client goes in its own thread
    ends.client.settimeout(20)
    thread = threading.Thread(target=refuse)
    thread.start()
    with pytest.raises(ConnectionAbortedError, match=r"TLS: .*unknown ca"):
        ends.both(ends.server.recv)
    thread.join()


def test_a_client_that_had_gone_before(server_context):
    """Reset between accept and wrap: an end, nothing of it in the clear, and no descriptor left."""
    accepted, raw = tcp_pair()
    fd = accepted.fileno()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
    raw.send(b"what it had said")
    raw.close()
    assert select.select([accepted], [], [], 20)[0]
    server = wrap(server_context, accepted)
    assert server.recv() == b""
    with pytest.raises(ConnectionAbortedError):
        server.send(b"in the clear?")
    server.close()
    assert accepted.fileno() == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        socket.socket(fileno=fd)
