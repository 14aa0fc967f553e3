"""Clients that count with the cluster, and the Jepsen counter rule: acknowledged <= total <= attempted, monotone.

The rule is that of jepsen/checker.clj `counter`: no read may be below what was acknowledged before it began, nor
above what had been attempted when it ended; and one reader never sees a total fall.
"""

import http.client
import threading
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Load:
    """`clients` threads, each on a keep-alive connection of its own; a context manager."""

    address: tuple[str, int]
    clients: int = 4
    pause_s: float = 0.003  # between two requests of a client: more load only heats the machine
    path: str = "/"
    parse: Callable[[bytes], int] = int  # of a response's body: the total in it
    attempted: int = 0
    acknowledged: int = 0
    refused: int = 0
    broken: list[str] = field(default_factory=list)  # requests that got no whole response
    fell: list[str] = field(default_factory=list)  # totals that a reader saw shrink
    largest: int = 0

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._client, name=f"client-{i}") for i in range(self.clients)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive(), f"{thread.name} hangs: a request was never answered"

    def _client(self) -> None:
        connection: http.client.HTTPConnection | None = None
        last = 0
        while not self._stop.wait(self.pause_s):
            if connection is None:
                connection = http.client.HTTPConnection(*self.address, timeout=15)
                try:
                    connection.connect()
                except (ConnectionRefusedError, ConnectionResetError):  # reset: the listener was closed over it
                    with self._lock:
                        self.refused += 1
                    connection = None
                    continue
            with self._lock:
                self.attempted += 1
            try:
                connection.request("GET", self.path)
                response = connection.getresponse()
                total = self.parse(response.read())
            except (OSError, http.client.HTTPException, ValueError) as error:
                with self._lock:
                    self.broken.append(repr(error))
                connection.close()
                connection = None
                continue
            with self._lock:
                self.acknowledged += 1
                self.largest = max(self.largest, total)
                if total < last:
                    self.fell.append(f"{last} -> {total}")
            last = total
            if response.will_close:
                connection.close()
                connection = None
        if connection is not None:
            connection.close()

    def check(self, total: int, *, kills: int = 0, base: int = 0) -> None:
        """The rule, for a total read after `stop`; `kills` landed at most so many requests in the middle.

        `base` is what the total was before this load began.
        """
        assert not self.fell, f"a reader saw totals fall: {self.fell[:5]}"
        assert self.refused == 0, f"{self.refused} connections were refused"
        assert self.acknowledged > 0, f"nothing was answered: {self.broken[:5]}"
        assert self.acknowledged <= total - base <= self.attempted, (
            f"acknowledged {self.acknowledged} <= total {total - base} <= attempted {self.attempted} does not hold"
        )
        assert self.largest <= total
        if not kills:
            assert not self.broken, f"requests failed: {self.broken[:5]}"
