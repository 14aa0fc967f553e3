"""Clients that are slow, greedy or gone, and what becomes of their responses."""

import itertools
import os
import random
import socket
import threading

import pytest
from clients_rig import patience, reset, temporary_files
from http_rig import GET, echo, open_fds, plain, serve, until

BIG = os.urandom(1 << 20) * 20
SLOW = {"keep_alive_s": 0.3, "write_timeout_s": 0.5, "linger_s": 0.3}


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


def narrow(rig):
    """A client whose window does not grow, so that little of a response is under way."""
    client = rig.client()
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 17)
    return client


def sizes(seed, total):
    """Sizes of blocks, random ones, that make this many bytes."""
    dice = random.Random(seed)
    while total:
        size = min(total, dice.choice([dice.randrange(1, 100), dice.randrange(1, 200_000)]))
        yield size
        total -= size


def blocks(seed, data):
    """`data`, in random blocks."""
    at = 0
    for size in sizes(seed, len(data)):
        yield data[at : at + size]
        at += size


def test_threads_wait_for_clients():
    """A long response waits in its generator for its client, not in memory, while the others are served."""
    given, ended = [0, 0], []

    def app(environ, start_response):
        if environ["PATH_INFO"] == "/":
            return plain(b"fast")(environ, start_response)
        start_response("200 OK", [("Content-Length", str(len(BIG)))])
        return long(int(environ["PATH_INFO"][1:]))

    def long(number):
        for block in blocks(number, BIG):
            given[number] += len(block)
            yield block
        ended.append(number)

    with serve(app, threads=4) as rig:
        slow = [narrow(rig).send(GET.replace(b"/", b"/%d" % number, 1)) for number in range(2)]
        until(lambda: patience(rig) == 0, "both threads wait")
        other = rig.client()
        for _ in range(50):
            assert other.request(GET).body == b"fast"
        # 1 MiB, the last block, and what the kernel's buffers take (net.ipv4.tcp_wmem: at most 4 MiB)
        assert max(given) < 8 << 20
        assert not ended
        assert temporary_files(rig) == 0
        for client in slow:
            assert client.receive().body == BIG
        until(lambda: patience(rig) == 2, "the slots' return")


@pytest.mark.parametrize("threads", [2, 3])
def test_slow_clients_leave_a_thread_for_what_blocks(threads):
    """While clients are waited for, requests that are known to block are still run."""

    def app(environ, start_response):
        if environ["PATH_INFO"] == "/long":
            start_response("200 OK", [])
            return blocks(0, BIG)
        threading.Event().wait(0.03)
        return plain()(environ, start_response)

    with serve(app, threads=threads) as rig:
        client = rig.client()
        slow = [narrow(rig).send(GET.replace(b"/", b"/long", 1)) for _ in range(3)]
        until(lambda: rig.calls == 3 and patience(rig) == 0, "the long responses")
        for _ in range(10):
            assert client.request(GET).status == 200
        assert [client.receive().body == BIG for client in slow] == [True] * 3


@pytest.mark.parametrize("threads", [1, 3])
def test_spooled_response(threads):
    """Where no thread may wait, the rest of a long response goes to a file; its client gets it byte for byte."""

    def app(environ, start_response):
        start_response("200 OK", [])
        return blocks(environ["PATH_INFO"], BIG)

    with serve(app, threads=threads) as rig:
        slow = [narrow(rig).send(GET.replace(b"/", b"/%d" % number, 1) + GET) for number in range(4)]
        until(lambda: rig.stats.requests == 4 - threads // 2, "the responses that no thread waits for")
        assert temporary_files(rig) == 4 - threads // 2
        for client in slow:
            assert [client.receive().body == BIG for _ in range(2)] == [True, True]
        until(lambda: temporary_files(rig) == 0 and patience(rig) == threads // 2, "the end of all")


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("chunked", [True, False])
def test_order_of_memory_and_file(threads, chunked):
    """Whatever the client takes when, of blocks in memory, of the file, and of those behind it, the order is kept."""

    def app(environ, start_response):
        write = start_response("200 OK", [] if chunked else [("Content-Length", str(len(BIG)))])
        pieces = blocks(environ["PATH_INFO"], BIG)
        for block in itertools.islice(pieces, 40):
            write(block)
        return pieces

    limits = {"response_memory_bytes": 100_000, "response_file_bytes": 1 << 20}
    with serve(app, threads=threads, limits=limits) as rig:
        for seed in range(3):
            client = narrow(rig).send(GET.replace(b"/", b"/%d" % seed, 1))
            for size in sizes(seed + 1000, len(BIG)):  # a pace that changes all the time
                client._buffer += client.sock.recv(size)
            assert client.receive().body == BIG
        until(lambda: rig.stats.requests == 3, "the count")
        assert patience(rig) == threads // 2


def test_whole_response_stays_in_memory():
    """A response that was complete when it came waits for its client in memory, and no thread waits with it."""
    with serve(plain(BIG), threads=4) as rig:
        slow = [narrow(rig).send(GET) for _ in range(4)]
        until(lambda: rig.stats.requests == 4, "the responses")
        assert (temporary_files(rig), patience(rig)) == (0, 2)
        assert [client.receive().body == BIG for client in slow] == [True] * 4


def test_end_of_a_response_waits_for_nobody():
    """Behind a large last block the end of a chunked response does not make a thread wait."""
    closed = []

    def app(environ, start_response):
        start_response("200 OK", [])
        try:
            yield BIG
        finally:
            closed.append(True)

    with serve(app, threads=3) as rig:
        client = narrow(rig).send(GET)
        until(lambda: rig.stats.requests == 1, "the response")
        assert (closed, patience(rig), temporary_files(rig)) == ([True], 1, 0)
        assert client.receive().body == BIG


def test_clients_that_leave_give_their_slots_back():
    """A hundred clients that leave in the middle of long responses: generators closed, slots and files back."""
    closed = []

    def app(environ, start_response):
        start_response("200 OK", [])
        try:
            yield from itertools.repeat(BIG[:65536], 400)
        finally:
            closed.append(True)

    with serve(app, threads=8) as rig:
        for turn in range(10):
            clients = [narrow(rig).send(GET) for _ in range(10)]
            for client in clients:
                client.sock.recv(1000)
                (reset if turn % 2 else type(client).close)(client)
        until(lambda: len(closed) == 100 and rig.stats.connections == 0, "the end of all")
        until(lambda: patience(rig) == 4 and temporary_files(rig) == 0, "all slots and files")
        assert str(rig.log) == ""


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
        until(lambda: rig.stats.refused.get("client stopped reading") == 1, "its being counted")
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


def test_refusal_reaches_a_client_that_goes_on_sending():
    """After a refusal what still comes is read and thrown away, so that the answer is not lost to a reset."""
    with serve(plain(), limits={"body_bytes": 1000, "linger_s": 60.0}) as rig:
        client = rig.client().send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9000000\r\n\r\n")
        for _ in range(20):
            client.send(b"x" * 65536)
        assert client.receive().status == 413


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
