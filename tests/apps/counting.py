"""Counts requests; /slow takes a while, /pid tells who, /value only reads."""

import os
import threading

from zcluster import Counter

requests = Counter("requests")


def app(environ, start_response):
    path = environ["PATH_INFO"]
    start_response("200 OK", [("Content-Type", "text/plain")])
    if path == "/pid":
        return [b"%d" % os.getpid()]
    if path == "/value":
        return [b"%d" % requests.value]
    if path == "/slow":
        threading.Event().wait(float(environ["QUERY_STRING"] or "1"))
    return [b"%d" % requests.incr()]
