"""What scripts/bench measures of messages, inside workers; CLOCK_MONOTONIC is one clock for all processes."""

import json
import threading
import time
import zlib
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

from zcluster import gather, publish, request, subscribe, worker

received: dict[int, int] = {}
bodies: dict[int, tuple[bytes, int]] = {}  # by MiB, with their checksums: making them takes as long as sending them
SETTLE_S = 5.0  # the last publication reaches the slowest of 64 workers on 2 cores long before


@worker.on("message")
def answer(payload: Any) -> Any:
    return zlib.crc32(payload) if isinstance(payload, bytes) else payload


@subscribe("timed")
def note(message: list[int]) -> None:
    received[message[0]] = time.monotonic_ns() - message[1]


@subscribe("times")
def times(first: int) -> dict[int, int]:
    return {number: lag for number, lag in received.items() if number >= first}


@subscribe("count")
def count(first: int) -> int:
    return sum(number >= first for number in list(received))


def ask(n: int) -> list[float]:
    """Milliseconds of requests to other workers, one after the other."""
    return [_timed(lambda: request("any", 1, 30.0)) for _ in range(n)]


def ask_for(seconds: float) -> list[float]:
    """The same for a while."""
    end, out = time.monotonic() + seconds, []
    while time.monotonic() < end:
        out.append(_timed(lambda: request("any", 1, 30.0)))
    return out


def tell(n: int, gap_s: float) -> dict[str, Any]:
    """Milliseconds until the last worker had each of n publications, and how many copies did not come."""
    first = time.monotonic_ns()
    for number in range(first, first + n):
        publish("timed", [number, time.monotonic_ns()])
        time.sleep(gap_s)
    workers, missing = _settled(first, n)
    replies, _ = gather("times", first, 30.0)
    lags = [
        max(reply[number] for reply in replies.values() if number in reply) / 1e6
        for number in range(first, first + n)
    ]
    return {"workers": workers, "missing": missing, "lags": lags}


def flood(seconds: float, rate: int) -> dict[str, Any]:
    """Publish at a rate; says how long it took and how many copies did not come."""
    first, started = time.monotonic_ns(), time.monotonic()
    n = int(seconds * rate)
    for number in range(n):
        late_s = started + number / rate - time.monotonic()
        if late_s > 0:
            time.sleep(late_s)
        publish("timed", [first + number, time.monotonic_ns()])
    took_s = time.monotonic() - started
    workers, missing = _settled(first, n)
    return {"workers": workers, "missing": missing, "seconds": took_s, "published": n}


def large(mib: int) -> float:
    """Milliseconds of a request with so much in it, whose reply proves that it arrived as it was."""
    if mib not in bodies:
        body = bytes(range(256)) * (mib * 4096)
        bodies[mib] = (body, zlib.crc32(body))
    body, sum_ = bodies[mib]

    def once() -> None:
        if request("any", body, 60.0) != sum_:
            raise AssertionError("the message was changed on its way")

    return _timed(once)


def _settled(first: int, n: int) -> tuple[int, int]:
    """Wait until every worker has everything; returns how many workers, and how many copies are missing."""
    end = time.monotonic() + SETTLE_S
    while True:
        replies, missing = gather("count", first, 30.0)
        lacking = sum(n - reply for reply in replies.values()) + n * len(missing)
        if not lacking or time.monotonic() > end:
            return len(replies) + len(missing), lacking
        time.sleep(0.05)


def _timed(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3


ROUTES: dict[str, Callable[..., Any]] = {
    "/ask": lambda q: ask(int(q["n"])),
    "/ask_for": lambda q: ask_for(float(q["s"])),
    "/tell": lambda q: tell(int(q["n"]), float(q["gap"])),
    "/flood": lambda q: flood(float(q["s"]), int(q["rate"])),
    "/large": lambda q: large(int(q["mib"])),
    "/": lambda q: [worker.id, threading.active_count()],
}


def app(environ, start_response):  # type: ignore[no-untyped-def]
    query = {key: values[0] for key, values in parse_qs(environ["QUERY_STRING"]).items()}
    body = json.dumps(ROUTES[environ["PATH_INFO"]](query)).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
