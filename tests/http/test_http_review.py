"""What a hostile reader found: each of these once cost a connection, a thread, a processor or the truth."""

import _ssl
import contextlib
import ctypes
import logging
import resource
import socket
import ssl
import threading
import time
import tracemalloc

import pytest
from http_rig import DEADLINE_S, GET, giving, plain, serve, until
from tls_rig import client_context, pem, server_context

from zcluster.http.body import Intake
from zcluster.http.head import SIZED
from zcluster.http.limits import Limits
from zcluster.http.outbox import Outbox

__all__ = ["pem", "server_context"]

KEPT_BYTES = 600_000  # more than is collected before the application runs


def post(size, sent=None, path=b"/"):
    """A request with a body of `size` bytes, of which `sent` are in it."""
    head = b"POST %b HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (path, size)
    return head + b"b" * (size if sent is None else sent)


def held(rig):
    """The connections, from another thread."""
    return list(rig.engine._shared.connections.values())


def leaders(rig):
    """Whether the loop is held, or to be had, in more than one place."""
    crew = rig.engine._crew
    return len(crew.inline) + len(crew._vacant)


# ---- wsgi.input ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("threads", [1, 8])
def test_a_body_whose_memory_the_application_still_uses(threads):
    """BytesIO.close() raises then: the connection goes on, and nobody is left to lead the loop a second time."""
    kept = []

    def app(environ, start_response):
        kept.append(environ["wsgi.input"].getbuffer())
        start_response("200 OK", [])
        return [b"ok"]

    with serve(app, threads=threads) as rig:
        client = rig.client()
        for _ in range(3):
            assert client.request(post(3)).body == b"ok"
        until(lambda: leaders(rig) == 0, "a loop that is held once")
    assert [bytes(view) for view in kept] == [b"bbb"] * 3
    for view in kept:
        view.release()  # else the collector of 3.13 may come to the BytesIO first, which complains


def test_a_streamed_body_that_the_application_has_detached():
    """BufferedReader.close() raises then: the request ends all the same, and its thread lives on."""

    def app(environ, start_response):
        environ["wsgi.input"].detach()
        start_response("200 OK", [])
        return [b"ok"]

    with serve(app, threads=8) as rig:
        for _ in range(3):
            assert rig.client().request(post(KEPT_BYTES, 300_000)).body == b"ok"
        until(lambda: rig.stats.requests == 3, "the end of all requests")


def test_a_detached_stream_of_a_request_that_is_over():
    """It would take the bytes of the requests that follow on its connection."""
    kept = []

    def app(environ, start_response):
        for raw in kept:
            with pytest.raises(ValueError, match="is over"):
                raw.read(10)
        if environ["PATH_INFO"] == "/kept":
            size = len(environ["wsgi.input"].read())
            kept.append(environ["wsgi.input"].detach())
            assert size == KEPT_BYTES
        start_response("200 OK", [])
        return [environ["PATH_INFO"].encode()]

    with serve(app, threads=8) as rig:
        client = rig.client()
        assert client.request(post(KEPT_BYTES, path=b"/kept")).body == b"/kept"
        assert client.request(GET).body == b"/"
    assert len(kept) == 1


# ---- logs ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("slow", [False, True])
def test_a_log_handler_that_exits(slow):
    """An application's handler may raise whatever it likes: one connection ends, no loop and no thread."""

    class Exits(logging.Handler):
        def emit(self, record):
            raise SystemExit(3)

    def app(environ, start_response):
        if environ["PATH_INFO"] == "/bad":
            raise ValueError("the application's")
        return plain()(environ, start_response)

    rig = serve(app, threads=2)
    with rig:
        handler = Exits()
        rig.engine._log.addHandler(handler)
        if slow:
            rig.engine._shared.predictor.learn("GET", "/bad", time.monotonic(), slow=True)
        for _ in range(3):
            client = rig.client().send(GET.replace(b"GET /", b"GET /bad"))
            assert client.at_end()
        assert rig.client().request(GET).body == b"ok"
        assert rig.stats.failures == 3
        rig.stats.failures = 0  # they were what we wanted


# ---- a full disk ---------------------------------------------------------------------------------------------------
@pytest.fixture
def small_disk():
    """No file of this process may grow beyond 263,100 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (263_100, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("rest", [(1000,), (3000,) * 10])
def test_the_disk_is_full_at_the_end_of_a_body(small_disk, rest):
    """What a buffered file has not written yet fails late, in seek() or close(): still a 503, and no bug of ours."""
    with serve(plain(), threads=1) as rig:
        client = rig.client()
        client.send(post(263_000 + sum(rest), 263_000))
        until(lambda: any(c._intake and c._intake._file for c in held(rig)), "the file")
        for count in rest:
            with contextlib.suppress(OSError):
                client.send(b"b" * count)
        assert client.receive().status == 503
        assert rig.calls == 0
    assert "free space in TMPDIR" in str(rig.log)


# ---- ends ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("threads", [1, 8])
def test_a_pipelined_request_behind_an_answer_that_closes(threads):
    """Closing with unread bytes is a reset, and resets overtake answers (RFC 9112, 9.6): an orderly end instead."""
    inside, go = threading.Event(), threading.Event()

    def app(environ, start_response):
        inside.set()
        assert go.wait(DEADLINE_S)
        start_response("200 OK", [("Connection", "close")])
        return [b"ok"]

    with serve(app, threads=threads) as rig:
        client = rig.client().send(GET)
        assert inside.wait(DEADLINE_S)
        client.send(GET)
        go.set()
        assert client.receive().body == b"ok"
        assert client.sock.recv(1) == b""
        assert rig.calls == 1


# ---- write() -------------------------------------------------------------------------------------------------------
def test_write_after_the_end_of_the_body():
    """A close() that still writes would put its bytes where the client looks for the next response."""
    errors = []

    class Late:
        def __init__(self, write):
            self.write = write

        def __iter__(self):
            yield b"first"

        def close(self):
            with pytest.raises(RuntimeError) as caught:
                self.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
            errors.append(caught.value)

    with serve(lambda environ, start_response: Late(start_response("200 OK", []))) as rig:
        client = rig.client()
        assert client.request(GET).body == b"first"
        assert client.request(GET).body == b"first"
    assert len(errors) == 2


def test_write_of_a_request_that_is_over():
    """A write() that was kept belongs to one response, and never gets into another one."""
    writes = []

    def app(environ, start_response):
        for write in writes:
            with pytest.raises(RuntimeError, match="is over"):
                write(b"from the request before")
        writes.append(start_response("200 OK", []))
        if len(writes) == 1:
            raise ValueError("nothing was sent")
        return iter([b"mine"])

    with serve(app) as rig:
        client = rig.client()
        assert client.request(GET).status == 500
        assert client.request(GET).body == b"mine"
        assert client.request(GET).body == b"mine"


@pytest.mark.parametrize("result", [b"\0\0", ["x", ""], iter([None, b"x"]), iter(["", b"x"])])
def test_blocks_that_are_no_bytes_though_empty(result):
    """Zero, None and "" are as wrong as 7, an object and "x": said, instead of left out of the body."""
    with serve(giving(result)) as rig:
        assert rig.client().request(GET).status == 500
    assert "TypeError" in str(rig.log)


# ---- memory and threads --------------------------------------------------------------------------------------------
def memory_of(fill):
    """How many bytes `fill` has allocated and still holds."""
    tracemalloc.start()
    try:
        held = fill()
        size = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    del held
    return size


def test_what_many_small_blocks_cost():
    """A block costs some hundred bytes beside its own: a limit that did not count them was passed sixtyfold."""

    def fill():
        outbox = Outbox(tls=False)
        while outbox.memory_bytes < 1 << 20:
            outbox.add(b"1\r\n%b\r\n" % b"x")
        return outbox

    assert memory_of(fill) < 2 << 20


def test_a_body_that_comes_in_the_smallest_pieces():
    """The client chooses how many reads its body takes, not how much memory each of them costs."""

    def fill():
        intake = Intake({"CONTENT_LENGTH": "1000000"}, SIZED, Limits())
        while intake.size < 1 << 18:
            intake.take(b"%02d" % (intake.size % 97))
        return intake

    assert memory_of(fill) < 1 << 19


def test_clients_that_are_too_far_behind_leave_threads_for_others():
    """Of endless responses that nobody reads only some threads wait; the others end, and quick requests go on."""

    def app(environ, start_response):
        if environ["PATH_INFO"] != "/endless":
            return plain()(environ, start_response)
        start_response("200 OK", [])
        return iter(lambda: b"x" * 65536, None)

    limits = {"response_memory_bytes": 1 << 16, "response_file_bytes": 1 << 20}
    with serve(app, threads=4, limits=limits) as rig:
        deaf = [rig.client().send(GET.replace(b"/ ", b"/endless ")) for _ in range(6)]
        until(lambda: rig.stats.refused.get("client too far behind") == 4, "four of them are cut")
        other = rig.client()
        for _ in range(3):
            assert other.request(GET).body == b"ok"
        until(lambda: rig.stats.inflight == 2, "two that wait")
        for client in deaf:
            client.close()


def test_with_two_threads_no_client_holds_the_only_other_one():
    """One leads; if the other waited for a slow client, all requests that block would wait for it too."""

    def app(environ, start_response):
        if environ["PATH_INFO"] == "/slow":
            threading.Event().wait(0.02)
        size = len(environ["wsgi.input"].read())
        start_response("200 OK", [])
        return [b"%d" % size]

    with serve(app, threads=2) as rig:
        fast, slow = rig.client(), rig.client()
        slow_get = GET.replace(b"GET /", b"GET /slow")
        for _ in range(3):
            assert fast.request(slow_get).status == 200
        slow.send(post(KEPT_BYTES, 300_000))
        until(lambda: rig.stats.inflight or any(c._intake and c._intake._file for c in held(rig)), "the upload")
        assert fast.request(slow_get).status == 200
        assert slow.request(b"b" * (KEPT_BYTES - 300_000)).body == b"%d" % KEPT_BYTES


# ---- TLS -----------------------------------------------------------------------------------------------------------
def impatient_client(cert, address):
    """A TLS client that asks for new keys without end, never reads, and stops when it can send no more."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    sock.connect(address)
    theirs, ours = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context(cert).wrap_bio(theirs, ours, server_hostname="localhost")
    while True:
        try:
            client.do_handshake()
            break
        except ssl.SSLWantReadError:
            sock.sendall(ours.read())
            theirs.write(sock.recv(65536))
    openssl = ctypes.CDLL(_ssl.__file__)  # Python's own OpenSSL; the module offers no key update
    handle = ctypes.c_void_p.from_address(id(client._sslobj) + 3 * ctypes.sizeof(ctypes.c_void_p))
    sock.settimeout(0.5)
    head = b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 8000
    for byte in head:
        for _ in range(20):  # OpenSSL takes 32 in a row
            assert openssl.SSL_key_update(handle, 1) == 1
            assert openssl.SSL_do_handshake(handle) == 1
        client.write(bytes([byte]))
        try:
            sock.sendall(ours.read())
        except TimeoutError:
            break
        except OSError:  # cut already
            break
    return sock


def test_a_tls_client_that_makes_us_answer_and_does_not_read(pem, server_context):
    """OpenSSL has to write before it reads on: no reason to spin on what it does not read, nor to wait for ever."""
    limits = {"header_timeout_s": 2.0, "write_timeout_s": 0.5}
    with serve(plain(), threads=2, tls=server_context, limits=limits) as rig:
        rig.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
        with impatient_client(pem, rig.address):
            began, cpu = time.monotonic(), time.process_time()
            until(lambda: not rig.stats.connections, "the end of its patience")
            took = time.monotonic() - began
            assert time.process_time() - cpu < 0.2 + took / 4


def test_consent_is_given_once():
    """A body that is collected first and streamed then does not make its client hear 100 Continue twice."""

    def app(environ, start_response):
        size = len(environ["wsgi.input"].read())
        start_response("200 OK", [])
        return [b"%d" % size]

    with serve(app, threads=3) as rig:
        first, second = rig.client(), rig.client()
        first.send(post(KEPT_BYTES, 300_000))
        until(lambda: rig.stats.inflight, "the only thread that may wait for a client")
        head = post(KEPT_BYTES, 0).replace(b"Host", b"Expect: 100-continue\r\nHost")
        assert second.request(head).status == 100
        assert first.request(b"b" * (KEPT_BYTES - 300_000)).status == 200
        until(lambda: rig.engine._crew._patience, "the end of its wait")
        response = second.request(b"b" * KEPT_BYTES)
        assert (response.status, response.body) == (200, b"%d" % KEPT_BYTES)
