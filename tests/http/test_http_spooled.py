"""Request bodies that are longer than what is collected in memory, and that no thread may wait for: on disk."""

import pytest
from clients_rig import BODY, CHUNKED, is_streamed, noting, patience, post, temporary_files
from http_rig import GET, OLD, echo, serve, until


@pytest.mark.parametrize("threads", [1, 8])
def test_chunked_bodies_are_collected(threads):
    """Nobody knows how long a chunked body will be, so a long one waits in a file, and then has a length."""
    seen = []

    def app(environ, start_response):
        seen.append((environ["CONTENT_LENGTH"], "HTTP_TRANSFER_ENCODING" in environ, is_streamed(environ)))
        return echo(environ, start_response)

    with serve(app, threads=threads) as rig:
        client = rig.client().send(CHUNKED)
        for at in range(0, len(BODY), 30_000):
            piece = BODY[at : at + 30_000]
            client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        until(lambda: temporary_files(rig) == 1, "the file")
        assert rig.calls == 0
        assert client.send(b"0\r\n\r\n" + GET).receive().body == BODY
        assert client.receive(head_only=True).status == 500  # its CONTENT_LENGTH is missing
        until(lambda: temporary_files(rig) == 0, "the file's end")
    assert seen == [(str(len(BODY)), False, False)]


def test_one_thread_collects():
    """With one thread a long body is spooled: the only thread never waits for a client."""
    seen = []
    with serve(noting(seen), threads=1) as rig:
        client = rig.client().send(post(len(BODY)) + BODY[:-1])
        assert rig.client().request(GET).status == 200
        assert client.send(BODY[-1:]).receive().body == BODY
        assert client.request(
            OLD.replace(b"GET", b"POST").replace(b"\r\n\r\n", b"\r\nContent-Length: 1\r\n\r\nx")
        ).body
    assert seen == [False, False, False]


def test_no_thread_left_to_wait():
    """When as many threads as may wait for clients, the next long body is spooled, and arrives all the same."""
    seen = []
    with serve(noting(seen), threads=4) as rig:
        waiting = [rig.client().send(post(len(BODY)) + BODY[:-1]) for _ in range(2)]
        until(lambda: rig.stats.inflight == 2, "both requests' begin")
        assert patience(rig) == 0
        assert rig.client().request(post(len(BODY)) + BODY).body == BODY
        for client in waiting:
            assert client.send(BODY[-1:]).receive().body == BODY
        until(lambda: patience(rig) == 2, "the slots' return")
        assert rig.client().request(post(len(BODY)) + BODY).body == BODY
    assert seen == [True, True, False, True]
