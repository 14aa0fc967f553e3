"""What scripts/bench measures inside workers: who answers, and when a total is seen by another worker."""

import os
import time

from zcluster import Counter

ping = Counter("ping")
seen: dict[int, int] = {}


@ping.on_change
def note(total: int) -> None:
    seen[total] = time.monotonic_ns()


def app(environ, start_response):  # type: ignore[no-untyped-def]
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    start_response("200 OK", [("Content-Type", "text/plain")])
    if path == "/incr":
        started = time.monotonic_ns()
        return [f"{ping.incr()} {started}".encode()]
    if path == "/seen":
        return [str(seen.get(int(query), 0)).encode()]
    return [str(os.getpid()).encode()]
