"""How requests are cut out of the stream: keep-alive, pipelines, bodies, and every way of splitting them."""

import contextlib
import itertools
import socket

import pytest
from http_rig import GET, GET_CLOSE, echo, plain, serve, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

POST = b"POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED_HEAD = b"PUT /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKED = CHUNKED_HEAD + b'2\r\nhe\r\n0003;a=b;c="d"\r\nllo\r\n0\r\nX-Trailer: 1\r\n\r\n'
EVIL = b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
# data that looks like ends, chunks and requests
TRICKY = b"\r\n\r\n0\r\n\r\n\r\n\r\n" + EVIL + b"0\r\n\r\n\r"
TRICKY_CHUNKED = CHUNKED_HEAD + b"%x\r\n%b\r\n4\r\n\r\n\r\n\r\n0\r\n\r\n" % (len(TRICKY), TRICKY)


def test_keep_alive():
    """Many requests on one connection."""
    with serve(echo) as rig:
        client = rig.client()
        for _ in range(100):
            assert client.request(GET).status == 200
            assert client.request(POST).body == b"hello"
            assert client.request(CHUNKED).body == b"hello"
        assert rig.stats.connections == 1
        until(lambda: rig.stats.requests == 300, "the count")


def test_pipeline():
    """Requests sent at once are answered in order, each whole."""
    with serve(echo) as rig:
        client = rig.client().send((POST + GET + CHUNKED) * 50)
        for _ in range(50):
            assert [client.receive().body for _ in range(3)] == [b"hello", b"", b"hello"]


def test_pipeline_of_thousands():
    """2,520 tiny requests in one read are all answered, and another client is served in between."""
    with serve(plain()) as rig:
        client = rig.client().send(GET * 2520)
        assert rig.client().request(GET).status == 200
        for _ in range(2520):
            assert client.receive().body == b"ok"
        until(lambda: rig.stats.requests == 2521, "the count")


def test_turns():
    """A connection with many waiting requests gives way after `pipelined` of them."""
    order = []

    def app(environ, start_response):
        if not order:  # both have sent everything before the first request ends
            second.send(GET.replace(b"/", b"/second", 1))
        order.append(environ["PATH_INFO"])
        return plain()(environ, start_response)

    with serve(app, limits={"pipelined": 4}) as rig:
        second = rig.client()
        until(lambda: rig.stats.connections == 1, "the second client's accept")
        first = rig.client().send(GET * 40)
        for _ in range(40):
            first.receive()
        second.receive()
        assert order.index("/second") == 4


def test_pipeline_behind_close():
    """What follows a request that closes the connection is not answered."""
    with serve(plain()) as rig:
        client = rig.client().send(GET_CLOSE + EVIL)
        assert client.receive().get("Connection") == "close"
        assert client.at_end()
        assert rig.calls == 1


@pytest.mark.parametrize("data", [GET, POST, CHUNKED, TRICKY_CHUNKED], ids=["get", "post", "chunked", "tricky"])
def test_byte_by_byte(data):
    """A request that comes byte by byte is the same request."""
    with serve(echo) as rig:
        whole = rig.client().request(data)
        client = rig.client()
        for index in range(len(data)):
            client.send(data[index : index + 1])
        piecewise = client.receive()
        assert piecewise.body == whole.body
        assert rig.calls == 2


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.sampled_from([GET, POST, CHUNKED, TRICKY_CHUNKED, b"\r\n" + GET]), min_size=1, max_size=6),
    st.lists(st.integers(0, 1500), max_size=12),
)
def test_any_split(requests, cuts):
    """However a pipeline is split over reads, the responses are those of the single requests."""
    data = b"".join(requests)
    marks = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    expected = {GET: b"", POST: b"hello", CHUNKED: b"hello", TRICKY_CHUNKED: TRICKY + b"\r\n\r\n", b"\r\n" + GET: b""}
    client = SHARED.rig.client()
    for start, stop in itertools.pairwise(marks):
        client.send(data[start:stop])
    for request in requests:
        assert client.receive().body == expected[request]
    client.close()


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=200),
            st.sampled_from(
                [GET[:-2], POST, CHUNKED, CHUNKED_HEAD, b"\r\n\r\n", b"GET / HTTP/1.1\r\n", b"Host: h\r\n"]
            ),
        ),
        max_size=8,
    )
)
def test_random_bytes(pieces):
    """Whatever bytes come, the connection ends and the engine serves the next client."""
    client = SHARED.rig.client()
    with contextlib.suppress(OSError):  # refused and closed while we were still sending
        for piece in pieces:
            client.send(piece)
        client.sock.shutdown(socket.SHUT_WR)
        client.rest()
    client.close()
    after = SHARED.rig.client()
    assert after.request(GET).status == 200
    after.close()
    assert SHARED.rig.stats.failures == 0


class SHARED:
    """One engine for all examples of a property."""

    rig = None


@pytest.fixture(scope="module", autouse=True)
def shared_rig():
    """Run that engine."""
    with serve(echo) as SHARED.rig:
        yield


@pytest.mark.parametrize("body", [TRICKY, b"", b"x" * 300_000], ids=["tricky", "empty", "large"])
def test_bodies_end_where_they_end(body):
    """Nothing inside a body is taken for a request, and the request behind it is not taken for its body."""
    sized = b"POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    chunks = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
    with serve(echo) as rig:
        client = rig.client().send(sized + GET + CHUNKED_HEAD + chunks + b"0\r\n\r\n" + GET)
        assert client.receive().body == body
        assert client.receive().get("X-Path") == "/"
        assert client.receive().body == body
        assert client.receive().get("X-Path") == "/"
        assert rig.calls == 4


def test_decoded_chunks_have_a_length():
    """The application sees a chunked body with its length and without its coding; trailers change nothing."""
    seen = []

    def app(environ, start_response):
        keys = ("CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING", "HTTP_HOST", "HTTP_X_TRAILER")
        seen.append([environ.get(key) for key in keys])
        return echo(environ, start_response)

    with serve(app) as rig:
        assert rig.client().request(CHUNKED).body == b"hello"
    assert seen == [["5", None, "h", None]]


@pytest.mark.parametrize("framing", [b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_expect(framing):
    """With Expect: 100-continue the client is told to go on before its body is read."""
    with serve(echo) as rig:
        client = rig.client()
        for _ in range(2):
            client.send(b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-Continue\r\n" + framing + b"\r\n")
            assert client.receive().status == 100
            client.send(b"hello" if b"Length" in framing else b"5\r\nhello\r\n0\r\n\r\n")
            response = client.receive()
            assert (response.status, response.body) == (200, b"hello")


def test_expect_is_not_always_answered():
    """No 100 for a body already on its way, for none, and for HTTP/1.0."""
    with serve(echo) as rig:
        client = rig.client()
        head = b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n"
        assert client.request(head + b"Content-Length: 5\r\n\r\nhello").status == 200
        assert client.request(head + b"\r\n").status == 200
        assert client.request(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi").status == 200


@pytest.mark.parametrize("behind", [b"", GET])
def test_upgrade_is_ignored(behind):
    """An Upgrade we do not offer is an ordinary request, with whatever follows it."""
    head = (
        b"POST /u HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: A\r\n"
    )
    with serve(echo) as rig:
        client = rig.client()
        for framing, body in (
            (b"\r\n", b""),
            (b"Content-Length: 2\r\n\r\nhi", b"hi"),
            (b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", b"hi"),
        ):
            client.send(head + framing + behind)
            response = client.receive()
            assert (response.status, response.body, response.get("X-Path")) == (200, body, "/u")
            if behind:
                assert client.receive().get("X-Path") == "/"


def test_names_are_not_confused():
    """A name with an underscore shadows nothing, whichever comes first."""

    def app(environ, start_response):
        start_response("200 OK", [])
        return [environ["HTTP_X_USER"].encode()]

    with serve(app) as rig:
        client = rig.client()
        assert client.request(b"GET / HTTP/1.1\r\nHost: h\r\nX_User: root\r\nX-User: me\r\n\r\n").body == b"me"
        assert client.request(b"GET / HTTP/1.1\r\nHost: h\r\nX-User: me\r\nX_User: root\r\n\r\n").body == b"me"


def test_sizes_at_the_limit():
    """A request line, a field and a number of fields exactly at their limits are served."""
    with serve(plain()) as rig:
        client = rig.client()
        line = b"GET /" + b"a" * (8190 - len(b"GET / HTTP/1.1")) + b" HTTP/1.1\r\nHost: h\r\n\r\n"
        assert client.request(line).status == 200
        field = b"X: " + b"a" * (8190 - 3)
        assert client.request(b"GET / HTTP/1.1\r\nHost: h\r\n" + field + b"\r\n\r\n").status == 200
        fields = b"".join(b"X-%d: %d\r\n" % (index, index) for index in range(99))
        assert client.request(b"GET / HTTP/1.1\r\nHost: h\r\n" + fields + b"\r\n").status == 200
