"""Clients that are slow, clients that are many, bodies that are large: what the others and the memory see of them."""

import select
import socket
import time

import pytest
from harness import running, wait_for

GET = b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST /up HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n"
KIB, MIB = 1 << 10, 1 << 20


class Slow:
    """A client that moves 1 KiB a second, up or down, of a body of 10 MiB."""

    def __init__(self, cluster, number):
        self.due = time.monotonic() + number % 64 / 64  # not all at once
        self.up = number % 2 == 0
        self.sock = cluster.connect()
        self.moved = 0
        if self.up:
            # Every other one has sent what is collected, and more, so that its request runs and waits for it.
            begin = bytes(300 * KIB if number % 4 == 0 else 1)
            self.sock.sendall(POST % (10 * MIB) + begin)
        else:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 17)
            self.sock.sendall(GET % b"/down?%d" % (10 * MIB))
        self.sock.setblocking(False)

    def move(self, now):
        if now < self.due:
            return
        self.due += 1.0
        try:
            got = self.sock.send(bytes(KIB)) if self.up else len(self.sock.recv(KIB))
        except BlockingIOError:  # it has not been answered yet
            return
        assert got, "the server ended a slow download"
        self.moved += got


class Fast:
    """A keep-alive client that asks again 5 ms after each answer, so as not to be the load itself."""

    def __init__(self, cluster, poll):
        self.sock = cluster.connect()
        self.due = time.monotonic()
        self.asked = 0.0
        self.times = []
        poll.register(self.sock, select.EPOLLIN)

    def ask(self, now):
        if not self.asked and now >= self.due:
            self.asked = time.monotonic()
            self.sock.sendall(GET % b"/")

    def answered(self):
        data = self.sock.recv(65536)
        assert data.startswith(b"HTTP/1.1 200 "), data
        now = time.monotonic()
        self.times.append(now - self.asked)
        self.asked, self.due = 0.0, now + 0.005


def measure(cluster, control, slow):
    """The times of fast requests to both, sorted, while 128 slow clients come to the first (into `slow`)."""
    poll = select.epoll()
    ours, theirs = [Fast(cluster, poll) for _ in range(4)], [Fast(control, poll) for _ in range(4)]
    fast = {client.sock.fileno(): client for client in ours + theirs}
    begun = time.monotonic()
    try:
        slow.extend(Slow(cluster, number) for number in range(128))
        while (now := time.monotonic()) < begun + 5.0 or any(client.moved < 3 * KIB for client in slow):
            assert now < begun + 60.0, "some slow clients do not get on at all"
            for client in fast.values():
                client.ask(now)
            for client in slow:
                client.move(now)
            for fd, _ in poll.poll(0.002):
                fast[fd].answered()
        return [sorted(time_s for client in some for time_s in client.times) for some in (ours, theirs)]
    finally:
        poll.close()
        for client in fast.values():
            client.sock.close()


def rss_bytes(cluster):
    """Of all workers."""
    return sum(worker["rss_bytes"] for worker in cluster.workers())


def test_slow_clients_slow_nobody_down():
    """Beside 64 clients at 1 KiB/s up and 64 down on 10 MiB bodies the p99 of fast requests is at most 50 ms.

    On a machine that others keep busy a request may wait 50 ms for a processor, whatever we do. So the same requests
    are sent to a cluster without slow clients at the same time, and three times its p99 is allowed on top. A server
    whose threads wait for slow clients is not within seconds of it.
    """
    slow = []
    with (
        running("streams:app", "--threads=8", workers=2, fast=False) as cluster,
        running("streams:app", "--threads=8", workers=2, fast=False) as control,
    ):
        try:
            before = wait_for(lambda: rss_bytes(cluster))
            times, alone = measure(cluster, control, slow)
            wait_for(lambda: sum(w["connections"] for w in cluster.workers()) >= 128, what="all are known to ps")
            grown = rss_bytes(cluster) - before
        finally:
            for client in slow:
                client.sock.close()
        late_alone, late = (found[-1 - len(found) // 100] for found in (alone, times))
        print(
            f"{len(times)} fast requests: p50 {times[len(times) // 2] * 1e3:.1f} ms, p99 {late * 1e3:.1f} ms, "
            f"most {times[-1] * 1e3:.1f} ms; without p99 {late_alone * 1e3:.1f} ms; memory + {grown / MIB:.0f} MiB"
        )
        assert len(times) > 100
        assert late <= 0.05 + 3 * late_alone
        # 1 MiB and a block of each response, 256 KiB and a read of each body; 640 MiB are asked for
        assert grown < 128 * MIB
        wait_for(lambda: not any(w["connections"] for w in cluster.workers()), what="all are gone")
        cluster.end()


def test_upload_larger_than_a_worker_should_be():
    """300 MiB through an application that reads block by block cost its worker less than 20 MiB."""
    block = bytes(MIB)
    with running("streams:app", "--threads=4", workers=1) as cluster, cluster.connect(30) as client:
        client.sendall(POST % (300 * MIB))
        for _ in range(300):
            client.sendall(block)
        count, most = map(int, client.recv(65536).partition(b"\r\n\r\n")[2].split())
        print(f"300 MiB streamed: memory + {most / MIB:.1f} MiB")
        assert count == 300 * MIB
        assert most < 20 * MIB


@pytest.mark.parametrize("threads", [1, 4])
def test_large_bodies_where_no_thread_waits(threads):
    """Chunked, or with one thread, a body of 100 MiB waits on disk, and its worker does not grow with it."""
    block = bytes(MIB)
    with running("streams:app", f"--threads={threads}", workers=1) as cluster, cluster.connect(30) as client:
        before = wait_for(lambda: rss_bytes(cluster))
        client.sendall(b"POST /up HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(100):
            client.sendall(b"%x\r\n%b\r\n" % (MIB, block))
        client.sendall(b"0\r\n\r\n")
        count, most = map(int, client.recv(65536).partition(b"\r\n\r\n")[2].split())
        assert count == 100 * MIB
        assert most < 20 * MIB
        assert rss_bytes(cluster) - before < 20 * MIB


def ask(client, path):
    client.sendall(GET % path)
    return client.recv(65536)


def test_no_descriptors_left():
    """A worker whose application has taken all descriptors serves on, and accepts again when there are some."""
    low = ["bash", "-c", 'ulimit -n 400; exec "$@"', "-"]
    with running("streams:app", "--keep-alive=60", workers=1, prefix=low) as cluster, cluster.connect() as first:
        assert b"200 OK" in ask(first, b"/")
        assert int(ask(first, b"/take").rpartition(b"\r\n")[2]) > 100
        with cluster.connect() as second:
            second.sendall(GET % b"/")
            cluster.wait_log("cannot accept connections: .*ulimit -n")
            for _ in range(100):
                assert b"200 OK" in ask(first, b"/")
            assert not select.select([second], [], [], 0)[0]
            assert b"released" in ask(first, b"/release")
            assert b"200 OK" in second.recv(65536)
        assert cluster.log.count("cannot accept connections") == 1
        assert [worker["restarts"] for worker in cluster.workers()] == [0]
