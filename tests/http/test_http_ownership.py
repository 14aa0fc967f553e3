"""Who owns a connection: whatever a client does at whatever moment of its request, nothing is mixed up or left."""

import itertools
import random
import threading
import time

import pytest
from http_rig import DEADLINE_S, until
from ownership_rig import OwnershipRig, after, answer_of, get, half_close, reset

PLACES = ["relieved", "pool"]
KINDS = ["slow", "stream"]
# of a request of 30 ms: before it is parsed, before and after its leader is relieved, at its end, and behind it
MOMENTS_MS = (0, 1, 3, 5, 7, 10, 12, 20, 28, 30, 32, 40)


def on_time(began, plan):
    """Do each of (milliseconds, step), in order, at its moment since `began`."""
    for moment_ms, step in sorted(plan, key=lambda one: one[0]):
        after(began, moment_ms)
        step()


def serves(rig, count=30):
    """The engine answers new clients, and each with what it asked for."""
    for number in range(count):
        client = rig.client()
        assert client.request(get("fast", 0, f"fresh{number}")).body == f"fresh{number}".encode()
        client.close()


@pytest.fixture(params=[2, 8])
def rig(request):
    """An engine with two threads, or with eight."""
    with OwnershipRig(threads=request.param) as rig:
        yield rig
        serves(rig)
        until(lambda: not rig.engine._shared.crew.off_loop, "the end of all requests")


# ---- every moment of a request -----------------------------------------------------------------------------------
@pytest.mark.parametrize("what", KINDS)
@pytest.mark.parametrize("where", PLACES)
def test_clients_that_leave_at_every_moment(rig, where, what):
    """RST and FIN before, in and after a slow request: its connection goes when it is done, others notice nothing."""
    rig.place(where)
    plan, stays = [], []
    began = time.monotonic()
    for leave, moment_ms in itertools.product([reset, lambda client: client.close()], MOMENTS_MS):
        client = rig.client().send(get(what, 30, f"{moment_ms}x"))
        plan.append((moment_ms, lambda leave=leave, client=client: leave(client)))
    for number in range(6):
        stays.append((f"stays{number}", rig.client().send(get(what, 30, f"stays{number}"))))
    on_time(began, plan)
    for token, client in stays:
        assert client.receive().body == answer_of(what, token)
    until(lambda: rig.stats.connections == len(stays), "the end of those that left")
    until(lambda: rig.stats.inflight == 0, "the end of their requests")


@pytest.mark.parametrize("what", KINDS)
@pytest.mark.parametrize("where", PLACES)
def test_clients_that_half_close_at_every_moment(rig, where, what):
    """A client that says it has no more to say still gets its whole answer, and then the end."""
    rig.place(where)
    clients = [(moment_ms, rig.client()) for moment_ms in MOMENTS_MS]
    began = time.monotonic()
    for moment_ms, client in clients:
        client.send(get(what, 30, f"half{moment_ms}"))
    on_time(began, [(moment_ms, lambda client=client: half_close(client)) for moment_ms, client in clients])
    for moment_ms, client in clients:
        assert client.receive().body == answer_of(what, f"half{moment_ms}")
        assert client.at_end()
    until(lambda: rig.stats.connections == 0, "their end")


@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize("where", PLACES)
def test_more_requests_at_every_moment(rig, where, count):
    """Pipelined requests behind a slow one, one or many, are answered in order, each with its own answer."""
    rig.place(where)
    clients = [(moment_ms, rig.client()) for moment_ms in MOMENTS_MS]
    began = time.monotonic()
    for moment_ms, client in clients:
        client.send(get("slow", 30, f"first{moment_ms}"))

    def more(moment_ms, client):
        client.send(b"".join(get("fast", 0, f"next{moment_ms}-{number}") for number in range(count)))

    on_time(began, [(one[0], lambda one=one: more(*one)) for one in clients])
    for moment_ms, client in clients:
        assert client.receive().body == f"first{moment_ms}".encode()
        for number in range(count):
            assert client.receive().body == f"next{moment_ms}-{number}".encode()
    serves(rig, 3)
    for _, client in clients:  # and none has anything left over
        assert client.request(get("fast", 0, "last")).body == b"last"


@pytest.mark.parametrize("where", PLACES)
def test_slow_requests_behind_slow_ones(rig, where):
    """Several slow requests in one connection's pipe run one after another, never beside each other."""
    rig.place(where)
    clients = []
    for number in range(6):
        tokens = [f"c{number}r{index}" for index in range(5)]
        clients.append((tokens, rig.client().send(b"".join(get("slow", 10, token) for token in tokens))))
    for tokens, client in clients:
        assert [client.receive().body.decode() for _ in tokens] == tokens


@pytest.mark.parametrize("where", PLACES)
def test_pieces_of_a_request_at_every_moment(rig, where):
    """The next request arrives in two pieces around the end of the slow one before it."""
    rig.place(where)
    clients, plan = [], []
    for moment_ms, later_ms in itertools.combinations(MOMENTS_MS[::2], 2):
        client = rig.client()
        token = f"{moment_ms}and{later_ms}"
        data = get("fast", 0, token)
        plan.append((moment_ms, lambda client=client, data=data: client.send(data[:20])))
        plan.append((later_ms, lambda client=client, data=data: client.send(data[20:])))
        clients.append((token, client))
    began = time.monotonic()
    for token, client in clients:
        client.send(get("slow", 30, f"first{token}"))
    on_time(began, plan)
    for token, client in clients:
        assert client.receive().body == f"first{token}".encode()
        assert client.receive().body == token.encode()


@pytest.mark.parametrize("where", PLACES)
def test_nonsense_at_every_moment(rig, where):
    """What is no request, sent while one runs, is refused after the answer, never instead of it."""
    rig.place(where)
    clients = [(moment_ms, rig.client()) for moment_ms in MOMENTS_MS]
    began = time.monotonic()
    for moment_ms, client in clients:
        client.send(get("slow", 30, f"good{moment_ms}"))
    on_time(began, [(one[0], lambda one=one: one[1].send(b"\x00nonsense\r\n\r\n")) for one in clients])
    for moment_ms, client in clients:
        assert client.receive().body == f"good{moment_ms}".encode()
        assert client.receive().status == 400
        assert client.at_end()


def test_anything_at_any_moment(rig):
    """Four hundred clients, each doing something at random while its request runs, inline or not."""
    rng = random.Random(31)
    expected = []
    for number in range(400):
        what = rng.choice(["slow", "slow", "stream", "fast"])
        client = rig.client().send(get(what, 10, f"one{number}"))
        token = f"two{number}"
        act = rng.choice(["reset", "close", "half", "more", "nothing"])
        if rng.random() < 0.7:
            after(time.monotonic(), rng.random() * 4)
        if act == "reset":
            reset(client)
        elif act == "close":
            client.close()
        else:
            answers = [answer_of(what, f"one{number}")]
            if act == "half":
                half_close(client)
            elif act == "more":
                client.send(get("fast", 0, token))
                answers.append(token.encode())
            expected.append((client, answers, act))
        if rng.random() < 0.05:
            rig.forget()
    for client, answers, act in expected:
        for answer in answers:
            assert client.receive().body == answer
        if act == "half":
            assert client.at_end()
        client.close()
    until(lambda: rig.stats.connections == 0, "the end of all")


# ---- descriptors -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("what", ["gate", "stream"])
@pytest.mark.parametrize("where", PLACES)
def test_a_number_in_use_is_not_given_away(where, what):
    """While a request runs its client resets and others come: its descriptor stays its own until it is done."""
    with OwnershipRig() as rig:
        for round_number in range(12):
            rig.place(where)
            number = 30 if what == "stream" else round_number
            dying = rig.client().send(get(what, number, "DYING" * 200))
            until(lambda: rig.stats.inflight == 1, "its request")
            mine = rig.descriptors()
            assert len(mine) == 1
            reset(dying)
            fresh = [(f"r{round_number}n{number}", rig.client()) for number in range(10)]
            for token, client in fresh:
                assert client.request(get("fast", 0, token)).body == token.encode()
            if what == "gate":  # it is still at it: nobody got its number
                assert mine < rig.descriptors()
                assert len(rig.descriptors()) == 11
                rig.app.gate(number).open()
            until(lambda: rig.stats.connections == 10, "the end of the one that left")
            for token, client in fresh:  # not a byte of the other's
                assert client.request(get("fast", 0, token)).body == token.encode()
                client.close()
            until(lambda: rig.stats.connections == 0, "the end of the others")


@pytest.mark.parametrize("act", [reset, half_close, lambda client: client.send(b"GET /more/0/x HTTP/1.1\r\n")])
@pytest.mark.parametrize("where", PLACES)
def test_a_client_that_is_not_looked_at_costs_nothing(where, act):
    """FIN, RST or bytes that come while a request blocks are not reported over and over: no CPU is spent on them."""
    with OwnershipRig(threads=2) as rig:
        rig.place(where)
        client = rig.client().send(get("gate", 1, "token"))
        gate = rig.standing(1)
        act(client)
        until(lambda: rig.engine._shared.crew.resting, "the monitor's rest")
        used_s, began = rig.cpu_s(), time.monotonic()
        after(began, 300)
        used_s = rig.cpu_s() - used_s
        gate.open()
        assert used_s < 0.02, f"{used_s * 1000:.1f} ms of CPU in 300 ms"


# ---- the loop changes hands --------------------------------------------------------------------------------------
def test_events_of_a_relieved_leader_are_not_lost():
    """A leader is relieved in the first of many events it was told of: the next leader serves the others."""
    with OwnershipRig(threads=3) as rig:
        clients = [rig.client() for _ in range(21)]
        for client in clients:
            client.request(get("fast", 0, "known"))
        rig.expect_slow("gate")
        keep = [rig.client().send(get("gate", number, f"keep{number}")) for number in (1, 2)]
        rig.standing(1)
        rig.standing(2)
        rig.forget()
        first = rig.client().send(get("gate", 3, "first"))
        rig.standing(3)
        until(lambda: rig.engine._shared.crew._vacant, "nobody to lead")
        # While nobody looks: one that will block, and a crowd behind it. They are told of together.
        blocks = clients.pop(0).send(get("wall", 4, "blocks"))
        for number, client in enumerate(clients):
            client.send(get("fast", 0, f"n{number}"))
        rig.app.gate(1).open()
        rig.standing(4)
        assert rig.calls == 21 + 4, "those behind it have not been looked at"
        rig.app.gate(2).open()  # one more thread: it leads as soon as the one before it is relieved
        for number, client in enumerate(clients):
            assert client.receive().body == f"n{number}".encode()
        until(lambda: rig.stats.inflight == 2, "only the two that block")
        for number in (3, 4):
            rig.app.gate(number).open()
        tokens = [client.receive().body for client in (*keep, first, blocks)]
        assert tokens == [b"keep1", b"keep2", b"first", b"blocks"]


def test_a_loop_nobody_leads_is_taken_up_again():
    """All threads are busy, one of them for ever: the first that comes back leads, and all who waited are served."""
    with OwnershipRig(threads=2) as rig:
        rig.expect_slow("gate")
        pooled = rig.client().send(get("gate", 1, "pooled"))
        rig.standing(1)
        rig.forget()
        never = rig.client().send(get("gate", 2, "never"))
        rig.standing(2)
        until(lambda: rig.engine._shared.crew._vacant, "nobody to lead")
        waiting = [rig.client().send(get("fast", 0, f"w{number}")) for number in range(20)]
        assert rig.stats.inflight == 2
        rig.app.gate(1).open()
        assert pooled.receive().body == b"pooled"
        for number, client in enumerate(waiting):
            assert client.receive().body == f"w{number}".encode()
        until(lambda: rig.stats.inflight == 1, "only the one that never returns")
        rig.app.gate(2).open()
        assert never.receive().body == b"never"


def test_more_slow_clients_than_threads(rig):
    """Sixty clients with three slow requests each: all get all their answers, in order."""
    clients = [rig.client() for _ in range(60)]
    for index in range(3):
        for number, client in enumerate(clients):
            client.send(get("slow", 5, f"c{number}r{index}"))
    for number, client in enumerate(clients):
        for index in range(3):
            assert client.receive().body == f"c{number}r{index}".encode()


# ---- what is told of them ----------------------------------------------------------------------------------------
def test_what_runs_is_told(rig):
    """In flight, the oldest, and the slow ones: inline, relieved and in other threads."""
    rig.forget()
    assert (rig.stats.inflight, rig.stats.oldest_started) == (0, 0.0)
    began = time.monotonic()
    relieved = rig.client().send(get("gate", 1, "relieved"))
    rig.standing(1)
    assert rig.stats.inflight == 1
    oldest = rig.stats.oldest_started
    assert began <= oldest <= time.monotonic()
    until(lambda: rig.engine._shared.crew.off_loop, "its leader relieved")
    assert (rig.stats.inflight, rig.stats.oldest_started) == (1, oldest)
    rig.expect_slow("gate")
    pooled = rig.client().send(get("gate", 2, "pooled"))
    if len(rig.engine._shared.crew._started) < 2 and rig.options["threads"] == 2:
        # the second thread leads; the job waits, and is in no application yet
        serves(rig, 1)
        until(lambda: rig.stats.inflight == 1, "the end of the fast one")
        assert not rig.app.gate(2).standing
        assert [path for _, path, _ in rig.stats.slow(time.monotonic() + 1, 0.5, 9)] == ["/gate/1/relieved"]
    else:
        rig.standing(2)
        assert (rig.stats.inflight, rig.stats.oldest_started) == (2, oldest)
        slow = rig.stats.slow(oldest + 100, 1.0, 9)
        assert [(method, path) for method, path, _ in slow] == [
            ("GET", "/gate/1/relieved"), ("GET", "/gate/2/pooled"),
        ]  # fmt: skip
        assert slow[0][2] == 100.0
        assert len(rig.stats.slow(oldest + 100, 1.0, 1)) == 1
    assert not rig.stats.slow(time.monotonic(), 100.0, 9)
    for number, client in ((1, relieved), (2, pooled)):
        rig.app.gate(number).open()
        client.receive()
    until(lambda: rig.stats.inflight == 0, "their end")
    assert rig.stats.oldest_started == 0.0


def test_nobody_is_told_of_a_request_that_has_not_begun():
    """Another thread that looks at any moment never sees an age that cannot be."""
    with OwnershipRig(threads=4) as rig:
        rig.expect_slow("slow", "fast")
        begun, wrong, stop = time.monotonic(), [], threading.Event()

        def look():
            while not stop.is_set():
                now = time.monotonic()
                wrong.extend(one for one in rig.stats.slow(now, now - begun + 1.0, 9))

        looker = threading.Thread(target=look)
        looker.start()
        clients = [rig.client() for _ in range(8)]
        for number in range(150):
            for client in clients:
                client.send(get("fast", 0, f"n{number}"))
            for client in clients:
                assert client.receive().body == f"n{number}".encode()
        stop.set()
        looker.join(DEADLINE_S)
        assert not wrong
