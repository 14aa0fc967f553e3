"""TLS as a non-blocking socket: writing, ending, coming back."""

import contextlib
import random
import select
import socket
import ssl
import struct
import subprocess
import threading

import pytest
from tls_rig import Ends, client_context, connect, pem, server_context, tcp_pair

from zcluster.http.tls import RECORD_BYTES, SEND_BYTES, tls_environ, wrap

__all__ = ["connect", "pem", "server_context"]

NO_LINGER = struct.pack("ii", 1, 0)
SMALL = (4096, 4096)  # buffers: the kernel makes some 9 KiB of it, less than one record


def read_all(client, size):
    """A step of the client that reads so many bytes, and gives them when they are complete."""
    got = bytearray()

    def step():
        while len(got) < size:
            got.extend(client.recv(65536))
        return bytes(got)

    return step


def fill(sock, size):
    """Send pieces of this size until there is no room; returns how many bytes have left."""
    total = 0
    while True:
        try:
            total += sock.send(b"z" * size)
        except BlockingIOError:
            return total


def ended(sock):
    """How the client finds the end: orderly, torn or reset."""
    try:
        while sock.recv(65536):
            pass
    except ssl.SSLEOFError:
        return "torn"
    except ConnectionResetError:
        return "reset"
    return "orderly"


# ---- writing -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_what_was_not_taken_may_come_again_in_any_pieces(connect, seed, version):
    """OpenSSL wants the same bytes again; the engine gives them shorter, longer, joined, in other memory."""
    rng = random.Random(seed)
    data = rng.randbytes(1 << 20)
    ends = connect(buffers=SMALL, maximum_version=version).shake_hands()
    sent, full, shorter = 0, 0, 0

    def send():
        nonlocal sent, full, shorter
        last = 0
        while sent < len(data):
            size = rng.choice([1, 100, 5000, RECORD_BYTES, 40_000, SEND_BYTES, 1 << 20])
            cut = rng.randrange(size + 1)
            view = memoryview(data)[sent : sent + size]
            shorter += size < last
            last = size
            try:
                pieces = [bytearray(view[:cut]), view[cut:]]
                count = ends.server.sendmsg(pieces) if rng.random() < 0.5 else ends.server.send(bytes(view))
            except BlockingIOError:
                full += 1
                raise
            assert 0 < count <= len(view)
            sent += count

    _, got = ends.both(send, read_all(ends.client, len(data)))
    assert got == data
    assert full > 20, "the socket was never full"
    assert shorter > 5, "nothing was given again in a smaller piece"


def test_counted_bytes_have_left(connect):
    """A count is what the kernel has: it arrives although nobody calls again."""
    ends = connect(buffers=SMALL).shake_hands()
    total = fill(ends.server, 1000)
    assert ends.both(lambda: None, read_all(ends.client, total))[1] == b"z" * total


def test_nothing_is_sent_before_the_handshake(server_context):
    """It would wait for the client to write while everybody believes that it waits for room."""
    accepted, raw = tcp_pair()
    server = wrap(server_context, accepted)
    with pytest.raises(ConnectionAbortedError, match="before the handshake"):
        server.send(b"408")
    server.close()
    raw.close()


def test_a_client_that_has_gone_is_an_error(connect):
    """Like a plain socket's, so that the engine needs to know of one kind only."""
    ends = connect().shake_hands()
    ends.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
    ends.client.close()
    assert select.select([ends.server], [], [], 20)[0]
    with pytest.raises(ConnectionError):
        fill(ends.server, 1000)


def test_new_keys_in_the_midst_of_a_response(server_context):
    """A client renews its keys, and asks us to, while we send and are often stuck: not a byte is lost."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        listener.listen()
        address = "{}:{}".format(*listener.getsockname())
        client = subprocess.Popen(
            ["openssl", "s_client", "-tls1_3", "-quiet", "-no_ign_eof", "-connect", address],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
        )  # fmt: skip
        accepted, _ = listener.accept()
    server = wrap(server_context, accepted)
    client.stdin.write(b"hello\n")
    assert hear(server) == b"hello\n"
    answers = []

    def renew():
        client.stdin.write(b"K\n")
        while client.stderr.readline() != b"KEYUPDATE\n":
            pass
        client.stdin.write(b"after\n")

    threads = [threading.Thread(target=lambda: answers.append(client.stdout.read())), threading.Thread(target=renew)]
    for thread in threads:
        thread.start()
    block = b"".join(b"%07d\n" % n for n in range(20_000))
    sent, heard, begun = 0, b"", False
    while sent % len(block) or not heard or begun:  # a record that was begun has to be ended before the stream can be
        try:
            sent += server.send(block[sent % len(block) :])
            begun = False
        except BlockingIOError:
            begun = True
            # read only now, so that the request for new keys always meets a record that is stuck
            with contextlib.suppress(BlockingIOError):
                heard += server.recv()
            assert select.select([server], [server], [], 20) != ([], [], [])
    assert heard == b"after\n"
    server.shutdown(socket.SHUT_WR)
    while hear(server):
        pass
    for thread in threads:
        thread.join(20)
    assert client.wait(20) == 0, client.stderr.read()
    for pipe in (client.stdin, client.stdout, client.stderr):
        pipe.close()
    server.close()
    assert answers == [block * (sent // len(block))]


def hear(server):
    """What comes next, as the loop reads it: for a recv that has to write first, when there is room."""
    while True:
        try:
            return server.recv()
        except BlockingIOError:
            ready = select.select([server], [server] if server.wants_write else [], [], 20)
            assert ready[0] or ready[1], f"nothing came, wants_write {server.wants_write}"


# ---- the end -------------------------------------------------------------------------------------------------------
def test_an_orderly_end(connect):
    """shutdown(SHUT_WR) says close_notify; what still comes is thrown away until the client ends too."""
    ends = connect().shake_hands()
    ends.server.send(b"last words")
    ends.server.shutdown(socket.SHUT_WR)
    assert ends.both(lambda: None, lambda: ends.client.recv(10))[1] == b"last words"
    ends.client.setblocking(True)
    assert ended(ends.client) == "orderly"
    ends.client.close()
    assert select.select([ends.server], [], [], 20)[0]
    while ends.server.recv():
        pass


def test_an_orderly_end_of_a_full_socket(connect):
    """The last byte of a response has found room, close_notify often has not: it follows when the client reads."""
    waited = 0
    for size in range(40_000, 70_000, 1500):
        ends = connect(buffers=SMALL).shake_hands()
        data, sent = b"z" * size, 0
        while sent < size:
            try:
                sent += ends.server.send(data[sent:])
            except BlockingIOError:
                with contextlib.suppress(ssl.SSLWantReadError):
                    ends.client.recv(1000)
        ends.server.shutdown(socket.SHUT_WR)
        waited += ends.server.wants_write

        found = []

        def read(client=ends.client, found=found):
            found.append(ended(client))
            client.close()

        ends.client.settimeout(20)
        reader = threading.Thread(target=read)
        reader.start()
        while hear(ends.server):
            pass
        reader.join(20)
        assert found == ["orderly"]
    assert waited, "there was always room"


def test_a_close_alone_is_no_end(connect):
    """A client must not take what it has for a whole response: no close_notify, and with SO_LINGER 0 a reset."""
    for linger in (False, True):
        ends = connect().shake_hands()
        ends.server.send(b"half of")
        assert ends.both(lambda ends=ends: None, lambda ends=ends: ends.client.recv(10))[1] == b"half of"
        if linger:
            ends.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        ends.server.close()
        ends.client.setblocking(True)
        assert ended(ends.client) in ("torn", "reset")


def test_no_orderly_end_in_the_midst_of_a_record(connect):
    """close_notify cannot pass what is stuck, so the client sees a torn response."""
    ends = connect(buffers=SMALL).shake_hands()
    fill(ends.server, 50_000)
    ends.server.shutdown(socket.SHUT_WR)
    ends.client.setblocking(True)
    assert ended(ends.client) == "torn"


def test_a_cut_by_another_thread_wakes_the_owner(connect):
    """SHUT_RDWR touches only the socket: the owner, in whatever call, finds the end and closes."""
    ends = connect().shake_hands()
    poller = select.poll()
    poller.register(ends.server, select.POLLIN)
    found = []

    def own():
        poller.poll(20_000)
        found.append(ends.server.recv())

    owner = threading.Thread(target=own)
    owner.start()
    ends.server.shutdown(socket.SHUT_RDWR)
    owner.join(20)
    assert found == [b""]


def test_a_shutdown_before_the_handshake(server_context):
    """There is nothing to say in TLS yet: the TCP end alone."""
    accepted, raw = tcp_pair()
    server = wrap(server_context, accepted)
    server.shutdown(socket.SHUT_WR)
    raw.settimeout(20)
    assert raw.recv(10) == b""
    server.close()
    raw.close()


# ---- sessions ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_resumes(connect, pem, server_context, version):
    """With one context a client that comes back need not prove, nor have proven, anything again."""
    context = client_context(pem, maximum_version=version)
    session, resumed = None, []
    for _ in range(3):
        accepted, raw = tcp_pair()
        client = context.wrap_socket(raw, server_hostname="localhost", do_handshake_on_connect=False, session=session)
        ends = Ends(wrap(server_context, accepted), client).shake_hands()
        ends.server.send(b"t")
        assert ends.both(lambda: None, lambda ends=ends: ends.client.recv(1))[1] == b"t"  # and the tickets before it
        resumed.append((client.session_reused, tls_environ(ends.server)["SSL_SESSION_RESUMED"]))
        session = client.session
        ends.close()
    assert resumed == [(False, "Initial"), (True, "Resumed"), (True, "Resumed")]
