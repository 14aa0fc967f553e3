"""An app whose import takes long: until the file SLOW_IMPORT names appears; the import tells it has begun by LOG."""

import os
import sys
import threading
import time

print("the import has begun", file=sys.stderr, flush=True)
_deadline = time.monotonic() + float(os.environ.get("SLOW_IMPORT_S", "30"))
while time.monotonic() < _deadline:
    threading.Event().wait(0.05)


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"at last"]
