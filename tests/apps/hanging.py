"""Counts requests, and hangs in the ways a test asks for."""

import atexit
import gc
import os
import re
import sys
import threading

from zcluster import Counter
from zcluster.http import Engine

requests = Counter("requests")
atexit.register(lambda: print(f"exit functions of {os.getpid()}", file=sys.stderr, flush=True))


def sleep_soundly(seconds):
    threading.Event().wait(seconds)


def hold_the_interpreter():
    re.match(r"(a+)+$", "a" * 60 + "b")  # THE CULPRIT: in C, with the GIL held, for longer than anybody lives


def wedge_the_loop():
    """What a bug in the server would do: the loop stands still, and no request of the app is the cause."""
    (engine,) = [found for found in gc.get_objects() if isinstance(found, Engine)]
    held = threading.Event()

    def hold():
        engine._door.lock.acquire()
        held.set()

    threading.Thread(target=hold, daemon=True).start()
    held.wait()


def app(environ, start_response):
    path, amount = environ["PATH_INFO"], environ["QUERY_STRING"]
    start_response("200 OK", [("Content-Type", "text/plain")])
    if path == "/pid":
        return [b"%d" % os.getpid()]
    if path == "/sleep":
        sleep_soundly(float(amount))
    if path == "/upload":
        return [b"%d" % len(environ["wsgi.input"].read())]
    if path == "/regex":
        hold_the_interpreter()
    if path == "/wedge":
        wedge_the_loop()
        return [b"%d" % os.getpid()]
    return [b"%d" % requests.incr()]
