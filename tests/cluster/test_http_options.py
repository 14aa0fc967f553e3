"""The options of the command line that are bounds of the HTTP engine: each one reaches it."""

import contextlib
import select
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness import running, wait_for

GET = b"GET / HTTP/1.1\r\nHost: h\r\n"
SMALL = [
    *("--limit-request-line=64", "--limit-request-fields=3", "--limit-request-field-size=50"),
    "--limit-request-body=5000000",
]
SHORT = ["--header-timeout=0.4", "--body-timeout=0.4", "--write-timeout=0.4"]


@pytest.fixture(scope="module")
def bounded():
    """A cluster that takes only small requests, but has time for them: this test may not run for a while."""
    with running("streams:app", *SMALL, workers=1) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def hasty():
    """A cluster with short time-outs."""
    with running("streams:app", *SHORT, workers=1) as cluster:
        yield cluster


def answer(client):
    """The status that comes next."""
    data = b""
    while b"\r\n\r\n" not in data:
        got = client.recv(65536)
        assert got, data
        data += got
    return int(data.split()[1])


def at_end(client):
    with contextlib.suppress(ConnectionResetError):
        while client.recv(65536):
            pass
    return True


def is_reset(client):
    try:
        while client.recv(1 << 20):
            pass
    except ConnectionResetError:
        return True
    return False


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (GET + b"\r\n", 200),
        (GET.replace(b"/", b"/" + b"a" * 49, 1) + b"\r\n", 200),
        (GET.replace(b"/", b"/" + b"a" * 60, 1) + b"\r\n", 414),
        (GET + b"A: 1\r\nB: 2\r\n\r\n", 200),
        (GET + b"A: 1\r\nB: 2\r\nC: 3\r\n\r\n", 431),
        (GET + b"A: " + b"a" * 47 + b"\r\n\r\n", 200),
        (GET + b"A: " + b"a" * 48 + b"\r\n\r\n", 431),
        (b"POST /up" + GET[5:] + b"Content-Length: 5000\r\n\r\n" + bytes(5000), 200),
        (b"POST /up" + GET[5:] + b"Content-Length: 5000001\r\n\r\n", 413),
    ],
)
def test_limits_of_a_request(bounded, request_, status):
    """--limit-request-line, -fields, -field-size and -body are the bounds of a request, to the byte."""
    with bounded.connect() as client:
        client.sendall(request_)
        assert answer(client) == status
        if status != 200:
            assert at_end(client)


@pytest.mark.parametrize("begin", [b"G", b"POST /up" + GET[5:] + b"Content-Length: 9\r\n\r\n1"], ids=["head", "body"])
def test_time_for_a_request(hasty, begin):
    """--header-timeout and --body-timeout end a request that does not go on, with 408."""
    start = time.monotonic()
    with hasty.connect() as client:
        client.sendall(begin)
        assert answer(client) == 408
        assert time.monotonic() - start > 0.3
        assert at_end(client)


def test_time_for_a_streamed_body(hasty):
    """--body-timeout holds as well when the application is reading."""
    with hasty.connect() as client:
        client.sendall(b"POST /up" + GET[5:] + b"Content-Length: 4000000\r\n\r\n" + bytes(300_000))
        assert answer(client) == 408


def test_time_for_a_response(hasty):
    """--write-timeout cuts a client that does not take its response."""
    with hasty.connect() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 17)
        start = time.monotonic()
        client.sendall(b"GET /down?20000000" + GET[5:] + b"\r\n")
        poll = select.poll()
        poll.register(client, 0)  # only errors
        assert poll.poll(20_000), "it was not cut"
        assert time.monotonic() - start > 0.3
        assert is_reset(client), "it looks like a whole response"


def test_keep_alive():
    """--keep-alive is how long a connection may be idle."""
    with running("streams:app", "--keep-alive=0.5", workers=1) as cluster:

        def idle_s():
            with cluster.connect(60.0) as client:
                start = time.monotonic()
                client.sendall(GET + b"\r\n")
                assert answer(client) == 200
                assert at_end(client)
                took = time.monotonic() - start
                assert took > 0.4
                return took

        wait_for(lambda: idle_s() < 4, what="it ends before the default of 5 s")  # a busy machine may be late once


def test_threads():
    """--threads is how many requests run at once; one is told to be alone."""
    for threads, outcome, patience_s in ((1, "alone", 0.5), (2, "together", 20)):
        with running("streams:app", f"--threads={threads}", workers=1) as cluster:
            assert cluster.get() == f"threads {threads > 1}"
            with ThreadPoolExecutor(2) as clients:
                assert list(clients.map(cluster.get, [f"/meet?{patience_s}"] * 2)) == [outcome] * 2


def test_worker_connections():
    """--worker-connections is how many a worker holds; the next one waits until one of them has gone."""
    with running("streams:app", "--worker-connections=2", "--keep-alive=60", workers=1) as cluster:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(cluster.connect()) for _ in range(3)]
            for client in clients[:2]:
                client.sendall(GET + b"\r\n")
                assert answer(client) == 200
            clients[2].sendall(GET + b"\r\n")
            cluster.wait_log("2 are open, which is this worker's limit")
            assert not select.select([clients[2]], [], [], 0.3)[0]
            clients[0].close()
            assert answer(clients[2]) == 200
        wait_for(lambda: cluster.workers()[0]["connections"] == 0, what="all have gone")
