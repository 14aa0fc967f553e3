"""What the application does wrong, and what the client and the log see of it."""

import sys

import pytest
from http_rig import GET, HEAD_REQUEST, OLD, Blocks, giving, serve, until


def test_exc_info_before_the_head():
    """start_response may change its mind with exc_info while nothing is sent."""

    def app(environ, start_response):
        start_response("200 OK", [("X-Old", "1"), ("Content-Length", "99")])
        try:
            raise KeyError("x")
        except KeyError:
            start_response("503 Service Unavailable", [("X-New", "1")], sys.exc_info())
        return [b"sorry"]

    with serve(app) as rig:
        response = rig.client().request(GET)
        assert (response.status, response.body, response.get("X-Old")) == (503, b"sorry", None)


def test_exc_info_after_the_head():
    """Once the head has left, exc_info is raised again and the connection is cut."""

    def app(environ, start_response):
        start_response("200 OK", [])(b"a")
        try:
            raise KeyError("too late")
        except KeyError:
            start_response("500 Sorry", [], sys.exc_info())
        return [b"never"]

    with serve(app) as rig:
        with pytest.raises((EOFError, ConnectionResetError)):
            rig.client().request(GET)
        until(lambda: "too late" in str(rig.log), "the log")
        assert "connection is cut" in str(rig.log)


BAD_APPS = {
    "raises": lambda e, s: 1 / 0,
    "raises in the iterator": lambda e, s: giving(Blocks(b"", ValueError("x")))(e, s),
    "no start_response": lambda e, s: [b"x"],
    "no start_response, empty": lambda e, s: [],
    "returns None": giving(None),
    "returns str": giving(["x"]),
    "yields str": lambda e, s: giving(Blocks("x"))(e, s),
    "CR in a value": giving([b"x"], headers=[("X", "a\rb")]),
    "LF in a value": giving([b"x"], headers=[("X", "a\nSet-Cookie: b")]),
    "CRLF in a value": giving([b"x"], headers=[("X", "a\r\nSet-Cookie: b")]),
    "NUL in a value": giving([b"x"], headers=[("X", "a\0b")]),
    "blank in a name": giving([b"x"], headers=[("X Y", "a")]),
    "colon in a name": giving([b"x"], headers=[("X:", "a")]),
    "empty name": giving([b"x"], headers=[("", "a")]),
    "bytes for a value": giving([b"x"], headers=[("X", b"a")]),
    "a value beyond Latin-1": giving([b"x"], headers=[("X", "\u20ac")]),
    "a bad length": giving([b"x"], headers=[("Content-Length", "+1")]),
    "two lengths": giving([b"x"], headers=[("Content-Length", "1"), ("content-length", "1")]),
    "own Transfer-Encoding": giving([b"1\r\nx\r\n0\r\n\r\n"], headers=[("Transfer-Encoding", "chunked")]),
    "status without a number": giving([b"x"], "OK"),
    "status with LF": giving([b"x"], "200 OK\nX: y"),
    "status 101": giving([b"x"], "101 Switching Protocols"),
    "bytes for a status": giving([b"x"], b"200 OK"),
    "start_response twice": lambda e, s: (s("200 OK", []), giving([b"x"])(e, s)),
    "GeneratorExit": lambda e, s: giving(Blocks(GeneratorExit()))(e, s),
    "asyncio-like BaseException": lambda e, s: giving(Blocks(type("Cancelled", (BaseException,), {})()))(e, s),
    "its own broken pipe": lambda e, s: giving(Blocks(BrokenPipeError("a subprocess")))(e, s),
}


@pytest.mark.parametrize("app", BAD_APPS.values(), ids=BAD_APPS)
def test_broken_before_the_head(app):
    """An application that goes wrong before anything was sent gives a 500 and a traceback with the request."""
    with serve(app) as rig:
        client = rig.client()
        for _ in range(2):  # the connection lives on
            response = client.request(GET.replace(b"/ ", b"/where?x "))
            assert (response.status, response.body) == (500, b"Internal Server Error\n")
        assert client.request(HEAD_REQUEST, head_only=True).status == 500
        assert str(rig.log).count("GET /where?x: the application raised (answered 500)") == 2
        assert str(rig.log).count("Traceback") == 3
        until(lambda: rig.stats.requests == 3, "the count")


@pytest.mark.parametrize("request_", [GET, OLD])
@pytest.mark.parametrize("headers", [[], [("Content-Length", "10")]])
def test_broken_after_the_head(request_, headers):
    """After the head a failure cuts the connection with a reset, so that no client takes the body for a whole one."""
    blocks = Blocks(b"begin", ValueError("in the middle"))
    with serve(giving(blocks, headers=headers)) as rig:
        client = rig.client().send(request_)
        with pytest.raises((ConnectionResetError, EOFError)):
            client.receive()
        until(lambda: "in the middle" in str(rig.log), "the log")
        assert "the connection is cut" in str(rig.log)
        assert blocks.closed == 1


@pytest.mark.parametrize("result", [[b"four"], Blocks(b"fo", b"ur"), []])
def test_too_few_bytes(result):
    """A body shorter than its Content-Length cuts the connection and is logged."""
    with serve(giving(result, headers=[("Content-Length", "10")])) as rig:
        with pytest.raises((ConnectionResetError, EOFError)):
            rig.client().request(GET)
        until(lambda: "bytes less than its Content-Length" in str(rig.log), "the log")


@pytest.mark.parametrize("result", [[b"four and more"], Blocks(b"four", b" and", b" more"), Blocks(b"four and more")])
def test_too_many_bytes(result):
    """A body longer than its Content-Length is trimmed and logged; the connection lives on."""
    with serve(giving(result, headers=[("Content-Length", "4")])) as rig:
        client = rig.client()
        for _ in range(2):
            assert client.request(GET).body == b"four"
        until(lambda: "more bytes than its Content-Length" in str(rig.log), "the log")


@pytest.mark.parametrize("blocks", [(b"x",), (), (ValueError(),), (b"x", ValueError())])
def test_close_is_always_called(blocks):
    """close() of the result is called once, whatever happened."""
    result = Blocks(*blocks)
    with serve(giving(result)) as rig:
        rig.client().send(GET)
        until(lambda: rig.stats.requests == 1, "the request's end")
        assert result.closed == 1


def test_close_that_raises():
    """A failure in close() is logged; the response was complete and the connection lives on."""
    result = Blocks(b"x")
    result.close = lambda: 1 / 0
    with serve(giving(result)) as rig:
        client = rig.client()
        for _ in range(2):
            assert client.request(GET).body == b"x"
        until(lambda: str(rig.log).count("ZeroDivisionError: ") == 2, "the log")
        assert "the response was complete" in str(rig.log)


@pytest.mark.parametrize(
    ("error", "code"),
    [(SystemExit, 0), (SystemExit(3), 3), (SystemExit("no more"), 1), (KeyboardInterrupt, 130)],
    ids=repr,
)
def test_system_exit(error, code):
    """SystemExit in a request: 500, the engine drains by itself, and on_exit hears the code, once."""
    codes = []

    def app(environ, start_response):
        raise error

    with serve(app, on_exit=codes.append) as rig:
        client = rig.client()
        other = rig.client()
        response = client.request(GET)
        assert (response.status, response.get("Connection")) == (500, "close")
        assert other.request(GET).status == 500
        client.close()
        other.close()
        rig.join()
        assert codes == [code]
        assert ("no more" in str(rig.log)) == (code == 1)
