"""The engine's life: addresses, draining, orders from other threads, what it leaves behind."""

import itertools
import socket
import statistics
import threading
import time

import pytest
from http_rig import GET, Client, echo, open_fds, plain, serve, until

from zcluster.http import Engine


def refuses(rig):
    """Whether new connections are refused."""
    with socket.socket(rig.family) as probe:
        return probe.connect_ex(rig.address) != 0


def test_unix_socket(tmp_path):
    """Requests over a unix socket; the environ has the addresses PEP 3333 wants."""
    seen = {}

    def app(environ, start_response):
        seen.update(environ)
        return plain()(environ, start_response)

    with serve(app, family=socket.AF_UNIX, address=str(tmp_path / "s")) as rig:
        assert rig.client().request(GET).body == b"ok"
        assert (seen["SERVER_NAME"], seen["SERVER_PORT"], seen["REMOTE_ADDR"]) == ("localhost", "80", "")


def test_ipv6():
    """Requests over IPv6."""
    seen = {}

    def app(environ, start_response):
        seen.update(environ)
        return plain()(environ, start_response)

    with serve(app, family=socket.AF_INET6, address=("::1", 0)) as rig:
        assert rig.client().request(GET).body == b"ok"
        assert (seen["SERVER_NAME"], seen["REMOTE_ADDR"]) == ("::1", "::1")


def test_wildcard_address():
    """Behind a wildcard address SERVER_NAME is the address the client connected to."""
    seen = []

    def app(environ, start_response):
        seen.append(environ["SERVER_NAME"])
        return plain()(environ, start_response)

    with serve(app, address=("0.0.0.0", 0)) as rig:
        for host in ("127.0.0.1", "127.0.0.2"):
            rig.address = (host, rig.address[1])
            rig.client().request(GET)
    assert seen == ["127.0.0.1", "127.0.0.2"]


def test_many_listeners():
    """One engine serves several addresses at once."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    addresses = [listener.getsockname() for listener in listeners]
    before = open_fds()
    engine = Engine(echo, listeners)
    thread = threading.Thread(target=engine.run)
    thread.start()
    try:
        for address in addresses:
            client = Client(address, socket.AF_INET)
            assert client.request(GET).status == 200
            client.close()
    finally:
        engine.drain(quick=True)
        thread.join(20)
    assert not thread.is_alive()
    assert not open_fds().items() - before.items()
    assert all(listener.fileno() == -1 for listener in listeners)


def test_two_engines_on_one_socket():
    """Two engines share a queue, as workers do: every connection is served by one of them, none waits."""
    with serve(plain(b"one")) as rig:
        shared = rig.listener.dup()
        other = Engine(plain(b"two"), [shared])
        thread = threading.Thread(target=other.run)
        thread.start()
        try:
            bodies = set()
            for _ in range(200):
                client = rig.client()
                bodies.add(client.request(GET).body)
                client.close()
            assert bodies <= {b"one", b"two"}
        finally:
            other.drain(quick=True)
            thread.join(20)
        assert not thread.is_alive()
        assert rig.client().request(GET).body == b"one"  # leaving the queue took nothing from the other


class Notes:
    """A crowd in which nobody has fewer connections; it notes each that is taken."""

    def __init__(self, order):
        self.order, self.last = order, 0

    def settle(self, connections):
        if connections > self.last:
            self.order.append("taken")
        self.last = connections

    def fuller(self):
        return False

    def open(self, accepting):
        pass


def test_a_long_round_takes_several():
    """Who waits at the door of a busy worker does not wait for a round of all its connections for each before him."""
    order, gate = [], threading.Event()

    def app(environ, start_response):
        order.append(environ["PATH_INFO"])
        if environ["PATH_INFO"] == "/gate":
            gate.wait(20)
        return plain()(environ, start_response)

    with serve(app, crowd=Notes(order)) as rig:
        kept = [rig.client() for _ in range(64)]
        for client in kept:
            client.request(GET)
        closed = rig.client().send(GET.replace(b"/", b"/gate", 1))
        until(lambda: "/gate" in order, "the loop is held")
        new = [rig.client() for _ in range(8)]
        order.clear()
        for client in kept:
            client.send(GET)
        for client in new:
            client.send(GET.replace(b"/", b"/new", 1))
        gate.set()
        assert [client.receive().status for client in (closed, *kept, *new)] == [200] * 73
    assert sorted(order) == ["/"] * 64 + ["/new"] * 8 + ["taken"] * 8
    assert order[: order.index("/new")].count("taken") >= 4  # one round of 65 events, and none of theirs before


def test_tick():
    """The loop ticks while idle and under load, about five times a second."""
    ticks = []
    with serve(plain(), tick=lambda: ticks.append(time.monotonic())) as rig:
        until(lambda: len(ticks) >= 5, "five ticks")
        client = rig.client()
        end = time.monotonic() + 1.0
        count = len(ticks)
        until(lambda: [client.request(GET) for _ in range(50)] and time.monotonic() > end, "a second of load")
        gaps = [after - before for before, after in itertools.pairwise(ticks)]
        assert 0.15 < statistics.median(gaps) < 0.3  # some may be longer, where the machine does not run the loop
        assert len(ticks) - count <= 9 * (time.monotonic() - end + 1.0)
        until(lambda: time.monotonic() - rig.stats.loop_tick < 1, "a fresh tick")


def test_drain_with_an_idle_connection():
    """A drain closes the listener and leaves an idle connection open: its next request is answered, with close."""
    with serve(plain()) as rig:
        idle = rig.client()
        assert idle.request(GET).get("Connection") is None
        rig.engine.drain()
        rig.engine.drain()
        until(lambda: refuses(rig), "the listener's end")
        assert rig.thread.is_alive()
        response = idle.request(GET)
        assert (response.body, response.get("Connection")) == (b"ok", "close")
        assert idle.at_end()
        idle.close()
        rig.join()


def test_drain_ends_by_itself():
    """An idle connection does not hold a drain longer than its ordinary time-out."""
    with serve(plain(), limits={"keep_alive_s": 0.4}) as rig:
        idle = rig.client()
        idle.request(GET)
        rig.engine.drain()
        rig.join()
        assert idle.at_end()


def test_drain_takes_what_is_queued():
    """Connections that the kernel had accepted before the drain are served."""
    release = threading.Event()

    def app(environ, start_response):
        if environ["PATH_INFO"] == "/hold":
            assert release.wait(20)
        return plain()(environ, start_response)

    with serve(app) as rig:
        held = rig.client().send(GET.replace(b"/", b"/hold", 1))
        until(lambda: rig.stats.inflight, "the request that holds the loop")
        queued = [rig.client().send(GET) for _ in range(30)]
        rig.engine.drain()
        release.set()
        assert held.receive().status == 200
        for client in queued:
            response = client.receive()
            assert (response.body, response.get("Connection")) == (b"ok", "close")
            client.close()
        held.close()


@pytest.mark.parametrize("quick", [False, True])
def test_drain_finishes_what_runs(quick):
    """A request in the application, one whose body is on its way, and a response on its way are all finished."""
    release = threading.Event()
    big = b"x" * (20 << 20)

    def app(environ, start_response):
        if environ["PATH_INFO"] == "/hold":
            assert release.wait(20)
        return (
            echo(environ, start_response) if environ["PATH_INFO"] != "/big" else plain(big)(environ, start_response)
        )

    with serve(app) as rig:
        reading = rig.client().send(GET.replace(b"/", b"/big", 1))
        until(lambda: rig.stats.requests == 1, "the big response")
        sending = rig.client().send(
            b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
        )
        assert sending.receive().status == 100
        running = rig.client().send(GET.replace(b"/", b"/hold", 1))
        until(lambda: rig.stats.inflight, "the running request")
        rig.engine.drain(quick)
        release.set()
        assert running.receive().get("Connection") == "close"
        response = sending.request(b"hello")
        assert (response.body, response.get("Connection")) == (b"hello", "close")
        assert reading.receive().body == big
        for client in rig.clients:
            client.close()
        rig.join()


def test_quick_drain():
    """A quick drain ends at once when nothing but idle connections is there."""
    with serve(plain(), limits={"keep_alive_s": 100.0}) as rig:
        clients = [rig.client() for _ in range(5)]
        for client in clients:
            assert client.request(GET).status == 200
        rig.engine.drain(quick=True)
        rig.join()  # which does not wait for so long
        assert all(client.at_end() for client in clients)


def test_quick_after_slow_drain():
    """A drain can be made quick while it goes on."""
    with serve(plain()) as rig:
        client = rig.client()
        client.request(GET)
        rig.engine.drain()
        until(lambda: refuses(rig), "the listener's end")
        rig.engine.drain(quick=True)
        rig.join()
        assert client.at_end()


def test_drain_before_run():
    """A drain ordered before the loop has begun is obeyed: what is queued is served, then it ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    client = Client(listener.getsockname(), socket.AF_INET)
    engine = Engine(plain(), [listener])
    engine.drain()
    thread = threading.Thread(target=engine.run)
    thread.start()
    assert client.request(GET).get("Connection") == "close"
    client.close()
    thread.join(20)
    assert not thread.is_alive()
    engine.drain(quick=True)  # after the end it does nothing


def test_close_listeners_while_the_loop_is_stuck():
    """close_listeners works at once although an application blocks the loop; what runs is finished."""
    release = threading.Event()

    def app(environ, start_response):
        assert release.wait(20)
        return plain()(environ, start_response)

    with serve(app) as rig:
        client = rig.client().send(GET)
        until(lambda: rig.stats.inflight, "the request")
        rig.engine.close_listeners()
        assert refuses(rig)
        rig.engine.close_listeners()
        release.set()
        assert client.receive().status == 200
        assert client.request(GET).status == 200  # connections go on until drained
        rig.engine.drain()
        assert client.request(GET).get("Connection") == "close"


def test_werkzeug():
    """A Werkzeug application with a form, a file and a stream works."""
    from werkzeug.wrappers import Request, Response

    @Request.application
    def app(request):
        if request.method == "POST":
            return Response(f"{request.form['a']} {request.files['f'].read().decode()}")
        return Response((part for part in ("one ", "two")), headers={"X-Url": request.url})

    form = (
        b'--B\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n'
        b'--B\r\nContent-Disposition: form-data; name="f"; filename="x"\r\n\r\nfile\r\n--B--\r\n'
    )
    head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Type: multipart/form-data; boundary=B\r\n"
    with serve(app) as rig:
        client = rig.client()
        assert client.request(head + b"Content-Length: %d\r\n\r\n" % len(form) + form).body == b"1 file"
        chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(form), form)
        assert client.request(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks).body == b"1 file"
        response = client.request(b"GET /a?b=c HTTP/1.1\r\nHost: example.org\r\n\r\n")
        assert (response.body, response.get("X-Url")) == (b"one two", "http://example.org/a?b=c")
