"""Request pairs against a real cluster: none may hang, be mixed up with another, or be answered out of order.

A pair is a request that blocks for 10 ms and, at a random moment of it, one of: a reset, a FIN, the end of the
client's sending (it still reads), a second request behind the first, both in one piece, or nothing. Every answer must
be the one to its own request: it carries a token. Some paths always block, which a worker learns, and runs them in
threads beside its loop; others block one time in five, which nobody can learn: the loop is taken away from the
thread that runs them.

Exit code 1 when a pair hung or got a wrong answer, or when the workers kept connections, threads or descriptors.
"""

import argparse
import heapq
import os
import random
import select
import socket
import struct
import sys
import time
from collections import Counter
from pathlib import Path

from zcluster import Cluster

SLOW_S = 0.010
HANG_S = 20.0  # a hundred times what a pair takes when all clients wait for a thread
SETTLE_S = 15.0  # for workers to close what was left to them
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset
ACTS = ("reset", "close", "half", "pipelined", "at once", "nothing")


def app(environ, start_response):
    """Answers with the path it was asked for, after 10 ms or at once, in one piece or as a stream."""
    path = environ["PATH_INFO"]
    body = path.encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    if path.startswith("/stream"):
        return pieces(body)
    if path.startswith("/slow") or (path.startswith("/mixed") and int(path.rpartition("/")[2]) % 5 == 0):
        time.sleep(SLOW_S)
    return [body]


def pieces(body):
    """The body in five parts, which take as long as a slow request."""
    size = len(body) // 5 + 1
    for start in range(0, len(body), size):
        time.sleep(SLOW_S / 5)
        yield body[start : start + size]


class Wrong(Exception):
    """An answer that is not the one to its request."""


class Pair:
    """One client with its slow request and what it does beside; used by one loop."""

    def __init__(self, number, rng, address, usual_s):
        self.act = rng.choice(ACTS)
        self.paths = [f"/{rng.choice(('slow', 'stream', 'mixed', 'mixed'))}/first/{number}"]
        if self.act in ("pipelined", "at once"):
            self.paths.append(f"/{rng.choice(('fast', 'slow', 'mixed'))}/second/{number}")
        # When to act. A request may wait for a thread before it runs, so the second choice is about its whole life;
        # some acts come after the answer.
        self.at = time.monotonic() + rng.random() * 1.2 * rng.choice((SLOW_S, usual_s))
        self.began = time.monotonic()
        self.over = False
        self._buffer = b""
        self.sock = socket.create_connection(address, HANG_S)
        self.sock.setblocking(False)
        first = request(self.paths[0])
        self.sock.send(first + request(self.paths[1]) if self.act == "at once" else first)

    def step(self):
        """Do what it does, now; true when that is its end."""
        if self.act == "reset":
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        elif self.act == "half":
            self.sock.shutdown(socket.SHUT_WR)
        elif self.act == "pipelined":
            self.sock.send(request(self.paths[-1]))
        return self.act in ("reset", "close")

    def read(self):
        """Take what is there; true when all answers have come, and after half a close the end too."""
        data = self.sock.recv(65536)
        self._buffer += data
        while self._take():
            pass
        if not data:
            if self.paths or self.act != "half":
                raise Wrong(f"{self.act}: the connection ended before the answer to {self.paths}")
            return True
        return not self.paths and self.act != "half"

    def _take(self):
        """One whole answer, if it is there."""
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return False
        if not self.paths:
            raise Wrong(f"{self.act}: an answer to nothing: {head!r}")
        expected = self.paths[0].encode()
        if not head.startswith(b"HTTP/1.1 200 ") or f"Content-Length: {len(expected)}\r\n".encode() not in head + end:
            raise Wrong(f"{self.act}: not the head of an answer to {self.paths[0]}: {head!r}")
        if len(rest) < len(expected):
            return False
        if rest[: len(expected)] != expected:
            raise Wrong(f"{self.act}: {self.paths[0]} was answered with {rest[:100]!r}")
        self._buffer = rest[len(expected) :]
        del self.paths[0]
        return True


def request(path):
    """Its bytes."""
    return f"GET {path} HTTP/1.1\r\nHost: ownership\r\n\r\n".encode()


class Crowd:
    """Many pairs at a time, in one thread, until all have had their turn."""

    def __init__(self, address, rng, pairs, clients):
        self.wrong = []
        self.done = Counter()
        self.slowest_s = 0.0
        self._usual_s = SLOW_S  # from the request to its answer, lately
        self._address, self._rng = address, rng
        self._left, self._clients = pairs, clients
        self._number = 0
        self._epoll = select.epoll()
        self._open = {}
        self._acts = []  # (moment, number, pair), the next one first

    def run(self, tell):
        """Everything; `tell` is called about once a second."""
        said = time.monotonic()
        while self._left or self._open:
            while self._left and len(self._open) < self._clients:
                self._begin()
            now = time.monotonic()
            while self._acts and self._acts[0][0] <= now:
                pair = heapq.heappop(self._acts)[2]
                self._guarded(pair, pair.step)
            wait_s = max(0.0, self._acts[0][0] - now) if self._acts else 0.1
            for fd, _ in self._epoll.poll(min(wait_s, 0.1)):
                if fd in self._open:
                    self._guarded(self._open[fd], self._open[fd].read)
            if now - said >= 1.0:
                said = now
                self._look_for_hanging(now)
                tell(sum(self.done.values()), len(self.wrong))
        self._epoll.close()

    def _begin(self):
        self._left -= 1
        self._number += 1
        pair = Pair(self._number, self._rng, self._address, self._usual_s)
        self._open[pair.sock.fileno()] = pair
        self._epoll.register(pair.sock, select.EPOLLIN)
        heapq.heappush(self._acts, (pair.at, self._number, pair))

    def _guarded(self, pair, step):
        """Let it take a step; it ends when that was the last, or went wrong."""
        if pair.over:
            return
        try:
            over = step()
        except (OSError, Wrong) as error:
            self.wrong.append(f"{pair.act}: {error!r}")
            over = True
        if over:
            self._end(pair)

    def _end(self, pair):
        pair.over = True
        self.done[pair.act] += 1
        lasted_s = time.monotonic() - pair.began
        self.slowest_s = max(self.slowest_s, lasted_s)
        if pair.act == "nothing":
            self._usual_s += (lasted_s - self._usual_s) / 16
        del self._open[pair.sock.fileno()]
        pair.sock.close()

    def _look_for_hanging(self, now):
        for pair in list(self._open.values()):
            if now - pair.began > HANG_S:
                self.wrong.append(f"{pair.act}: no answer to {pair.paths} within {HANG_S:.0f} s")
                self._end(pair)


def kept(cluster):
    """What workers still hold: connections, requests, and their descriptors and threads."""
    workers = cluster.snapshot()["workers"]
    connections = sum(worker["connections"] + worker["inflight"] for worker in workers)
    fds = {worker["pid"]: len(os.listdir(f"/proc/{worker['pid']}/fd")) for worker in workers}
    threads = {worker["pid"]: len(os.listdir(f"/proc/{worker['pid']}/task")) for worker in workers}
    return connections, fds, threads


def settled(cluster, fds_before):
    """Wait until the workers have closed everything; what they kept, in words, or nothing."""
    end = time.monotonic() + SETTLE_S
    while True:
        connections, fds, _ = kept(cluster)
        if fds.keys() != fds_before.keys():
            return [f"workers died: {sorted(fds_before)} became {sorted(fds)}"]
        more = {pid: count - fds_before[pid] for pid, count in fds.items() if count > fds_before[pid]}
        if not connections and not more:
            return []
        if time.monotonic() > end:
            return [f"after {SETTLE_S:.0f} s {connections} connections or requests were left, descriptors: {more}"]
        time.sleep(0.1)


def parsed(arguments):
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/ownership", description=__doc__.split("\n\n")[0])
    parser.add_argument("--pairs", type=int, default=100_000, help="how many (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=400, help="how many at a time (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="of the cluster (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=8, help="of each worker (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="repeat a run (default: another one each time)")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Run it and print a verdict."""
    options = parsed(arguments)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"{options.pairs:,} pairs, {options.clients} at a time, seed {seed}", flush=True)
    sys.path.insert(0, str(Path(__file__).parent))
    with Cluster("ownership:app", bind="127.0.0.1:0", workers=options.workers, threads=options.threads) as cluster:
        host, port = cluster.url.removeprefix("http://").rsplit(":", 1)
        _, fds_before, _ = kept(cluster)
        crowd = Crowd((host, int(port)), random.Random(seed), options.pairs, options.clients)
        began = time.monotonic()
        crowd.run(lambda done, wrong: print(f"  {done:,} done, {wrong} wrong", flush=True))
        took_s = time.monotonic() - began
        wrong = crowd.wrong + settled(cluster, fds_before)
        threads = kept(cluster)[2]
    for act in ACTS:
        print(f"  {act:<10}{crowd.done[act]:>9,}")
    print(f"  {took_s:.1f} s, {options.pairs / took_s:,.0f} pairs/s, the slowest took {crowd.slowest_s:.2f} s")
    print(f"  threads of the workers: {sorted(threads.values())}")
    for text in wrong[:20]:
        print(f"  WRONG {text}")
    if wrong:
        print(f"verdict: {len(wrong)} went wrong (seed {seed})")
        return 1
    print("verdict: none hung, none was mixed up, nothing was left behind")
    return 0


if __name__ == "__main__":
    sys.exit(main())
