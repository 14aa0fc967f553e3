"""PEP 3333: what the application sees, and what becomes of what it gives back."""

import io
import sys
import wsgiref.validate

import pytest
from http_rig import (
    DEADLINE_S,
    GET,
    GET_CLOSE,
    HEAD_REQUEST,
    OLD,
    OLD_KEEP,
    Blocks,
    echo,
    giving,
    plain,
    serve,
    until,
)

from zcluster.http.files import FileWrapper


@pytest.mark.parametrize(
    "request_", [GET, HEAD_REQUEST, OLD, GET.replace(b" / ", b" * ").replace(b"GET", b"OPTIONS")]
)
def test_validator(request_):
    """The standard library's validator finds nothing wrong with the environ, the streams and the order of calls."""

    def app(environ, start_response):
        environ["wsgi.input"].read(1)
        environ["wsgi.errors"].write("")
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
        return [b"ok"] if environ["REQUEST_METHOD"] != "HEAD" else []

    with serve(wsgiref.validate.validator(app)) as rig:
        response = rig.client().request(request_, head_only=request_ is HEAD_REQUEST)
        assert response.status == 200, str(rig.log)


def test_environ():
    """Every key of the environ has its value."""
    seen = {}

    def app(environ, start_response):
        seen.update(environ)
        start_response("200 OK", [])
        return [b""]

    with serve(app, environ={"zcluster.worker": 7}) as rig:
        client = rig.client()
        client.request(
            b"POST /a%20b/%C3%A9?x=%20&y HTTP/1.1\r\nHost: example.org:81\r\nContent-Type: a/b\r\n"
            b"Content-Length: 2\r\nCookie: a=1\r\ncookie: b=2\r\nX-Many: 1 \t\r\nx-many:2\r\n"
            b"X-Latin: \xe9\r\nX-Empty:\r\n"
            b"Proxy_Evil: 1\r\nX_Many: 3\r\n\r\nhi"
        )
        host, port = client.sock.getsockname()
        expected = {
            "REQUEST_METHOD": "POST",
            "SCRIPT_NAME": "",
            "PATH_INFO": "/a b/\xc3\xa9",
            "QUERY_STRING": "x=%20&y",
            "RAW_URI": "/a%20b/%C3%A9?x=%20&y",
            "REQUEST_URI": "/a%20b/%C3%A9?x=%20&y",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": str(rig.address[1]),
            "SERVER_SOFTWARE": "zcluster",
            "GATEWAY_INTERFACE": "CGI/1.1",
            "REMOTE_ADDR": host,
            "REMOTE_PORT": str(port),
            "CONTENT_TYPE": "a/b",
            "CONTENT_LENGTH": "2",
            "HTTP_HOST": "example.org:81",
            "HTTP_COOKIE": "a=1; b=2",
            "HTTP_X_MANY": "1, 2",
            "HTTP_X_LATIN": "\xe9",
            "HTTP_X_EMPTY": "",
            "zcluster.worker": 7,
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.multithread": False,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            "wsgi.input_terminated": True,
            "wsgi.errors": sys.stderr,
            "wsgi.file_wrapper": FileWrapper,
        }
        assert {key: value for key, value in seen.items() if key != "wsgi.input"} == expected
        assert rig.stats.headers_dropped == 2


def test_requests_do_not_share_an_environ():
    """What one request puts into its environ is not in the next one's."""

    def app(environ, start_response):
        start_response("200 OK", [("X-Seen", str("mine" in environ))])
        environ["mine"] = 1
        environ["HTTP_HOST"] = "other"
        return [environ.get("HTTP_X_ONE", "-").encode()]

    with serve(app) as rig:
        client = rig.client()
        first = client.request(b"GET / HTTP/1.1\r\nHost: h\r\nX-One: 1\r\n\r\n")
        second = client.request(GET)
        assert (first.get("X-Seen"), first.body) == ("False", b"1")
        assert (second.get("X-Seen"), second.body) == ("False", b"-")


def test_absolute_target():
    """An absolute target gives the path, and its authority replaces Host (RFC 9112, 3.2.2)."""

    def app(environ, start_response):
        start_response("200 OK", [])
        return [f"{environ['HTTP_HOST']} {environ['PATH_INFO']} {environ['QUERY_STRING']}".encode()]

    with serve(app) as rig:
        client = rig.client()
        assert client.request(b"GET http://real:8/p%41?q HTTP/1.1\r\nHost: h\r\n\r\n").body == b"real:8 /pA q"
        assert client.request(b"GET HTTP://real HTTP/1.1\r\nHost: h\r\n\r\n").body == b"real / "


@pytest.mark.parametrize("body", [b"", b"x", b"x" * 100, b"x" * 200_000])
def test_one_block(body):
    """A list of one block gets its Content-Length; the connection stays open."""
    with serve(plain(body)) as rig:
        client = rig.client()
        for _ in range(2):
            response = client.request(GET)
            assert response.body == body
            assert response.get("Content-Length") == str(len(body))
            assert response.get("Server") == "zcluster"
            assert response.get("Date").endswith(" GMT")
            assert response.get("Connection") is None


def test_list_of_blocks():
    """A list of several blocks is one response of known length."""
    with serve(giving([b"a", b"", b"bc"])) as rig:
        response = rig.client().request(GET)
        assert (response.get("Content-Length"), response.body) == ("3", b"abc")


def test_stream_is_chunked():
    """Blocks of unknown total length are chunked on HTTP/1.1, empty ones left out (one would end the body)."""
    with serve(lambda e, s: giving(Blocks(b"a", b"", b"bc", b"d" * 40_000))(e, s)) as rig:
        client = rig.client()
        for _ in range(2):
            response = client.request(GET)
            assert response.get("Transfer-Encoding") == "chunked"
            assert response.body == b"abc" + b"d" * 40_000


def test_stream_with_length():
    """A Content-Length of the application's is kept, without chunks."""
    with serve(lambda e, s: giving(Blocks(b"ab", b"c"), headers=[("Content-Length", "3")])(e, s)) as rig:
        client = rig.client()
        for _ in range(2):
            response = client.request(GET)
            assert (response.get("Content-Length"), response.body) == ("3", b"abc")
            assert response.get("Transfer-Encoding") is None


def test_stream_to_old_client():
    """HTTP/1.0 knows no chunks: the end of the connection ends the body."""
    with serve(lambda e, s: giving(Blocks(b"a", b"b"))(e, s)) as rig:
        client = rig.client()
        response = client.request(OLD_KEEP)
        assert response.get("Transfer-Encoding") is None
        assert response.get("Connection") == "close"
        assert response.body == b"ab"


def test_each_block_is_sent_before_the_next():
    """A block reaches the client before the application is asked for another one."""
    got = []

    def app(environ, start_response):
        start_response("200 OK", [])
        yield b"first"
        until(lambda: got, "the first block's arrival")
        yield b"second"

    with serve(app) as rig:
        client = rig.client().send(GET)
        data = b""
        while b"first" not in data:
            data += client.sock.recv(65536)
        got.append(data)
        while not data.endswith(b"0\r\n\r\n"):
            data += client.sock.recv(65536)
        assert b"second" in data


def test_old_client():
    """HTTP/1.0 closes by default and keeps the connection when asked."""
    with serve(plain()) as rig:
        client = rig.client()
        for _ in range(2):
            response = client.request(OLD_KEEP)
            assert (response.body, response.get("Connection")) == (b"ok", "keep-alive")
        response = client.request(OLD)
        assert (response.body, response.get("Connection")) == (b"ok", "close")
        assert client.at_end()


def test_connection_close():
    """`Connection: close` of either side ends the connection after the response."""
    with serve(plain()) as rig:
        client = rig.client()
        assert client.request(GET_CLOSE).get("Connection") == "close"
        assert client.at_end()
    with serve(plain(headers=[("Connection", "Close")])) as rig:
        client = rig.client()
        assert client.request(GET).get("Connection") == "close"
        assert client.at_end()


@pytest.mark.parametrize("result", [[b"body"], (b"bo", b"dy")])
def test_head(result):
    """HEAD gets the head that GET would get, and no body."""
    with serve(giving(result)) as rig:
        client = rig.client()
        for _ in range(2):
            response = client.request(HEAD_REQUEST, head_only=True)
            assert response.get("Content-Length") == "4"
        assert client.request(GET).body == b"body"


def test_head_of_a_stream():
    """HEAD on an endless stream asks for one block and closes it."""
    stream = Blocks(b"x", AssertionError("more was asked for"))
    with serve(giving(stream)) as rig:
        client = rig.client()
        assert client.request(HEAD_REQUEST, head_only=True).status == 200
        until(lambda: stream.closed == 1, "close()")
        assert client.request(b"BREW / HTTP/1.1\r\n\r\n").status == 400  # no Host, and nothing of a body in between
        assert str(rig.log) == ""


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
@pytest.mark.parametrize("result", [[], [b""], [b"surplus"]])
def test_no_body(status, result):
    """204 and 304 have neither a body nor a length of our making."""
    with serve(giving(result, status)) as rig:
        client = rig.client()
        for _ in range(2):
            response = client.request(GET)
            assert f"{response.status}" == status[:3]
            assert response.get("Content-Length") is None
            assert response.get("Transfer-Encoding") is None


def test_own_length_without_body():
    """A 304 may tell the length it would have; a 204 may not (RFC 9110, 8.6)."""
    with serve(giving([], "304 Not Modified", [("Content-Length", "9")])) as rig:
        assert rig.client().request(GET).get("Content-Length") == "9"
    with serve(giving([], "204 No Content", [("Content-Length", "9")])) as rig:
        assert rig.client().request(GET).get("Content-Length") is None


def test_own_date_and_server():
    """Date and Server of the application's replace ours."""
    with serve(plain(headers=[("Date", "then"), ("server", "mine")])) as rig:
        response = rig.client().request(GET)
        assert (response.get("Date"), response.get("Server")) == ("then", "mine")


def test_hop_by_hop():
    """Fields about this one connection are not the application's to send."""
    with serve(plain(headers=[("Keep-Alive", "timeout=99"), ("Upgrade", "x"), ("Connection", "upgrade")])) as rig:
        response = rig.client().request(GET)
        assert response.status == 200
        assert response.get("Keep-Alive") is response.get("Upgrade") is response.get("Connection") is None


def test_write():
    """The callable that start_response returns sends at once, in front of what is returned."""

    def app(environ, start_response):
        write = start_response("200 OK", [])
        write(b"a")
        write(b"")
        write(b"b")
        return [b"c"]

    with serve(app) as rig:
        client = rig.client()
        for _ in range(2):
            assert client.request(GET).body == b"abc"


def test_input():
    """wsgi.input is a file at its beginning, with all that PEP 3333 asks of one."""
    got = []

    def app(environ, start_response):
        body = environ["wsgi.input"]
        got.append([body.read(2), body.readline(), body.readline(), list(body), body.read(), body.read(5)])
        start_response("200 OK", [])
        return []

    data = b"abcd\nline\nmore\nend"
    with serve(app) as rig:
        client = rig.client()
        client.request(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
        client.request(GET)
    assert got == [[b"ab", b"cd\n", b"line\n", [b"more\n", b"end"], b"", b""], [b"", b"", b"", [], b"", b""]]


def taken(rig):
    """How much of the only client's body the loop has."""
    intakes = [connection._intake for connection in list(rig.engine._shared.connections.values())]
    return sum(intake.size for intake in intakes if intake)


def test_spooled_input():
    """A body beyond the memory limit waits in an unnamed file, and the application cannot tell."""
    kinds = []

    def app(environ, start_response):
        kinds.append(type(environ["wsgi.input"]) is io.BytesIO)
        return echo(environ, start_response)

    with serve(app, limits={"body_memory_bytes": 1000}) as rig:
        client = rig.client()
        for size in (1000, 2000, 50_000):
            body = bytes(range(256)) * 200
            head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % size
            client.send(head + body[: size - 1])
            until(lambda size=size: taken(rig) == size - 1, "the first part")
            assert client.request(body[size - 1 : size]).body == body[:size]
    assert kinds == [True, False, False]


def test_stats_of_a_running_request():
    """While a request runs, its age and number can be read from outside."""
    seen = []

    def app(environ, start_response):
        seen.append((rig.stats.inflight, rig.stats.connections, rig.stats.oldest_started))
        start_response("200 OK", [])
        return [b""]

    with serve(app) as rig:
        rig.client().request(GET)
        until(lambda: rig.stats.requests == 1, "the request's end")
        assert seen[0][:2] == (1, 1)
        assert 0 < seen[0][2] <= rig.stats.loop_tick + DEADLINE_S
        assert (rig.stats.inflight, rig.stats.oldest_started) == (0, 0.0)
