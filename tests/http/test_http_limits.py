"""What takes too long, or is too much: time-outs, drip feeding, too many connections, too few descriptors."""

import errno
import os
import resource
import socket
import time

import pytest
from http_rig import GET, echo, open_fds, plain, serve, until

SLOW = {"header_timeout_s": 0.3, "body_timeout_s": 0.3, "keep_alive_s": 0.3, "write_timeout_s": 0.5, "linger_s": 0.3}


@pytest.mark.parametrize(
    ("first", "drip", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: h\r\nX: ", b"a", "head time-out"),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9999\r\n\r\n", b"a", "body time-out"),
        (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n", "body time-out"),
    ],
)
def test_slowloris(first, drip, reason):
    """Bytes that drip in do not keep a request open: 408 and the end, while others are served."""
    with serve(plain(), limits=SLOW) as rig:
        slow = rig.client().send(first)
        other = rig.client()
        start = time.monotonic()

        def over():
            if rig.stats.refused.get(reason):
                return True
            slow.send(drip)
            assert other.request(GET).status == 200
            return False

        until(over, "the time-out")
        assert 0.2 < time.monotonic() - start < 5
        assert slow.receive().status == 408
        assert slow.at_end()


def test_slow_but_steady():
    """A body that makes progress may take longer than the time-out."""
    with serve(echo, limits={**SLOW, "body_timeout_s": 0.4, "progress_bytes": 1}) as rig:
        client = rig.client().send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9999\r\n\r\n")
        end = time.monotonic() + 1.0
        sent = [0]

        def over():
            client.send(b"x")
            sent[0] += 1
            return time.monotonic() > end

        until(over, "a second")
        client.send(b"x" * (9999 - sent[0]))
        assert client.receive().body == b"x" * 9999


def test_idle_connections_end():
    """A connection that is idle ends after keep_alive_s, one that never spoke after header_timeout_s."""
    with serve(plain(), limits=SLOW) as rig:
        silent, idle = rig.client(), rig.client()
        assert idle.request(GET).status == 200
        assert silent.at_end()
        assert idle.at_end()
        assert rig.stats.refused == {}


def test_time_out_is_the_clients_not_ours():
    """A request that waits while the application blocks the loop is answered, whatever its time-outs say."""

    def app(environ, start_response):
        if environ["PATH_INFO"] == "/block":
            end = time.monotonic() + 0.8
            until(lambda: waiting.sent or time.monotonic() > end, "the other client")
            until(lambda: time.monotonic() > end, "the end of the block")
        return plain()(environ, start_response)

    with serve(app, limits=SLOW) as rig:
        waiting = rig.client()
        waiting.sent = False
        assert waiting.request(GET).status == 200
        blocking = rig.client().send(GET.replace(b"/", b"/block", 1))
        until(lambda: rig.stats.inflight, "the blocking request")
        waiting.send(GET).sent = True
        assert blocking.receive().status == 200
        assert waiting.receive().status == 200


def fill(fds, fd):
    """Take every free descriptor."""
    while True:
        try:
            fds.append(os.dup(fd))
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            return


def test_too_many_open_files():
    """Without descriptors the engine pauses, says so once, does not spin, and goes on when it can."""
    with serve(plain()) as rig:
        first, second = rig.client(), None
        assert first.request(GET).status == 200
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        second = socket.socket()
        rig.clients.append(second)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_fds()) + 1, hard))
        fillers = []
        try:
            fill(fillers, first.sock.fileno())
            second.connect(rig.address)
            until(lambda: "cannot accept connections" in str(rig.log), "the warning")
            assert first.request(GET).status == 200
            before, wall = time.process_time(), time.monotonic()
            until(lambda: time.monotonic() > wall + 0.5, "half a second")
            assert time.process_time() - before < 0.3, "the loop spins"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in fillers:
                os.close(fd)
        second.settimeout(20)
        second.sendall(GET)
        assert second.recv(100).startswith(b"HTTP/1.1 200 ")
        assert str(rig.log).count("cannot accept") == 1


def test_connection_limit():
    """Above the limit of open connections the next one waits in the queue until one has gone."""
    with serve(plain(), limits={"connections": 2, "accept_pause_s": 0.01}) as rig:
        clients = [rig.client() for _ in range(3)]
        assert [client.request(GET).status for client in clients[:2]] == [200, 200]
        clients[2].send(GET)
        until(lambda: "this worker's limit" in str(rig.log), "the warning")
        assert rig.stats.connections == 2
        clients[0].close()
        assert clients[2].receive().status == 200
