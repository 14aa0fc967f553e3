"""Who accepts: connections are spread over the workers, and none waits for a worker that cannot take it."""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import running, wait_for

GET = b"GET %s HTTP/1.1\r\nHost: a\r\n%s\r\n"
WORKERS = 4


def connect(address, number, request=b""):
    """So many connections that come at once, each sending `request` as soon as it stands."""
    clients = []
    for _ in range(number):
        client = socket.socket()
        client.setblocking(False)
        client.connect_ex(address)
        clients.append(client)
    for client in clients:
        client.settimeout(10)
        wait_for(lambda client=client: select.select([], [client], [], 0)[1], what="it is connected")
        client.sendall(request)
    return clients


def whole_answer(client):
    """Read one response with a body of known length."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += receive(client)
    head, _, body = data.partition(b"\r\n\r\n")
    (length,) = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    while len(body) < int(length):
        body += receive(client)
    assert head.startswith(b"HTTP/1.1 200"), head
    return body


def receive(client):
    got = client.recv(4096)
    assert got, "the connection ended"
    return got


def spread(cluster, connections):
    """Most loaded / least loaded, once `ps` knows of all connections."""
    seen = []

    def known():
        seen[:] = [worker["connections"] for worker in cluster.workers()]
        return sum(seen) == connections

    wait_for(known, what=f"{connections} connections are known")
    return max(seen) / max(1, min(seen))


def best_of(ratio):
    """The smallest of some measurements: where CPUs are scarce a worker may be late; unfairness is there always."""
    found, end = [], time.monotonic() + 40.0
    while not found or (min(found) > 1.25 and time.monotonic() < end):
        found.append(ratio())
    return min(found)


@pytest.mark.parametrize("request_", [b"", GET % (b"/", b"")], ids=["silent", "asking"])
def test_connections_are_spread(request_):
    """64 that come at once over 4 workers: most loaded / least loaded <= 1.25, and they stay where they are."""
    with running("hello:app", "--keep-alive=60", "--header-timeout=60", workers=WORKERS) as cluster:

        def ratio():
            spread(cluster, 0)
            clients = connect(cluster.address, 64, request_)
            try:
                for client in clients if request_ else ():
                    whole_answer(client)
                return spread(cluster, 64)
            finally:
                for client in clients:
                    client.close()

        assert best_of(ratio) <= 1.25


def test_gaps_are_filled():
    """All connections of one worker end; those that come next go there, until it has what the others have."""
    with running("hello:app", "--keep-alive=60", "--header-timeout=60", workers=WORKERS) as cluster:
        clients = connect(cluster.address, 64, GET % (b"/", b""))
        try:
            pids = [whole_answer(client) for client in clients]
            for client, pid in zip(clients, pids, strict=True):
                if pid == pids[0]:
                    client.close()
            there = 64 - pids.count(pids[0])
            assert spread(cluster, there) > 1.25

            def is_even():  # most of these few go to the emptiest, or this never comes true
                clients.extend(connect(cluster.address, 1)[0] for _ in range(4))
                return spread(cluster, there + len(clients) - 64) <= 1.25

            wait_for(is_even, 30.0, what="the spread is even again")
            assert len(clients) < 200
        finally:
            for client in clients:
                client.close()


# ---- single connections beside a busy worker ----------------------------------------------------------------------
SINGLES = {b"/sleep?200": 4000, b"/regex": 6000}
LIMIT_S = 0.01


CONTROL = """
import socket
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
while True:
    client, _ = listener.accept()
    with client:
        client.recv(4096)
        client.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 1\\r\\nConnection: close\\r\\n\\r\\n1")
"""


@contextmanager
def control():
    """What a connection costs on this machine at this moment: a process that does nothing but answer; its address."""
    process = subprocess.Popen([sys.executable, "-c", CONTROL], stdout=subprocess.PIPE)
    try:
        yield "127.0.0.1", int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def once(address, request):
    """How long it takes from before the connect to the end of the answer: longer than until the accept."""
    began = time.perf_counter()
    with socket.create_connection(address, 10) as client:
        client.sendall(request)
        while client.recv(4096):
            pass
    return time.perf_counter() - began


def late(took):
    return sum(time_s > LIMIT_S for time_s in took)


def cpu_s(pid):
    """CPU time of a process so far, in user mode."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11]) / os.sysconf("SC_CLK_TCK")


@contextmanager
def occupied(cluster, busy):
    """One worker runs this request and holds one connection; the others hold more, so it looks like the emptiest."""
    before = {worker["pid"]: cpu_s(worker["pid"]) for worker in cluster.workers()}

    def is_busy():  # one that holds the interpreter cannot say so
        workers = [(worker["inflight"], worker["pid"]) for worker in cluster.workers()]
        return any(inflight or cpu_s(pid) > before[pid] + 0.3 for inflight, pid in workers)

    held = connect(cluster.address, 1, GET % (busy, b""))
    try:
        wait_for(is_busy, what="one worker is busy")
        held += connect(cluster.address, 3 * WORKERS, GET % (b"/pid", b""))
        for client in held[1:]:
            whole_answer(client)
        yield
    finally:
        for client in held:
            client.close()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("busy", [b"/sleep?200", b"/regex"])
def test_single_connections_beside_a_busy_worker(busy):
    """10,000 in all, one after the other: each is accepted within 10 ms, but for what the machine itself holds up.

    No next connection stands behind it: a wake-up that went to the busy worker alone would be noticed by the others
    at their tick, 200 ms later, or never. What takes longer than 10 ms is compared with a process beside the cluster
    that does nothing but answer one connection at a time: what holds up that one, too, is no fault of ours.
    """
    request = GET % (b"/pid", b"Connection: close\r\n")
    options = ["--hang-timeout=300", "--keep-alive=300", "--quick-timeout=0.2"]
    ours, theirs = [], []
    with running("hanging:app", *options, workers=WORKERS, fast=False) as cluster, control() as other:
        with occupied(cluster, busy):
            for _ in range(SINGLES[busy]):
                ours.append(once(cluster.address, request))
                theirs.append(once(other, request))
        cluster.signal(signal.SIGINT)
        cluster.wait()
    ours.sort()
    shares = [f"{ours[int(len(ours) * share)] * 1e3:.2f}" for share in (0.5, 0.99, 0.999)]
    text = (
        f"p50, p99, p99.9: {', '.join(shares)} ms, max {ours[-1] * 1e3:.1f}; of the other {max(theirs) * 1e3:.1f}; "
        f"late: {late(ours)}, of the other {late(theirs)}"
    )
    print(text)
    # Several processes wake up where the other server is one: twice as many chances to be held up, and 1 in 200. Who
    # leaves connections to the busy worker is late with every fourth.
    assert late(ours) <= 2 * late(theirs) + len(ours) // 200, text
    # None hangs; but for a second or two a machine may stand still.
    assert ours[-1] < 5.0 + 2 * max(theirs), text
