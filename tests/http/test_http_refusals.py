"""What must never reach an application."""

import pytest
from http_hostile import BAD, CHUNKED, HEAD, label
from http_rig import GET, plain, serve


@pytest.fixture(scope="module")
def rig():
    with serve(plain()) as rig:
        yield rig


@pytest.mark.parametrize(("data", "status", "reason"), BAD, ids=label)
def test_refused(rig, data, status, reason):
    """A bad request gets its status and the end of the connection, is counted, and the application never sees it."""
    calls, counted = rig.calls, rig.stats.refused.get(reason, 0)
    client = rig.client()
    response = client.request(data)
    assert response.status == status
    assert response.get("Connection") == "close"
    assert client.at_end()
    assert rig.calls == calls
    assert rig.stats.refused[reason] == counted + 1
    client.close()


@pytest.mark.parametrize(("data", "status", "reason"), BAD, ids=label)
def test_refused_behind_a_good_request(rig, data, status, reason):
    """A good request in front of a bad one is answered first, in the same read, and only then the connection ends."""
    calls = rig.calls
    client = rig.client()
    client.send(GET + data)
    assert client.receive().status == 200
    response = client.receive()
    assert (response.status, response.body.endswith(b": %b\n" % reason.encode())) == (status, True)
    assert client.at_end()
    assert rig.calls == calls + 1
    client.close()


def test_body_limit_of_chunks():
    """A chunked body is refused as soon as it is over the limit, without its end."""
    with serve(plain(), limits={"body_bytes": 100}) as rig:
        response = rig.client().request(CHUNKED + b"65\r\n" + b"x" * 0x65 + b"\r\n")
        assert response.status == 413
        assert rig.calls == 0


@pytest.mark.parametrize("head", [HEAD, HEAD + b"Expect: 100-continue\r\n"], ids=["plain", "expecting"])
def test_a_body_over_the_limit_is_not_read(head):
    """A Content-Length over the limit is refused on the head alone, and the client is not told to go on."""
    with serve(plain(), limits={"body_bytes": 100}) as rig:
        response = rig.client().request(head + b"Content-Length: 101\r\n\r\n")
        assert response.status == 413
        assert response.get("Connection") == "close"
        assert rig.client().request(HEAD + b"Content-Length: 100\r\n\r\n" + b"x" * 100).status == 200
        assert rig.calls == 1


def test_refused_byte_by_byte():
    """A head that went wrong is refused at its first wrong line, however slowly it comes."""
    with serve(plain()) as rig:
        client = rig.client()
        for byte in b"GET / HTTP/1.1\r\nHost: h\nX":
            client.send(bytes([byte]))
        assert client.receive().status == 400
        assert rig.calls == 0
