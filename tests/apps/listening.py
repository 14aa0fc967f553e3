"""Counts requests, and writes down every total that its `on_change` is told, one a line, in $SEEN_DIR/PID."""

import os

from zcluster import Counter

requests = Counter("requests")
others = Counter("others")


@requests.on_change
def told(total):
    with open(f"{os.environ['SEEN_DIR']}/{os.getpid()}", "a") as file:
        file.write(f"{total}\n")


def app(environ, start_response):
    path = environ["PATH_INFO"]
    start_response("200 OK", [("Content-Type", "text/plain")])
    if path == "/pid":
        return [b"%d" % os.getpid()]
    if path == "/others":
        return [b"%d" % others.incr()]
    return [b"%d" % requests.incr()]
