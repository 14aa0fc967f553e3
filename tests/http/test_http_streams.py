"""Request bodies that are longer than what is collected, and stream to a thread that may wait for them."""

import contextlib
import io
import os
import socket
import sys
import threading
import time

import pytest
from clients_rig import BODY, PART, is_streamed, noting, patience, post, reset
from http_rig import DEADLINE_S, GET, echo, in_time, plain, serve, until


def test_body_is_seen_before_it_is_whole():
    """The application has the first part while the client still holds back the rest."""
    first, seen = threading.Event(), []

    def app(environ, start_response):
        start = environ["wsgi.input"].read(300_000)
        first.set()
        seen.append(start + environ["wsgi.input"].read())
        return plain()(environ, start_response)

    with serve(app, threads=3) as rig:
        client = rig.client().send(post(len(BODY)) + BODY[:300_000])
        assert first.wait(DEADLINE_S), "the application did not get the first part"
        assert rig.client().request(GET, head_only=True).status == 200
        client.send(BODY[300_000:])
        assert client.receive().body == b"ok"
        until(lambda: patience(rig) == 1, "the slot's return")
    assert BODY in seen


def test_one_request_is_run_once():
    """A body that is read to its end at once by the other thread does not begin a second request."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # the other thread is as fast as it can be
    try:
        with serve(echo, threads=4) as rig:
            client = rig.client()
            for _ in range(100):
                assert client.request(post(len(PART) + 1000) + PART + b"x" * 1000).status == 200
            until(lambda: rig.stats.requests == 100, "the count")
            assert rig.calls == 100
    finally:
        sys.setswitchinterval(interval)


LINES = list(io.BytesIO(BODY))


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (lambda body: [body.read()], [BODY]),
        (lambda body: [body.read(300_000), body.read(-1), body.read(1)], [BODY[:300_000], BODY[300_000:], b""]),
        (lambda body: iter(lambda: body.read(1000), b""), [BODY[at : at + 1000] for at in range(0, len(BODY), 1000)]),
        (lambda body: iter(lambda: body.read(len(BODY) + 1), b""), [BODY]),
        (lambda body: iter(body.readline, b""), LINES),
        (lambda body: [body.readline(7), *iter(body.readline, b"")], [LINES[0][:7], LINES[0][7:], *LINES[1:]]),
        (lambda body: body.readlines(), LINES),
        (lambda body: body, LINES),
        (lambda body: [body.readline(), *body.readlines(), body.readline(), body.read()], [*LINES, b"", b""]),
    ],
    ids=["read", "read-n", "blocks", "beyond", "readline", "readline-n", "readlines", "iteration", "mixed"],
)
def test_ways_of_reading(read, expected):
    """Whatever way a streamed body is read, it is the body, and the connection goes on behind it."""
    got = []

    def app(environ, start_response):
        if is_streamed(environ):
            got.extend(read(environ["wsgi.input"]))
        return plain()(environ, start_response)

    with serve(app, threads=3) as rig:
        client = rig.client().send(post(len(BODY)) + BODY + GET)
        assert [client.receive().body, client.receive().body] == [b"ok", b"ok"]
    assert got == expected


@pytest.mark.parametrize("behind", [GET * 3, GET[:9], post(len(BODY)) + BODY + GET])
def test_pipeline_behind_a_stream(behind):
    """What came behind a streamed body that was read whole are the next requests, also such with long bodies."""
    with serve(echo, threads=3) as rig:
        client = rig.client().send(post(len(BODY)) + BODY + behind)
        assert client.receive().body == BODY
        if behind == GET[:9]:
            client.send(GET[9:])
        if behind.startswith(b"POST"):
            assert client.receive().body == BODY
        for _ in range(max(1, behind.count(b"GET "))):
            assert client.receive().body == b""


@pytest.mark.parametrize("read", [0, 1, 300_000, len(BODY) - 1])
@pytest.mark.parametrize("size", [2, 8 << 20])
def test_unread_body(read, size):
    """What the application leaves of a body is not taken for a request: its response arrives whole, then the end."""
    answer = os.urandom(size)

    def app(environ, start_response):
        environ["wsgi.input"].read(read)
        return plain(answer)(environ, start_response)

    with serve(app, threads=3) as rig:
        client = rig.client().send(post(len(BODY)) + BODY[:300_000])
        rest = BODY[300_000:] + GET
        sender = threading.Thread(target=send_quietly, args=(client, rest))
        if read > 300_000:
            sender.start()
            sender.join()
        response = client.receive()
        assert (response.status, response.body == answer) == (200, True)
        if response.get("Connection") == "close":
            assert client.at_end()
        else:  # it had come already, all of it
            assert read == len(BODY) - 1
        assert rig.calls <= 2
        until(lambda: patience(rig) == 1, "the slot's return")


def send_quietly(client, data):
    """Send what the server may not want any more."""
    try:
        client.send(data)
    except OSError:
        pass


def test_answer_reaches_a_client_that_goes_on_sending():
    """The answer to a body nobody reads is not lost to a reset while the client is still sending."""
    with serve(plain(b"enough"), threads=3) as rig:
        client = rig.client().send(post(1 << 30) + PART + b"x")
        for _ in range(40):
            client.send(PART)
        response = client.receive()
        assert (response.body, response.get("Connection")) == (b"enough", "close")


@pytest.mark.parametrize("half_closed", [False, True])
def test_client_that_listens_only_when_it_has_sent_all(half_closed):
    """A long answer and a body that nobody reads do not wait for each other: what still comes is thrown away."""
    answer = os.urandom(8 << 20)
    with serve(plain(answer), threads=3) as rig:
        client = rig.client().send(post(64 << 20) + PART + b"x")
        until(lambda: rig.stats.requests == 1, "the request's end")
        for _ in range(0 if half_closed else 255):
            client.send(PART)
        if half_closed:
            client.sock.shutdown(socket.SHUT_WR)
        response = client.receive()
        assert (response.body == answer, response.get("Connection")) == (True, "close")
        assert client.at_end()


@pytest.mark.parametrize("leave", [reset, lambda client: client.sock.shutdown(socket.SHUT_WR)], ids=["reset", "fin"])
def test_client_leaves_in_its_body(leave):
    """The application gets an OSError, no end it could take for the body's; it is counted, and no error of ours."""
    errors = []

    def app(environ, start_response):
        try:
            return echo(environ, start_response)
        except OSError as error:
            errors.append(error)
            raise

    with serve(app, threads=3) as rig:
        client = rig.client().send(post(len(BODY)) + BODY[:300_000])
        until(lambda: rig.stats.inflight, "the request's begin")
        leave(client)
        until(lambda: rig.stats.connections == 0, "the connection's end")
        assert [str(error) for error in errors] == ["client left in its body"]
        assert rig.stats.refused == {"client left in its body": 1}
        assert str(rig.log) == ""
        assert patience(rig) == 1


@pytest.mark.parametrize("drip", [b"", b"x"], ids=["silent", "dripping"])
def test_client_stalls_in_its_body(drip):
    """A client that stops, or sends too slowly, gets a 408 when the application lets the error out; others go on."""
    limits = {"body_timeout_s": 0.3, "linger_s": 0.2}
    with serve(echo, threads=3, limits=limits) as rig:
        start = time.monotonic()
        client, other = rig.client().send(post(len(BODY)) + BODY[:300_000]), rig.client()

        def over():
            if drip and not rig.stats.refused:
                with contextlib.suppress(OSError):  # its end may come at this moment
                    client.send(drip)
            assert other.request(GET).status == 200
            return rig.stats.refused

        assert until(over, "the time-out") == {"body time-out": 1}
        assert 0.25 < time.monotonic() - start < 15
        response = client.receive()
        assert (response.status, response.get("Connection")) == (408, "close")
        assert client.at_end()
        until(lambda: patience(rig) == 1, "the slot's return")


def test_steady_client_may_take_its_time():
    """Each KiB postpones the time-out, so a slow body that goes on is read to its end."""

    def run(step):
        with serve(echo, threads=3, limits={"body_timeout_s": 0.4}) as rig:
            step()
            client = rig.client().send(post(len(BODY)) + BODY[:-20_000])
            at, end = len(BODY) - 20_000, time.monotonic() + 1.0
            while time.monotonic() < end and at < len(BODY) - 2000:
                client.send(BODY[at : at + 1500])
                step()
                at += 1500
                pause = time.monotonic() + 0.1
                until(lambda pause=pause: time.monotonic() > pause, "the next piece's time")
            client.send(BODY[at:])
            step()
            assert client.receive().body == BODY

    in_time(run, 0.25)


def test_slow_application_is_no_slow_client():
    """The time an application takes between two reads is not the client's."""
    first, more = threading.Event(), threading.Event()

    def app(environ, start_response):
        body = environ["wsgi.input"].read(len(PART) + 1)
        first.set()
        body += environ["wsgi.input"].read(500)  # less than what counts as progress
        end = time.monotonic() + 1.2
        until(lambda: time.monotonic() > end, "the application's long thought")
        more.set()
        return plain(body + environ["wsgi.input"].read())(environ, start_response)

    with serve(app, threads=3, limits={"body_timeout_s": 1.0}) as rig:
        client = rig.client().send(post(len(BODY)) + BODY[: len(PART) + 1])
        assert first.wait(DEADLINE_S)
        client.send(BODY[len(PART) + 1 : len(PART) + 501])
        assert more.wait(DEADLINE_S)
        end = time.monotonic() + 0.2
        until(lambda: time.monotonic() > end, "some time of the client's own")
        assert client.send(BODY[len(PART) + 501 :]).receive().body == BODY


def test_failed_body_stays_failed():
    """An application that catches the error and reads on gets it again, also when the client has woken up."""
    errors, late = [], threading.Event()

    def app(environ, start_response):
        body = environ["wsgi.input"]
        for _ in range(3):
            try:
                body.read()
            except OSError as error:
                errors.append(str(error))
                assert late.wait(DEADLINE_S)
        return plain()(environ, start_response)

    with serve(app, threads=3, limits={"body_timeout_s": 0.2}) as rig:
        client = rig.client().send(post(len(BODY)) + BODY[:-5])
        until(lambda: errors, "the time-out")
        client.send(BODY[-5:] + GET)
        late.set()
        response = client.receive()
        assert (response.status, response.get("Connection")) == (200, "close")
        assert client.at_end()
        assert (errors, rig.calls) == (["body time-out"] * 3, 1)


def test_broken_clients_leave_no_slot_taken():
    """After hundreds of clients that broke off in every way, all threads may wait for clients again."""

    def app(environ, start_response):
        mode = environ["PATH_INFO"]
        if mode == "/half":
            environ["wsgi.input"].read(280_000)
        elif mode == "/raise":
            environ["wsgi.input"].read(1000)
            raise ValueError("on purpose")
        elif mode == "/stream":
            start_response("200 OK", [])
            return (block for block in iter(lambda: environ["wsgi.input"].read(65536), b""))
        elif mode == "/whole":
            environ["wsgi.input"].read()
        return plain(BODY)(environ, start_response)

    modes = [b"/half", b"/raise", b"/stream", b"/whole", b"/none"]
    with serve(app, threads=8, limits={"body_timeout_s": 0.2, "linger_s": 0.1}) as rig:
        for number in range(200):
            client = rig.client()
            client.send(post(len(BODY), path=modes[number % 5]) + BODY[: 262_145 + number * 100])
            if number % 3 == 0:
                reset(client)
            elif number % 3 == 1:
                send_quietly(client, BODY[262_145 + number * 100 :])
                client.close()
        until(lambda: patience(rig) == 4 and not rig.stats.inflight, "all slots' return")
        until(lambda: rig.stats.connections == 0, "the end of all")
        assert rig.client().request(post(len(BODY), path=b"/whole") + BODY).body == BODY


def test_streams_on_an_http_1_0_connection():
    """A long body of an HTTP/1.0 client streams as well."""
    seen = []
    with serve(noting(seen), threads=3) as rig:
        request = post(len(BODY)).replace(b"HTTP/1.1", b"HTTP/1.0")
        assert rig.client().request(request + BODY).body == BODY
    assert seen == [True]


def test_validator_and_a_stream():
    """The reader of a streamed body outlives neither its request nor its connection."""
    kept = []

    def app(environ, start_response):
        kept.append(environ["wsgi.input"])
        return plain(environ["wsgi.input"].read(10))(environ, start_response)

    with serve(app, threads=3) as rig:
        assert rig.client().request(post(len(BODY)) + BODY[:300_000]).body == BODY[:10]
        until(lambda: kept[0].closed, "the reader's end")
        with pytest.raises(ValueError, match="closed"):
            kept[0].read(1)


@pytest.mark.timeout(120)
def test_body_larger_than_memory_is_worth():
    """While 200 MiB stream through a reading application this process grows by less than 20 MiB."""
    size, grown = 200 << 20, []

    def rss_bytes():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def app(environ, start_response):
        start, count = rss_bytes(), 0
        while block := environ["wsgi.input"].read(65536):
            count += len(block)
            grown.append(rss_bytes() - start)
        return plain(b"%d" % count)(environ, start_response)

    with serve(app, threads=3) as rig:
        client = rig.client().send(post(size))
        block = b"x" * (1 << 20)
        for _ in range(200):
            client.send(block)
        assert client.receive().body == b"%d" % size
    assert max(grown) < 20 << 20
