"""Counts requests, and fails in the ways a test asks for: PATH says how, QUERY_STRING how much."""

import ctypes
import os
import re
import subprocess
import sys
import threading

from zcluster import Counter

requests = Counter("requests")

CHILD = """
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN if sys.argv[1] == "deaf" else signal.SIG_DFL)
print("up", flush=True)
while True:
    signal.pause()
"""


def crash(path):
    if path == "/segv":
        ctypes.string_at(0)
    if path == "/abort":
        os.abort()
    if path == "/exit":
        os._exit(7)


def left_over(deaf, own_session):
    """Start a process that outlives us; returns its pid once its handlers stand."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, "deaf" if deaf else "hears"],
        stdout=subprocess.PIPE,
        start_new_session=own_session,
    )
    child.stdout.readline()
    return child.pid


def app(environ, start_response):
    path, amount = environ["PATH_INFO"], environ["QUERY_STRING"]
    crash(path)
    start_response("200 OK", [("Content-Type", "text/plain")])
    if path == "/pid":
        return [b"%d" % os.getpid()]
    if path == "/value":
        return [b"%d" % requests.value]
    if path == "/slow":
        threading.Event().wait(float(amount))
    if path == "/regex":  # in C, with the GIL held, for longer than anybody lives
        re.match(r"(a+)+$", "a" * 60 + "b")
    if path == "/many":
        for _ in range(int(amount) - 1):
            requests.incr()
    if path == "/durable":
        return [b"%d" % requests.incr(durable=True)]
    if path == "/child":
        return [b"%d %d" % (os.getpid(), left_over(deaf="deaf" in amount, own_session="session" in amount))]
    return [b"%d" % requests.incr()]
