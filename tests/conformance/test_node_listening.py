"""Listening: T03, T04, T28, T31, T33, T34, T36, T38."""

import random
import select
import signal
import socket
import threading
from contextlib import ExitStack

import pytest
from conformance_rig import (
    Load,
    address_of,
    cluster_of,
    end_of,
    get,
    in_slot,
    stop,
    until,
    whole,
)

from zcluster import SpawnError


@pytest.fixture(scope="module")
def everywhere(tmp_path_factory):
    """A cluster on IPv4 twice, IPv6, and a socket file."""
    path = tmp_path_factory.mktemp("socket") / "s"
    binds = ("127.0.0.1:0", "127.0.0.1:0", "[::1]:0", f"unix:{path}")
    with cluster_of(workers=3, bind=binds, unix_mode="777") as cluster:
        cluster.path = path
        yield cluster


def test_t03_where_a_worker_listens(everywhere):
    """Each worker has the addresses it listens on: real ports, never 0; a connection to each of them is answered."""
    told = []
    everywhere.on("listening", lambda worker, address: told.append((worker, address)))
    worker = everywhere.fork().wait_for("listening", 20)
    until(lambda: [one for one, _ in told if one is worker])
    kinds = [("127.0.0.1", "tcp4"), ("127.0.0.1", "tcp4"), ("::1", "tcp6"), (str(everywhere.path), "unix")]
    assert [(at.address, at.family) for at in worker.addresses] == kinds
    assert all(1 <= at.port <= 65535 for at in worker.addresses[:3])
    assert told[-1] == (worker, worker.addresses[0])
    for at in worker.addresses[:3]:
        socket.create_connection((at.address, at.port), 20).close()
    assert [address_of(url)[1] for url in everywhere.urls[:3]] == [at.port for at in worker.addresses[:3]]
    worker.disconnect()
    assert end_of(everywhere, worker) == (0, None)


def test_t04_port_zero_is_one_port_for_all(everywhere):
    """Two addresses with port 0 are two ports, and on each of them every worker answers."""
    first, second = everywhere.urls[:2]
    assert address_of(first)[1] != address_of(second)[1]
    workers = list(everywhere.workers.values())
    for one in workers:
        others = [worker for worker in workers if worker is not one]
        try:
            for other in others:
                stop(other)
            assert [get(everywhere, url=url) for url in (first, second)] == [str(one.id)] * 2
        finally:
            for other in others:
                other.kill(signal.SIGCONT)


def test_t33_a_socket_file(everywhere):
    """HTTP on it, with the permissions that were asked for."""
    assert everywhere.path.stat().st_mode & 0o777 == 0o777
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(everywhere.path))
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert client.makefile("rb").read().startswith(b"HTTP/1.1 200 OK\r\n")


def test_t36_the_backlog_is_the_kernels():
    """What --backlog says is what listen(2) is told: with nobody to accept, one more than that wait."""
    with cluster_of(workers=1, backlog=7) as cluster, ExitStack() as held:
        cluster.disconnect()
        clients = [held.enter_context(socket.socket()) for _ in range(9)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(address_of(cluster.url))
        until(lambda: len(select.select([], clients[:8], [], 1)[1]) == 8)
        assert not select.select([], clients[8:], [], 0.2)[1]
        cluster.fork()
        for client in clients:
            client.setblocking(True)
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") if client is not clients[8] else None
        assert all(client.recv(15) == b"HTTP/1.1 200 OK" for client in clients[:8])


def test_t38_no_connection_is_lost_while_workers_are_replaced(everywhere):
    """Clients that connect all the time, while ten workers drain one after the other: all answered, none refused."""
    whole(everywhere, 3)
    with Load(everywhere, clients=3) as load:
        for _ in range(10):
            worker = min(everywhere.workers.values(), key=lambda worker: worker.id)
            worker.kill(signal.SIGTERM)  # drains, and is replaced
            end_of(everywhere, worker)
            everywhere.wait_for(lambda: len(everywhere.workers) == 3, 20)
        load.more()
    assert load.failed == []


def test_t31_a_port_without_workers_waits(everywhere):
    """All workers are gone, and one comes again: the port is the same, and who connected meanwhile is answered."""
    url = everywhere.url
    everywhere.disconnect()
    answers = []
    client = threading.Thread(target=lambda: answers.append(get(everywhere)))
    client.start()
    worker = everywhere.fork()
    client.join(20)
    assert answers == [str(worker.id)]
    assert everywhere.url == url
    assert in_slot(everywhere, 0) is worker
    whole(everywhere, 3)


def test_t28_a_port_that_is_given_back():
    """In use: SpawnError names it; free again: the same options start."""
    host = f"127.{random.randrange(1, 255)}.{random.randrange(256)}.{random.randrange(1, 255)}"  # nobody else's
    with socket.create_server((host, 0)) as holder:
        bind = f"{host}:{holder.getsockname()[1]}"
        with pytest.raises(SpawnError, match=f"{bind}.*in use"), cluster_of(bind=bind):
            pass
    with cluster_of(bind=bind, workers=1) as cluster:
        assert get(cluster) == "1"
        assert cluster.url == f"http://{bind}"
