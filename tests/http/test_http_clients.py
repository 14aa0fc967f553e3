"""Clients that are slow, silent, greedy or gone."""

import errno
import os
import resource
import socket
import struct
import threading
import time

import pytest
from http_rig import GET, echo, open_fds, plain, serve, until

BIG = os.urandom(1 << 20) * 20
SLOW = {"header_timeout_s": 0.3, "body_timeout_s": 0.3, "keep_alive_s": 0.3, "write_timeout_s": 0.5, "linger_s": 0.3}


def reset(client):
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def test_big_bodies():
    """20 MiB up and down, sized and chunked."""
    with serve(echo) as rig:
        client = rig.client()
        client.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(BIG)).send(BIG)
        assert client.receive().body == BIG
        client.send(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
        for start in range(0, len(BIG), 1 << 20):
            client.send(b"100000\r\n" + BIG[start : start + (1 << 20)] + b"\r\n")
        client.send(b"0\r\n\r\n")
        assert client.receive().body == BIG


@pytest.mark.parametrize("chunked", [True, False])
def test_big_stream(chunked):
    """20 MiB in blocks, to a client that only reads when all has been produced."""

    def app(environ, start_response):
        start_response("200 OK", [] if chunked else [("Content-Length", str(len(BIG)))])
        for start in range(0, len(BIG), 100_000):
            yield BIG[start : start + 100_000]

    with serve(app) as rig:
        client = rig.client().send(GET + GET)
        until(lambda: rig.stats.requests == 1, "the first response's end")
        assert client.receive().body == BIG
        assert client.receive().body == BIG


def test_client_that_does_not_read():
    """A response that nobody takes blocks nobody, is cut after the write time-out, and its file is given back."""
    with serve(lambda e, s: plain(BIG if e["PATH_INFO"] == "/big" else b"ok")(e, s), limits=SLOW) as rig:
        deaf = rig.client().send(GET.replace(b"/", b"/big", 1))
        until(lambda: rig.stats.requests == 1, "the big response")
        other = rig.client()
        for _ in range(10):
            assert other.request(GET).body == b"ok"
        until(lambda: rig.stats.refused.get("client stopped reading"), "the write time-out")
        with pytest.raises((EOFError, ConnectionResetError)):
            deaf.receive()
        new = open_fds().items() - rig.fds_before.items()
        assert not [path for _, path in new if "deleted" in path]


def test_client_that_catches_up():
    """Behind a jam that has cleared, a block again reaches the client before the next one is asked for."""
    jam, got, pause = b"j" * (8 << 20), bytearray(), threading.Event()

    def app(environ, start_response):
        start_response("200 OK", [])
        yield jam
        pause.set()  # the client begins to read
        while len(got) < len(jam):
            yield b"x"
        yield b"a"
        until(lambda: got.endswith(b"a"), "the block behind the jam")
        yield b"b"

    with serve(app) as rig:
        client = rig.client().send(b"GET / HTTP/1.0\r\n\r\n")
        assert pause.wait(20)
        while data := client.sock.recv(1 << 20):
            got += data
        assert got.endswith(b"ab")


def test_endless_response():
    """An application that never ends waits for a client that never reads, and is told when the client is cut."""
    told = []

    def app(environ, start_response):
        write = start_response("200 OK", [])
        try:
            while True:
                write(b"x" * 65536)
        except BrokenPipeError as error:
            told.append(error)
            raise

    limits = {**SLOW, "response_memory_bytes": 1 << 16, "response_file_bytes": 1 << 20}
    with serve(app, limits=limits) as rig:
        rig.client().send(GET)
        until(lambda: told, "the write time-out")
        assert rig.stats.refused["client stopped reading"] == 1
        assert str(rig.log) == ""


def test_endless_response_to_a_client_that_leaves():
    """The generator of a response whose client left is closed, and nothing is logged: it is nobody's error."""
    closed = []

    def app(environ, start_response):
        start_response("200 OK", [])
        try:
            while True:
                yield b"x" * 65536
        finally:
            closed.append(True)

    with serve(app) as rig:
        client = rig.client().send(GET)
        client.sock.recv(1000)
        reset(client)
        until(lambda: closed, "the generator's end")
        assert rig.client().request(b"bad\r\n\r\n").status == 400
        assert str(rig.log) == ""


@pytest.mark.parametrize("part", [b"G", GET[:20], b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n123"])
def test_reset_in_the_middle(part):
    """A client that resets in the middle of a request is forgotten."""
    with serve(echo) as rig:
        client = rig.client().send(part)
        until(lambda: rig.stats.connections == 1, "the accept")
        reset(client)
        until(lambda: rig.stats.connections == 0, "the connection's end")
        assert rig.calls == 0
        assert rig.client().request(GET).status == 200


def test_half_closed_client():
    """A client that has said everything and shut down its side still gets its answers."""
    with serve(plain()) as rig:
        client = rig.client().send(GET + GET)
        client.sock.shutdown(socket.SHUT_WR)
        assert [client.receive().body, client.receive().body] == [b"ok", b"ok"]
        assert client.at_end()


@pytest.mark.parametrize(
    ("first", "drip", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: h\r\nX: ", b"a", "head time-out"),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9999\r\n\r\n", b"a", "body time-out"),
        (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n", "body time-out"),
    ],
)
def test_slowloris(first, drip, reason):
    """Bytes that drip in do not keep a request open: 408 and the end, while others are served."""
    with serve(plain(), limits=SLOW) as rig:
        slow = rig.client().send(first)
        other = rig.client()
        start = time.monotonic()

        def over():
            if rig.stats.refused.get(reason):
                return True
            slow.send(drip)
            assert other.request(GET).status == 200
            return False

        until(over, "the time-out")
        assert 0.2 < time.monotonic() - start < 5
        assert slow.receive().status == 408
        assert slow.at_end()


def test_slow_but_steady():
    """A body that makes progress may take longer than the time-out."""
    with serve(echo, limits={**SLOW, "body_timeout_s": 0.4, "progress_bytes": 1}) as rig:
        client = rig.client().send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9999\r\n\r\n")
        end = time.monotonic() + 1.0
        sent = [0]

        def over():
            client.send(b"x")
            sent[0] += 1
            return time.monotonic() > end

        until(over, "a second")
        client.send(b"x" * (9999 - sent[0]))
        assert client.receive().body == b"x" * 9999


def test_idle_connections_end():
    """A connection that is idle ends after keep_alive_s, one that never spoke after header_timeout_s."""
    with serve(plain(), limits=SLOW) as rig:
        silent, idle = rig.client(), rig.client()
        assert idle.request(GET).status == 200
        assert silent.at_end()
        assert idle.at_end()
        assert rig.stats.refused == {}


def test_time_out_is_the_clients_not_ours():
    """A request that waits while the application blocks the loop is answered, whatever its time-outs say."""

    def app(environ, start_response):
        if environ["PATH_INFO"] == "/block":
            end = time.monotonic() + 0.8
            until(lambda: waiting.sent or time.monotonic() > end, "the other client")
            until(lambda: time.monotonic() > end, "the end of the block")
        return plain()(environ, start_response)

    with serve(app, limits=SLOW) as rig:
        waiting = rig.client()
        waiting.sent = False
        assert waiting.request(GET).status == 200
        blocking = rig.client().send(GET.replace(b"/", b"/block", 1))
        until(lambda: rig.stats.inflight, "the blocking request")
        waiting.send(GET).sent = True
        assert blocking.receive().status == 200
        assert waiting.receive().status == 200


def test_refusal_reaches_a_client_that_goes_on_sending():
    """After a refusal what still comes is read and thrown away, so that the answer is not lost to a reset."""
    with serve(plain(), limits={"body_bytes": 1000}) as rig:
        client = rig.client().send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9000000\r\n\r\n")
        for _ in range(20):
            client.send(b"x" * 65536)
        assert client.receive().status == 413


def fill(fds, fd):
    """Take every free descriptor."""
    while True:
        try:
            fds.append(os.dup(fd))
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            return


def test_too_many_open_files():
    """Without descriptors the engine pauses, says so once, does not spin, and goes on when it can."""
    with serve(plain()) as rig:
        first, second = rig.client(), None
        assert first.request(GET).status == 200
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        second = socket.socket()
        rig.clients.append(second)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_fds()) + 1, hard))
        fillers = []
        try:
            fill(fillers, first.sock.fileno())
            second.connect(rig.address)
            until(lambda: "cannot accept connections" in str(rig.log), "the warning")
            assert first.request(GET).status == 200
            before, wall = time.process_time(), time.monotonic()
            until(lambda: time.monotonic() > wall + 0.5, "half a second")
            assert time.process_time() - before < 0.3, "the loop spins"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in fillers:
                os.close(fd)
        second.settimeout(20)
        second.sendall(GET)
        assert second.recv(100).startswith(b"HTTP/1.1 200 ")
        assert str(rig.log).count("cannot accept") == 1


def test_connection_limit():
    """Above the limit of open connections the next one waits in the queue until one has gone."""
    with serve(plain(), limits={"connections": 2, "accept_pause_s": 0.01}) as rig:
        clients = [rig.client() for _ in range(3)]
        assert [client.request(GET).status for client in clients[:2]] == [200, 200]
        clients[2].send(GET)
        until(lambda: "this worker's limit" in str(rig.log), "the warning")
        assert rig.stats.connections == 2
        clients[0].close()
        assert clients[2].receive().status == 200


def test_no_space_for_a_body(monkeypatch):
    """A body that cannot be spooled is refused with 503 and the operator is told."""
    monkeypatch.setattr("tempfile.tempdir", "/proc/self")  # where no file can be made
    with serve(echo, limits={"body_memory_bytes": 10}) as rig:
        client = rig.client().send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99\r\n\r\n" + b"x" * 50)
        assert client.receive().status == 503
        assert "TMPDIR" in str(rig.log)


def test_no_space_for_a_response(monkeypatch):
    """A response that cannot be spooled is cut, the operator is told, and the engine serves on."""
    monkeypatch.setattr("tempfile.tempdir", "/proc/self")

    def app(environ, start_response):
        if environ["PATH_INFO"] != "/big":
            return plain(b"ok")(environ, start_response)
        start_response("200 OK", [])
        return (BIG[at : at + 65536] for at in range(0, len(BIG), 65536))

    with serve(app) as rig:
        client = rig.client().send(GET.replace(b"/", b"/big", 1))
        until(lambda: "a response cannot be spooled" in str(rig.log), "the log")
        with pytest.raises((EOFError, ConnectionResetError)):
            client.receive()
        assert rig.client().request(GET).body == b"ok"
