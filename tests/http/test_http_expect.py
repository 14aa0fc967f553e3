"""Expect: 100-continue: consent is given when somebody wants the body, and not before."""

import threading

import pytest
from http_rig import DEADLINE_S, GET, echo, plain, serve, until

HEAD = b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n"
SIZED = HEAD + b"Content-Length: 5\r\n\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
BODIES = {SIZED: b"hello", CHUNKED: b"2\r\nhe\r\n3\r\nllo\r\n0\r\nX-Trailer: 1\r\n\r\n"}


def silent(client):
    """Whether nothing has been said so far."""
    client.sock.setblocking(False)
    try:
        client.sock.recv(1)
    except BlockingIOError:
        return True
    finally:
        client.sock.settimeout(DEADLINE_S)
    return False


def test_consent_comes_with_the_first_read():
    """The client hears 100 when the application reads, and nothing while it has not."""
    running, go_on = threading.Event(), threading.Event()

    def app(environ, start_response):
        running.set()
        assert go_on.wait(DEADLINE_S)
        return echo(environ, start_response)

    with serve(app, threads=3) as rig:
        client = rig.client().send(SIZED)
        assert running.wait(DEADLINE_S), "the application waits for a body that waits for it"
        assert silent(client)
        go_on.set()
        assert client.receive().status == 100
        assert client.request(b"hello").body == b"hello"
        assert client.request(GET).status == 200, "the connection did not outlive it"


@pytest.mark.parametrize("size", [2, 4 << 20])
def test_answer_without_reading(size):
    """Who does not read gives no consent: the client gets the final response, whole, and the end."""
    answer = bytes(size)
    with serve(plain(answer, "401 Unauthorized"), threads=3) as rig:
        client = rig.client()
        response = client.request(SIZED)
        assert (response.status, response.get("Connection")) == (401, "close")
        assert response.body == answer
        assert client.at_end()


def test_answer_before_reading():
    """An application that begins its response and reads then gets the body of a client that sends it unasked."""

    def app(environ, start_response):
        start_response("200 OK", [])
        yield b"first "
        yield environ["wsgi.input"].read()

    with serve(app, threads=3) as rig:
        client = rig.client().send(SIZED)
        until(lambda: not silent_yet(client), "the head")
        client.send(b"hello")
        data = client.rest()
        assert data.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"100" not in data
        assert b"Connection: close\r\n" in data
        assert data.endswith(b"6\r\nfirst \r\n5\r\nhello\r\n0\r\n\r\n")


def silent_yet(client):
    """`silent`, without taking anything."""
    client.sock.setblocking(False)
    try:
        return not client.sock.recv(1, 2)  # MSG_PEEK
    except BlockingIOError:
        return True
    finally:
        client.sock.settimeout(DEADLINE_S)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("head", BODIES)
def test_body_that_came_unasked(head, threads):
    """A client that has begun its body waits for nothing, and is not told to go on."""
    with serve(echo, threads=threads) as rig:
        client = rig.client()
        for _ in range(3):
            response = client.request(head + BODIES[head])
            assert (response.status, response.body) == (200, b"hello")
        body = BODIES[head]
        client.send(head + body[:3])
        until(lambda: rig.stats.requests == 3, "the first three")
        assert client.request(body[3:]).body == b"hello"


@pytest.mark.parametrize("threads", [1, 4])
def test_old_clients_expect_nothing(threads):
    """In HTTP/1.0 there is no 100: the field is ignored."""
    head = b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    with serve(echo, threads=threads) as rig:
        client = rig.client().send(head)
        until(lambda: rig.stats.connections == 1, "the accept")
        assert rig.client().request(GET).status == 200
        assert silent(client)
        assert rig.calls == 1
        assert client.request(b"hello").body == b"hello"


@pytest.mark.parametrize("head", BODIES)
def test_one_thread_consents_at_once(head):
    """With one thread the loop collects the body, so it asks for it before the application runs."""
    with serve(echo, threads=1) as rig:
        client = rig.client().send(head)
        assert client.receive().status == 100
        assert rig.calls == 0
        assert client.request(BODIES[head]).body == b"hello"


def test_no_thread_left_to_wait():
    """When as many threads as may wait for clients, the loop consents and collects."""
    with serve(echo, threads=3) as rig:
        first = rig.client().send(SIZED)
        assert first.receive().status == 100
        second = rig.client().send(SIZED)
        assert second.receive().status == 100
        assert rig.calls == 1
        assert second.request(b"other").body == b"other"
        assert first.request(b"hello").body == b"hello"
        until(lambda: rig.stats.requests == 2, "the count")


def test_chunked_body():
    """A chunked body is asked for at once and collected: many frameworks read none that has no length."""
    seen = []

    def app(environ, start_response):
        seen.append(
            [environ.get(key) for key in ("CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING", "wsgi.input_terminated")]
        )
        seen.append(list(environ["wsgi.input"]))
        return plain()(environ, start_response)

    with serve(app, threads=3) as rig:
        client = rig.client().send(CHUNKED)
        assert client.receive().status == 100
        for line in (b"one\n", b"two\n", b"end"):
            client.send(b"%x\r\n%b\r\n" % (len(line), line))
        assert client.request(b"0\r\n\r\n").status == 200
    assert seen == [["11", None, True], [b"one\n", b"two\n", b"end"]]


def test_consent_is_given_once():
    """However often the application reads, and however the body comes, 100 is said once."""

    def app(environ, start_response):
        body = environ["wsgi.input"]
        return plain(b"|".join(iter(lambda: body.read(1), b"")))(environ, start_response)

    with serve(app, threads=3) as rig:
        client = rig.client().send(SIZED)
        assert client.receive().status == 100
        for byte in (b"h", b"e", b"l", b"l"):
            client.send(byte)
        response = client.request(b"o" + GET)
        assert (response.status, response.body) == (200, b"h|e|l|l|o")
        assert client.receive().status == 200


def test_too_long_to_be_asked_for():
    """A body beyond the limit is refused instead of asked for."""
    with serve(echo, threads=3, limits={"body_bytes": 4}) as rig:
        client = rig.client()
        assert client.request(SIZED).status == 413
        assert client.at_end()
        chunked = rig.client()
        assert chunked.request(CHUNKED).status == 100
        assert chunked.request(BODIES[CHUNKED]).status == 413
        assert rig.calls == 0


def test_client_that_leaves_instead():
    """A client that goes away when it should send is one that left in its body."""
    with serve(echo, threads=3) as rig:
        client = rig.client()
        assert client.request(SIZED).status == 100
        client.close()
        until(lambda: rig.stats.connections == 0, "the connection's end")
        assert rig.stats.refused == {"client left in its body": 1}
        assert str(rig.log) == ""
