"""What must never reach an application."""

import pytest
from http_rig import GET, plain, serve

HEAD = b"POST / HTTP/1.1\r\nHost: h\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"

REFUSED = [
    # the request line
    (b"garbage\r\n\r\n", 400),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    (b"\x00" * 20, 400),
    (b"GET\r\n\r\n", 400),
    (b"GET /\r\n\r\n", 400),
    (b"GET  / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    (b"GET /  HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    (b"GET / HTTP/1.1 \r\nHost: h\r\n\r\n", 400),
    (b" GET / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    (b"GET\t/ HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    (b"GET / http/1.1\r\nHost: h\r\n\r\n", 400),
    (b"GET / HTTP/1\r\nHost: h\r\n\r\n", 400),
    (b"GET / HTTP/11.1\r\nHost: h\r\n\r\n", 400),
    (b"GET / HTTP/1.2\r\nHost: h\r\n\r\n", 505),
    (b"GET / HTTP/0.9\r\nHost: h\r\n\r\n", 505),
    (b"GET / HTTP/2.0\r\nHost: h\r\n\r\n", 505),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    (b"G(T / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    (b"G\xc3T / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    (b"get / HTTP/1.1\r\nHost: h\r\n\r\n", 501),
    (b"FOO / HTTP/1.1\r\nHost: h\r\n\r\n", 501),
    (b"CONNECT h:80 HTTP/1.1\r\nHost: h\r\n\r\n", 501),
    (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    (b"GET /a\x00b HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    (b"GET /a#b HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    (b"GET /?a#b HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    (b"GET a HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    (b"GET * HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    (b"GET h:80 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    (b"GET http:///a HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    (b"GET http://u@h/a HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    (b"GET ftp://h/a HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    (b"GET /" + b"a" * 8190 + b" HTTP/1.1\r\nHost: h\r\n\r\n", 414),
    (b"GET /" + b"a" * 9000, 414),
    # line ends
    (b"GET / HTTP/1.1\nHost: h\n\n", 400),
    (b"GET / HTTP/1.1\r\nHost: h\nX: y\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: h\n\nGET /2 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    (b"GET / HTTP/1.1\rHost: h\r\r", 400),
    (b"GET / HTTP/1.1\r\nHost: h\rX: y\r\n\r\n", 400),
    (b"\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    (b"\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    # fields
    (b"GET / HTTP/1.1\r\n Host: h\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost : h\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: h\r\nX: a\r\n b\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: h\r\nX: a\r\n\tb\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: h\r\nX\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: h\r\n: x\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: h\r\nX(: x\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: h\r\nX\xe9: x\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: h\r\nX: a\x00b\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: h\r\nX: a\x01b\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: h\r\nX: a\x0bb\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: h\r\nX: a\x7fb\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"a" * 8190 + b"\r\n\r\n", 431),
    (b"GET / HTTP/1.1\r\nHost: h\r\n" + b"X: a\r\n" * 100 + b"\r\n", 431),
    (b"GET / HTTP/1.1\r\nHost: h\r\n" + (b"X: " + b"a" * 8000 + b"\r\n") * 9, 431),
    # Host
    (b"GET / HTTP/1.1\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: u@h\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: h:80x\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", 400),
    (b"GET / HTTP/1.0\r\nHost: a b\r\n\r\n", 400),
    # framing
    (HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    (HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400),
    (HEAD + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 400),
    (HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400),
    (HEAD + b"Content-Length: 5, 5\r\n\r\nhello", 400),
    (HEAD + b"Content-Length: +5\r\n\r\nhello", 400),
    (HEAD + b"Content-Length: -5\r\n\r\nhello", 400),
    (HEAD + b"Content-Length: 0x5\r\n\r\nhello", 400),
    (HEAD + b"Content-Length: 1_0\r\n\r\nhellohello", 400),
    (HEAD + b"Content-Length: 5 5\r\n\r\nhello", 400),
    (HEAD + b"Content-Length: \r\n\r\n", 400),
    (HEAD + b"Content-Length: five\r\n\r\n", 400),
    (HEAD + b"Content-Length: 18446744073709551621\r\n\r\nhello", 400),
    (HEAD + b"Content-Length: 999999999999999999\r\n\r\nhello", 413),
    (HEAD + b"Transfer-Encoding: gzip\r\n\r\n", 501),
    (HEAD + b"Transfer-Encoding: identity\r\n\r\n", 501),
    (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    (HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
    (HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400),
    (HEAD + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", 400),
    (HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", 400),
    (HEAD + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400),
    (HEAD + b"Transfer-Encoding:\r\n\r\n", 400),
    (b"POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    (HEAD + b"Expect: 200-ok\r\nContent-Length: 1\r\n\r\n", 417),
    # chunks
    (CHUNKED + b"\r\n", 400),
    (CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n", 400),
    (CHUNKED + b"+5\r\nhello\r\n0\r\n\r\n", 400),
    (CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n", 400),
    (CHUNKED + b"5_\r\nhello\r\n0\r\n\r\n", 400),
    (CHUNKED + b" 5\r\nhello\r\n0\r\n\r\n", 400),
    (CHUNKED + b"5 \r\nhello\r\n0\r\n\r\n", 400),
    (CHUNKED + b"5\nhello\r\n0\r\n\r\n", 400),
    (CHUNKED + b"5\r\nhello\n0\r\n\r\n", 400),
    (CHUNKED + b"5\r\nhelloo\r\n0\r\n\r\n", 400),
    (CHUNKED + b"5\r\nhell\r\n0\r\n\r\n", 400),
    (CHUNKED + b"FFFFFFFFFFFFFFFFF\r\n", 400),
    (CHUNKED + b"5;\x00\r\nhello\r\n0\r\n\r\n", 400),
    (CHUNKED + b"0\r\nX : y\r\n\r\n", 400),
    (CHUNKED + b"0\r\nX: y\n\r\n\r\n", 400),
    (CHUNKED + b"0\r\nContent-Length: 7\r\n\r\n", 400),
    (CHUNKED + b"5;" + b"x" * 100_000 + b"\r\nhello\r\n0\r\n\r\n", 400),
]


@pytest.fixture(scope="module")
def rig():
    with serve(plain()) as rig:
        yield rig


@pytest.mark.parametrize(("data", "status"), REFUSED, ids=lambda value: repr(value)[:60])
def test_refused(rig, data, status):
    """A bad request gets its status and the end of the connection, is counted, and the application never sees it."""
    calls, counted = rig.calls, sum(rig.stats.refused.values())
    client = rig.client()
    response = client.request(data)
    assert response.status == status
    assert response.get("Connection") == "close"
    assert client.at_end()
    assert rig.calls == calls
    assert sum(rig.stats.refused.values()) == counted + 1
    client.close()


@pytest.mark.parametrize(("data", "status"), REFUSED, ids=lambda value: repr(value)[:60])
def test_refused_behind_a_good_request(rig, data, status):
    """A good request in front of a bad one is answered first, in the same read, and only then the connection ends."""
    calls = rig.calls
    client = rig.client()
    client.send(GET + data)
    assert client.receive().status == 200
    assert client.receive().status == status
    assert client.at_end()
    assert rig.calls == calls + 1
    client.close()


def test_body_limit_of_chunks():
    """A chunked body is refused as soon as it is over the limit, without its end."""
    with serve(plain(), limits={"body_bytes": 100}) as rig:
        response = rig.client().request(CHUNKED + b"65\r\n" + b"x" * 0x65 + b"\r\n")
        assert response.status == 413
        assert rig.calls == 0


def test_refused_byte_by_byte():
    """A head that went wrong is refused at its first wrong line, however slowly it comes."""
    with serve(plain()) as rig:
        client = rig.client()
        for byte in b"GET / HTTP/1.1\r\nHost: h\nX":
            client.send(bytes([byte]))
        assert client.receive().status == 400
        assert rig.calls == 0
