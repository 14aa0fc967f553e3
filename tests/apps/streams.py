"""Long bodies up and down, and descriptors taken."""

import contextlib
import os
import threading

taken: list[int] = []
both = threading.Barrier(2)


def app(environ, start_response):
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    if path == "/down":  # ?BYTES, made piece by piece
        start_response("200 OK", [("Content-Length", query)])
        return pieces(int(query))
    if path == "/up":
        answer = up(environ["wsgi.input"])
    elif path == "/meet":  # two requests at once, or "alone"
        answer = meet(float(query))
    elif path == "/take":
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        answer = str(len(taken))
    elif path == "/release":
        while taken:
            os.close(taken.pop())
        answer = "released"
    else:
        answer = f"threads {environ['wsgi.multithread']}"
    body = answer.encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def pieces(size):
    while size > 0:
        yield b"x" * min(size, 65536)  # each one memory of its own
        size -= 65536


def up(body):
    """How many bytes came, and by how many our memory grew at most."""
    count, most, before = 0, 0, rss_bytes()
    while block := body.read(65536):
        count += len(block)
        most = max(most, rss_bytes() - before)
    return f"{count} {most}"


def rss_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def meet(timeout_s):
    try:
        both.wait(timeout_s)
    except threading.BrokenBarrierError:
        both.reset()
        return "alone"
    return "together"
