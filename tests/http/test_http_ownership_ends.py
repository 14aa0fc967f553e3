"""Requests in threads while the engine drains, ends, is forked, or has nothing but slow ones."""

import itertools
import socket
import threading
import time

import pytest
from http_rig import Client, until
from ownership_rig import EXITS, LEAVES, RAISES, RETURNS, OwnershipRig, after, answer_of, get

from zcluster.http import Limits

PLACES = ["relieved", "pool"]


def ends(rig, within_s=20.0):
    """The engine ends, and soon."""
    rig.thread.join(within_s)
    assert not rig.thread.is_alive(), f"the engine did not end within {within_s} s"


def draining(rig, *, quick):
    """Order a drain, and wait until the listener is closed."""
    rig.engine.drain(quick=quick)
    until(lambda: rig.listener.fileno() < 0, "the listener closed")


# ---- draining ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("where", PLACES)
def test_a_drain_waits_for_requests_in_threads(where, quick):
    """Requests that run when a drain is ordered are answered in whole, with `Connection: close`; then it ends."""
    with OwnershipRig() as rig:
        rig.place(where)
        clients = [(f"t{number}", rig.client()) for number in range(4)]
        for count, (token, client) in enumerate(clients, 1):
            client.send(get("gate", 1, token))
            rig.standing(1, count)
        gate = rig.standing(1, 4)
        draining(rig, quick=quick)
        assert rig.stats.connections == 4
        gate.open()
        for token, client in clients:
            response = client.receive()
            assert response.body == token.encode()
            assert response.get("Connection") == "close"
            assert client.at_end()
            client.close()
        ends(rig)


@pytest.mark.parametrize("where", PLACES)
def test_a_quick_drain_closes_what_had_been_promised_to_stay(where):
    """The head with its keep-alive had left before the order: the connection is closed when its request is over."""
    with OwnershipRig(limits=Limits(keep_alive_s=100.0)) as rig:
        rig.place(where)
        client = rig.client().send(get("stream", 200, "token"))
        client.sock.recv(1, socket.MSG_PEEK)  # the head is here
        draining(rig, quick=True)
        response = client.receive()
        assert response.get("Connection") is None
        assert response.body == answer_of("stream", "token")
        ends(rig)  # long before the idle time-out
        assert client.at_end()


@pytest.mark.parametrize("where", PLACES)
def test_a_drain_lets_a_connection_go_on_idling(where):
    """A graceful drain closes nothing a client could be writing to: its next request is answered, then it ends."""
    with OwnershipRig() as rig:
        rig.place(where)
        client = rig.client().send(get("stream", 200, "token"))
        client.sock.recv(1, socket.MSG_PEEK)
        draining(rig, quick=False)
        assert client.receive().body == answer_of("stream", "token")
        last = client.request(get("fast", 0, "last"))
        assert (last.body, last.get("Connection")) == (b"last", "close")
        assert client.at_end()
        client.close()
        ends(rig)


def test_a_drain_that_nobody_hears_yet():
    """Ordered while no thread leads: the first that comes back obeys; what waits in the queue is answered."""
    with OwnershipRig(threads=2) as rig:
        rig.expect_slow("gate")
        pooled = rig.client().send(get("gate", 1, "pooled"))
        rig.standing(1)
        rig.forget()
        inline = rig.client().send(get("gate", 2, "inline"))
        rig.standing(2)
        until(lambda: rig.engine._shared.crew._vacant, "nobody to lead")
        waiting = [rig.client().send(get("fast", 0, f"w{number}")) for number in range(5)]
        rig.engine.drain()
        rig.app.gate(2).open()
        for number, client in enumerate(waiting):
            response = client.receive()
            assert (response.body, response.get("Connection")) == (f"w{number}".encode(), "close")
            client.close()
        rig.app.gate(1).open()
        assert [client.receive().body for client in (inline, pooled)] == [b"inline", b"pooled"]
        for client in (inline, pooled):
            client.close()
        ends(rig)


@pytest.mark.parametrize("quick", [False, True])
def test_drains_at_every_moment(quick):
    """Ordered at some moment of requests in all places and stages: whoever was accepted gets a whole answer."""
    for moment_ms in (0, 2, 5, 9, 12, 20, 35):
        with OwnershipRig(threads=4) as rig:
            rig.expect_slow("stream")
            clients = [
                (what, f"{what}{number}", rig.client())
                for number, what in itertools.product(range(4), ("slow", "stream", "fast"))
            ]
            for _, token, client in clients:
                assert client.request(get("fast", 0, token)).body == token.encode()
            began = time.monotonic()
            for what, token, client in clients:
                client.send(get(what, 20, token))
            after(began, moment_ms)
            rig.engine.drain(quick=quick)
            for what, token, client in clients:
                assert client.receive().body == answer_of(what, token), moment_ms
                client.close()
            ends(rig)


# ---- the application ends it -------------------------------------------------------------------------------------
@pytest.mark.parametrize("where", PLACES)
def test_system_exit_in_threads(where):
    """Several requests raise SystemExit at the same moment: each is a 500, the first code counts, once."""
    codes = []
    with OwnershipRig(on_exit=codes.append) as rig:
        rig.place(where)
        clients = []
        for number in range(3, 7):
            clients.append(rig.client().send(get("exit", number, f"t{number}")))
            rig.standing(0, len(clients))
        other = rig.client().send(get("slow", 30, "other"))
        rig.app.gate(0).open()
        for client in clients:
            response = client.receive()
            assert (response.status, response.get("Connection")) == (500, "close")
            client.close()
        assert other.receive().body == b"other"
        other.close()
        ends(rig)
        assert len(codes) == 1
        assert codes[0] in range(3, 7)


def test_the_first_exit_counts():
    """Twenty engines whose requests all leave at once: `on_exit` is called by one of them."""
    for _ in range(20):
        codes = []
        with OwnershipRig(on_exit=codes.append) as rig:
            rig.expect_slow("exit")
            clients = [rig.client().send(get("exit", number, f"t{number}")) for number in range(7)]
            rig.standing(0, 7)
            rig.app.gate(0).open()
            for client in clients:
                assert client.receive().status == 500
                client.close()
            ends(rig)
            assert len(codes) == 1


# ---- the application forks ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(("way", "code"), [(LEAVES, 5), (EXITS, 6), (RAISES, 1), (RETURNS, 1)])
@pytest.mark.parametrize("where", PLACES)
def test_forks_in_threads(where, way, code):
    """A child forked in any thread, beside others at work, answers nobody and ends, whatever it does."""
    with OwnershipRig() as rig:
        rig.place(where)
        beside = [rig.client().send(get("slow", 30, f"beside{number}")) for number in range(3)]
        forking = [rig.client().send(get("fork", way, f"fork{number}")) for number in range(3)]
        for number, client in enumerate(forking):
            assert client.receive().body == f"fork{number}".encode()
            assert client.request(get("fast", 0, "next")).body == b"next"
        for number, client in enumerate(beside):
            assert client.receive().body == f"beside{number}".encode()
        assert rig.app.children == [(way, code)] * 3


def test_a_child_holds_no_connection():
    """A child that lives on keeps no client waiting for the end of its connection."""
    with OwnershipRig() as rig:
        rig.place("pool")
        client = Client(rig.address, rig.family)
        closing = get("gate", 1, "token").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        client.send(closing)
        rig.standing(1)
        held = [rig.client().send(get("fork", LEAVES, f"f{number}")) for number in range(2)]
        rig.app.gate(1).open()
        assert client.receive().body == b"token"
        assert client.at_end()
        client.close()
        for number, other in enumerate(held):
            assert other.receive().body == f"f{number}".encode()


# ---- nothing but slow requests -----------------------------------------------------------------------------------
def test_the_loop_goes_round_when_every_leader_is_relieved():
    """Requests that nobody learns to expect: in all the changes of hands the tick and new clients get their turn."""
    ticks, others = [], []
    with OwnershipRig(threads=48, tick=lambda: ticks.append(time.monotonic())) as rig:
        predictor = rig.engine._shared.predictor
        stop = threading.Event()
        served = []

        def ask(number):
            client = rig.client()
            count = 0
            while not stop.is_set():
                count += 1
                token = f"c{number}n{count}"
                predictor._forget()  # never learned: each slow one costs a leader
                assert client.request(get("slow", 12, token)).body == token.encode()
                served.append(token)
            client.close()

        def tick():  # what becomes of five times a second on this machine, with so many threads in this process
            while not stop.wait(0.2):
                others.append(time.monotonic())

        askers = [threading.Thread(target=ask, args=(number,)) for number in range(40)]
        askers.append(threading.Thread(target=tick))
        began = time.monotonic()
        for asker in askers:
            asker.start()
        after(began, 1500)
        asked = time.monotonic()
        fresh = rig.client().send(get("slow", 0, "fresh"))
        assert fresh.receive().body == b"fresh"
        waited = time.monotonic() - asked
        stop.set()
        for asker in askers:
            asker.join()
        ended = time.monotonic()
        assert len(served) > 100
        most, control = (
            max(after - before for before, after in itertools.pairwise([began, *times, ended]))
            for times in (ticks, others)
        )
        assert most < 0.8 + 2 * control, "five times a second is the rule"
        assert waited < 2.0 + 2 * control


# ---- a machine without threads -----------------------------------------------------------------------------------
def test_requests_on_a_machine_without_threads(no_more_threads):
    """No thread can be started: slow requests and streamed bodies run in the loop, and what is behind them after."""
    with OwnershipRig(threads=4) as rig:
        no_more_threads.begin()
        rig.expect_slow("slow", "length")
        clients = [rig.client().send(get("slow", 10, f"t{number}") * 2) for number in range(5)]
        for number, client in enumerate(clients):
            assert [client.receive().body for _ in range(2)] == [f"t{number}".encode()] * 2
        size = 400_000
        head = f"POST /length/0/x HTTP/1.1\r\nHost: h\r\nContent-Length: {size}\r\n\r\n".encode()
        client = rig.client().send(head + b"b" * size + get("fast", 0, "behind"))
        assert client.receive().body == str(size).encode()
        assert client.receive().body == b"behind"
        assert client.request(get("fast", 0, "last")).body == b"last"
        assert not rig.engine._shared.crew._started
        assert set(rig.app.threads.values()) == {"engine"}
