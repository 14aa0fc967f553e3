"""The clients of the nemesis: they count with the cluster, hold it to the Jepsen counter rule, and note each failure.

The rule is that of jepsen/checker.clj `counter`: no total may be below what had been acknowledged before its request
began, nor above what had been attempted when it came; and one reader never sees a total fall.
"""

import random
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

ANSWER_S = 30.0  # longer than the nemesis keeps a process from running, and than a hung one is kept
HEAD_MAX_BYTES = 65536


@dataclass(frozen=True)
class Failure:
    """A request without its whole response; times are of CLOCK_MONOTONIC."""

    begun: float
    ended: float
    client: str
    error: str


@dataclass
class Rule:
    """What all clients have seen together, also over several starts of a cluster; written under the lock."""

    attempted: int = 0
    acknowledged: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    failures: list[Failure] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)  # totals that cannot be
    lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self) -> int:
        """A request is about to be sent; returns what no total in its response may be below."""
        with self.lock:
            self.attempted += 1
            return self.acknowledged

    def end(self, low: int, last: int, total: int, seconds: float) -> None:
        """A response has come."""
        with self.lock:
            self.acknowledged += 1
            self.slowest_s = max(self.slowest_s, seconds)
            if not low < total <= self.attempted:
                self.broken.append(
                    f"acknowledged {low} before, read {total}, attempted {self.attempted}: the rule does not hold"
                )
            if total <= last:
                self.broken.append(f"a reader saw {last}, and then {total}")

    def settle(self, total: int) -> None:
        """No request is under way: this total has to hold everything that was acknowledged, and nothing invented."""
        if not self.acknowledged <= total <= self.attempted:
            self.broken.append(
                f"acknowledged {self.acknowledged} <= total {total} <= attempted {self.attempted} does not hold"
            )


class Client:
    """One thread's connection; a new one is opened when there is none."""

    def __init__(self, kind: str, port: int, rule: Rule, path: str = "/") -> None:
        self.kind, self.port, self.rule, self.path = kind, port, rule, path
        self.sock: socket.socket | None = None
        self.last = 0

    def ask(self) -> None:
        """One request, counted whatever becomes of it."""
        begun = time.monotonic()
        try:
            if self.sock is None:
                self.sock = socket.create_connection(("127.0.0.1", self.port), ANSWER_S)
        except ConnectionRefusedError:
            with self.rule.lock:
                self.rule.refused += 1
            return
        except OSError as error:
            self._failed(begun, error)
            return
        low = self.rule.begin()
        try:
            self.sock.sendall(f"GET {self.path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            total, stays = self._answer(self.sock)
        except OSError as error:
            self._failed(begun, error)
            return
        self.rule.end(low, self.last, total, time.monotonic() - begun)
        self.last = total
        if not stays:
            self.close()

    def _answer(self, sock: socket.socket) -> tuple[int, bool]:
        """The total in the response, and whether the connection stays."""
        data = b""
        while not data.endswith(b"\n") or b"\r\n\r\n" not in data or data.endswith(b"\r\n\r\n"):
            part = sock.recv(4096)
            if not part or len(data) > HEAD_MAX_BYTES:
                raise ConnectionError(f"closed after {len(data)} bytes")
            data += part
        head, _, body = data.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise ConnectionError(f"answered {head[:60]!r}")
        return int(body), b"\r\nconnection: close" not in head.lower()

    def _failed(self, begun: float, error: OSError) -> None:
        with self.rule.lock:
            self.rule.failures.append(Failure(begun, time.monotonic(), self.kind, repr(error)))
        self.close()

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()
        self.sock = None


def fresh(client: Client, rest: Callable[[float], bool]) -> None:
    """A connection for each request."""
    while not rest(0.01 + 0.01 * random.random()):
        client.ask()
        client.close()


def kept(client: Client, rest: Callable[[float], bool]) -> None:
    """Requests on one connection for as long as the server keeps it."""
    while not rest(0.005 + 0.01 * random.random()):
        client.ask()


# kind: what its thread does, and what it asks for; "/slow" is under way most of the time, so that faults land in it
KINDS = {"fresh": (fresh, "/"), "keep-alive": (kept, "/"), "slow": (kept, "/slow")}


class Clients:
    """All of them, as long as the block lasts."""

    def __init__(self, port: int, rule: Rule, number: int) -> None:
        self._over = threading.Event()
        self._clients = [Client(kind, port, rule, path) for kind, (_, path) in KINDS.items() for _ in range(number)]
        self._threads = [
            threading.Thread(target=KINDS[client.kind][0], args=(client, self._over.wait)) for client in self._clients
        ]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        for client in self._clients:
            client.close()
