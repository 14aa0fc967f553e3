"""Counts requests; /hold does not end before the file `go` is in the directory HOLD_DIR, and says there who it is."""

import itertools
import os
import threading
from pathlib import Path

from zcluster import Counter

requests = Counter("requests")
DIR = Path(os.environ["HOLD_DIR"])
numbers = itertools.count()


def app(environ, start_response):
    if environ["PATH_INFO"] == "/hold":
        (DIR / f"held-{os.getpid()}-{next(numbers)}").touch()
        while not (DIR / "go").exists():
            threading.Event().wait(0.01)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % requests.incr()]
